# SPDX-License-Identifier: BSD-3-Clause
"""One real server as a child process: started, probed until it answers, ended by its own process id.

The child dies with the process that started it (also when that is killed), so that a killed test run leaves
nothing.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from cernvm.kit.errors import Problem
from cernvm.kit.proc import die_with_parent, end


class ServerFailed(Problem):
    """A server ended or did not answer in time; the text has the end of its log."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_until(true: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Return as soon as `true()` holds; raise TimeoutError naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.01)


def answers_tcp(port: int) -> bool:
    """True when something accepts connections on 127.0.0.1:`port`."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def answers_unix(path: Path) -> bool:
    """True when something accepts connections on the Unix socket `path`."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        return True
    return False


class Server:
    """A child process with its output in `log`; `ready` tells when it serves."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        ready: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = list(command)
        self._log = log
        self._ready = ready
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id.  Raises ServerFailed when the server does not run."""
        if self._process is None:
            raise ServerFailed(f"{self._command[0]} is not running")
        return self._process.pid

    def start(self, *, seconds: float = 30.0) -> None:
        """Start and wait until ready.  Raises ServerFailed with the end of the log."""
        if self._process is not None:
            raise ServerFailed(f"{self._command[0]} runs already")
        environment = dict(os.environ if self._environment is None else self._environment)
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                preexec_fn=die_with_parent,
                process_group=0,  # an interrupt typed at the terminal is for the one that started it
            )
        try:
            wait_until(self._up, seconds=seconds, what=f"{self._command[0]} answering")
        except TimeoutError as error:
            self.stop()
            raise ServerFailed(f"{error}; {self._log} ends with: {self._log_end()}") from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process and wait for it; nothing happens when it does not run."""
        if self._process is not None:
            end(self._process, 10.0)
            self._process = None

    def restart(self) -> None:
        """Stop and start again, on the same addresses."""
        self.stop()
        self.start()

    def _up(self) -> bool:
        assert self._process is not None
        status = self._process.poll()
        if status is not None:
            raise ServerFailed(f"{self._command[0]} ended with {status}; {self._log} ends with: {self._log_end()}")
        return self._ready()

    def _log_end(self) -> str:
        return self._log.read_bytes()[-2000:].decode(errors="replace")
