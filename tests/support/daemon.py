# SPDX-License-Identifier: BSD-3-Clause
"""One of our own daemons as a child process, ready when it tells its notify socket so, as under systemd."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from cernvm.kit.proc import die_with_parent, end
from tests.support.server import ServerFailed

ROOT = Path(__file__).parents[2]


def project_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment in which this checkout's commands run: its own package first, and `extra`."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "daemons"), "PYTHONDONTWRITEBYTECODE": "1", **extra}


def command_line(name: str, *arguments: str) -> list[str]:
    """The command line of the project's command `name` (a daemon or one of cli/) in this interpreter."""
    module = name.replace("-", "_")
    package = "cernvm" if (ROOT / "daemons" / "cernvm" / module).is_dir() else "cernvm.cli"
    return [sys.executable, "-m", f"{package}.{module}", *arguments]


class Daemon:
    """A daemon `name` with configuration text `config`; its files and its log lie in `directory`."""

    def __init__(
        self,
        name: str,
        directory: Path,
        config: str,
        environment: Mapping[str, str],
        *,
        inside: Callable[..., list[str]] | None = None,
    ) -> None:
        """`inside` wraps the command line, so that it runs in a network namespace, say."""
        directory.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.config = directory / f"{name}.conf"
        self.config.write_text(config, encoding="utf-8")
        self.log = directory / f"{name}.log"
        self._environment = dict(environment)
        command = command_line(name, "--config", str(self.config))
        self._command = command if inside is None else inside(*command)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process.  Raises ServerFailed when there is none."""
        if self._process is None:
            raise ServerFailed(f"{self.name} is not running")
        return self._process

    def start(self, *, seconds: float = 30.0) -> None:
        """Start it and wait for READY=1.  Raises ServerFailed with the end of its log."""
        with (
            tempfile.TemporaryDirectory(prefix="notify-") as short,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
        ):
            notify.bind(f"{short}/socket")
            notify.settimeout(0.1)
            environment = project_environment({**self._environment, "NOTIFY_SOCKET": f"{short}/socket"})
            with self.log.open("ab") as output:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    # so that it cleans up even when the one that started it is killed
                    preexec_fn=functools.partial(die_with_parent, signal.SIGTERM),
                    process_group=0,
                )
            try:
                self._await_ready(notify, seconds)
            except BaseException:
                self.stop()
                raise

    def _await_ready(self, notify: socket.socket, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(TimeoutError):
                if b"READY=1" in notify.recv(4096):
                    return
            status = self.process.poll()
            if status is not None:
                raise ServerFailed(f"{self.name} ended with status {status}: {self.log_end()}")
        raise ServerFailed(f"{self.name} was not ready within {seconds:g} s: {self.log_end()}")

    def kill(self) -> None:
        """SIGKILL, as a power cut or the kernel's memory killer would."""
        self.process.kill()
        self.process.wait(10.0)
        self._process = None

    def stop(self) -> int | None:
        """Stop it as systemd does; returns its exit status, None when it did not run."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        return end(process, 30.0)

    def log_end(self) -> str:
        """The last lines of its log."""
        return self.log.read_bytes()[-2000:].decode(errors="replace")
