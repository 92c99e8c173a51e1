# SPDX-License-Identifier: BSD-3-Clause
"""The one daemon that uses a cache directory: it holds it, and puts it in order before any worker starts.

One thread; once at the start of the daemon.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from .cache import Cache
from .errors import Mistake

_CRASH_WINDOW: Final = 120.0
"""Seconds before a machine's crash in which a written object may not have reached the disk."""


class CacheOwner:
    """A hold on a cache directory."""

    def __init__(self, directory: Path) -> None:
        """Take the directory.  Raises Mistake if another daemon has it."""
        cache = Cache(directory, None)
        cache.close()
        self._directory = directory
        self._read_only = cache.read_only
        flags = os.O_RDONLY if cache.read_only else os.O_RDWR | os.O_CREAT
        try:
            self._fd = os.open(directory / "owner", flags | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Mistake(f"{directory}: the cache cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise Mistake(f"{directory}: another cvmfsd uses this cache directory") from error

    def __enter__(self) -> CacheOwner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tidy(self, boot: bytes) -> None:
        """Remove leftovers, have the size counted anew, and drop what a crash of the machine may have torn.

        What a worker of an earlier daemon still writes is no leftover.  `boot` tells one run of the machine from the
        next; objects are not put on the disk one by one (that costs more than they do), so after a new start those
        written last are fetched again.
        """
        if self._read_only:
            return
        for leftover in (self._directory / "txn").iterdir():
            if not _written(leftover):
                leftover.unlink(missing_ok=True)
        cache = Cache(self._directory, None)
        cache.recount()
        cache.close()
        if os.pread(self._fd, len(boot) + 1, 0) not in (b"", boot):
            self._drop_recent()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, boot, 0)
        os.fsync(self._fd)

    def close(self) -> None:
        """Let the directory go."""
        os.close(self._fd)

    def _drop_recent(self) -> None:
        files = [file for number in range(256) for file in (self._directory / f"{number:02x}").iterdir()]
        times = {file: file.stat().st_mtime for file in files}
        last = max(times.values(), default=0.0)
        for file, written in times.items():
            if written > last - _CRASH_WINDOW:
                file.unlink()


def _written(temporary: Path) -> bool:
    """Whether a process still writes this file."""
    try:
        with temporary.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False
