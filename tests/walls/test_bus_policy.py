# SPDX-License-Identifier: BSD-3-Clause
"""The shipped bus policies before a real dbus-daemon: who may give a service, command it, and only look.

The daemons' users and group `cernvm` are made at installation; here the policies are read with accounts in their
place that every system has.  Identities are taken by this process itself, for the moment in which it connects.
"""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cernvm.kit.bus import Bus, BusError, BusObject, SyncBus, method, prop
from cernvm.kit.errors import Problem
from tests.support.bus import private_bus
from tests.support.cvmfs import missing
from tests.walls.tree import ROOT, Daemon, daemons

pytestmark = [pytest.mark.walls, pytest.mark.real]

DENIED = "org.freedesktop.DBus.Error.AccessDenied"
STAND_IN = {"copilot-agentd": "daemon", "copilot-jobmanagerd": "bin", "copilot-storaged": "sys"}
NOBODY = "nobody"

each_daemon = pytest.mark.parametrize("daemon", daemons(), ids=lambda daemon: daemon.name)


@contextmanager
def identity(user: str, group: str | None = None) -> Iterator[None]:
    """Be `user`, in no other group than `group`, within the block."""
    account, groups = pwd.getpwnam(user), os.getgroups()
    os.setgroups([grp.getgrnam(group).gr_gid] if group else [])
    os.setegid(account.pw_gid)
    os.seteuid(account.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A closed bus with our policies; everybody can reach its socket."""
    if os.geteuid() != 0:
        missing("only root can connect as somebody else")
    policies = tmp_path / "system.d"
    policies.mkdir()
    for path in (ROOT / "systemd/dbus-1/system.d").glob("*.conf"):
        text = path.read_text().replace('group="cernvm"', 'group="users"')
        text = re.sub(r'user="(copilot-\w+)"', lambda user: f'user="{STAND_IN[user[1]]}"', text)
        (policies / path.name).write_text(text)
    with private_bus(tmp_path / "bus", policies=policies) as running:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", running.address)
        for directory in [tmp_path / "bus", *(tmp_path / "bus").parents][:4]:
            directory.chmod(directory.stat().st_mode | 0o055)
        yield


def control(name: str) -> BusObject:
    class Control(BusObject):
        interface = name

        @method("s", "s")
        async def Mount(self, word: str) -> str:
            return word

        @method("", "s")
        async def ListMounts(self) -> str:
            return "none"

        @method("", "s")
        async def Drain(self) -> str:
            return "draining"

        @prop("s")
        def State(self) -> str:
            return "idle"

    return Control()


def outcome(caller: SyncBus, name: str, member: str) -> str:
    """What becomes of calling `member`: its answer, or the name of the error."""
    path = "/" + name.replace(".", "/")
    try:
        if member == "State":
            answer = caller.call(name, path, "org.freedesktop.DBus.Properties", "Get", "ss", name, member, timeout=10)
        else:
            arguments = ("s", "word") if member == "Mount" else ()
            answer = caller.call(name, path, name, member, *arguments, timeout=10)
    except BusError as error:
        return error.name
    return str(answer)


def ask(name: str, members: list[str], user: str, group: str | None = None) -> list[str]:
    """Serve `name` as root and ask as `user`."""

    async def serve() -> list[str]:
        async with Bus.system() as server:
            server.export("/" + name.replace(".", "/"), control(name))
            await server.own(name)
            with identity(user, group):
                caller = SyncBus.system().__enter__()
            try:
                return [await asyncio.to_thread(outcome, caller, name, member) for member in members]
            finally:
                caller.__exit__(None, None, None)

    return asyncio.run(serve())


def own(name: str, user: str) -> None:
    async def take() -> None:
        with identity(user):
            async with Bus.system() as server:
                await server.own(name)

    asyncio.run(take())


@each_daemon
@pytest.mark.usefixtures("bus")
def test_an_ordinary_user_may_look_but_not_act(daemon: Daemon) -> None:
    assert ask(daemon.bus_name, ["State", "Mount", "Drain"], NOBODY) == ["idle", DENIED, DENIED]


@each_daemon
@pytest.mark.usefixtures("bus")
def test_members_of_the_group_may_act(daemon: Daemon) -> None:
    assert ask(daemon.bus_name, ["State", "Drain"], NOBODY, "users") == ["idle", "draining"]


@pytest.mark.usefixtures("bus")
def test_the_agent_may_have_mounted_what_its_jobs_read_and_no_more() -> None:
    answers = ask("ch.cern.cernvm.Cvmfs1", ["Mount", "ListMounts", "Drain"], STAND_IN["copilot-agentd"])
    assert answers == ["word", "none", DENIED]


@each_daemon
@pytest.mark.usefixtures("bus")
def test_only_root_and_its_own_user_give_the_service(daemon: Daemon) -> None:
    own(daemon.bus_name, "root")
    if daemon.name in STAND_IN:
        own(daemon.bus_name, STAND_IN[daemon.name])
    with pytest.raises(Problem, match="security policies"):
        own(daemon.bus_name, NOBODY)
