# SPDX-License-Identifier: BSD-3-Clause
"""Objects by their hash: from the cache, else over HTTP, verified before anybody can see them.

The bytes are hashed as they arrive and inflated into a temporary file; only when hash, end of stream and size are
right does the cache get its name.  Several threads that want one object wait for one transfer, and several processes
of one cache take turns; who waits longer than its patience gets an error, and the transfer goes on for the next one.
A bounded number of objects stays open, so that reads of hot files cost one system call.  Thread-safe.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from cernvm.kit.errors import Problem

from .cache import Cache, OpenObject
from .counters import Counter, Counters
from .crew import Crew
from .errors import CvmfsProblem, DiskFull, ObjectCorrupt, TimedOut, Unreachable
from .fetch import R
from .flags import Compression
from .hashes import ContentHash, Hasher, Kind
from .http import Span

log = logging.getLogger(__name__)
MAX_OPEN: Final = 512
MAX_OPEN_BYTES: Final = 1 << 30
"""Of the open objects together: what the cache drops takes its space until it is closed."""
MAX_IN_MEMORY: Final = 64 << 20
"""Bytes of the open objects when the cache's disk is read-only, so that they may lie in memory."""
MAX_TRANSFERS: Final = 32
"""Transfers of one repository at the same time; HTTP has a bound of its own."""
PATIENCE: Final = 120.0
"""Seconds that one request waits for one object."""
_GLANCE: Final = 0.05
_GIVE_WAY: Final = (0.5, 0.0, 0.0)
"""What is left of the cache at each try to write on a full disk; others may take what becomes free."""
MAX_UNSIZED: Final = 4 << 30
"""Bytes that an object may inflate to whose size is not known beforehand."""
_SMALL_KINDS: Final = {Kind.CERTIFICATE: 1 << 20, Kind.METAINFO: 16 << 20, Kind.HISTORY: 1 << 30}
"""The same for kinds that are read into memory; a certificate is fetched before anything is known to be true."""
_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where external data stands: a path below the external servers, and which part of the file there."""

    path: bytes
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """What is wanted: `size` is that of the content, uncompressed (None: not known)."""

    content: ContentHash
    kind: Kind = Kind.FILE
    compression: Compression = Compression.ZLIB
    size: int | None = None
    place: Place | None = None
    """Where it stands if not under its hash."""

    @property
    def cache_name(self) -> str:
        """Its name in the cache.

        One hash may be stored plain in one repository and stand for a zlib stream in another: two contents.
        """
        plain = "-plain" if self.compression is Compression.NONE else ""
        return f"{self.content}{plain}"

    def __str__(self) -> str:
        return f"{self.content}{self.kind.value}"


class Source(Protocol):
    """Where objects come from: `fetch.Fetcher`, or a test's."""

    def fetch(self, path: str, begin: Callable[[], R]) -> R:
        """Return the receiver that took the bytes at `path`; `begin` makes one per attempt.  Raises CvmfsProblem."""


class ExternalSource(Protocol):
    """Where external data comes from."""

    def fetch(self, path: str, begin: Callable[[], R], *, span: Span | None = None) -> R:
        """Like `Source.fetch`, for a part of a file."""


