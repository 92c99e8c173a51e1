# SPDX-License-Identifier: BSD-3-Clause
"""A mount of /dev/fuse without libfuse: as root by mount(2), otherwise through the set-user-ID helper fusermount.

The only room with mount(2).  No threads; the helper gets a deadline.
"""

from __future__ import annotations

import array
import ctypes
import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

from cernvm.kit.errors import Problem
from cernvm.kit.proc import find_program

DEVICE: Final = Path("/dev/fuse")
SOURCE: Final = "cvmfs2"
"""What the kernel's table of mounts shows as the device, as site scripts look for it."""
_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_DEADLINE: Final = 10.0


def mount(point: Path, *, check_permissions: bool, allow_setuid: bool) -> int:
    """Mount at `point`, read-only; returns the descriptor on which requests come.  Raises Problem."""
    checked = ["default_permissions"] if check_permissions else []
    if os.geteuid() == 0:
        flags = _MS_RDONLY | _MS_NODEV | (0 if allow_setuid else _MS_NOSUID)
        return _mount_as_root(point, flags, checked)
    return mount_by_helper(point, checked)


def _mount_as_root(point: Path, flags: int, checked: list[str]) -> int:
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Problem(f"{DEVICE}: cannot be opened: {error.strerror}; is the kernel's module fuse loaded?") from error
    options = ",".join([f"fd={fd}", "rootmode=40000", "user_id=0", "group_id=0", "allow_other", *checked])
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(SOURCE.encode(), os.fsencode(point), b"fuse", ctypes.c_ulong(flags), options.encode()):
        number = ctypes.get_errno()
        os.close(fd)
        raise Problem(f"{point}: the kernel refuses the mount: {os.strerror(number)}")
    return fd


def mount_by_helper(point: Path, checked: list[str]) -> int:
    """Mount through fusermount, which hands the descriptor back over a socket.  Raises Problem, UserMistake."""
    options = ",".join(["ro", "nosuid", "nodev", f"fsname={SOURCE}", *checked])
    command = [find_program("fusermount"), "-o", options, "--", str(point)]
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
            process = subprocess.Popen(
                command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        try:
            _, complaint = process.communicate(timeout=_DEADLINE)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.communicate()
            raise Problem(f"{point}: fusermount does not end within {_DEADLINE:g} s") from error
        if process.returncode:
            told = complaint.decode("utf-8", "replace").strip()
            raise Problem(f"{point}: fusermount refuses the mount: {told}")
        ours.settimeout(_DEADLINE)
        return _received(ours, point)


def _received(connection: socket.socket, point: Path) -> int:
    fds = array.array("i")
    try:
        _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_LEN(fds.itemsize), socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        raise Problem(f"{point}: fusermount hands no descriptor back: {error}") from error
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: fds.itemsize])
            return fds[0]
    raise Problem(f"{point}: fusermount hands no descriptor back")


def raise_read_ahead(point: Path, kilobytes: int) -> None:
    """Let the kernel read further ahead on what is mounted at `point`, where that is permitted."""
    where = os.fsencode(point.parent.resolve() / point.name)
    for line in reversed(Path("/proc/self/mountinfo").read_bytes().splitlines()):
        _, _, device, _, mounted, *_ = line.split(b" ")
        if mounted.decode("unicode_escape").encode("latin-1") == where:
            with suppress(OSError):
                Path(f"/sys/class/bdi/{device.decode()}/read_ahead_kb").write_text(str(kilobytes))
            return
