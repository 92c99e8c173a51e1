# SPDX-License-Identifier: BSD-3-Clause
"""One life cycle for every daemon: arguments, configuration, detaching, signals, readiness, end.

The only import of python-daemon.  asyncio owns the main thread; everything here runs in it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import logging
import os
import select
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from daemon import DaemonContext
from daemon.pidfile import TimeoutPIDLockFile
from lockfile import Error as LockError

from .. import __version__
from . import config, journal
from .errors import EXIT_FAILED, EXIT_OK, Problem, UserMistake, sentence
from .notify import Notifier

C = TypeVar("C")
log = logging.getLogger(__name__)

STOP_DEADLINE: Final = 45.0
"""Seconds that a daemon may take to clean up before its main coroutine is cancelled (units allow 60)."""

START_DEADLINE: Final = 90.0
"""Seconds that `--background` waits for the detached daemon to be ready."""


@dataclass(frozen=True)
class Service(Generic[C]):
    """What is particular to one daemon."""

    name: str
    summary: str
    spec: str
    """The configspec, as text."""
    configure: Callable[[config.Settings], C]
    """Turns settings into the daemon's own frozen configuration; raises UserMistake."""
    run: Callable[[C, Life[C]], Awaitable[None]]
    """Starts, calls `life.ready`, waits for `life.stopping`, cleans up."""


class Life(Generic[C]):
    """A running daemon's ties to the world: readiness, status, stop and reload."""

    def __init__(self, notifier: Notifier, on_ready: Callable[[], None]) -> None:
        self.stopping = asyncio.Event()
        self.failure: Problem | None = None
        self._notifier = notifier
        self._on_ready = on_ready
        self._reload: Callable[[C], Awaitable[None]] | None = None
        self._status = "starting"

    def ready(self, status: str) -> None:
        """Say once that the daemon serves; `status` is one line for a person."""
        self._status = status
        self._notifier.ready(status)
        self._on_ready()
        log.info("ready: %s", status)

    def status(self, text: str) -> None:
        """Change the status line."""
        self._status = text
        self._notifier.status(text)

    def fail(self, failure: Problem) -> None:
        """End the daemon because something that it cannot live without broke; the exit status tells."""
        self.failure = self.failure or failure
        self.stopping.set()

    def on_reload(self, callback: Callable[[C], Awaitable[None]]) -> None:
        """Call `callback` with the new, validated configuration at each SIGHUP."""
        self._reload = callback

    async def reload(self, load: Callable[[], C]) -> None:
        """Read the configuration again; a bad file is logged and changes nothing."""
        self._notifier.reloading()
        try:
            new = load()
            if self._reload is None:
                log.warning("nothing of this configuration can change without a restart")
            else:
                await self._reload(new)
                log.info("configuration read again")
        except Problem as error:
            log.error("configuration kept as it was: %s", error)  # noqa: TRY400 - a sentence for a person
        self._notifier.ready(self._status)


def entry_point(service: Service[Any]) -> Callable[[], int]:
    """Return the `main` of `service`."""
    return functools.partial(run, service)


def run(service: Service[C], argv: Sequence[str] | None = None) -> int:
    """Run the daemon `service` with command line `argv`; returns the exit status (0 done, 1 failed, 2 mistake)."""
    options = _arguments(service).parse_args(argv)
    path = (options.config or Path("/etc/cernvm") / f"{service.name}.conf").absolute()

    def load() -> C:
        return service.configure(config.load(service.spec, path, required=options.config is not None))

    try:
        loaded = load()
        if options.check_config:
            print(f"{path}: ok")
            return EXIT_OK
        if options.show_config:
            print("\n".join(config.load(service.spec, path, required=options.config is not None).lines()))
            return EXIT_OK
    except Problem as error:
        print(f"{service.name}: {error}", file=sys.stderr)
        return EXIT_FAILED if options.check_config else error.exit_status
    if options.background:
        return _in_background(service, loaded, load, options)
    with DaemonContext(
        detach_process=False,
        umask=0o022,
        working_directory="/",
        stdin=sys.stdin,
        stdout=sys.stdout,
        stderr=sys.stderr,
        signal_map={},
        files_preserve=list(range(3, 1024)),  # socket activation and the test harness pass descriptors
    ):
        journal.set_up(service.name, options.log_level, detached=False)
        return _live(service, loaded, load, on_ready=lambda: None)


