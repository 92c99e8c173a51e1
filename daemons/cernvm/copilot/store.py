# SPDX-License-Identifier: BSD-3-Clause
"""Where job files lie on the storage adapter's disk, and the one step that makes an attempt's files the result.

    lock                         held by the process that owns the store
    incoming/<random>            uploads under way; emptied at start
    jobs/<job>/input/<file>      what the submitter gave
    jobs/<job>/attempt-<n>/<file>  what one attempt left; never read by anybody before it is accepted
    jobs/<job>/result/<file>     the accepted attempt: `attempt-<n>` renamed, in one step, at most once per job
    jobs/<job>/closed            the job has ended: no further upload

A file has its name only when it is whole, checked and on the disk; after that its content never changes (the same
content may come again).  The directories are flat: '/' in a file's name is written %2F.  So a crash at any moment
leaves either the state before a step or the state after it.

Threads: every method may be called from any thread; steps on one job wait for one another.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Final, Self

from cernvm.kit.errors import UserMistake, sentence
from cernvm.kit.files import sync_directory, write_atomically

from .disk import (
    BadName,
    Conflict,
    Mismatch,
    NoSuchFile,
    Stored,
    TooLarge,
    check_space,
    digest,
    disk,
    disk_name,
    listing,
    make_directory,
    open_beneath,
)
from .errors import JobMistake
from .job import LOGS, MAX_NAMES, JobId, job_id

MOST_FILES: Final = MAX_NAMES + len(LOGS)
"""Files of one attempt, or inputs of one job."""
CHUNK: Final = 1024 * 1024
RECORD: Final = ".accepted"
"""File in `result` that tells the attempt and its files; stored files never begin with a dot."""


@dataclass(frozen=True)
class Shelf:
    """A directory of a job that takes uploads: one attempt's outputs (from 1), or with attempt 0 its inputs."""

    job: JobId
    attempt: int

    @classmethod
    def checked(cls, job: str, attempt: int) -> Shelf:
        """Names that came from outside, as a shelf.  Raises BadName."""
        try:
            checked = job_id(job)
        except JobMistake as error:
            raise BadName(str(error)) from None
        if not 0 <= attempt < 10**9:
            raise BadName(f"job {job}: {attempt} is not the number of an attempt")
        return cls(checked, attempt)

    @property
    def directory(self) -> str:
        """Its name inside the job's directory."""
        return f"attempt-{self.attempt}" if self.attempt else "input"


@dataclass(frozen=True)
class Totals:
    """What the store holds: bytes of accepted results, their number, and bytes free on the disk."""

    bytes_stored: int
    results: int
    bytes_free: int


class Incoming:
    """An upload under way: `write` its bytes, then `Store.keep` it; leaving the block without that drops it."""

    def __init__(self, directory: Path, shelf: Shelf, name: str, *, room: int, reserve: int) -> None:
        self.shelf = shelf
        self.name = name
        self.flat = disk_name(name)
        self.size = 0
        self._room = room
        self._reserve = reserve
        self._unchecked = 0
        self._hasher = hashlib.sha256()
        descriptor, path = tempfile.mkstemp(dir=directory, prefix=f"{shelf.job}.")
        self.path = Path(path)
        self._file = os.fdopen(descriptor, "wb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Add `data`.  Raises TooLarge, NoSpace, StoreFailed."""
        self.size += len(data)
        if self.size > self._room:
            raise TooLarge(f"{self.name}: more than the {self._room} bytes that are left of its grant")
        self._unchecked += len(data)
        if self._unchecked > 16 * CHUNK:
            self._unchecked = 0
            check_space(self.path.parent, 0, self._reserve)
        self._hasher.update(data)
        with disk(self.name):
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]

    def settle(self) -> Stored:
        """Put the bytes on the disk; what they are."""
        with disk(self.name):
            os.fchmod(self._file.fileno(), 0o640)
            os.fsync(self._file.fileno())
        return Stored(self.name, self.size, self._hasher.hexdigest())


