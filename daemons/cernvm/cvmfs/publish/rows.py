# SPDX-License-Identifier: BSD-3-Clause
"""Stored catalogs as rows, for who keeps a repository: checks it, compares revisions, collects garbage, continues it.

Unlike `cvmfs.catalog`, which serves clients and refuses what is wrong, this shows the columns as they stand.  A
catalog is verified and unpacked into a temporary file outside of the storage: readers need neither lock nor leave.
A `StoredRows` belongs to one thread.  Format: docs/cvmfs-format.md, "Catalogs".
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from ..errors import Malformed
from ..hashes import ContentHash, Kind, PathHash, parse_hash
from .store import Store

_COLUMNS: Final = (
    *("md5path_1", "md5path_2", "parent_1", "parent_2", "hardlinks", "hash", "size", "mode", "mtime", "mtimens"),
    *("flags", "name", "symlink", "uid", "gid", "xattr"),
)


class Row(NamedTuple):
    """One entry: the columns of the table `catalog`."""

    path: PathHash
    parent: PathHash
    hardlinks: int
    digest: bytes | None
    size: int
    mode: int
    mtime: int
    mtimens: int
    flags: int
    name: bytes
    target: bytes
    uid: int
    gid: int
    xattr: bytes | None

    @property
    def group(self) -> int:
        """Number of its group of hard links within the catalog, 0 for none."""
        return self.hardlinks >> 32

    @property
    def links(self) -> int:
        """Link count."""
        return self.hardlinks & 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class NestedRow:
    """A line of `nested_catalogs`; `size` in bytes, 0 where the writer did not say."""

    content: ContentHash
    size: int


class StoredRows:
    """An open catalog."""

    def __init__(self, content: ContentHash, database: sqlite3.Connection, size: int) -> None:
        """Raises Malformed."""
        self.content = content
        self.size = size
        self._database = database
        present = {bytes(row[1]).decode("ascii", "replace") for row in self.query("PRAGMA table_info(catalog)")}
        if missing := set(_COLUMNS) - present - {"mtimens", "xattr"}:
            raise Malformed(f"catalog {content} has no column {', '.join(sorted(missing))}")
        columns = ", ".join(name if name in present else f"NULL AS {name}" for name in _COLUMNS)
        self._select = f"SELECT {columns} FROM catalog"
        self.properties = {_bytes(key): _bytes(value) for key, value in self.query("SELECT key, value FROM properties")}

    def query(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of a statement.  Raises Malformed."""
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise Malformed(f"catalog {self.content} cannot be read: {error}") from error

    def row(self, path: PathHash) -> Row | None:
        """The entry with this path.  Raises Malformed."""
        rows = self.query(f"{self._select} WHERE md5path_1 = ? AND md5path_2 = ?", tuple(path))
        return self._row(rows[0]) if rows else None

    def children(self, path: PathHash) -> list[Row]:
        """The entries of a directory by name, its own row not among them.  Raises Malformed."""
        rows = self.query(f"{self._select} WHERE parent_1 = ? AND parent_2 = ?", tuple(path))
        return sorted((row for row in map(self._row, rows) if row.path != path), key=lambda row: row.name)

    def chunks(self, path: PathHash) -> list[tuple[int, int, bytes]]:
        """Offset, size (bytes) and digest of a chunked file's pieces, by offset.  Raises Malformed."""
        statement = "SELECT offset, size, hash FROM chunks WHERE md5path_1 = ? AND md5path_2 = ? ORDER BY offset"
        return [(int(offset), int(size), _bytes(digest)) for offset, size, digest in self.query(statement, tuple(path))]

    def count(self, table: str) -> int:
        """Number of rows of a table.  Raises Malformed."""
        return int(self.query(f"SELECT count(*) FROM {table}")[0][0])

    def nested(self) -> dict[bytes, NestedRow]:
        """The nested catalogs by path.  Raises Malformed."""
        columns = {bytes(row[1]) for row in self.query("PRAGMA table_info(nested_catalogs)")}
        size = "size" if b"size" in columns else "0"
        rows = self.query(f"SELECT path, sha1, {size} FROM nested_catalogs")
        return {_bytes(path): NestedRow(parse_hash(_bytes(text)), int(length or 0)) for path, text, length in rows}

    def statistics(self) -> dict[str, int]:
        """The counters.  Raises Malformed."""
        rows = self.query("SELECT counter, value FROM statistics")
        return {_bytes(name).decode("ascii", "replace"): int(value) for name, value in rows}

    def previous(self) -> ContentHash | None:
        """The catalog that this one replaced.  Raises Malformed."""
        text = self.properties.get(b"previous_revision")
        return parse_hash(text) if text else None

    def revision(self) -> int:
        """Number of the catalog's revision, 0 where it does not say."""
        text = self.properties.get(b"revision", b"")
        return int(text) if text.isdigit() else 0

    def _row(self, values: tuple[Any, ...]) -> Row:
        one, two, up_one, up_two, hardlinks, digest, size, mode, mtime, mtimens, bits = values[:11]
        name, target, uid, gid, xattr = values[11:]
        try:
            return Row(
                PathHash(int(one), int(two)),
                PathHash(int(up_one), int(up_two)),
                int(hardlinks),
                None if digest is None else _bytes(digest),
                int(size),
                int(mode),
                int(mtime),
                int(mtimens or 0),
                int(bits),
                _bytes(name),
                _bytes(target),
                int(uid),
                int(gid),
                None if xattr is None else _bytes(xattr),
            )
        except (TypeError, ValueError) as error:
            raise Malformed(f"catalog {self.content} has an entry of wrong types: {error}") from error


@contextmanager
def stored_rows(store: Store, content: ContentHash, *, place: Path | None = None) -> Iterator[StoredRows]:
    """Verify and open a catalog; `place` is its file if not where objects are.  Raises CvmfsProblem."""
    with tempfile.NamedTemporaryFile(prefix="cvmfs-server-") as file:
        store.unpack(content, Kind.CATALOG, file, place=place)
        file.flush()
        size = file.tell()
        try:
            database = sqlite3.connect(f"file:{quote(file.name)}?mode=ro&immutable=1", uri=True)
        except sqlite3.Error as error:
            raise Malformed(f"catalog {content} cannot be opened: {error}") from error
        try:
            database.text_factory = bytes
            yield StoredRows(content, database, size)
        finally:
            database.close()


def _bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    return b"" if value is None else str(value).encode()
