# SPDX-License-Identifier: BSD-3-Clause
"""What supervisor and worker say to each other: one JSON object per line over a socket.

Both ends are the same program, so that a line that cannot be read is an error of ours and ends the worker.  (After
an upgrade an older worker may meet a newer supervisor: what one of them does not know is an error as well, and the
repository is mounted anew.)  Values.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from cernvm.cvmfs import errors
from cernvm.kit.errors import Problem

ORPHAN: Final = "worker."
"""Before the repository's name: the socket in the cache directory at which a worker waits for its next supervisor."""
TALK: Final = "cvmfs_io."
"""Likewise the one at which it answers `cvmfs_talk`."""


class Choice(Enum):
    """What the admin wants to speak to the kernel."""

    AUTO = "auto"
    """The kernel's own protocol where it can do what is needed, else llfuse."""
    KERNEL = "kernel"
    LLFUSE = "llfuse"


@dataclass(frozen=True)
class Task:
    """Supervisor -> worker, once: what to mount."""

    fqrn: str
    mount_point: str
    parameters_directory: str
    cache_directory: str
    cache_limit: int | None
    threads: int
    fuse: str
    """The value of a `Choice`."""
    log_level: str
    fetch_ahead: int
    """Transfers at a time of what will be wanted soon."""
    deadline: float
    """Seconds that a request of a program waits for the network before it is answered with an error."""
    patience: float | None
    """Seconds that the worker goes on without a supervisor; None: for ever."""
    point_created: bool
    replaces: bool
    """Another worker's mount is there, which this one takes away at the moment at which it has its own."""
    parameter_files: list[str] = field(default_factory=list)
    """Read only these; if there are none, what stands below `parameters_directory`."""


@dataclass(frozen=True)
class Ping:
    """Supervisor -> worker: give a sign of life."""


@dataclass(frozen=True)
class Pong:
    """Worker -> supervisor: the answer to `Ping`."""


@dataclass(frozen=True)
class Retire:
    """Supervisor -> worker: another one has the mount now; serve who still uses yours, then end."""


@dataclass(frozen=True)
class Hello:
    """Worker -> a supervisor that adopts it; what it shows (`Shows`) follows."""

    fqrn: str
    mount_point: str
    point_created: bool
    counters_fd: int
    """Descriptor in the worker."""


@dataclass(frozen=True)
class Unmount:
    """Supervisor -> worker: end.  The supervisor has made sure that nobody uses the mount, or does not mind."""


@dataclass(frozen=True)
class Refresh:
    """Supervisor -> worker: look for a newer revision now; answered by `Refreshed`."""


@dataclass(frozen=True)
class Shows:
    """Worker -> supervisor: the mount shows this revision (the first time: the mount is there)."""

    revision: int
    root_hash: str
    adapter: str


@dataclass(frozen=True)
class Refreshed:
    """Worker -> supervisor: the answer to `Refresh`; `complaint` is empty when all is well."""

    kind: str
    complaint: str


@dataclass(frozen=True)
class Failed:
    """Worker -> supervisor: the mount cannot be made; `kind` is the name of the error's class."""

    kind: str
    sentence: str


@dataclass(frozen=True)
class Trouble:
    """Worker -> supervisor: a request of the kernel was answered with an error; `sentence` says why."""

    sentence: str


@dataclass(frozen=True)
class Unmounted:
    """Worker -> supervisor: somebody unmounted it; the worker ends."""


Message = Task | Ping | Pong | Retire | Hello | Unmount | Refresh | Shows | Refreshed | Failed | Trouble | Unmounted
_KINDS: Final[dict[str, type[Message]]] = {
    kind.__name__: kind
    for kind in (Task, Ping, Pong, Retire, Hello, Unmount, Refresh, Shows, Refreshed, Failed, Trouble, Unmounted)
}


def encode(message: Message) -> bytes:
    """One line."""
    return json.dumps({"kind_of_message": type(message).__name__, **asdict(message)}).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Read one line.  Raises ValueError, TypeError or KeyError for what `encode` did not write."""
    fields = json.loads(line)
    return _KINDS[fields.pop("kind_of_message")](**fields)


def error_of(kind: str, sentence: str) -> Problem:
    """The error that the other side described by the name of its class."""
    cls = getattr(errors, kind, Problem)
    return cls(sentence) if isinstance(cls, type) and issubclass(cls, Problem) else Problem(sentence)


@contextmanager
def reachable(path: Path) -> Iterator[str]:
    """An address for the socket at `path`, however long that is: the kernel takes 107 bytes.  Raises OSError."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
