# SPDX-License-Identifier: BSD-3-Clause
"""A worker's end of its socket to the supervisor, and what it does when the supervisor is gone: serve on, and wait.

The main thread listens; any thread may say something.  While there is no supervisor, what is said is lost: the next
one is told what the mount shows when it comes.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from . import wire

log = logging.getLogger(__name__)
_STUCK: Final = 5.0
"""Seconds for a supervisor to take what a worker says; one that is stopped must not hold the worker's threads."""


class Link:
    """The socket to the supervisor."""

    def __init__(self, connection: socket.socket) -> None:
        self._lock = threading.Lock()
        self._hung_up = False
        self._wake, self._waker = os.pipe()
        self._attach(connection)

    def _attach(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(_STUCK))
        self._connection = connection
        self._lines = connection.makefile("rb")

    def say(self, message: wire.Message) -> None:
        """Send one line; a supervisor that is gone is noticed by `hear`."""
        with self._lock, suppress(OSError):
            self._connection.sendall(wire.encode(message))

    def hear(self) -> wire.Message | None:
        """Wait for the next line; None when the supervisor is gone, or after `hang_up`."""
        line = self._lines.readline()
        return wire.decode(line) if line.endswith(b"\n") and not self._hung_up else None

    def hang_up(self) -> None:
        """Make `hear` return None for good, from any thread."""
        self._hung_up = True
        with suppress(OSError):
            os.write(self._waker, b"!")
            self._connection.shutdown(socket.SHUT_RD)

    def await_next(
        self, listener: socket.socket, seconds: float | None, greet: Callable[[], Sequence[wire.Message]]
    ) -> bool:
        """Wait for the next supervisor and greet it; False when none came, or the worker is to end."""
        if self._hung_up:
            return False
        if seconds is not None:
            log.warning("the supervisor is gone; waiting %.0f s for the next one", seconds)
        ready, _, _ = select.select([listener.fileno(), self._wake], [], [], seconds)
        if listener.fileno() not in ready or self._hung_up:
            return False
        connection, _ = listener.accept()
        with self._lock:
            self._connection.close()
            self._attach(connection)
        for message in greet():
            self.say(message)
        return not self._hung_up


def listening(path: Path) -> socket.socket:
    """A socket that listens at `path`, in place of whatever was there.

    On a read-only disk nobody can reach it: then it listens, and waits in vain.  Raises OSError.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        try:
            path.unlink(missing_ok=True)
            with wire.reachable(path) as address:
                listener.bind(address)
            path.chmod(0o600)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            log.warning("%s: cannot be made on a read-only disk", path)
            listener.bind("")  # a name that the kernel makes up
        listener.listen(8)
    except OSError:
        listener.close()
        raise
    return listener


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
