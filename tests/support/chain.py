# SPDX-License-Identifier: BSD-3-Clause
"""A signed repository in a directory, which a test may spoil and sign again, and a client's side of it."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cernvm.cvmfs.authorities import Authorities
from cernvm.cvmfs.cache import Cache
from cernvm.cvmfs.counters import Counters
from cernvm.cvmfs.hashes import Kind, hash_of
from cernvm.cvmfs.history import Pin
from cernvm.cvmfs.manifest import Manifest, parse_manifest, split_envelope
from cernvm.cvmfs.objects import Objects
from cernvm.cvmfs.publish import create_repository, publish_tree
from cernvm.cvmfs.publish.keys import KeyFiles, load_release
from cernvm.cvmfs.publish.sign import sign_manifest
from cernvm.cvmfs.repository import Anchor, Repository
from cernvm.cvmfs.trust import load_master_keys, parse_blacklist
from tests.support.cvmfs import copy_of
from tests.support.storage import Storage

FQRN: Final = "chain.test.org"


def publish_chain(directory: Path) -> Path:
    """`keys`, `storage` and `tree` of a repository at revision 2; `other-keys` of a stranger.  Takes a second."""
    (directory / "tree").mkdir()
    (directory / "tree" / "file").write_text("content")
    create_repository(FQRN, directory / "storage", directory / "keys", ttl=777)
    publish_tree(FQRN, directory / "tree", directory / "storage", directory / "keys", jobs=1)
    create_repository(FQRN, directory / "other", directory / "other-keys")
    return directory


class Chain:
    """A copy of the published storage and a client's side of it."""

    def __init__(self, directory: Path, published: Path) -> None:
        self.published = published
        self.root = copy_of(published / "storage", directory / "storage")
        self.storage = Storage(self.root)
        self.cache = Cache(directory / "cache", None)
        self.now = datetime.now(UTC)
        self.blacklist = ""
        """What the site's black list says now."""

    def repository(
        self,
        *,
        keys: str = "keys",
        blacklist: str = "",
        max_ttl: int = 0,
        pin: Pin | None = None,
        authorities: Authorities | None = None,
    ) -> Repository:
        """A client that trusts the master key in `keys`, as after a restart."""
        self.blacklist = blacklist
        masters = load_master_keys([self.published / keys / f"{FQRN}.pub"])
        anchor = Anchor(FQRN, masters, lambda: parse_blacklist(self.blacklist), lambda: authorities or Authorities())
        objects = Objects(self.cache, self.storage, Counters())
        return Repository(anchor, self.storage, objects, now=lambda: self.now, max_ttl=max_ttl, pin=pin)

    def publish(self, content: str) -> Manifest:
        """A new revision whose `file` has this content."""
        (self.published / "tree" / "file").write_text(content)
        publish_tree(FQRN, self.published / "tree", self.root, self.published / "keys", jobs=1)
        return self.manifest()

    def manifest(self) -> Manifest:
        """The one in the storage."""
        return parse_manifest(split_envelope((self.root / ".cvmfspublished").read_bytes(), "it").text)

    def sign(self, manifest: Manifest, keys: str = "keys") -> None:
        """Put another manifest there, signed by the release key in `keys`."""
        self.sign_text(manifest.body(), manifest, keys)

    def sign_text(self, text: bytes, manifest: Manifest, keys: str = "keys") -> None:
        """Put any text in the manifest's place, signed."""
        release = load_release(KeyFiles(self.published / keys, FQRN))
        (self.root / ".cvmfspublished").write_bytes(sign_manifest(text, manifest.root_hash.algorithm, release.private))

    def store(self, content: bytes, kind: Kind) -> Manifest:
        """Put an object there; the manifest that names it as root catalog."""
        stored = zlib.compress(content)
        named = hash_of(stored)
        file = self.root / named.path(kind)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(stored)
        return replace(self.manifest(), root_hash=named, root_size=len(content))

    def change_catalog(self, change: Callable[[sqlite3.Connection], None]) -> None:
        """Change the root catalog and sign what comes of it."""
        content = zlib.decompress((self.root / self.manifest().root_hash.path(Kind.CATALOG)).read_bytes())
        file = self.cache.directory / "changed"
        file.write_bytes(content)
        with closing(sqlite3.connect(file)) as database, database:
            change(database)
        self.sign(self.store(file.read_bytes(), Kind.CATALOG))
