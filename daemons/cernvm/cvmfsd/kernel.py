# SPDX-License-Identifier: BSD-3-Clause
"""A view as a FUSE file system by the kernel's own protocol on /dev/fuse; thin: `fuse_answers` says what is answered.

Threads: a few read requests from the one descriptor and answer them; when all of them are busy (each may wait for the
network) one more is started, up to a bound, and those that find too many idle end.  What a switch of revisions
changed is told to the kernel by the caller's thread, which must not be one of them: the kernel may make it wait for
an answer that is under way.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from cernvm.cvmfs.client import MountOptions
from cernvm.cvmfs.view import Changes, View
from cernvm.kit.errors import Problem

from . import fuse_mount
from . import fuse_wire as wire
from .fuse_answers import Answers, Reply
from .fuse_wire import Feature, Notice, Opcode, Request
from .interrupts import UnderWay
from .mounting import unmount

log = logging.getLogger(__name__)
WISH: Final = wire.Wish(Feature(sum(Feature)) & ~Feature.READDIRPLUS_AUTO, max_pages=256, background=1024)
"""All that the kernel offers; reads of up to 1 MiB.

Most READs are ahead of their readers, and a kernel may hold those back that are more than `background`: it is more
than there are threads, so that readers of a stalled server keep nobody else waiting.
"""
READ_AHEAD_KB: Final = 1024
HANDSHAKE: Final = 10.0
"""Seconds for the kernel to begin."""
IDLE: Final = 3
"""Threads that wait for requests when there is nothing to do."""
_BUFFER: Final = 1 << 16
_PASSING: Final = frozenset({errno.ENOENT, errno.EINTR, errno.EAGAIN})
"""Errors of reading a request that mean: try again."""
_UNCHANGED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY})
"""Errors of telling the kernel something that it does not hold anyway."""


class KernelLacks(Problem):
    """The kernel's FUSE protocol cannot do what this adapter needs."""


def mount(view: View, trouble: Callable[[str], None], point: Path, options: MountOptions) -> Session:
    """Mount `view` at `point`.  Raises Problem, KernelLacks; then nothing is left mounted."""
    fd = fuse_mount.mount(point, check_permissions=options.check_permissions, allow_setuid=options.allow_setuid)
    try:
        features = shake_hands(fd, point)
    except BaseException:
        os.close(fd)
        unmount(point, lazy=True)
        raise
    fuse_mount.raise_read_ahead(point, READ_AHEAD_KB)
    return Session(view, trouble, point, fd, features)


def shake_hands(fd: int, point: Path) -> Feature:
    """Answer INIT on a new mount's descriptor; what was agreed on.  Raises KernelLacks, Problem."""
    while True:
        request = _first_request(fd, point)
        if request.opcode != Opcode.INIT:
            raise Problem(f"{point}: the kernel begins with the request {request.opcode} instead of INIT")
        offer = wire.offer_of(request)
        if (offer.major, offer.minor) < (wire.MAJOR, wire.OLDEST):
            raise KernelLacks(
                f"this kernel speaks FUSE {offer.major}.{offer.minor}, and {wire.MAJOR}.{wire.OLDEST} is needed"
            )
        if offer.major == wire.MAJOR and not offer.features & Feature.NO_OPEN_SUPPORT:
            raise KernelLacks("this kernel asks at every open, which llfuse answers faster")
        os.writev(fd, wire.answer(request.unique, (wire.agreement(offer, WISH),)))
        if offer.major == wire.MAJOR:
            return offer.features & WISH.features


def _first_request(fd: int, point: Path) -> Request:
    ready, _, _ = select.select([fd], [], [], HANDSHAKE)
    if not ready:
        raise Problem(f"{point}: the kernel sends nothing within {HANDSHAKE:g} s")
    try:
        request = wire.decode(memoryview(os.read(fd, _BUFFER)))
    except OSError as error:
        raise Problem(f"{point}: the kernel gives the mount up: {error.strerror}") from error
    if request is None:
        raise Problem(f"{point}: the kernel's first request cannot be read")
    return request


