# SPDX-License-Identifier: BSD-3-Clause
"""Files that are there whole or not at all.  Thread-safe: no state."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path, *, mode: int = 0o644, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on a clean exit it takes the name `path` atomically.

    With `sync` the bytes and the directory entry are on the disk before this returns.  On an exception nothing of it
    is left.  Raises OSError.
    """
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise
    if sync:
        sync_directory(path.parent)


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644, sync: bool = True) -> None:
    """Replace the content of `path` by `data`, atomically.  Raises OSError."""
    with replacing(path, mode=mode, sync=sync) as file:
        file.write(data)


def sync_directory(path: Path) -> None:
    """Put the entries of the directory `path` on the disk.  Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
