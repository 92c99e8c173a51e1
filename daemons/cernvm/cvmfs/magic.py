# SPDX-License-Identifier: BSD-3-Clause
"""Extended attributes that no catalog stores: what a mounted repository tells about itself and its entries.

Names and formats are the original client's (docs/cvmfs-format.md, "Computed attributes"); values have no newline at
their end.  A long value is read in pages: `NAME~0` is the first, `NAME@0` the same below a line for people, `NAME~?`
tells how many there are.  What the repository's catalogs say is computed here; what only the mount's process knows
(its network, its uptime, ...) is given to it as `Told`.  Pure, but for those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from cernvm import __version__

from . import flags
from .catalog import Catalog, Chunk, Entry
from .counters import Counter, Counters
from .tree import Tree

Told = Mapping[bytes, Callable[[], "str | int | bytes"]]
"""Further attributes of every entry: name -> what makes the value now."""
PAGE: Final = 40_000
"""Bytes of one page."""
MAX_VALUE: Final = 60_000
"""Bytes above which a value is only read in pages; the kernel takes 65536."""
_PAGED: Final = re.compile(rb"(.+?)([~@])(\?|\d{1,6})", re.DOTALL)


class Visibility(Enum):
    """On which entries listxattr(2) names the computed attributes; getxattr(2) answers them everywhere."""

    ROOT_ONLY = "rootonly"
    ALWAYS = "always"
    NEVER = "never"

    def lists(self, *, is_root: bool) -> bool:
        """Whether an entry's listing has them."""
        return self is Visibility.ALWAYS or (self is Visibility.ROOT_ONLY and is_root)


@dataclass(frozen=True)
class Protection:
    """Attributes that only some groups may read."""

    names: frozenset[bytes] = frozenset()
    groups: frozenset[int] = frozenset()

    def permits(self, name: bytes, group: int) -> bool:
        """Whether a process with that group identity may read the attribute; root may."""
        paged = _PAGED.fullmatch(name)
        return (paged[1] if paged else name) not in self.names or group == 0 or group in self.groups


@dataclass(frozen=True)
class Subject:
    """What is asked about."""

    tree: Tree
    entry: Entry
    catalog: Catalog
    chunks: Sequence[Chunk]
    counters: Counters
    told: Told = field(default_factory=dict)
    path: bytes = b""
    cached: Callable[[Entry], bool] = lambda _: False
    """Whether the content is in the cache, whole."""


def _chunk_list(subject: Subject) -> str:
    lines = [f"{chunk.object.content},{chunk.offset},{chunk.object.size}" for chunk in subject.chunks]
    if not subject.chunks and subject.entry.content is not None:
        lines = [f"{subject.entry.content},0,{subject.entry.size}"]
    return "\n".join(["hash,offset,size", *lines])


def _counts(catalog: Catalog) -> list[str]:
    return [f"{name},{value}" for name, value in sorted(catalog.statistics().items())]


def _catalog_counters(subject: Subject) -> str:
    catalog = subject.catalog
    head = [
        f"catalog_hash: {catalog.content}",
        f"catalog_mountpoint: {catalog.prefix.decode('utf-8', 'surrogateescape') or '/'}",
    ]
    return "\n".join([*head, *_counts(catalog)])


def _hit_rate(counters: Counters) -> str:
    hits, misses = counters[Counter.CACHE_HITS], counters[Counter.CACHE_MISSES]
    return f"{100 * hits / (hits + misses) if hits + misses else 100:.3f}"


def _speed(counters: Counters) -> int:
    """Kilobytes per second of transfer."""
    return counters[Counter.BYTES_RECEIVED] // max(1, counters[Counter.FETCH_MILLISECONDS]) * 1000 // 1024


