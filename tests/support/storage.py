# SPDX-License-Identifier: BSD-3-Clause
"""A repository's storage directory read in place of servers: for the reading library without a network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from cernvm.cvmfs.cache import Cache
from cernvm.cvmfs.counters import Counters
from cernvm.cvmfs.errors import ObjectMissing, Unreachable
from cernvm.cvmfs.fetch import R
from cernvm.cvmfs.inodes import ROOT, Inode
from cernvm.cvmfs.manifest import parse_manifest, split_envelope
from cernvm.cvmfs.objects import Objects
from cernvm.cvmfs.tree import CatalogLoader, Tree
from cernvm.cvmfs.view import Policy, View


class Storage:
    """A `Source` over a directory; counts what is taken, and may hold transfers back."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.taken: list[str] = []
        self.down = False
        self.open_gate = threading.Event()
        self.open_gate.set()
        self.entered = threading.Event()

    def fetch(self, path: str, begin: Callable[[], R]) -> R:
        """One attempt.  Raises ObjectMissing, and what the receiver raises."""
        self.taken.append(path)
        self.entered.set()
        if self.down:
            raise Unreachable(f"{path} cannot be fetched (down)")
        assert self.open_gate.wait(20)
        try:
            data = (self.directory / path).read_bytes()
        except FileNotFoundError:
            raise ObjectMissing(f"no server has {path}") from None
        receiver = begin()
        for at in range(0, len(data), 1000):
            receiver.write(data[at : at + 1000])
        receiver.finish()
        return receiver


class StorageView:
    """A view of the newest revision in a storage directory."""

    def __init__(self, directory: Path, cache: Path, policy: Policy | None = None) -> None:
        self.storage = Storage(directory)
        self.counters = Counters()
        self.objects = Objects(Cache(cache, None), self.storage, self.counters)
        self.loader = CatalogLoader(self.objects)
        self.view = View(self.newest(), self.objects, policy or Policy(), self.counters)

    def newest(self) -> Tree:
        """The revision that the storage has now; signatures are not looked at."""
        data = (self.storage.directory / ".cvmfspublished").read_bytes()
        return Tree(parse_manifest(split_envelope(data, "the manifest").text), self.loader)

    def walk(self, path: str) -> Inode:
        """The inode at `path`, looked up name by name."""
        inode = ROOT
        for name in filter(None, path.split("/")):
            inode = self.view.lookup(inode, name.encode()).inode
        return inode


def catalogs_taken(taken: Sequence[str]) -> list[str]:
    """The catalogs among paths that were taken."""
    return [path for path in taken if path.endswith("C")]
