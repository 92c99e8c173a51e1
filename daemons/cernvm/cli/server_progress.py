# SPDX-License-Identifier: BSD-3-Clause
"""How far a verb of `cvmfs-server` has come: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from cernvm.cvmfs.publish import Progress

LINE_EVERY: Final = 10.0
"""Seconds between lines of progress where there is no terminal."""


@contextmanager
def watched(what: str, quiet: bool, measure: Callable[[], tuple[int, int] | None]) -> Iterator[Progress]:
    """Bars with files, bytes, rate and time left on a terminal, a line now and then elsewhere.

    `what` is the word before them; `measure` gives the number of files and of bytes to come, None if unknown.
    """
    console = Console(stderr=True)
    if quiet:
        yield Progress()
    elif not console.is_terminal:
        lines = Lines(time.monotonic, what)
        yield Progress(files=lines.files, bytes=lines.bytes)
    else:
        expected = measure()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[files]}" + (f"/{expected[0]} files" if expected else " files")),
        )
        with Bars(*columns, console=console, transient=True) as bars:
            task = bars.add_task(what, total=expected[1] if expected else None, files=0)
            done = count(1)  # files are counted by one thread, bytes by many

            def advance_files(more: int) -> None:
                for _ in range(more):
                    bars.update(task, files=next(done))

            yield Progress(files=advance_files, bytes=lambda more: bars.advance(task, more))


class Lines:
    """Progress as plain lines, the first after some seconds.  Called from any thread."""

    def __init__(self, clock: Callable[[], float], what: str) -> None:
        self._clock = clock
        self._what = what
        self._lock = threading.Lock()
        self._next = clock() + LINE_EVERY
        self._files = self._bytes = 0

    def files(self, more: int) -> None:
        """`more` files are done."""
        self._count(files=more)

    def bytes(self, more: int) -> None:
        """`more` bytes of files are done."""
        self._count(size=more)

    def _count(self, files: int = 0, size: int = 0) -> None:
        with self._lock:
            self._files += files
            self._bytes += size
            if self._clock() >= self._next:
                self._next += LINE_EVERY
                print(f"{self._what}: {self._files} files, {self._bytes / 1e6:.1f} MB", file=sys.stderr, flush=True)
