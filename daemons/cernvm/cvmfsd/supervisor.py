# SPDX-License-Identifier: BSD-3-Clause
"""Which repositories are mounted, and the worker behind each: started, watched, started again, ended.

Everything runs on the asyncio loop; what may block on a file system runs in threads with a deadline.  A mount is
listed only while it is there or being brought back; a first start that fails leaves nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final, TypeVar

from cernvm.cvmfs.errors import NoRepository
from cernvm.cvmfs.parameters import check_fqrn, config_repository
from cernvm.kit.backoff import Backoff
from cernvm.kit.errors import Problem, UserMistake, sentence

from . import mounting, wire
from .config import Config
from .mount import End, Heir, Mount, Observer, State
from .process import Orphan, Silent, Worker, orphans, start

log = logging.getLogger(__name__)
T = TypeVar("T")
START: Final = 180.0
"""Seconds in which a worker has to have mounted; its own waits on the network are shorter."""
CONFIGURATION: Final = 60.0
"""Seconds that a mount waits for the configuration repository."""
STOP: Final = 10.0
"""Seconds in which a worker has to have ended, before it is killed."""
FILES: Final = 10.0
"""Seconds that a look at a mount point may take."""
RESTARTS: Final = Backoff(first=0.1, cap=60.0, tries=40)
"""About half an hour, after which a mount that cannot be brought back is given up."""
LONG_ENOUGH: Final = 120.0
"""Seconds after which a worker counts as having run well."""


class Supervisor:
    """All mounts of this daemon."""

    def __init__(self, config: Config, observer: Observer, log_level: str = "info") -> None:
        self._config = config
        self._observer = observer
        self._log_level = log_level
        self._random = Random()
        self._retired: dict[Worker, asyncio.Task[None]] = {}
        self._leaving = False
        self.mounts: dict[str, Mount] = {}

    @property
    def mount_directory(self) -> Path:
        """Repositories appear below it."""
        return self._config.mount_directory

    async def adopt(self) -> None:
        """Take over the workers that an earlier daemon left running; their mounts never stop.

        What had no worker any more, or one that does not answer, is mounted again.
        """
        found, lost = await orphans(self._config.cache_directory)
        for fqrn in lost:
            point = self._config.mount_directory / fqrn
            if await _in_thread(mounting.is_mounted, point):
                await _in_thread(mounting.abort, point)
                await _in_thread(mounting.unmount, point, lazy=True)
                self._new(fqrn)
        for orphan in found:
            hello = orphan.hello
            mount = Mount(
                hello.fqrn,
                Path(hello.mount_point),
                counters_fd=orphan.counters_fd,
                point_ready=True,
                point_created=hello.point_created,
            )
            self.mounts[mount.fqrn] = mount
            log.info("%s: worker %d of an earlier daemon is adopted", mount.fqrn, orphan.worker.pid)
            mount.keeper = asyncio.create_task(self._keep(mount, orphan), name=f"keep {mount.fqrn}")

    def _new(self, fqrn: str) -> Mount:
        mount = Mount(fqrn, self._config.mount_directory / fqrn)
        self.mounts[fqrn] = mount
        mount.keeper = asyncio.create_task(self._keep(mount), name=f"keep {fqrn}")
        return mount

    async def mount(self, fqrn: str) -> Mount:
        """Return the mount of `fqrn`, made if need be.  Raises the worker's error, with its sentence."""
        check_fqrn(fqrn)
        mount = self.mounts.get(fqrn)
        if mount is not None and mount.state is State.STOPPING:
            await self._finished(mount)
            mount = self.mounts.get(fqrn)
        if mount is None:
            mount = self._new(fqrn)
        await asyncio.wait_for(asyncio.shield(mount.started), START + FILES)
        return mount

    def known(self, fqrn: str) -> Mount:
        """The mount of `fqrn`.  Raises NoRepository."""
        mount = self.mounts.get(fqrn)
        if mount is None:
            raise NoRepository(f"{fqrn} is not mounted")
        return mount

    async def unmount(self, fqrn: str) -> None:
        """Take a mount away.  Raises NoRepository; Busy while somebody uses it."""
        mount = self.known(fqrn)
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

    async def reload(self, mount: Mount) -> None:
        """Have a new worker, with the parameters as they are now, take a mount over; no reader is stopped.

        Open files stay with the old worker until they are closed.  Raises the new worker's error; the old one stays.
        """
        if mount.heir is not None:
            await asyncio.shield(mount.heir)
            return
        old = mount.worker
        if old is None or mount.state is not State.MOUNTED:
            raise Problem(f"{mount.fqrn} is {mount.state.value}, so it cannot be loaded again")
        mount.heir = asyncio.get_running_loop().create_future()
        heir = None
        try:
            worker = await start(mount.counters_fd)
            try:
                worker.say(self._task(mount, replaces=True))
                heir = Heir(worker, await self._first_word(mount, worker))
            finally:
                if heir is None:
                    await worker.ended()
            old.say(wire.Retire())
        finally:
            mount.heir.set_result(heir)
            if heir is None:
                mount.heir = None

    async def stop(self) -> None:
        """Take everything away, also what is in use."""
        for retired in self._retired:
            retired.kill()
        mounts = list(self.mounts.values())
        for mount in mounts:
            self._stop(mount)
        await asyncio.gather(*(self._finished(mount) for mount in mounts))

    async def leave(self) -> None:
        """Leave all workers running for the next daemon."""
        self._leaving = True
        keepers = [mount.keeper for mount in self.mounts.values() if mount.keeper is not None]
        for keeper in keepers:
            keeper.cancel()
        if keepers:
            await asyncio.wait(keepers, timeout=FILES)

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

    async def _keep(self, mount: Mount, orphan: Orphan | None = None) -> None:
        """The life of one mount."""
        try:
            if orphan is None:
                await self._configuration_first(mount)
            await self._live(mount, orphan)
        except (Problem, OSError, TimeoutError) as error:
            self._observer.failed(mount.fqrn, sentence(error))
            self._settle(mount, error)
        finally:
            self.mounts.pop(mount.fqrn, None)
            self._settle(mount, Problem(f"{mount.fqrn}: the mount was stopped before it was there"))
            if not self._leaving:
                await self._clean(mount)
            if mount.revision:
                self._observer.gone(mount)
            os.close(mount.counters_fd)

    async def _configuration_first(self, mount: Mount) -> None:
        """Mount the repository that configures the others, if there is one; its files are missed if it cannot be."""
        try:
            name = await asyncio.to_thread(config_repository, self._config.parameters_directory)
            if name and name != mount.fqrn:
                await asyncio.wait_for(self.mount(name), CONFIGURATION)
        except (Problem, OSError, TimeoutError) as error:
            log.warning("%s: without the configuration repository: %s", mount.fqrn, sentence(error))

    async def _live(self, mount: Mount, orphan: Orphan | None) -> None:
        delays = RESTARTS.delays(self._random)
        loop = asyncio.get_running_loop()
        heir = None if orphan is None else Heir(orphan.worker, orphan.shows)
        while True:
            begun = loop.time()
            if heir is None:
                mount.point_created |= await _in_thread(mounting.make_ready, mount.point)
                mount.point_ready = True
            end = await self._ended(mount, heir)
            heir = mount.heir.result() if end is End.INHERITED and mount.heir is not None else None
            mount.heir = None
            if heir is not None:
                continue
            if end is End.GONE or mount.state is State.STOPPING:
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

    async def _ended(self, mount: Mount, heir: Heir | None) -> End:
        """Run a worker to its end.  A first start's error is raised, a later one's is not."""
        try:
            return await self._run_worker(mount, heir)
        except UserMistake:
            raise
        except Problem as error:
            if not mount.started.done():
                raise
            mount.last_error = sentence(error)
            log.warning("%s: not mounted again yet: %s", mount.fqrn, sentence(error))
            return End.DIED

    async def _run_worker(self, mount: Mount, heir: Heir | None) -> End:
        """Run one worker, or go on with one that runs, to its end.  Raises what kept it from mounting."""
        worker = await start(mount.counters_fd) if heir is None else heir.worker
        mount.worker = worker
        try:
            if heir is None:
                worker.say(self._task(mount, replaces=False))
            if mount.state is State.STOPPING:
                worker.stop(STOP)
            end = await self._hear_out(mount, worker, heir)
            if end is End.INHERITED:
                self._retire(mount, worker)
            return end
        finally:
            mount.worker = None
            self._answer(mount, wire.Refreshed(Problem.__name__, f"{mount.fqrn}: its worker ended"))
            if self._leaving:
                worker.release()
            await worker.ended()

    def _retire(self, mount: Mount, worker: Worker) -> None:
        """Let a worker serve those who still use what it mounted."""
        worker.release()
        task = asyncio.create_task(worker.left(), name=f"retired {mount.fqrn}")
        self._retired[worker] = task
        task.add_done_callback(lambda _: self._retired.pop(worker, None))

    async def _first_word(self, mount: Mount, worker: Worker) -> wire.Shows:
        """What a new worker shows.  Raises what kept it from mounting."""
        try:
            message = await asyncio.wait_for(worker.hear(), START)
        except TimeoutError:
            raise Problem(f"{mount.fqrn}: its worker did not mount it within {START:.0f} s") from None
        if isinstance(message, wire.Failed):
            raise wire.error_of(message.kind, message.sentence)
        if not isinstance(message, wire.Shows):
            raise Problem(f"{mount.fqrn}: its worker ended before it was mounted; the log tells why")
        return message

    async def _hear_out(self, mount: Mount, worker: Worker, heir: Heir | None) -> End:
        self._shows(mount, heir.shows if heir is not None else await self._first_word(mount, worker))
        self._settle(mount, None)
        self._observer.appeared(mount)
        try:
            async with worker.beating():
                end = await self._converse(mount, worker)
        except Silent:
            log.critical("%s: worker %d gives no sign of life; it is replaced", mount.fqrn, worker.pid)
            mount.last_error = f"{mount.fqrn}: its worker gave no sign of life and was replaced"
            worker.kill()
            await _in_thread(mounting.abort, mount.point)
            end = End.DIED
        if mount.heir is not None and await asyncio.shield(mount.heir) is not None:
            return End.INHERITED
        return end

    async def _converse(self, mount: Mount, worker: Worker) -> End:
        """Listen to a worker that has mounted, until it ends.  Raises Silent."""
        while True:
            message = await worker.hear_alive()
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
                    return End.GONE
                case None:
                    return End.DIED
                case _:
                    log.warning("%s: its worker says %s out of turn", mount.fqrn, message)

    def _answer(self, mount: Mount, refreshed: wire.Refreshed) -> None:
        for waiting in mount.refreshes:
            if not waiting.done():
                waiting.set_result(refreshed)
        mount.refreshes.clear()

    def _task(self, mount: Mount, *, replaces: bool) -> wire.Task:
        return wire.Task(
            fqrn=mount.fqrn,
            mount_point=str(mount.point),
            parameters_directory=str(self._config.parameters_directory),
            cache_directory=str(self._config.cache_directory),
            cache_limit=self._config.cache_limit,
            threads=self._config.threads,
            fuse=self._config.fuse.value,
            log_level=self._log_level,
            fetch_ahead=self._config.fetch_ahead,
            deadline=self._config.deadline,
            patience=self._config.patience,
            point_created=mount.point_created,
            replaces=replaces,
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
        for socket in (wire.ORPHAN, wire.TALK):
            with suppress(OSError):
                (self._config.cache_directory / f"{socket}{mount.fqrn}").unlink()
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
