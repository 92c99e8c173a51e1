# SPDX-License-Identifier: BSD-3-Clause
"""Archives as they stream by: tar (plain, gzip, bzip2, xz) and zip, which wheels are, become changes to a tree.

Nothing is unpacked to disk: content goes from the archive into objects.  Names that leave the place where the archive
is put, entries below something that is no directory, and archives that grow beyond a bound are refused.  Hard links
become copies of what they name, as in the original.  An `Unpacker` belongs to one thread; workers compress.
"""

from __future__ import annotations

import os
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import IO, Final

from ..errors import Mistake
from .merge import Node
from .objects import BLOCK, Content, Depositor
from .scan import MARKER, MAX_ATTRIBUTE, MAX_NAME, Entry, Told

HELD: Final = 4 << 20
"""Bytes of a file that is read into memory and compressed by a worker; larger ones stream."""
_WAITING: Final = 16
_XATTR: Final = "SCHILY.xattr."
_DEPTH: Final = 2000
_NANO: Final = 1_000_000_000


@dataclass(frozen=True)
class Bounds:
    """How much an archive may hold: entries, and bytes of all files."""

    entries: int = 10_000_000
    bytes: int = 1 << 40


@dataclass
class Unpacked:
    """What came out of an archive."""

    entries: int = 0
    bytes: int = 0


