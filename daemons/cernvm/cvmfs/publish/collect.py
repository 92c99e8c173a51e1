# SPDX-License-Identifier: BSD-3-Clause
"""Garbage: what no kept revision refers to is found (mark) and removed (sweep).

Kept are the newest revision, every tagged one, and the last few or the young ones along the chain of root catalogs.
Everything else that the reflog names is condemned.  The order makes a stop at any point harmless:

1. the condemned roots are written down (`publisher/condemned`) and leave the reflog;
2. their catalogs that nobody keeps are moved into `publisher/graves`, each before those below it, so that **a stored
   catalog still means that everything below it is stored**;
3. what those name and nobody keeps is removed, then the moved catalog itself.

The next collection goes on with what it finds in both places.

Objects of a publication that failed are in no reflog and stay.  Readers of kept revisions notice nothing.
Thread rule: one collection belongs to one thread; the storage's lock keeps writers out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from .. import flags
from ..errors import CvmfsProblem, Mistake
from ..hashes import ContentHash, Kind, hash_of, parse_hash
from ..manifest import Manifest
from .keys import KeyFiles, ReleaseKey, load_release
from .ledger import Reference, Reflogged, Tag, history_tags, next_reflog, reflog_lines, reflog_without
from .revisions import failures, read_manifest, read_reflog, require_name, require_trusted, write_signed
from .rows import StoredRows, stored_rows
from .store import CHECKSUM, REFLOG, Store
from .tags import revisions

DEFAULT_AGE: Final = timedelta(days=3)
CONDEMNED: Final = "publisher/condemned"
GRAVES: Final = "graves"
_KINDS: Final = {
    Reference.CATALOG: Kind.CATALOG,
    Reference.CERTIFICATE: Kind.CERTIFICATE,
    Reference.HISTORY: Kind.HISTORY,
    Reference.METAINFO: Kind.METAINFO,
}


@dataclass(frozen=True)
class Collected:
    """What a collection did, or with `dry_run` would do.  Bytes as stored."""

    fqrn: str
    dry_run: bool
    revisions_kept: int
    revisions_removed: int
    catalogs_removed: int
    objects_removed: int
    bytes_removed: int
    seconds: float


def collect_garbage(
    fqrn: str,
    storage: Path,
    keys: Path | None,
    *,
    keep: int | None = None,
    newer_than: datetime | None = None,
    dry_run: bool = False,
) -> Collected:
    """Remove what only old revisions refer to.

    `keep` is how many of the last revisions stay; else those younger than `newer_than` (default: three days) do.
    With `keys` the manifest is signed again and names the shorter reflog; without (a replica) it stays as it is.
    Raises Mistake, NoRepository, CvmfsProblem.
    """
    require_name(fqrn)
    started = time.monotonic()
    release = load_release(KeyFiles(keys, fqrn)) if keys is not None else None
    store = Store(storage)
    manifest = read_manifest(store, fqrn)
    if release is not None:
        require_trusted(store, fqrn, release)
    if not manifest.garbage_collectable:
        raise Mistake(f"{fqrn}: its manifest does not allow garbage collection (line G)")
    if keep is not None and newer_than is not None:
        raise Mistake("give either a number of revisions to keep or an age, not both")
    limit = (newer_than or datetime.now(UTC) - DEFAULT_AGE).timestamp()
    with failures(), store.writing():
        work = _Collection(store, read_manifest(store, fqrn), release)
        return work.run(keep, limit, dry_run, started)


class _Collection:
    def __init__(self, store: Store, manifest: Manifest, release: ReleaseKey | None) -> None:
        self._store = store
        self._manifest = manifest
        self._release = release
        self._reflog = read_reflog(store, manifest)
        self._lines = reflog_lines(self._reflog)
        self._kept: set[bytes] = set()
        self._catalogs = self._objects = self._bytes = 0
        self._gone: set[bytes] = set()

    def run(self, keep: int | None, limit: float, dry_run: bool, started: float) -> Collected:
        roots = self._roots_to_keep(keep, limit)
        for root in roots:
            self._mark(root)
        old = self._old_objects(roots)
        condemned = [
            (line.content, _KINDS[line.kind])
            for line in self._lines
            if (line.kind is Reference.CATALOG and line.content not in roots) or line in old
        ]
        if not dry_run:
            self._announce(condemned)
        everything = dict.fromkeys([*condemned, *self._left_behind()])
        condemned_roots = [
            content for content, kind in everything if kind is Kind.CATALOG and _key(content, kind) not in self._kept
        ]
        buried = self._bury(condemned_roots, dry_run)
        if not dry_run:
            self._store.settle()
        for content in buried:
            self._sweep(content, dry_run)
        for content, kind in everything:
            if kind is not Kind.CATALOG:
                self._remove(content, kind, dry_run)
        if not dry_run:
            (self._store.root / CONDEMNED).unlink(missing_ok=True)
            self._drop_links()
        return Collected(
            fqrn=self._manifest.fqrn,
            dry_run=dry_run,
            revisions_kept=len(roots),
            revisions_removed=len(condemned_roots),
            catalogs_removed=self._catalogs,
            objects_removed=self._objects,
            bytes_removed=self._bytes,
            seconds=round(time.monotonic() - started, 3),
        )

    def _roots_to_keep(self, keep: int | None, limit: float) -> set[ContentHash]:
        manifest, store = self._manifest, self._store
        roots = {manifest.root_hash}
        if manifest.history is not None:
            roots |= {tag.root_hash for tag in history_tags(manifest.fqrn, store.read(manifest.history, Kind.HISTORY))}
        stamps = {line.content: line.timestamp for line in self._lines}
        newest = Tag(manifest.root_hash, manifest.revision, manifest.timestamp, 0)
        for number, found in enumerate(revisions(store, newest)):
            age = stamps.get(found.root_hash, found.timestamp)
            if number >= keep if keep is not None else age < limit:
                break
            roots.add(found.root_hash)
        missing = [root for root in roots if not store.has(root, Kind.CATALOG)]
        if missing:  # what they refer to could not be told from garbage
            raise CvmfsProblem(f"{store.root}: the root catalog {missing[0]} of a revision to keep is missing")
        return roots

    def _old_objects(self, roots: set[ContentHash]) -> list[Reflogged]:
        """Tag databases, certificates and meta-information that are older than the oldest kept root catalog."""
        manifest = self._manifest
        current = {manifest.certificate, manifest.history, manifest.metainfo}
        oldest = min((line.timestamp for line in self._lines if line.content in roots), default=0)
        return [
            line
            for line in self._lines
            if line.kind is not Reference.CATALOG and line.timestamp < oldest and line.content not in current
        ]

    def _left_behind(self) -> Iterator[tuple[ContentHash, Kind]]:
        """What a collection that was stopped had taken from the reflog already, and nothing names again."""
        named = {line.content for line in self._lines}
        for word in (self._store.read_root(CONDEMNED) or b"").decode("ascii", "replace").split():
            content = parse_hash(word[:-1])
            if content not in named:
                yield content, Kind(word[-1])

    def _announce(self, condemned: list[tuple[ContentHash, Kind]]) -> None:
        if not condemned:
            return
        store = self._store
        noted = dict.fromkeys([*self._left_behind(), *condemned])
        store.write_root(CONDEMNED, "".join(f"{content}{kind.value}\n" for content, kind in noted).encode())
        reflog = reflog_without(self._reflog, [content for content, _ in condemned])
        if self._release is not None:
            certificate = store.put(self._release.pem, Kind.CERTIFICATE, self._manifest.root_hash.algorithm)
            manifest = replace(self._manifest, certificate=certificate)
            named = ((certificate, Reference.CERTIFICATE),)
            write_signed(store, manifest, self._release, next_reflog(manifest.fqrn, reflog, named, int(time.time())))
            return
        store.write_root(REFLOG, reflog)
        store.write_root(CHECKSUM, str(hash_of(reflog, self._manifest.root_hash.algorithm)).encode())

    def _mark(self, content: ContentHash) -> None:
        """Keep a catalog and everything below it."""
        pending = [content]
        while pending:
            catalog = pending.pop()
            key = _key(catalog, Kind.CATALOG)
            if key in self._kept:
                continue
            self._kept.add(key)
            with stored_rows(self._store, catalog) as rows:
                self._kept.update(_key(found, kind) for found, kind in references(rows))
                pending += [nested.content for nested in rows.nested().values()]

    def _bury(self, condemned: list[ContentHash], dry_run: bool) -> list[ContentHash]:
        """Take the catalogs that nobody keeps out of the served storage, from the roots down; return them."""
        graves = self._store.private / GRAVES
        if not dry_run:
            graves.mkdir(mode=0o700, exist_ok=True)
        left = [parse_hash(path.name) for path in graves.iterdir()] if graves.is_dir() else []
        pending = [*left, *condemned]
        buried: dict[ContentHash, None] = {}
        while pending:
            catalog = pending.pop()
            place, grave = self._store.root / catalog.path(Kind.CATALOG), graves / str(catalog)
            if catalog in buried or (_key(catalog, Kind.CATALOG) in self._kept and not grave.exists()):
                continue
            if not grave.exists():
                if not place.exists():
                    continue
                self._bytes += place.stat().st_size
                self._catalogs += 1
                self._objects += 1
                if not dry_run:
                    place.rename(grave)
            buried[catalog] = None
            with stored_rows(self._store, catalog, place=grave if grave.exists() else None) as rows:
                pending += [nested.content for nested in rows.nested().values()]
        return list(buried)

    def _sweep(self, content: ContentHash, dry_run: bool) -> None:
        """Remove what a condemned catalog names and nobody keeps, then its copy."""
        grave = self._store.private / GRAVES / str(content)
        with stored_rows(self._store, content, place=grave if grave.exists() else None) as rows:
            for found, kind in references(rows):
                self._remove(found, kind, dry_run)
        if not dry_run:
            grave.unlink()

    def _drop_links(self) -> None:
        for link in self._store.root.glob(".cvmfsalt-*"):
            if link.is_symlink() and not link.exists():
                link.unlink()

    def _remove(self, content: ContentHash, kind: Kind, dry_run: bool) -> None:
        key = _key(content, kind)
        if key in self._gone or key in self._kept:
            return
        self._gone.add(key)
        path = self._store.root / content.path(kind)
        try:
            size = path.stat().st_size
            if not dry_run:
                path.unlink()
        except FileNotFoundError:
            return
        self._bytes += size
        self._objects += 1


def references(rows: StoredRows) -> Iterator[tuple[ContentHash, Kind]]:
    """The files and chunks that a catalog names, external ones not among them.  Raises Malformed."""
    files = "SELECT DISTINCT hash, flags & ? FROM catalog WHERE length(hash) = 20 AND flags & ? = 0"
    for digest, bits in rows.query(files, (flags.HASH_MASK, flags.EXTERNAL)):
        yield ContentHash(digest, flags.algorithm_of(bits)), Kind.FILE
    chunks = (
        "SELECT DISTINCT chunks.hash, flags & ? FROM chunks JOIN catalog USING (md5path_1, md5path_2)"
        " WHERE flags & ? = 0"
    )
    for digest, bits in rows.query(chunks, (flags.HASH_MASK, flags.EXTERNAL)):
        yield ContentHash(digest, flags.algorithm_of(bits)), Kind.CHUNK


def _key(content: ContentHash, kind: Kind) -> bytes:
    return content.digest + bytes([content.algorithm.value]) + kind.value.encode()
