# SPDX-License-Identifier: BSD-3-Clause
"""The child process of one mount: `python -m cernvm.cvmfsd.worker SOCKET COUNTERS` (two inherited descriptors).

Threads: the main one talks to the supervisor; one runs the FUSE session (which starts its own workers); one asks for
newer revisions; one answers `cvmfs_talk`.  When the supervisor goes away the worker serves on and waits for the next
one; if none comes in time, it takes its mount away and ends too.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path
from random import Random
from typing import Final

from cernvm.cvmfs.cache import Cache
from cernvm.cvmfs.client import open_client
from cernvm.cvmfs.counters import Counters
from cernvm.cvmfs.errors import Revoked
from cernvm.cvmfs.parameters import MOUNTS, read_files, read_parameters
from cernvm.cvmfs.status import Journal, Status
from cernvm.kit import journal
from cernvm.kit.errors import EXIT_FAILED, EXIT_OK, Problem, sentence

from . import wire
from .adapters import Session, mount_view
from .link import Link, listening
from .mounting import unmount
from .talk import Talk
from .talk_commands import Commands

log = logging.getLogger(__name__)
SETTLE: Final = 2.0
"""Seconds after which the kernel is told again: an answer from before the switch may have come after the first time."""
AGAIN: Final = 1.0
"""Seconds for which the same trouble is not told again."""
PARKED: Final = {"kernel": 256, "llfuse": 64}
"""Requests that an adapter may keep waiting for the network, so that others (df) are answered meanwhile.

