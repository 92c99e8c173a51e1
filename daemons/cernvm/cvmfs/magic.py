# SPDX-License-Identifier: BSD-3-Clause
"""Extended attributes that no catalog stores: what a mounted repository tells about itself and its entries.

Values have no newline at their end.  Pure, but for the counters that it reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Final

from cernvm import __version__

from . import flags
from .catalog import Chunk, Entry
from .counters import Counter, Counters
from .manifest import Manifest


class Visibility(Enum):
    """On which entries listxattr(2) names the computed attributes; getxattr(2) answers them everywhere."""

    ROOT_ONLY = "rootonly"
    ALWAYS = "always"
    NEVER = "never"

    def lists(self, *, is_root: bool) -> bool:
        """Whether an entry's listing has them."""
        return self is Visibility.ALWAYS or (self is Visibility.ROOT_ONLY and is_root)


_Subject = tuple[Manifest, Entry, Sequence[Chunk], Counters]


def _chunk_list(subject: _Subject) -> str:
    chunks = subject[2]
    lines = [f"{chunk.object.content},{chunk.offset},{chunk.object.size}" for chunk in chunks]
    return "\n".join(["hash,offset,size", *lines])


_ANY: Final[Mapping[bytes, Callable[[_Subject], object]]] = {
    b"user.fqrn": lambda s: s[0].fqrn,
    b"user.revision": lambda s: s[0].revision,
    b"user.root_hash": lambda s: s[0].root_hash,
    b"user.version": lambda s: __version__,
    b"user.pid": lambda s: os.getpid(),
    b"user.nopen": lambda s: s[3][Counter.OPENS],
    b"user.ndiropen": lambda s: s[3][Counter.LISTINGS],
    b"user.ndownload": lambda s: s[3][Counter.DOWNLOADS],
    b"user.nioerr": lambda s: s[3][Counter.ERRORS],
    b"user.rx": lambda s: s[3][Counter.BYTES_RECEIVED] // 1024,
}
_FILE: Final[Mapping[bytes, Callable[[_Subject], object]]] = {
    b"user.hash": lambda s: s[1].content or "",
    b"user.compression": lambda s: flags.compression_of(s[1].flags).name.lower(),
    b"user.chunks": lambda s: len(s[2]) or 1,
    b"user.chunk_list": _chunk_list,
    b"user.external_file": lambda s: int(bool(s[1].flags & flags.EXTERNAL)),
}
_SYMLINK: Final[Mapping[bytes, Callable[[_Subject], object]]] = {
    b"user.rawlink": lambda s: s[1].target,
    b"xfsroot.rawlink": lambda s: s[1].target,
}


def _of(entry: Entry) -> Mapping[bytes, Callable[[_Subject], object]]:
    if entry.is_file:
        return {**_ANY, **_FILE}
    return {**_ANY, **_SYMLINK} if entry.is_symlink else _ANY


def names(entry: Entry) -> tuple[bytes, ...]:
    """The names that this kind of entry has."""
    return tuple(_of(entry))


def value(name: bytes, manifest: Manifest, entry: Entry, chunks: Sequence[Chunk], counters: Counters) -> bytes | None:
    """The value of the attribute `name`; None if this kind of entry has none of that name."""
    make = _of(entry).get(name)
    if make is None:
        return None
    made = make((manifest, entry, chunks, counters))
    return made if isinstance(made, bytes) else str(made).encode()
