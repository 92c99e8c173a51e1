# SPDX-License-Identifier: BSD-3-Clause
"""The units load without a complaint, are confined as far as rated here, and cvmfsd's mounts can be seen."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cernvm.kit.proc import find_program
from tests.walls.tree import ROOT, Daemon, daemons, run

pytestmark = pytest.mark.walls

each_daemon = pytest.mark.parametrize("daemon", daemons(), ids=lambda daemon: daemon.name)

EXPOSURE = {"cvmfsd": 45}
"""Tenths of systemd's exposure level that a unit may have; the others 15."""

OWN_MOUNT_NAMESPACE = re.compile(
    r"^(Private(Tmp|Devices|Mounts|Users|IPC)|Protect(System|Home|Kernel\w+|ControlGroups|Proc)|ProcSubset"
    r"|(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec|Bind|BindReadOnly)Paths|TemporaryFileSystem|DynamicUser"
    r"|Root(Directory|Image)|MountFlags|MountAPIVFS|LoadCredential\w*|SetCredential\w*|LogNamespace|ExtensionImages)=",
    re.MULTILINE,
)
"""Any of these hides what the unit mounts from everybody else (systemd.exec(5); seen, not guessed)."""


@pytest.fixture
def loadable(tmp_path: Path) -> Path:
    """The units where systemd-analyze can load them: with a program that exists and the units that they lean on."""
    for unit in (ROOT / "systemd/system").iterdir():
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
    (tmp_path / "dbus.socket").write_text("[Socket]\nListenStream=/run/dbus/system_bus_socket\n")
    (tmp_path / "dbus.service").write_text("[Service]\nExecStart=/bin/true\n")
    return tmp_path


def test_systemd_loads_every_unit_without_a_complaint(loadable: Path) -> None:
    units = sorted(path for path in loadable.iterdir() if not path.name.startswith("dbus."))
    said = run(find_program("systemd-analyze"), "verify", "--man=no", "--recursive-errors=one", *units)
    ours = [line for line in said.splitlines() if str(loadable) in line or "cernvm" in line or "copilot" in line]
    assert not ours


def test_a_misspelt_key_would_be_noticed(loadable: Path) -> None:
    unit = loadable / "cvmfsd.service"
    unit.write_text(unit.read_text().replace("WatchdogSec", "WatchdgoSec"))
    with pytest.raises(AssertionError, match="WatchdgoSec"):
        run(find_program("systemd-analyze"), "verify", "--man=no", "--recursive-errors=one", unit)


@each_daemon
def test_the_exposure_is_within_its_bound(daemon: Daemon) -> None:
    unit = ROOT / f"systemd/system/{daemon.name}.service"
    bound = EXPOSURE.get(daemon.name, 15)
    analyze = find_program("systemd-analyze")
    run(analyze, "security", "--offline=true", f"--threshold={bound}", "--no-pager", unit)


def test_nothing_gives_cvmfsd_a_mount_namespace_of_its_own() -> None:
    assert not OWN_MOUNT_NAMESPACE.findall((ROOT / "systemd/system/cvmfsd.service").read_text())


@each_daemon
def test_the_life_cycle_is_the_same_for_all(daemon: Daemon) -> None:
    settings = dict(re.findall(r"^(\w+)=(.*)$", daemon.unit, re.MULTILINE))
    assert settings["Type"] == "notify"
    assert settings["NotifyAccess"] == "main"
    assert settings["Restart"] == "on-failure"
    assert settings["RestartPreventExitStatus"] == "2"
    assert settings["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert int(settings["WatchdogSec"]) > 0
    assert int(settings["TimeoutStopSec"]) > 45, "the life cycle itself takes up to 45 s to stop"
    assert settings["WantedBy"] == settings["Also"] == settings["PartOf"] == "cernvm.target"


@each_daemon
def test_the_bus_policy_lets_everybody_look_and_few_act(daemon: Daemon) -> None:
    policy = ElementTree.parse(ROOT / f"systemd/dbus-1/system.d/{daemon.bus_name}.conf").getroot()
    for rules in policy.iter("policy"):
        for rule in rules:
            assert rule.tag == "allow"
            assert (rule.get("own") or rule.get("send_destination")) == daemon.bus_name
        members = {(rule.get("send_interface"), rule.get("send_member")) for rule in rules}
        if rules.get("context") == "default":
            assert ("org.freedesktop.DBus.Properties", "Set") not in members
            assert (None, None) not in members
        else:
            owner = "root" if daemon.name == "cvmfsd" else daemon.name
            assert rules.get("group") == "cernvm" or rules.get("user") in {"root", owner, "copilot-agentd"}
