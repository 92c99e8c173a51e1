# SPDX-License-Identifier: BSD-3-Clause
"""What a mounted repository has done so far, as numbers that another process may read while they change.

The numbers live in a shared mapping, so that a supervisor reads them fresh without asking, and so that they outlive
a worker that dies.  Any thread of the one writing process may add; readers see whole 64-bit numbers.
"""

from __future__ import annotations

import mmap
import os
import threading
from enum import IntEnum
from typing import Final


class Counter(IntEnum):
    """The numbers that are kept; the value is the place in the mapping."""

    LOOKUPS = 0
    LISTINGS = 1
    OPENS = 2
    READS = 3
    BYTES_READ = 4
    CACHE_HITS = 5
    """Objects that were wanted and stood in the cache."""
    CACHE_MISSES = 6
    """Objects that were wanted and had to be fetched."""
    DOWNLOADS = 7
    """Requests that brought a whole answer."""
    BYTES_RECEIVED = 8
    """Of HTTP bodies, as stored (compressed)."""
    FETCH_MILLISECONDS = 9
    """Time spent in requests, summed over threads."""
    RETRIES = 10
    CORRUPT = 11
    """Objects that came with the wrong hash."""
    ERRORS = 12
    """Requests of the kernel answered with an input/output error."""


_SIZE: Final = 8 * len(Counter)


class Counters:
    """The numbers of one repository."""

    def __init__(self, fd: int | None = None) -> None:
        """Map `fd` (from `shared`, kept open by the caller) or private memory."""
        memory = mmap.mmap(-1, _SIZE) if fd is None else mmap.mmap(fd, _SIZE)
        self._numbers = memoryview(memory).cast("Q")
        self._lock = threading.Lock()

    @staticmethod
    def shared() -> int:
        """Make a mapping that two processes can share; the caller closes the descriptor.  Raises OSError."""
        fd = os.memfd_create("cernvm-counters", os.MFD_CLOEXEC)
        os.ftruncate(fd, _SIZE)
        return fd

    def add(self, counter: Counter, number: int = 1) -> None:
        """Add `number`."""
        with self._lock:
            self._numbers[counter] += number

    def reset(self, counter: Counter) -> None:
        """Begin at 0 again."""
        with self._lock:
            self._numbers[counter] = 0

    def __getitem__(self, counter: Counter) -> int:
        return self._numbers[counter]

    def snapshot(self) -> dict[str, int]:
        """All numbers by lower-case name."""
        return {counter.name.lower(): self._numbers[counter] for counter in Counter}
