# SPDX-License-Identifier: BSD-3-Clause
"""Requests under way, and whether those who wait for them are about to die.

The kernel tells (INTERRUPT) when a signal reaches a process that waits for an answer, and lets not even a killed
process go before there is one.  But a signal that does not kill must not end a read(2): many programs take EINTR from
a file for damage.  So a request is given up only when its process is being killed; the one who works on it goes on,
for the cache, and his answer is dropped.

Thread-safe.  The threads that serve call everything; `_watch` is a thread that exists while somebody is in doubt.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL
from typing import Final

_EVERY: Final = 0.2
"""Seconds between two looks at a process that a signal has reached and that still waits."""
_KILLED: Final = 1 << SIGKILL - 1


class UnderWay:
    """The requests that are being worked on, by their number; `give_up` answers one with EINTR."""

    def __init__(self, give_up: Callable[[int], object], *, dying: Callable[[int], bool] | None = None) -> None:
        self._give_up = give_up
        self._dying = is_dying if dying is None else dying
        self._processes: dict[int, int] = {}  # single operations on it are atomic
        self._lock = threading.Lock()
        self._doubtful: set[int] = set()
        self._watching = False

    def begin(self, unique: int, process: int) -> None:
        """Somebody works on the request `unique` of the thread `process`."""
        self._processes[unique] = process

    def finish(self, unique: int) -> bool:
        """He is done; whether the answer is still wanted."""
        return self._processes.pop(unique, None) is not None

    def interrupt(self, unique: int) -> bool:
        """A signal came; whether the request is known here."""
        if unique not in self._processes:
            return False
        if not self._ended(unique):
            with self._lock:
                self._doubtful.add(unique)
                if not self._watching:
                    self._watching = True
                    threading.Thread(target=self._watch, name="interrupts", daemon=True).start()
        return True

    def _ended(self, unique: int) -> bool:
        """Give the request up if its process dies; whether it is over."""
        process = self._processes.get(unique)
        if process is None:
            return True
        if self._dying(process):
            if self.finish(unique):
                self._give_up(unique)
            return True
        return False

    def _watch(self) -> None:
        """Look again until all are over; each is, since every request has a deadline."""
        while True:
            time.sleep(_EVERY)
            with self._lock:
                waiting = tuple(self._doubtful)
            over = {unique for unique in waiting if self._ended(unique)}
            with self._lock:
                self._doubtful -= over
                if not self._doubtful:
                    self._watching = False
                    return


def is_dying(thread: int) -> bool:
    """Whether the kernel ends this thread: SIGKILL is pending, as for every thread of a process that a signal ends."""
    try:
        lines = Path(f"/proc/{thread}/status").read_bytes().splitlines()
    except OSError:
        return thread != 0  # it is gone; 0 is a process that cannot be seen from here
    masks = (int(line.split()[1], 16) for line in lines if line.startswith((b"SigPnd:", b"ShdPnd:")))
    return any(mask & _KILLED for mask in masks)
