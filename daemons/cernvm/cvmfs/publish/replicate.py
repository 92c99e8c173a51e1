# SPDX-License-Identifier: BSD-3-Clause
"""A Stratum 1: the newest revision and all tagged ones, copied over HTTP as they are signed, without keys.

Objects come in parallel, are hashed as they come, and appear under their names only if the hash is right.  A catalog
is placed after everything that it names, and **a stored catalog means that everything below it is stored**: what a
stopped copy has brought is not asked for again.  The manifest is last.  Old revisions that the source has collected
meanwhile are passed over.
One thread walks the catalogs, the workers fetch.  Rules: docs/cvmfs-publishing.md, "Replicas".
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from ..errors import ObjectCorrupt, ObjectMissing, Untrusted
from ..fetch import Buffer, Fetcher
from ..hashes import ContentHash, Hasher, Kind, hash_of
from ..manifest import MAX_ENVELOPE, Manifest, parse_manifest, split_envelope
from ..trust import (
    Blacklist,
    Known,
    check_certificate,
    check_manifest,
    check_manifest_signature,
    check_whitelist,
    load_certificate,
    load_master_keys,
)
from .collect import references
from .ledger import history_tags, merged_reflog
from .revisions import failures, link_alternatives, read_manifest, require_name
from .rows import stored_rows
from .store import CHECKSUM, MANIFEST, MASTER_REPLICA, REFLOG, WHITELIST, Store

MAX_REFLOG: Final = 1 << 30
"""Bytes."""
SNAPSHOTTING: Final = ".cvmfs_is_snapshotting"
LAST_SNAPSHOT: Final = ".cvmfs_last_snapshot"
_IN_FLIGHT: Final = 512


@dataclass(frozen=True)
class Replicated:
    """A copy that is complete.  Bytes as stored."""

    fqrn: str
    revision: int
    root_hash: str
    catalogs_new: int
    objects_new: int
    bytes_new: int
    revisions_missing: int
    """Tagged revisions that the source does not have any more."""
    seconds: float


def replicate(
    fqrn: str,
    storage: Path,
    public: Path,
    fetcher: Fetcher,
    *,
    jobs: int = 16,
    on_files: Callable[[int], None] = lambda _: None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Replicated:
    """Bring the replica in `storage` to what the servers behind `fetcher` have; `public` is the master key's file.

    Raises Mistake, Untrusted, Unreachable, CvmfsProblem; the replica then serves what it served before.
    """
    require_name(fqrn)
    started = time.monotonic()
    keys = load_master_keys([public])
    store = Store(storage)
    with failures():
        store.lay_out()
    with failures(), ExitStack() as stack:
        stack.enter_context(store.writing())
        pool = stack.enter_context(ThreadPoolExecutor(jobs, thread_name_prefix="snapshot"))
        stack.push(lambda *_: pool.shutdown(cancel_futures=True))
        work = _Snapshot(store, fetcher, pool, on_files, on_bytes)
        held = read_manifest(store, fqrn) if store.read_root(MANIFEST) is not None else None
        fetcher.fetch(MASTER_REPLICA, lambda: Buffer(MAX_ENVELOPE, MASTER_REPLICA))
        signed = work.root_file(MANIFEST)
        manifest = parse_manifest(split_envelope(signed, MANIFEST).text)
        known = Known(held.root_hash, held.timestamp, held.revision) if held is not None else None
        check_manifest(manifest, fqrn, known)
        if manifest.certificate is None:
            raise Untrusted(f"{fqrn}: the manifest names no certificate")
        certificate = load_certificate(work.small(manifest.certificate, Kind.CERTIFICATE))
        check_manifest_signature(split_envelope(signed, MANIFEST), certificate, fqrn)
        whitelist = work.root_file(WHITELIST)
        listed = check_whitelist(split_envelope(whitelist, WHITELIST), keys, fqrn, datetime.now(UTC))
        check_certificate(certificate, listed, Blacklist(), fqrn)
        stack.callback((storage / SNAPSHOTTING).unlink, missing_ok=True)
        store.write_root(SNAPSHOTTING, b"")
        missing = work.revisions(manifest)
        reflog = work.reflog(manifest)
        if manifest.alternative_paths:
            link_alternatives(store, manifest)
        store.settle()
        store.write_root(REFLOG, reflog)
        store.write_root(CHECKSUM, str(hash_of(reflog, manifest.root_hash.algorithm)).encode())
        store.write_root(WHITELIST, whitelist)
        store.write_root(LAST_SNAPSHOT, f"{datetime.now(UTC):%a %b %e %H:%M:%S UTC %Y}\n".encode())
        store.write_root(MANIFEST, signed)
    return Replicated(
        fqrn=fqrn,
        revision=manifest.revision,
        root_hash=str(manifest.root_hash),
        catalogs_new=work.catalogs,
        objects_new=store.objects_new,
        bytes_new=store.bytes_new,
        revisions_missing=missing,
        seconds=round(time.monotonic() - started, 3),
    )


class _Snapshot:
    def __init__(
        self,
        store: Store,
        fetcher: Fetcher,
        pool: ThreadPoolExecutor,
        on_files: Callable[[int], None],
        on_bytes: Callable[[int], None],
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._pool = pool
        self._on_files = on_files
        self._on_bytes = on_bytes
        self._asked: set[bytes] = set()
        self.catalogs = 0

    def root_file(self, name: str) -> bytes:
        """A signed file.  Raises Unreachable."""
        return bytes(self._fetcher.fetch(name, lambda: Buffer(MAX_ENVELOPE, name)).data)

    def small(self, content: ContentHash, kind: Kind) -> bytes:
        """The content of an object, which is in the store afterwards."""
        if not self._store.has(content, kind):
            self._object(content, kind)
        return self._store.read(content, kind)

    def revisions(self, manifest: Manifest) -> int:
        """Bring meta-information, tags, the newest revision and all tagged ones; how many of those are gone."""
        roots: dict[ContentHash, None] = {manifest.root_hash: None}
        if manifest.metainfo is not None:
            self.small(manifest.metainfo, Kind.METAINFO)
        if manifest.history is not None:
            tags = history_tags(manifest.fqrn, self.small(manifest.history, Kind.HISTORY))
            roots |= {tag.root_hash: None for tag in tags}
        missing = 0
        for root in roots:
            try:
                self._subtree(root)
            except ObjectMissing:
                if root == manifest.root_hash or not manifest.garbage_collectable:
                    raise
                missing += 1
        return missing

    def reflog(self, manifest: Manifest) -> bytes:
        """The source's reflog, with what only the replica's has."""
        data = bytes(self._fetcher.fetch(REFLOG, lambda: Buffer(MAX_REFLOG, REFLOG)).data)
        if manifest.reflog is not None and hash_of(data, manifest.reflog.algorithm) != manifest.reflog:
            raise ObjectCorrupt(f"{manifest.fqrn}: the reflog does not have the hash that the manifest says; try again")
        ours = self._store.read_root(REFLOG)
        return data if ours is None else merged_reflog(data, ours)

    def _subtree(self, content: ContentHash) -> None:
        """Bring a catalog and everything below it, itself last."""
        if self._store.has(content, Kind.CATALOG):
            return
        file = self._fetch(content, Kind.CATALOG)
        waiting: deque[Future[None]] = deque()
        with stored_rows(self._store, content, place=file) as rows:
            for found, kind in references(rows):
                key = found.digest + bytes([found.algorithm.value]) + kind.value.encode()
                if key not in self._asked and not self._store.has(found, kind):
                    waiting.append(self._pool.submit(self._object, found, kind))
                self._asked.add(key)
                while len(waiting) > _IN_FLIGHT:
                    waiting.popleft().result()
            nested = [below.content for below in rows.nested().values()]
        for below in nested:
            self._subtree(below)
        for future in waiting:
            future.result()
        self._store.place(file, content, Kind.CATALOG)
        self.catalogs += 1

    def _object(self, content: ContentHash, kind: Kind) -> None:
        self._store.place(self._fetch(content, kind), content, kind)
        self._on_files(1)

    def _fetch(self, content: ContentHash, kind: Kind) -> Path:
        """The verified bytes of an object in a file that has no name yet."""
        arrival: _Arrival | None = None

        def begin() -> _Arrival:
            nonlocal arrival
            if arrival is not None:
                arrival.drop()
            arrival = _Arrival(self._store, content, kind)
            return arrival

        try:
            taken = self._fetcher.fetch(content.path(kind), begin)
        except BaseException:
            if arrival is not None:
                arrival.drop()
            raise
        self._on_bytes(taken.size)
        return taken.path


class _Arrival:
    """A receiver that keeps the bytes of one object as they are, and judges them by their hash."""

    def __init__(self, store: Store, content: ContentHash, kind: Kind) -> None:
        self.path = store.scratch(".object")
        self.size = 0
        self._file: BinaryIO = self.path.open("wb")
        self._content = content
        self._kind = kind
        self._hasher = Hasher(content.algorithm)

    def write(self, data: bytes) -> None:
        """Take a piece.  Raises OSError."""
        self._hasher.update(data)
        self._file.write(data)
        self.size += len(data)

    def finish(self) -> None:
        """All has come.  Raises ObjectCorrupt, OSError."""
        self._file.close()
        if self._hasher.finish() != self._content:
            raise ObjectCorrupt(f"object {self._content}{self._kind.value} is corrupt: the bytes have another hash")
        self.path.chmod(0o644)

    def drop(self) -> None:
        """Forget it."""
        self._file.close()
        self.path.unlink(missing_ok=True)
