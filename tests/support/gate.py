# SPDX-License-Identifier: BSD-3-Clause
"""A web server that holds answers back: what a stalled Stratum 1 looks like to a client.

A process of its own, since whoever reads a mapped file waits for it with Python's lock held.  The two talk through a
directory: a file there for each path that is held, and a log of what was asked and of what waits.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self

from tests.support.server import Server, answers_tcp, free_port, wait_until

LONGEST: Final = 60.0
"""Seconds after which a held answer goes out in any case."""


class Gate:
    """A context manager: `with Gate(scratch, tree) as gate: gate.hold("/path")`."""

    def __init__(self, directory: Path, root: Path) -> None:
        directory.mkdir(parents=True)
        port = free_port()
        self._directory = directory
        self.url = f"http://127.0.0.1:{port}"
        self._server = Server(
            [sys.executable, __file__, str(root), str(directory), str(port)],
            log=directory / "output",
            ready=lambda: answers_tcp(port),
            environment={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    def asked(self) -> list[str]:
        """The paths of all requests so far."""
        return _lines(self._directory / "asked")

    def hold(self, path: str) -> None:
        """Answer requests for `path` only after `release`."""
        _hold(self._directory, path).touch()

    def await_request(self, path: str) -> None:
        """Return when somebody waits, or has waited, for `path`.  Raises TimeoutError."""
        wait_until(lambda: path in _lines(self._directory / "waiting"), seconds=20, what=f"a request for {path}")

    def await_any(self, number: int) -> None:
        """Return when `number` requests wait, or have waited.  Raises TimeoutError."""
        wait_until(
            lambda: len(_lines(self._directory / "waiting")) >= number, seconds=20, what=f"{number} held requests"
        )

    def release(self) -> None:
        """Let all go that are held, and hold nothing more."""
        for file in self._directory.glob("hold-*"):
            file.unlink()


def _hold(directory: Path, path: str) -> Path:
    return directory / ("hold-" + path.replace("/", "-"))


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _serve(root: str, directory: Path, port: int) -> None:
    writing = threading.Lock()

    def note(file: str, path: str) -> None:
        with writing, (directory / file).open("a") as log:
            log.write(f"{path}\n")

    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=root)

        def do_GET(self) -> None:
            note("asked", self.path)
            until = time.monotonic() + LONGEST
            if _hold(directory, self.path).exists():
                note("waiting", self.path)
            while _hold(directory, self.path).exists() and time.monotonic() < until:
                time.sleep(0.01)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            """What was asked stands in a file already."""

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