class Verifier:
    """A receiver that hashes what comes, inflates it into the descriptor `fd`, and judges at the end."""

    def __init__(self, ref: ObjectRef, fd: int) -> None:
        self._ref = ref
        self._fd = fd
        self._hasher = Hasher(ref.content.algorithm)
        self._inflater = zlib.decompressobj() if ref.compression is Compression.ZLIB else None
        self._limit = _SMALL_KINDS.get(ref.kind, MAX_UNSIZED) if ref.size is None else ref.size
        self._stored_limit = self._limit + self._limit // 256 + 4096
        self._stored = 0
        self._written = 0
        os.ftruncate(fd, 0)

    def write(self, data: bytes) -> None:
        """Take a piece.  Raises ObjectCorrupt as soon as it cannot become right any more, OSError."""
        self._stored += len(data)
        if self._stored > self._stored_limit:
            raise ObjectCorrupt(f"object {self._ref} is longer than the catalog says")
        self._hasher.update(data)
        if self._inflater is None:
            self._store(data)
            return
        try:
            while data:
                if self._inflater.eof:  # what follows would never be consumed
                    raise ObjectCorrupt(f"object {self._ref} is corrupt: its zlib stream does not end where it should")
                self._store(self._inflater.decompress(data, _PIECE))
                data = self._inflater.unconsumed_tail
        except zlib.error as error:
            raise ObjectCorrupt(f"object {self._ref} is corrupt: it cannot be inflated") from error

    def finish(self) -> None:
        """Judge the whole.  Raises ObjectCorrupt naming the hash."""
        actual = self._hasher.finish()
        if actual != self._ref.content:
            raise ObjectCorrupt(f"object {self._ref} is corrupt: the server's bytes have the hash {actual}")
        if self._inflater is not None and (not self._inflater.eof or self._inflater.unused_data):
            raise ObjectCorrupt(f"object {self._ref} is corrupt: its zlib stream does not end where it should")
        if self._ref.size is not None and self._written != self._ref.size:
            raise ObjectCorrupt(f"object {self._ref} has {self._written} bytes where the catalog says {self._ref.size}")

    def _store(self, data: bytes) -> None:
        if self._written + len(data) > self._limit:
            raise ObjectCorrupt(f"object {self._ref} is longer than the catalog says")
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, memoryview(data)[done:], self._written + done)
        self._written += done


