# SPDX-License-Identifier: BSD-3-Clause
"""A view as a FUSE file system by llfuse.  The only import of llfuse; thin: every decision is in the view.

Threads: `llfuse.main` serves from several threads of its own, each holding the GIL and llfuse's lock; whatever may
block runs with that lock released.  File handles are inode numbers; directory handles stand for a listing taken at
opendir.  Entries and attributes may be kept by the kernel for a day, since a switch of revisions takes back exactly
what changed.  This is the FUSE request boundary: nothing but FUSEError leaves a handler.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import llfuse

from cernvm.cvmfs import errors
from cernvm.cvmfs.client import MountOptions
from cernvm.cvmfs.inodes import Inode
from cernvm.cvmfs.view import Attributes, Changes, Listed, View
from cernvm.kit.errors import Problem

from .errnos import Refusals

P = ParamSpec("P")
T = TypeVar("T")
KEEP: Final = 86400.0
"""Seconds for which the kernel may keep an answer that a switch will take back."""
KEEP_UNTRACKED: Final = 5.0
"""Seconds for which it may keep a missing name that the view does not remember."""
_BLOCK: Final = 4096


def answering(
    handler: Callable[Concatenate[FileSystem, P], T],
) -> Callable[Concatenate[FileSystem, P], T]:
    """Let nothing but FUSEError out of `handler`."""

    @functools.wraps(handler)
    def answer(self: FileSystem, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return handler(self, *args, **kwargs)
        except llfuse.FUSEError:
            raise
        except Exception as error:  # noqa: BLE001 - the request boundary; `refusals` logs the traceback
            raise llfuse.FUSEError(self.refusals.number(error, _subject(args))) from None

    return answer


def _subject(args: Sequence[object]) -> Inode:
    """The inode that a handler was asked about: its first argument, where that is one."""
    return Inode(args[0]) if args and isinstance(args[0], int) else Inode(0)


class FileSystem(llfuse.Operations):  # type: ignore[misc]  # llfuse has no types
    """llfuse's handlers.  `trouble` is told a sentence for each error that is not an ordinary answer."""

    def __init__(self, view: View, trouble: Callable[[str], None]) -> None:
        super().__init__()
        self._view = view
        self.refusals = Refusals(view, trouble)
        self._listings: dict[int, Sequence[Listed]] = {}
        self._handles = itertools.count(1)

    @answering
    def lookup(self, parent: int, name: bytes, _: object) -> llfuse.EntryAttributes:
        """Look a name up; a missing one is answered so that the kernel keeps it."""
        directory = Inode(parent)
        with llfuse.lock_released:
            try:
                return _attributes(self._view.lookup(directory, name))
            except errors.NoEntry:
                kept = self._view.remembers_absent(directory, name)
        absent = llfuse.EntryAttributes()
        absent.st_ino = 0
        absent.entry_timeout = KEEP if kept else KEEP_UNTRACKED
        return absent

    def forget(self, given: Sequence[tuple[int, int]]) -> None:
        """Take lookups back."""
        for inode, count in given:
            self._view.forget(Inode(inode), count)

    @answering
    def getattr(self, inode: int, _: object) -> llfuse.EntryAttributes:
        """Attributes."""
        return _attributes(self._view.attributes(Inode(inode)))

    @answering
    def readlink(self, inode: int, _: object) -> bytes:
        """A symbolic link's target."""
        return self._view.readlink(Inode(inode))

    @answering
    def opendir(self, inode: int, _: object) -> int:
        """Take a listing."""
        with llfuse.lock_released:
            listing = self._view.list(Inode(inode))
        handle = next(self._handles)
        self._listings[handle] = listing
        return handle

    @answering
    def readdir(self, handle: int, offset: int) -> Iterator[tuple[bytes, llfuse.EntryAttributes, int]]:
        """Go on in a listing."""
        listing = self._listings[handle]
        return ((entry.name, _listed(entry), place + 1) for place, entry in enumerate(listing[offset:], start=offset))

    @answering
    def releasedir(self, handle: int) -> None:
        """Drop a listing."""
        del self._listings[handle]

    @answering
    def open(self, inode: int, _flags: int, _: object) -> int:
        """Have the file's object here and verified, so that an error shows at open(2)."""
        with llfuse.lock_released:
            self._view.open(Inode(inode))
        return inode

    @answering
    def read(self, inode: int, offset: int, size: int) -> bytes:
        """Content."""
        with llfuse.lock_released:
            return self._view.read(Inode(inode), offset, size)

    def release(self, _inode: int) -> None:
        """Nothing is held per open file."""

    def flush(self, _inode: int) -> None:
        """Have the kernel never ask again."""
        raise llfuse.FUSEError(errno.ENOSYS)

    @answering
    def getxattr(self, inode: int, name: bytes, caller: Any) -> bytes:
        """One extended attribute."""
        group = caller.gid
        with llfuse.lock_released:
            return self._view.xattr(Inode(inode), name, group)

    @answering
    def listxattr(self, inode: int, _: object) -> Sequence[bytes]:
        """The names of extended attributes."""
        return self._view.xattr_names(Inode(inode))

    @answering
    def statfs(self, _: object) -> llfuse.StatvfsData:
        """The cache as space, the repository's entries as files."""
        with llfuse.lock_released:
            usage = self._view.usage()
        data = llfuse.StatvfsData()
        data.f_bsize = data.f_frsize = _BLOCK
        data.f_blocks = usage.total // _BLOCK
        data.f_bfree = data.f_bavail = usage.free // _BLOCK
        data.f_files = usage.entries
        data.f_ffree = data.f_favail = 0
        data.f_namemax = 255
        return data


