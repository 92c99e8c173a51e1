# SPDX-License-Identifier: BSD-3-Clause
"""A repository's life as its owner sees it: made, published to, described, its whitelist renewed.

Nothing that clients see changes before the manifest is replaced, which is the last write of each operation.
Everything is checked before the first write.  Thread rule: one operation belongs to one thread; a lock in the storage
keeps other writers out.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cernvm.kit.errors import sentence

from ..errors import CvmfsProblem, Mistake, NoRepository
from ..hashes import Algorithm, ContentHash, Kind, hash_of
from ..manifest import DEFAULT_TTL, Manifest, parse_manifest, split_envelope
from .assemble import Assembled, Assembler, Stamp
from .dirtab import MAX_SIZE, Dirtab, parse_dirtab
from .keys import KeyFiles, ReleaseKey, ensure_keys, load_master, load_release
from .ledger import Reference, Tag, next_history, next_reflog, reflog_names
from .objects import Depositor
from .scan import DIRTAB
from .seen import Seen
from .sign import Whitelist, require_listed, sign_manifest
from .store import MANIFEST, MASTER_REPLICA, REFLOG, WHITELIST, Store

WHITELIST_DAYS: Final = 30
_FQRN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+")
_CHECKSUM: Final = "reflog.chksum"


@dataclass(frozen=True)
class Progress:
    """Whom to tell how many more files, and bytes of them, are done.  Called from any thread."""

    files: Callable[[int], None] = lambda _: None
    bytes: Callable[[int], None] = lambda _: None


@dataclass(frozen=True)
class Published:
    """A new revision.  Sizes in bytes: `bytes` of the tree's files, `bytes_stored` of new objects."""

    fqrn: str
    revision: int
    root_hash: str
    files: int
    entries: int
    bytes: int
    catalogs: int
    catalogs_kept: int
    objects_new: int
    bytes_stored: int
    seconds: float


def create_repository(
    fqrn: str,
    storage: Path,
    keys: Path,
    *,
    algorithm: Algorithm = Algorithm.SHA1,
    whitelist_days: int = WHITELIST_DAYS,
    ttl: int = DEFAULT_TTL,
) -> Published:
    """Make keys, whitelist and the first revision: an empty root.

    Keys that are all there are used as they are.  Raises Mistake, CvmfsProblem.
    """
    _require_name(fqrn)
    now = _now()
    hash_of(b"", algorithm)
    _require_vacant(storage)
    if _inside(keys, storage):
        raise Mistake(f"{keys}: the keys would be served to everyone from inside the storage {storage}")
    files = KeyFiles(keys, fqrn)
    ensure_keys(files, now)
    release, master = load_release(files), load_master(files)
    store = Store(storage)
    store.lay_out()
    with _failures(), store.writing():
        _require_vacant(storage)
        listed = (hash_of(release.der, algorithm),)
        whitelist = Whitelist(fqrn, now, now + timedelta(days=whitelist_days), listed)
        store.write_root(WHITELIST, whitelist.sign(algorithm, master))
        store.write_root(MASTER_REPLICA, b"Stratum 1 servers may replicate this repository\n")
        first = Manifest(ContentHash(bytes(20), algorithm), fqrn, 0, ttl=ttl, garbage_collectable=True)
        with tempfile.TemporaryDirectory(dir=store.private) as empty:
            Path(empty).chmod(0o755)
            return _Publication(store, first, release, None).run(Path(empty), jobs=1, progress=Progress())


