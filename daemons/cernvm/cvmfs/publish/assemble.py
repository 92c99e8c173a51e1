# SPDX-License-Identifier: BSD-3-Clause
"""A tree becomes a root catalog: the walk feeds the workers, their answers feed the catalogs.

One thread walks and owns every SQLite file; the workers only deposit content.  Answers are taken in the order of the
walk from a queue of bounded length, and the end of a nested catalog goes through the same queue: when it comes out,
everything in that catalog and below is done.  A catalog is thus stored only after all that it refers to.  A nested
catalog whose rows are those of the last revision is not written again: clients keep the one they have.
"""

from __future__ import annotations

import sqlite3
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, Protocol

from .. import flags
from ..hashes import Algorithm, ContentHash, Kind, parse_hash
from .catalogs import CatalogWriter, StoredCatalog
from .dirtab import Dirtab
from .objects import Content, Depositor
from .revisions import Stamp
from .scan import MARKER, Directory, Entry, Kept, Left, Told, walk
from .store import Store

_IN_FLIGHT: Final = 512
"""Answers waited for at most; bounds memory."""


@dataclass(frozen=True)
class Assembled:
    """The stored root catalog, the counters of the whole tree, and the number of catalogs written and kept."""

    root: StoredCatalog
    counters: Counter[str]
    written: int
    kept: int


@dataclass(frozen=True)
class Untouched:
    """A nested catalog that stays as it is: its directory, its object, and the counters of it and all below."""

    entry: Entry
    link_count: int
    stored: StoredCatalog
    counters: Counter[str]


class Source(Protocol):
    """What a revision is made of."""

    def walk(self) -> Iterator[Directory | Left | Untouched]:
        """Every directory, itself first, each before what is in it.  Raises Mistake, CvmfsProblem."""

    def deposit(self, entry: Entry) -> Content:
        """Store a file whose content the entry does not name; called in any thread.  Raises Mistake, CvmfsProblem."""


@dataclass(frozen=True)
class TreeSource:
    """A directory of this machine."""

    tree: bytes
    depositor: Depositor

    def walk(self) -> Iterator[Directory | Left | Untouched]:
        """As it is on the disk."""
        return walk(self.tree)

    def deposit(self, entry: Entry) -> Content:
        """As it is now."""
        return self.depositor.deposit(self.tree + entry.path)


class Last:
    """A catalog of the last revision, unpacked into a scratch file: its nested catalogs, and for comparison."""

    def __init__(self, store: Store, content: ContentHash) -> None:
        """Raises CvmfsProblem."""
        self.content = content
        self.file = store.scratch(".last")
        with self.file.open("wb") as file:
            store.unpack(content, Kind.CATALOG, file)
        database = sqlite3.connect(self.file)
        try:
            database.text_factory = bytes
            rows = database.execute("SELECT path, sha1 FROM nested_catalogs").fetchall()
            found = database.execute("SELECT value FROM properties WHERE key = 'revision'").fetchone()
            self.revision = int(found[0]) if found else 0
        finally:
            database.close()
        self.nested = {path: parse_hash(text) for path, text in rows}


@dataclass(eq=False)
class _Open:
    """A catalog being filled."""

    writer: CatalogWriter
    parent: _Open | None
    last: Last | None


@dataclass(frozen=True)
class _Rows:
    """Files of one inode that wait for their content."""

    catalog: _Open
    entries: tuple[Entry, ...]
    hardlinks: int
    content: Future[Content]


