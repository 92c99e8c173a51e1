# SPDX-License-Identifier: BSD-3-Clause
"""What a repository looks like as a file system: inode numbers, attributes, listings, bytes.

Everything is keyed by inode number, as the kernel knows it (`inodes` says what a number stands for); no file handle
and no kernel interface appears here, so that any adapter fits.

Thread rule: every method may be called from any thread; those that can block on network or disk say so.  `_lock`
guards the inode table and the current tree and is never held while blocking; an answer that was computed from a tree
that is no longer current is computed again, so that after `switch` returns, the table knows every name that has to
be checked.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from . import flags, magic
from .catalog import MAX_NAME, Chunk, Entry
from .counters import Counter, Counters
from .errors import (
    CvmfsProblem,
    IsDirectory,
    NameTooLong,
    NoAttribute,
    NoEntry,
    NotDirectory,
    NotReadable,
    ObjectCorrupt,
)
from .inodes import ROOT, Inode, InodeTable, Node, identity, inode_of
from .objects import ObjectRef, Objects
from .prefetch import Prefetcher
from .shown import Attributes, Changes, Listed, Listing, Policy, Usage
from .symlinks import expand
from .tree import Located, Tree
from .xattrs import parse_xattrs

__all__ = ["Attributes", "Changes", "Listed", "Listing", "Policy", "Usage", "View"]
MAX_NEGATIVE: Final = 100_000
"""Names known not to exist that are remembered, to be taken back when a revision brings them."""
MAX_ENTRIES: Final = 2**48
"""More than any repository has, and a number that every interface to a kernel can carry."""


class View:
    """One mounted repository."""

    def __init__(
        self,
        tree: Tree,
        objects: Objects,
        policy: Policy,
        counters: Counters,
        ahead: Prefetcher | None = None,
    ) -> None:
        self.policy = policy
        self.counters = counters
        self.told: magic.Told = {}
        """What the mount's process tells about itself."""
        self._objects = objects
        self._ahead = ahead
        self._lock = threading.Lock()
        self._tree = tree
        self._absent: dict[tuple[Inode, bytes], bytes] = {}
        root = tree.find(b"")
        if root is None or not root.entry.is_directory:
            raise NotDirectory("the repository has no root directory")
        self._nodes = InodeTable(root)

    def close(self) -> None:
        """Fetch nothing ahead any more."""
        if self._ahead is not None:
            self._ahead.close()

    @property
    def tree(self) -> Tree:
        """The revision that is shown."""
        return self._tree

    def lookup(self, directory: Inode, name: bytes) -> Attributes:
        """Return the entry `name` of `directory` and count that the kernel knows it.  May block.

        Raises NoEntry, NameTooLong, NotDirectory.
        """
        self.counters.add(Counter.LOOKUPS)
        if len(name) > MAX_NAME:
            raise NameTooLong(f"{name[:20]!r}... has {len(name)} bytes, and names have at most {MAX_NAME}")
        parent = self._nodes[directory]
        if not parent.entry.is_directory:
            raise NotDirectory(f"{parent.path!r} is not a directory")
        path = _step(parent.path, name)
        while True:
            tree = self._tree
            located = tree.find(path)
            with self._lock:
                if tree is not self._tree:
                    continue
                if located is None:
                    if len(self._absent) < MAX_NEGATIVE:
                        self._absent[directory, name] = path
                    raise NoEntry(f"{path!r} does not exist")
                node = self._nodes.register(directory, path, located, inode_of(path, located.entry))
            return self._attributes(node.inode, node.entry)

    def remembers_absent(self, directory: Inode, name: bytes) -> bool:
        """Whether a later `switch` will say so when this missing name appears."""
        with self._lock:
            return (directory, name) in self._absent

    def forget(self, inode: Inode, count: int) -> None:
        """The kernel gives back `count` lookups of `inode`."""
        with self._lock:
            self._nodes.forget(inode, count)

    def attributes(self, inode: Inode) -> Attributes:
        """Return the attributes of a known inode.  Raises NoEntry."""
        return self._attributes(inode, self._nodes[inode].entry)

    def name_of(self, inode: Inode) -> str:
        """The path of a known inode below the repository's name, for messages."""
        try:
            path = self._nodes[inode].path
        except NoEntry:
            path = b""
        return self._tree.manifest.fqrn + path.decode("utf-8", "backslashreplace")

    def list(self, directory: Inode) -> tuple[Listed, ...]:
        """Return the entries of `listing`."""
        return self.listing(directory).entries

    def listing(self, directory: Inode) -> Listing:
        """Return the whole listing.  May block.  Raises NotDirectory."""
        self.counters.add(Counter.LISTINGS)
        node = self._nodes[directory]
        if not node.entry.is_directory:
            raise NotDirectory(f"{node.path!r} is not a directory")
        tree, prefix = self._tree, node.path + b"/"
        entries = tuple(
            Listed(child.entry.name, inode_of(prefix + child.entry.name, child.entry), child.entry.mode, child)
            for child in tree.listing(node.path)
        )
        return Listing(tree, entries)

    def adopt(self, directory: Inode, listing: Listing, start: int, stop: int) -> Sequence[Attributes | None]:
        """Look up those entries of the directory's listing at once, as `lookup` would one by one.

        None stands for a name that a newer revision does not have.  May block.
        """
        path = self._nodes[directory].path + b"/"
        entries = listing.entries[start:stop]
        with self._lock:
            if listing.tree is self._tree:
                register = self._nodes.register
                nodes = [register(directory, path + one.name, one.located, one.inode) for one in entries]
                return [self._attributes(node.inode, node.entry) for node in nodes]
        return [self._lookup_or_none(directory, one.name) for one in entries]

    def _lookup_or_none(self, directory: Inode, name: bytes) -> Attributes | None:
        try:
            return self.lookup(directory, name)
        except NoEntry:
            return None

    def readlink(self, inode: Inode) -> bytes:
        """Return the target with its variables expanded.  Raises NotReadable."""
        node = self._nodes[inode]
        if not node.entry.is_symlink:
            raise NotReadable(f"{node.path!r} is not a symbolic link")
        return expand(node.entry.target, self.policy.variables)

    def open(self, inode: Inode) -> None:
        """Make sure that a file can be read: its object is here and right (chunked files: only that it is a file).

        May block.  Raises IsDirectory, NotReadable, ObjectCorrupt, Unreachable, ...
        """
        self.counters.add(Counter.OPENS)
        node = self._readable(inode)
        if not node.entry.flags & flags.CHUNKED and node.entry.size:
            self._objects.open(node.entry.object, missing=self._missing(node))

    def read(self, inode: Inode, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`, fewer only at the end of the file.  May block.  Raises like `open`."""
        self.counters.add(Counter.READS)
        node = self._readable(inode)
        size = max(0, min(size, node.entry.size - offset))
        if not size:
            return b""
        if node.entry.flags & flags.CHUNKED:
            data = self._read_chunks(node, offset, size)
        else:
            data = self._piece(node, None, node.entry.object, offset, size)
        if len(data) != size:
            raise ObjectCorrupt(f"the cache gives {len(data)} bytes of {node.path!r} where {size} are wanted")
        self.counters.add(Counter.BYTES_READ, len(data))
        return data

    def xattr(self, inode: Inode, name: bytes, group: int = 0) -> bytes:
        """Return an extended attribute for a process of that group: stored in the catalog, else computed.

        May block.  Raises NoAttribute.
        """
        node = self._nodes[inode]
        stored = parse_xattrs(node.entry.xattrs).get(name)
        if stored is not None:
            return stored
        if not self.policy.protection.permits(name, group):
            raise NoAttribute(f"{name!r} is not for group {group}")
        chunks = self._chunks_of(node)
        about = magic.Subject(
            *(self._tree, node.entry, node.catalog, chunks, self.counters, self.told, node.path), self._is_cached
        )
        made = magic.value(name, about)
        if made is None:
            raise NoAttribute(f"{node.path!r} has no attribute {name!r}")
        return made

    def xattr_names(self, inode: Inode) -> tuple[bytes, ...]:
        """Return the names of the stored attributes, and of the computed ones where the policy lists them."""
        node = self._nodes[inode]
        stored = parse_xattrs(node.entry.xattrs)
        if not self.policy.list_magic.lists(is_root=inode == ROOT):
            return tuple(stored)
        return tuple(dict.fromkeys((*stored, *magic.names(node.entry, self.told))))

    def _is_cached(self, entry: Entry) -> bool:
        return self._objects.cache.open(entry.object.cache_name) is not None

    def highest_inode(self) -> int:
        """The highest number that the kernel knows now."""
        with self._lock:
            return max(node.inode for node in self._nodes.nodes())

    def usage(self) -> Usage:
        """Return the figures of statfs(2)."""
        counts = self._tree.root.statistics()
        kinds = ("regular", "symlink", "special", "dir")
        entries = sum(counts.get(f"{where}_{kind}", 0) for where in ("self", "subtree") for kind in kinds)
        cache = self._objects.cache
        used = cache.used()
        total = used if cache.limit is None else cache.limit
        return Usage(total, max(0, total - used), min(max(0, entries), MAX_ENTRIES))

    def switch(self, tree: Tree) -> Changes:
        """Show `tree` from now on; files known before keep their content and attributes under their inodes.

        Returns what a kernel has to forget.  May block.
        """
        with self._lock:
            old, self._tree = self._tree, tree
            nodes = self._nodes.nodes()
            absent, self._absent = self._absent, {}
        names: list[tuple[Inode, bytes]] = []
        directories: list[Inode] = []
        for node in nodes:
            if self._renew(node, old, tree):
                directories.append(node.inode)
            with self._lock:
                known = tuple(node.names.items())
            names += [(parent, _last(path)) for path, parent in known if not _same(tree.find(path), path, node)]
        appeared = {key for key, path in absent.items() if tree.find(path) is not None}
        names += appeared
        with self._lock:
            self._absent = {key: path for key, path in absent.items() if key not in appeared} | self._absent
        return Changes(tuple(names), tuple(directories))

    def _renew(self, node: Node, old: Tree, tree: Tree) -> bool:
        """Tie a node that lives on to its row in `tree`; whether it is a directory that looks otherwise now.

        So that no catalog of an old revision stays open for what did not change.
        """
        located = tree.find(node.path)
        if located is None or not _same(located, node.path, node):
            return False
        changed = self._attributes(node.inode, located.entry) != self._attributes(node.inode, node.entry)
        if node.entry.is_directory and not changed:
            changed = not _list_alike(old, tree, node.path)
        with self._lock:
            node.entry, node.catalog = located.entry, located.catalog
        return changed

    def _readable(self, inode: Inode) -> Node:
        node = self._nodes[inode]
        if node.entry.is_directory:
            raise IsDirectory(f"{node.path!r} is a directory")
        if not node.entry.is_file:
            raise NotReadable(f"{node.path!r} is not a file")
        return node

    def _chunks_of(self, node: Node) -> tuple[Chunk, ...]:
        if node.chunks is None:
            node.chunks = node.catalog.chunks(node.entry) if node.entry.flags & flags.CHUNKED else ()
        return node.chunks

    def _read_chunks(self, node: Node, offset: int, size: int) -> bytes:
        chunks = self._chunks_of(node)
        at = bisect_right(chunks, offset, key=_offset) - 1
        pieces = []
        while size > 0:
            chunk = chunks[at]
            if offset == chunk.offset and self._ahead is not None:
                self._ahead.reads_chunk(chunks, at)
            piece = self._piece(node, at, chunk.object, offset - chunk.offset, size)
            pieces.append(piece)
            if not piece:
                break
            offset += len(piece)
            size -= len(piece)
            at += 1
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, node: Node, chunk: int | None, ref: ObjectRef, offset: int, size: int) -> bytes:
        known = self._objects.peek(ref) or self._objects.open(ref, missing=self._missing(node, chunk))
        return known.read(offset, size)

    def _missing(self, node: Node, chunk: int | None = None) -> Callable[[], None] | None:
        """What to do when an object of `node` has to be fetched: others will be wanted soon."""
        if self._ahead is None:
            return None
        if chunk is None:
            return partial(self._ahead.missed, self._tree, node.path, node.entry)
        return partial(self._ahead.missed_chunk, self._chunks_of(node), chunk)

    def _attributes(self, inode: Inode, entry: Entry) -> Attributes:
        uid, gid = self.policy.owner or (self.policy.users.shown(entry.uid), self.policy.groups.shown(entry.gid))
        mode, size, device = entry.mode, entry.size, 0
        if entry.is_symlink:
            size = len(expand(entry.target, self.policy.variables))
        elif not (entry.is_directory or entry.is_file):
            device, size = entry.size, 0
        if self.policy.world_readable and not entry.is_symlink:
            mode |= 0o555 if entry.is_directory else 0o444
        return Attributes(inode, mode, entry.links, uid, gid, size, entry.mtime_ns, device)


def _same(located: Located | None, path: bytes, node: Node) -> bool:
    return located is not None and identity(path, located.entry) == identity(node.path, node.entry)


def _list_alike(old: Tree, tree: Tree, path: bytes) -> bool:
    """Whether a directory of both has the same entries in both; False where that cannot be seen."""
    try:
        return tree.lists_like(old, path)
    except CvmfsProblem:
        return False


def _step(path: bytes, name: bytes) -> bytes:
    """The path of `name` in the directory `path`."""
    if name == b".":
        return path
    if name == b"..":
        return path.rpartition(b"/")[0]
    return path + b"/" + name


def _last(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


def _offset(chunk: Chunk) -> int:
    return chunk.offset
