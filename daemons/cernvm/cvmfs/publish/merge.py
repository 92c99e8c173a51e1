# SPDX-License-Identifier: BSD-3-Clause
"""A revision with changes: the last tree and what is put over it, walked as one.

Changes are a tree of `Node`s.  Nested catalogs that no change touches are carried over whole; the catalogs on the way
to a change are read row by row and written anew, so that markers may come and go.  Files keep the flags, hashes and
chunks of the row that they had.  Memory: the changes, and one directory for each level.
Thread rule: a `Merge` belongs to one thread.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count

from .. import flags
from ..errors import Malformed, Mistake, Unsupported
from ..hashes import ContentHash, path_hash
from ..xattrs import parse_xattrs
from .assemble import Untouched
from .catalogs import StoredCatalog
from .objects import Content
from .rows import NestedRow, Row, StoredRows, stored_rows
from .scan import Directory, Entry, Kept, Left, Told
from .store import Store

_NANO = 1_000_000_000


@dataclass(slots=True)
class Node:
    """What changes at one name: `entry` is put there, `removed` hides what was there, children are changes below."""

    entry: Entry | None = None
    removed: bool = False
    children: dict[bytes, Node] = field(default_factory=dict)

    def at(self, path: bytes) -> Node:
        """The node for `path` below this one (`b"/a/b"`), made if need be."""
        node = self
        for name in path.split(b"/")[1:]:
            node = node.children.setdefault(name, Node())
        return node

    def find(self, path: bytes) -> Node | None:
        """The node for `path`, if there is one."""
        node: Node | None = self
        for name in path.split(b"/")[1:]:
            node = node.children.get(name) if node is not None else None
        return node


@dataclass
class _Level:
    """A directory on the way: what is left of its sub-directories, each with its old row and its changes."""

    path: bytes
    below: Iterator[tuple[Entry, Row | None, Node | None]]
    side: _Side | None
    closing: ExitStack


@dataclass(frozen=True)
class _Side:
    """The catalog of the last revision that covers a directory; `number` tells it from others."""

    rows: StoredRows
    nested: dict[bytes, NestedRow]
    number: int


class Merge:
    """A source for the assembler."""

    def __init__(self, store: Store, last: ContentHash, changes: Node, now_ns: int) -> None:
        """`now_ns` (Unix time) is the time of directories that changes need but do not describe."""
        self._store = store
        self._last = last
        self._changes = changes
        self._now_ns = now_ns
        self._numbers = count(1)

    def deposit(self, entry: Entry) -> Content:
        """Every file's content is stored before the walk."""
        raise AssertionError(f"{entry.path!r} comes without content")

    def walk(self) -> Iterator[Directory | Left | Untouched]:
        """Every directory of the new revision.  Raises Mistake, CvmfsProblem."""
        with ExitStack() as everything:
            closing = everything.enter_context(ExitStack())
            side = self._open(closing, self._last)
            root = side.rows.row(path_hash(b""))
            if root is None:
                raise Malformed(f"catalog {self._last} has no row for its root")
            first, level = self._level(self._kept(b"", root, side), side, self._changes, closing)
            yield first
            levels = [level]
            while levels:
                step = next(levels[-1].below, None)
                if step is None:
                    done = levels.pop()
                    yield Left(done.path)
                    done.closing.close()
                    continue
                entry, row, node = step
                untouched = self._untouched(entry, row, node, levels[-1].side)
                if untouched is not None:
                    yield untouched
                    continue
                closing = everything.enter_context(ExitStack())
                directory, level = self._level(entry, self._below(entry, row, levels[-1].side, closing), node, closing)
                yield directory
                levels.append(level)

    def _open(self, closing: ExitStack, content: ContentHash) -> _Side:
        rows = closing.enter_context(stored_rows(self._store, content))
        return _Side(rows, rows.nested(), next(self._numbers))

    def _below(self, entry: Entry, row: Row | None, side: _Side | None, closing: ExitStack) -> _Side | None:
        if row is None or side is None:
            return None
        nested = side.nested.get(entry.path)
        return side if nested is None else self._open(closing, nested.content)

    def _untouched(self, entry: Entry, row: Row | None, node: Node | None, side: _Side | None) -> Untouched | None:
        nested = side.nested.get(entry.path) if side is not None else None
        if node is not None or row is None or nested is None:
            return None
        with stored_rows(self._store, nested.content) as rows:
            counters: Counter[str] = Counter()
            for name, value in rows.statistics().items():
                counters[name.partition("_")[2]] += value
            return Untouched(entry, row.links, StoredCatalog(nested.content, rows.size), counters)

    def _level(
        self, entry: Entry, side: _Side | None, node: Node | None, closing: ExitStack
    ) -> tuple[Directory, _Level]:
        old = {row.name: row for row in side.rows.children(path_hash(entry.path))} if side is not None else {}
        changes = node.children if node is not None else {}
        entries: list[Entry] = []
        below: list[tuple[Entry, Row | None, Node | None]] = []
        for name in sorted(old.keys() | changes.keys()):
            row, change = old.get(name), changes.get(name)
            made = self._merged(entry.path + b"/" + name, row, change, side)
            if made is None:
                continue
            entries.append(made)
            if made.is_directory:
                hidden = row is None or not stat.S_ISDIR(row.mode) or (change is not None and change.removed)
                below.append((made, None if hidden else row, change))
        return Directory(entry, tuple(entries)), _Level(entry.path, iter(below), side, closing)

    def _merged(self, path: bytes, row: Row | None, change: Node | None, side: _Side | None) -> Entry | None:
        if change is None:
            return self._kept(path, row, side) if row is not None and side is not None else None
        if change.entry is not None:
            if change.children and not change.entry.is_directory:
                raise Mistake(f"{os.fsdecode(path)}: is no directory, so nothing can be put below it")
            return change.entry
        if change.children:
            if row is None or side is None or change.removed:
                return Entry(path, Told(stat.S_IFDIR | 0o755, 4096, self._now_ns))
            if not stat.S_ISDIR(row.mode):
                raise Mistake(f"{os.fsdecode(path)}: is no directory, so nothing can be put below it")
        if change.removed or row is None or side is None:
            return None
        return self._kept(path, row, side)

    def _kept(self, path: bytes, row: Row, side: _Side) -> Entry:
        """The entry that a row of the last revision stands for."""
        if row.flags & (flags.BIND_MOUNTPOINT | flags.HIDDEN):
            raise Unsupported(f"{os.fsdecode(path)}: leads into another revision; such a repository cannot be edited")
        device = stat.S_ISCHR(row.mode) or stat.S_ISBLK(row.mode)
        status = Told(
            st_mode=row.mode,
            st_size=row.size,
            st_mtime_ns=row.mtime * _NANO + row.mtimens,
            st_uid=row.uid,
            st_gid=row.gid,
            st_rdev=row.size if device else 0,
            st_dev=-side.number,
            st_ino=row.group,
            st_nlink=row.links if row.group else 1,
        )
        attributes = parse_xattrs(row.xattr)
        if not stat.S_ISREG(row.mode):
            return Entry(path, status, row.target, attributes)
        chunks = tuple(side.rows.chunks(row.path)) if row.flags & flags.CHUNKED else ()
        return Entry(path, status, b"", attributes, Kept(row.flags, row.digest, chunks))


def find_row(store: Store, root: ContentHash, path: bytes) -> Row | None:
    """The row of `path` in the revision with this root catalog.  Raises CvmfsProblem."""
    content, reached = root, b""
    while True:
        with stored_rows(store, content) as rows:
            nested = rows.nested()
            inner = [mount for mount in nested if path.startswith(mount + b"/") and len(mount) > len(reached)]
            if not inner:
                return rows.row(path_hash(path))
        reached = min(inner, key=len)
        content = nested[reached].content
