# SPDX-License-Identifier: BSD-3-Clause
"""What a directory tree holds: names, kinds, attributes, in a fixed order and with flat memory.

Names, targets and attributes are bytes.  One directory at a time is in memory.  A name that cannot be published is a
Mistake that says which.  Thread rule: one walk belongs to one thread.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from ..errors import CvmfsProblem, Mistake
from .objects import Content

MARKER: Final = b".cvmfscatalog"
"""A regular file of this name makes its directory the root of a nested catalog."""
DIRTAB: Final = b".cvmfsdirtab"
MAX_NAME: Final = 255
MAX_ATTRIBUTE: Final = 255
"""Bytes of an attribute's name, bytes of its value, and number of attributes: each is one byte in the format."""
_ATTRIBUTE_SPACES: Final = (b"user.", b"security.capability", b"system.posix_acl_")
"""Labels of security modules and `trusted.` are about the publishing machine, not about the content."""
_NO_ATTRIBUTES: Final = {errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.EACCES}


class Status(Protocol):
    """What of stat(2) is published: os.stat_result, or what an archive or an older revision says."""

    @property
    def st_mode(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...
    @property
    def st_uid(self) -> int: ...
    @property
    def st_gid(self) -> int: ...
    @property
    def st_rdev(self) -> int: ...
    @property
    def st_dev(self) -> int: ...
    @property
    def st_ino(self) -> int: ...
    @property
    def st_nlink(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Told:
    """A status that no file system gave.  Names with one `st_dev` and `st_ino` are hard links."""

    st_mode: int
    st_size: int
    st_mtime_ns: int
    st_uid: int = 0
    st_gid: int = 0
    st_rdev: int = 0
    st_dev: int = -1
    st_ino: int = 0
    st_nlink: int = 1


@dataclass(frozen=True, slots=True)
class Kept:
    """A file of an older revision: its flags, its hash if it has one, and offset, size and hash of its chunks."""

    flags: int
    digest: bytes | None
    chunks: tuple[tuple[int, int, bytes], ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One name.  `path` is inside the repository: `b""` for the root, else `b"/a/b"`."""

    path: bytes
    status: Status
    target: bytes = b""
    """Of a symbolic link, as stored."""
    attributes: dict[bytes, bytes] = field(default_factory=dict)
    content: Content | Kept | None = None
    """Of a file whose objects are stored already."""

    @property
    def name(self) -> bytes:
        """Last component; empty for the root."""
        return self.path.rpartition(b"/")[2]

    @property
    def is_directory(self) -> bool:
        """Whether it holds other names."""
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_file(self) -> bool:
        """Whether it has content."""
        return stat.S_ISREG(self.status.st_mode)

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.status.st_mode)


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory and what stands in it, sorted by name."""

    entry: Entry
    entries: tuple[Entry, ...]

    @property
    def has_marker(self) -> bool:
        """Whether its owner asks for a nested catalog."""
        return any(entry.name == MARKER and entry.is_file for entry in self.entries)

    @property
    def link_count(self) -> int:
        """Number of sub-directories and two, counted here: not all file systems say it in `st_nlink`."""
        return 2 + sum(entry.is_directory for entry in self.entries)


@dataclass(frozen=True, slots=True)
class Left:
    """Everything below the directory `path` has been shown."""

    path: bytes


def walk(tree: bytes) -> Iterator[Directory | Left]:
    """Show every directory below `tree`, itself first, each before what is in it.

    Raises Mistake, CvmfsProblem.
    """
    root = _entry(tree, b"")
    if not root.is_directory:
        raise Mistake(f"{os.fsdecode(tree)}: is not a directory")
    first = _directory(tree, root)
    yield first
    stack = [(first, iter(first.entries))]
    while stack:
        directory, rest = stack[-1]
        below = next((entry for entry in rest if entry.is_directory), None)
        if below is None:
            stack.pop()
            yield Left(directory.entry.path)
        else:
            inner = _directory(tree, below)
            yield inner
            stack.append((inner, iter(inner.entries)))


def measure(tree: Path) -> tuple[int, int]:
    """Number of files and their bytes, for a progress display; what cannot be read is left to `walk`."""
    files = size = 0
    stack = [os.fsencode(tree)]
    while stack:
        try:
            with os.scandir(stack.pop()) as listing:
                for item in listing:
                    if item.is_dir(follow_symlinks=False):
                        stack.append(item.path)
                    elif item.is_file(follow_symlinks=False):
                        files += 1
                        size += item.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return files, size


def _directory(tree: bytes, entry: Entry) -> Directory:
    place = tree + entry.path
    try:
        with os.scandir(place) as listing:
            names = sorted(item.name for item in listing)
    except PermissionError:
        raise Mistake(f"{os.fsdecode(place)}: the directory cannot be read by this user") from None
    except OSError as error:
        raise CvmfsProblem(f"{os.fsdecode(place)}: {error.strerror} (while it was being published)") from error
    entries = tuple(_entry(tree, entry.path + b"/" + name) for name in names)
    for found in entries:
        if found.name == MARKER and not found.is_file:
            raise Mistake(f"{os.fsdecode(tree + found.path)}: must be a regular file, it marks a nested catalog")
    return Directory(entry, entries)


def _entry(tree: bytes, path: bytes) -> Entry:
    place = tree + path
    if len(path.rpartition(b"/")[2]) > MAX_NAME:
        raise Mistake(f"{os.fsdecode(place)}: the name is longer than {MAX_NAME} bytes")
    try:
        status = os.lstat(place)
        target = os.readlink(place) if stat.S_ISLNK(status.st_mode) else b""  # noqa: PTH115 - Path changes targets
        return Entry(path, status, target, _attributes(place))
    except PermissionError:
        raise Mistake(f"{os.fsdecode(place)}: cannot be read by this user") from None
    except OSError as error:
        raise CvmfsProblem(f"{os.fsdecode(place)}: {error.strerror} (while it was being published)") from error


def _attributes(place: bytes) -> dict[bytes, bytes]:
    try:
        names = [os.fsencode(name) for name in os.listxattr(place, follow_symlinks=False)]
        wanted = sorted(name for name in names if name.startswith(_ATTRIBUTE_SPACES))
        found = {name: os.getxattr(place, name, follow_symlinks=False) for name in wanted}
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES or error.errno == errno.ENODATA:
            return {}
        raise
    for name, value in found.items():
        if len(name) > MAX_ATTRIBUTE or len(value) > MAX_ATTRIBUTE:
            raise Mistake(
                f"{os.fsdecode(place)}: the extended attribute {os.fsdecode(name)} is longer than "
                f"{MAX_ATTRIBUTE} bytes, which the format cannot hold"
            )
    if len(found) > MAX_ATTRIBUTE:
        raise Mistake(f"{os.fsdecode(place)}: has more than {MAX_ATTRIBUTE} extended attributes")
    return found
