# SPDX-License-Identifier: BSD-3-Clause
"""Threads that carry out transfers, so that who waits for one can stop waiting while the transfer goes on.

Threads start when there is work and none is idle, up to a bound, and end after a while without work.  They are
daemons: a process that ends does not wait for a server.  Thread-safe.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)
IDLE: Final = 10.0
"""Seconds after which a thread without work ends."""


class Crew:
    """At most `most` threads."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0
        """Threads without work, less the work that waits for one."""

    def do(self, work: Callable[[], None]) -> None:
        """Have `work` done as soon as there is a thread for it; it must not raise."""
        with self._lock:
            self._idle -= 1
            grow = self._idle < 0 and self._threads < self._most
            if grow:
                self._threads += 1
                self._idle += 1
        self._work.put(work)
        if grow:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except Exception:
                log.critical("a transfer failed by an error of ours", exc_info=True)
            with self._lock:
                self._idle += 1

    def _next(self) -> Callable[[], None] | None:
        while True:
            try:
                return self._work.get(timeout=IDLE)
            except queue.Empty:
                with self._lock:
                    if self._idle > 0:
                        self._idle -= 1
                        self._threads -= 1
                        return None
