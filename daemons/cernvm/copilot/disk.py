# SPDX-License-Identifier: BSD-3-Clause
"""The storage adapter's hold on its disk: safe names, files opened without following links, errors as sentences.

Thread-safe: no state.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EDQUOT, ELOOP, ENOENT, ENOSPC, ENOTDIR
from pathlib import Path
from typing import BinaryIO, ClassVar, Final

from cernvm.kit.errors import NotFound, Problem, sentence
from cernvm.kit.files import sync_directory

from .errors import JobMistake
from .job import LOGS, file_name

LONGEST_DISK_NAME: Final = 255
"""Bytes; what Linux file systems allow."""


class StoreFailed(Problem):
    """The disk does not do what it should."""


class NoSpace(Problem):
    """The disk has no room left beyond its reserve."""


class Refused(Problem):
    """The store will not do this; another try would be refused as well."""

    bus_name: ClassVar[str] = "Refused"


class BadName(Refused):
    """A job or file name that cannot be."""


class TooLarge(Refused):
    """More bytes or files than the bearer was granted."""


class Mismatch(Refused):
    """The bytes are not those that were announced."""


class Conflict(Refused):
    """Something else stands there already, or the job has ended."""


class NoSuchFile(NotFound):
    """No such file is stored."""


@dataclass(frozen=True)
class Stored:
    """A stored file; `sha256` is hexadecimal."""

    name: str
    size: int
    sha256: str


def disk_name(name: str) -> str:
    """The flat name under which the file `name` of a job is stored.  Raises BadName."""
    if name not in LOGS:
        try:
            file_name("the store", "name", name)
        except JobMistake as error:
            raise BadName(str(error)) from None
    flat = name.replace("%", "%25").replace("/", "%2F")
    if flat.startswith("."):
        flat = "%2E" + flat[1:]
    if len(flat.encode()) > LONGEST_DISK_NAME:
        raise BadName(f"the file name {name[:40]!r}... is too long to be stored")
    return flat


def check_space(directory: Path, size: int, reserve: int) -> None:
    """Raise NoSpace when `size` more bytes would go into the `reserve` of the disk that holds `directory`."""
    free = shutil.disk_usage(directory).free
    if free - size < reserve:
        raise NoSpace(f"the disk of the store has {free} bytes free, too few for {size} more beside its reserve")


@contextmanager
def disk(what: str) -> Iterator[None]:
    """Turn what the operating system says into one sentence about `what`."""
    try:
        yield
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            raise NoSpace(f"{what}: the disk of the store is full") from error
        raise StoreFailed(f"{what}: the store failed: {sentence(error)}") from error


def make_directory(path: Path) -> None:
    """Make `path` durably, if it is not there.  Raises OSError (also for a symlink or file in its place)."""
    try:
        path.mkdir(mode=0o750)
        sync_directory(path.parent)
    except FileExistsError:
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise


def listing(directory: Path) -> list[Stored]:
    """The files of a shelf by their flat names, without hashes; empty when there is no such shelf."""
    try:
        with os.scandir(directory) as entries:
            return [
                Stored(entry.name, entry.stat(follow_symlinks=False).st_size, "")
                for entry in entries
                if not entry.name.startswith(".")
            ]
    except FileNotFoundError:
        return []


def digest(path: Path) -> tuple[int, str]:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def open_beneath(root: Path, *names: str) -> BinaryIO:
    """Open a regular file below `root`.  Raises NoSuchFile, also where a step is a symlink; OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    at = os.open(root, flags | os.O_DIRECTORY)
    for name in names:
        kind = os.O_NONBLOCK if name is names[-1] else os.O_DIRECTORY
        try:
            below = os.open(name, flags | kind, dir_fd=at)
        except OSError as error:
            if error.errno in (ENOENT, ENOTDIR, ELOOP):
                raise NoSuchFile(f"no file {name!r}") from None
            raise
        finally:
            os.close(at)
        at = below
    file = os.fdopen(at, "rb")
    if not stat.S_ISREG(os.fstat(at).st_mode):
        file.close()
        raise NoSuchFile(f"{names[-1]!r} is not a file")
    return file
