# SPDX-License-Identifier: BSD-3-Clause
"""Mount points: made ready, recognised when dead, taken away.

The only room with unmount(2).  All of it may block on a hanging file system: the supervisor calls it in threads.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

from cernvm.cvmfs.errors import Mistake
from cernvm.kit.errors import Problem
from cernvm.kit.proc import find_program

CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
MNT_DETACH: Final = 2
_DEADLINE: Final = 10.0
_OCTAL: Final = {rb"\040": b" ", rb"\011": b"\t", rb"\012": b"\n", rb"\134": b"\\"}


class Busy(Problem):
    """Somebody uses the mount."""

    bus_name = "Busy"


def make_ready(point: Path) -> bool:
    """Make `point` an empty directory on which nothing is mounted; whether it had to be created.

    A dead FUSE mount there (its daemon was killed) is taken away first.  Raises Mistake, with one sentence.
    """
    if is_mounted(point):
        if _answers(point):
            raise Mistake(f"{point}: something is mounted there already; unmount it first")
        unmount(point, lazy=True)
    try:
        point.parent.mkdir(parents=True, exist_ok=True)
        point.mkdir(mode=0o755)
    except FileExistsError:
        pass
    except OSError as error:
        raise Mistake(f"{point}: the mount point cannot be made: {error.strerror}") from error
    else:
        return True
    if not point.is_dir():
        raise Mistake(f"{point}: exists and is not a directory, so nothing can be mounted on it")
    try:
        if any(point.iterdir()):
            raise Mistake(f"{point}: is not empty; a mount would hide what is in it")
    except OSError as error:
        raise Mistake(f"{point}: cannot be used as a mount point: {error.strerror}") from error
    return False


def is_mounted(point: Path) -> bool:
    """Whether something is mounted exactly there, by the kernel's table (does not touch what is mounted)."""
    return device_of(point) is not None


def device_of(point: Path) -> str | None:
    """The device (major:minor) of what is mounted exactly there, the topmost; None if nothing is."""
    wanted = os.fsencode(point.parent.resolve() / point.name)
    device = None
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        where = fields[4]
        for code, plain in _OCTAL.items():
            where = where.replace(code, plain)
        if where == wanted and b" - autofs " not in line:  # a trigger, on which something may be mounted
            device = fields[2].decode()
    return device


def abort(point: Path) -> None:
    """Have the kernel answer all who wait for the FUSE mount at `point` with an error, whatever its daemon does."""
    device = device_of(point)
    if device is not None:
        with suppress(OSError):  # not there, not mounted or not permitted: the end of the daemon does it too
            (CONNECTIONS / device.partition(":")[2] / "abort").write_text("1")


def unmount(point: Path, *, lazy: bool) -> None:
    """Take the mount away; `lazy` detaches it although it is in use.  Nothing mounted is no error.

    Raises Busy, Problem.
    """
    if os.geteuid() != 0:
        _unmount_as_user(point, lazy)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(point), MNT_DETACH if lazy else 0) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EBUSY:
        raise Busy(f"{point}: is in use by a process, so it is not unmounted")
    if number not in (errno.EINVAL, errno.ENOENT):
        raise Problem(f"{point}: cannot be unmounted: {os.strerror(number)}")


def _unmount_as_user(point: Path, lazy: bool) -> None:
    command = [find_program("fusermount"), "-u", *(["-z"] if lazy else []), str(point)]
    done = subprocess.run(command, capture_output=True, timeout=_DEADLINE, check=False)
    if done.returncode and is_mounted(point):
        complaint = done.stderr.decode("utf-8", "replace").strip()
        raise (Busy if "busy" in complaint else Problem)(f"{point}: cannot be unmounted: {complaint}")


def _answers(point: Path) -> bool:
    try:
        os.statvfs(point)  # unlike stat(2), which the kernel answers from memory, this always asks the daemon
    except OSError as error:
        return error.errno not in (errno.ENOTCONN, errno.ECONNABORTED)
    return True
