# SPDX-License-Identifier: BSD-3-Clause
"""Names for revisions, and the way back to one.

A revision is named by a tag or by its number; numbers are looked up along the chain of root catalogs, each of which
names the one that it replaced.  Thread rule: one operation belongs to one thread.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ..errors import Mistake, NoRepository
from ..hashes import ContentHash, Kind
from ..manifest import Manifest
from .catalogs import StoredCatalog
from .ledger import PREVIOUS, TRUNK, Tag, history_tags, tagged_history, untagged_history
from .revisions import Change, changing, next_stamp, read_manifest
from .rows import stored_rows
from .store import Store

_NAME: Final = re.compile(r"[A-Za-z0-9_./:-]{1,255}")
_KEPT: Final = frozenset({TRUNK, PREVIOUS})


@dataclass(frozen=True)
class RolledBack:
    """A new revision with the content of an old one."""

    fqrn: str
    revision: int
    root_hash: str
    content_of: int
    """Number of the revision whose content it has."""


def list_tags(fqrn: str, storage: Path) -> list[Tag]:
    """The tags of a repository, newest revision first.  Raises Mistake, NoRepository, CvmfsProblem."""
    store = Store(storage)
    return _tags(store, read_manifest(store, fqrn))


def add_tag(
    fqrn: str, storage: Path, keys: Path, name: str, *, revision: str | None = None, description: str = ""
) -> Tag:
    """Name a revision (a number or another tag; the newest without a value).  Raises Mistake, CvmfsProblem."""
    if not _NAME.fullmatch(name) or name in _KEPT or name.isdigit():
        raise Mistake(
            f"{name!r} cannot be the name of a tag: it has letters, digits and _ - . / :, is no number, and is "
            f"not {TRUNK} or {PREVIOUS}"
        )
    with changing(fqrn, storage, keys) as change:
        last = change.last
        if any(tag.name == name for tag in _tags(change.store, last)):
            raise Mistake(f"{fqrn}: the tag {name} is there already; remove it first, or choose another name")
        found = find_revision(change.store, last, revision or TRUNK)
        tag = replace(found, name=name, description=description)
        change.conclude_history(lambda history: tagged_history(fqrn, history, last.history, tag))
        return tag


def remove_tag(fqrn: str, storage: Path, keys: Path, name: str) -> None:
    """Forget a name; the revision stays until garbage is collected.  Raises Mistake, NoRepository, CvmfsProblem."""
    if name in _KEPT:
        raise Mistake(f"the tag {name} is kept by each publication and cannot be removed")
    with changing(fqrn, storage, keys) as change:
        last = change.last
        if not any(tag.name == name for tag in _tags(change.store, last)):
            raise NoRepository(f"{fqrn}: has no tag {name!r}; 'cvmfs-server tag {fqrn} list' shows them")
        change.conclude_history(lambda history: untagged_history(fqrn, history, last.history, name))


def roll_back(fqrn: str, storage: Path, keys: Path, to: str = PREVIOUS) -> RolledBack:
    """Publish a new revision that has the content of the old one `to`; tags and revisions between stay.

    Raises Mistake, NoRepository, CvmfsProblem.
    """
    with changing(fqrn, storage, keys) as change:
        target = find_revision(change.store, change.last, to)
        stamp = next_stamp(change.last)
        root = _copied_root(change, target, stamp.revision, stamp.timestamp)
        manifest = change.conclude(root, stamp)
        return RolledBack(fqrn, manifest.revision, str(manifest.root_hash), target.revision)


def find_revision(store: Store, manifest: Manifest, name: str) -> Tag:
    """The revision that a tag or a number names.  Raises NoRepository, CvmfsProblem."""
    newest = Tag(manifest.root_hash, manifest.revision, manifest.timestamp, manifest.root_size or 0)
    if name == TRUNK:
        return newest
    tags = _tags(store, manifest)
    for tag in tags:
        if tag.name == name:
            return tag
    if name.isdigit():
        for tag in tags:
            if tag.revision == int(name):
                return tag
        for found in revisions(store, newest):
            if found.revision == int(name):
                return found
    raise NoRepository(f"{manifest.fqrn}: has no tag and no stored revision {name!r}")


def revisions(store: Store, newest: Tag) -> Iterator[Tag]:
    """The revisions from `newest` back, as far as their root catalogs are stored.  Raises CvmfsProblem."""
    content: ContentHash | None = newest.root_hash
    seen = set()
    while content is not None and content not in seen and store.has(content, Kind.CATALOG):
        seen.add(content)
        with stored_rows(store, content) as rows:
            modified = rows.properties.get(b"last_modified", b"0")
            yield Tag(content, rows.revision(), int(modified) if modified.isdigit() else 0, rows.size)
            content = rows.previous()


def _tags(store: Store, manifest: Manifest) -> list[Tag]:
    if manifest.history is None:
        return []
    return history_tags(manifest.fqrn, store.read(manifest.history, Kind.HISTORY))


def _copied_root(change: Change, target: Tag, revision: int, timestamp: int) -> StoredCatalog:
    file = change.store.scratch(".catalog")
    with file.open("wb") as unpacked:
        change.store.unpack(target.root_hash, Kind.CATALOG, unpacked)
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA journal_mode = OFF").fetchall()
        database.executemany(
            "INSERT OR REPLACE INTO properties VALUES (?, ?)",
            [
                ("revision", str(revision)),
                ("last_modified", str(timestamp)),
                ("previous_revision", str(change.last.root_hash)),
            ],
        )
        database.commit()
    size = file.stat().st_size
    content = change.store.put_file(file, Kind.CATALOG, change.algorithm)
    file.unlink()
    return StoredCatalog(content, size)
