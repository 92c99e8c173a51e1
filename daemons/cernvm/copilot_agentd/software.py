# SPDX-License-Identifier: BSD-3-Clause
"""The software that a job needs: mounted by cvmfsd, asked over D-Bus.  On the asyncio loop; looks at mounted paths in
a thread, since the file system behind them may wait for the network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cernvm.copilot.errors import CopilotProblem, JobMistake
from cernvm.copilot.job import Package
from cernvm.copilot.messages import Json
from cernvm.kit.bus import Bus, BusError

CVMFS: Final = "ch.cern.cernvm.Cvmfs1"
CVMFS_PATH: Final = "/ch/cern/cernvm/Cvmfs1"
MOUNT_INTERFACE: Final = "ch.cern.cernvm.Cvmfs1.Mount"
LOOK_SECONDS: Final = 10.0
ERRORS: Final = "errors"
"""The counter of requests that cvmfsd answered with an error."""


class SoftwareMissing(CopilotProblem):
    """cvmfsd could not give what the job needs; the sentence carries cvmfsd's own."""


@dataclass(frozen=True)
class Mounted:
    """A repository as cvmfsd shows it, and its counters when the job began."""

    repository: str
    path: str
    mount_point: Path
    before: Mapping[str, int | float] = field(default_factory=dict)
    error_before: str = ""


@dataclass(frozen=True)
class Use:
    """Counters summed over repositories, and in one sentence what went wrong in them (empty: nothing)."""

    counters: Mapping[str, Json] = field(default_factory=dict)
    trouble: str = ""


class Software:
    """cvmfsd as the agent needs it; `mount_seconds` bounds each mount."""

    def __init__(self, bus: Bus, mount_seconds: float) -> None:
        self._bus = bus
        self._mount_seconds = mount_seconds

    async def prepare(self, packages: Sequence[Package]) -> list[Mounted]:
        """Have every repository mounted and every package path there.

        Raises SoftwareMissing when cvmfsd cannot, JobMistake when the repository has no such path.
        """
        mounted = {name: await self._mount(name) for name in dict.fromkeys(p.repository for p in packages)}
        for package in packages:
            place = mounted[package.repository].mount_point / package.path
            await self._look(package, place)
        return list(mounted.values())

    async def used(self, mounted: Sequence[Mounted]) -> Use:
        """What cvmfsd did for these repositories since `prepare`."""
        counters: dict[str, Json] = {}
        troubles = []
        for mount in mounted:
            after = await self._statistics(mount.path)
            grown = {name: value - mount.before.get(name, 0) for name, value in after.items()}
            for name, value in grown.items():
                known = counters.get(name, 0)
                counters[name] = value + (known if isinstance(known, int | float) else 0)
            last = await self._last_error(mount.path)
            if last and (last != mount.error_before or grown.get(ERRORS, 0) > 0):
                troubles.append(f"{mount.repository}: {last}")
        return Use(counters, "; ".join(troubles))

    async def _mount(self, repository: str) -> Mounted:
        try:
            path = await self._bus.call(CVMFS, CVMFS_PATH, CVMFS, "Mount", "s", repository, timeout=self._mount_seconds)
            mount_point = await self._bus.get(CVMFS, path, MOUNT_INTERFACE, "MountPoint")
        except BusError as error:
            raise SoftwareMissing(f"cvmfsd cannot mount {repository}: {error}") from error
        except TimeoutError:
            raise SoftwareMissing(f"cvmfsd did not mount {repository} within {self._mount_seconds:.0f} s") from None
        before, error_before = await self._statistics(path), await self._last_error(path)
        return Mounted(repository, path, Path(mount_point), before, error_before)

    async def _look(self, package: Package, place: Path) -> None:
        try:
            async with asyncio.timeout(self._mount_seconds):
                there = await asyncio.to_thread(place.exists)
        except (OSError, TimeoutError) as error:
            why = getattr(error, "strerror", None) or "no answer"
            raise SoftwareMissing(f"{package.repository}: /{package.path} cannot be looked at: {why}") from error
        if not there:
            raise JobMistake(f"repository {package.repository} has no path /{package.path}")

    async def _statistics(self, path: str) -> dict[str, int | float]:
        found = await self._property(path, "Statistics")
        if not isinstance(found, dict):
            return {}
        return {
            str(name): value
            for name, value in found.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }

    async def _last_error(self, path: str) -> str:
        return str(await self._property(path, "LastError") or "")

    async def _property(self, path: str, name: str) -> Any:
        """A property for the report only: a mount that has gone meanwhile has none."""
        try:
            return await self._bus.get(CVMFS, path, MOUNT_INTERFACE, name, timeout=LOOK_SECONDS)
        except (BusError, TimeoutError):
            return None
