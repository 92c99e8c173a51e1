# SPDX-License-Identifier: BSD-3-Clause
"""A repository made, and a whole directory published to it.

Nothing that clients see changes before the manifest is replaced, which is the last write of each operation.
Everything is checked before the first write.  Thread rule: one operation belongs to one thread; a lock in the storage
keeps other writers out.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

from cernvm.kit.errors import sentence

from ..errors import CvmfsProblem, Mistake
from ..hashes import Algorithm, ContentHash, hash_of
from ..manifest import DEFAULT_TTL, Manifest
from .assemble import Assembled, Assembler, TreeSource
from .dirtab import MAX_SIZE, Dirtab, parse_dirtab
from .keys import KeyFiles, ensure_keys, load_master, load_release
from .objects import Depositor
from .revisions import (
    Change,
    Stamp,
    changing,
    failures,
    next_stamp,
    now,
    processors,
    read_manifest,
    require_name,
)
from .scan import DIRTAB
from .seen import Seen
from .sign import Whitelist
from .store import MANIFEST, MASTER_REPLICA, WHITELIST, Store

WHITELIST_DAYS: Final = 30


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
    require_name(fqrn)
    made = now()
    hash_of(b"", algorithm)
    _require_vacant(storage)
    if inside(keys, storage):
        raise Mistake(f"{keys}: the keys would be served to everyone from inside the storage {storage}")
    files = KeyFiles(keys, fqrn)
    ensure_keys(files, made)
    release, master = load_release(files), load_master(files)
    store = Store(storage)
    store.lay_out()
    with failures(), store.writing():
        _require_vacant(storage)
        listed = (hash_of(release.der, algorithm),)
        whitelist = Whitelist(fqrn, made, made + timedelta(days=whitelist_days), listed)
        store.write_root(WHITELIST, whitelist.sign(algorithm, master))
        store.write_root(MASTER_REPLICA, b"Stratum 1 servers may replicate this repository\n")
        first = Manifest(ContentHash(bytes(20), algorithm), fqrn, 0, ttl=ttl, garbage_collectable=True)
        with tempfile.TemporaryDirectory(dir=store.private) as empty:
            Path(empty).chmod(0o755)
            change = Change(store, first, release, first=True)
            return _publish(change, Path(empty), jobs=1, progress=Progress())


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
    require_name(fqrn)
    if not tree.is_dir():
        raise Mistake(f"{tree}: is not a directory")
    for place, what in ((storage, "storage"), (keys, "key")):
        if inside(place, tree):
            raise Mistake(f"{tree}: holds the {what} directory {place}, which must not be published")
    with changing(fqrn, storage, keys) as change:
        if ttl is not None:
            change.last = replace(change.last, ttl=ttl)
        return _publish(change, tree, jobs=jobs or processors(), progress=progress or Progress())


def remove_repository(fqrn: str, storage: Path) -> None:
    """Take a repository away: its manifest first, so that nobody sees half of it.  Keys stay where they are.

    Only what a repository consists of is removed; the directory itself goes if nothing else is in it.
    Raises Mistake, NoRepository, CvmfsProblem.
    """
    require_name(fqrn)
    store = Store(storage)
    read_manifest(store, fqrn)
    with failures(), store.writing():
        read_manifest(store, fqrn)
        for path in [storage / MANIFEST, *sorted(storage.glob(".cvmfs*"))]:
            path.unlink(missing_ok=True)
        shutil.rmtree(storage / "data")
        (storage / "data/txn").mkdir(parents=True)  # where the lock's holder cleans up
    try:
        shutil.rmtree(storage / "data")
        shutil.rmtree(store.private)
        if not any(storage.iterdir()):
            storage.rmdir()
    except OSError as error:
        raise CvmfsProblem(f"the storage cannot be removed: {sentence(error)}") from error


def read_repository(fqrn: str, storage: Path) -> Manifest:
    """The newest revision in `storage`, its signature not checked.  Raises Mistake, NoRepository, CvmfsProblem."""
    return read_manifest(Store(storage), fqrn)


def _publish(change: Change, tree: Path, *, jobs: int, progress: Progress) -> Published:
    started = time.monotonic()
    store = change.store
    stamp = next_stamp(change.last)
    with Seen(store.private / f"seen{change.algorithm.tag}.db") as seen:
        depositor = Depositor(store, change.algorithm, seen, on_bytes=progress.bytes)
        assembler = Assembler(store, change.algorithm, depositor, stamp, dirtab=_dirtab(tree), on_files=progress.files)
        assembled = assembler.assemble(TreeSource(os.fsencode(tree.resolve()), depositor), change.root, jobs)
        change.conclude(assembled.root, stamp)
        seen.keep()
    return published(change, stamp, assembled, started)


def published(change: Change, stamp: Stamp, assembled: Assembled, started: float) -> Published:
    """The account of a finished publication that began at `started` on the monotonic clock."""
    counters = assembled.counters
    # A nested catalog's directory is counted in both catalogs, but it is one entry.
    kinds = (counters[kind] for kind in ("regular", "symlink", "special", "dir"))
    return Published(
        fqrn=change.last.fqrn,
        revision=stamp.revision,
        root_hash=str(assembled.root.content),
        files=counters["regular"],
        entries=sum(kinds) - counters["nested"],
        bytes=counters["file_size"],
        catalogs=assembled.written + assembled.kept,
        catalogs_kept=assembled.kept,
        objects_new=change.store.objects_new,
        bytes_stored=change.store.bytes_new,
        seconds=round(time.monotonic() - started, 3),
    )


def _dirtab(tree: Path) -> Dirtab:
    path = tree / os.fsdecode(DIRTAB)
    try:
        if not path.is_file() or path.is_symlink():
            return Dirtab()
        with path.open("rb") as file:
            return parse_dirtab(file.read(MAX_SIZE + 1))
    except OSError:
        raise Mistake(f"{path}: cannot be read by this user") from None


def _require_vacant(storage: Path) -> None:
    if (storage / MANIFEST).exists():
        raise Mistake(f"{storage}: holds a repository already; publish to it or name another directory")


def inside(path: Path, tree: Path) -> bool:
    """Whether `path` is `tree` or lies below it."""
    return path.resolve().is_relative_to(tree.resolve())
