# SPDX-License-Identifier: BSD-3-Clause
"""One fetch of an object at a time among all processes that share a cache.

A lease is a lock of the kernel on one byte of the file `leases`, chosen by the object's name; it ends with the process
that holds it.  Nobody depends on it: who does not get one in time fetches all the same.  Thread-safe between caches;
within one, `objects` lets one thread at a time ask for a name.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from zlib import crc32

PATIENCE: Final = 20.0
"""Seconds to wait for the process that fetches the same object."""
_EVERY: Final = 0.02
_FLOCK: Final = struct.Struct("hhqqi4x")


class Leases:
    """The leases of one cache directory."""

    def __init__(self, directory: Path, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Raises OSError."""
        self._fd = os.open(directory / "leases", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._sleep = sleep

    def close(self) -> None:
        """Let all leases go."""
        os.close(self._fd)

    @contextmanager
    def holding(self, name: str) -> Iterator[bool]:
        """Hold the lease for `name`; gives whether somebody else had it meanwhile (then the object may be here)."""
        place = crc32(name.encode())
        waited = 0.0
        while not (mine := self._lock(place, fcntl.F_WRLCK)) and waited < PATIENCE:
            self._sleep(_EVERY)
            waited += _EVERY
        try:
            yield waited > 0
        finally:
            if mine:
                self._lock(place, fcntl.F_UNLCK)

    def _lock(self, place: int, kind: int) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return True  # a file system without locks: nobody else can hold one either
        return True