class Session:
    """The one FUSE session of this process."""

    name: Final = "llfuse"

    def __init__(self, view: View, trouble: Callable[[str], None], point: Path, options: MountOptions) -> None:
        """Mount; root shows the mount to all users.  Raises Problem."""
        files = FileSystem(view, trouble)
        given = {"ro", "nodev", "fsname=cvmfs2", "no_splice_read", "big_writes"}
        given |= {"allow_other"} if os.geteuid() == 0 else set()
        given |= {"default_permissions"} if options.check_permissions else set()
        given |= set() if options.allow_setuid else {"nosuid"}
        try:
            llfuse.init(files, str(point), given)
        except RuntimeError as error:
            raise Problem(f"{point}: the kernel refuses the mount ({error}); is /dev/fuse there?") from error

    def serve(self, threads: int) -> None:
        """Answer the kernel until the mount is gone.

        The process must not die of SIGUSR1, with which llfuse wakes its threads at the end.
        """
        llfuse.main(workers=threads, handle_signals=False)

    def close(self) -> None:
        """Let the kernel go, after `serve`."""
        with llfuse.lock:
            llfuse.close(unmount=True)

    def invalidate(self, changes: Changes) -> None:
        """Have the kernel forget what a switch of revisions changed; from a thread that serves no request."""
        with llfuse.lock:
            for directory, name in changes.names:
                llfuse.invalidate_entry(directory, name)
            for inode in changes.directories:
                llfuse.invalidate_inode(inode, attr_only=True)


def _attributes(shown: Attributes) -> Any:
    entry = llfuse.EntryAttributes()
    entry.st_ino = shown.inode
    entry.generation = 0
    entry.entry_timeout = entry.attr_timeout = KEEP
    entry.st_mode = shown.mode
    entry.st_nlink = shown.links
    entry.st_uid = shown.uid
    entry.st_gid = shown.gid
    entry.st_rdev = shown.device
    entry.st_size = shown.size
    entry.st_blksize = _BLOCK
    entry.st_blocks = (shown.size + 511) // 512
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = shown.mtime_ns
    return entry


def _listed(entry: Listed) -> Any:
    shown = llfuse.EntryAttributes()
    shown.st_ino = entry.inode
    shown.st_mode = entry.mode
    return shown
