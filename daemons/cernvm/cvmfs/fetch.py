# SPDX-License-Identifier: BSD-3-Clause
"""HTTP: one path, from whichever server and proxy gives it whole.

The only import of pycurl.  Any thread may fetch; handles (with their kept-alive connections) are lent from a pool.
Every wait has an end: connecting, a transfer slower than a bound, the number of tries.  The receiver of the bytes
judges them: one that finds them corrupt is asked again past the caches, then with the next server.
Behaviour: docs/cvmfs-format.md, "Transport"; enforced by tests/unit/test_cvmfs_fetch.py and tests/real.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final, Protocol, TypeVar
from urllib.parse import quote

import pycurl

from cernvm.kit.backoff import Backoff

from .counters import Counter, Counters
from .errors import CvmfsProblem, ObjectCorrupt, ObjectMissing, Unreachable

log = logging.getLogger(__name__)
DIRECT: Final = "DIRECT"
_UNESCAPED: Final = "/:.@+-_~[],"
_PARALLEL: Final = 16
_MAX_REDIRECTS: Final = 4


@dataclass(frozen=True)
class Transport:
    """Where to fetch from and how patiently.  Times in seconds."""

    servers: tuple[str, ...]
    proxy_groups: tuple[tuple[str, ...], ...] = ((DIRECT,),)
    timeout_proxy: int = 5
    timeout_direct: int = 10
    low_speed: int = 1024
    """Bytes per second below which a transfer is given up after the timeout."""
    retries: Backoff = field(default=Backoff(first=2.0, cap=10.0, tries=1))
    follow_redirects: bool = False
    server_reset: int = 1800
    proxy_reset: int = 300
    user_agent: str = "cernvm"


class Receiver(Protocol):
    """Takes the bytes of one attempt."""

    def write(self, data: bytes) -> None:
        """Take a piece.  Raises CvmfsProblem or OSError to give up."""

    def finish(self) -> None:
        """All has come.  Raises ObjectCorrupt if it is not what was wanted."""


R = TypeVar("R", bound=Receiver)


class _Failed(Exception):
    """One attempt came to nothing."""


class _ServerFailed(_Failed):
    """... because of the server: go to the next one."""

    def __init__(self, reason: str, *, missing: bool = False) -> None:
        super().__init__(reason)
        self.missing = missing


class _TransferFailed(_Failed):
    """... on the way: try again, then another proxy, then another server."""


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
        counters: Counters,
        *,
        random: Random,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.transport = transport
        self._counters = counters
        self._random = random
        self._sleep = sleep
        self._routes = _Routes(transport, random, clock)
        self._handles: queue.LifoQueue[pycurl.Curl] = queue.LifoQueue()
        self._permits = threading.BoundedSemaphore(_PARALLEL)

    def fetch(self, path: str, begin: Callable[[], R]) -> R:
        """Return the receiver that took `path` whole; `begin` makes a fresh one per attempt.

        Raises ObjectMissing, Unreachable, ObjectCorrupt (every server gave wrong bytes), and what a receiver raises.
        """
        reasons: dict[str, _Failed | ObjectCorrupt] = {}
        for server, proxy in self._routes.ordered():
            previous = reasons.get(server)
            if isinstance(previous, _ServerFailed | ObjectCorrupt):
                continue  # another proxy would not mend the server
            url = server.rstrip("/") + "/" + quote(path, safe=_UNESCAPED)
            try:
                receiver = self._persist(url, proxy, begin)
            except (_Failed, ObjectCorrupt) as failure:
                reasons[server] = failure
                log.info("%s via %s: %s", url, proxy, failure)
                self._routes.failed(server, proxy, isinstance(failure, _TransferFailed))
                continue
            self._routes.worked(server, proxy)
            return receiver
        raise _verdict(path, reasons)

    def close(self) -> None:
        """Close idle connections."""
        while True:
            try:
                self._handles.get_nowait().close()
            except queue.Empty:
                return

    def _persist(self, url: str, proxy: str, begin: Callable[[], R]) -> R:
        """Fetch through one server and proxy: again after transfer errors, once past caches if corrupt."""
        delays = self.transport.retries.delays(self._random)
        refresh = False
        while True:
            receiver = begin()
            try:
                self._attempt(url, proxy, receiver, refresh)
                receiver.finish()
                return receiver
            except ObjectCorrupt:
                self._counters.add(Counter.CORRUPT)
                if refresh:
                    raise
                refresh = True
            except _TransferFailed:
                delay = next(delays, None)
                if delay is None:
                    raise
                self._sleep(delay)
            self._counters.add(Counter.RETRIES)

    def _attempt(self, url: str, proxy: str, receiver: Receiver, refresh: bool) -> None:
        with self._permits:
            try:
                handle = self._handles.get_nowait()
            except queue.Empty:
                handle = pycurl.Curl()
            healthy = False
            try:
                self._perform(handle, url, proxy, receiver, refresh)
                healthy = True
            finally:
                if healthy:
                    self._handles.put(handle)
                else:
                    handle.close()

    def _perform(self, handle: pycurl.Curl, url: str, proxy: str, receiver: Receiver, refresh: bool) -> None:
        broken: list[BaseException] = []
        received = 0

        def write(data: bytes) -> int:
            nonlocal received
            received += len(data)
            try:
                receiver.write(data)
            except (CvmfsProblem, OSError) as error:
                broken.append(error)
                return -1
            return len(data)

        self._prepare(handle, url, proxy, refresh)
        handle.setopt(pycurl.WRITEFUNCTION, write)
        started = time.monotonic()
        try:
            handle.perform()
        except pycurl.error as error:
            if broken:
                raise broken[0] from error
            raise _judge(error, handle.getinfo(pycurl.RESPONSE_CODE), proxy) from error
        finally:
            handle.unsetopt(pycurl.WRITEFUNCTION)
            self._counters.add(Counter.BYTES_RECEIVED, received)
            self._counters.add(Counter.FETCH_MILLISECONDS, int(1000 * (time.monotonic() - started)))
        status = handle.getinfo(pycurl.RESPONSE_CODE)
        if status != 200:
            raise _ServerFailed(f"HTTP status {status}")
        self._counters.add(Counter.DOWNLOADS)

    def _prepare(self, handle: pycurl.Curl, url: str, proxy: str, refresh: bool) -> None:
        transport = self.transport
        timeout = transport.timeout_direct if proxy == DIRECT else transport.timeout_proxy
        headers = ["Connection: Keep-Alive", "Cache-Control: no-cache" if refresh else "Cache-Control:"]
        headers.append("Pragma: no-cache" if refresh else "Pragma:")
        handle.setopt(pycurl.URL, url)
        handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        handle.setopt(pycurl.REDIR_PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        handle.setopt(pycurl.PROXY, "" if proxy == DIRECT else proxy)
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.FAILONERROR, 1)
        handle.setopt(pycurl.FOLLOWLOCATION, int(transport.follow_redirects))
        handle.setopt(pycurl.MAXREDIRS, _MAX_REDIRECTS)
        handle.setopt(pycurl.CONNECTTIMEOUT, timeout)
        handle.setopt(pycurl.LOW_SPEED_LIMIT, transport.low_speed)
        handle.setopt(pycurl.LOW_SPEED_TIME, timeout)
        handle.setopt(pycurl.USERAGENT, transport.user_agent)
        handle.setopt(pycurl.HTTPHEADER, headers)
        handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)


def _judge(error: pycurl.error, status: int, proxy: str) -> _Failed:
    code, text = error.args[0], error.args[1] if len(error.args) > 1 else "transfer failed"
    if code == pycurl.E_HTTP_RETURNED_ERROR:
        if proxy != DIRECT and status not in (400, 404, 429) and status < 500:
            return _TransferFailed(f"HTTP status {status}")
        return _ServerFailed(f"HTTP status {status}", missing=status in (404, 410))
    return _TransferFailed(text)


def _verdict(path: str, reasons: dict[str, _Failed | ObjectCorrupt]) -> CvmfsProblem:
    for reason in reasons.values():
        if isinstance(reason, ObjectCorrupt):
            return reason
    told = "; ".join(f"{server}: {reason}" for server, reason in reasons.items())
    if all(isinstance(reason, _ServerFailed) and reason.missing for reason in reasons.values()):
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
