# SPDX-License-Identifier: BSD-3-Clause
"""Failed reads, remembered for the one question that follows them.

The kernel reads ahead of its readers; when that fails it says nothing and asks again for the page that somebody waits
for.  Without a memory each failure would be met twice, and he would wait for a server that does not answer twice as
long as was promised.

Thread-safe.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from cernvm.cvmfs.inodes import Inode

SOON: Final = 0.2
"""Seconds within which the second question comes: at once, but for a busy machine."""
MOST: Final = 256


class Failure(NamedTuple):
    """That the bytes from `start` to `stop` could not be read."""

    start: int
    stop: int
    error: int
    when: float


class Failures:
    """The failures of the last moment; each answers one question."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failed: dict[Inode, list[Failure]] = {}

    def note(self, inode: Inode, offset: int, size: int, error: int) -> None:
        """Reading there ended with the error number `error`."""
        with self._lock:
            if len(self._failed) >= MOST:
                self._failed.clear()
            self._failed.setdefault(inode, []).append(Failure(offset, offset + size, error, self._clock()))

    def recall(self, inode: Inode, offset: int) -> int:
        """The error number with which reading there has just failed, once; 0 if it has not."""
        if not self._failed:
            return 0
        with self._lock:
            recent = [one for one in self._failed.pop(inode, ()) if self._clock() - one.when < SOON]
            found = next((one for one in recent if one.start <= offset < one.stop), None)
            if found is not None:
                recent.remove(found)
            if recent:
                self._failed[inode] = recent
            return 0 if found is None else found.error