def publish_tree(
    fqrn: str,
    tree: Path,
    storage: Path,
    keys: Path,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
    ttl: int | None = None,
) -> Published:
    """Make the repository's content equal to the directory `tree`.

    `jobs` is the number of threads that compress (default: the processors); `ttl` (seconds) stays as it is without a
    value.  Raises Mistake (the person can mend it) or CvmfsProblem; the served revision is then the old one.
    """
    _require_name(fqrn)
    if not tree.is_dir():
        raise Mistake(f"{tree}: is not a directory")
    for place, what in ((storage, "storage"), (keys, "key")):
        if _inside(place, tree):
            raise Mistake(f"{tree}: holds the {what} directory {place}, which must not be published")
    release = load_release(KeyFiles(keys, fqrn))
    store = Store(storage)
    _manifest(store, fqrn)
    whitelist = store.read_root(WHITELIST)
    if whitelist is None:
        raise Mistake(f"{storage / WHITELIST}: is missing; sign one with 'cvmfs-server resign'")
    require_listed(whitelist, fqrn, release.der, _now())
    with _failures(), store.writing():
        last = _manifest(store, fqrn)
        follow = last if ttl is None else replace(last, ttl=ttl)
        work = _Publication(store, follow, release, last.root_hash)
        return work.run(tree, jobs=jobs or _processors(), progress=progress or Progress())


def resign_whitelist(fqrn: str, storage: Path, keys: Path, *, days: int = WHITELIST_DAYS) -> datetime:
    """Sign a new whitelist for the certificate in `keys`; return when it expires.  Raises Mistake, CvmfsProblem."""
    _require_name(fqrn)
    files = KeyFiles(keys, fqrn)
    release, master = load_release(files), load_master(files)
    store = Store(storage)
    algorithm = _manifest(store, fqrn).root_hash.algorithm
    now = _now()
    whitelist = Whitelist(fqrn, now, now + timedelta(days=days), (hash_of(release.der, algorithm),))
    with _failures(), store.writing():
        store.write_root(WHITELIST, whitelist.sign(algorithm, master))
    return whitelist.expires


def read_manifest(fqrn: str, storage: Path) -> Manifest:
    """The newest revision in `storage`, its signature not checked.  Raises Mistake, NoRepository, CvmfsProblem."""
    return _manifest(Store(storage), fqrn)


class _Publication:
    """One revision on its way; `last` says what it follows (revision 0: nothing)."""

    def __init__(self, store: Store, last: Manifest, release: ReleaseKey, root: ContentHash | None) -> None:
        self._store = store
        self._last = last
        self._release = release
        self._root = root
        self._algorithm = last.root_hash.algorithm

    def run(self, tree: Path, *, jobs: int, progress: Progress) -> Published:
        started = time.monotonic()
        now = max(int(time.time()), self._last.timestamp)
        stamp = Stamp(self._last.revision + 1, now, self._last.ttl)
        reflog = self._reflog()
        with Seen(self._store.private / f"seen{self._algorithm.tag}.db") as seen:
            depositor = Depositor(self._store, self._algorithm, seen, on_bytes=progress.bytes)
            assembler = Assembler(
                self._store, self._algorithm, depositor, stamp, dirtab=_dirtab(tree), on_files=progress.files
            )
            assembled = assembler.assemble(os.fsencode(tree.resolve()), self._root, jobs)
            self._conclude(assembled, stamp, reflog)
            seen.keep()
        counters = assembled.counters
        # A nested catalog's directory is counted in both catalogs, but it is one entry.
        kinds = (counters[kind] for kind in ("regular", "symlink", "special", "dir"))
        return Published(
            fqrn=self._last.fqrn,
            revision=stamp.revision,
            root_hash=str(assembled.root.content),
            files=counters["regular"],
            entries=sum(kinds) - counters["nested"],
            bytes=counters["file_size"],
            catalogs=assembled.written + assembled.kept,
            catalogs_kept=assembled.kept,
            objects_new=self._store.objects_new,
            bytes_stored=self._store.bytes_new,
            seconds=round(time.monotonic() - started, 3),
        )

    def _conclude(self, assembled: Assembled, stamp: Stamp, reflog: bytes | None) -> None:
        """Sign and store what names the new root catalog; the manifest is the last."""
        store, last, root = self._store, self._last, assembled.root
        certificate = store.put(self._release.pem, Kind.CERTIFICATE, self._algorithm)
        metainfo = last.metainfo or store.put(_metainfo(last.fqrn), Kind.METAINFO, self._algorithm)
        before = store.read(last.history, Kind.HISTORY) if last.history else None
        head = Tag(root.content, stamp.revision, stamp.timestamp, root.size)
        history = store.put(next_history(last.fqrn, before, last.history, head), Kind.HISTORY, self._algorithm)
        references = (
            (root.content, Reference.CATALOG),
            (certificate, Reference.CERTIFICATE),
            (history, Reference.HISTORY),
            (metainfo, Reference.METAINFO),
        )
        log = next_reflog(last.fqrn, reflog, references, stamp.timestamp)
        log_hash = hash_of(log, self._algorithm)
        manifest = replace(
            last,
            root_hash=root.content,
            root_size=root.size,
            revision=stamp.revision,
            timestamp=stamp.timestamp,
            certificate=certificate,
            history=history,
            metainfo=metainfo,
            reflog=log_hash,
        )
        signed = sign_manifest(manifest.body(), self._algorithm, self._release.private)
        store.settle()
        store.write_root(REFLOG, log)
        store.write_root(f"publisher/{_CHECKSUM}", str(log_hash).encode())
        store.write_root(MANIFEST, signed)

    def _reflog(self) -> bytes | None:
        """The reflog to continue: unharmed, or left by a writer that was killed before its manifest."""
        if self._root is None:
            return None
        reflog = self._store.read_root(REFLOG)
        if reflog is None:
            raise CvmfsProblem(f"{self._store.root / REFLOG}: is missing; garbage could not be told from content")
        known = self._store.read_root(f"publisher/{_CHECKSUM}")
        intact = known is not None and str(hash_of(reflog, self._algorithm)).encode() == known.strip()
        if not intact and not reflog_names(reflog, self._root):
            raise CvmfsProblem(
                f"{self._store.root / REFLOG}: fits neither its checksum nor the served revision; "
                "put back the file of the last publication"
            )
        return reflog


