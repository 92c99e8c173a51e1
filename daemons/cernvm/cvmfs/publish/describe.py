# SPDX-License-Identifier: BSD-3-Clause
"""What a storage directory holds, for a person who looks.  Reads only; signatures are not checked."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..errors import Malformed
from ..hashes import Kind
from ..manifest import split_envelope
from ..trust import parse_whitelist
from .revisions import read_manifest
from .store import WHITELIST, Store


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


def describe(fqrn: str, storage: Path) -> Description:
    """Look at the repository `fqrn` in `storage`.  Raises Mistake, NoRepository, CvmfsProblem."""
    store = Store(storage)
    manifest = read_manifest(store, fqrn)
    counters = _counters(store.read(manifest.root_hash, Kind.CATALOG))
    whitelist = store.read_root(WHITELIST)
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
    )


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
