# SPDX-License-Identifier: BSD-3-Clause
"""The life cycle of a daemon, seen from outside: a real process, real signals, a real notify socket."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

COMMAND = [sys.executable, "-m", "tests.support.toyd"]
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'daemons'}:{ROOT}"}


def toyd(directory: Path, text: str, *arguments: str, timeout: float = 20) -> subprocess.CompletedProcess[str]:
    config = directory / "toyd.conf"
    config.write_text(text)
    return subprocess.run(
        [*COMMAND, "--config", str(config), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=ENVIRONMENT,
        cwd=ROOT,
        check=False,
    )


@contextlib.contextmanager
def notified(directory: Path, **extra: str) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket, Path]]:
    """Run the toy under a notify socket of our own."""
    config = directory / "toyd.conf"
    config.write_text("")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(directory / "notify"))
        notify.settimeout(15)
        environment = {**ENVIRONMENT, "NOTIFY_SOCKET": str(directory / "notify"), **extra}
        with subprocess.Popen(
            [*COMMAND, "--config", str(config)], env=environment, cwd=ROOT, stderr=subprocess.PIPE
        ) as process:
            try:
                yield process, notify, config
            finally:
                process.kill()


def test_systemd_hears_ready_reload_status_and_stopping(tmp_path: Path) -> None:
    with notified(tmp_path) as (process, notify, config):
        assert notify.recv(4096).startswith(b"READY=1\nSTATUS=playing\nMAINPID=%d" % process.pid)
        config.write_text("[toy]\nbus = yes\n")
        process.send_signal(signal.SIGHUP)
        assert notify.recv(4096) == b"RELOADING=1"
        assert notify.recv(4096) == b"STATUS=reloaded, bus True"
        assert notify.recv(4096).startswith(b"READY=1\nSTATUS=reloaded")
        process.send_signal(signal.SIGTERM)
        assert notify.recv(4096) == b"STOPPING=1"
        assert process.wait(10) == 0


def test_a_bad_file_at_reload_changes_nothing(tmp_path: Path) -> None:
    with notified(tmp_path) as (process, notify, config):
        notify.recv(4096)
        config.write_text("[toy]\nfault = sometimes\n")
        process.send_signal(signal.SIGHUP)
        assert notify.recv(4096) == b"RELOADING=1"
        assert notify.recv(4096).startswith(b"READY=1\nSTATUS=playing")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert b'[toy] fault: the value "sometimes" is unacceptable' in process.stderr.read()


def test_the_watchdog_is_fed_at_half_its_period(tmp_path: Path) -> None:
    with notified(tmp_path, WATCHDOG_USEC="400000") as (_, notify, _config):
        started = time.monotonic()
        fed = sum(notify.recv(4096) == b"WATCHDOG=1" for _ in range(6))
        assert fed >= 5
        assert time.monotonic() - started < 6


@pytest.mark.parametrize(
    ("text", "status", "sentence"),
    [
        ("[toy]\nfault = mistake\n", 2, "toyd: port 99: in use; choose another"),
        ("[toy]\nfault = problem\n", 1, "toyd: the disk went away"),
        ("[toy]\nfalt = none\n", 2, "[toy] falt: unknown key; did you mean fault?"),
        ("[toy]\nfault = late\n", 2, "[toy] fault: a late fault needs the bus"),
    ],
)
def test_a_failed_start_is_one_sentence_and_its_status(tmp_path: Path, text: str, status: int, sentence: str) -> None:
    for arguments in ([], ["--background", "--pid-file", str(tmp_path / "pid")]):
        done = toyd(tmp_path, text, *arguments)
        assert done.returncode == status
        assert done.stderr.strip().endswith(sentence)
        assert len(done.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "pid").exists()


def test_a_bug_is_logged_with_its_traceback(tmp_path: Path) -> None:
    done = toyd(tmp_path, "[toy]\nfault = bug\n")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_check_config_exits_0_or_1(tmp_path: Path) -> None:
    assert toyd(tmp_path, "", "--check-config").returncode == 0
    done = toyd(tmp_path, "[toy]\nbus = maybe\n", "--check-config")
    assert done.returncode == 1
    assert "[toy] bus:" in done.stderr


def test_show_config_tells_values_and_origins(tmp_path: Path) -> None:
    done = toyd(tmp_path, "[toy]\nbus = yes\n", "--show-config")
    assert done.stdout.splitlines() == ["[toy]", "fault = none  # default", f"bus = True  # {tmp_path / 'toyd.conf'}"]


def test_in_the_background_it_answers_when_ready_and_one_instance_runs(tmp_path: Path) -> None:
    arguments = ("--background", "--pid-file", str(tmp_path / "pid"))
    assert toyd(tmp_path, "", *arguments).returncode == 0
    pid = int((tmp_path / "pid").read_text())
    try:
        second = toyd(tmp_path, "", *arguments)
        assert second.returncode == 2
        assert "is another one running?" in second.stderr
        os.kill(pid, signal.SIGKILL)
        _await_end(pid)
        assert toyd(tmp_path, "", *arguments).returncode == 0, "the lock of a dead process does not hold"
        pid = int((tmp_path / "pid").read_text())
    finally:
        os.kill(pid, signal.SIGTERM)
        _await_end(pid)
    assert not (tmp_path / "pid").exists()


def _await_end(pid: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().split(")")[1].split()[0] == "Z":
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} is still there")
