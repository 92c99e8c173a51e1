# SPDX-License-Identifier: BSD-3-Clause
"""The content of one file becomes objects: read in blocks, cut, compressed, hashed, stored.

What is recorded is what was read: if the file changes meanwhile, the revision shows exactly the bytes that were
stored, never a mixture of one size and another content.  Memory: some MiB for each thread, whatever the file.
Thread-safe: a `Depositor` is shared by the worker threads; zlib and hashlib let them run side by side.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from stat import S_ISREG
from typing import Final

from cernvm.kit.errors import sentence

from ..errors import CvmfsProblem, Mistake
from ..hashes import Algorithm, ContentHash, Kind
from .cutter import Cutter, Sizes
from .deflate import fast_stream
from .seen import Seen
from .store import Store

BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file in an object of its own.  Bytes."""

    offset: int
    size: int
    content: ContentHash


@dataclass(frozen=True, slots=True)
class Content:
    """Where the bytes of a file are: one piece is a plain object, several are chunks."""

    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.pieces[-1].offset + self.pieces[-1].size

    @property
    def chunked(self) -> bool:
        """Whether it was cut."""
        return len(self.pieces) > 1

    @property
    def kind(self) -> Kind:
        """What its objects are."""
        return Kind.CHUNK if self.chunked else Kind.FILE


class Depositor:
    """Turns files into objects of one store."""

    def __init__(
        self,
        store: Store,
        algorithm: Algorithm,
        seen: Seen,
        *,
        sizes: Sizes | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        """`on_bytes` is told, from any thread, how many more bytes of files are done."""
        self._store = store
        self._algorithm = algorithm
        self._seen = seen
        self._sizes = sizes or Sizes()
        self._on_bytes = on_bytes or (lambda _: None)
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make every deposit that is under way fail soon."""
        self._stopped.set()

    def deposit(self, path: bytes) -> Content:
        """Store the file `path` as it is now.  Raises Mistake, CvmfsProblem."""
        try:
            with _opened(path) as fd:
                size = os.fstat(fd).st_size
                if size <= BLOCK:
                    blocks = list(self._blocks(fd, size))
                    return self._recall(blocks) or self._store_content(blocks)
                if self._seen.knows_size(size):
                    known = self._recall(self._blocks(fd, size))
                    if known is not None:
                        return known
                return self._store_content(self._blocks(fd, size))
        except PermissionError:
            raise Mistake(f"{os.fsdecode(path)}: cannot be read by this user") from None
        except FileNotFoundError:
            raise CvmfsProblem(f"{os.fsdecode(path)}: vanished while it was being published") from None
        except OSError as error:
            raise CvmfsProblem(f"{os.fsdecode(path)}: could not be stored ({sentence(error)})") from error

    def deposit_bytes(self, data: bytes) -> Content:
        """Store content that is in memory.  Raises OSError."""
        blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
        return self._recall(blocks) or self._store_content(blocks)

    def deposit_stream(self, blocks: Iterable[bytes]) -> Content:
        """Store content that comes block by block.  Raises OSError, and what `blocks` raises."""
        return self._store_content(blocks)

    def deposit_nothing(self) -> Content:
        """Store the content of an empty file.  Raises OSError."""
        return Content((Piece(0, 0, self._store.put(b"", Kind.FILE, self._algorithm)),))

    def _recall(self, blocks: Iterable[bytes]) -> Content | None:
        """The objects of content that was stored before, if they are all still there."""
        digest = hashlib.sha256()
        for block in blocks:
            digest.update(block)
        pieces = self._seen.recall(digest.digest())
        if pieces is None:
            return None
        content = Content(
            tuple(Piece(offset, length, ContentHash(raw, self._algorithm)) for offset, length, raw in pieces)
        )
        if not all(self._store.has(piece.content, content.kind) for piece in content.pieces):
            return None
        self._on_bytes(content.size)
        return content

    def _store_content(self, blocks: Iterable[bytes]) -> Content:
        digest = hashlib.sha256()
        cutter = Cutter(self._sizes)
        pieces: list[Piece] = []
        start = position = 0
        incoming = self._store.incoming(self._algorithm, fast_stream)
        try:
            for block in blocks:
                digest.update(block)
                begin = 0
                for cut in cutter.feed(block):
                    incoming.write(memoryview(block)[begin : cut - position])
                    pieces.append(Piece(start, cut - start, incoming.finish(Kind.CHUNK)))
                    begin, start = cut - position, cut
                    incoming.close()
                    incoming = self._store.incoming(self._algorithm, fast_stream)
                incoming.write(memoryview(block)[begin:])
                position += len(block)
                self._on_bytes(len(block))
            if position == 0:
                return self.deposit_nothing()  # the one object of empty files that both servers have
            kind = Kind.CHUNK if pieces else Kind.FILE
            pieces.append(Piece(start, position - start, incoming.finish(kind)))
        finally:
            incoming.close()
        self._seen.remember(digest.digest(), [(piece.offset, piece.size, piece.content.digest) for piece in pieces])
        return Content(tuple(pieces))

    def _blocks(self, fd: int, size: int) -> Iterator[bytes]:
        """The first `size` bytes, or fewer if the file has shrunk; a file that grows for ever still ends."""
        position = 0
        while position < size and (block := os.pread(fd, min(BLOCK, size - position), position)):
            if self._stopped.is_set():
                raise CvmfsProblem("the publication was stopped")
            yield block
            position += len(block)


@contextmanager
def _opened(path: bytes) -> Iterator[int]:
    # A file that was replaced by a fifo or a link since it was listed must neither block nor lead elsewhere.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not S_ISREG(os.fstat(fd).st_mode):
            raise CvmfsProblem(f"{os.fsdecode(path)}: was replaced by something else while it was being published")
        yield fd
    finally:
        os.close(fd)
