# SPDX-License-Identifier: BSD-3-Clause
"""Published repositories seen from outside: by the reading library straight from the disk, and by the checker."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Final
from urllib.parse import unquote

from cernvm.cvmfs import flags
from cernvm.cvmfs.cache import Cache
from cernvm.cvmfs.catalog import Catalog, Entry
from cernvm.cvmfs.counters import Counters
from cernvm.cvmfs.fetch import Fetcher
from cernvm.cvmfs.http import Receiver, ServerFailed, Span, Transport
from cernvm.cvmfs.objects import Objects
from cernvm.cvmfs.repository import Anchor, Repository
from cernvm.cvmfs.tree import Tree
from cernvm.cvmfs.trust import Blacklist, load_master_keys
from cernvm.cvmfs.xattrs import parse_xattrs

SERVER: Final = "http://disk"
CHECKER: Final = Path(__file__).parents[3] / "shared/tools/verify_repo.py"


class Disk:
    """A wire whose server is a directory."""

    def __init__(self, storage: Path) -> None:
        self._storage = storage

    def get(self, url: str, proxy: str, receiver: Receiver, *, refresh: bool, span: Span | None = None) -> None:
        """As HTTP does, without a network."""
        path = self._storage / unquote(url).removeprefix(SERVER + "/")
        try:
            receiver.write(path.read_bytes())
        except FileNotFoundError:
            raise ServerFailed("no such file", missing=True) from None


@dataclass(frozen=True)
class Shown:
    """One entry, as stat(2), readlink(2), getxattr(2) and read(2) would tell it."""

    mode: int
    links: int
    size: int
    mtime_ns: int
    owner: tuple[int, int]
    device: int
    target: bytes
    attributes: tuple[tuple[bytes, bytes], ...]
    sha256: str


@dataclass(frozen=True)
class Opened:
    """A verified revision."""

    tree: Tree
    objects: Objects

    def shown(self) -> dict[bytes, Shown]:
        """Every entry by path."""
        return dict(self._walk(b""))

    def _walk(self, path: bytes) -> Iterator[tuple[bytes, Shown]]:
        located = self.tree.find(path)
        assert located is not None, path
        yield path, self._show(located.entry, located.catalog)
        if located.entry.is_directory:
            for child in self.tree.children(path):
                yield from self._walk(path + b"/" + child.name)

    def _show(self, entry: Entry, catalog: Catalog) -> Shown:
        content = b"".join(self._content(entry, catalog)) if entry.is_file else b""
        special = stat.S_ISBLK(entry.mode) or stat.S_ISCHR(entry.mode)
        if entry.is_file:
            assert len(content) == entry.size
        return Shown(
            mode=entry.mode,
            links=entry.links,
            size=entry.size if entry.is_file or entry.is_symlink else 0,
            mtime_ns=entry.mtime_ns,
            owner=(entry.uid, entry.gid),
            device=entry.size if special else 0,
            target=entry.target,
            attributes=tuple(sorted(parse_xattrs(entry.xattrs).items())),
            sha256=hashlib.sha256(content).hexdigest() if entry.is_file else "",
        )

    def _content(self, entry: Entry, catalog: Catalog) -> Iterator[bytes]:
        if not entry.flags & flags.CHUNKED:
            yield self.objects.open(entry.object).read_all()
            return
        for chunk in catalog.chunks(entry):
            yield self.objects.open(chunk.object).read_all()


@contextmanager
def opened(fqrn: str, storage: Path, public: Path, cache: Path) -> Iterator[Opened]:
    """Load the newest revision as a client does: everything verified.  Raises CvmfsProblem."""
    with closing(Cache(cache, None)) as kept:
        fetcher = Fetcher(Transport((SERVER,)), Disk(storage), Counters(), random=Random(0), sleep=lambda _: None)
        objects = Objects(kept, fetcher, Counters())
        anchor = Anchor(fqrn, load_master_keys([public]), Blacklist)
        repository = Repository(anchor, fetcher, objects, now=lambda: datetime.now(UTC))
        try:
            yield Opened(repository.load(), objects)
        finally:
            objects.close()


def on_disk(tree: Path) -> dict[bytes, Shown]:
    """What the directory `tree` shows, in the terms of the format: links are counted within a directory."""
    return dict(_walk_disk(os.fsencode(tree), b""))


def _walk_disk(tree: bytes, path: bytes) -> Iterator[tuple[bytes, Shown]]:
    place = tree + path
    names = sorted(os.listdir(place))  # noqa: PTH208 - names are bytes
    below = [os.lstat(place + b"/" + name) for name in names]
    yield path, _show_disk(place, os.lstat(place), 2 + sum(stat.S_ISDIR(status.st_mode) for status in below))
    for name, status in zip(names, below, strict=True):
        if stat.S_ISDIR(status.st_mode):
            yield from _walk_disk(tree, path + b"/" + name)
        else:
            links = sum(other.st_ino == status.st_ino for other in below)
            yield path + b"/" + name, _show_disk(place + b"/" + name, status, links)


def _show_disk(place: bytes, status: os.stat_result, links: int) -> Shown:
    is_file, is_link = stat.S_ISREG(status.st_mode), stat.S_ISLNK(status.st_mode)
    names = [os.fsencode(name) for name in os.listxattr(place, follow_symlinks=False)]
    found = {name: os.getxattr(place, name, follow_symlinks=False) for name in names if name.startswith(b"user.")}
    return Shown(
        mode=status.st_mode,
        links=links,
        size=status.st_size if is_file or is_link else 0,
        mtime_ns=status.st_mtime_ns,
        owner=(status.st_uid, status.st_gid),
        device=status.st_rdev,
        target=os.readlink(place) if is_link else b"",  # noqa: PTH115 - targets are bytes
        attributes=tuple(sorted(found.items())),
        sha256=hashlib.sha256(Path(os.fsdecode(place)).read_bytes()).hexdigest() if is_file else "",
    )


def check(storage: Path, public: Path, fqrn: str, *, reflog_ahead: bool = False) -> str:
    """Run the independent checker over every object; return what it says, fail if it complains.

    With `reflog_ahead` the reflog may be one that a killed publisher wrote for the manifest that it did not write.
    """
    command = [sys.executable, str(CHECKER), str(storage), str(public), fqrn, "--objects"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    complaints = [line for line in done.stdout.splitlines() if line.startswith("counter ")]
    assert complaints == []
    assert done.stdout.rstrip().endswith(("hash==Y True", "hash==Y False") if reflog_ahead else "hash==Y True")
    return done.stdout
