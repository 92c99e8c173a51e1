# SPDX-License-Identifier: BSD-3-Clause
"""Named revisions: the tag data base that a manifest refers to (`H`), and what a site may ask of it.

Thread-safe: values.  Format: docs/cvmfs-format.md, "Tags"; enforced by tests/unit/test_cvmfs_pins.py.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from .errors import Malformed, Mistake
from .hashes import ContentHash, parse_hash

MAX_TAGS: Final = 1_000_000
_TICK: Final = 1_000_000
_MOST_TICKS: Final = 300
_STATEMENT: Final = f"SELECT name, hash, revision, timestamp, size FROM tags LIMIT {MAX_TAGS}"


@dataclass(frozen=True)
class Tag:
    """A named revision: its root catalog, number, time (Unix seconds), root catalog's size (bytes; None: unknown)."""

    name: str
    root_hash: ContentHash
    revision: int
    timestamp: int
    size: int | None


def read_tags(data: bytes) -> tuple[Tag, ...]:
    """Return the tags in the data base file `data`.  Raises Malformed."""
    ticks = 0

    def tick() -> bool:
        nonlocal ticks
        ticks += 1
        return ticks > _MOST_TICKS

    try:
        with closing(sqlite3.connect(":memory:")) as database:
            database.deserialize(data)
            database.text_factory = bytes
            database.set_progress_handler(tick, _TICK)
            return tuple(_tag(row) for row in database.execute(_STATEMENT))
    except (sqlite3.Error, OverflowError, MemoryError, UnicodeDecodeError) as error:
        raise Malformed(f"the data base of tags cannot be read: {error}") from error


def _tag(row: Sequence[object]) -> Tag:
    name, content, revision, timestamp, size = row
    if (
        not isinstance(name, bytes)
        or not isinstance(content, bytes)
        or not isinstance(revision, int)
        or not isinstance(timestamp, int)
    ):
        raise Malformed("the data base of tags has a row of wrong types")
    length = size if isinstance(size, int) and size > 0 else None
    return Tag(name.decode("utf-8", "replace"), parse_hash(content), max(0, revision), max(0, timestamp), length)


@dataclass(frozen=True)
class RootPin:
    """Show the revision with this root catalog: whoever names a hash needs no signature."""

    root_hash: ContentHash


@dataclass(frozen=True)
class TagPin:
    """Show the revision with this name."""

    name: str


@dataclass(frozen=True)
class DatePin:
    """Show what was current at this time (Unix seconds)."""

    timestamp: int


Pin = RootPin | TagPin | DatePin


def pinned_tag(pin: TagPin | DatePin, tags: Sequence[Tag], fqrn: str) -> Tag:
    """The revision that a site asks for.  Raises Mistake if there is none."""
    if isinstance(pin, TagPin):
        for tag in tags:
            if tag.name == pin.name:
                return tag
        raise Mistake(f"{fqrn}: CVMFS_REPOSITORY_TAG names {pin.name!r}, which the repository does not have")
    before = [tag for tag in tags if tag.timestamp <= pin.timestamp]
    if not before:
        when = datetime.fromtimestamp(pin.timestamp, UTC)
        raise Mistake(f"{fqrn}: CVMFS_REPOSITORY_DATE is {when:%Y-%m-%dT%H:%M:%SZ}, and no tag is as old as that")
    return max(before, key=lambda tag: tag.revision)


def parse_date(text: str) -> DatePin | None:
    """Read `YYYY-MM-DDTHH:MM:SSZ`; None if it is none."""
    try:
        return DatePin(int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()))
    except ValueError:
        return None
