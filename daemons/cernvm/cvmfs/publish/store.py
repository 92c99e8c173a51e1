# SPDX-License-Identifier: BSD-3-Clause
"""The storage directory: what a web server serves, and one private folder for the publisher.

    data/00..ff/     objects, named by their hash; readable by all
    data/txn/        files that are being written
    .cvmfs*          the signed files and their helpers; readable by all
    publisher/       lock, checksum of the reflog, index of known content; mode 0700

An object appears whole under its name or not at all, and is never changed.  Objects are not put on the disk one by
one: a mark (`publisher/unfinished`) says that a writer was at work, `settle` puts everything on the disk at once
before the manifest.  Who finds the mark of another boot hashes the objects that are younger than it and removes what
a power failure has torn.  Thread-safe: `Incoming` belongs to one thread, all else may be shared.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import IO, BinaryIO, Final, Self

from cernvm.kit.errors import sentence
from cernvm.kit.files import write_atomically

from ..errors import CvmfsProblem, Malformed, Mistake, ObjectCorrupt
from ..hashes import Algorithm, ContentHash, Hasher, Kind, parse_hash
from .deflate import Compressor, zlib_stream

MANIFEST: Final = ".cvmfspublished"
WHITELIST: Final = ".cvmfswhitelist"
REFLOG: Final = ".cvmfsreflog"
MASTER_REPLICA: Final = ".cvmfs_master_replica"
CHECKSUM: Final = "publisher/reflog.chksum"
"""Hash of the reflog as text; it is not served, so that who reads it trusts this machine only."""
_SPILL: Final = 1 << 20
"""Bytes of one object that are kept in memory before a temporary file is opened."""
_SUFFIXES: Final = "".join(Kind)
_CLOCK_SLACK: Final = 60.0
"""Seconds by which the clock may have been set back while a writer was at work."""
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class Store:
    """One repository's storage on a local disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.private = root / "publisher"
        self._transactions = root / "data" / "txn"
        self._lock = threading.Lock()
        self._numbers = count()
        self.objects_new = 0
        self.bytes_new = 0

    @property
    def unfinished(self) -> bool:
        """Whether a writer is at work, or was killed at it."""
        return (self.private / "unfinished").exists()

    def lay_out(self) -> None:
        """Make the folders that are missing.  Raises Mistake."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / "data").mkdir(exist_ok=True)
            for name in [*(f"{number:02x}" for number in range(256)), "txn"]:
                path = self.root / "data" / name
                if not path.is_dir():
                    path.mkdir()
                    path.chmod(0o755)
            for path in (self.root, self.root / "data"):
                path.chmod(path.stat().st_mode | 0o555)
            self.private.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise Mistake(f"cannot write to the storage: {sentence(error)}") from error

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer; clean up after one that was killed.  Raises CvmfsProblem, Mistake."""
        self._require_writable()
        with self._exclusive():
            mark = self.private / "unfinished"
            boot = _BOOT.read_bytes() if _BOOT.exists() else b"unknown"
            if mark.exists() and (boot == b"unknown" or mark.read_bytes() != boot):
                self._remove_torn(mark.stat().st_mtime - _CLOCK_SLACK)
                mark.unlink()
            if not mark.exists():  # else its time still tells which objects may not be on the disk
                write_atomically(mark, boot)
            self._sweep()
            try:
                yield
            finally:
                self._sweep()
            mark.unlink()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        fd = os.open(self.private / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CvmfsProblem(f"{self.root}: another publisher is at work here; wait until it is done") from None
            yield
        finally:
            os.close(fd)

    def _require_writable(self) -> None:
        if (self.root / MANIFEST).exists() and os.access(self.root, os.W_OK | os.X_OK):
            self.lay_out()  # a repository that another server made has no private folder
        if not (self.root / "data" / "txn").is_dir() or not self.private.is_dir():
            raise Mistake(f"{self.root}: is not the storage of a repository; make one with 'cvmfs-server mkfs'")
        for path in (self.root, self._transactions, self.private):
            if not os.access(path, os.W_OK | os.X_OK):
                raise Mistake(f"{path}: is not writable for this user")

    def _sweep(self) -> None:
        for path in self._transactions.iterdir():
            path.unlink()

    def _remove_torn(self, since: float) -> None:
        """Remove the objects written after `since` (Unix seconds) that do not have the hash in their names."""
        for path in (self.root / "data").glob("[0-9a-f][0-9a-f]/*"):
            if path.stat().st_mtime >= since:
                content = parse_hash(path.parent.name + path.name.rstrip(_SUFFIXES))
                with path.open("rb") as file:
                    if _hash_file(file, content.algorithm) != content:
                        path.unlink()

    def settle(self) -> None:
        """Put everything that was written on the disk (syncfs(2))."""
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(self.root))
        finally:
            os.close(fd)

    def has(self, content: ContentHash, kind: Kind) -> bool:
        """Whether the object is there and need not be written again."""
        return (self.root / content.path(kind)).exists()

    def unpack(self, content: ContentHash, kind: Kind, target: IO[bytes], *, place: Path | None = None) -> None:
        """Verify an object and inflate it into `target`; `place` is its file if not where objects are.

        Raises CvmfsProblem.
        """
        path = place or self.root / content.path(kind)
        inflater = zlib.decompressobj()
        try:
            with path.open("rb") as file:
                if _hash_file(file, content.algorithm) != content:
                    raise ObjectCorrupt(f"{path}: the content does not have the hash in its name")
                file.seek(0)
                while block := file.read(_SPILL):
                    target.write(inflater.decompress(block))
            target.write(inflater.flush())
        except OSError as error:
            raise CvmfsProblem(f"cannot read an object of the last revision: {sentence(error)}") from error
        except zlib.error:
            raise Malformed(f"{path}: is not a zlib stream") from None

    def read(self, content: ContentHash, kind: Kind) -> bytes:
        """Verify an object that fits into memory and return its content.  Raises CvmfsProblem."""
        held = BytesIO()
        self.unpack(content, kind, held)
        return held.getvalue()

    def read_root(self, name: str) -> bytes | None:
        """The content of one of the files beside `data`, or None."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CvmfsProblem(sentence(error)) from error

    def write_root(self, name: str, data: bytes) -> None:
        """Replace one of the files beside `data`, atomically and durably.  Raises OSError."""
        write_atomically(self.root / name, data)

    def scratch(self, suffix: str) -> Path:
        """A new empty private file that goes away with the transaction (its writer is alone: numbers are names)."""
        path = self._transactions / f"{next(self._numbers)}{suffix}"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return path

    def incoming(self, algorithm: Algorithm, stream: Callable[[], Compressor] = zlib_stream) -> Incoming:
        """Begin to write an object; `stream` begins its compression."""
        return Incoming(self, algorithm, stream())

    def place(self, temporary: Path, content: ContentHash, kind: Kind) -> None:
        """Give a finished file its name, unless the object is there already.  Raises OSError."""
        target = self.root / content.path(kind)
        with self._lock:
            if self.has(content, kind):
                temporary.unlink()
                return
            self.objects_new += 1
            self.bytes_new += temporary.stat().st_size
            temporary.rename(target)

    def put(self, data: bytes, kind: Kind, algorithm: Algorithm) -> ContentHash:
        """Compress and store `data`.  Raises OSError."""
        with self.incoming(algorithm) as incoming:
            incoming.write(data)
            return incoming.finish(kind)

    def put_file(self, path: Path, kind: Kind, algorithm: Algorithm) -> ContentHash:
        """Compress and store the content of a file that nobody writes to.  Raises OSError."""
        with self.incoming(algorithm) as incoming, path.open("rb") as file:
            while block := file.read(_SPILL):
                incoming.write(block)
            return incoming.finish(kind)


class Incoming:
    """An object on its way: compressed and hashed as it comes; small ones see the disk only if they are new."""

    def __init__(self, store: Store, algorithm: Algorithm, compressor: Compressor) -> None:
        self._store = store
        self._hasher = Hasher(algorithm)
        self._compressor = compressor
        self._held: list[bytes] = []
        self._size = 0
        self._file: BinaryIO | None = None
        self._path: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop what is not finished."""
        if self._file is not None:
            self._file.close()
        if self._path is not None:
            with suppress(FileNotFoundError):
                self._path.unlink()

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the content.  Raises OSError."""
        self._keep(self._compressor.compress(data))

    def finish(self, kind: Kind) -> ContentHash:
        """End the content; the object is in the store when this returns.  Raises OSError."""
        self._keep(self._compressor.flush())
        content = self._hasher.finish()
        if self._file is None and self._store.has(content, kind):
            return content
        file, path = self._spill()
        os.fchmod(file.fileno(), 0o644)
        file.close()
        self._store.place(path, content, kind)
        self._path = None
        return content

    def _keep(self, stored: bytes) -> None:
        if not stored:
            return
        self._hasher.update(stored)
        self._held.append(stored)
        self._size += len(stored)
        if self._size > _SPILL:
            self._spill()

    def _spill(self) -> tuple[BinaryIO, Path]:
        if self._file is None or self._path is None:
            self._path = self._store.scratch(".object")
            self._file = self._path.open("wb")
        self._file.writelines(self._held)
        self._held.clear()
        self._size = _SPILL
        return self._file, self._path


def _hash_file(file: BinaryIO, algorithm: Algorithm) -> ContentHash:
    hasher = Hasher(algorithm)
    while block := file.read(_SPILL):
        hasher.update(block)
    return hasher.finish()
