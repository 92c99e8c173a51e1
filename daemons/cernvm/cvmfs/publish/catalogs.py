# SPDX-License-Identifier: BSD-3-Clause
"""One catalog on its way: an SQLite file with the rows of a part of the tree, and its counters.

Schema 2.5, revision 7.  The file is scratch until it is stored as an object, so nothing here is journalled or synced.
A `CatalogWriter` belongs to one thread.
Format: docs/cvmfs-publishing.md, "Catalogs"; checked from outside by tests/real/test_publish_verified.py.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISBLK, S_ISCHR
from typing import Final

from .. import flags
from ..hashes import NO_PARENT, Algorithm, ContentHash, PathHash, path_hash
from .objects import Content
from .scan import Entry, Kept

COUNTERS: Final = (
    "regular",
    "symlink",
    "special",
    "dir",
    "nested",
    "chunked",
    "chunks",
    "file_size",
    "chunked_size",
    "xattr",
    "external",
    "external_file_size",
)
_TABLES: Final = """
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE catalog (md5path_1 INTEGER, md5path_2 INTEGER, parent_1 INTEGER, parent_2 INTEGER,
    hardlinks INTEGER, hash BLOB, size INTEGER, mode INTEGER, mtime INTEGER, mtimens INTEGER, flags INTEGER,
    name TEXT, symlink TEXT, uid INTEGER, gid INTEGER, xattr BLOB,
    CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2));
CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2);
CREATE TABLE chunks (md5path_1 INTEGER, md5path_2 INTEGER, offset INTEGER, size INTEGER, hash BLOB,
    CONSTRAINT pk_chunks PRIMARY KEY (md5path_1, md5path_2, offset, size),
    FOREIGN KEY (md5path_1, md5path_2) REFERENCES catalog (md5path_1, md5path_2));
CREATE TABLE nested_catalogs (path TEXT, sha1 TEXT, size INTEGER,
    CONSTRAINT pk_nested_catalogs PRIMARY KEY (path));
CREATE TABLE bind_mountpoints (path TEXT, sha1 TEXT, size INTEGER,
    CONSTRAINT pk_bind_mountpoints PRIMARY KEY (path));
