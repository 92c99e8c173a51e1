# SPDX-License-Identifier: BSD-3-Clause
"""Is a repository whole?  Every signature, row, counter and object of a stored revision is looked at.

Reads only, so that it may run beside a publisher and over a storage that this user cannot write.  What is wrong
becomes a `Fault`; only a storage that holds no repository at all raises.  One thread walks the catalogs, workers
inflate and hash objects.  What is checked: docs/cvmfs-publishing.md, "What check looks at".
"""

from __future__ import annotations

import os
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cernvm.kit.errors import sentence

from ..errors import CvmfsProblem, Malformed, NoRepository
from ..flags import Compression
from ..hashes import ContentHash, Hasher, Kind, hash_of
from ..manifest import Manifest, split_envelope
from ..trust import (
    Blacklist,
    check_certificate,
    check_manifest_signature,
    check_whitelist,
    load_certificate,
    load_master_keys,
    parse_whitelist,
)
from .check_catalog import CatalogCheck, Wanted, compare_counters
from .ledger import history_tags, reflog_names
from .revisions import read_manifest
from .rows import NestedRow, Row, stored_rows
from .store import CHECKSUM, MANIFEST, REFLOG, WHITELIST, Store

MOST_FAULTS: Final = 1000
"""Faults that are told; those beyond are counted."""
_IN_FLIGHT: Final = 256
_PIECE: Final = 1 << 20


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: a path in the repository or a file of the storage, and a sentence."""

    where: str
    what: str


@dataclass(frozen=True)
class Report:
    """What a check found.  `objects` were looked for, `objects_read` inflated and hashed; `bytes_read` as stored."""

    fqrn: str
    revision: int
    root_hash: str
    catalogs: int
    entries: int
    objects: int
    objects_read: int
    bytes_read: int
    fault_count: int
    faults: tuple[Fault, ...]
    seconds: float

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return self.fault_count == 0


def check_repository(
    fqrn: str,
    storage: Path,
    *,
    public: Path | None = None,
    tag: str | None = None,
    objects: bool = False,
    jobs: int = 2,
    on_objects: Callable[[int], None] = lambda _: None,
) -> Report:
    """Look at the newest revision, or at the one that `tag` names.

    With `public` (the file of the master key) the whitelist's signature is checked too; with `objects` every object
    is read.  Raises Mistake, NoRepository, and Malformed for a manifest that cannot be read.
    """
    store = Store(storage)
    manifest = read_manifest(store, fqrn)
    with ThreadPoolExecutor(jobs, thread_name_prefix="check") as pool:
        work = _Check(store, manifest, pool if objects else None, on_objects)
        try:
            return work.run(public, tag)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _Check:
    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        pool: ThreadPoolExecutor | None,
        on_objects: Callable[[int], None],
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._pool = pool
        self._on_objects = on_objects
        self._faults: list[Fault] = []
        self._fault_count = 0
        self._seen: set[tuple[bytes, str, int]] = set()
        self._reading: deque[tuple[bytes, Future[int]]] = deque()
        self._catalogs = self._entries = self._read = self._bytes = 0

    def run(self, public: Path | None, tag: str | None) -> Report:
        started = time.monotonic()
        root, size = self._manifest.root_hash, self._manifest.root_size
        self._signatures(public)
        found = self._ledgers()
        if tag is not None:
            if tag not in found:
                raise NoRepository(f"{self._manifest.fqrn}: has no tag {tag!r}; 'cvmfs-server tag' lists them")
            root, size = found[tag]
        self._catalog(b"", NestedRow(root, size or 0), None)
        while self._reading:
            self._take()
        return Report(
            fqrn=self._manifest.fqrn,
            revision=self._manifest.revision,
            root_hash=str(root),
            catalogs=self._catalogs,
            entries=self._entries,
            objects=len(self._seen),
            objects_read=self._read,
            bytes_read=self._bytes,
            fault_count=self._fault_count,
            faults=tuple(self._faults),
            seconds=round(time.monotonic() - started, 3),
        )

    def _tell(self, where: bytes | str, what: str) -> None:
        self._fault_count += 1
        if len(self._faults) < MOST_FAULTS:
            place = os.fsdecode(where).encode(errors="backslashreplace").decode()
            self._faults.append(Fault(place or "/", what))

    def _signatures(self, public: Path | None) -> None:
        manifest, store = self._manifest, self._store
        data = store.read_root(MANIFEST)
        if manifest.certificate is None or data is None:
            self._tell(MANIFEST, "the manifest names no certificate")
            return
        keys = load_master_keys([public]) if public is not None else ()
        try:
            envelope = split_envelope(data, MANIFEST)
            certificate = load_certificate(store.read(manifest.certificate, Kind.CERTIFICATE))
            check_manifest_signature(envelope, certificate, manifest.fqrn)
        except CvmfsProblem as error:
            self._tell(MANIFEST, str(error))
            return
        signed = store.read_root(WHITELIST)
        if signed is None:
            self._tell(WHITELIST, "is missing")
            return
        try:
            envelope = split_envelope(signed, WHITELIST)
            whitelist = parse_whitelist(envelope.text)
            if keys:
                whitelist = check_whitelist(envelope, keys, manifest.fqrn, datetime.now(UTC))
            elif whitelist.fqrn != manifest.fqrn:
                self._tell(WHITELIST, f"is for the repository {whitelist.fqrn}")
            elif whitelist.expires <= datetime.now(UTC):
                self._tell(WHITELIST, f"expired at {whitelist.expires:%Y-%m-%d %H:00} UTC")
            check_certificate(certificate, whitelist, Blacklist(), manifest.fqrn)
        except CvmfsProblem as error:
            self._tell(WHITELIST, str(error))

    def _ledgers(self) -> dict[str, tuple[ContentHash, int]]:
        """History, meta-information and reflog; the tags, with root catalog and its size."""
        manifest, store = self._manifest, self._store
        found: dict[str, tuple[ContentHash, int]] = {}
        reflog = store.read_root(REFLOG)
        if reflog is None:
            self._tell(REFLOG, "is missing")
        elif manifest.reflog is not None and hash_of(reflog, manifest.root_hash.algorithm) != manifest.reflog:
            actual = hash_of(reflog, manifest.root_hash.algorithm)
            known = store.read_root(CHECKSUM)  # a replica that collected garbage cannot sign for its reflog
            ours = known is not None and known.strip() == str(actual).encode()
            if not ours and not store.unfinished:  # a writer that was killed may have been one step ahead
                self._tell(REFLOG, f"has the hash {actual}, the manifest says {manifest.reflog}")
        try:
            if manifest.history is not None:
                tags = history_tags(manifest.fqrn, store.read(manifest.history, Kind.HISTORY))
                found = {tag.name: (tag.root_hash, tag.size) for tag in tags}
            if manifest.metainfo is not None:
                store.read(manifest.metainfo, Kind.METAINFO)
            named = (manifest.root_hash, manifest.certificate, manifest.history, manifest.metainfo)
            for content in filter(None, named if reflog is not None else ()):
                if not reflog_names(reflog or b"", content):
                    self._tell(REFLOG, f"does not name the object {content} of the newest revision")
        except CvmfsProblem as error:
            self._tell(MANIFEST, str(error))
        for name, (root, _) in found.items():
            if not store.has(root, Kind.CATALOG):
                self._tell(MANIFEST, f"the tag {name} names the root catalog {root}, which is missing")
        return found

    def _catalog(self, prefix: bytes, nested: NestedRow, above: Row | None) -> tuple[Counter[str], Counter[str]]:
        """Look at a catalog and all below; return its own counters and those of all below."""
        below: Counter[str] = Counter()
        try:
            with stored_rows(self._store, nested.content) as rows:
                if nested.size not in (0, rows.size):
                    self._tell(prefix, f"the catalog has {rows.size} bytes where {nested.size} were announced")
                if not prefix and nested.content == self._manifest.root_hash:
                    self._root_revision(rows.revision())
                work = CatalogCheck(rows, prefix, self._tell, self._want)
                work.run(above)
                listed, said = rows.nested(), rows.statistics()
                bound = {bytes(path) for (path,) in rows.query("SELECT path FROM bind_mountpoints")}
        except CvmfsProblem as error:
            self._tell(prefix, str(error))
            return Counter(), Counter()
        self._catalogs += 1
        self._entries += sum(work.own[kind] for kind in ("regular", "symlink", "special", "dir")) - bool(prefix)
        for path in sorted(work.mounts.keys() - listed.keys() - bound):
            self._tell(path, "is marked as the place of a nested catalog that is not listed")
        for path in sorted(listed.keys() - work.mounts.keys()):
            self._tell(path, "a nested catalog is listed for a place that is not marked")
        for path in sorted(listed.keys() & work.mounts.keys()):
            own, deeper = self._catalog(path, listed[path], work.mounts[path])
            below += own + deeper
        for complaint in compare_counters(said, work.own, below):
            self._tell(prefix, complaint)
        return work.own, below

    def _root_revision(self, revision: int) -> None:
        if revision != self._manifest.revision:
            self._tell(
                MANIFEST, f"is revision {self._manifest.revision}, but its root catalog says that it is {revision}"
            )

    def _want(self, path: bytes, wanted: Wanted) -> None:
        key = (wanted.content.digest, wanted.kind.value, wanted.compression * 4 + wanted.content.algorithm.value)
        if key in self._seen:
            return
        self._seen.add(key)
        if not self._store.has(wanted.content, wanted.kind):
            self._tell(path, f"the object {wanted.content}{wanted.kind.value} is missing")
        elif self._pool is not None:
            self._reading.append((path, self._pool.submit(_verify, self._store, wanted)))
            while len(self._reading) > _IN_FLIGHT:
                self._take()

    def _take(self) -> None:
        path, future = self._reading.popleft()
        try:
            self._bytes += future.result()
        except (CvmfsProblem, OSError) as error:
            self._tell(path, sentence(error))
        self._read += 1
        self._on_objects(1)


def _verify(store: Store, wanted: Wanted) -> int:
    """Hash and inflate an object; return its bytes as stored.  Raises Malformed, OSError."""
    name = f"the object {wanted.content}{wanted.kind.value}"
    hasher = Hasher(wanted.content.algorithm)
    inflater = zlib.decompressobj() if wanted.compression is Compression.ZLIB else None
    stored = size = after = 0
    with (store.root / wanted.content.path(wanted.kind)).open("rb") as file:
        while block := file.read(_PIECE):
            hasher.update(block)
            stored += len(block)
            try:
                while block and inflater is not None and not inflater.eof and size <= wanted.size:
                    size += len(inflater.decompress(block, _PIECE))
                    block = inflater.unconsumed_tail
                after += len(block)
            except zlib.error:
                raise Malformed(f"{name} cannot be inflated") from None
    if inflater is not None and not inflater.eof:
        size += len(inflater.flush())
    if hasher.finish() != wanted.content:
        raise Malformed(f"{name} does not have the hash in its name")
    if inflater is not None and (not inflater.eof or inflater.unused_data or after):
        raise Malformed(f"{name} does not end where its zlib stream does")
    if (size if inflater is not None else stored) != wanted.size:
        raise Malformed(f"{name} does not have the {wanted.size} bytes that the catalog says")
    return stored