class _Transfer:
    """One object on its way, and who waits for it."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.done = threading.Event()
        self.result: OpenObject | None = None
        self.failure: BaseException | None = None


class Objects:
    """The objects of one repository."""

    def __init__(
        self,
        cache: Cache,
        source: Source,
        counters: Counters,
        external: ExternalSource | None = None,
        *,
        patience: float = PATIENCE,
    ) -> None:
        self.cache = cache
        self.patience = patience
        self._crew = Crew(MAX_TRANSFERS, "fetch")
        self._source = source
        self._external = external
        self._counters = counters
        self._lock = threading.Lock()
        self._open: OrderedDict[str, OpenObject] = OrderedDict()
        self._open_bytes = 0
        self._under_way: dict[str, _Transfer] = {}

    def open(self, ref: ObjectRef, *, pin: bool = False, missing: Callable[[], None] | None = None) -> OpenObject:
        """Return the object's content, fetching it if need be; with `pin` the cache keeps it while this lives.

        `missing` is called, and must not block, when the object has to be fetched.
        Raises ObjectCorrupt, Unreachable, ObjectMissing, CacheFull, OSError.
        """
        name = ref.cache_name
        with self._lock:
            known = self._open.get(name)
            if known is not None:
                self._open.move_to_end(name)
        if known is not None:
            self.cache.touch(known)
            self._counters.add(Counter.CACHE_HITS)
        else:
            known = self._cached_or_fetched(ref, name, missing)
        if ref.size is not None and known.size != ref.size:
            raise ObjectCorrupt(f"object {ref} has {known.size} bytes in the cache where the catalog says {ref.size}")
        if pin:
            known.pin()
        return known

    def peek(self, ref: ObjectRef) -> OpenObject | None:
        """Return the object if it is open already; counts nothing."""
        with self._lock:
            return self._open.get(ref.cache_name)

    def drop(self, ref: ObjectRef) -> None:
        """Forget one object, here and in the cache; it is fetched again when it is wanted."""
        with self._lock:
            known = self._open.pop(ref.cache_name, None)
            self._open_bytes -= known.size if known is not None else 0
        self.cache.forget(ref.cache_name)

    def close(self) -> None:
        """Let go of what is open."""
        with self._lock:
            self._open.clear()
            self._open_bytes = 0

    def _cached_or_fetched(self, ref: ObjectRef, name: str, missing: Callable[[], None] | None) -> OpenObject:
        with self._lock:
            transfer = self._under_way.get(name)
            mine = transfer is None
            if transfer is None:
                transfer = self._under_way[name] = _Transfer()
        if mine:
            self._begin(ref, name, transfer, missing)
        else:
            self._counters.add(Counter.CACHE_MISSES)
        # A transfer that has used up one reader's patience is not waited for by the next ones: the kernel lets those
        # who want one page ask in turn, and each would wait as long again.
        if not transfer.done.wait(max(_GLANCE, transfer.begun + self.patience - time.monotonic())):
            raise TimedOut(f"object {ref} is not here after {self.patience:g} s; its transfer goes on")
        if transfer.failure is not None:
            raise _again(transfer.failure)
        assert transfer.result is not None
        return transfer.result

    def _begin(self, ref: ObjectRef, name: str, transfer: _Transfer, missing: Callable[[], None] | None) -> None:
        """Take the object from the cache, or have the crew fetch it."""
        try:
            found = self._from_cache(ref, name)
        except BaseException as error:
            self._finish(name, transfer, None, error)
            raise
        if found is not None:
            self._finish(name, transfer, found, None)
        else:
            if missing is not None:
                missing()
            self._crew.do(lambda: self._carry_out(ref, name, transfer))

    def _carry_out(self, ref: ObjectRef, name: str, transfer: _Transfer) -> None:
        result: OpenObject | None = None
        failure: BaseException = Problem(f"object {ref}: the transfer was lost by an error of ours; the log tells why")
        try:
            result = self._from_network(ref, name)
        except (CvmfsProblem, OSError) as error:
            failure = error
        finally:
            self._finish(name, transfer, result, None if result else failure)

    def _finish(self, name: str, transfer: _Transfer, result: OpenObject | None, failure: BaseException | None) -> None:
        transfer.result, transfer.failure = result, failure
        with self._lock:
            del self._under_way[name]
            if result is not None:
                self._keep_open(name, result)
        transfer.done.set()

    def _keep_open(self, name: str, opened: OpenObject) -> None:
        """Remember an open object, and forget what was used least recently; the caller holds the lock."""
        self._open[name] = opened
        self._open_bytes += opened.size
        most = MAX_IN_MEMORY if self.cache.read_only else MAX_OPEN_BYTES
        while len(self._open) > 1 and (len(self._open) > MAX_OPEN or self._open_bytes > most):
            _, dropped = self._open.popitem(last=False)
            self._open_bytes -= dropped.size

    def _from_cache(self, ref: ObjectRef, name: str) -> OpenObject | None:
        found = self.cache.open(name)
        if found is None:
            return None
        if ref.size is not None and found.size != ref.size:
            self.cache.forget(name)  # torn by a full disk or by somebody's hand
            return None
        self._counters.add(Counter.CACHE_HITS)
        return found

    def _from_network(self, ref: ObjectRef, name: str) -> OpenObject:
        self._counters.add(Counter.CACHE_MISSES)
        with self.cache.fetching(name):
            found = self._from_cache(ref, name)  # another process may have fetched it meanwhile
            if found is not None:
                return found
            for share in _GIVE_WAY:
                try:
                    return self._fetched(ref, name)
                except DiskFull:
                    self._give_way(share)
            return self._fetched(ref, name)

    def _give_way(self, share: float) -> None:
        """Shrink the cache to a share of what it has, since the disk is full whatever the limit."""
        self.close()  # what is open keeps its space although its name goes
        left = self.cache.cleanup(int(self.cache.used() * share))
        log.warning("%s: the disk is full; the cache gave way, down to %d bytes", self.cache.directory, left)

    def _fetched(self, ref: ObjectRef, name: str) -> OpenObject:
        with self.cache.writing(name) as fd:
            self._fetch(ref, lambda: Verifier(ref, fd))
            return OpenObject(os.dup(fd))

    def _fetch(self, ref: ObjectRef, begin: Callable[[], Verifier]) -> None:
        if ref.place is None:
            self._source.fetch(ref.content.path(ref.kind), begin)
            return
        path = ref.place.path.decode("utf-8", "surrogateescape")
        if self._external is None:
            raise Unreachable(f"{path!r} is external data, and CVMFS_EXTERNAL_URL does not say where that stands")
        self._external.fetch(path.lstrip("/"), begin, span=ref.place.span)


def _again(failure: BaseException) -> BaseException:
    """The same failure for one more thread, with a traceback of its own."""
    if isinstance(failure, CvmfsProblem):
        return type(failure)(str(failure)).with_traceback(None)
    return failure
