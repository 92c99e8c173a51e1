# SPDX-License-Identifier: BSD-3-Clause
"""One HTTP request through one proxy (or none): the only import of pycurl.

Any thread may ask; handles, with the connections that they keep alive, are lent from a pool.  Connecting has a
deadline and a transfer may not be slower than a bound, so every request ends.  What an answer means for the choice of
servers and proxies is a `routes.Fault`, told by `Failed`.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from ssl import get_default_verify_paths
from typing import Final, Protocol

import pycurl

from cernvm.kit.backoff import Backoff

from .counters import Counter, Counters
from .errors import CvmfsProblem
from .routes import DIRECT, Fault

__all__ = ["DIRECT", "Failed", "Http", "Receiver", "ServerFailed", "Span", "TransferFailed", "Transport"]
_PARALLEL: Final = 32
"""Twice what is fetched ahead at a time, so that readers never wait for that."""
_MAX_REDIRECTS: Final = 4
_IP_FAMILIES: Final = {4: pycurl.IPRESOLVE_V4, 6: pycurl.IPRESOLVE_V6}
_UNRESOLVED: Final = {pycurl.E_COULDNT_RESOLVE_HOST: Fault.SERVER, pycurl.E_COULDNT_RESOLVE_PROXY: Fault.PROXY}
_BUNDLES: Final = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
_OF_THE_SERVER: Final = frozenset({pycurl.E_TOO_MANY_REDIRECTS, pycurl.E_SSL_CACERT, pycurl.E_PEER_FAILED_VERIFICATION})


@dataclass(frozen=True)
class Transport:
    """Where to fetch from and how patiently.  Times in seconds."""

    servers: tuple[str, ...]
    proxy_groups: tuple[tuple[str, ...], ...] = ((DIRECT,),)
    fallback_groups: int = 0
    """So many of the groups, at the end, are there only for when the others fail."""
    timeout_proxy: int = 5
    timeout_direct: int = 10
    low_speed: int = 1024
    """Bytes per second below which a transfer is given up after the timeout."""
    retries: Backoff = field(default=Backoff(first=2.0, cap=10.0, tries=1))
    follow_redirects: bool = False
    server_reset: int = 1800
    proxy_reset: int = 300
    user_agent: str = "cernvm"
    shard: bool = False
    """Each object has its own proxy of the group in use."""
    prefer_family: int | None = None
    """4 or 6: try addresses of that family first; None: as the system orders them."""
    proxy_addresses: int = 0
    """Addresses of one proxy name that are used; 0: all."""
    lookup_timeout: float = 6.0
    """Seconds for all proxy names together."""
    lookup_every: float = 60.0
    """Seconds after which proxy names are looked up again."""
    certificates: str = ""
    """File or directory of certificate authorities for https; empty: the system's."""

    def longest_silence(self) -> float:
        """Seconds after which a fetch has ended even if every server and proxy accepts and never answers."""
        proxies = [proxy for group in self.proxy_groups for proxy in group]
        attempts = 1 + (self.retries.tries or 0)
        pauses = attempts * min(self.retries.cap, self.retries.first * float(1 << attempts))
        patience = [self.timeout_direct if proxy == DIRECT else self.timeout_proxy for proxy in proxies]
        return len(self.servers) * sum(2 * attempts * timeout + pauses for timeout in patience)


class Receiver(Protocol):
    """Takes the bytes of one attempt."""

    def write(self, data: bytes) -> None:
        """Take a piece.  Raises CvmfsProblem or OSError to give up."""

    def finish(self) -> None:
        """All has come.  Raises ObjectCorrupt if it is not what was wanted."""


@dataclass(frozen=True)
class Span:
    """A part of a file: `size` bytes from `first` on."""

    first: int
    size: int


class Failed(Exception):
    """One attempt came to nothing; `fault` says what that means for the next."""

    def __init__(self, reason: str, fault: Fault, *, missing: bool = False) -> None:
        super().__init__(reason)
        self.fault = fault
        self.missing = missing
        """The server does not have it."""


