# SPDX-License-Identifier: BSD-3-Clause
"""The two SQLite files that remember revisions: the history with its tags, and the reflog with every root ever made.

Both are made in memory from the bytes of the last one and given back as bytes.  Thread-safe: pure.
Format: docs/cvmfs-publishing.md, "History and reflog".
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from ..errors import Malformed
from ..hashes import ContentHash, parse_hash

TRUNK: Final = "trunk"
PREVIOUS: Final = "trunk-previous"
_HISTORY: Final = """
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE branches (branch TEXT, parent TEXT, initial_revision INTEGER,
    CONSTRAINT pk_branch PRIMARY KEY (branch), FOREIGN KEY (parent) REFERENCES branches (branch),
    CHECK ((branch <> '') OR (parent IS NULL)), CHECK ((branch = '') OR (parent IS NOT NULL)));
CREATE TABLE tags (name TEXT, hash TEXT, revision INTEGER, timestamp INTEGER, channel INTEGER, description TEXT,
    size INTEGER, branch TEXT, CONSTRAINT pk_tags PRIMARY KEY (name),
    FOREIGN KEY (branch) REFERENCES branches (branch));
CREATE TABLE recycle_bin (hash TEXT, flags INTEGER, CONSTRAINT pk_hash PRIMARY KEY (hash));
INSERT INTO branches VALUES ('', NULL, 0);
INSERT INTO properties VALUES ('schema', '1.0'), ('schema_revision', '3');
"""
_REFLOG: Final = """
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE refs (hash TEXT, type INTEGER, timestamp INTEGER, CONSTRAINT pk_refs PRIMARY KEY (hash));
INSERT INTO properties VALUES ('schema', '1.0'), ('schema_revision', '0');
"""


class Reference(IntEnum):
    """What a line of the reflog names."""

    CATALOG = 0
    CERTIFICATE = 1
    HISTORY = 2
    METAINFO = 3


@dataclass(frozen=True)
class Tag:
    """A named revision: its root catalog, number, time (Unix seconds) and root catalog's size (bytes)."""

    root_hash: ContentHash
    revision: int
    timestamp: int
    size: int
    name: str = TRUNK
    description: str = "the newest revision"


def next_history(fqrn: str, last: bytes | None, last_hash: ContentHash | None, head: Tag) -> bytes:
    """The tag database after a publication: `trunk` is `head`, what it was is `trunk-previous`.  Raises Malformed."""
    with _database(last, _HISTORY, fqrn, "the tag database") as database:
        _follow(database, last_hash)
        database.execute("DELETE FROM tags WHERE name = ?", (PREVIOUS,))
        database.execute(
            "UPDATE tags SET name = ?, description = 'the revision before trunk' WHERE name = ?", (PREVIOUS, TRUNK)
        )
        _insert(database, head)
        return _bytes(database)


def tagged_history(fqrn: str, last: bytes | None, last_hash: ContentHash | None, tag: Tag) -> bytes:
    """The tag database with one more tag.  Raises Malformed."""
    with _database(last, _HISTORY, fqrn, "the tag database") as database:
        _follow(database, last_hash)
        _insert(database, tag)
        return _bytes(database)


def untagged_history(fqrn: str, last: bytes | None, last_hash: ContentHash | None, name: str) -> bytes:
    """The tag database without the tag `name`.  Raises Malformed."""
    with _database(last, _HISTORY, fqrn, "the tag database") as database:
        _follow(database, last_hash)
        database.execute("DELETE FROM tags WHERE name = ?", (name,))
        return _bytes(database)


def history_tags(fqrn: str, history: bytes) -> list[Tag]:
    """The tags, newest revision first.  Raises Malformed."""
    statement = "SELECT name, hash, revision, timestamp, description, size FROM tags ORDER BY revision DESC, name"
    with _database(history, "", fqrn, "the tag database") as database:
        return [
            Tag(parse_hash(content), int(revision), int(timestamp), int(size or 0), str(name), str(description or ""))
            for name, content, revision, timestamp, description, size in database.execute(statement)
        ]


def _follow(database: sqlite3.Connection, last_hash: ContentHash | None) -> None:
    if last_hash is not None:
        database.execute("INSERT OR REPLACE INTO properties VALUES ('previous_revision', ?)", (str(last_hash),))


def _insert(database: sqlite3.Connection, tag: Tag) -> None:
    database.execute(
        "INSERT INTO tags (name, hash, revision, timestamp, channel, description, size, branch)"
        " VALUES (?, ?, ?, ?, 0, ?, ?, '')",
        (tag.name, str(tag.root_hash), tag.revision, tag.timestamp, tag.description, tag.size),
    )


def next_reflog(
    fqrn: str, last: bytes | None, references: Iterable[tuple[ContentHash, Reference]], timestamp: int
) -> bytes:
    """The reflog with these objects added; those that it has keep their times.  Raises Malformed."""
    with _database(last, _REFLOG, fqrn, "the reflog") as database:
        database.executemany(
            "INSERT OR IGNORE INTO refs VALUES (?, ?, ?)",
            [(str(content), int(kind), timestamp) for content, kind in references],
        )
        return _bytes(database)


def reflog_names(reflog: bytes, content: ContentHash) -> bool:
    """Whether the reflog has this object.  Raises Malformed."""
    with _database(reflog, "", "", "the reflog") as database:
        found = database.execute("SELECT 1 FROM refs WHERE hash = ?", (str(content),)).fetchone()
        return found is not None


@dataclass(frozen=True)
class Reflogged:
    """A line of the reflog; `timestamp` in Unix seconds."""

    content: ContentHash
    kind: Reference
    timestamp: int


def reflog_lines(reflog: bytes) -> list[Reflogged]:
    """What the reflog names, oldest first.  Raises Malformed."""
    statement = "SELECT hash, type, timestamp FROM refs WHERE type BETWEEN 0 AND 3 ORDER BY timestamp, rowid"
    with _database(reflog, "", "", "the reflog") as database:
        return [
            Reflogged(parse_hash(content), Reference(kind), int(timestamp))
            for content, kind, timestamp in database.execute(statement)
        ]


def merged_reflog(reflog: bytes, other: bytes) -> bytes:
    """The reflog with the lines that only `other` has; unchanged bytes if there are none.  Raises Malformed."""
    names = {line.content for line in reflog_lines(reflog)}
    more = [line for line in reflog_lines(other) if line.content not in names]
    if not more:
        return reflog
    with _database(reflog, "", "", "the reflog") as database:
        rows = [(str(line.content), int(line.kind), line.timestamp) for line in more]
        database.executemany("INSERT INTO refs VALUES (?, ?, ?)", rows)
        return _bytes(database)


def reflog_without(reflog: bytes, gone: Iterable[ContentHash]) -> bytes:
    """The reflog without these objects.  Raises Malformed."""
    with _database(reflog, "", "", "the reflog") as database:
        database.executemany("DELETE FROM refs WHERE hash = ?", [(str(content),) for content in gone])
        return _bytes(database)


@contextmanager
def _database(last: bytes | None, schema: str, fqrn: str, what: str) -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(":memory:")
    try:
        if last is None:
            database.execute("PRAGMA page_size = 1024")
            database.executescript(schema)
            database.execute("INSERT INTO properties VALUES ('fqrn', ?)", (fqrn,))
        else:
            database.deserialize(last)
        yield database
    except sqlite3.DatabaseError as error:
        raise Malformed(f"{what} of {fqrn or 'the repository'} cannot be used: {error}") from error
    finally:
        database.close()


def _bytes(database: sqlite3.Connection) -> bytes:
    database.commit()
    return database.serialize()
