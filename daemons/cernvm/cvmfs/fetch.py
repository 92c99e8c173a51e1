# SPDX-License-Identifier: BSD-3-Clause
"""One path, from whichever server and proxy gives it whole.

Any thread may fetch.  What is tried next is decided by `routes`, which ends; the receiver of the bytes judges them.
The wire itself is `http`.
Behaviour: docs/cvmfs-format.md, "Transport"; enforced by tests/unit/test_cvmfs_fetch.py and tests/real.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol, TypeVar
from urllib.parse import quote

from .counters import Counter, Counters
from .errors import CvmfsProblem, ObjectCorrupt, ObjectMissing, Unreachable
from .http import Failed, Receiver, Span, Transport
from .routes import Fault, Groups, Proxies, Pursuit, Routes, Servers, Try, plain

log = logging.getLogger(__name__)
_UNESCAPED: Final = "/:.@+-_~[],"


R = TypeVar("R", bound=Receiver)


class Wire(Protocol):
    """Carries one request: `http.Http`, or a test's."""

    def get(self, url: str, proxy: str, receiver: Receiver, *, refresh: bool, span: Span | None = None) -> None:
        """Give the body to the receiver.  Raises Failed, and what the receiver raises."""


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


class Throttle:
    """Delays for fetches that failed for good, so that programs in a loop do not storm the servers.

    The first is `FIRST` seconds, each more twice as long up to `MOST`; `FORGET` seconds without a failure end it.
    """

    FIRST: Final = 0.032
    MOST: Final = 2.0
    FORGET: Final = 10.0

    def __init__(self) -> None:
        self._delay = 0.0
        self._last = 0.0

    def failed(self, now: float) -> float:
        """Seconds to wait before this failure is told."""
        fresh = self._delay == 0.0 or now - self._last > self.FORGET
        self._delay = self.FIRST if fresh else min(2 * self._delay, self.MOST)
        self._last = now
        return self._delay


@dataclass(frozen=True)
class Ways:
    """What a person asks about the network: the ways in use first."""

    servers: tuple[str, ...]
    proxy: str
    proxy_groups: tuple[tuple[str, ...], ...]


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
        groups: Groups | None = None,
        renew: Callable[[], Groups] | None = None,
    ) -> None:
        """`groups`: the proxies by address; without, they are connected to by the transport's names.

        `renew` gives them anew and may block; it is called in a thread of its own, now and then while fetches come.
        """
        self._transport = transport
        self._wire = wire
        self._counters = counters
        self._random = random
        self._sleep = sleep
        self._clock = clock
        self._lock = threading.Lock()
        named = groups or [[plain(name) for name in group] for group in transport.proxy_groups]
        proxies = Proxies(named, transport.proxy_reset, random, shard=transport.shard)
        self._routes = Routes(Servers(transport.servers, transport.server_reset), proxies)
        self._throttle = Throttle()
        self._renew = renew
        self._renewed = clock()

    def fetch(self, path: str, begin: Callable[[], R], *, span: Span | None = None) -> R:
        """Return the receiver that took `path` (or a part of it) whole; `begin` makes a fresh one per attempt.

        Raises ObjectMissing, Unreachable, ObjectCorrupt (every server gave wrong bytes), and what a receiver raises.
        """
        return self._pursue(path, begin, span, None)

    def ask(self, server: str, path: str, begin: Callable[[], R]) -> R:
        """Like `fetch`, but from that server only, which need not be one of the repository's."""
        return self._pursue(path, begin, None, server)

    def _pursue(self, path: str, begin: Callable[[], R], span: Span | None, only: str | None) -> R:
        with self._lock:
            pursuit = Pursuit(self._routes, path, list(self._transport.retries.delays(self._random)), only)
            if self._renew is not None and self._clock() - self._renewed > self._transport.lookup_every:
                self._renewed = self._clock()
                threading.Thread(target=self._renew_proxies, args=(self._renew,), name="look up", daemon=True).start()
        reasons: dict[str, Failed | ObjectCorrupt] = {}
        attempt = self._next(pursuit)
        while attempt is not None:
            if attempt.wait:
                self._sleep(attempt.wait)
            url = attempt.server.rstrip("/") + "/" + quote(path.encode("utf-8", "surrogateescape"), safe=_UNESCAPED)
            receiver = begin()
            try:
                self._wire.get(url, attempt.proxy.url, receiver, refresh=attempt.refresh, span=span)
                receiver.finish()
                with self._lock:
                    pursuit.succeeded(self._clock())
                return receiver
            except (Failed, ObjectCorrupt) as failure:
                reasons[attempt.server] = failure
                log.info("%s via %s: %s", url, attempt.proxy.name, failure)
                attempt = self._after(pursuit, attempt, failure)
        with self._lock:
            delay = self._throttle.failed(self._clock())
        self._sleep(delay)
        raise _verdict(path, reasons)

    def _next(self, pursuit: Pursuit) -> Try | None:
        with self._lock:
            return pursuit.next(self._clock())

    def _after(self, pursuit: Pursuit, attempt: Try, failure: Failed | ObjectCorrupt) -> Try | None:
        corrupt = isinstance(failure, ObjectCorrupt)
        with self._lock:
            pursuit.failed(Fault.CORRUPT if isinstance(failure, ObjectCorrupt) else failure.fault, self._clock())
            following = pursuit.next(self._clock())
        if corrupt:
            self._counters.add(Counter.CORRUPT)
        if following is not None and (following.server, following.proxy) == (attempt.server, attempt.proxy):
            self._counters.add(Counter.RETRIES)
        return following

    # --- what a person sees and changes

    def ways(self) -> Ways:
        """The servers and proxies, those in use first."""
        with self._lock:
            now = self._clock()
            groups = self._routes.proxies.groups
            return Ways(
                self._routes.servers.order(now),
                self._routes.proxies.order(now)[0].name,
                tuple(tuple(proxy.name for proxy in group) for group in groups),
            )

    def switch_server(self) -> None:
        """Leave the server in use for the next one."""
        with self._lock:
            now = self._clock()
            self._routes.servers.failed(self._routes.servers.order(now)[0], now)

    def use_servers(self, names: Sequence[str]) -> None:
        """Take these servers (at least one) from now on."""
        with self._lock:
            self._routes.servers = Servers(names, self._transport.server_reset)

    def switch_proxy_group(self) -> None:
        """Leave the group of proxies in use for the next one."""
        with self._lock:
            self._routes.proxies.next_group(self._clock())

    def rebalance(self) -> None:
        """Draw the proxies anew."""
        with self._lock:
            self._routes.proxies.rebalance()

    def use_proxies(self, groups: Groups) -> None:
        """Take these proxies (at least one) from now on; what is known of those that stay is kept."""
        with self._lock:
            self._routes.proxies.replace(groups)

    def _renew_proxies(self, renew: Callable[[], Groups]) -> None:
        self.use_proxies(renew())


def _verdict(path: str, reasons: dict[str, Failed | ObjectCorrupt]) -> CvmfsProblem:
    for reason in reasons.values():
        if isinstance(reason, ObjectCorrupt):
            return reason
    told = "; ".join(f"{server}: {reason}" for server, reason in reasons.items())
    if all(isinstance(reason, Failed) and reason.missing for reason in reasons.values()):
        return ObjectMissing(f"no server has {path} ({told})")
    return Unreachable(f"{path} cannot be fetched ({told})")
