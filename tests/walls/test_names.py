# SPDX-License-Identifier: BSD-3-Clause
"""One name, eight places: who knows a daemon's binary knows its package, unit, file, user, bus name, page and RPM."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tests.walls.tree import ROOT, Daemon, commands, daemons, project

pytestmark = pytest.mark.walls

SPEC = (ROOT / "packaging/rpm/cernvm.spec").read_text()

each_daemon = pytest.mark.parametrize("daemon", daemons(), ids=lambda daemon: daemon.name)
each_command = pytest.mark.parametrize("command", commands())


def setting(unit: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit, re.MULTILINE)


def test_there_are_daemons_and_commands_to_look_at() -> None:
    assert len(daemons()) >= 4
    assert len(commands()) >= 3


@each_daemon
def test_the_binary_starts_its_package(daemon: Daemon) -> None:
    assert project()["scripts"][daemon.name] == f"cernvm.{daemon.package}.__main__:main"


@each_daemon
def test_the_package_has_the_rooms_of_a_process(daemon: Daemon) -> None:
    package = ROOT / "daemons/cernvm" / daemon.package
    rooms = {path.name for path in package.glob("*.py")}
    assert {"__init__.py", "__main__.py", "config.py", "control.py", "daemon.py"} <= rooms


@each_daemon
def test_the_unit_starts_the_binary_with_its_file(daemon: Daemon) -> None:
    assert setting(daemon.unit, "ExecStart") == [f"/usr/sbin/{daemon.name} --config /etc/cernvm/{daemon.name}.conf"]


@each_daemon
def test_the_configuration_file_is_there(daemon: Daemon) -> None:
    assert (ROOT / f"etc/cernvm/{daemon.name}.conf").is_file()


@each_daemon
def test_the_user_has_the_name(daemon: Daemon) -> None:
    if daemon.name == "cvmfsd":  # mounting takes root; the unit bounds it
        assert setting(daemon.unit, "User") == ["root"]
        return
    assert setting(daemon.unit, "User") == [daemon.name]
    users = (ROOT / f"systemd/sysusers.d/{daemon.name}.conf").read_text()
    assert re.search(rf"^u {daemon.name} ", users, re.MULTILINE)


@each_daemon
def test_the_bus_name_is_the_same_in_unit_policy_activation_and_code(daemon: Daemon) -> None:
    assert setting(daemon.unit, "BusName") == [daemon.bus_name]
    policy = ElementTree.parse(ROOT / f"systemd/dbus-1/system.d/{daemon.bus_name}.conf")
    owners = {rule.get("own") for rule in policy.iter("allow")} - {None}
    assert owners == {daemon.bus_name}
    activation = (ROOT / f"systemd/dbus-1/system-services/{daemon.bus_name}.service").read_text()
    assert setting(activation, "Name") == [daemon.bus_name]
    assert setting(activation, "SystemdService") == [f"{daemon.name}.service"]
    code = "".join(path.read_text() for path in (ROOT / "daemons/cernvm" / daemon.package).glob("*.py"))
    assert f'"{daemon.bus_name}"' in code


@each_daemon
def test_the_man_page_has_the_name(daemon: Daemon) -> None:
    assert (ROOT / f"docs/man/{daemon.name}.8.rst").is_file()
    assert f"man:{daemon.name}(8)" in " ".join(setting(daemon.unit, "Documentation"))


@each_daemon
def test_the_rpm_package_has_the_name(daemon: Daemon) -> None:
    assert f"%package -n {daemon.name}\n" in SPEC
    section = SPEC.partition(f"%files -n {daemon.name}\n")[2].partition("%files")[0]
    assert f"%{{_sbindir}}/{daemon.name}\n" in section
    assert f"%{{_unitdir}}/{daemon.name}.service\n" in section


@each_command
def test_every_command_has_a_module_and_a_man_page(command: str) -> None:
    module = command.replace("-", "_")
    assert project()["scripts"][command] == f"cernvm.cli.{module}:main"
    assert (ROOT / f"daemons/cernvm/cli/{module}.py").is_file()
    assert (ROOT / f"docs/man/{command}.1.rst").is_file()
