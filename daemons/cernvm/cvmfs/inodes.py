# SPDX-License-Identifier: BSD-3-Clause
"""Inode numbers, and which of them the kernel knows.

The number of anything but a directory is computed from its path (or hard link group) and its whole row: it stands for
ONE content and ONE set of attributes, for ever, also in later revisions and after a restart.  A directory's number is
computed from its path alone, so that who stands in it keeps standing there; its attributes may change.

The table is guarded by its owner's lock (`view.View`), except where a method says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, NewType

from .catalog import Catalog, Chunk, Entry
from .errors import NoEntry
from .tree import Located

Inode = NewType("Inode", int)
ROOT: Final = Inode(1)


@dataclass(slots=True)
class Node:
    """An inode that the kernel knows.  `names`: path -> the directory in which it was looked up."""

    inode: Inode
    path: bytes
    entry: Entry
    catalog: Catalog
    lookups: int = 0
    names: dict[bytes, Inode] = field(default_factory=dict)
    chunks: tuple[Chunk, ...] | None = None


class InodeTable:
    """The inodes that the kernel knows, from its first lookup of each to its last forget."""

    def __init__(self, root: Located) -> None:
        self._nodes = {ROOT: Node(ROOT, b"", root.entry, root.catalog, lookups=1)}

    def __getitem__(self, inode: Inode) -> Node:
        """The node; safe without the lock.  Raises NoEntry."""
        node = self._nodes.get(inode)
        if node is None:
            raise NoEntry(f"the inode {inode} is not known")
        return node

    def nodes(self) -> list[Node]:
        """All of them."""
        return list(self._nodes.values())

    def register(self, directory: Inode, path: bytes, located: Located, inode: Inode) -> Node:
        """Count one more lookup of an entry, whose `inode_of` is `inode`."""
        while True:
            node = self._nodes.get(inode)
            if node is None:
                node = self._nodes[inode] = Node(inode, path, located.entry, located.catalog)
                break
            if node.entry is located.entry or identity(node.path, node.entry) == identity(path, located.entry):
                break
            inode = Inode(inode + 1)  # two things share 63 bits of a hash
        node.lookups += 1
        node.names[path] = directory
        return node

    def forget(self, inode: Inode, count: int) -> None:
        """The kernel gives `count` lookups back."""
        node = self._nodes.get(inode)
        if node is None or inode == ROOT:
            return
        node.lookups -= count
        if node.lookups <= 0:
            del self._nodes[inode]


def inode_of(path: bytes, entry: Entry) -> Inode:
    """The inode number of an entry: 1 for the root, else 63 bits of a hash of what it stands for."""
    if not path:
        return ROOT
    digest = blake2b(repr(identity(path, entry)).encode(), digest_size=8).digest()
    return Inode(max(2, int.from_bytes(digest, "big") >> 1))


def identity(path: bytes, entry: Entry) -> tuple[object, ...]:
    """Two names are one inode exactly when these are equal."""
    if entry.is_directory:
        return (b"d", path)
    content = entry.content
    place = (path.rpartition(b"/")[0], entry.link_group) if entry.link_group else path
    return (
        *(place, entry.mode, entry.size, entry.mtime_ns, entry.uid, entry.gid, entry.links, entry.flags),
        *(content and (content.digest, content.algorithm.value), entry.chunks_digest, entry.target, entry.xattrs),
    )
