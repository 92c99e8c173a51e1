# SPDX-License-Identifier: BSD-3-Clause
"""What a view answers to the kernel's requests: bytes in, bytes out, no descriptor anywhere.

A server that refuses OPEN, OPENDIR and FLUSH once (ENOSYS) is never asked them again: READ and READDIR then come with
the inode alone, pages of files and of listings stay with the kernel, and a file is fetched and verified at its first
READ.  Entries and attributes may be kept for a day, since a switch of revisions takes back exactly what changed.

Any thread may ask; READ, LOOKUP, READDIR and GETXATTR may block on the network.  This is the FUSE request boundary:
`answer` raises nothing.
"""

from __future__ import annotations

import errno
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

from cernvm.cvmfs.errors import NoEntry
from cernvm.cvmfs.inodes import Inode
from cernvm.cvmfs.view import Attributes, Listing, View

from . import fuse_wire as wire
from .errnos import Refusals
from .failures import Failures
from .fuse_wire import Feature, Opcode, Request, Unreadable

KEEP: Final = 86400
"""Seconds for which the kernel may keep an answer that a switch will take back."""
KEEP_UNTRACKED: Final = 5
"""Seconds for which it may keep a missing name that the view does not remember."""
MAX_LISTED: Final = 100_000
"""Names of listings that are kept between the requests which read them in pieces."""
_PLACE: Final = (1 << 24) - 1
_ERA: Final = 0x7F


class Reply(NamedTuple):
    """An answer: `parts` when `error` is 0.  `granted`: inodes whose lookup count the kernel raises by one."""

    error: int = 0
    parts: tuple[bytes, ...] = ()
    granted: tuple[Inode, ...] = ()


