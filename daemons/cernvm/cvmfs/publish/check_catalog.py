# SPDX-License-Identifier: BSD-3-Clause
"""One catalog held against the format: rows, link counts, chunks, markers and counters.

What is wrong is told, not raised, so that one look finds everything.  Memory grows with the depth of the tree and the
longest directory, not with the catalog.  Each check belongs to one thread.
Format: docs/cvmfs-format.md; what is checked: docs/cvmfs-publishing.md, "What check looks at".
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from .. import flags
from ..errors import Malformed
from ..hashes import DIGEST_SIZE, NO_PARENT, ContentHash, Kind, path_hash
from ..xattrs import parse_xattrs
from .catalogs import COUNTERS
from .rows import Row, StoredRows
from .scan import MARKER, MAX_NAME

_TYPES: Final = {
    flags.DIRECTORY: (stat.S_IFDIR,),
    flags.FILE: (stat.S_IFREG,),
    flags.FILE | flags.SYMLINK: (stat.S_IFLNK,),
    flags.FILE | flags.SPECIAL: (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK),
}
_SHARED: Final = ("hardlinks", "size", "mode", "mtime", "mtimens", "name", "uid", "gid", "xattr")
"""Columns that the two rows of a nested catalog's directory have in common."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An object that an entry refers to; `size` is that of the content, bytes."""

    content: ContentHash
    kind: Kind
    compression: flags.Compression
    size: int


Tell = Callable[[bytes, str], None]
"""Takes a path and what is wrong there."""


