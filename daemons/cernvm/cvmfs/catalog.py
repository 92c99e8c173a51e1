# SPDX-License-Identifier: BSD-3-Clause
"""One file catalog: an SQLite data base that lists the entries of a subtree.

Columns are selected by name, since their order and presence depend on the writer's age (schema 2.4 and 2.5, revisions
0 to 7).  All text is bytes.  One connection per catalog, used by one thread at a time (a lock); it reads through the
open descriptor, so that the cache may drop the file's name.  Format: docs/cvmfs-format.md, "Catalogs"; enforced by
tests/unit/test_cvmfs_catalog.py.
"""

from __future__ import annotations

import re
import sqlite3
import stat
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from . import flags
from .cache import OpenObject
from .errors import Malformed, Unsupported
from .hashes import DIGEST_SIZE, ContentHash, Kind, PathHash, parse_hash, path_hash
from .http import Span
from .objects import ObjectRef, Place

_SCHEMA: Final = r"2\.[45]0*"
MAX_NAME: Final = 255
_NANO: Final = 10**9
_WHOLE: Final = (
    *("md5path_1", "md5path_2", "parent_1", "parent_2", "hardlinks", "size", "mode", "mtime", "flags", "uid", "gid"),
)
"""Columns that hold whole numbers in every row."""
_COLUMNS: Final = (*_WHOLE, "mtimens", "hash", "name", "symlink", "xattr")
_CHUNKS: Final = "SELECT offset, size, hash FROM chunks WHERE md5path_1 = ? AND md5path_2 = ? ORDER BY offset"
_OPTIONAL: Final = frozenset({"mtimens", "xattr"})
_ONLY_WHOLE: Final = {int}
_LONGEST: Final = 1 << 20
"""Bytes of one value; the longest that the format has is an xattr column of 130 kB."""
_TICK: Final = 1_000_000
_MOST_TICKS: Final = 300
"""Instructions of SQLite for one question (some ten seconds): a schema can hide a computation without end."""
_KNOWN_TYPES: Final = frozenset(
    {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK}
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One row.  Names and targets are bytes; `mode` has the type bits; `mtime_ns` is Unix time in nanoseconds."""

    path_hash: PathHash
    parent: PathHash
    name: bytes
    mode: int
    size: int
    mtime_ns: int
    uid: int
    gid: int
    links: int
    link_group: int
    """0: no hard links; else the number of the group within this catalog."""
    flags: int
    content: ContentHash | None
    target: bytes
    """Of a symbolic link, as stored; variables are not expanded."""
    xattrs: bytes | None
    chunks_digest: bytes = b""
    """Of a chunked file: what tells its content from any other, as the hash does for others."""
    external: bytes | None = None
    """Of external data: its path below the external servers."""

    @property
    def is_directory(self) -> bool:
        """Whether it has a listing."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it has content to read."""
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """Whether it has a target."""
        return stat.S_ISLNK(self.mode)

    @property
    def object(self) -> ObjectRef:
        """The object with the whole content.  Raises Malformed if the row names none."""
        if self.content is None:
            raise Malformed(f"the catalog names no object for the file {self.name!r}")
        place = None if self.external is None else Place(self.external)
        return ObjectRef(self.content, Kind.FILE, flags.compression_of(self.flags), self.size, place)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a chunked file: `offset` bytes into it."""

    offset: int
    object: ObjectRef


@dataclass(frozen=True, slots=True)
class Nested:
    """A catalog below another."""

    content: ContentHash
    size: int | None
    """Bytes of the data base file, None where the writer did not say."""
    root: bytes | None = b""
    """The path that the catalog itself says it is for; None where any is right: another root catalog, bound here."""

    @property
    def object(self) -> ObjectRef:
        """The catalog's object."""
        return ObjectRef(self.content, Kind.CATALOG, flags.Compression.ZLIB, self.size)


class Catalog:
    """An open catalog; `prefix` is the path at which it is shown (b"" for the repository's root).

    That is the path which its rows were written for (`root`), except below a bind mountpoint: paths are translated.
    """

    def __init__(self, file: OpenObject, nested: Nested, prefix: bytes) -> None:
        """Open and check.  Raises Malformed or Unsupported."""
        self.content = nested.content
        self.prefix = prefix
        self._file = file
        self._lock = threading.Lock()
        self._ticks = 0
        try:
            self._connection = sqlite3.connect(
                f"file:/proc/self/fd/{file.fd}?mode=ro&immutable=1", uri=True, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise Malformed(f"catalog {self.content} cannot be opened: {error}") from error
        try:
            self._connection.text_factory = bytes
            self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
            self._connection.set_progress_handler(self._tick, _TICK)
            self._read_head(nested.root)
        except BaseException:
            self._connection.close()
            raise

    def __del__(self) -> None:
        connection = getattr(self, "_connection", None)
        if connection is not None:
            connection.close()

    def _tick(self) -> bool:
        self._ticks += 1
        return self._ticks > _MOST_TICKS

    def _read_head(self, root: bytes | None) -> None:
        self._query("PRAGMA trusted_schema=OFF")
        self.properties: Mapping[bytes, bytes] = {
            _as_bytes(key): _as_bytes(value) for key, value in self._query("SELECT key, value FROM properties")
        }
        schema = self.properties.get(b"schema", b"").decode("ascii", "replace")
        if not re.fullmatch(_SCHEMA, schema):
            raise Unsupported(f"catalog {self.content} has the schema {schema!r}; known are 2.4 and 2.5")
        self.root = self.properties.get(b"root_prefix", b"")
        if root is not None and self.root != root:
            raise Malformed(f"catalog {self.content} is not the one for {self.prefix!r}")
        present = self._columns_of("catalog")
        missing = [name for name in _COLUMNS if name not in present | _OPTIONAL]
        if missing:
            raise Malformed(f"catalog {self.content} has no column {', '.join(missing)}")
        self._columns = ", ".join(name if name in present else f"NULL AS {name}" for name in _COLUMNS)
        self.nested: Mapping[bytes, Nested] = self._read_nested()
        """What is mounted in it, by the path at which it is shown."""

    def _columns_of(self, table: str) -> set[str]:
        return {_as_bytes(row[1]).decode("ascii", "replace") for row in self._query(f"PRAGMA table_info({table})")}

    def _read_nested(self) -> dict[bytes, Nested]:
        found = {}
        for table in ("bind_mountpoints", "nested_catalogs"):
            columns = self._columns_of(table)
            if table == "bind_mountpoints" and (not columns or self.root != self.prefix):
                continue  # older than revision 4; or bound itself: a tree that holds itself would have no end
            size = "size" if "size" in columns else "NULL"
            for path, content, length in self._query(f"SELECT path, sha1, {size} FROM {table}"):
                path = _as_bytes(path)
                if not path.startswith(self.root + b"/"):
                    raise Malformed(f"catalog {self.content} mounts {path!r} outside of {self.root!r}")
                found[self.prefix + path[len(self.root) :]] = Nested(
                    parse_hash(_as_bytes(content)),
                    length if isinstance(length, int) and length > 0 else None,
                    path if table == "nested_catalogs" else None,
                )
        return found

    def _hash_of(self, path: bytes) -> PathHash:
        return path_hash(self.root + path[len(self.prefix) :])

    @property
    def ttl(self) -> int | None:
        """Seconds that the writer wants this revision to be trusted without asking again."""
        text = self.properties.get(b"TTL", b"")
        return int(text) if text.isdigit() and len(text) < 10 else None

    def find(self, path: bytes) -> Entry | None:
        """Return the entry with the path `path`, if this catalog has it.  Raises Malformed."""
        first, second = self._hash_of(path)
        rows = self._query(
            f"SELECT {self._columns} FROM catalog WHERE md5path_1 = ? AND md5path_2 = ?", (first, second)
        )
        return self._entry(rows[0], path.rpartition(b"/")[0]) if rows else None

    def children(self, path: bytes) -> list[Entry]:
        """Return the visible entries of the directory `path`, sorted by name.  Raises Malformed."""
        first, second = self._hash_of(path)
        rows = self._query(f"SELECT {self._columns} FROM catalog WHERE parent_1 = ? AND parent_2 = ?", (first, second))
        entries = [self._entry(row, path) for row in rows]
        visible = [entry for entry in entries if not entry.flags & flags.HIDDEN]
        for entry in visible:
            _check_name(entry.name)
        return sorted(visible, key=lambda entry: entry.name)

    def chunks(self, entry: Entry) -> tuple[Chunk, ...]:
        """Return the pieces of a chunked file, contiguous from 0.  Raises Malformed."""
        algorithm = flags.algorithm_of(entry.flags)
        compression = flags.compression_of(entry.flags)
        chunks = []
        reached = 0
        for offset, size, digest in self._query(_CHUNKS, tuple(entry.path_hash)):
            if offset != reached or not isinstance(size, int) or size <= 0:
                raise Malformed(f"catalog {self.content}: the chunks of {entry.name!r} do not follow one another")
            content = ContentHash(_as_bytes(digest), algorithm)
            place = None if entry.external is None else Place(entry.external, Span(offset, size))
            chunks.append(Chunk(offset, ObjectRef(content, Kind.CHUNK, compression, size, place)))
            reached += size
        if reached != entry.size:
            raise Malformed(f"catalog {self.content}: the chunks of {entry.name!r} do not make up its size")
        return tuple(chunks)

    def statistics(self) -> dict[str, int]:
        """The writer's counters (`self_regular`, `subtree_dir`, ...)."""
        if not self._columns_of("statistics"):
            return {}
        rows = self._query("SELECT counter, value FROM statistics")
        return {_as_bytes(name).decode("ascii", "replace"): value for name, value in rows if isinstance(value, int)}

    def _query(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                self._ticks = 0
                with closing(self._connection.execute(statement, values)) as cursor:
                    return cursor.fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the second: of a message that quotes the file
            raise Malformed(f"catalog {self.content} cannot be read: {error}") from error

    def _chunks_digest(self, first: int, second: int) -> bytes:
        return blake2b(repr(self._query(_CHUNKS, (first, second))).encode(), digest_size=DIGEST_SIZE).digest()

    def _entry(self, row: tuple[Any, ...], directory: bytes) -> Entry:
        whole = row[: len(_WHOLE)]
        (first, second, up_first, up_second, hardlinks, size, mode, mtime, bits, uid, gid) = whole
        (mtimens, digest, name, target, xattrs) = row[len(_WHOLE) :]
        if set(map(type, whole)) != _ONLY_WHOLE or mode & ~0xFFFF:
            raise Malformed(f"catalog {self.content} has an entry of wrong types: {name!r}")
        external = self.root + directory[len(self.prefix) :] + b"/" + _as_bytes(name) if bits & flags.EXTERNAL else None
        entry = Entry(
            path_hash=PathHash(first, second),
            parent=PathHash(up_first, up_second),
            name=_as_bytes(name),
            mode=mode,
            size=max(0, size),
            mtime_ns=mtime * _NANO + (mtimens if isinstance(mtimens, int) and 0 <= mtimens < _NANO else 0),
            uid=uid & 0xFFFFFFFF,
            gid=gid & 0xFFFFFFFF,
            links=max(1, hardlinks & 0xFFFFFFFF),
            link_group=hardlinks >> 32 & 0xFFFFFFFF,
            flags=bits,
            content=None if digest is None else ContentHash(_as_bytes(digest), flags.algorithm_of(bits)),
            target=_as_bytes(target),
            xattrs=None if xattrs is None else _as_bytes(xattrs),
            chunks_digest=self._chunks_digest(first, second) if bits & flags.CHUNKED else b"",
            external=external,
        )
        if stat.S_IFMT(mode) not in _KNOWN_TYPES or entry.is_directory != bool(bits & flags.DIRECTORY):
            raise Malformed(f"catalog {self.content}: the type of {entry.name!r} contradicts itself")
        return entry


def _as_bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if value is None:
        return b""
    return str(value).encode()


def _check_name(name: bytes) -> None:
    if not name or len(name) > MAX_NAME or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise Malformed(f"a catalog has an entry with the impossible name {name[:80]!r}")