_Makers = Mapping[bytes, Callable[[Subject], object]]
_ANY: Final[_Makers] = {
    b"user.fqrn": lambda s: s.tree.manifest.fqrn,
    b"user.revision": lambda s: s.tree.manifest.revision,
    b"user.root_hash": lambda s: s.tree.manifest.root_hash,
    b"user.hash": lambda s: s.entry.content or "",
    b"user.version": lambda s: __version__,
    b"user.nclg": lambda s: len(s.tree.catalogs()),
    b"user.nopen": lambda s: s.counters[Counter.OPENS],
    b"user.ndiropen": lambda s: s.counters[Counter.LISTINGS],
    b"user.ndownload": lambda s: s.counters[Counter.DOWNLOADS],
    b"user.nioerr": lambda s: s.counters[Counter.ERRORS],
    b"user.hitrate": lambda s: _hit_rate(s.counters),
    b"user.rx": lambda s: s.counters[Counter.BYTES_RECEIVED] // 1024,
    b"user.speed": lambda s: _speed(s.counters),
    b"user.catalog_counters": _catalog_counters,
    b"user.repo_counters": lambda s: "\n".join(_counts(s.tree.root)),
}
_FILE: Final[_Makers] = {
    b"user.lhash": lambda s: s.entry.content if s.entry.content and s.cached(s.entry) else "Not in cache",
    b"user.compression": lambda s: flags.compression_of(s.entry.flags).name.lower(),
    b"user.chunks": lambda s: len(s.chunks) or 1,
    b"user.chunk_list": _chunk_list,
    b"user.direct_io": lambda s: int(bool(s.entry.flags & flags.DIRECT_IO)),
    b"user.external_file": lambda s: int(bool(s.entry.flags & flags.EXTERNAL)),
}
_EXTERNAL: Final[_Makers] = {
    b"user.external_url": lambda s: (
        str(s.told.get(b"user.external_host", str)()) + s.path.decode("utf-8", "surrogateescape")
    ),
}
_SYMLINK: Final[_Makers] = {
    b"user.rawlink": lambda s: s.entry.target,
    b"xfsroot.rawlink": lambda s: s.entry.target,
}


def _of(entry: Entry) -> _Makers:
    if entry.is_file:
        return {**_ANY, **_FILE, **(_EXTERNAL if entry.flags & flags.EXTERNAL else {})}
    return {**_ANY, **_SYMLINK} if entry.is_symlink else _ANY


def names(entry: Entry, told: Told) -> tuple[bytes, ...]:
    """The names that this kind of entry has."""
    return tuple(dict.fromkeys((*_of(entry), *told)))


def value(name: bytes, subject: Subject) -> bytes | None:
    """The value of the attribute `name`, or of a page of it; None if this entry has none of that name."""
    whole = _value(name, subject)
    if whole is not None:
        return whole if len(whole) <= MAX_VALUE else _page(name, whole, b"@", b"0")
    paged = _PAGED.fullmatch(name)
    whole = _value(paged[1], subject) if paged else None
    return _page(paged[1], whole, paged[2], paged[3]) if paged and whole is not None else None


def _value(name: bytes, subject: Subject) -> bytes | None:
    make = _of(subject.entry).get(name)
    if make is not None:
        made = make(subject)
    elif name in subject.told:
        made = subject.told[name]()
    else:
        return None
    return made if isinstance(made, bytes) else str(made).encode("utf-8", "surrogateescape")


def _page(name: bytes, whole: bytes, mode: bytes, wanted: bytes) -> bytes | None:
    pages = [whole[at : at + PAGE] for at in range(0, len(whole), PAGE)] or [b""]
    if wanted == b"?":
        if mode == b"~":
            return b"num_pages, %d" % len(pages)
        return b"# %s has %d pages: read %s@0 to %s@%d" % (name, len(pages), name, name, len(pages) - 1)
    number = int(wanted)
    if number >= len(pages):
        return None
    header = b"" if mode == b"~" else b"# %s: page %d of %d\n" % (name, number, len(pages))
    return header + pages[number]
