# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's FUSE protocol as bytes: numbers, layouts, requests taken apart, answers put together.

Only what a read-only file system needs.  Source: the kernel's own header linux/fuse.h (protocol 7.31; older and newer
kernels agree on these layouts).  Everything is in the byte order of the machine.  Pure; any bytes may come in:
`decode` never raises, and `Request.fields` raises nothing but Unreadable.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Any, Final, NamedTuple

from cernvm.cvmfs.view import Attributes
from cernvm.kit.errors import Problem

MAJOR: Final = 7
MINOR: Final = 31
"""The newest minor version whose layouts this file knows."""
OLDEST: Final = 28
"""The oldest that is served: symbolic links are cached and reads are large from there on."""
NAME_MAX: Final = 255
BLOCK: Final = 4096


class Opcode(IntEnum):
    """What the kernel asks."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    TMPFILE = 51


WRITING: Final = frozenset(
    {Opcode.SETATTR, Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME}
    | {Opcode.LINK, Opcode.WRITE, Opcode.SETXATTR, Opcode.REMOVEXATTR, Opcode.CREATE, Opcode.FALLOCATE}
    | {Opcode.RENAME2, Opcode.TMPFILE}
)
"""Requests that would change something.  (The mount is read-only, so that the kernel refuses them before.)"""
SILENT: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})
"""Requests that are not answered."""


class Feature(IntFlag):
    """What kernel and server agree on in INIT."""

    ASYNC_READ = 1 << 0
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25


class Notice(IntEnum):
    """What the server tells the kernel unasked."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3


KEEP_CACHE: Final = 1 << 1
CACHE_DIRECTORY: Final = 1 << 3

IN_HEADER: Final = Struct("=IIQQIIII")
OUT_HEADER: Final = Struct("=IiQ")
INIT_IN: Final = Struct("=IIII")
INIT_OUT: Final = Struct("=IIIIHHIIHHI28x")
FORGET_IN: Final = Struct("=Q")
BATCH_FORGET_IN: Final = Struct("=I4x")
FORGET_ONE: Final = Struct("=QQ")
READ_IN: Final = Struct("=QQI20x")
GETXATTR_IN: Final = Struct("=I4x")
GETXATTR_OUT: Final = Struct("=I4x")
INTERRUPT_IN: Final = Struct("=Q")
OPEN_OUT: Final = Struct("=QI4x")
ENTRY_OUT: Final = Struct("=QQQQII" + "QQQQQQIIIIIIIII4x")
ATTR_OUT: Final = Struct("=QI4x" + "QQQQQQIIIIIIIII4x")
STATFS_OUT: Final = Struct("=QQQQQIII28x")
DIRENT: Final = Struct("=QQII")
INVAL_INODE_OUT: Final = Struct("=Qqq")
INVAL_ENTRY_OUT: Final = Struct("=QI4x")
_MASK64: Final = (1 << 64) - 1
_GIGA: Final = 10**9
_UNKNOWN: Final = ENTRY_OUT.pack(*[0] * 21)


class Unreadable(Problem):
    """A request is shorter than its kind demands."""


class Request(NamedTuple):
    """One request.  `body` is what follows the header; it is only valid until the next request is read."""

    opcode: int
    unique: int
    node: int
    pid: int
    body: memoryview
    group: int = 0

    def fields(self, layout: Struct) -> tuple[Any, ...]:
        """The body's first bytes by `layout`.  Raises Unreadable."""
        try:
            return layout.unpack_from(self.body)
        except struct.error as error:
            raise Unreadable(f"the kernel's request {self.opcode} has only {len(self.body)} bytes") from error

    def name(self, start: int = 0) -> bytes:
        """The name in the body from byte `start` to its final zero.  Raises Unreadable."""
        text, zero, _ = bytes(self.body[start:]).partition(b"\0")
        if not zero or not text:
            raise Unreadable(f"the kernel's request {self.opcode} names nothing")
        return text


def decode(buffer: memoryview) -> Request | None:
    """Take a request apart; None for bytes that are none."""
    if len(buffer) < IN_HEADER.size:
        return None
    length, opcode, unique, node, _, group, pid, _ = IN_HEADER.unpack_from(buffer)
    if not IN_HEADER.size <= length <= len(buffer):
        return None
    return Request(opcode, unique, node, pid, buffer[IN_HEADER.size : length], group)