The kernel adapter starts its threads when they are needed, llfuse all at once.
"""
END: Final = 2.0
"""Seconds for the FUSE session to end once unmounted."""


class Refresher:
    """Asks for newer revisions when they are due or wanted, in a thread of its own."""

    def __init__(self, status: Status, session: Session, link: Link) -> None:
        self._status = status
        self._client = status.client
        self._session = session
        self._link = link
        self._one = threading.Lock()
        self._wake = threading.Condition()
        self._wanted = False
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="refresh", daemon=True)
        self._thread.start()

    def now(self) -> None:
        """Ask at once and answer with `Refreshed`."""
        with self._wake:
            self._wanted = True
            self._wake.notify()

    def stop(self) -> None:
        """End; a transfer under way is not waited for."""
        with self._wake:
            self._stopped = True
            self._wake.notify()

    def _run(self) -> None:
        delay = self._jitter(float(self._client.ttl()))
        while True:
            with self._wake:
                due = None if not self._client.auto_update else delay
                self._wake.wait_for(lambda: self._wanted or self._stopped, due)
                if self._stopped:
                    return
                wanted, self._wanted = self._wanted, False
            kind, complaint, _ = self.look()
            delay = self._jitter(float(self._client.retry_after() if complaint else self._client.ttl()))
            if wanted:
                self._link.say(wire.Refreshed(kind, complaint))

    def look(self) -> tuple[str, str, bool]:
        """Look once; the kind of error and its sentence (both empty when all is well), and whether there was news."""
        with self._one:
            self._status.looked = time.monotonic()
            try:
                changes = self._client.refresh()
            except Revoked as error:
                log.critical("what is shown must not be shown any longer, and is taken away: %s", sentence(error))
                self._link.hang_up()
                return type(error).__name__, sentence(error), False
            except (Problem, OSError) as error:
                log.warning("no newer revision: %s", sentence(error))
                return type(error).__name__, sentence(error), False
            if changes is None:
                return "", "", False
            self._session.invalidate(changes)
            manifest = self._client.view.tree.manifest
            log.info("shows revision %d", manifest.revision)
            self._link.say(wire.Shows(manifest.revision, str(manifest.root_hash), self._session.name))
            again = threading.Timer(SETTLE, self._session.invalidate, (changes,))
            again.daemon = True
            again.start()
            return "", "", True

    def _jitter(self, seconds: float) -> float:
        return seconds * (0.95 + 0.1 * Random().random())


def main(arguments: list[str]) -> int:
    """Run one mount to its end; returns the exit status."""
    link = Link(socket.socket(fileno=int(arguments[0])))
    counters = Counters(int(arguments[1]))
    task = link.hear()
    if not isinstance(task, wire.Task):
        return EXIT_FAILED
    journal.set_up(f"cvmfsd {task.fqrn}", task.log_level, detached=_detached())
    _prepare_process(link)
    try:
        _serve(task, link, counters, int(arguments[1]))
    except (Problem, OSError) as error:
        link.say(wire.Failed(type(error).__name__, sentence(error)))
        return EXIT_FAILED
    except Exception as error:
        log.critical("stopped by an error of its own", exc_info=True)
        link.say(wire.Failed(Problem.__name__, sentence(error)))
        return EXIT_FAILED
    return EXIT_OK


def _detached() -> bool:
    """Whether the supervisor has no stderr that anybody reads."""
    return Path("/proc/self/fd/2").resolve() == Path(os.devnull)


def _prepare_process(link: Link) -> None:
    """SIGTERM ends in order; SIGINT is the supervisor's affair; SIGUSR1 is llfuse's and must not kill."""
    signal.signal(signal.SIGTERM, lambda *_: link.hang_up())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Stop(Enum):
    """Why a worker stops listening."""

    TOLD = auto()
    """By the supervisor or a signal, or nobody is there to tell it anything."""
    RETIRED = auto()
    """Another worker has the mount."""


def _serve(task: wire.Task, link: Link, counters: Counters, counters_fd: int) -> None:
    alone = task.patience is None
    if task.parameter_files:
        parameters = read_files(task.fqrn, [Path(file) for file in task.parameter_files])
    else:
        mounts = MOUNTS if alone else Path(task.mount_point).parent
        parameters = read_parameters(task.fqrn, Path(task.parameters_directory), mounts)
    cache = Cache(Path(task.cache_directory), task.cache_limit)
    client = open_client(parameters, cache, counters, alone=alone, ahead=task.fetch_ahead)
    client.repository.objects.patience = task.deadline
    point = Path(task.mount_point)
    if task.replaces:
        unmount(point, lazy=True)
    status = Status(client, parameters, Journal(), point)
    client.view.told = status.told()
    session = mount_view(wire.Choice(task.fuse), client.view, Teller(link, status.journal).tell, point, client.options)
    if task.patience is None:
        with suppress(PermissionError):
            os.setsid()  # not before the mount: who mounts on a trigger of systemd's must be of its process group
    over = threading.Event()

    def serve() -> None:
        try:
            session.serve(max(task.threads, PARKED[session.name]))
        finally:
            over.set()
            link.hang_up()

    fuse = threading.Thread(target=serve, name="fuse", daemon=True)
    fuse.start()

    def shows() -> wire.Shows:
        manifest = client.view.tree.manifest
        return wire.Shows(manifest.revision, str(manifest.root_hash), session.name)

    refresher = Refresher(status, session, link)
    listener = listening(cache.directory / f"{wire.ORPHAN}{task.fqrn}")
    talk = Talk(listening(cache.directory / f"{wire.TALK}{task.fqrn}"), Commands(status, refresher.look))
    link.say(shows())
    hello = wire.Hello(task.fqrn, task.mount_point, task.point_created, counters_fd)
    stop = _obey(link, refresher, lambda: link.await_next(listener, task.patience, lambda: (hello, shows())))
    refresher.stop()
    if over.is_set() or stop is Stop.RETIRED:
        link.say(wire.Unmounted())
    else:
        _take_away(point, over)
    listener.close()
    talk.close()
    fuse.join()
    session.close()
    client.close()


def _obey(link: Link, refresher: Refresher, await_next: Callable[[], bool]) -> Stop:
    """Do what the supervisor says until it wants the end, is gone for good, or the mount is gone."""
    while True:
        message = link.hear()
        match message:
            case wire.Ping():
                link.say(wire.Pong())
            case wire.Refresh():
                refresher.now()
            case wire.Retire():
                return Stop.RETIRED
            case None if await_next():
                continue
            case _:
                return Stop.TOLD


def _take_away(point: Path, over: threading.Event) -> None:
    """Unmount; while somebody still uses it the session cannot end, so that the process has to."""
    unmount(point, lazy=True)
    if not over.wait(END):
        log.warning("%s was in use when it was taken away; its users get errors from now on", point)
        sys.stderr.flush()
        os._exit(EXIT_OK)


class Teller:
    """Tells trouble to the log and the supervisor; the same sentence again at most once a second."""

    def __init__(self, link: Link, journal: Journal) -> None:
        self._link = link
        self._journal = journal
        self._lock = threading.Lock()
        self._last = ("", 0.0)

    def tell(self, text: str) -> None:
        """Say it, from any thread, before the kernel has its answer."""
        now = time.monotonic()
        with self._lock:
            last, when = self._last
            if text == last and now - when < AGAIN:
                return
            self._last = (text, now)
        log.error("%s", text)
        self._journal.note(text)
        self._link.say(wire.Trouble(text))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
