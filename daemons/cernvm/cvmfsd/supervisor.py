# SPDX-License-Identifier: BSD-3-Clause
"""Which repositories are mounted, and the worker behind each: started, watched, started again, ended.

Everything runs on the asyncio loop; what may block on a file system runs in threads with a deadline.  A mount is
listed only while it is there or being brought back; a first start that fails leaves nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from random import Random
from typing import Final, Protocol, TypeVar

from cernvm.cvmfs.counters import Counters
from cernvm.cvmfs.errors import NoRepository
from cernvm.cvmfs.parameters import check_fqrn
from cernvm.kit.backoff import Backoff
from cernvm.kit.errors import Problem, UserMistake, sentence

from . import mounting, wire
from .config import Config
from .process import Worker, running

log = logging.getLogger(__name__)
T = TypeVar("T")
START: Final = 180.0
"""Seconds in which a worker has to have mounted; its own waits on the network are shorter."""
STOP: Final = 10.0
"""Seconds in which a worker has to have ended, before it is killed."""
FILES: Final = 10.0
"""Seconds that a look at a mount point may take."""
RESTARTS: Final = Backoff(first=0.1, cap=60.0, tries=40)
"""About half an hour, after which a mount that cannot be brought back is given up."""
LONG_ENOUGH: Final = 120.0
"""Seconds after which a worker counts as having run well."""


class State(Enum):
    """Of a mount, as D-Bus shows it."""

    STARTING = "starting"
    MOUNTED = "mounted"
    RESTARTING = "restarting"
    STOPPING = "stopping"


class Observer(Protocol):
    """Who is told what happens to mounts."""

    def appeared(self, mount: Mount, supervisor: Supervisor) -> None:
        """It is there (again)."""

    def gone(self, mount: Mount) -> None:
        """It is not there any more."""

    def revision_changed(self, mount: Mount) -> None:
        """It shows another revision."""

    def failed(self, fqrn: str, complaint: str) -> None:
        """It could not be mounted, or its worker died."""

    def changed(self, mount: Mount) -> None:
        """State or last error changed."""


@dataclass(eq=False)
class Mount:
    """One repository on its way to, at, or from its mount point."""

    fqrn: str
    point: Path
    state: State = State.STARTING
    revision: int = 0
    root_hash: str = ""
    adapter: str = ""
    last_error: str = ""
    restarts: int = 0
    counters_fd: int = field(default_factory=Counters.shared)
    started: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    refreshes: list[asyncio.Future[wire.Refreshed]] = field(default_factory=list)
    worker: Worker | None = None
    keeper: asyncio.Task[None] | None = None
    point_ready: bool = False
    """From now on what is mounted there is this mount's."""
    point_created: bool = False

    def __post_init__(self) -> None:
        self.counters = Counters(self.counters_fd)

    def statistics(self) -> Mapping[str, int]:
        """The worker's numbers, over restarts."""
        return {**self.counters.snapshot(), "restarts": self.restarts}