def forgotten(request: Request) -> Iterator[tuple[int, int]]:
    """(inode, count) of what FORGET or BATCH_FORGET give back.  Raises Unreadable."""
    if request.opcode == Opcode.FORGET:
        (count,) = request.fields(FORGET_IN)
        yield request.node, count
        return
    (number,) = request.fields(BATCH_FORGET_IN)
    whole = (len(request.body) - BATCH_FORGET_IN.size) // FORGET_ONE.size
    for place in range(min(number, whole)):
        node, count = FORGET_ONE.unpack_from(request.body, BATCH_FORGET_IN.size + place * FORGET_ONE.size)
        yield node, count


def answer(unique: int, parts: tuple[bytes, ...]) -> list[bytes]:
    """The buffers of a good answer, for writev(2)."""
    length = OUT_HEADER.size + sum(map(len, parts))
    return [OUT_HEADER.pack(length, 0, unique), *parts]


def refusal(unique: int, number: int) -> list[bytes]:
    """The buffers of an answer that is an error number."""
    return [OUT_HEADER.pack(OUT_HEADER.size, -number, unique)]


def notice(kind: Notice, *parts: bytes) -> list[bytes]:
    """The buffers of something told unasked."""
    return [OUT_HEADER.pack(OUT_HEADER.size + sum(map(len, parts)), kind, 0), *parts]


def entry(shown: Attributes, seconds: int) -> bytes:
    """An entry that the kernel may keep for `seconds`, with its attributes."""
    return ENTRY_OUT.pack(shown.inode, 0, seconds, seconds, 0, 0, *_attributes(shown))


def absent(seconds: int) -> bytes:
    """That a name does not exist, to be kept for `seconds`."""
    return ENTRY_OUT.pack(0, 0, seconds, 0, 0, 0, *[0] * 15)


def attributes(shown: Attributes, seconds: int) -> bytes:
    """Attributes that the kernel may keep for `seconds`."""
    return ATTR_OUT.pack(seconds, 0, *_attributes(shown))


def _attributes(shown: Attributes) -> tuple[int, ...]:
    size = shown.size
    whole, rest = divmod(shown.mtime_ns, _GIGA)
    whole &= _MASK64
    return (
        *(shown.inode, size, (size + 511) // 512, whole, whole, whole, rest, rest, rest),
        *(shown.mode, shown.links, shown.uid, shown.gid, shown.device & 0xFFFFFFFF, BLOCK),
    )


def listed(name: bytes, inode: int, mode: int, following: int) -> bytes:
    """One name of a listing; `following` is the offset of what comes after it."""
    head = DIRENT.pack(inode, following, len(name), mode >> 12 & 0xF)
    return head + name + bytes(-len(name) % 8)


def listed_plus(name: bytes, shown: Attributes, following: int, seconds: int) -> bytes:
    """One name of a listing with what LOOKUP would say."""
    return entry(shown, seconds) + listed(name, shown.inode, shown.mode, following)


def listed_unknown(name: bytes, inode: int, mode: int, following: int) -> bytes:
    """One name of such a listing that counts as no lookup (`.` and `..`)."""
    return _UNKNOWN + listed(name, inode, mode, following)


def listed_size(name: bytes, *, plus: bool) -> int:
    """How many bytes the above will have."""
    return (ENTRY_OUT.size if plus else 0) + DIRENT.size + (len(name) + 7) // 8 * 8


class Offer(NamedTuple):
    """What the kernel says in INIT."""

    major: int
    minor: int
    read_ahead: int
    features: Feature


class Wish(NamedTuple):
    """What is answered to it."""

    features: Feature
    max_pages: int
    background: int


def offer_of(request: Request) -> Offer:
    """Read an INIT.  Raises Unreadable."""
    major, minor, read_ahead, features = request.fields(INIT_IN)
    return Offer(major, minor, read_ahead, Feature(features & sum(Feature)))


def agreement(offer: Offer, wish: Wish) -> bytes:
    """The answer to an INIT."""
    features = offer.features & wish.features
    return INIT_OUT.pack(
        *(MAJOR, min(MINOR, offer.minor), offer.read_ahead, features),
        *(wish.background, wish.background * 3 // 4, BLOCK, 1, wish.max_pages, 0, 0),
    )


REFUSED: Final[dict[int, int]] = dict.fromkeys(WRITING, errno.EROFS)
"""Opcode -> error number for what is not answered; ENOSYS for everything else (the kernel asks such things once)."""
