# SPDX-License-Identifier: BSD-3-Clause
"""Wires cache, supervisor and bus together.  asyncio owns the main thread; everything here runs in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from pathlib import Path
from random import Random
from typing import Final, TypeVar

from cernvm.cvmfs.cache_owner import CacheOwner
from cernvm.cvmfs.errors import Mistake
from cernvm.kit.backoff import Backoff
from cernvm.kit.bus import Bus
from cernvm.kit.errors import Problem, UserMistake
from cernvm.kit.service import Life, Service

from . import metrics
from .caretaker import Caretaker
from .config import SPEC, Config, configure
from .control import NAME, PATH, Announcer, Control
from .restarting import is_restarting
from .supervisor import Supervisor

log = logging.getLogger(__name__)
T = TypeVar("T")
BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
AGAIN: Final = Backoff(first=2.0, cap=300.0)


async def run(config: Config, life: Life[Config]) -> None:
    """Serve until told to stop.  Raises UserMistake for directories and repositories that cannot be right."""
    _check_directory(config.mount_directory)
    with CacheOwner(config.cache_directory) as cache:
        await asyncio.to_thread(cache.tidy, BOOT.read_bytes().strip())
        async with Bus.system() as bus:
            caretaker = Caretaker(config.cache_directory)
            control = Control(caretaker)
            supervisor = Supervisor(config, Announcer(bus, control), _log_level())
            control.serve(supervisor)
            later: list[asyncio.Task[None]] = []
            try:
                await bus.own(NAME)
                await supervisor.adopt()
                bus.export(PATH, control)
                missing = await _until(life.stopping, _mount_all(supervisor, config.repositories))
                later += [asyncio.create_task(_mount_later(supervisor, fqrn)) for fqrn in missing or ()]
                life.on_reload(lambda new: _reload(supervisor, new))
                async with metrics.serving(config.metrics, supervisor.mounts):
                    life.ready(f"{len(supervisor.mounts)} repositories mounted")
                    await life.stopping.wait()
            finally:
                for task in later:
                    task.cancel()
                caretaker.stop()
                if await is_restarting(bus):
                    await supervisor.leave()
                else:
                    await supervisor.stop()


async def _until(stopping: asyncio.Event, work: Coroutine[None, None, T]) -> T | None:
    """The result of `work`, or None when the daemon is to stop before it is done.  Raises what it raises."""
    task, stop = asyncio.ensure_future(work), asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        stop.cancel()


async def _mount_all(supervisor: Supervisor, repositories: Sequence[str]) -> list[str]:
    """Mount all at once; the ones that have to be tried again.  Raises UserMistake."""
    done = await asyncio.gather(*(_mounted(supervisor, fqrn) for fqrn in repositories))
    return [fqrn for fqrn, mounted in zip(repositories, done, strict=True) if not mounted]


def _log_level() -> str:
    return logging.getLevelName(logging.getLogger().level).lower()


def _check_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake(f"{directory}: cannot be the mount directory: {error.strerror}") from error


async def _mounted(supervisor: Supervisor, fqrn: str) -> bool:
    """Mount; False when the network or a server is at fault.  Raises UserMistake."""
    try:
        await supervisor.mount(fqrn)
    except UserMistake:
        raise
    except (Problem, OSError) as error:
        log.warning("%s is not mounted yet: %s", fqrn, error)
        return False
    return True


async def _mount_later(supervisor: Supervisor, fqrn: str) -> None:
    """Go on trying to mount a configured repository."""
    for delay in AGAIN.delays(Random()):
        await asyncio.sleep(delay)
        try:
            if await _mounted(supervisor, fqrn):
                return
        except UserMistake as error:
            log.error("%s", error)  # noqa: TRY400 - a sentence for a person
            return


async def _reload(supervisor: Supervisor, new: Config) -> None:
    """Mount what the list of repositories has gained; other keys need a restart."""
    for fqrn in new.repositories:
        if fqrn not in supervisor.mounts:
            await _mounted(supervisor, fqrn)


SERVICE: Final = Service(
    name="cvmfsd",
    summary="CernVM-FS client: mounts repositories of software over HTTP, verified and cached.",
    spec=SPEC,
    configure=configure,
    run=run,
)