class Store:
    """A directory of job files.  One process at a time owns it, until `close`."""

    def __init__(self, root: Path, *, reserve: int = 0) -> None:
        """Open the store in `root`, made if need be; `reserve` bytes of its disk stay free.

        Raises UserMistake when `root` cannot be written or another process has it.
        """
        self._jobs, self._incoming = root / "jobs", root / "incoming"
        self._reserve = reserve
        self._locks = [Lock() for _ in range(64)]
        self._counting = Lock()
        try:
            for directory in (root, self._jobs, self._incoming):
                directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._lock = _own(root)
            for left in self._incoming.iterdir():
                left.unlink()
        except OSError as error:
            raise UserMistake(f"the store {root} cannot be used: {sentence(error)}") from error
        self._results, self._bytes = self._count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the store."""
        self._lock.close()

    def receive(self, shelf: Shelf, name: str, *, size: int | None, max_bytes: int) -> Incoming:
        """Begin an upload to `shelf`; `size` is what the sender announces, `max_bytes` bounds the whole shelf.

        Raises BadName, TooLarge, Conflict (the job has ended), NoSpace, StoreFailed.
        """
        flat = disk_name(name)
        self._refuse_ended(shelf)
        room = max_bytes - sum(file.size for file in self._files(shelf) if file.name != flat)
        if room < (size or 0):
            raise TooLarge(f"{name}: {size} bytes are more than the {max(room, 0)} bytes that are left of its grant")
        check_space(self._incoming, size or 0, self._reserve)
        with disk(name):
            return Incoming(self._incoming, shelf, name, room=max(room, 0), reserve=self._reserve)

    def keep(self, incoming: Incoming, sha256: str, *, max_bytes: int) -> bool:
        """Give the upload its name, once it is proven to be `sha256`; False when that content was there already.

        Raises Mismatch, TooLarge, Conflict, StoreFailed; then nothing is kept.
        """
        stored, shelf = incoming.settle(), incoming.shelf
        if stored.sha256 != sha256:
            raise Mismatch(f"{stored.name}: the SHA-256 of the {stored.size} bytes received is {stored.sha256}")
        with self._job(shelf.job), disk(stored.name):
            self._refuse_ended(shelf)
            directory = self._jobs / shelf.job / shelf.directory
            others = [file for file in self._files(shelf) if file.name != incoming.flat]
            if sum(file.size for file in others) + stored.size > max_bytes or len(others) >= MOST_FILES:
                raise TooLarge(f"{stored.name}: the files of this job are more than was granted")
            target = directory / incoming.flat
            if os.path.lexists(target):
                if digest(target) != (stored.size, stored.sha256):
                    raise Conflict(f"{stored.name}: another content is stored under this name, and stays")
                return False
            make_directory(directory.parent)
            make_directory(directory)
            incoming.path.rename(target)
            sync_directory(directory)
        return True

    def accept(self, shelf: Shelf, outputs: Sequence[Stored]) -> None:
        """Make the attempt's files the job's result, if they are exactly `outputs`.  The same again changes nothing.

        Raises Mismatch (files absent, too many, or different), Conflict (another attempt is the result, or the job
        was closed without one), BadName, StoreFailed; then nothing has changed.
        """
        wanted = {disk_name(output.name): output for output in outputs}
        job = self._jobs / shelf.job
        record = {"attempt": shelf.attempt, "outputs": [asdict(wanted[flat]) for flat in sorted(wanted)]}
        with self._job(shelf.job), disk(f"job {shelf.job}"):
            if os.path.lexists(job / "result"):
                if self._record(shelf.job) != record:
                    raise Conflict(f"job {shelf.job}: it has another result already, which stays")
                return
            self._refuse_ended(shelf)
            attempt = job / shelf.directory
            size = _check(shelf, attempt, wanted)
            make_directory(job)
            make_directory(attempt)
            write_atomically(attempt / RECORD, json.dumps(record).encode(), mode=0o640)
            sync_directory(attempt)
            attempt.rename(job / "result")
            sync_directory(job)
            self._drop_attempts(job)
        with self._counting:
            self._results += 1
            self._bytes += size

    def close_job(self, job: JobId) -> None:
        """The job has ended: drop its inputs and the attempts that were not accepted, and take no more.

        A result stays.  The same again changes nothing.  Raises StoreFailed.
        """
        directory = self._jobs / job
        with self._job(job), disk(f"job {job}"):
            make_directory(directory)
            write_atomically(directory / "closed", b"", mode=0o640)
            self._drop_attempts(directory)
            shutil.rmtree(directory / "input", ignore_errors=True)

    def open_input(self, job: JobId, name: str) -> BinaryIO:
        """An input file, for reading.  Raises BadName, NoSuchFile, StoreFailed."""
        return self._open(job, "input", name)

    def open_result(self, job: JobId, name: str) -> BinaryIO:
        """A file of the accepted result, for reading.  Raises BadName, NoSuchFile, StoreFailed."""
        return self._open(job, "result", name)

    def totals(self) -> Totals:
        """What the store holds now."""
        with self._counting:
            return Totals(self._bytes, self._results, shutil.disk_usage(self._jobs).free)

    def _open(self, job: JobId, shelf: str, name: str) -> BinaryIO:
        flat = disk_name(name)
        try:
            with disk(f"job {job}: {name}"):
                return open_beneath(self._jobs, job, shelf, flat)
        except NoSuchFile:
            raise NoSuchFile(f"job {job} has no file {name!r} among its {shelf} files") from None

    def _refuse_ended(self, shelf: Shelf) -> None:
        job = self._jobs / shelf.job
        if os.path.lexists(job / "closed"):
            raise Conflict(f"job {shelf.job} has ended and takes no more files")
        if os.path.lexists(job / "result"):
            raise Conflict(f"job {shelf.job} has its result already and takes no more files")

    def _files(self, shelf: Shelf) -> list[Stored]:
        return listing(self._jobs / shelf.job / shelf.directory)

    def _record(self, job: JobId) -> object:
        return json.loads((self._jobs / job / "result" / RECORD).read_bytes())

    def _drop_attempts(self, job: Path) -> None:
        for left in job.glob("attempt-*"):
            shutil.rmtree(left, ignore_errors=True)

    def _count(self) -> tuple[int, int]:
        sizes = [sum(file.size for file in listing(result)) for result in self._jobs.glob("*/result")]
        return len(sizes), sum(sizes)

    @contextmanager
    def _job(self, job: JobId) -> Iterator[None]:
        with self._locks[hash(job) % len(self._locks)]:
            yield


def _own(root: Path) -> BinaryIO:
    """Take the store for this process: the lock lasts as long as the file is open.  Raises OSError, UserMistake."""
    lock = (root / "lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UserMistake(f"the store {root} belongs to another running copilot-storaged; stop it first") from None
    return lock


def _check(shelf: Shelf, attempt: Path, wanted: dict[str, Stored]) -> int:
    """Compare the files of `attempt` with those `wanted`, by flat name; the sum of sizes.  Raises Mismatch."""
    where = f"job {shelf.job}, attempt {shelf.attempt}"
    present = {file.name for file in listing(attempt)}
    for flat, output in wanted.items():
        if flat not in present:
            raise Mismatch(f"{where}: the file {output.name!r} was not uploaded")
    if extra := sorted(present - wanted.keys()):
        raise Mismatch(f"{where}: the file {extra[0]!r} was uploaded but is not named among the outputs")
    for flat, output in wanted.items():
        if digest(attempt / flat) != (output.size, output.sha256):
            raise Mismatch(f"{where}: the stored file {output.name!r} is not the one that the agent names")
    return sum(output.size for output in wanted.values())