@contextmanager
def _failures() -> Iterator[None]:
    """What the disk or SQLite refuse while the storage is written to, as one sentence."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise CvmfsProblem(f"the storage cannot be written: {sentence(error)}") from error


def _manifest(store: Store, fqrn: str) -> Manifest:
    data = store.read_root(MANIFEST)
    if data is None:
        raise NoRepository(f"{store.root}: holds no repository; make one with 'cvmfs-server mkfs'")
    manifest = parse_manifest(split_envelope(data, str(store.root / MANIFEST)).text)
    if manifest.fqrn != fqrn:
        raise Mistake(f"{store.root}: holds the repository {manifest.fqrn}, not {fqrn}")
    return manifest


def _dirtab(tree: Path) -> Dirtab:
    path = tree / os.fsdecode(DIRTAB)
    try:
        if not path.is_file() or path.is_symlink():
            return Dirtab()
        with path.open("rb") as file:
            return parse_dirtab(file.read(MAX_SIZE + 1))
    except OSError:
        raise Mistake(f"{path}: cannot be read by this user") from None


def _metainfo(fqrn: str) -> bytes:
    fields = {"administrator": "", "email": "", "organisation": "", "description": f"The repository {fqrn}", "url": ""}
    lists: dict[str, object] = {"recommended-stratum0": "", "recommended-stratum1s": [], "custom": {}}
    return json.dumps({**fields, **lists}, indent=2).encode() + b"\n"


def _require_name(fqrn: str) -> None:
    if not _FQRN.fullmatch(fqrn) or len(fqrn) > 255:
        raise Mistake(
            f"{fqrn!r} is not the name of a repository: it has a dot and letters, digits, '-' or '_', "
            "as in software.example.org"
        )


def _require_vacant(storage: Path) -> None:
    if (storage / MANIFEST).exists():
        raise Mistake(f"{storage}: holds a repository already; publish to it or name another directory")


def _inside(path: Path, tree: Path) -> bool:
    return path.resolve().is_relative_to(tree.resolve())


def _processors() -> int:
    return len(os.sched_getaffinity(0))


def _now() -> datetime:
    return datetime.now(UTC)
