# SPDX-License-Identifier: BSD-3-Clause
"""One path, from whichever server and proxy gives it whole: fail-over and retries.

Any thread may fetch.  The number of tries is bounded.  The receiver of the bytes judges them: one that finds them
corrupt is asked again past the caches, then with the next server.  The wire itself is `http`.
Behaviour: docs/cvmfs-format.md, "Transport"; enforced by tests/unit/test_cvmfs_fetch.py and tests/real.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Final, Protocol, TypeVar
from urllib.parse import quote

from .counters import Counter, Counters
from .errors import CvmfsProblem, ObjectCorrupt, ObjectMissing, Unreachable
from .http import Failed, Receiver, ServerFailed, TransferFailed, Transport

log = logging.getLogger(__name__)
_UNESCAPED: Final = "/:.@+-_~[],"


R = TypeVar("R", bound=Receiver)


class Wire(Protocol):
    """Carries one request: `http.Http`, or a test's."""

    def get(self, url: str, proxy: str, receiver: Receiver, *, refresh: bool) -> None:
        """Give the body to the receiver.  Raises ServerFailed, TransferFailed, and what the receiver raises."""


class Buffer:
    """A receiver that keeps up to `limit` bytes."""

    def __init__(self, limit: int, what: str) -> None:
        self.data = bytearray()
        self._limit = limit
        self._what = what

    def write(self, data: bytes) -> None:
        """Take a piece."""
        if len(self.data) + len(data) > self._limit:
            raise ObjectCorrupt(f"{self._what} has more than {self._limit} bytes")
        self.data += data

    def finish(self) -> None:
        """Nothing to check: signatures are checked by who asked."""


class Fetcher:
    """Fetches paths below the repository's URLs."""

    def __init__(
        self,
        transport: Transport,
        wire: Wire,
        counters: Counters,
        *,
        random: Random,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._wire = wire
        self._counters = counters
        self._random = random
        self._sleep = sleep
        self._routes = _Routes(transport, random, clock)

    def fetch(self, path: str, begin: Callable[[], R]) -> R:
        """Return the receiver that took `path` whole; `begin` makes a fresh one per attempt.

        Raises ObjectMissing, Unreachable, ObjectCorrupt (every server gave wrong bytes), and what a receiver raises.
        """
        reasons: dict[str, Failed | ObjectCorrupt] = {}
        for server, proxy in self._routes.ordered():
            previous = reasons.get(server)
            if isinstance(previous, ServerFailed | ObjectCorrupt):
                continue  # another proxy would not mend the server
            url = server.rstrip("/") + "/" + quote(path, safe=_UNESCAPED)
            try:
                receiver = self._persist(url, proxy, begin)
            except (Failed, ObjectCorrupt) as failure:
                reasons[server] = failure
                log.info("%s via %s: %s", url, proxy, failure)
                self._routes.failed(server, proxy, isinstance(failure, TransferFailed))
                continue
            self._routes.worked(server, proxy)
            return receiver
        raise _verdict(path, reasons)

    def _persist(self, url: str, proxy: str, begin: Callable[[], R]) -> R:
        """Fetch through one server and proxy: again after transfer errors, once past caches if corrupt."""
        delays = self._transport.retries.delays(self._random)
        refresh = False
        while True:
            receiver = begin()
            try:
                self._wire.get(url, proxy, receiver, refresh=refresh)
                receiver.finish()
                return receiver
            except ObjectCorrupt:
                self._counters.add(Counter.CORRUPT)
                if refresh:
                    raise
                refresh = True
            except TransferFailed:
                delay = next(delays, None)
                if delay is None:
                    raise
                self._sleep(delay)
            self._counters.add(Counter.RETRIES)


def _verdict(path: str, reasons: dict[str, Failed | ObjectCorrupt]) -> CvmfsProblem:
    for reason in reasons.values():
        if isinstance(reason, ObjectCorrupt):
            return reason
    told = "; ".join(f"{server}: {reason}" for server, reason in reasons.items())
    if all(isinstance(reason, ServerFailed) and reason.missing for reason in reasons.values()):
        return ObjectMissing(f"no server has {path} ({told})")
    return Unreachable(f"{path} cannot be fetched ({told})")


class _Routes:
    """Remembers which server and proxy worked last.  Thread-safe."""

    def __init__(self, transport: Transport, random: Random, clock: Callable[[], float]) -> None:
        self._transport = transport
        self._clock = clock
        self._lock = threading.Lock()
        groups = [random.sample(group, len(group)) for group in transport.proxy_groups]
        self._proxies = [proxy for group in groups for proxy in group]
        self._server = 0
        self._proxy = 0
        self._server_moved = self._proxy_moved = clock()

    def ordered(self) -> Iterator[tuple[str, str]]:
        """Yield every (server, proxy), the ones that worked last first; per server all proxies."""
        with self._lock:
            now = self._clock()
            if now - self._server_moved > self._transport.server_reset:
                self._server = 0
            if now - self._proxy_moved > self._transport.proxy_reset:
                self._proxy = 0
            servers = self._transport.servers[self._server :] + self._transport.servers[: self._server]
            proxies = self._proxies[self._proxy :] + self._proxies[: self._proxy]
        for server in servers:
            for proxy in proxies:
                yield server, proxy

    def failed(self, server: str, proxy: str, on_the_way: bool) -> None:
        """Move on, if nobody else has done so meanwhile."""
        with self._lock:
            now = self._clock()
            if on_the_way and len(self._proxies) > 1 and self._proxies[self._proxy] == proxy:
                self._proxy = (self._proxy + 1) % len(self._proxies)
                self._proxy_moved = now
            elif self._transport.servers[self._server] == server:
                self._server = (self._server + 1) % len(self._transport.servers)
                self._server_moved = now

    def worked(self, server: str, proxy: str) -> None:
        """Stay with what worked."""
        with self._lock:
            if self._transport.servers[self._server] != server:
                self._server = self._transport.servers.index(server)
                self._server_moved = self._clock()
            if self._proxies[self._proxy] != proxy:
                self._proxy = self._proxies.index(proxy)
                self._proxy_moved = self._clock()
