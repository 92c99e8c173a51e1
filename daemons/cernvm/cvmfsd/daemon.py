# SPDX-License-Identifier: BSD-3-Clause
"""Wires cache, supervisor and bus together.  asyncio owns the main thread; everything here runs in it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from random import Random
from typing import Final

from cernvm.cvmfs.cache import CacheOwner
from cernvm.cvmfs.errors import Mistake
from cernvm.kit.backoff import Backoff
from cernvm.kit.bus import Bus
from cernvm.kit.errors import Problem, UserMistake
from cernvm.kit.service import Life, Service

from .config import SPEC, Config, configure
from .control import NAME, PATH, Announcer, Control
from .supervisor import Supervisor

log = logging.getLogger(__name__)
BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
AGAIN: Final = Backoff(first=2.0, cap=300.0)


async def run(config: Config, life: Life[Config]) -> None:
    """Serve until told to stop.  Raises UserMistake for directories and repositories that cannot be right."""
    _check_directory(config.mount_directory)
    with CacheOwner(config.cache_directory) as cache:
        await asyncio.to_thread(cache.tidy, BOOT.read_bytes().strip())
        async with Bus.system() as bus:
            control = Control()
            supervisor = Supervisor(config, Announcer(bus, control), _log_level())
            control.serve(supervisor)
            later: list[asyncio.Task[None]] = []
            try:
                await bus.own(NAME)
                bus.export(PATH, control)
                for fqrn in config.repositories:
                    if not await _mounted(supervisor, fqrn):
                        later.append(asyncio.create_task(_mount_later(supervisor, fqrn)))
                life.on_reload(lambda new: _reload(supervisor, new))
                life.ready(f"{len(supervisor.mounts)} repositories mounted")
                await life.stopping.wait()
            finally:
                for task in later:
                    task.cancel()
                await supervisor.stop()


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