class Assembler:
    """Builds the catalogs of one revision."""

    def __init__(
        self,
        store: Store,
        algorithm: Algorithm,
        depositor: Depositor,
        stamp: Stamp,
        *,
        dirtab: Dirtab,
        on_files: Callable[[int], None],
    ) -> None:
        self._store = store
        self._algorithm = algorithm
        self._depositor = depositor
        self._stamp = stamp
        self._dirtab = dirtab
        self._on_files = on_files
        self._waiting: deque[_Rows | _Open] = deque()
        self._unfinished: list[_Open] = []
        self._result: StoredCatalog | None = None
        self._written = 0
        self._kept = 0

    def assemble(self, source: Source, last: ContentHash | None, jobs: int) -> Assembled:
        """Store everything of `source`; `last` is the root catalog to follow.  Raises Mistake, CvmfsProblem."""
        try:
            return self._walk(source, last, jobs)
        finally:
            for catalog in self._unfinished:
                catalog.writer.close()

    def _walk(self, source: Source, last: ContentHash | None, jobs: int) -> Assembled:
        current: _Open | None = None
        root: _Open | None = None
        with _workers(jobs, self._depositor) as pool:
            for step in source.walk():
                if isinstance(step, Left):
                    if current is not None and current.writer.prefix == step.path:
                        self._wait_for(current)
                        current = current.parent
                    continue
                if isinstance(step, Untouched):
                    self._carry(step, current)
                    continue
                current = self._enter(step, current, last)
                root = root or current
                self._list(step, current, source, pool)
            while self._waiting:
                self._take()
        if root is None or self._result is None:
            raise AssertionError("a walk shows and leaves its root")
        return Assembled(self._result, root.writer.totals(), self._written, self._kept)

    def _carry(self, step: Untouched, current: _Open | None) -> None:
        """Refer to a nested catalog of the last revision, with everything below it."""
        if current is None:
            raise AssertionError("a walk begins with its root")
        current.writer.add_directory(step.entry, step.link_count, flags.NESTED_MOUNTPOINT)
        current.writer.add_nested(step.entry.path, step.stored, step.counters)
        self._kept += 1 + step.counters["nested"]

    def _enter(self, directory: Directory, current: _Open | None, last: ContentHash | None) -> _Open:
        entry, links = directory.entry, directory.link_count
        if current is None:
            opened = self._open(b"", None, last)
            opened.writer.add_directory(entry, links)
            return opened
        if not directory.has_marker and not self._dirtab.matches(entry.path):
            current.writer.add_directory(entry, links)
            return current
        current.writer.add_directory(entry, links, flags.NESTED_MOUNTPOINT)
        before = current.last.nested.get(entry.path) if current.last is not None else None
        opened = self._open(entry.path, current, before)
        opened.writer.add_directory(entry, links, flags.NESTED_ROOT)
        return opened

    def _open(self, prefix: bytes, parent: _Open | None, last: ContentHash | None) -> _Open:
        writer = CatalogWriter(self._store.scratch(".catalog"), prefix, self._algorithm)
        opened = _Open(writer, parent, None)
        self._unfinished.append(opened)
        if last is not None:
            opened.last = Last(self._store, last)
        return opened

    def _list(self, directory: Directory, catalog: _Open, source: Source, pool: ThreadPoolExecutor) -> None:
        if directory.entry.path and catalog.writer.prefix == directory.entry.path and not directory.has_marker:
            catalog.writer.add_file(_marker(directory), self._depositor.deposit_nothing())
        for group in _by_inode(directory.entries):
            count = len(group)
            hardlinks = catalog.writer.new_group() << 32 | count if count > 1 else 1
            known = group[0].content
            if isinstance(known, Kept):
                for entry in group:
                    catalog.writer.add_kept(entry, known, hardlinks)
            elif known is not None:
                for entry in group:
                    catalog.writer.add_file(entry, known, hardlinks)
            elif group[0].is_file:
                content = pool.submit(source.deposit, group[0])
                self._wait_for(_Rows(catalog, group, hardlinks, content))
            else:
                for entry in group:
                    catalog.writer.add_other(entry, hardlinks)

    def _wait_for(self, item: _Rows | _Open) -> None:
        self._waiting.append(item)
        while len(self._waiting) > _IN_FLIGHT:
            self._take()

    def _take(self) -> None:
        item = self._waiting.popleft()
        if isinstance(item, _Open):
            self._close(item)
            return
        content = item.content.result()
        for entry in item.entries:
            item.catalog.writer.add_file(entry, content, item.hardlinks)
        self._on_files(len(item.entries))

    def _close(self, catalog: _Open) -> None:
        writer, last, parent = catalog.writer, catalog.last, catalog.parent
        if parent is not None and last is not None and writer.equals(last.file):
            stored = StoredCatalog(last.content, last.file.stat().st_size)
            self._kept += 1
        else:
            stored = self._store_catalog(catalog)
            self._written += 1
        writer.close()
        writer.file.unlink()
        if last is not None:
            last.file.unlink()
        self._unfinished.remove(catalog)
        if parent is None:
            self._result = stored
        else:
            parent.writer.add_nested(writer.prefix, stored, writer.totals())

    def _store_catalog(self, catalog: _Open) -> StoredCatalog:
        last = catalog.last
        properties: dict[str, str | int] = {"last_modified": self._stamp.timestamp}
        if catalog.parent is None:
            properties |= {"revision": self._stamp.revision, "TTL": self._stamp.ttl}
        else:
            properties["revision"] = last.revision + 1 if last else 1
        if last is not None:
            properties["previous_revision"] = str(last.content)
        size = catalog.writer.finish(properties)
        return StoredCatalog(self._store.put_file(catalog.writer.file, Kind.CATALOG, self._algorithm), size)


@contextmanager
def _workers(jobs: int, depositor: Depositor) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="deposit")
    try:
        yield pool
    except BaseException:
        depositor.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _marker(directory: Directory) -> Entry:
    """The empty marker file of a nested catalog that only `.cvmfsdirtab` asks for; the tree is not written to."""
    entry = directory.entry
    status = entry.status
    made = Told(stat.S_IFREG | 0o644, 0, status.st_mtime_ns, status.st_uid, status.st_gid)
    return Entry(entry.path + b"/" + MARKER, made)


def _by_inode(entries: Sequence[Entry]) -> Iterator[tuple[Entry, ...]]:
    """Files, links and specials; names of one inode together, with the attributes of the first.

    Names of an inode in other directories count as copies: the format links within a directory only.
    """
    linked: dict[tuple[int, int], list[Entry]] = {}
    for entry in entries:
        if entry.status.st_nlink > 1 and (entry.is_file or entry.is_link):
            linked.setdefault((entry.status.st_dev, entry.status.st_ino), []).append(entry)
    for entry in entries:
        if entry.is_directory:
            continue
        group = linked.get((entry.status.st_dev, entry.status.st_ino))
        if group is None or len(group) == 1:
            yield (entry,)
        elif group[0] is entry:
            yield tuple(
                replace(other, status=entry.status, attributes=entry.attributes, content=entry.content)
                for other in group
            )