class CatalogCheck:
    """Looks at the catalog mounted at `prefix`; afterwards `own` has the counters and `mounts` the transition rows."""

    def __init__(self, rows: StoredRows, prefix: bytes, tell: Tell, want: Callable[[bytes, Wanted], None]) -> None:
        self.own: Counter[str] = Counter()
        self.mounts: dict[bytes, Row] = {}
        self._rows = rows
        self._prefix = prefix
        self._tell = tell
        self._want = want
        self._visited = 0
        self._chunks = 0
        self._groups: dict[int, bytes] = {}

    def run(self, above: Row | None) -> None:
        """Look at everything; `above` is the parent catalog's row of the directory.  Raises Malformed."""
        self._properties()
        root = self._rows.row(path_hash(self._prefix))
        if root is None:
            self._tell(self._prefix, "the catalog has no row for its own root")
            return
        self._root(root, above)
        self._visit(self._prefix, root)
        pending = [iter(self._directory(self._prefix, root))]
        while pending:  # a stack of its own: trees may be deeper than Python's
            below = next(pending[-1], None)
            if below is None:
                pending.pop()
            else:
                pending.append(iter(self._directory(*below)))
        if (total := self._rows.count("catalog")) != self._visited:
            self._tell(self._prefix, f"{total - self._visited} rows cannot be reached from the catalog's root")
        if (total := self._rows.count("chunks")) != self._chunks:
            self._tell(self._prefix, f"{total - self._chunks} chunks belong to no chunked file")

    def _properties(self) -> None:
        properties = self._rows.properties
        if properties.get(b"schema", b"").rstrip(b"0") not in (b"2.4", b"2.5"):
            self._tell(self._prefix, f"the catalog's schema is {properties.get(b'schema', b'')!r}, not 2.5")
        if properties.get(b"root_prefix", b"") != self._prefix:
            self._tell(self._prefix, f"the catalog says that it belongs to {properties.get(b'root_prefix', b'')!r}")

    def _root(self, root: Row, above: Row | None) -> None:
        parent = path_hash(self._prefix.rpartition(b"/")[0]) if self._prefix else NO_PARENT
        if root.parent != parent:
            self._tell(self._prefix, "the root's row names another directory as its parent")
        if not root.flags & flags.DIRECTORY:
            self._tell(self._prefix, "the catalog's root is not a directory")
        if bool(root.flags & flags.NESTED_ROOT) != bool(self._prefix):
            self._tell(self._prefix, "the mark of a nested catalog's root is wrong")
        if above is not None:
            differ = [name for name in _SHARED if getattr(root, name) != getattr(above, name)]
            if differ:
                self._tell(self._prefix, f"the rows in the catalogs above and below differ in {', '.join(differ)}")
        if self._prefix:
            marker = self._rows.row(path_hash(self._prefix + b"/" + MARKER))
            if marker is None or not stat.S_ISREG(marker.mode):
                self._tell(self._prefix, "a nested catalog has no file .cvmfscatalog at its root")

    def _directory(self, path: bytes, row: Row) -> Iterator[tuple[bytes, Row]]:
        """Look at what stands in a directory; give its sub-directories that this catalog lists."""
        names = self._rows.children(row.path)
        directories = 0
        groups: dict[int, list[Row]] = {}
        for child in names:
            directories += bool(child.flags & flags.DIRECTORY)
            place = path + b"/" + child.name
            if path_hash(place) != child.path:
                self._tell(place, "the row's hash is not that of its path")
                continue
            if not child.name or len(child.name) > MAX_NAME or b"/" in child.name or child.name in (b".", b".."):
                self._tell(place, "the name is impossible")
            self._visit(place, child)
            if child.group and not child.flags & flags.DIRECTORY:
                groups.setdefault(child.group, []).append(child)
            if child.flags & flags.DIRECTORY and place not in self.mounts:
                yield place, child
        if row.links != directories + 2:
            self._tell(path, f"has {directories} sub-directories, but the link count {row.links}")
        for group, members in groups.items():
            self._links(path, group, members)

    def _links(self, path: bytes, group: int, members: list[Row]) -> None:
        if self._groups.setdefault(group, path) != path:
            self._tell(path, f"the group of hard links {group} reaches into another directory")
        if any(member.links != len(members) for member in members):
            self._tell(path + b"/" + members[0].name, f"has {len(members)} hard links, but another link count")
        if len({(member.digest, member.size, member.mode, member.flags) for member in members}) > 1:
            self._tell(path + b"/" + members[0].name, "its hard links have different content")

    def _visit(self, path: bytes, row: Row) -> None:
        self._visited += 1
        types = _TYPES.get(row.flags & (flags.DIRECTORY | flags.FILE | flags.SYMLINK | flags.SPECIAL))
        if types is None or stat.S_IFMT(row.mode) not in types:
            self._tell(path, f"mode {row.mode:o} and flags {row.flags} name different kinds of entry")
            return
        self._attributes(path, row)
        if row.flags & flags.DIRECTORY:
            self.own["dir"] += 1
            if row.flags & flags.NESTED_MOUNTPOINT and path != self._prefix:
                self.own["nested"] += 1
                self.mounts[path] = row
            elif row.flags & flags.BIND_MOUNTPOINT:
                self.mounts[path] = row
            if row.flags & flags.NESTED_ROOT and path != self._prefix:
                self._tell(path, "is marked as the root of a catalog, but lies inside one")
            return
        if not row.group and row.links != 1:
            self._tell(path, f"has the link count {row.links}, but belongs to no group of hard links")
        if row.flags & flags.SYMLINK:
            self.own["symlink"] += 1
            if row.size != len(row.target) or not row.target:
                self._tell(path, f"the link's size is {row.size}, its target has {len(row.target)} bytes")
        elif row.flags & flags.SPECIAL:
            self.own["special"] += 1
        else:
            self._file(path, row)

    def _attributes(self, path: bytes, row: Row) -> None:
        if row.digest is not None and row.flags & (flags.DIRECTORY | flags.SYMLINK | flags.SPECIAL):
            self._tell(path, "has a content hash although it is no file")
        if row.xattr is None:
            return
        self.own["xattr"] += 1
        try:
            names = list(parse_xattrs(row.xattr))
        except Malformed as error:
            self._tell(path, str(error))
            return
        if names != sorted(names) or len(names) != row.xattr[1]:
            self._tell(path, "its extended attributes are not sorted")

    def _file(self, path: bytes, row: Row) -> None:
        external = bool(row.flags & flags.EXTERNAL)
        self.own.update(regular=1, file_size=row.size)
        if external:
            self.own.update(external=1, external_file_size=row.size)
        try:
            algorithm, compression = flags.algorithm_of(row.flags), flags.compression_of(row.flags)
        except Malformed as error:
            self._tell(path, str(error))
            return
        if row.flags & flags.CHUNKED:
            self._chunked(path, row)
        elif row.digest is None or len(row.digest) != DIGEST_SIZE:
            self._tell(path, "the file has no content hash")
        elif row.size < 0:
            self._tell(path, f"the file's size is {row.size}")
        elif not external:
            self._want(path, Wanted(ContentHash(row.digest, algorithm), Kind.FILE, compression, row.size))

    def _chunked(self, path: bytes, row: Row) -> None:
        algorithm, compression = flags.algorithm_of(row.flags), flags.compression_of(row.flags)
        external = bool(row.flags & flags.EXTERNAL)
        reached = 0
        chunks = self._rows.chunks(row.path)
        self._chunks += len(chunks)
        self.own.update(chunked=1, chunked_size=row.size, chunks=len(chunks))
        for offset, size, digest in chunks:
            if offset != reached or size <= 0:
                self._tell(path, f"the chunk at {offset} does not begin where the one before ends ({reached})")
            if len(digest) != DIGEST_SIZE:
                self._tell(path, f"the chunk at {offset} has no content hash")
            elif not external:
                self._want(path, Wanted(ContentHash(digest, algorithm), Kind.CHUNK, compression, size))
            reached = offset + size
        if reached != row.size:
            self._tell(path, f"its chunks have {reached} bytes together, the file has {row.size}")
        if row.digest is not None and len(row.digest) == DIGEST_SIZE and not external:
            self._want(path, Wanted(ContentHash(row.digest, algorithm), Kind.FILE, compression, row.size))


def compare_counters(said: dict[str, int], own: Counter[str], below: Counter[str]) -> Iterator[str]:
    """Say which of a catalog's counters are not the recounted ones."""
    for scope, counted in (("self", own), ("subtree", below)):
        for name in COUNTERS:
            value = said.get(f"{scope}_{name}", 0)
            if value != counted[name]:
                yield f"the counter {scope}_{name} is {value}, counted were {counted[name]}"
