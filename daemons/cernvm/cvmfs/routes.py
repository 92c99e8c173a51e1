# SPDX-License-Identifier: BSD-3-Clause
"""Which server and which proxy next: choices as a state machine, without network, clock or randomness of its own.

`Routes` remembers for a whole mount what works; a `Pursuit` is one object's way through it and ends by itself, since
it asks through no proxy of a server twice except for the bounded retries.  Time comes in as seconds of any steady
clock.  Not thread-safe: `fetch.Fetcher` holds a lock around every call.
Behaviour: docs/cvmfs-format.md, "Transport"; enforced by tests/unit/test_cvmfs_routes.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from random import Random
from typing import Final

DIRECT: Final = "DIRECT"
Groups = Sequence[Sequence["Proxy"]]


class Fault(Enum):
    """What one attempt came to, and so what is tried next."""

    TRANSFER = auto()
    """Something broke on the way: again, then another proxy (or none), and after the last the server is to blame."""
    PROXY = auto()
    """The proxy says that it cannot: another proxy at once."""
    SERVER = auto()
    """The server says no: another server at once."""
    BUSY = auto()
    """The server wants to be left alone for a while: again, then another server."""
    CORRUPT = auto()
    """Wrong bytes: once more past all caches, then another server."""


@dataclass(frozen=True)
class Proxy:
    """One address of a proxy; `name` is what the site wrote, `url` what is connected to."""

    name: str
    url: str

    @property
    def direct(self) -> bool:
        """Whether this stands for no proxy at all."""
        return self.url == DIRECT


def plain(name: str) -> Proxy:
    """A proxy (or DIRECT) that is connected to by its name."""
    return Proxy(name, name)


@dataclass(frozen=True)
class Try:
    """One attempt: wait that many seconds, then ask `server` through `proxy`."""

    server: str
    proxy: Proxy
    wait: float = 0.0
    refresh: bool = False
    """Past all caches on the way."""


class Servers:
    """A ring with a pointer that stays on what works and goes home `reset_after` seconds after it left (0: never)."""

    def __init__(self, names: Sequence[str], reset_after: float) -> None:
        self.names = tuple(names)
        self._reset_after = reset_after
        self._at = 0
        self._left_home: float | None = None

    def order(self, now: float) -> tuple[str, ...]:
        """All of them, the one to ask first in front."""
        if _over(self._left_home, now, self._reset_after):
            self._at, self._left_home = 0, None
        return self.names[self._at :] + self.names[: self._at]

    def failed(self, name: str, now: float) -> None:
        """Move on, unless somebody has done so already."""
        if self.order(now)[0] == name and len(self.names) > 1:
            self._at = (self._at + 1) % len(self.names)
            if self._left_home is None:
                self._left_home = now
        if self._at == 0:
            self._left_home = None


class Proxies:
    """Groups in order of fail-over; one member of a group is drawn and kept, the ones that failed are burned."""

    def __init__(self, groups: Groups, reset_after: float, random: Random, *, shard: bool = False) -> None:
        self._reset_after = reset_after
        self._random = random
        self._shard = shard
        self._at = 0
        self._burned: set[Proxy] = set()
        self._left_home: float | None = None
        self.groups: tuple[tuple[Proxy, ...], ...] = ()
        self.replace(groups)

    def replace(self, groups: Groups) -> None:
        """Take other proxies; the order of members that are known already stays as it was drawn."""
        known = {proxy: place for place, proxy in enumerate(p for group in self.groups for p in group)}
        drawn = [self._random.sample(list(group), len(group)) for group in groups]
        self.groups = tuple(tuple(sorted(g, key=lambda p: known.get(p, len(known)))) for g in drawn if g)
        if self._at >= len(self.groups):
            self._go_home()
        self._burned &= set(self.groups[self._at])

    def order(self, now: float, key: str = "") -> tuple[Proxy, ...]:
        """All of them in the order of preference; with sharding `key` chooses within the group in use."""
        if _over(self._left_home, now, self._reset_after):
            self._go_home()
        here = self.groups[self._at]
        if self._shard:
            here = tuple(sorted(here, key=lambda proxy: _weight(proxy, key), reverse=True))
        later = [proxy for group in self.groups[self._at + 1 :] + self.groups[: self._at] for proxy in group]
        fresh = [proxy for proxy in here if proxy not in self._burned]
        return tuple(dict.fromkeys([*fresh, *later, *here]))

    def failed(self, proxy: Proxy, now: float) -> None:
        """Burn it; when all of the group are, the next group's turn comes, after the last one the first's."""
        self.order(now)
        if proxy not in self.groups[self._at]:
            return
        self._burned.add(proxy)
        if self._left_home is None:
            self._left_home = now
        if self._burned >= set(self.groups[self._at]):
            self.next_group(now)

    def next_group(self, now: float) -> None:
        """Leave the group in use."""
        self._burned.clear()
        self._at = (self._at + 1) % len(self.groups)
        if self._at == 0:
            self._left_home = None
        elif self._left_home is None:
            self._left_home = now

    def rebalance(self) -> None:
        """Back to the first group, every group drawn anew."""
        groups, self.groups = self.groups, ()
        self._go_home()
        self.replace(groups)

    def _go_home(self) -> None:
        self._at, self._left_home = 0, None
        self._burned.clear()


def _over(left: float | None, now: float, reset_after: float) -> bool:
    """Whether it is time to go home; never, if `reset_after` is 0."""
    return left is not None and reset_after > 0 and now - left > reset_after


def _weight(proxy: Proxy, key: str) -> bytes:
    """Highest wins: a proxy that goes or comes moves only its own share of the objects, and all machines agree."""
    return hashlib.blake2b(f"{proxy.url} {key}".encode("utf-8", "surrogateescape"), digest_size=8).digest()


class Routes:
    """What is known about the ways to a repository's objects."""

    def __init__(self, servers: Servers, proxies: Proxies) -> None:
        self.servers = servers
        self.proxies = proxies


