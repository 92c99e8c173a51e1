# SPDX-License-Identifier: BSD-3-Clause
"""Mistakes of the admin: one sentence with the place, exit status 2, nothing half started."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cernvm.copilot.tokens import generate_keys
from tests.support.bus import private_bus
from tests.support.daemon import Daemon, command_line, project_environment
from tests.support.prosody import certificates

pytestmark = pytest.mark.real


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with all files that a configuration needs."""
    certificates(tmp_path, "copilot.test")
    generate_keys(tmp_path)
    (tmp_path / "password").write_text("secret\n")
    (tmp_path / "password").chmod(0o600)
    return tmp_path


def config(name: str, place: Path) -> str:
    common = (
        f"[xmpp]\njid = x@copilot.test\npassword_file = {place}/password\nhost = 127.0.0.1\nport = 1\n"
        f"ca_file = {place}/ca.pem\n"
    )
    if name == "copilot-agentd":
        return f"{common}[agent]\ndirectory = {place}/spool\n"
    return f"{common}[queue]\nfile = {place}/queue.sqlite\n[storage]\ntoken_key = {place}/token.key\n"


def start(name: str, place: Path, text: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    file = place / f"{name}.conf"
    file.write_text(text)
    return subprocess.run(
        command_line(name, "--config", str(file)),
        env=project_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "before", "after", "words"),
    [
        ("copilot-agentd", "/password", "/absent", "/absent: cannot read the XMPP password: No such file"),
        ("copilot-agentd", "/ca.pem", "/password", "/password: no certificate of a CA is in this file"),
        ("copilot-agentd", "/spool", "/password", "/password: cannot be used for jobs: "),
        ("copilot-agentd", "[agent]", "[agent]\nslots = many", "[agent] slots: "),
        ("copilot-jobmanagerd", "/ca.pem", "/absent", "/absent: cannot read the CA's certificate: No such file"),
        ("copilot-jobmanagerd", "/token.key", "/absent", "/absent: "),
        ("copilot-jobmanagerd", "/queue.sqlite", "/absent/queue.sqlite", "/absent/queue.sqlite: cannot open the queue"),
        ("copilot-jobmanagerd", "[queue]", "[que]", "que: unknown section; did you mean queue?"),
    ],
)
def test_a_mistake_in_the_configuration_ends_the_start(
    place: Path, name: str, before: str, after: str, words: str
) -> None:
    before_files = sorted(place.rglob("*"))
    answer = start(name, place, config(name, place).replace(before, after), {})
    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.startswith(f"{name}: {place}/")
    assert words in answer.stderr
    assert answer.stderr.count("\n") == 1
    made = set(place.rglob("*")) - set(before_files)
    assert made <= {place / f"{name}.conf", place / "spool", place / "spool/jobs", place / "spool/name"}


@pytest.mark.parametrize("name", ["copilot-agentd", "copilot-jobmanagerd"])
def test_a_name_of_the_bus_that_is_taken_is_one_sentence(place: Path, name: str) -> None:
    with private_bus(place / "bus") as bus, Daemon(name, place / "first", config(name, place), bus.environment):
        second = place / "second"
        second.mkdir()
        text = config(name, place).replace("/queue.sqlite", "/second.sqlite").replace("/spool", "/second")
        answer = start(name, place, text, bus.environment)
    assert answer.returncode == 1
    assert "another process owns this bus name; stop it first" in answer.stderr.splitlines()[-1]
    assert "Traceback" not in answer.stderr


def test_without_a_bus_the_start_ends_with_one_sentence(place: Path) -> None:
    name = "copilot-jobmanagerd"
    answer = start(name, place, config(name, place), {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={place}/no-bus"})
    assert answer.returncode == 1
    assert "the system bus cannot be reached" in answer.stderr
    assert "Traceback" not in answer.stderr