class Session:
    """One mount."""

    name: Final = "kernel"

    def __init__(self, view: View, trouble: Callable[[str], None], point: Path, fd: int, features: Feature) -> None:
        """Over the descriptor `fd` of a mount at `point`, after `shake_hands`."""
        self._point = point
        self._fd = fd
        self._answers = Answers(view, trouble, features)
        self._under_way = UnderWay(lambda unique: self._write(wire.refusal(unique, errno.EINTR)))
        self._room = threading.Condition()
        self._threads = 0
        self._idle = 0
        self._most = 1
        self._over = False

    def serve(self, threads: int) -> None:
        """Answer the kernel until the mount is gone, with at most `threads` requests at the same time."""
        self._most = threads
        with self._room:
            self._start()
            self._room.wait_for(lambda: not self._threads)

    def close(self) -> None:
        """Let the kernel go, after `serve`."""
        os.close(self._fd)

    def invalidate(self, changes: Changes) -> None:
        """Have the kernel forget what a switch of revisions changed; from a thread that serves no request."""
        self._answers.listings.new_era()
        for directory, name in changes.names:
            layout = wire.INVAL_ENTRY_OUT.pack(directory, len(name))
            self._tell(wire.notice(Notice.INVAL_ENTRY, layout, name + b"\0"))
        for directory in {*changes.directories, *(parent for parent, _ in changes.names)}:
            self._tell(wire.notice(Notice.INVAL_INODE, wire.INVAL_INODE_OUT.pack(directory, 0, -1)))

    def _tell(self, buffers: Sequence[bytes]) -> None:
        try:
            os.writev(self._fd, buffers)
        except OSError as error:
            if error.errno not in _UNCHANGED:
                log.warning("%s: the kernel does not take a notice: %s", self._point, error.strerror)

    # --- the threads

    def _start(self) -> None:
        """One more thread; the caller holds the condition."""
        self._threads += 1
        self._idle += 1
        threading.Thread(target=self._run, name=f"fuse {self._threads}", daemon=True).start()

    def _run(self) -> None:
        try:
            self._requests()
        finally:
            with self._room:
                self._threads -= 1
                if not self._idle and not self._over:
                    self._start()
                self._room.notify_all()

    def _requests(self) -> None:
        """Answer until the mount is gone or enough other threads wait; this thread counts as idle before and after."""
        buffer = memoryview(bytearray(_BUFFER))
        while True:
            length = self._read(buffer)
            if not length:
                self._over = True
                return
            with self._room:
                self._idle -= 1
                if not self._idle and self._threads < self._most:
                    self._start()
            request = wire.decode(buffer[:length])
            if request is None:
                log.error("%s: the kernel sent %d bytes that are no request", self._point, length)
            else:
                self._serve(request)
            with self._room:
                if self._idle >= IDLE:
                    return
                self._idle += 1

    def _read(self, buffer: memoryview) -> int:
        """Wait for a request; its length, or 0 when there will be no more."""
        while True:
            try:
                return os.readv(self._fd, [buffer])
            except OSError as error:
                if error.errno in _PASSING:
                    continue
                if error.errno != errno.ENODEV:
                    log.critical("%s: no request can be read: %s", self._point, error.strerror)
                return 0

    def _serve(self, request: Request) -> None:
        if request.opcode == Opcode.INTERRUPT:
            self._interrupt(request)
            return
        if request.opcode in wire.SILENT:
            self._answers.answer(request)
            return
        unique = request.unique
        self._under_way.begin(unique, request.pid)
        reply = self._answers.answer(request)
        if not self._under_way.finish(unique) or not self._write(_buffers(unique, reply)):
            self._answers.take_back(reply)

    def _interrupt(self, request: Request) -> None:
        try:
            (unique,) = request.fields(wire.INTERRUPT_IN)
        except wire.Unreadable:
            return
        if not self._under_way.interrupt(unique):
            # Its reader has not noted it yet, or it is answered: the kernel asks again, or says that it knows it not.
            self._write(wire.refusal(request.unique, errno.EAGAIN))

    def _write(self, buffers: Sequence[bytes]) -> bool:
        """Send an answer; whether the kernel still wanted it."""
        try:
            os.writev(self._fd, buffers)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                log.warning("%s: the kernel does not take an answer: %s", self._point, error.strerror)
            return False
        return True


def _buffers(unique: int, reply: Reply) -> list[bytes]:
    return wire.refusal(unique, reply.error) if reply.error else wire.answer(unique, reply.parts)
