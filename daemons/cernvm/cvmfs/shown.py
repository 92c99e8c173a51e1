# SPDX-License-Identifier: BSD-3-Clause
"""The words in which a view answers, and how a site wants entries to be shown.  Values only.

What they are made of stands in `view`; what becomes of them on the way to a kernel in the adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from . import magic
from .inodes import Inode
from .owners import OwnerMap
from .tree import Located, Tree


@dataclass(frozen=True)
class Policy:
    """How entries are shown."""

    owner: tuple[int, int] | None = None
    """(uid, gid) that everything belongs to; None: as in the catalogs, by way of `users` and `groups`."""
    users: OwnerMap = field(default_factory=OwnerMap)
    groups: OwnerMap = field(default_factory=OwnerMap)
    world_readable: bool = False
    variables: Mapping[bytes, bytes] = field(default_factory=dict)
    """For $(NAME) in symbolic links."""
    list_magic: magic.Visibility = magic.Visibility.ROOT_ONLY
    protection: magic.Protection = field(default_factory=magic.Protection)


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) shows.  Sizes in bytes, times in nanoseconds."""

    inode: Inode
    mode: int
    links: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    device: int = 0


class Listed(NamedTuple):
    """One name of a listing; `mode` has only meaning in its type bits."""

    name: bytes
    inode: Inode
    mode: int
    located: Located


class Listing(NamedTuple):
    """What a directory of one revision holds, without `.` and `..`, sorted by name."""

    tree: Tree
    entries: tuple[Listed, ...]


class Usage(NamedTuple):
    """What statfs(2) shows: bytes of the cache, entries of the repository."""

    total: int
    free: int
    entries: int


@dataclass(frozen=True)
class Changes:
    """What a kernel has to forget after a switch of revisions."""

    names: tuple[tuple[Inode, bytes], ...]
    """(directory, name) whose answer, found or not found, is no longer true."""
    directories: tuple[Inode, ...]
    """Directories whose attributes or listings changed."""
