# SPDX-License-Identifier: BSD-3-Clause
"""Repositories that are wrong on purpose: catalogs edited behind the publisher's back, and signed all the same."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

from cernvm.cvmfs.hashes import Algorithm, ContentHash, Kind, hash_of, path_hash
from cernvm.cvmfs.publish.keys import KeyFiles, load_release
from cernvm.cvmfs.publish.revisions import read_manifest, read_reflog
from cernvm.cvmfs.publish.sign import sign_manifest
from cernvm.cvmfs.publish.store import CHECKSUM, MANIFEST, REFLOG, Store
from tests.support.publisher import FQRN, Home


def at(path: str) -> str:
    """The condition for the row of `path` in SQL."""
    first, second = path_hash(path.encode())
    return f"md5path_1 = {first} AND md5path_2 = {second}"


def edit_root(home: Home, *statements: str, revision: int | None = None) -> None:
    """Run SQL over the root catalog of the newest revision."""
    store = Store(home.storage)
    manifest = read_manifest(store, FQRN)
    content, size = _edited(store, manifest.root_hash, statements)
    log = _named(store, content)
    changed = replace(
        manifest, root_hash=content, root_size=size, revision=revision or manifest.revision, reflog=hash_of(log)
    )
    signed = sign_manifest(changed.body(), Algorithm.SHA1, load_release(KeyFiles(home.keys, FQRN)).private)
    for name, data in ((REFLOG, log), (CHECKSUM, str(hash_of(log)).encode()), (MANIFEST, signed)):
        (home.storage / name).write_bytes(data)


def edit_nested(home: Home, path: str, *statements: str) -> None:
    """Run SQL over the catalog mounted at `path` in the root catalog."""
    store = Store(home.storage)
    root = sqlite3.connect(":memory:")
    root.deserialize(store.read(read_manifest(store, FQRN).root_hash, Kind.CATALOG))
    (old,) = root.execute("SELECT sha1 FROM nested_catalogs WHERE path = ?", (path,)).fetchone()
    root.close()
    content, size = _edited(store, ContentHash(bytes.fromhex(old), Algorithm.SHA1), statements)
    edit_root(home, f"UPDATE nested_catalogs SET sha1 = '{content}', size = {size} WHERE path = '{path}'")


def stored(home: Home, path: str) -> Path:
    """The object of a file in the root catalog."""
    store = Store(home.storage)
    root = sqlite3.connect(":memory:")
    root.deserialize(store.read(read_manifest(store, FQRN).root_hash, Kind.CATALOG))
    (digest,) = root.execute(f"SELECT hash FROM catalog WHERE {at(path)}").fetchone()
    root.close()
    return home.storage / ContentHash(digest).path(Kind.FILE)


def _edited(store: Store, content: ContentHash, statements: tuple[str, ...]) -> tuple[ContentHash, int]:
    database = sqlite3.connect(":memory:")
    database.deserialize(store.read(content, Kind.CATALOG))
    for statement in statements:
        assert database.execute(statement).rowcount > 0, statement
    database.commit()
    data = database.serialize()
    database.close()
    return store.put(data, Kind.CATALOG, content.algorithm), len(data)


def _named(store: Store, content: ContentHash) -> bytes:
    database = sqlite3.connect(":memory:")
    database.deserialize(read_reflog(store, read_manifest(store, FQRN)))
    database.execute("INSERT OR IGNORE INTO refs VALUES (?, 0, 1)", (str(content),))
    database.commit()
    data = database.serialize()
    database.close()
    return data