def _arguments(service: Service[Any]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=service.name, description=service.summary)
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"default: /etc/cernvm/{service.name}.conf")
    parser.add_argument("--check-config", action="store_true", help="check the configuration and exit 0 or 1")
    parser.add_argument("--show-config", action="store_true", help="print the effective values and their origin")
    parser.add_argument("--background", action="store_true", help="detach once ready (without systemd)")
    parser.add_argument("--pid-file", type=Path, metavar="FILE", help="with --background: default /run/NAME.pid")
    parser.add_argument("--log-level", choices=journal.LEVELS, default="info")
    parser.add_argument("--version", action="version", version=f"{service.name} {__version__}")
    return parser


def _in_background(service: Service[C], loaded: C, load: Callable[[], C], options: argparse.Namespace) -> int:
    """Detach; the parent answers only when the daemon is ready or has failed."""
    pid_path = (options.pid_file or Path("/run") / f"{service.name}.pid").absolute()
    from_child, to_parent = os.pipe()
    if os.fork():
        os.close(to_parent)
        with os.fdopen(from_child, "rb") as answers:
            return _await_detached(service.name, answers.fileno())
    os.close(from_child)

    def tell(status: int, text: str = "") -> None:
        with contextlib.suppress(OSError):
            os.write(to_parent, bytes([status]) + text.encode())

    pid_file = TimeoutPIDLockFile(str(pid_path), acquire_timeout=0)
    _forget_dead(pid_file)
    try:
        with DaemonContext(
            detach_process=True,
            umask=0o022,
            working_directory="/",
            pidfile=pid_file,
            signal_map={},
            files_preserve=[to_parent],
        ):
            journal.set_up(service.name, options.log_level, detached=True)
            status = _live(service, loaded, load, on_ready=lambda: tell(EXIT_OK), complain=tell)
    except (OSError, TimeoutError) as error:
        tell(UserMistake.exit_status, f"{pid_path}: {sentence(error)}")
        status = UserMistake.exit_status
    except LockError as error:
        tell(UserMistake.exit_status, f"{error or pid_path}; is another one running?")
        status = UserMistake.exit_status
    os._exit(status)


def _forget_dead(pid_file: TimeoutPIDLockFile) -> None:
    """Break the lock of a process that is no more."""
    pid = pid_file.read_pid()
    if pid is None:
        return
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        state = "gone"
    if state in ("gone", "Z", "X"):
        pid_file.break_lock()


def _await_detached(name: str, answers: int) -> int:
    readable, _, _ = select.select([answers], [], [], START_DEADLINE)
    answer = os.read(answers, 4096) if readable else b""
    if not answer:
        print(f"{name}: did not become ready; its log tells why", file=sys.stderr)
        return EXIT_FAILED
    if answer[0] != EXIT_OK:
        print(f"{name}: {answer[1:].decode(errors='replace')}", file=sys.stderr)
    return answer[0]


def _live(
    service: Service[C],
    loaded: C,
    load: Callable[[], C],
    *,
    on_ready: Callable[[], None],
    complain: Callable[[int, str], None] | None = None,
) -> int:
    """Run the daemon's coroutine to its end; the one place that turns what escapes into an exit status."""
    try:
        asyncio.run(_main(service, loaded, load, on_ready))
    except Problem as error:
        if complain:
            complain(error.exit_status, str(error))
        print(f"{service.name}: {error}", file=sys.stderr)
        return error.exit_status
    except Exception as error:
        if complain:
            complain(EXIT_FAILED, sentence(error))
        log.critical("stopped by an error of its own: %s", sentence(error), exc_info=True)
        return EXIT_FAILED
    return EXIT_OK


async def _main(service: Service[C], loaded: C, load: Callable[[], C], on_ready: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    notifier = Notifier()
    life: Life[C] = Life(notifier, on_ready)
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(life.reload(load))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, life.stopping.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    work = asyncio.ensure_future(service.run(loaded, life))
    stop = loop.create_task(_stop(life, notifier, work))
    watchdog = loop.create_task(_watchdog(notifier))
    try:
        await work
    except asyncio.CancelledError:
        raise Problem(f"{service.name} could not end its work within {STOP_DEADLINE:.0f} s") from None
    finally:
        for task in (stop, watchdog, *reloads):
            task.cancel()
        await asyncio.gather(stop, watchdog, *reloads, return_exceptions=True)
    if life.failure is not None:
        raise life.failure


async def _stop(life: Life[Any], notifier: Notifier, work: asyncio.Future[None]) -> None:
    await life.stopping.wait()
    notifier.stopping()
    log.info("stopping")
    await asyncio.sleep(STOP_DEADLINE)
    work.cancel()


async def _watchdog(notifier: Notifier) -> None:
    period = notifier.watchdog_period()
    while period is not None:
        notifier.alive()
        await asyncio.sleep(period)