CREATE TABLE statistics (counter TEXT, value INTEGER, CONSTRAINT pk_statistics PRIMARY KEY (counter));
"""
# Names and targets are bytes of any encoding: CAST gives them the storage class TEXT without decoding.
_VALUES: Final = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?)"
_BATCH: Final = 100
"""Rows that one statement inserts: SQLite gives up the interpreter lock for each, and the workers are eager."""
_NANO: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class StoredCatalog:
    """A catalog that is an object; `size` is that of the database file, bytes."""

    content: ContentHash
    size: int


class CatalogWriter:
    """The catalog mounted at `prefix` (`b""` for the root catalog)."""

    def __init__(self, file: Path, prefix: bytes, algorithm: Algorithm) -> None:
        self.file = file
        self.prefix = prefix
        self.own: Counter[str] = Counter()
        self.below: Counter[str] = Counter()
        self._algorithm = algorithm
        self._groups = 0
        self._parent = (b"", path_hash(b""))
        self._rows: list[tuple[object, ...]] = []
        self._database = sqlite3.connect(file, isolation_level=None)
        for pragma in ("page_size = 1024", "journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE"):
            self._database.execute(f"PRAGMA {pragma}").fetchall()
        self._database.executescript(_TABLES)
        self._database.execute("BEGIN")

    def close(self) -> None:
        """Close the file; nothing more can be added."""
        self._database.close()

    def new_group(self) -> int:
        """A number for a group of hard links."""
        self._groups += 1
        return self._groups

    def add_directory(self, entry: Entry, link_count: int, role: int = 0) -> None:
        """Add a directory; `role` is 0 or one of the two flags of a nested catalog's transition."""
        self.own["dir"] += 1
        self.own["nested"] += role == flags.NESTED_MOUNTPOINT
        self._insert(entry, flags.DIRECTORY | role, link_count, None, entry.status.st_size)

    def add_other(self, entry: Entry, hardlinks: int = 1) -> None:
        """Add a symbolic link, fifo, socket or device.  `hardlinks` as in the format: group << 32 | count."""
        if entry.is_link:
            self.own["symlink"] += 1
            self._insert(entry, flags.FILE | flags.SYMLINK, hardlinks, None, len(entry.target))
        else:
            self.own["special"] += 1
            mode = entry.status.st_mode
            device = entry.status.st_rdev if S_ISBLK(mode) or S_ISCHR(mode) else 0
            self._insert(entry, flags.FILE | flags.SPECIAL, hardlinks, None, device)

    def add_file(self, entry: Entry, content: Content, hardlinks: int = 1) -> None:
        """Add a regular file whose objects are stored."""
        bits = flags.FILE | flags.storage_bits(self._algorithm, flags.Compression.ZLIB)
        self.own["regular"] += 1
        self.own["file_size"] += content.size
        if not content.chunked:
            self._insert(entry, bits, hardlinks, content.pieces[0].content.digest, content.size)
            return
        self.own["chunked"] += 1
        self.own["chunked_size"] += content.size
        self.own["chunks"] += len(content.pieces)
        self._insert(entry, bits | flags.CHUNKED, hardlinks, None, content.size)
        path = path_hash(entry.path)
        self._database.executemany(
            "INSERT INTO chunks VALUES (?, ?, ?, ?, ?)",
            [(*path, piece.offset, piece.size, piece.content.digest) for piece in content.pieces],
        )

    def add_kept(self, entry: Entry, kept: Kept, hardlinks: int = 1) -> None:
        """Add a regular file as an older revision has it."""
        size = entry.status.st_size
        self.own.update(regular=1, file_size=size)
        if kept.flags & flags.EXTERNAL:
            self.own.update(external=1, external_file_size=size)
        if kept.flags & flags.CHUNKED:
            self.own.update(chunked=1, chunked_size=size, chunks=len(kept.chunks))
            path = path_hash(entry.path)
            self._database.executemany(
                "INSERT INTO chunks VALUES (?, ?, ?, ?, ?)", [(*path, *chunk) for chunk in kept.chunks]
            )
        self._insert(entry, kept.flags, hardlinks, kept.digest, size)

    def add_nested(self, path: bytes, stored: StoredCatalog, counters: Counter[str]) -> None:
        """Refer to the finished catalog mounted at `path`; `counters` are all of its and of those below it."""
        self.below.update(counters)
        self._database.execute(
            "INSERT INTO nested_catalogs VALUES (CAST(? AS TEXT), ?, ?)", (path, str(stored.content), stored.size)
        )

    def equals(self, other: Path) -> bool:
        """Whether the catalog in the file `other` has the same rows, chunks and nested catalogs."""
        self._flush()
        self._database.execute("COMMIT")
        self._database.execute("ATTACH ? AS other", (str(other),))
        try:
            return all(self._same(table) for table in ("catalog", "chunks", "nested_catalogs"))
        except sqlite3.OperationalError:
            return False  # an older revision of the schema lacks a column: not the same
        finally:
            self._database.execute("DETACH other")
            self._database.execute("BEGIN")

    def _same(self, table: str) -> bool:
        columns = ", ".join(row[1] for row in self._database.execute(f"PRAGMA main.table_info({table})"))
        counts = [
            self._database.execute(f"SELECT count(*) FROM {db}.{table}").fetchone()[0] for db in ("main", "other")
        ]
        difference = f"SELECT {columns} FROM main.{table} EXCEPT SELECT {columns} FROM other.{table} LIMIT 1"
        return counts[0] == counts[1] and self._database.execute(difference).fetchone() is None

    def totals(self) -> Counter[str]:
        """Counters of this catalog and all below."""
        return self.own + self.below

    def finish(self, properties: Mapping[str, str | int]) -> int:
        """Write counters and properties and close; return the file's size in bytes."""
        self._flush()
        run = self._database.executemany
        for scope, counters in (("self", self.own), ("subtree", self.below)):
            run("INSERT INTO statistics VALUES (?, ?)", [(f"{scope}_{name}", counters[name]) for name in COUNTERS])
        if self.prefix:
            run("INSERT INTO properties VALUES ('root_prefix', CAST(? AS TEXT))", [(self.prefix,)])
        fixed = {"schema": "2.5", "schema_revision": "7"}
        run(
            "INSERT INTO properties VALUES (?, ?)",
            [(key, str(value)) for key, value in {**fixed, **properties}.items()],
        )
        self._database.execute("COMMIT")
        self._database.close()
        return self.file.stat().st_size

    def _insert(self, entry: Entry, bits: int, hardlinks: int, digest: bytes | None, size: int) -> None:
        status = entry.status
        parent = self._parent_of(entry.path)
        xattr = pack_attributes(entry.attributes)
        self.own["xattr"] += xattr is not None
        place = (*path_hash(entry.path), *parent)
        times = divmod(status.st_mtime_ns, _NANO)
        owner = (status.st_uid, status.st_gid)
        self._rows.append(
            (*place, hardlinks, digest, size, status.st_mode, *times, bits, entry.name, entry.target, *owner, xattr)
        )
        if len(self._rows) == _BATCH:
            self._flush()

    def _parent_of(self, path: bytes) -> PathHash:
        """The hash of the directory that `path` stands in; siblings come one after another."""
        if not path:
            return NO_PARENT
        directory = path.rpartition(b"/")[0]
        if directory != self._parent[0]:
            self._parent = (directory, path_hash(directory))
        return self._parent[1]

    def _flush(self) -> None:
        if self._rows:
            statement = "INSERT INTO catalog VALUES " + ", ".join([_VALUES] * len(self._rows))
            self._database.execute(statement, [value for row in self._rows for value in row])
            self._rows.clear()


def pack_attributes(attributes: Mapping[bytes, bytes]) -> bytes | None:
    """The column `xattr`: version 1, count, then lengths, name and value of each, names rising; None for none."""
    if not attributes:
        return None
    parts = [bytes((1, len(attributes)))]
    for name, value in sorted(attributes.items()):
        parts += [bytes((len(name), len(value))), name, value]
    return b"".join(parts)
