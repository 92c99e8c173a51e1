# SPDX-License-Identifier: BSD-3-Clause
"""The agent on a real bus: what it asks of cvmfsd, with a stand-in that answers as told, and what it shows itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from cernvm.copilot.agent import Agent, Habits
from cernvm.copilot.errors import JobMistake
from cernvm.copilot.job import Package
from cernvm.copilot.messages import Address
from cernvm.copilot_agentd.control import INTERFACE, PATH, Control
from cernvm.copilot_agentd.runner import Runner
from cernvm.copilot_agentd.software import CVMFS, CVMFS_PATH, MOUNT_INTERFACE, Software, SoftwareMissing
from cernvm.copilot_agentd.spool import Spool
from cernvm.kit.bus import Bus, BusObject, method, prop
from cernvm.kit.errors import Problem
from tests.support.bus import private_bus

pytestmark = pytest.mark.real

REPOSITORY = "software.example.org"
MOUNT_PATH = f"{CVMFS_PATH}/mount"


class StandIn(BusObject):
    """Answers Mount as cvmfsd does."""

    interface = CVMFS
    refusal = ""

    @method("s", "o")
    async def Mount(self, fqrn: str) -> str:
        if self.refusal:
            raise Problem(f"{fqrn}: {self.refusal}")
        return MOUNT_PATH


class MountStandIn(BusObject):
    """A mount with counters that the test sets."""

    interface = MOUNT_INTERFACE

    def __init__(self, point: Path) -> None:
        self.point = point
        self.statistics = {"cache_hits": 10, "bytes_received": 500, "errors": 0}
        self.last_error = ""

    @prop("s")
    def MountPoint(self) -> str:
        return str(self.point)

    @prop("a{sv}")
    def Statistics(self) -> dict[str, int]:
        return self.statistics

    @prop("s")
    def LastError(self) -> str:
        return self.last_error


@pytest.fixture(autouse=True)
def bus_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with private_bus(tmp_path / "bus") as bus:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
        yield


def play(point: Path, scene: Callable[[Software, StandIn, MountStandIn], Awaitable[None]]) -> None:
    async def main() -> None:
        cvmfsd, mount = StandIn(), MountStandIn(point)
        async with Bus.system() as server, Bus.system() as client:
            server.export(CVMFS_PATH, cvmfsd)
            server.export(MOUNT_PATH, mount)
            await server.own(CVMFS)
            await scene(Software(client, 10.0), cvmfsd, mount)

    asyncio.run(main())


def test_software_is_mounted_and_its_use_is_counted(tmp_path: Path) -> None:
    (tmp_path / "mnt" / "pythia8").mkdir(parents=True)

    async def scene(software: Software, cvmfsd: StandIn, mount: MountStandIn) -> None:
        mounted = await software.prepare([Package(REPOSITORY, "pythia8"), Package(REPOSITORY)])
        assert [one.mount_point for one in mounted] == [tmp_path / "mnt"]
        mount.statistics = {"cache_hits": 15, "bytes_received": 700, "errors": 0}
        used = await software.used(mounted)
        assert used.counters == {"cache_hits": 5, "bytes_received": 200, "errors": 0}
        assert used.trouble == ""

    play(tmp_path / "mnt", scene)


def test_what_cvmfsd_says_of_a_mount_that_fails_is_kept(tmp_path: Path) -> None:
    async def scene(software: Software, cvmfsd: StandIn, mount: MountStandIn) -> None:
        cvmfsd.refusal = "the manifest is signed by an unknown key"
        with pytest.raises(SoftwareMissing, match=f"cannot mount {REPOSITORY}: .*signed by an unknown key"):
            await software.prepare([Package(REPOSITORY)])

    play(tmp_path, scene)


def test_a_path_that_the_repository_does_not_have_is_the_jobs_mistake(tmp_path: Path) -> None:
    async def scene(software: Software, cvmfsd: StandIn, mount: MountStandIn) -> None:
        with pytest.raises(JobMistake, match=f"repository {REPOSITORY} has no path /absent"):
            await software.prepare([Package(REPOSITORY, "absent")])

    play(tmp_path, scene)


def test_an_error_of_the_mount_is_told_when_it_is_new_or_happened_again(tmp_path: Path) -> None:
    async def scene(software: Software, cvmfsd: StandIn, mount: MountStandIn) -> None:
        mount.last_error = "object 1234 is corrupt"
        mounted = await software.prepare([Package(REPOSITORY)])
        assert (await software.used(mounted)).trouble == ""
        mount.statistics = {**mount.statistics, "errors": 1}
        assert (await software.used(mounted)).trouble == f"{REPOSITORY}: object 1234 is corrupt"
        mount.statistics = {**mount.statistics, "errors": 0}
        mount.last_error = "object 5678 is corrupt"
        assert (await software.used(mounted)).trouble == f"{REPOSITORY}: object 5678 is corrupt"

    play(tmp_path, scene)


def test_without_cvmfsd_a_job_with_software_waits_for_a_better_machine() -> None:
    async def main() -> None:
        async with Bus.system() as client:
            with pytest.raises(SoftwareMissing, match=f"cvmfsd cannot mount {REPOSITORY}"):
                await Software(client, 5.0).prepare([Package(REPOSITORY)])

    asyncio.run(main())


def test_the_agent_shows_itself_and_drains(tmp_path: Path) -> None:
    async def main() -> None:
        control = Control("one", 2)
        machine = Agent(Habits(manager=Address("jm@copilot.test"), name="one", slots=2), lambda: 0.5, {})
        async with Bus.system() as server, Bus.system() as client:
            # Nothing runs here, so the worker is never asked for.
            control.show(Runner(machine, Spool(tmp_path / "spool"), None, control))  # type: ignore[arg-type]
            server.export(PATH, control)
            await server.own(INTERFACE)
            found = await client.call(INTERFACE, PATH, "org.freedesktop.DBus.Properties", "GetAll", "s", INTERFACE)
            assert found == {"Name": "one", "State": "disconnected", "Job": "", "Jobs": {}, "Slots": 2}
            await client.call(INTERFACE, PATH, INTERFACE, "Drain")
            assert machine.draining

    asyncio.run(main())