class Unpacker:
    """Puts the entries of archives below `base` (`b""` or `b"/a/b"`) of the changes `root`."""

    def __init__(
        self,
        root: Node,
        base: bytes,
        depositor: Depositor,
        pool: ThreadPoolExecutor,
        bounds: Bounds,
        on_files: Callable[[int], None],
    ) -> None:
        self._root = root
        self._base = base
        self._depositor = depositor
        self._pool = pool
        self._bounds = bounds
        self._on_files = on_files
        self._waiting: list[tuple[Node, Future[Content]]] = []
        self.done = Unpacked()

    def tar(self, file: IO[bytes], name: str) -> None:
        """Take in a tar archive that may be compressed; `name` is for errors.  Raises Mistake, OSError."""
        try:
            with tarfile.open(fileobj=file, mode="r|*", errorlevel=2) as archive:
                for member in archive:
                    self._member(archive, member)
        except (tarfile.TarError, EOFError) as error:
            raise Mistake(f"{name}: is not a whole tar archive: {error}") from error
        self._finish()

    def zip(self, file: IO[bytes], name: str) -> None:
        """Take in a zip archive or a wheel.  Raises Mistake, OSError."""
        try:
            with zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    self._zipped(archive, member)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise Mistake(f"{name}: is not a zip archive that can be read: {error}") from error
        self._finish()

    def _member(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = self._path(os.fsencode(member.name), member.name)
        self._count(member.size if member.isreg() else 0, member.name)
        if member.islnk():
            self._put_link(path, member)
            return
        kinds = {
            tarfile.DIRTYPE: stat.S_IFDIR,
            tarfile.SYMTYPE: stat.S_IFLNK,
            tarfile.FIFOTYPE: stat.S_IFIFO,
            tarfile.CHRTYPE: stat.S_IFCHR,
            tarfile.BLKTYPE: stat.S_IFBLK,
        }
        kind = stat.S_IFREG if member.isreg() else kinds.get(member.type)
        if kind is None:
            raise Mistake(f"{member.name}: is of a kind that a repository cannot hold (tar type {member.type!r})")
        device = os.makedev(member.devmajor, member.devminor) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        status = Told(
            st_mode=kind | (member.mode & 0o7777),
            st_size=4096 if kind == stat.S_IFDIR else member.size,
            st_mtime_ns=int(member.mtime * _NANO) if isinstance(member.mtime, float) else member.mtime * _NANO,
            st_uid=member.uid,
            st_gid=member.gid,
            st_rdev=device,
        )
        target = os.fsencode(member.linkname) if kind == stat.S_IFLNK else b""
        if kind == stat.S_IFLNK and not target:
            raise Mistake(f"{member.name}: is a symbolic link to nothing")
        entry = Entry(path, status, target, _attributes(member))
        content = archive.extractfile(member) if kind == stat.S_IFREG else None
        self._put(entry, content, member.size)

    def _zipped(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        path = self._path(member.filename.encode("utf-8", "surrogateescape"), member.filename)
        mode = member.external_attr >> 16
        self._count(member.file_size, member.filename)
        kind = stat.S_IFDIR if member.is_dir() else stat.S_IFMT(mode) or stat.S_IFREG
        if kind not in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK):
            raise Mistake(f"{member.filename}: is of a kind that an archive of files should not hold")
        permissions = stat.S_IMODE(mode) or (0o755 if kind == stat.S_IFDIR else 0o644)
        when = _zip_time(member.date_time)
        size = 4096 if kind == stat.S_IFDIR else member.file_size
        status = Told(kind | permissions, size, when)
        if kind == stat.S_IFLNK:
            with archive.open(member) as opened:
                self._put(Entry(path, status, opened.read(4096)), None, 0)
        elif kind == stat.S_IFDIR:
            self._put(Entry(path, status), None, 0)
        else:
            with archive.open(member) as opened:
                self._put(Entry(path, status), opened, member.file_size)

    def _count(self, size: int, name: str) -> None:
        self.done.entries += 1
        self.done.bytes += size
        if self.done.entries > self._bounds.entries or self.done.bytes > self._bounds.bytes:
            raise Mistake(
                f"{name}: with this the archive has more than {self._bounds.entries} entries or "
                f"{self._bounds.bytes} bytes; raise the bound if that is right"
            )

    def _path(self, name: bytes, shown: str) -> bytes:
        """Where an entry goes.  Raises Mistake for names that lead elsewhere."""
        parts = [part for part in name.split(b"/") if part not in (b"", b".")]
        if name.startswith(b"/") or b".." in parts or b"\0" in name:
            raise Mistake(f"{shown!r}: the name leads out of the archive's place; nothing was published")
        if len(parts) > _DEPTH or any(len(part) > MAX_NAME for part in parts):
            raise Mistake(f"{shown[:80]!r}...: the name is longer than the format allows")
        return self._base + b"".join(b"/" + part for part in parts)

    def _put(self, entry: Entry, content: IO[bytes] | None, size: int) -> None:
        if entry.name == MARKER and not entry.is_file:
            raise Mistake(f"{os.fsdecode(entry.path)}: must be a regular file, it marks a nested catalog")
        if entry.path == self._base:
            if entry.is_directory and self._base:
                self._root.at(entry.path).entry = entry
            return
        node = self._root.at(entry.path)
        if not entry.is_directory:
            node.children.clear()  # the archive's last word counts
        node.entry = entry
        if content is None:
            return
        if size <= HELD:
            data = content.read(size + 1)
            if len(data) != size:
                raise EOFError(f"{os.fsdecode(entry.path)} is not as long as the archive says")
            self._waiting.append((node, self._pool.submit(self._depositor.deposit_bytes, data)))
            if len(self._waiting) > _WAITING:
                self._take()
        else:
            self._done(node, self._depositor.deposit_stream(_exactly(content, size)))

    def _put_link(self, path: bytes, member: tarfile.TarInfo) -> None:
        """A hard link: a copy of the entry that it names."""
        while self._waiting:
            self._take()
        found = self._root.find(self._path(os.fsencode(member.linkname), member.linkname))
        if found is None or found.entry is None or found.entry.is_directory:
            raise Mistake(f"{member.name}: is a hard link to {member.linkname!r}, which the archive does not have")
        self._root.at(path).entry = replace(found.entry, path=path)
        self._on_files(1)

    def _take(self) -> None:
        node, future = self._waiting.pop(0)
        self._done(node, future.result())

    def _done(self, node: Node, content: Content) -> None:
        if node.entry is not None and node.entry.is_file:  # else a later entry of that name took its place
            node.entry = replace(node.entry, content=content)
        self._on_files(1)

    def _finish(self) -> None:
        while self._waiting:
            self._take()


def _exactly(file: IO[bytes], size: int) -> Iterator[bytes]:
    while size > 0:
        block = file.read(min(BLOCK, size))
        if not block:
            raise EOFError("the archive ends within a file")
        size -= len(block)
        yield block


def _zip_time(when: tuple[int, int, int, int, int, int]) -> int:
    """Nanoseconds of Unix time; zip archives tell local time, or nonsense."""
    try:
        return int(time.mktime((*when, 0, 0, -1))) * _NANO
    except (OverflowError, ValueError):
        return 0


def _attributes(member: tarfile.TarInfo) -> dict[bytes, bytes]:
    found = {}
    for key, value in member.pax_headers.items():
        if key.startswith(_XATTR):
            name, content = os.fsencode(key.removeprefix(_XATTR)), value.encode("utf-8", "surrogateescape")
            if not name.startswith((b"user.", b"security.capability")):
                continue
            if len(name) > MAX_ATTRIBUTE or len(content) > MAX_ATTRIBUTE:
                raise Mistake(f"{member.name}: the extended attribute {name!r} is longer than {MAX_ATTRIBUTE} bytes")
            found[name] = content
    return found
