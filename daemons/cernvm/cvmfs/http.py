# SPDX-License-Identifier: BSD-3-Clause
"""One HTTP request through one proxy (or none): the only import of pycurl.

Any thread may ask; handles, with the connections that they keep alive, are lent from a pool.  Connecting has a
deadline and a transfer may not be slower than a bound, so every request ends.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field
from typing import Final, Protocol

import pycurl

from cernvm.kit.backoff import Backoff

from .counters import Counter, Counters
from .errors import CvmfsProblem

DIRECT: Final = "DIRECT"
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


class Failed(Exception):
    """One attempt came to nothing."""


class ServerFailed(Failed):
    """... because of the server: go to the next one."""

    def __init__(self, reason: str, *, missing: bool = False) -> None:
        super().__init__(reason)
        self.missing = missing


class TransferFailed(Failed):
    """... on the way: try again, then another proxy, then another server."""


class Http:
    """A pool of handles for one repository."""

    def __init__(self, transport: Transport, counters: Counters) -> None:
        self._transport = transport
        self._counters = counters
        self._handles: queue.LifoQueue[pycurl.Curl] = queue.LifoQueue()
        self._permits = threading.BoundedSemaphore(_PARALLEL)

    def get(self, url: str, proxy: str, receiver: Receiver, *, refresh: bool) -> None:
        """Give the answer's body to `receiver`; with `refresh` caches on the way have to ask again.

        Raises ServerFailed, TransferFailed, and what the receiver raises.
        """
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

    def close(self) -> None:
        """Close idle connections."""
        while True:
            try:
                self._handles.get_nowait().close()
            except queue.Empty:
                return

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
            raise ServerFailed(f"HTTP status {status}")
        self._counters.add(Counter.DOWNLOADS)

    def _prepare(self, handle: pycurl.Curl, url: str, proxy: str, refresh: bool) -> None:
        transport = self._transport
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


def _judge(error: pycurl.error, status: int, proxy: str) -> Failed:
    code, text = error.args[0], error.args[1] if len(error.args) > 1 else "transfer failed"
    if code == pycurl.E_HTTP_RETURNED_ERROR:
        if proxy != DIRECT and status not in (400, 404, 429) and status < 500:
            return TransferFailed(f"HTTP status {status}")
        return ServerFailed(f"HTTP status {status}", missing=status in (404, 410))
    return TransferFailed(text)
