# SPDX-License-Identifier: BSD-3-Clause
"""A web server that holds answers back: what a stalled Stratum 1 looks like to a client.

Each connection has a thread; those that are held wait for `release`.
"""

from __future__ import annotations

import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final, Self

from tests.support.server import wait_until

LONGEST: Final = 60.0
"""Seconds after which a held answer goes out in any case."""


class Gate:
    """A context manager: `with Gate(tree) as gate: gate.hold("/path")`."""

    def __init__(self, root: Path) -> None:
        self._held: dict[str, threading.Event] = {}
        self.waiting: list[str] = []
        self.asked: list[str] = []
        gate = self

        class Handler(SimpleHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def __init__(self, *args: object) -> None:
                super().__init__(*args, directory=str(root))  # type: ignore[arg-type]  # as the base class is called

            def do_GET(self) -> None:
                gate.asked.append(self.path)
                event = gate.held(self.path)
                if event is not None:
                    gate.waiting.append(self.path)
                    event.wait(LONGEST)
                super().do_GET()

            def log_message(self, *_: object) -> None:
                """Nothing to standard error."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="gate", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def held(self, path: str) -> threading.Event | None:
        """What a request for `path` has to wait for."""
        return self._held.get(path)

    def hold(self, path: str) -> None:
        """Answer requests for `path` only after `release`."""
        self._held[path] = threading.Event()

    def await_request(self, path: str) -> None:
        """Return when somebody waits for `path`.  Raises TimeoutError."""
        wait_until(lambda: path in self.waiting, seconds=20, what=f"a request for {path}")

    def release(self) -> None:
        """Let all go that are held, and hold nothing more."""
        for event in self._held.values():
            event.set()
        self._held = {}
        self.waiting.clear()
