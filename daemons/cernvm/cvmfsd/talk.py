# SPDX-License-Identifier: BSD-3-Clause
"""The socket at which a mount answers `cvmfs_talk`: one command per connection, its answer until the end of file.

One thread accepts, each connection has one of its own for a bounded time, so that a slow command or a client that
never writes holds nobody up.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from cernvm.kit.errors import Problem, sentence

log = logging.getLogger(__name__)
PATIENCE: Final = 10.0
"""Seconds for a client to write its command and to read the answer."""
MAX_COMMAND: Final = 16384
MAX_CLIENTS: Final = 16


class Talk:
    """Answers at a listening socket until closed."""

    def __init__(self, listener: socket.socket, answer: Callable[[str], str]) -> None:
        self._listener = listener
        self._answer = answer
        self._room = threading.BoundedSemaphore(MAX_CLIENTS)
        threading.Thread(target=self._accept, name="talk", daemon=True).start()

    def close(self) -> None:
        """Answer nobody any more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not self._room.acquire(timeout=PATIENCE):
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), name="talk", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, suppress(OSError):
                connection.settimeout(PATIENCE)
                command = connection.recv(MAX_COMMAND).decode("utf-8", "surrogateescape").strip("\0\n\r ")
                connection.sendall(self._reply(command).encode("utf-8", "surrogateescape"))
        finally:
            self._room.release()

    def _reply(self, command: str) -> str:
        try:
            answer = self._answer(command)
        except (Problem, OSError) as error:
            answer = f"Failed: {sentence(error)}"
        except Exception as error:
            log.critical("the command %r of cvmfs_talk", command, exc_info=True)
            answer = f"Failed: {sentence(error)}"
        return answer if answer.endswith("\n") else answer + "\n"
