# SPDX-License-Identifier: BSD-3-Clause
"""What changed between two revisions: names, kinds and sizes.

Both trees are walked together, directory by directory, and nested catalogs that are the same object are passed over:
the cost follows the catalogs that differ.  Reads only.  Thread rule: one comparison belongs to one thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import Malformed
from ..flags import HIDDEN
from ..hashes import ContentHash, path_hash
from .revisions import read_manifest
from .rows import NestedRow, Row, StoredRows, stored_rows
from .store import Store
from .tags import find_revision

_KINDS: Final = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo"}
_ASPECTS: Final = ("mode", "mtime", "mtimens", "uid", "gid", "xattr")


@dataclass(frozen=True)
class Difference:
    """One path that differs: `change` is added, removed or changed; kinds are empty where there is nothing."""

    path: str
    change: str
    old_kind: str
    new_kind: str
    old_size: int
    new_size: int
    what: tuple[str, ...] = ()
    """Of what changed: content, target, or columns."""


def compare_revisions(fqrn: str, storage: Path, old: str, new: str) -> Iterator[Difference]:
    """Walk from revision `old` to `new` (tags or numbers), in the order of the tree.

    Raises Mistake, NoRepository, CvmfsProblem.
    """
    store = Store(storage)
    manifest = read_manifest(store, fqrn)
    before, after = find_revision(store, manifest, old), find_revision(store, manifest, new)
    if before.root_hash == after.root_hash:
        return
    with ExitStack() as stack:
        sides = _Side.open(store, stack, before.root_hash), _Side.open(store, stack, after.root_hash)
        rows = tuple(side.rows.row(path_hash(b"")) for side in sides)
        if rows[0] is None or rows[1] is None:
            raise Malformed("a root catalog has no row for its root")
        yield from _same_name(b"", rows[0], rows[1])
        yield from _directories(store, sides[0], sides[1], b"")


@dataclass(frozen=True)
class _Side:
    """One revision at one place of the walk."""

    rows: StoredRows
    nested: dict[bytes, NestedRow]

    @classmethod
    def open(cls, store: Store, stack: ExitStack, content: ContentHash) -> _Side:
        rows = stack.enter_context(stored_rows(store, content))
        return cls(rows, rows.nested())

    def below(self, store: Store, stack: ExitStack, path: bytes) -> _Side:
        nested = self.nested.get(path)
        return self if nested is None else _Side.open(store, stack, nested.content)

    def names(self, path: bytes) -> dict[bytes, Row]:
        return {row.name: row for row in self.rows.children(path_hash(path)) if not row.flags & HIDDEN}


def _directories(store: Store, old: _Side, new: _Side, path: bytes) -> Iterator[Difference]:
    was, now = old.names(path), new.names(path)
    for name in sorted(was.keys() | now.keys()):
        place = path + b"/" + name
        before, after = was.get(name), now.get(name)
        if before is not None and after is not None and _is_directory(before) and _is_directory(after):
            yield from _same_name(place, before, after)
            if place in old.nested and old.nested.get(place) == new.nested.get(place):
                continue
            with ExitStack() as stack:
                yield from _directories(store, old.below(store, stack, place), new.below(store, stack, place), place)
        elif before is not None and after is not None and stat.S_IFMT(before.mode) == stat.S_IFMT(after.mode):
            yield from _same_name(place, before, after, (old, new))
        else:
            if before is not None:
                yield from _whole(store, old, place, before, removed=True)
            if after is not None:
                yield from _whole(store, new, place, after, removed=False)


def _same_name(path: bytes, before: Row, after: Row, sides: tuple[_Side, _Side] | None = None) -> Iterator[Difference]:
    what = [name for name in _ASPECTS if getattr(before, name) != getattr(after, name)]
    if sides is not None:
        contents = [
            (row.digest, row.size, side.rows.chunks(row.path) if row.digest is None else [])
            for side, row in zip(sides, (before, after), strict=True)
        ]
        if contents[0] != contents[1]:
            what.insert(0, "content")
        if before.target != after.target:
            what.insert(0, "target")
    if what:
        yield Difference(_shown(path), "changed", _kind(before), _kind(after), _size(before), _size(after), tuple(what))


def _whole(store: Store, side: _Side, path: bytes, row: Row, *, removed: bool) -> Iterator[Difference]:
    if removed:
        yield Difference(_shown(path), "removed", _kind(row), "", _size(row), 0)
    else:
        yield Difference(_shown(path), "added", "", _kind(row), 0, _size(row))
    if _is_directory(row):
        with ExitStack() as stack:
            inner = side.below(store, stack, path)
            for name, child in inner.names(path).items():
                yield from _whole(store, inner, path + b"/" + name, child, removed=removed)


def _is_directory(row: Row) -> bool:
    return stat.S_ISDIR(row.mode)


def _kind(row: Row) -> str:
    return _KINDS.get(stat.S_IFMT(row.mode), "special")


def _size(row: Row) -> int:
    return row.size if stat.S_ISREG(row.mode) or stat.S_ISLNK(row.mode) else 0


def _shown(path: bytes) -> str:
    """Printable: bytes that are not UTF-8 as \\xNN."""
    return os.fsencode(path or b"/").decode("utf-8", "backslashreplace")
