# SPDX-License-Identifier: BSD-3-Clause
"""Which content has been stored before, so that it is hashed once more but not compressed again.

A private SQLite file in the storage: SHA-256 of a file's content -> its pieces.  The key is the content itself, not a
path or a time, so that it cannot be out of date; whether the objects still exist is for the caller to ask.  It may be
lost or deleted at any time.  Entries become durable with `keep`, after the objects are.  Thread-safe: one lock.
"""

from __future__ import annotations

import sqlite3
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

RECIPE: Final = 2
"""Number of the way in which content becomes objects (engine, level, chunk sizes); another number forgets all."""
_BATCH: Final = 1000
_PIECE: Final = struct.Struct("<QQ20s")
_SCHEMA: Final = """
    CREATE TABLE IF NOT EXISTS seen
        (content BLOB PRIMARY KEY, size INTEGER NOT NULL, pieces BLOB NOT NULL) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS seen_size ON seen (size);
"""

Pieces = Sequence[tuple[int, int, bytes]]
"""Offset, size (bytes) and 20-byte digest of each piece."""


class Seen:
    """The open index; a context manager."""

    def __init__(self, path: Path) -> None:
        """Open or make it; what cannot be read is replaced by an empty one.  Raises OSError, sqlite3.Error."""
        self._lock = threading.Lock()
        self._new: dict[bytes, tuple[int, bytes]] = {}
        try:
            self._database = _open(path)
        except sqlite3.DatabaseError:
            for suffix in ("", "-journal"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            self._database = _open(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._database.rollback()
            self._database.close()

    def knows_size(self, size: int) -> bool:
        """Whether content of `size` bytes was stored by an earlier publication, so that hashing it may save much."""
        with self._lock:
            return self._database.execute("SELECT 1 FROM seen WHERE size = ? LIMIT 1", (size,)).fetchone() is not None

    def recall(self, content: bytes) -> Pieces | None:
        """The pieces of the content with this SHA-256."""
        with self._lock:
            new = self._new.get(content)
            if new is not None:
                return list(_PIECE.iter_unpack(new[1]))
            row = self._database.execute("SELECT pieces FROM seen WHERE content = ?", (content,)).fetchone()
        if row is None or not row[0] or len(row[0]) % _PIECE.size:
            return None
        return list(_PIECE.iter_unpack(row[0]))

    def remember(self, content: bytes, pieces: Pieces) -> None:
        """Note where the content with this SHA-256 was stored."""
        size = sum(length for _, length, _ in pieces)
        packed = b"".join(_PIECE.pack(*piece) for piece in pieces)
        with self._lock:
            self._new[content] = (size, packed)
            if len(self._new) >= _BATCH:
                self._write()

    def keep(self) -> None:
        """Make everything noted so far durable."""
        with self._lock:
            self._write()
            self._database.commit()

    def _write(self) -> None:
        rows = [(content, size, packed) for content, (size, packed) in self._new.items()]
        self._database.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", rows)
        self._new.clear()


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False)
    try:
        if database.execute("PRAGMA user_version").fetchone()[0] != RECIPE:
            database.execute("DROP TABLE IF EXISTS seen")
            database.execute(f"PRAGMA user_version = {RECIPE}")
        database.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        database.executescript(_SCHEMA)
    except BaseException:
        database.close()
        raise
    return database
