# SPDX-License-Identifier: BSD-3-Clause
"""Objects that will be wanted soon, fetched before they are: over a long line a cold start costs requests times delay.

Two habits of programs are followed.  Who reads a second file of a directory from the network mostly reads more of it
(the modules of a package, the tables of a generator): its small siblings come along, in the order of their names, from
the first one read onwards; a directory with few of them comes along at once.  Who reads a large file mostly reads on:
its next chunks come along.  What is fetched ahead stays within a fixed amount and a multiple of what was really
wanted, so that a program that jumps about costs little; after a failure nothing is fetched ahead for a while.

Thread rule: `missed`, `missed_chunk` and `reads_chunk` may be called from any thread and never wait for the network;
the fetching is done by threads of this room, which end when nothing is to do.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from . import flags
from .catalog import Chunk, Entry
from .errors import CvmfsProblem
from .hashes import ContentHash
from .objects import ObjectRef, Objects
from .tree import Tree

log: Final = logging.getLogger(__name__)

WIDTH: Final = 16
"""Transfers ahead at a time: as many as the original client has connections in all, so that servers see no more."""
MAX_SIBLING: Final = 256 << 10
MAX_SIBLINGS: Final = 4000
MAX_WAITING: Final = 128
FEW: Final = 64
FEW_BYTES: Final = 512 << 10
"""A directory with so little comes along at its first missing file."""
CHUNKS_AHEAD: Final = 3
FREE_BYTES: Final = 48 << 20
"""Ahead at most this much, and `RATIO` times what was wanted and missing."""
RATIO: Final = 4
PAUSE: Final = 10.0
_LINGER: Final = 5.0
_MAX_DIRECTORIES: Final = 10_000
_MAX_FILES: Final = 1_000


@dataclass
class _Habit:
    """How a directory is read: files missed so far, and what is left to fetch ahead (None: not looked yet)."""

    misses: int = 1
    left: deque[ObjectRef] | None = None


class Prefetcher:
    """The fetching ahead of one repository."""

    def __init__(self, objects: Objects, *, width: int = WIDTH, clock: Callable[[], float] = time.monotonic) -> None:
        self._objects = objects
        self._width = width
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[Callable[[], object]] = deque()
        self._habits: OrderedDict[tuple[ContentHash, bytes], _Habit] = OrderedDict()
        """Directories of which a file was missed."""
        self._files: OrderedDict[ObjectRef, int] = OrderedDict()
        """Large files of which a chunk was missed, by their first: the number of the last chunk that was asked for."""
        self._wanted = 0
        self._ahead = 0
        self._threads = 0
        self._busy = 0
        self._paused_until = 0.0
        self._closed = False

    def missed(self, tree: Tree, path: bytes, entry: Entry) -> None:
        """A program wants the file at `path` and the cache has it not."""
        directory = path.rpartition(b"/")[0]
        key = (tree.manifest.root_hash, directory)
        with self._changed:
            self._wanted += entry.size
            if not self._may_begin():
                return
            habit = self._habits.get(key)
            if habit is not None:
                habit.misses += 1
                self._take(habit)
                return
            self._habits[key] = habit = _Habit()
            if len(self._habits) > _MAX_DIRECTORIES:
                self._habits.popitem(last=False)
            self._waiting.append(partial(self._look, habit, tree, directory, entry.name))
            self._staff()

    def _look(self, habit: _Habit, tree: Tree, directory: bytes, name: bytes) -> None:
        """See what else is in the directory."""
        siblings = _siblings(tree.children(directory), name)
        with self._changed:
            habit.left = deque(siblings)
            few = len(siblings) <= FEW and sum(ref.size or 0 for ref in siblings) <= FEW_BYTES
            habit.misses += few
            self._take(habit)

    def _take(self, habit: _Habit) -> None:
        """Fetch some of what a directory has left; the caller holds the lock."""
        if habit.misses > 1 and habit.left:
            room = max(0, MAX_WAITING - len(self._waiting))
            self._enqueue([habit.left.popleft() for _ in range(min(len(habit.left), room))])

    def missed_chunk(self, chunks: Sequence[Chunk], at: int) -> None:
        """A program wants the chunk number `at` of a file, and the cache has it not."""
        with self._changed:
            self._wanted += chunks[at].object.size or 0
            if self._may_begin():
                self._files[chunks[0].object] = at
                if len(self._files) > _MAX_FILES:
                    self._files.popitem(last=False)
                self._read_on(chunks, at)

    def reads_chunk(self, chunks: Sequence[Chunk], at: int) -> None:
        """A program has come to the chunk number `at`; of a file that was missing, the next ones come along."""
        if chunks[0].object in self._files:
            with self._changed:
                if self._may_begin():
                    self._wanted += chunks[at].object.size or 0  # what came ahead was wanted after all
                    self._read_on(chunks, at)

    def _read_on(self, chunks: Sequence[Chunk], at: int) -> None:
        done = max(at, self._files.get(chunks[0].object, at))
        last = min(at + CHUNKS_AHEAD, len(chunks) - 1)
        self._enqueue([chunk.object for chunk in chunks[done + 1 : last + 1]])
        self._files[chunks[0].object] = max(done, last)

    def close(self) -> None:
        """Begin no more transfers; those under way end by themselves."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def settled(self, seconds: float) -> bool:
        """Wait until nothing is left to fetch ahead; for tests and measurements."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, seconds)

    def _may_begin(self) -> bool:
        return self._width > 0 and not self._closed and self._clock() >= self._paused_until

    def _enqueue(self, refs: Sequence[ObjectRef]) -> None:
        """Put `refs` into the queue as far as the allowance goes; the caller holds the lock."""
        for ref in refs:
            if self._ahead + (ref.size or 0) > max(FREE_BYTES, RATIO * self._wanted):
                break
            self._ahead += ref.size or 0
            self._waiting.append(partial(self._objects.open, ref))
        self._staff()

    def _staff(self) -> None:
        """Have as many threads as there is work for, within the width; the caller holds the lock."""
        while self._threads < min(self._width, len(self._waiting) + self._busy):
            self._threads += 1
            threading.Thread(target=self._work, daemon=True, name="prefetch").start()
        self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._waiting or self._closed, _LINGER) or self._closed:
                    self._threads -= 1
                    return
                work = self._waiting.popleft()
                self._busy += 1
            try:
                work()
            except (CvmfsProblem, OSError) as error:
                # whoever really wants it will hear of it; ahead of that it is only a reason to stop
                log.debug("fetching ahead stops for a while: %s", error)
                with self._changed:
                    self._paused_until = self._clock() + PAUSE
                    self._waiting.clear()
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()


def _siblings(children: Sequence[Entry], name: bytes) -> list[ObjectRef]:
    """The small files of a directory, those after `name` first, then from the start.  Raises CvmfsProblem."""
    after = [child for child in children if child.name > name]
    before = [child for child in children if child.name < name]
    chosen: list[ObjectRef] = []
    for child in (*after, *before):
        plain = child.is_file and not child.flags & (flags.CHUNKED | flags.EXTERNAL)
        if plain and 0 < child.size <= MAX_SIBLING and len(chosen) < MAX_SIBLINGS:
            chosen.append(child.object)
    return chosen