class Pursuit:
    """One object's attempts: `next` says what to try, `failed` what came of it, until `next` says None.

    What all servers refuse through one proxy is asked for through one other: the proxy may be the one that is wrong.
    If it turns out so (`succeeded`), it is burned.
    """

    def __init__(self, routes: Routes, key: str, delays: Sequence[float], only: str | None = None) -> None:
        """`delays`: pauses before tries of the same URL; `only`: ask no other server than this one."""
        self._routes = routes
        self._key = key
        self._delays = tuple(delays)
        self._only = only
        self._left: Iterator[float] = iter(self._delays)
        self._now: Try | None = None
        self._done: set[str] = set()
        """Servers that are not asked any more."""
        self._tried: set[tuple[str, Proxy]] = set()
        self._refused_by: Proxy | None = None
        """Through which proxy a server said no, or gave wrong bytes, last."""
        self._doubted: Proxy | None = None

    def next(self, now: float) -> Try | None:
        """What to try; None: nothing is left."""
        if self._now is None:
            self._now = self._elsewhere(now)
        if self._now is None and self._refused_by is not None and self._doubted is None and self._only is None:
            self._doubted = self._refused_by
            self._done.clear()
            self._now = self._elsewhere(now)
        return self._now

    def failed(self, fault: Fault, now: float) -> None:
        """Take the outcome of the attempt that `next` gave."""
        tried = self._now
        assert tried is not None, "an outcome without an attempt"
        if fault is Fault.CORRUPT and not tried.refresh:
            self._now = Try(tried.server, tried.proxy, refresh=True)
            return
        delay = next(self._left, None) if fault in (Fault.TRANSFER, Fault.BUSY) else None
        if delay is not None:
            self._now = Try(tried.server, tried.proxy, delay, tried.refresh)
            return
        self._now = None
        if fault in (Fault.TRANSFER, Fault.PROXY):
            self._routes.proxies.failed(tried.proxy, now)
            self._now = self._via(tried.server, now)
        else:
            self._refused_by = tried.proxy
        if self._now is None:
            self._leave(tried.server, now)

    def succeeded(self, now: float) -> None:
        """The attempt that `next` gave brought what was wanted."""
        if self._doubted is not None:
            self._routes.proxies.failed(self._doubted, now)

    def _elsewhere(self, now: float) -> Try | None:
        """The first server that is not done, through the first proxy that it was not asked through."""
        order = self._routes.servers.order(now) if self._only is None else (self._only,)
        found = (self._via(server, now) for server in order if server not in self._done)
        return next((attempt for attempt in found if attempt is not None), None)

    def _via(self, server: str, now: float) -> Try | None:
        for proxy in self._routes.proxies.order(now, self._key):
            if proxy != self._doubted and (server, proxy) not in self._tried:
                self._tried.add((server, proxy))
                self._left = iter(self._delays)
                return Try(server, proxy)
        return None

    def _leave(self, server: str, now: float) -> None:
        self._done.add(server)
        if self._only is None:
            self._routes.servers.failed(server, now)
