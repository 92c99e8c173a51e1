# SPDX-License-Identifier: BSD-3-Clause
"""One revision of a repository as a tree of catalogs, loaded as paths ask for them.

A tree never changes what it answers: a new revision is a new tree, which shares the catalogs that did not change.
Thread-safe; loading a catalog may block on the network.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import NamedTuple
from weakref import WeakValueDictionary

from .catalog import Catalog, Entry, Nested
from .errors import NoEntry, NotDirectory
from .hashes import ContentHash
from .manifest import Manifest
from .objects import Objects


class Located(NamedTuple):
    """An entry and the catalog that has its row."""

    entry: Entry
    catalog: Catalog


class CatalogLoader:
    """Opens catalogs, each once for as long as somebody uses it."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._lock = threading.Lock()
        self._open: WeakValueDictionary[tuple[ContentHash, bytes, bytes | None], Catalog] = WeakValueDictionary()

    def load(self, nested: Nested, prefix: bytes) -> Catalog:
        """Return the catalog for `prefix`.  Raises CvmfsProblem."""
        key = (nested.content, prefix, nested.root)
        with self._lock:
            known = self._open.get(key)
        if known is not None:
            return known
        catalog = Catalog(self._objects.open(nested.object, pin=True), nested, prefix)
        with self._lock:
            return self._open.setdefault(key, catalog)


class Tree:
    """The entries of one revision by path."""

    def __init__(self, manifest: Manifest, loader: CatalogLoader) -> None:
        """Load the root catalog.  Raises CvmfsProblem."""
        self.manifest = manifest
        self._loader = loader
        self._lock = threading.Lock()
        self.root = loader.load(Nested(manifest.root_hash, manifest.root_size), b"")
        self._catalogs: dict[bytes, Catalog] = {b"": self.root}

    def find(self, path: bytes) -> Located | None:
        """Return the entry at `path` (b"" is the root).  A nested catalog's root is answered by its parent's row."""
        catalog = self._covering(path, itself=False)
        entry = catalog.find(path)
        return None if entry is None else Located(entry, catalog)

    def children(self, path: bytes) -> list[Entry]:
        """Return the entries of the directory `path`, sorted by name.  Raises NoEntry, NotDirectory."""
        catalog = self._covering(path, itself=True)
        own = catalog.find(path)
        if own is None:
            raise NoEntry(f"{path!r} does not exist")
        if not own.is_directory:
            raise NotDirectory(f"{path!r} is not a directory")
        return catalog.children(path)

    def listing(self, path: bytes) -> list[Located]:
        """Return `children`, each with the catalog that has its row.  Raises like it."""
        catalog = self._covering(path, itself=True)
        return [Located(entry, catalog) for entry in self.children(path)]

    def lists_like(self, other: Tree, path: bytes) -> bool:
        """Whether the directory `path`, which both have, has the same entries in both."""
        mine, theirs = (tree._covering(path, itself=True) for tree in (self, other))
        return mine is theirs or mine.children(path) == theirs.children(path)

    def catalogs(self) -> Mapping[bytes, Catalog]:
        """The catalogs loaded so far, by prefix."""
        with self._lock:
            return dict(self._catalogs)

    def preload(self, other: Tree) -> None:
        """Load the counterparts of what `other` has loaded, so that a switch finds them.  Raises CvmfsProblem."""
        for prefix in sorted(other.catalogs()):
            self._covering(prefix, itself=True)

    def _covering(self, path: bytes, *, itself: bool) -> Catalog:
        """The deepest catalog mounted at a component-wise prefix of `path` (with `itself`, at `path` too)."""
        catalog = self.root
        end = path.find(b"/", 1)
        while end != -1:
            catalog = self._descend(catalog, path[:end])
            end = path.find(b"/", end + 1)
        return self._descend(catalog, path) if itself and path else catalog

    def _descend(self, catalog: Catalog, prefix: bytes) -> Catalog:
        nested = catalog.nested.get(prefix)
        if nested is None:
            return catalog
        with self._lock:
            known = self._catalogs.get(prefix)
        if known is not None:
            return known
        loaded = self._loader.load(nested, prefix)
        with self._lock:
            return self._catalogs.setdefault(prefix, loaded)
