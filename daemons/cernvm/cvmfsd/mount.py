# SPDX-License-Identifier: BSD-3-Clause
"""One mount as the supervisor knows it, and who is told what becomes of it.  On the asyncio loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol

from cernvm.cvmfs.counters import Counters

from . import wire
from .process import Worker


class State(Enum):
    """Of a mount, as D-Bus shows it."""

    STARTING = "starting"
    MOUNTED = "mounted"
    RESTARTING = "restarting"
    STOPPING = "stopping"


class End(Enum):
    """How it ended with a worker."""

    GONE = "the mount is to end with it"
    DIED = "another one has to be started"
    INHERITED = "another one has taken over"


class Heir(NamedTuple):
    """A worker that has taken a mount over, and what it shows."""

    worker: Worker
    shows: wire.Shows


@dataclass(eq=False)
class Mount:
    """One repository on its way to, at, or from its mount point."""

    fqrn: str
    point: Path
    state: State = State.STARTING
    revision: int = 0
    root_hash: str = ""
    adapter: str = ""
    last_error: str = ""
    restarts: int = 0
    counters_fd: int = field(default_factory=Counters.shared)
    started: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    refreshes: list[asyncio.Future[wire.Refreshed]] = field(default_factory=list)
    worker: Worker | None = None
    keeper: asyncio.Task[None] | None = None
    heir: asyncio.Future[Heir | None] | None = None
    """While a reload is under way: who takes over, None if nobody does."""
    point_ready: bool = False
    """From now on what is mounted there is this mount's."""
    point_created: bool = False

    def __post_init__(self) -> None:
        self.counters = Counters(self.counters_fd)

    @property
    def is_up(self) -> bool:
        """Whether it can be used."""
        return self.state is State.MOUNTED

    def statistics(self) -> Mapping[str, int]:
        """The worker's numbers, over restarts."""
        return {**self.counters.snapshot(), "restarts": self.restarts}


class Observer(Protocol):
    """Who is told what happens to mounts."""

    def appeared(self, mount: Mount) -> None:
        """It is there (again)."""

    def gone(self, mount: Mount) -> None:
        """It is not there any more."""

    def revision_changed(self, mount: Mount) -> None:
        """It shows another revision."""

    def failed(self, fqrn: str, complaint: str) -> None:
        """It could not be mounted, or its worker died."""

    def changed(self, mount: Mount) -> None:
        """State or last error changed."""