class Listings:
    """Listings that are being read, by directory and era (which changes with the revision).

    An offset is a place in a listing and the era that it belongs to, in 31 bits so that 32-bit programs take it; who
    reads on after a switch goes on in the listing with which he began.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._lock = threading.Lock()
        self._era = 0
        self._kept: OrderedDict[tuple[Inode, int], Listing] = OrderedDict()
        self._names = 0

    def new_era(self) -> None:
        """Begin every listing anew, except for those who are in the middle of one."""
        with self._lock:
            self._era = self._era + 1 & _ERA
            for key in [key for key in self._kept if key[1] == self._era]:
                self._names -= len(self._kept.pop(key).entries)

    def at(self, directory: Inode, offset: int) -> tuple[Listing, int, int]:
        """The listing that `offset` belongs to, the place in it, and what to add to a place for an offset.  May block.

        A listing that had to go is replaced by the present one.
        """
        with self._lock:
            era = offset >> 24 & _ERA if offset else self._era
            key = (directory, era)
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
        listing = self._view.listing(directory) if kept is None else kept
        if kept is None:
            self._keep(key, listing)
        return listing, offset & _PLACE, era << 24

    def done(self, directory: Inode, offset: int) -> None:
        """Somebody has read the listing that `offset` belongs to up to its end."""
        with self._lock:
            kept = self._kept.pop((directory, offset >> 24 & _ERA), None)
            self._names -= len(kept.entries) if kept is not None else 0

    def _keep(self, key: tuple[Inode, int], listing: Listing) -> None:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = listing
                self._names += len(listing.entries)
            while self._names > MAX_LISTED and len(self._kept) > 1:
                self._names -= len(self._kept.popitem(last=False)[1].entries)


class Answers:
    """Answers the requests for one view.  `trouble` is told a sentence for each error that is no ordinary answer."""

    def __init__(self, view: View, trouble: Callable[[str], None], features: Feature) -> None:
        self._view = view
        self._refusals = Refusals(view, trouble)
        self._features = features
        self._failures = Failures()
        self.listings = Listings(view)
        self._handlers: Mapping[int, Callable[[Request, Inode], Reply]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.FORGET: self._forget,
            Opcode.BATCH_FORGET: self._forget,
            Opcode.GETATTR: self._getattr,
            Opcode.READLINK: self._readlink,
            Opcode.OPEN: self._open,
            Opcode.OPENDIR: self._open,
            Opcode.RELEASE: self._release,
            Opcode.RELEASEDIR: self._release,
            Opcode.READ: self._read,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdir,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.STATFS: self._statfs,
            Opcode.DESTROY: self._release,
        }

    def answer(self, request: Request) -> Reply:
        """Answer; raises nothing.  May block."""
        handler = self._handlers.get(request.opcode)
        if handler is None:
            return Reply(wire.REFUSED.get(request.opcode, errno.ENOSYS))
        try:
            return handler(request, Inode(request.node))
        except Unreadable:
            return Reply(errno.EINVAL)
        except Exception as error:  # noqa: BLE001 - the request boundary; `Refusals` logs the traceback
            return Reply(self._refusals.number(error, Inode(request.node)))

    def take_back(self, reply: Reply) -> None:
        """The kernel did not want `reply` any more."""
        for inode in reply.granted:
            self._view.forget(inode, 1)

    def _lookup(self, request: Request, directory: Inode) -> Reply:
        name = request.name()
        try:
            found = self._view.lookup(directory, name)
        except NoEntry:
            kept = KEEP if self._view.remembers_absent(directory, name) else KEEP_UNTRACKED
            return Reply(parts=(wire.absent(kept),))
        return Reply(parts=(wire.entry(found, KEEP),), granted=(found.inode,))

    def _forget(self, request: Request, _: Inode) -> Reply:
        for inode, count in wire.forgotten(request):
            self._view.forget(Inode(inode), count)
        return Reply()

    def _getattr(self, _: Request, inode: Inode) -> Reply:
        return Reply(parts=(wire.attributes(self._view.attributes(inode), KEEP),))

    def _readlink(self, _: Request, inode: Inode) -> Reply:
        return Reply(parts=(self._view.readlink(inode),))

    def _open(self, request: Request, _: Inode) -> Reply:
        """Refuse for ever, where the kernel takes that as an invitation not to ask."""
        listing = request.opcode == Opcode.OPENDIR
        if self._features & (Feature.NO_OPENDIR_SUPPORT if listing else Feature.NO_OPEN_SUPPORT):
            return Reply(errno.ENOSYS)
        keep = wire.KEEP_CACHE | (wire.CACHE_DIRECTORY if listing else 0)
        return Reply(parts=(wire.OPEN_OUT.pack(0, keep),))

    def _release(self, _: Request, __: Inode) -> Reply:
        return Reply()

    def _read(self, request: Request, inode: Inode) -> Reply:
        _, offset, size = request.fields(wire.READ_IN)
        failed = self._failures.recall(inode, offset)
        if failed:
            return Reply(failed)
        try:
            return Reply(parts=(self._view.read(inode, offset, size),))
        except Exception as error:  # noqa: BLE001 - as in `answer`, and remembered
            number = self._refusals.number(error, inode)
            self._failures.note(inode, offset, size, number)
            return Reply(number)

    def _readdir(self, request: Request, directory: Inode) -> Reply:
        """As many names as have room; with what LOOKUP would say about them, if that is wanted."""
        _, offset, size = request.fields(wire.READ_IN)
        plus = request.opcode == Opcode.READDIRPLUS
        listing, place, era = self.listings.at(directory, offset)
        parts: list[bytes] = []
        put = wire.listed_unknown if plus else wire.listed
        for at in range(place, 2):
            parts.append(put(b"." * (at + 1), directory, stat.S_IFDIR, era + at + 1))
            size -= len(parts[-1])
        start = stop = max(0, place - 2)
        for one in islice(listing.entries, start, None):
            size -= wire.listed_size(one.name, plus=plus)
            if size < 0:
                break
            stop += 1
        names = enumerate(listing.entries[start:stop], era + start + 3)
        found: Sequence[Attributes | None] = ()
        if plus:
            found = self._view.adopt(directory, listing, start, stop)
            for shown, (following, one) in zip(found, names, strict=True):
                if shown is None:
                    parts.append(wire.listed_unknown(one.name, one.inode, one.mode, following))
                else:
                    parts.append(wire.listed_plus(one.name, shown, following, KEEP))
        else:
            parts += [wire.listed(one.name, one.inode, one.mode, following) for following, one in names]
        if not parts:
            self.listings.done(directory, offset)
        return Reply(parts=(b"".join(parts),), granted=tuple(shown.inode for shown in found if shown is not None))

    def _getxattr(self, request: Request, inode: Inode) -> Reply:
        name = request.name(wire.GETXATTR_IN.size)
        return self._sized(request, self._view.xattr(inode, name, request.group))

    def _listxattr(self, request: Request, inode: Inode) -> Reply:
        return self._sized(request, b"".join(name + b"\0" for name in self._view.xattr_names(inode)))

    def _sized(self, request: Request, value: bytes) -> Reply:
        """Answer the size to who asks with no room, the value to who has room enough."""
        (room,) = request.fields(wire.GETXATTR_IN)
        if not room:
            return Reply(parts=(wire.GETXATTR_OUT.pack(len(value)),))
        return Reply(parts=(value,)) if len(value) <= room else Reply(errno.ERANGE)

    def _statfs(self, _: Request, __: Inode) -> Reply:
        usage = self._view.usage()
        free = usage.free // wire.BLOCK
        blocks = (usage.total // wire.BLOCK, free, free, usage.entries, 0)
        return Reply(parts=(wire.STATFS_OUT.pack(*blocks, wire.BLOCK, wire.NAME_MAX, wire.BLOCK),))
