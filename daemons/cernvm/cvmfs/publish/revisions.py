# SPDX-License-Identifier: BSD-3-Clause
"""What names a revision: read and judged before a change, written last, in the order that keeps the storage whole.

Every verb that makes clients see something new goes through `changing` and ends with `Change.conclude`: certificate,
meta-information and history as objects, then the reflog, its checksum, and the manifest.
Thread rule: a `Change` belongs to one thread; the storage's lock keeps other writers out.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cernvm.kit.errors import sentence

from ..errors import CvmfsProblem, Mistake, NoRepository
from ..hashes import Kind, hash_of
from ..manifest import Manifest, parse_manifest, split_envelope
from .catalogs import StoredCatalog
from .keys import KeyFiles, ReleaseKey, load_release
from .ledger import Reference, Tag, next_history, next_reflog, reflog_names
from .sign import require_listed, sign_manifest
from .store import CHECKSUM, MANIFEST, REFLOG, WHITELIST, Store

_FQRN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+")


@dataclass(frozen=True)
class Stamp:
    """What every catalog of one revision says about it.  Seconds."""

    revision: int
    timestamp: int
    ttl: int


def next_stamp(last: Manifest) -> Stamp:
    """The stamp of the revision after `last`; its time never goes back."""
    return Stamp(last.revision + 1, max(int(time.time()), last.timestamp), last.ttl)


class Change:
    """A repository that is being changed; `last` is the manifest that the change follows (revision 0: none)."""

    def __init__(self, store: Store, last: Manifest, release: ReleaseKey, *, first: bool = False) -> None:
        """`first` for a repository that has no root catalog yet.  Raises CvmfsProblem."""
        self.store = store
        self.last = last
        self.release = release
        self.algorithm = last.root_hash.algorithm
        self.root = None if first else last.root_hash
        self._reflog = None if first else read_reflog(store, last)

    def history(self) -> bytes | None:
        """The tag database of the last revision.  Raises CvmfsProblem."""
        return self.store.read(self.last.history, Kind.HISTORY) if self.last.history else None

    def conclude(self, root: StoredCatalog, stamp: Stamp) -> Manifest:
        """Store and sign what names the new root catalog, and move the tag `trunk` to it.  Raises OSError."""
        head = Tag(root.content, stamp.revision, stamp.timestamp, root.size)
        history = next_history(self.last.fqrn, self.history(), self.last.history, head)
        return self._write(root, stamp, history)

    def conclude_history(self, edit: Callable[[bytes | None], bytes]) -> Manifest:
        """Keep the revision, with the tag database that `edit` makes of the last one.  Raises OSError."""
        last = self.last
        stamp = Stamp(last.revision, max(int(time.time()), last.timestamp), last.ttl)
        return self._write(StoredCatalog(last.root_hash, last.root_size or 0), stamp, edit(self.history()))

    def _write(self, root: StoredCatalog, stamp: Stamp, history_bytes: bytes) -> Manifest:
        store, last = self.store, self.last
        certificate = store.put(self.release.pem, Kind.CERTIFICATE, self.algorithm)
        metainfo = last.metainfo or store.put(_metainfo(last.fqrn), Kind.METAINFO, self.algorithm)
        history = store.put(history_bytes, Kind.HISTORY, self.algorithm)
        references = (
            (root.content, Reference.CATALOG),
            (certificate, Reference.CERTIFICATE),
            (history, Reference.HISTORY),
            (metainfo, Reference.METAINFO),
        )
        log = next_reflog(last.fqrn, self._reflog, references, stamp.timestamp)
        manifest = replace(
            last,
            root_hash=root.content,
            root_size=root.size or last.root_size,
            revision=stamp.revision,
            timestamp=stamp.timestamp,
            certificate=certificate,
            history=history,
            metainfo=metainfo,
        )
        return write_signed(store, manifest, self.release, log)


def write_signed(store: Store, manifest: Manifest, release: ReleaseKey, reflog: bytes) -> Manifest:
    """Put everything on the disk, then the reflog, its checksum and the signed manifest.  Raises OSError."""
    algorithm = manifest.root_hash.algorithm
    log_hash = hash_of(reflog, algorithm)
    manifest = replace(manifest, reflog=log_hash)
    if manifest.alternative_paths:
        link_alternatives(store, manifest)
    signed = sign_manifest(manifest.body(), algorithm, release.private)
    store.settle()
    store.write_root(REFLOG, reflog)
    store.write_root(CHECKSUM, str(log_hash).encode())
    store.write_root(MANIFEST, signed)
    return manifest


def link_alternatives(store: Store, manifest: Manifest) -> None:
    """The second names (`.cvmfsalt-...`) of what clients of a closed repository read first.  Raises OSError."""
    named = (
        (manifest.root_hash, Kind.CATALOG),
        (manifest.certificate, Kind.CERTIFICATE),
        (manifest.history, Kind.HISTORY),
        (manifest.metainfo, Kind.METAINFO),
    )
    for content, kind in named:
        link = store.root / f".cvmfsalt-{content}{kind.value}"
        if content is not None and not link.is_symlink():
            link.symlink_to(content.path(kind))


def read_reflog(store: Store, manifest: Manifest) -> bytes:
    """The reflog to continue: unharmed, or left by a writer that was killed before its manifest.

    Raises CvmfsProblem.
    """
    reflog = store.read_root(REFLOG)
    if reflog is None:
        raise CvmfsProblem(f"{store.root / REFLOG}: is missing; garbage could not be told from content")
    known = store.read_root(CHECKSUM)
    intact = known is not None and str(hash_of(reflog, manifest.root_hash.algorithm)).encode() == known.strip()
    if not intact and not reflog_names(reflog, manifest.root_hash):
        raise CvmfsProblem(
            f"{store.root / REFLOG}: fits neither its checksum nor the served revision; "
            "put back the file of the last publication"
        )
    return reflog


@contextmanager
def changing(fqrn: str, storage: Path, keys: Path) -> Iterator[Change]:
    """Be the only writer of a repository that exists, with keys that clients will believe.

    Everything is checked before the first write.  Raises Mistake, NoRepository, CvmfsProblem.
    """
    require_name(fqrn)
    release = load_release(KeyFiles(keys, fqrn))
    store = Store(storage)
    read_manifest(store, fqrn)
    require_trusted(store, fqrn, release)
    with failures(), store.writing():
        yield Change(store, read_manifest(store, fqrn), release)


def require_trusted(store: Store, fqrn: str, release: ReleaseKey) -> None:
    """See that clients will believe what `release` signs.  Raises Mistake, Untrusted, Malformed."""
    whitelist = store.read_root(WHITELIST)
    if whitelist is None:
        raise Mistake(f"{store.root / WHITELIST}: is missing; sign one with 'cvmfs-server resign'")
    require_listed(whitelist, fqrn, release.der, now())


@contextmanager
def failures() -> Iterator[None]:
    """What the disk or SQLite refuse while the storage is written to, as one sentence."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise CvmfsProblem(f"the storage cannot be written: {sentence(error)}") from error


