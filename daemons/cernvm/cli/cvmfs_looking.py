# SPDX-License-Identifier: BSD-3-Clause
"""How commands look at mounts that may not answer: by the kernel's table, by sockets, and in children with a deadline.

Whatever may block on a mount runs in a child process that is killed in time; the command itself never touches one.
One thread.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from cernvm.kit.bus import SyncBus
from cernvm.kit.errors import Problem

NAME: Final = "ch.cern.cernvm.Cvmfs1"
PATH: Final = "/ch/cern/cernvm/Cvmfs1"
SOURCE: Final = "cvmfs2"
"""The device that the kernel's table shows for our mounts."""
PATIENCE: Final = 5.0
MAX_ANSWER: Final = 64 << 20
_CREDENTIALS: Final = struct.Struct("3i")


class Places(NamedTuple):
    """Where repositories appear, and where the sockets of their workers are."""

    mounts: Path
    workspace: Path


class Seen(NamedTuple):
    """A mount in the kernel's table."""

    repository: str
    point: Path


def places() -> Places:
    """What cvmfsd says, or where they are by default."""
    with suppress(Problem), SyncBus.system() as bus:
        directory = bus.get(NAME, PATH, NAME, "MountDirectory")
        return Places(Path(directory), Path(bus.get(NAME, PATH, NAME, "Workspace")))
    return Places(Path("/cvmfs"), Path("/var/lib/cvmfs"))


def mounted(below: Path) -> list[Seen]:
    """What is mounted below a directory, by the kernel's table."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split(" ")[4].encode("latin-1", "ignore").decode("unicode_escape"))
        if after.split(" ")[1] == SOURCE and below in point.parents:
            found[point] = Seen(point.name, point)
    return sorted(found.values())


def is_trigger(point: Path) -> bool:
    """Whether systemd (or autofs) waits there for somebody to look."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return any(line.split(" ")[4] == str(point) and " - autofs " in line for line in lines)


def bounded(work: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What `work` returns (something that JSON can carry), in a child; None after `seconds`, or if it raises."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        with suppress(Exception):
            os.set_inheritable(writer, False)
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(json.dumps(work()).encode())
        os._exit(0)
    os.close(writer)
    try:
        data = _read_until(reader, time.monotonic() + seconds)
    finally:
        os.close(reader)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _reap(child)
    try:
        return json.loads(data)
    except ValueError:
        return None


def _read_until(fd: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < MAX_ANSWER:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(fd, 1 << 16) if ready else b""
        if not piece:
            break
        data += piece
    return bytes(data)


def _reap(child: int) -> None:
    """Take the child's end; one that the kernel holds is left to it."""
    for _ in range(20):
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.01)


def attributes(point: Path, names: Sequence[str]) -> dict[str, str] | None:
    """Computed attributes of a mount's root; None if it does not answer in time."""

    def ask() -> dict[str, str]:
        return {name: os.getxattr(point, f"user.{name}").decode("utf-8", "replace") for name in names}

    answer: dict[str, str] | None = bounded(ask)
    return answer


def answers(point: Path) -> bool:
    """Whether a mount can be listed."""
    return bounded(lambda: [os.statvfs(point).f_bsize, len(os.listdir(point))]) is not None  # noqa: PTH208 - bytes stay


@contextmanager
def connection(workspace: Path, repository: str, seconds: float = PATIENCE) -> Iterator[socket.socket]:
    """A connection to the worker of a mount.  Raises OSError."""
    directory = os.open(workspace, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX) as talk:
            talk.settimeout(seconds)
            talk.connect(f"/proc/self/fd/{directory}/cvmfs_io.{repository}")  # the kernel takes 107 bytes of a path
            yield talk
    finally:
        os.close(directory)


def pid_of(workspace: Path, repository: str) -> int | None:
    """The worker of a mount, which need not answer for that."""
    with suppress(OSError), connection(workspace, repository, 1.0) as talk:
        pid: int = _CREDENTIALS.unpack(talk.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]
        return pid
    return None


def talk_to(workspace: Path, repository: str, command: str, seconds: float = 60.0) -> str:
    """What the worker of a mount answers to a command of `cvmfs_talk`.  Raises OSError."""
    with connection(workspace, repository, seconds) as talk:
        talk.sendall(command.encode("utf-8", "surrogateescape"))
        talk.shutdown(socket.SHUT_WR)
        data = bytearray()
        while piece := talk.recv(1 << 16):
            data += piece
    return data.decode("utf-8", "surrogateescape")
