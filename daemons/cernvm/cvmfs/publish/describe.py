# SPDX-License-Identifier: BSD-3-Clause
"""What a storage directory holds, for a person who looks.  Reads only; signatures are not checked."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..errors import Malformed
from ..hashes import Kind
from ..manifest import split_envelope
from ..trust import parse_whitelist
from .ledger import Reference, history_tags, reflog_lines
from .revisions import read_manifest
from .store import REFLOG, WHITELIST, Store


@dataclass(frozen=True)
class Description:
    """The newest revision.  `published` and `whitelist_expires` in UTC, sizes in bytes, `ttl` in seconds."""

    fqrn: str
    revision: int
    root_hash: str
    published: datetime
    ttl: int
    entries: int
    files: int
    bytes: int
    catalogs: int
    whitelist_expires: datetime | None
    hash_algorithm: str
    garbage_collectable: bool
    tags: int
    revisions_known: int
    """Root catalogs in the reflog."""
    administrator: str
    description: str


def describe(fqrn: str, storage: Path) -> Description:
    """Look at the repository `fqrn` in `storage`.  Raises Mistake, NoRepository, CvmfsProblem."""
    store = Store(storage)
    manifest = read_manifest(store, fqrn)
    counters = _counters(store.read(manifest.root_hash, Kind.CATALOG))
    whitelist = store.read_root(WHITELIST)
    reflog = store.read_root(REFLOG)
    about = _about(store.read(manifest.metainfo, Kind.METAINFO)) if manifest.metainfo else {}
    nested = counters.get("nested", 0)
    kinds = ("regular", "symlink", "special", "dir")
    return Description(
        fqrn=manifest.fqrn,
        revision=manifest.revision,
        root_hash=str(manifest.root_hash),
        published=datetime.fromtimestamp(manifest.timestamp, tz=UTC),
        ttl=manifest.ttl,
        entries=sum(counters.get(kind, 0) for kind in kinds) - nested,
        files=counters.get("regular", 0),
        bytes=counters.get("file_size", 0),
        catalogs=nested + 1,
        whitelist_expires=_expiry(whitelist) if whitelist is not None else None,
        hash_algorithm=manifest.root_hash.algorithm.name.lower(),
        garbage_collectable=manifest.garbage_collectable,
        tags=len(history_tags(fqrn, store.read(manifest.history, Kind.HISTORY))) if manifest.history else 0,
        revisions_known=sum(line.kind is Reference.CATALOG for line in reflog_lines(reflog)) if reflog else 0,
        administrator=about.get("administrator", ""),
        description=about.get("description", ""),
    )


def _about(metainfo: bytes) -> dict[str, str]:
    """The texts of the meta-information; what is no JSON object says nothing."""
    try:
        found = json.loads(metainfo)
    except ValueError:
        return {}
    items = found.items() if isinstance(found, dict) else ()
    return {str(key): value for key, value in items if isinstance(value, str)}


def _expiry(whitelist: bytes) -> datetime:
    return parse_whitelist(split_envelope(whitelist, "the whitelist").text).expires


def _counters(catalog: bytes) -> dict[str, int]:
    """Counters of the whole tree, from those of the root catalog and those of all below it."""
    database = sqlite3.connect(":memory:")
    try:
        database.deserialize(catalog)
        total: dict[str, int] = {}
        for counter, value in database.execute("SELECT counter, value FROM statistics"):
            name = str(counter).partition("_")[2]
            total[name] = total.get(name, 0) + int(value)
        return total
    except (sqlite3.DatabaseError, ValueError) as error:
        raise Malformed(f"the root catalog cannot be read: {error}") from error
    finally:
        database.close()