class Supervisor:
    """All mounts of this daemon."""

    def __init__(self, config: Config, observer: Observer, log_level: str = "info") -> None:
        self._config = config
        self._observer = observer
        self._log_level = log_level
        self._random = Random()
        self.mounts: dict[str, Mount] = {}

    async def mount(self, fqrn: str) -> Mount:
        """Return the mount of `fqrn`, made if need be.  Raises the worker's error, with its sentence."""
        check_fqrn(fqrn)
        mount = self.mounts.get(fqrn)
        if mount is not None and mount.state is State.STOPPING:
            await self._finished(mount)
            mount = self.mounts.get(fqrn)
        if mount is None:
            mount = Mount(fqrn, self._config.mount_directory / fqrn)
            self.mounts[fqrn] = mount
            mount.keeper = asyncio.create_task(self._keep(mount), name=f"keep {fqrn}")
        await asyncio.wait_for(asyncio.shield(mount.started), START + FILES)
        return mount

    async def unmount(self, fqrn: str) -> None:
        """Take a mount away.  Raises NoRepository; Busy while somebody uses it."""
        mount = self.mounts.get(fqrn)
        if mount is None:
            raise NoRepository(f"{fqrn} is not mounted")
        if mount.state is State.MOUNTED:
            await _in_thread(mounting.unmount, mount.point, lazy=False)
        self._stop(mount)
        await self._finished(mount)

    async def refresh(self, mount: Mount) -> int:
        """Have a mount look for a newer revision now; the revision that it shows then.  Raises its error."""
        if mount.worker is None or mount.state is not State.MOUNTED:
            raise Problem(f"{mount.fqrn} is {mount.state.value}, so it cannot look for a newer revision")
        answer: asyncio.Future[wire.Refreshed] = asyncio.get_running_loop().create_future()
        mount.refreshes.append(answer)
        mount.worker.say(wire.Refresh())
        refreshed = await asyncio.wait_for(answer, START)
        if refreshed.complaint:
            raise wire.error_of(refreshed.kind, refreshed.complaint)
        return mount.revision

    async def stop(self) -> None:
        """Take everything away, also what is in use."""
        mounts = list(self.mounts.values())
        for mount in mounts:
            self._stop(mount)
        await asyncio.gather(*(self._finished(mount) for mount in mounts))

    def _stop(self, mount: Mount) -> None:
        mount.state = State.STOPPING
        self._observer.changed(mount)
        if mount.worker is not None:
            mount.worker.stop(STOP)
        elif mount.keeper is not None:
            mount.keeper.cancel()

    async def _finished(self, mount: Mount) -> None:
        if mount.keeper is not None:
            with suppress(asyncio.CancelledError, Problem):
                await asyncio.wait({mount.keeper}, timeout=STOP + 2 * FILES)

    async def _keep(self, mount: Mount) -> None:
        """The life of one mount."""
        try:
            await self._live(mount)
        except (Problem, OSError, TimeoutError) as error:
            self._observer.failed(mount.fqrn, sentence(error))
            self._settle(mount, error)
        finally:
            self.mounts.pop(mount.fqrn, None)
            self._settle(mount, Problem(f"{mount.fqrn}: the mount was stopped before it was there"))
            await self._clean(mount)
            if mount.revision:
                self._observer.gone(mount)
            os.close(mount.counters_fd)

    async def _live(self, mount: Mount) -> None:
        delays = RESTARTS.delays(self._random)
        loop = asyncio.get_running_loop()
        while True:
            mount.point_created |= await _in_thread(mounting.make_ready, mount.point)
            mount.point_ready = True
            begun = loop.time()
            if await self._ended(mount) or mount.state is State.STOPPING:
                return
            if loop.time() - begun > LONG_ENOUGH:
                delays = RESTARTS.delays(self._random)
            delay = next(delays, None)
            if delay is None:
                raise Problem(f"{mount.fqrn}: its worker died too often; it is not mounted any more")
            mount.state = State.RESTARTING
            mount.restarts += 1
            log.warning("%s: its worker died; mounting it again in %.1f s", mount.fqrn, delay)
            self._observer.changed(mount)
            await _in_thread(mounting.unmount, mount.point, lazy=True)
            await asyncio.sleep(delay)

    async def _ended(self, mount: Mount) -> bool:
        """Run a worker; whether the mount is to end with it.  A first start's error is raised, a later one's is not."""
        try:
            return await self._run_worker(mount)
        except UserMistake:
            raise
        except Problem as error:
            if not mount.started.done():
                raise
            mount.last_error = sentence(error)
            log.warning("%s: not mounted again yet: %s", mount.fqrn, sentence(error))
            return False

    async def _run_worker(self, mount: Mount) -> bool:
        """Run one worker to its end; whether the mount is to end with it.  Raises what kept it from mounting."""
        async with running(mount.counters_fd) as worker:
            mount.worker = worker
            worker.say(self._task(mount))
            if mount.state is State.STOPPING:
                worker.stop(STOP)
            try:
                return await self._hear_out(mount, worker)
            finally:
                mount.worker = None
                self._answer(mount, wire.Refreshed(Problem.__name__, f"{mount.fqrn}: its worker ended"))

    async def _hear_out(self, mount: Mount, worker: Worker) -> bool:
        try:
            message = await asyncio.wait_for(worker.hear(), START)
        except TimeoutError:
            raise Problem(f"{mount.fqrn}: its worker did not mount it within {START:.0f} s") from None
        if isinstance(message, wire.Failed):
            raise wire.error_of(message.kind, message.sentence)
        if not isinstance(message, wire.Shows):
            if mount.started.done():
                return False
            raise Problem(f"{mount.fqrn}: its worker ended before it was mounted; the log tells why")
        self._shows(mount, message)
        self._settle(mount, None)
        self._observer.appeared(mount, self)
        while True:
            message = await worker.hear()
            match message:
                case wire.Shows():
                    self._shows(mount, message)
                    self._observer.revision_changed(mount)
                case wire.Trouble(complaint):
                    mount.last_error = complaint
                    self._observer.changed(mount)
                case wire.Refreshed():
                    self._answer(mount, message)
                case wire.Unmounted():
                    log.info("%s: unmounted", mount.fqrn)
                    return True
                case None:
                    return False
                case _:
                    log.warning("%s: its worker says %s out of turn", mount.fqrn, message)

    def _answer(self, mount: Mount, refreshed: wire.Refreshed) -> None:
        for waiting in mount.refreshes:
            if not waiting.done():
                waiting.set_result(refreshed)
        mount.refreshes.clear()

    def _task(self, mount: Mount) -> wire.Task:
        return wire.Task(
            fqrn=mount.fqrn,
            mount_point=str(mount.point),
            parameters_directory=str(self._config.parameters_directory),
            cache_directory=str(self._config.cache_directory),
            cache_limit=self._config.cache_limit,
            threads=self._config.threads,
            fuse=self._config.fuse.value,
            log_level=self._log_level,
        )

    def _shows(self, mount: Mount, shows: wire.Shows) -> None:
        mount.revision, mount.root_hash, mount.adapter = shows.revision, shows.root_hash, shows.adapter
        if mount.state is not State.STOPPING:
            mount.state = State.MOUNTED

    def _settle(self, mount: Mount, error: BaseException | None) -> None:
        """Tell who waits for the first start how it went; later calls change nothing."""
        if mount.started.done():
            return
        if error is None:
            mount.started.set_result(None)
        else:
            mount.started.set_exception(error)
            mount.started.exception()  # marks it as looked at: often nobody waits

    async def _clean(self, mount: Mount) -> None:
        """Leave nothing at the mount point that was not there before."""
        try:
            if mount.point_ready and await _in_thread(mounting.is_mounted, mount.point):
                await _in_thread(mounting.unmount, mount.point, lazy=True)
            if mount.point_created:
                await _in_thread(_remove_directory, mount.point)
        except (Problem, OSError, TimeoutError) as error:
            log.warning("%s: %s", mount.fqrn, sentence(error))


async def _in_thread(function: Callable[..., T], *args: object, **kwargs: object) -> T:
    return await asyncio.wait_for(asyncio.to_thread(function, *args, **kwargs), FILES)


def _remove_directory(point: Path) -> None:
    with suppress(OSError):  # something is in it now: then it is not ours to remove
        point.rmdir()
