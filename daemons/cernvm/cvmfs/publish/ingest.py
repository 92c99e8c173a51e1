# SPDX-License-Identifier: BSD-3-Clause
"""Archives put into a repository, and paths taken out of it, without a copy of its tree.

The cost follows what is put in and the catalogs on the way to it, not the repository.  Until the manifest is written,
as the last thing, clients see nothing of it.  Thread rule: one operation belongs to one thread.
"""

from __future__ import annotations

import os
import stat
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final

from cernvm.kit.errors import sentence

from .. import flags
from ..errors import CvmfsProblem, Mistake
from ..hashes import ContentHash, Kind
from .archive import Bounds, Unpacker
from .assemble import Assembler
from .dirtab import MAX_SIZE, Dirtab, parse_dirtab
from .merge import Merge, Node, find_row
from .objects import Depositor
from .repository import Progress, Published, published
from .revisions import Change, changing, next_stamp, processors
from .scan import DIRTAB, MARKER, MAX_NAME, Entry, Told
from .seen import Seen

_NANO: Final = 1_000_000_000


def ingest(
    fqrn: str,
    storage: Path,
    keys: Path,
    archives: Sequence[tuple[str, IO[bytes]]],
    *,
    base: str = "",
    delete: Sequence[str] = (),
    catalog: bool = False,
    bounds: Bounds | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Published:
    """Publish a revision with the archives (name and stream) put below `base`, after the paths `delete` are gone.

    With `catalog` the directory `base` gets a catalog of its own.  Wheels and zip files need a stream that can seek.
    Raises Mistake, CvmfsProblem; the served revision is then the old one.
    """
    place = _path(base)
    doomed = [_path(path) for path in delete]
    if b"" in doomed:
        raise Mistake("the root of a repository cannot be deleted")
    if not archives and not doomed:
        raise Mistake("there is nothing to do: give an archive, or a path to delete")
    watch = progress or Progress()
    with changing(fqrn, storage, keys) as change, ExitStack() as stack:
        started = time.monotonic()
        root = change.last.root_hash
        changes = Node()
        for path in doomed:
            if find_row(change.store, root, path) is None:
                raise Mistake(f"{os.fsdecode(path)}: is not in the repository, so that it cannot be deleted")
            changes.at(path).removed = True
        seen = stack.enter_context(Seen(change.store.private / f"seen{change.algorithm.tag}.db"))
        depositor = Depositor(change.store, change.algorithm, seen, on_bytes=watch.bytes)
        pool = stack.enter_context(ThreadPoolExecutor(jobs or processors(), thread_name_prefix="ingest"))
        stack.push(lambda *_: pool.shutdown(cancel_futures=True))
        unpacker = Unpacker(changes, place, depositor, pool, bounds or Bounds(), watch.files)
        for name, file in archives:
            _take_in(unpacker, name, file)
        if catalog and place:
            marker = changes.at(place + b"/" + MARKER)
            marker.entry = Entry(place + b"/" + MARKER, Told(stat.S_IFREG | 0o644, 0, time.time_ns()))
            marker.entry = _with_nothing(marker.entry, depositor)
        return _publish(change, changes, depositor, seen, started)


def _publish(change: Change, changes: Node, depositor: Depositor, seen: Seen, started: float) -> Published:
    stamp = next_stamp(change.last)
    merge = Merge(change.store, change.last.root_hash, changes, stamp.timestamp * _NANO)
    assembler = Assembler(
        change.store,
        change.algorithm,
        depositor,
        stamp,
        dirtab=_dirtab(change, changes),
        on_files=lambda _: None,
    )
    assembled = assembler.assemble(merge, change.root, 1)
    change.conclude(assembled.root, stamp)
    seen.keep()
    return published(change, stamp, assembled, started)


def _take_in(unpacker: Unpacker, name: str, file: IO[bytes]) -> None:
    try:
        if file.seekable() and not name.endswith((".tar", ".tar.gz", ".tgz")) and zipfile.is_zipfile(file):
            file.seek(0)
            unpacker.zip(file, name)
            return
        if file.seekable():
            file.seek(0)
        unpacker.tar(file, name)
    except OSError as error:
        raise CvmfsProblem(f"{name}: cannot be put into the repository ({sentence(error)})") from error


def _with_nothing(entry: Entry, depositor: Depositor) -> Entry:
    return Entry(entry.path, entry.status, content=depositor.deposit_nothing())


def _dirtab(change: Change, changes: Node) -> Dirtab:
    """The rules that the repository has; an archive that brings new ones has them applied by the next publication."""
    path = b"/" + DIRTAB
    row = find_row(change.store, change.last.root_hash, path)
    if row is None or row.digest is None or changes.find(path) is not None or row.size > MAX_SIZE:
        return Dirtab()
    if flags.compression_of(row.flags) is not flags.Compression.ZLIB or row.flags & flags.EXTERNAL:
        return Dirtab()
    content = ContentHash(row.digest, flags.algorithm_of(row.flags))
    return parse_dirtab(change.store.read(content, Kind.FILE))


def _path(text: str) -> bytes:
    """A path inside the repository.  Raises Mistake."""
    parts = [part for part in os.fsencode(text).split(b"/") if part]
    if any(part in (b".", b"..") or len(part) > MAX_NAME or b"\0" in part for part in parts):
        raise Mistake(f"{text!r}: is not a path inside a repository")
    return b"".join(b"/" + part for part in parts)
