# SPDX-License-Identifier: BSD-3-Clause
"""The disk cache: verified objects, uncompressed, named by their hash, shared by the workers of all repositories.

The files themselves are the data base: a name means a whole and verified object (temporary file in `txn/`, then
rename), the access time (set at most once a minute) tells which was used last, and a shared flock(2) on a file means
that somebody needs it to stay; the kernel drops that lock when its process dies.  So nothing has to be repaired
after a crash, and SQLite is not needed.  Only the total size is kept apart (in the file `lock`, under its lock);
every eviction counts it anew.

Thread-safe, and safe between processes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import CacheFull, Mistake

_TOUCH_AFTER: Final = 60.0
_BLOCK: Final = 4096
_USAGE: Final = struct.Struct("<q")


class OpenObject:
    """An open cached object.  It stays readable when the cache drops its name; closed when nobody refers to it."""

    __slots__ = ("_used", "fd", "size")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        known = os.fstat(fd)
        self.size = known.st_size
        self._used = known.st_atime

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):
            os.close(self.fd)

    def touch(self, now: float) -> None:
        """Remember that it is used at `now` (Unix seconds), at most once a minute."""
        if now - self._used > _TOUCH_AFTER:
            self._used = now
            os.utime(self.fd, ns=(int(now * 1e9), os.fstat(self.fd).st_mtime_ns))

    def pin(self) -> None:
        """Keep the cache from dropping it for as long as this lives."""
        fcntl.flock(self.fd, fcntl.LOCK_SH)

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`.  Raises OSError."""
        return os.pread(self.fd, size, offset)

    def read_all(self) -> bytes:
        """Return all bytes.  Raises OSError."""
        return os.pread(self.fd, self.size, 0)


@dataclass(frozen=True)
class _Stored:
    path: Path
    used: float
    blocks: int


class Cache:
    """A cache directory with a limit in bytes (None: no limit)."""

    def __init__(self, directory: Path, limit: int | None, *, clock: Callable[[], float] = time.time) -> None:
        """Make the directories that are missing.  Raises Mistake if that cannot be done."""
        self.directory = directory
        self.limit = limit
        self._clock = clock
        self._thread_lock = threading.Lock()
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in ("txn", *(f"{number:02x}" for number in range(256))):
                (directory / name).mkdir(exist_ok=True, mode=0o700)
            self._lock_fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Mistake(f"{directory}: the cache cannot be used: {error.strerror}") from error

    def close(self) -> None:
        """Close the lock file; objects that are open stay so."""
        os.close(self._lock_fd)

    def open(self, name: str) -> OpenObject | None:
        """Return the object `name` (a hash in text) if it is here.  Raises OSError for other reasons than that."""
        try:
            fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        opened = OpenObject(fd)
        self.touch(opened)
        return opened

    def touch(self, opened: OpenObject) -> None:
        """Remember that an object is used now."""
        opened.touch(self._clock())

    @contextmanager
    def writing(self, name: str) -> Iterator[int]:
        """Lend the descriptor of a temporary file; on a clean exit it becomes the object `name`.

        Raises CacheFull.
        """
        fd, temporary = tempfile.mkstemp(dir=self.directory / "txn", prefix="fetch")
        path = Path(temporary)
        try:
            yield fd
            size = _round(os.fstat(fd).st_size)
            self._make_room(size, name)
            target = self._path(name)
            with self._exclusive():
                used = self._read_usage()  # before the rename: the first time this counts what is there
                known = target.exists()
                path.rename(target)
                self._write_usage(used + (0 if known else size))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise CacheFull(f"{self.directory}: no space left for the cache") from error
            raise
        finally:
            os.close(fd)
            path.unlink(missing_ok=True)

    def used(self) -> int:
        """Bytes that the objects take."""
        with self._exclusive():
            return self._read_usage()

    def forget(self, name: str) -> None:
        """Drop one object, if it is here."""
        with self._exclusive(), suppress(FileNotFoundError):
            path = self._path(name)
            size = _round(path.stat().st_size)
            path.unlink()
            self._write_usage(max(0, self._read_usage() - size))

    def _path(self, name: str) -> Path:
        return self.directory / name[:2] / name[2:]

    def _make_room(self, size: int, name: str) -> None:
        if self.limit is None:
            return
        if size > self.limit // 2:
            raise CacheFull(
                f"{self.directory}: the object {name} of {size} bytes is larger than half of the cache's limit"
            )
        with self._exclusive():
            if self._read_usage() + size > self.limit:
                self._evict(self.limit // 2)

    def _evict(self, goal: int) -> None:
        """Remove what was used least recently until `goal` bytes are left; the caller holds the lock."""
        stored = sorted(self._scan(), key=lambda one: one.used)
        total = sum(one.blocks for one in stored)
        for one in stored:
            if total <= goal:
                break
            if not _pinned(one.path):
                one.path.unlink(missing_ok=True)
                total -= one.blocks
        self._write_usage(total)

    def _scan(self) -> Iterator[_Stored]:
        for number in range(256):
            with os.scandir(self.directory / f"{number:02x}") as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        stat = entry.stat(follow_symlinks=False)
                        yield _Stored(Path(entry.path), stat.st_atime, _round(stat.st_size))

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Be alone, among the threads of this process and among processes.  Held for one count or one eviction."""
        with self._thread_lock:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def _read_usage(self) -> int:
        raw = os.pread(self._lock_fd, _USAGE.size, 0)
        if len(raw) == _USAGE.size:
            total: int = _USAGE.unpack(raw)[0]
            return total
        total = sum(one.blocks for one in self._scan())
        self._write_usage(total)
        return total

    def _write_usage(self, total: int) -> None:
        os.pwrite(self._lock_fd, _USAGE.pack(total), 0)


def _pinned(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def _round(size: int) -> int:
    return (size + _BLOCK - 1) // _BLOCK * _BLOCK