class ServerFailed(Failed):
    """... because of the server: go to the next one."""

    def __init__(self, reason: str, *, missing: bool = False) -> None:
        super().__init__(reason, Fault.SERVER, missing=missing)


class TransferFailed(Failed):
    """... on the way: try again, then another proxy, then another server."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, Fault.TRANSFER)


class Http:
    """A pool of handles for one repository."""

    def __init__(self, transport: Transport, counters: Counters) -> None:
        self._transport = transport
        self._counters = counters
        self.timeout_proxy = transport.timeout_proxy
        """Seconds; may be changed at any time, like `timeout_direct`."""
        self.timeout_direct = transport.timeout_direct
        self._handles: queue.LifoQueue[pycurl.Curl] = queue.LifoQueue()
        self._permits = threading.BoundedSemaphore(_PARALLEL)

    def get(self, url: str, proxy: str, receiver: Receiver, *, refresh: bool, span: Span | None = None) -> None:
        """Give the answer's body to `receiver`; with `refresh` caches on the way have to ask again.

        Raises Failed, and what the receiver raises.
        """
        with self._permits:
            try:
                handle = self._handles.get_nowait()
            except queue.Empty:
                handle = pycurl.Curl()
                self._prepare(handle)
            healthy = False
            try:
                _Request(self, handle, url, proxy, receiver, span).carry_out(refresh)
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

    def timeout(self, proxy: str) -> int:
        """Seconds for connecting, and for a transfer that is too slow."""
        return self.timeout_direct if proxy == DIRECT else self.timeout_proxy

    @property
    def family(self) -> int | None:
        """The preferred family of addresses, as libcurl calls it."""
        return _IP_FAMILIES.get(self._transport.prefer_family or 0)

    def count(self, received: int, seconds: float, *, whole: bool) -> None:
        """Take one attempt into the numbers."""
        self._counters.add(Counter.BYTES_RECEIVED, received)
        self._counters.add(Counter.FETCH_MILLISECONDS, int(1000 * seconds))
        if whole:
            self._counters.add(Counter.DOWNLOADS)

    def _prepare(self, handle: pycurl.Curl) -> None:
        """What all requests of a handle have in common."""
        transport = self._transport
        handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        handle.setopt(pycurl.REDIR_PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        handle.setopt(pycurl.NOPROXY, "")  # the environment has no say
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.FAILONERROR, 1)
        handle.setopt(pycurl.FOLLOWLOCATION, int(transport.follow_redirects))
        handle.setopt(pycurl.MAXREDIRS, _MAX_REDIRECTS)
        handle.setopt(pycurl.LOW_SPEED_LIMIT, transport.low_speed)
        handle.setopt(pycurl.USERAGENT, transport.user_agent)
        handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        kind, place = _authorities(transport.certificates)
        if place:
            handle.setopt(pycurl.CAINFO if kind == "file" else pycurl.CAPATH, place)
            handle.setopt(pycurl.PROXY_CAINFO if kind == "file" else pycurl.PROXY_CAPATH, place)


class _Request:
    """One attempt on a lent handle."""

    def __init__(
        self, http: Http, handle: pycurl.Curl, url: str, proxy: str, receiver: Receiver, span: Span | None
    ) -> None:
        self._http = http
        self._handle = handle
        self._url = url
        self._proxy = proxy
        self._receiver = receiver
        self._span = span
        self._wanted = 200 if span is None else 206
        self._status = 0
        """Of the answer whose head came last."""
        self._received = 0
        self._broken: BaseException | None = None
        self._complaint = ""
        """What a proxy says about itself in the answer's head."""

    def carry_out(self, refresh: bool) -> None:
        """Raises Failed, and what the receiver raises."""
        self._set(refresh)
        started = time.monotonic()
        whole = False
        try:
            self._perform()
            if self._status != self._wanted:
                raise self._refused(self._status)
            whole = True
        finally:
            self._handle.unsetopt(pycurl.WRITEFUNCTION)
            self._handle.unsetopt(pycurl.HEADERFUNCTION)
            self._http.count(self._received, time.monotonic() - started, whole=whole)

    def _perform(self) -> None:
        family = self._http.family
        if family is not None:
            self._handle.setopt(pycurl.IPRESOLVE, family)
        try:
            self._handle.perform()
        except pycurl.error as error:
            if family is None or error.args[0] not in (*_UNRESOLVED, pycurl.E_COULDNT_CONNECT):
                raise self._judged(error) from error
            self._handle.setopt(pycurl.IPRESOLVE, pycurl.IPRESOLVE_WHATEVER)
            try:
                self._handle.perform()
            except pycurl.error as second:
                raise self._judged(second) from second

    def _set(self, refresh: bool) -> None:
        span = self._span
        handle, timeout = self._handle, self._http.timeout(self._proxy)
        headers = ["Connection: Keep-Alive", "Cache-Control: no-cache" if refresh else "Cache-Control:"]
        headers.append("Pragma: no-cache" if refresh else "Pragma:")
        handle.setopt(pycurl.URL, self._url)
        handle.setopt(pycurl.PROXY, "" if self._proxy == DIRECT else self._proxy)
        handle.setopt(pycurl.CONNECTTIMEOUT, timeout)
        handle.setopt(pycurl.LOW_SPEED_TIME, timeout)
        handle.setopt(pycurl.HTTPHEADER, headers)
        if span is None:
            handle.unsetopt(pycurl.RANGE)
        else:
            handle.setopt(pycurl.RANGE, f"{span.first}-{span.first + span.size - 1}")
        handle.setopt(pycurl.WRITEFUNCTION, self._write)
        handle.setopt(pycurl.HEADERFUNCTION, self._head)

    def _write(self, data: bytes) -> int:
        self._received += len(data)
        if self._status != self._wanted:
            return -1  # the text of a refusal
        try:
            self._receiver.write(data)
        except (CvmfsProblem, OSError) as error:
            self._broken = error
            return -1
        return len(data)

    def _head(self, line: bytes) -> None:
        if line.startswith(b"HTTP/"):
            self._status = int(line[9:12]) if line[9:12].isdigit() else 0
            self._complaint = ""
            return
        name, _, value = line.partition(b":")
        name = name.lower()
        if name == b"x-squid-error" or (name == b"proxy-status" and b"error=" in value):
            self._complaint = value.strip().decode("ascii", "replace")[:200]

    def _judged(self, error: pycurl.error) -> BaseException:
        code, text = error.args[0], error.args[1] if len(error.args) > 1 else "transfer failed"
        if self._broken is not None:
            return self._broken
        if code == pycurl.E_HTTP_RETURNED_ERROR or (code == pycurl.E_WRITE_ERROR and self._status != self._wanted):
            return self._refused(self._status)
        if self._complaint and self._proxy != DIRECT:
            return Failed(f"{text}, {self._complaint}", Fault.PROXY)  # about the tunnel that https needs
        if code in _UNRESOLVED:
            return Failed(text, _UNRESOLVED[code])
        return ServerFailed(text) if code in _OF_THE_SERVER else TransferFailed(text)

    def _refused(self, status: int) -> Failed:
        """What an answer other than the wanted one means."""
        reason = f"HTTP status {status}"
        if self._complaint and self._proxy != DIRECT:
            return Failed(f"{reason}, {self._complaint}", Fault.PROXY)
        if status == 429:
            return Failed(reason, Fault.BUSY)
        if status in (200, 206, 400) or status >= 500 or self._proxy == DIRECT:
            return ServerFailed(reason, missing=status in (404, 410))
        if status in (404, 410):
            return ServerFailed(reason, missing=True)
        return Failed(reason, Fault.PROXY)


def _authorities(given: str) -> tuple[str, str]:
    """Where certificate authorities stand: ("file" or "directory", place), ("", "") as libcurl was built."""
    usual = get_default_verify_paths()
    places = [given] if given else [usual.cafile, *_BUNDLES, usual.capath]
    for place in filter(None, places):
        if Path(place).is_dir():
            return "directory", place
        if Path(place).is_file():
            return "file", place
    return "", ""
