# SPDX-License-Identifier: BSD-3-Clause
"""A TCP relay in front of a real server that can spoil what passes: the faults of networks and of broken servers.

Threads of its own, one per connection and direction; closing it ends them all.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from enum import Enum
from typing import Final, Self

GARBAGE: Final = bytes(range(256)) * 64
TRUNCATED: Final = 700
"""Bytes of an answer that pass, head included."""


class Spoil(Enum):
    """What becomes of a connection."""

    NOTHING = "nothing"
    KILLED = "killed"
    """Refused, and open ones cut."""
    STALLED = "stalled"
    """Accepted and never answered."""
    TRUNCATING = "truncating"
    """The answer ends early."""
    GARBAGE = "garbage"
    """Bytes that are no HTTP."""
    CORRUPT = "corrupt"
    """The head is right, the body is not."""
    NOT_FOUND = "404 Not Found"
    ERROR = "500 Internal Server Error"
    BUSY = "429 Too Many Requests"


class Relay:
    """A context manager: `with Relay(web.port) as gate: gate.spoil(Spoil.STALLED)`."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._behind = port
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._host = host
        self._mode = Spoil.NOTHING
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.connections = 0
        self.port = self._listen(0)
        bare = f"[{host}]" if ":" in host else host
        self.url = f"http://{bare}:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.spoil(Spoil.KILLED)

    def spoil(self, mode: Spoil) -> None:
        """From now on every connection fares so; those that are open are cut."""
        with self._lock:
            self._mode = mode
            waiting, self._open = self._open, set()
        for one in waiting:
            _end(one)
        if mode is Spoil.KILLED and self._listener is not None:
            _end(self._listener)
            self._listener = None
        elif mode is not Spoil.KILLED and self._listener is None:
            self._listen(self.port)

    def _listen(self, port: int) -> int:
        listener = socket.create_server((self._host, port), family=self._family, backlog=128)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), name="relay", daemon=True).start()
        number: int = listener.getsockname()[1]
        return number

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                with self._lock:
                    self._open.add(client)
                    self.connections += 1
                    mode = self._mode
                threading.Thread(target=self._serve, args=(client, mode), name="relay", daemon=True).start()

    def _serve(self, client: socket.socket, mode: Spoil) -> None:
        with suppress(OSError):
            if mode in (Spoil.NOTHING, Spoil.TRUNCATING, Spoil.CORRUPT):
                self._forward(client, mode)
            elif mode is not Spoil.STALLED:
                client.recv(65536)
                client.sendall(GARBAGE if mode is Spoil.GARBAGE else _refusal(mode))
        if mode is not Spoil.STALLED:
            self._forget(client)

    def _forward(self, client: socket.socket, mode: Spoil) -> None:
        server = socket.create_connection(("127.0.0.1", self._behind), timeout=10)
        server.settimeout(None)
        with self._lock:
            self._open.add(server)
        threading.Thread(target=_pump, args=(client, server), name="relay", daemon=True).start()
        passed = 0
        while data := server.recv(65536):
            if mode is Spoil.TRUNCATING:
                data = data[: TRUNCATED - passed]
            passed += len(data)
            client.sendall(_corrupted(data) if mode is Spoil.CORRUPT else data)
            if mode is Spoil.TRUNCATING and passed >= TRUNCATED:
                break
        self._forget(server)

    def _forget(self, one: socket.socket) -> None:
        with self._lock:
            self._open.discard(one)
        _end(one)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _refusal(mode: Spoil) -> bytes:
    return f"HTTP/1.1 {mode.value}\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n".encode()


def _corrupted(data: bytes) -> bytes:
    """The same length with the last byte of the piece changed."""
    return data[:-1] + bytes([data[-1] ^ 1])


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
