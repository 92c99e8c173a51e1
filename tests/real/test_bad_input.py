# SPDX-License-Identifier: BSD-3-Clause
"""The mistakes that people make: one sentence with the place and exit status 2 each, and nothing started by half."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.bus import private_bus
from tests.support.daemon import command_line, project_environment
from tests.support.house import House, mounted_below, processes_naming
from tests.support.prosody import certificates

pytestmark = pytest.mark.real

DAEMONS = ["cvmfsd", "copilot-agentd", "copilot-jobmanagerd", "copilot-storaged"]


def refused(name: str, *arguments: str, environment: dict[str, str] | None = None) -> str:
    """Run it; it must end with status 2 and one sentence, which is returned."""
    done = subprocess.run(
        command_line(name, *arguments),
        env=project_environment(environment or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaint = [line for line in done.stderr.splitlines() if " INFO " not in line]
    assert done.returncode == 2, done.stderr
    assert len(complaint) == 1, done.stderr
    assert complaint[0].startswith(f"{name}: ")
    assert done.stdout == ""
    return complaint[0].removeprefix(f"{name}: ")


@pytest.mark.parametrize("name", DAEMONS)
def test_an_unknown_key(name: str, tmp_path: Path) -> None:
    section = {"cvmfsd": "cache", "copilot-storaged": "store"}.get(name, "xmpp")
    config = tmp_path / f"{name}.conf"
    config.write_text(f"[{section}]\nsurprise = 1\n")
    assert refused(name, "--config", str(config)).startswith(f"{config}: [{section}] surprise: unknown key")


def xmpp(directory: Path) -> str:
    """An [xmpp] section whose files are there (its server is not)."""
    certificates(directory, "copilot.test")
    (directory / "password").write_text("secret\n")
    (directory / "password").chmod(0o600)
    return (
        f"[xmpp]\njid = someone@copilot.test\npassword_file = {directory / 'password'}\n"
        f"host = 127.0.0.1\nport = 1\nca_file = {directory / 'ca.pem'}\n"
    )


def test_a_port_in_use(tmp_path: Path) -> None:
    config = tmp_path / "copilot-storaged.conf"
    done = subprocess.run(
        command_line("copilotctl", "make-keys", "--directory", str(tmp_path / "keys")),
        env=project_environment({}),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with private_bus(tmp_path / "bus") as bus, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config.write_text(
            f"{xmpp(tmp_path)}[http]\nport = {port}\n[store]\ndirectory = {tmp_path / 'store'}\n"
            f"[tokens]\npublic_key = {tmp_path / 'keys' / 'token.pub'}\n"
        )
        sentence = refused("copilot-storaged", "--config", str(config), environment=bus.environment)
    assert f"127.0.0.1:{port}" in sentence or f"127.0.0.1 port {port}" in sentence
    assert "use" in sentence


@pytest.mark.parametrize(
    ("name", "section", "key"),
    [
        ("copilot-storaged", "tokens", "public_key"),
        ("copilot-jobmanagerd", "storage", "token_key"),
    ],
)
def test_a_missing_key_file(name: str, section: str, key: str, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere" / "key"
    files = {
        "copilot-storaged": f"[store]\ndirectory = {tmp_path / 'store'}\n[http]\nport = 0\n",
        "copilot-jobmanagerd": f"[queue]\nfile = {tmp_path / 'queue.sqlite'}\n",
    }
    config = tmp_path / f"{name}.conf"
    config.write_text(f"{xmpp(tmp_path)}{files[name]}[{section}]\n{key} = {missing}\n")
    with private_bus(tmp_path / "bus") as bus:
        assert str(missing) in refused(name, "--config", str(config), environment=bus.environment)
    assert not (tmp_path / "queue.sqlite").exists()


def test_a_missing_password_file(tmp_path: Path) -> None:
    text = xmpp(tmp_path)
    (tmp_path / "password").unlink()
    config = tmp_path / "copilot-agentd.conf"
    config.write_text(f"{text}[agent]\ndirectory = {tmp_path / 'spool'}\n")
    with private_bus(tmp_path / "bus") as bus:
        sentence = refused("copilot-agentd", "--config", str(config), environment=bus.environment)
    assert str(tmp_path / "password") in sentence


def test_a_directory_that_cannot_be_mounted_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    config = tmp_path / "cvmfsd.conf"
    config.write_text(
        f"[cvmfsd]\nmount_directory = {tmp_path / 'file'}\nparameters_directory = {tmp_path}\n"
        f"[cache]\ndirectory = {tmp_path / 'cache'}\n"
    )
    with private_bus(tmp_path / "bus") as bus:
        assert str(tmp_path / "file") in refused("cvmfsd", "--config", str(config), environment=bus.environment)
    assert mounted_below(tmp_path) == []
    assert processes_naming(str(tmp_path)) == []


def test_mistakes_of_a_submitter(tmp_path: Path) -> None:
    with House(tmp_path / "house", agents=0) as house:
        path = tmp_path / "job.toml"
        for text, sentence in {
            'command = "/bin/true"\noutput_fles = ["x"]\n': "unknown field 'output_fles'; did you mean output_files?",
            'name = "nothing to run"\n': "field command is missing",
            'command = "/bin/true"\ninput_files = ["absent.dat"]\n': "absent.dat",
            "command = \n": "this is not TOML",
        }.items():
            path.write_text(text)
            complaint = refused("copilotctl", "submit", str(path), environment=house.environment)
            assert str(path) in complaint or "absent.dat" in complaint
            assert sentence in complaint
        assert "no-such-file.toml" in refused(
            "copilotctl", "submit", "no-such-file.toml", environment=house.environment
        )
        assert house.jobs() == []


def test_mistakes_of_a_release_manager(tmp_path: Path) -> None:
    tree, storage, keys = tmp_path / "tree", tmp_path / "storage", tmp_path / "keys"
    tree.mkdir()
    options = ("--storage", str(storage), "--keys", str(keys))
    assert "key" in refused("cvmfs-server", "publish", "a.example", str(tree), *options)
    assert "nodots" in refused("cvmfs-server", "mkfs", "nodots", *options)
    assert not storage.exists()