def read_manifest(store: Store, fqrn: str) -> Manifest:
    """The newest revision in `store`, its signature not checked.  Raises Mistake, NoRepository, CvmfsProblem."""
    data = store.read_root(MANIFEST)
    if data is None:
        raise NoRepository(f"{store.root}: holds no repository; make one with 'cvmfs-server mkfs'")
    manifest = parse_manifest(split_envelope(data, str(store.root / MANIFEST)).text)
    if manifest.fqrn != fqrn:
        raise Mistake(f"{store.root}: holds the repository {manifest.fqrn}, not {fqrn}")
    return manifest


def require_name(fqrn: str) -> None:
    """Raise Mistake unless this may be a repository's name."""
    if not _FQRN.fullmatch(fqrn) or len(fqrn) > 255:
        raise Mistake(
            f"{fqrn!r} is not the name of a repository: it has a dot and letters, digits, '-' or '_', "
            "as in software.example.org"
        )


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def now() -> datetime:
    """This moment, UTC."""
    return datetime.now(UTC)


def _metainfo(fqrn: str) -> bytes:
    fields = {"administrator": "", "email": "", "organisation": "", "description": f"The repository {fqrn}", "url": ""}
    lists: dict[str, object] = {"recommended-stratum0": "", "recommended-stratum1s": [], "custom": {}}
    return json.dumps({**fields, **lists}, indent=2).encode() + b"\n"
