# SPDX-License-Identifier: BSD-3-Clause
"""The disk cache: verified objects, uncompressed, named by their hash, shared by the workers of all repositories.

The files themselves are the data base: a name means a whole and verified object (temporary file in `txn/`, then
rename), the access time (set at most once a minute) tells which was used last, and a shared flock(2) on a file means
that somebody needs it to stay; the kernel drops that lock when its process dies.  So nothing has to be repaired
after a crash, and SQLite is not needed.  Only the total size is kept apart (in the file `lock`, under its lock);
every eviction counts it anew.  What was damaged behind our back shows by its checksum (`cache_stamp`) at opening.

A disk that is read-only still gives what it has; what is fetched then stays in memory.

Thread-safe, and safe between processes.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import cache_stamp
from .cache_lease import Leases
from .errors import CacheFull, DiskFull, Mistake

log = logging.getLogger(__name__)
MAX_CHECKED: Final = 50_000
"""Objects that are remembered as looked through, so that opening one again does not read it all again."""
_TOUCH_AFTER: Final = 60.0
_BLOCK: Final = 4096
_USAGE: Final = struct.Struct("<q")
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNWRITABLE: Final = frozenset({errno.EROFS, errno.EIO})


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
            with suppress(OSError):  # a disk that is read-only keeps no times
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
        self._checked: dict[str, tuple[int, int]] = {}
        self._leases: Leases | None = None
        self.cleanups: deque[float] = deque(maxlen=10_000)
        """When this process made room, in seconds of the steady clock."""
        try:
            self._lock_fd, self.read_only = self._prepare(), False
            self._leases = Leases(directory)
            self._stamps = cache_stamp.supported(self._lock_fd)
        except OSError as error:
            if error.errno != errno.EROFS or not (directory / "lock").exists():
                raise Mistake(f"{directory}: the cache cannot be used: {error.strerror}") from error
            log.warning("%s: the disk is read-only; what is fetched stays in memory", directory)
            self._lock_fd, self.read_only = os.open(directory / "lock", os.O_RDONLY | os.O_CLOEXEC), True
            self._stamps = True
        if not self._stamps:
            log.warning("%s: this file system has no extended attributes: damage goes unnoticed", directory)

    def _prepare(self) -> int:
        """Make what is missing; the descriptor of the lock file.  Raises OSError."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("txn", *(f"{number:02x}" for number in range(256))):
            (self.directory / name).mkdir(exist_ok=True, mode=0o700)
        return os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Close the files of the cache itself; objects that are open stay so."""
        os.close(self._lock_fd)
        if self._leases is not None:
            self._leases.close()

    def open(self, name: str) -> OpenObject | None:
        """Return the object `name` (a hash in text) if it is here and whole.  Raises OSError for other reasons."""
        try:
            fd = _open(self.path_of(name))
        except FileNotFoundError:
            return None
        opened = OpenObject(fd)
        if not self._whole(name, fd):
            log.warning("%s: the cached object %s is damaged; it is fetched again", self.directory, name)
            self.forget(name)
            return None
        self.touch(opened)
        return opened

    def _whole(self, name: str, fd: int) -> bool:
        """Whether the content is what was written; looked through once, and again after each change."""
        if not self._stamps:
            return True
        known = os.fstat(fd)
        seen = (known.st_ino, known.st_mtime_ns)
        if self._checked.get(name) == seen:
            return True
        if not cache_stamp.intact(fd):
            return False
        self._note(name, seen)
        return True

    def _note(self, name: str, seen: tuple[int, int]) -> None:
        if len(self._checked) >= MAX_CHECKED:
            self._checked.clear()
        self._checked[name] = seen

    def check(self, name: str) -> bool:
        """Read one object through; False if it was damaged, and then it is gone.  True when it is not here at all."""
        self._checked.pop(name, None)
        try:
            opened = OpenObject(_open(self.path_of(name)))
        except FileNotFoundError:
            return True
        except OSError:
            self.forget(name)
            return False
        whole = self._whole(name, opened.fd)
        if not whole:
            self.forget(name)
        return whole

    def touch(self, opened: OpenObject) -> None:
        """Remember that an object is used now."""
        opened.touch(self._clock())

    @contextmanager
    def writing(self, name: str) -> Iterator[int]:
        """Lend the descriptor of a temporary file; on a clean exit it becomes the object `name`.

        Raises CacheFull.
        """
        try:
            fd, temporary = tempfile.mkstemp(dir=self.directory / "txn", prefix="fetch")
        except OSError as error:
            if error.errno in _FULL:
                raise DiskFull(f"{self.directory}: no space left for the cache") from error
            if error.errno not in _UNWRITABLE:
                raise
            with self._in_memory(name) as memory:
                yield memory
            return
        path = Path(temporary)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)  # so that a daemon that tidies up leaves it
            yield fd
            if self._stamps:
                cache_stamp.stamp(fd)
            known = os.fstat(fd)
            self._make_room(_round(known.st_size), name)
            self._add(fd, path, name, _round(known.st_size))
            self._note(name, (known.st_ino, known.st_mtime_ns))
        except OSError as error:
            if error.errno in _FULL:
                raise DiskFull(f"{self.directory}: no space left for the cache") from error
            raise
        finally:
            os.close(fd)
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _add(self, fd: int, path: Path, name: str, size: int) -> None:
        """Give the file at `path` its name."""
        target = self.path_of(name)
        with self._exclusive():
            used = self._read_usage()  # before the rename: the first time this counts what is there
            known = target.exists()
            path.rename(target)
            fcntl.flock(fd, fcntl.LOCK_UN)  # it would keep the object here for as long as it is open
            self._write_usage(used + (0 if known else size))

    @contextmanager
    def _in_memory(self, name: str) -> Iterator[int]:
        """A file without a place on the disk, which became read-only: the object lives while it is open."""
        if not self.read_only:
            self.read_only = True
            log.error("%s: the disk became read-only; what is fetched stays in memory", self.directory)
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def fetching(self, name: str) -> Iterator[None]:
        """Be the one process that fetches `name`; afterwards look whether another one did."""
        if self._leases is None:
            yield
            return
        with self._leases.holding(name):
            yield

    def cleanup(self, goal: int) -> int:
        """Remove what was used least recently until `goal` bytes are left, or only what is pinned; the bytes left."""
        with self._exclusive():
            self._evict(goal)
            return self._read_usage()

    def recount(self) -> None:
        """Count the size anew."""
        with self._exclusive():
            os.ftruncate(self._lock_fd, 0)

    def names(self) -> Iterator[str]:
        """The objects that are here."""
        for one in self._scan():
            yield one.path.parent.name + one.path.name

    def is_pinned(self, name: str) -> bool:
        """Whether somebody keeps the object."""
        return _pinned(self.path_of(name))

    def used(self) -> int:
        """Bytes that the objects take."""
        with self._exclusive():
            return self._read_usage()

    def forget(self, name: str) -> None:
        """Drop one object, if it is here."""
        self._checked.pop(name, None)
        with self._exclusive(), suppress(OSError):  # gone already, or a disk that is read-only
            path = self.path_of(name)
            size = _round(path.stat().st_size)
            used = self._read_usage()  # before the unlinking: the first time this counts what is there
            path.unlink()
            self._write_usage(max(0, used - size))

    def path_of(self, name: str) -> Path:
        """Where the object is, if it is here."""
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
        self.cleanups.append(time.monotonic())
        stored = sorted(self._scan(), key=lambda one: one.used)
        total = sum(one.blocks for one in stored)
        for one in stored:
            if total <= goal:
                break
            if not _pinned(one.path):
                with suppress(OSError):
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
        with suppress(OSError):  # a disk that is read-only, or full: it is counted anew when it is missing
            os.pwrite(self._lock_fd, _USAGE.pack(total), 0)


def _open(path: Path) -> int:
    """Open for reading so that only `touch` sets the access time: a look through the cache is no use of it."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


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
