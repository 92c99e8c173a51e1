# SPDX-License-Identifier: BSD-3-Clause
"""What a mount answers to each command of `cvmfs_talk`: names and answers of the original, cvmfs_talk(1).

A command that makes no sense for this client is answered by one sentence that says why.  Called from several threads;
what it changes is thread-safe by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final

from cernvm import __version__
from cernvm.cvmfs import errors, flags
from cernvm.cvmfs.cache import Cache
from cernvm.cvmfs.counters import Counter
from cernvm.cvmfs.routes import plain
from cernvm.cvmfs.status import Status

from . import mounting

OK: Final = "OK"
UNKNOWN: Final = "unknown command"
MEGABYTE: Final = 1 << 20
SENTENCES: Final[Mapping[str, str]] = {
    "tracebuffer flush": "There is no trace buffer.",
    "cleanup rate": "Ask user.ncleanup24 of the mount for the clean-ups of the last 24 hours.",
    "pin": "Only catalogs in use are pinned; files cannot be.",
    "send mount fd": "The descriptor of the mount is not handed over; cvmfsd keeps mounts through restarts by itself.",
    "chroot": "The shown revision is fixed by CVMFS_ROOT_HASH and a reload.",
    "max ttl set": "Set CVMFS_MAX_TTL and reload.",
    "nameserver get": "Names are looked up by the system's resolver.",
    "nameserver set": "Names are looked up by the system's resolver.",
    "external host": "Set CVMFS_EXTERNAL_URL and reload.",
    "external proxy": "Set CVMFS_EXTERNAL_HTTP_PROXY and reload.",
    "proxy fallback": "Set CVMFS_FALLBACK_PROXY and reload.",
    "host probe geo": "Set CVMFS_USE_GEOAPI=yes and reload.",
    "pid cachemgr": "There is no cache manager process; the workers share the cache by themselves.",
    "hotpatch history": "A reload starts a new worker; none of this one's code is replaced.",
    "tear down to read-only": "A cache on a read-only disk is served as it is.",
    "latency": "No histograms are kept; cvmfsd's metrics have sums and counts.",
    "vfs inodes": "Ask user.inode_max of the mount.",
    "vfs entries": "Ask user.inode_max of the mount.",
}
"""Commands of the original that are not followed, and what to do instead."""


class Commands:
    """Answers commands for one mount; `look` asks for a newer revision."""

    def __init__(self, status: Status, look: Callable[[], tuple[str, str, bool]]) -> None:
        self._status = status
        self._client = status.client
        self._fetcher = status.client.network.fetcher
        self._look = look
        self._table: Mapping[str, Callable[[str], str]] = {
            "cache size": lambda _: self._size(),
            "cache instance": lambda _: f"Posix cache manager ({self._cache.directory})",
            "cache list pinned": lambda _: self._list(self._cache.is_pinned),
            "cache list catalogs": lambda _: "\n".join(sorted(self._catalogs())),
            "cache list": lambda _: self._list(lambda _: True),
            "cache limit get": lambda _: self._limit(),
            "cache limit set": self._set_limit,
            "cleanup": self._cleanup,
            "evict": self._evict,
            "mountpoint": lambda _: str(status.point),
            "device id": lambda _: self._device(),
            "remount": lambda _: self._remount(),
            "detach nested catalogs": lambda _: OK,  # catalogs that nobody uses are let go by themselves
            "revision": lambda _: str(self._client.view.tree.manifest.revision),
            "max ttl info": lambda _: self._max_ttl(),
            "host info": lambda _: self._hosts(),
            "host probe": lambda _: OK,  # a server that does not answer is left by itself
            "host switch": lambda _: self._did(self._fetcher.switch_server),
            "host set": self._set_hosts,
            "proxy info": lambda _: self._proxies(),
            "proxy rebalance": lambda _: self._did(self._fetcher.rebalance),
            "proxy group switch": lambda _: self._did(self._fetcher.switch_proxy_group),
            "proxy set": self._set_proxies,
            "timeout info": lambda _: self._timeouts(),
            "timeout set": self._set_timeouts,
            "open catalogs": lambda _: "\n".join(sorted(self._catalogs())),
            "internal affairs": lambda _: self._affairs(),
            "reset error counters": lambda _: self._reset(),
            "pid watchdog": lambda _: str(os.getppid()),
            "pid": lambda _: str(os.getpid()),
            "parameters": lambda _: self._parameters(),
            "version patchlevel": lambda _: "0",
            "version": lambda _: f"VERSION: {__version__}",
        }

    def __call__(self, command: str) -> str:
        """The answer to one command.  Raises Problem, OSError."""
        words = command.split()
        for length in range(len(words), 0, -1):
            name = " ".join(words[:length])
            if name in self._table:
                return self._table[name](" ".join(words[length:]))
            if name in SENTENCES:
                return SENTENCES[name]
        return UNKNOWN

    @property
    def _cache(self) -> Cache:
        return self._client.repository.objects.cache

    def _did(self, action: Callable[[], None]) -> str:
        action()
        return OK

    # --- the cache

    def _list(self, wanted: Callable[[str], bool]) -> str:
        return "\n".join(sorted(name for name in self._cache.names() if wanted(name)))

    def _pinned(self) -> int:
        names = filter(self._cache.is_pinned, self._cache.names())
        return sum(self._cache.path_of(name).stat().st_size for name in names)

    def _size(self) -> str:
        used, pinned = self._cache.used(), self._pinned()
        return (
            f"Current cache size is {used // MEGABYTE}MB ({used} Bytes), "
            f"pinned: {pinned // MEGABYTE}MB ({pinned} Bytes)"
        )

    def _limit(self) -> str:
        return "unlimited" if self._cache.limit is None else f"{self._cache.limit // 1_000_000} MB"

    def _set_limit(self, text: str) -> str:
        self._cache.limit = 1_000_000 * _number(text) or None
        if self._cache.limit is not None and self._cache.used() > self._cache.limit:
            self._cache.cleanup(self._cache.limit // 2)
        return OK

    def _cleanup(self, text: str) -> str:
        goal = 1_000_000 * _number(text)
        return OK if self._cache.cleanup(goal) <= goal else "Not fully cleaned (there might be pinned chunks)"

    def _evict(self, path: str) -> str:
        located = self._client.view.tree.find(b"" if path == "/" else os.fsencode(path))
        if located is None or not located.entry.is_file:
            return "No such regular file"
        entry = located.entry
        chunks = located.catalog.chunks(entry) if entry.flags & flags.CHUNKED else ()
        for part in [chunk.object for chunk in chunks] or [entry.object]:
            self._client.repository.objects.drop(part)
        return OK

    # --- the repository

    def _catalogs(self) -> list[str]:
        loaded = self._client.view.tree.catalogs()
        return [f"{prefix.decode('utf-8', 'surrogateescape') or '/'} {one.content}" for prefix, one in loaded.items()]

    def _remount(self) -> str:
        kind, _, news = self._look()
        if kind:
            full = isinstance(getattr(errors, kind, None), type) and issubclass(getattr(errors, kind), errors.CacheFull)
            return "Failed (no space)" if full else "Failed"
        return "New revision applied" if news else "Catalog up to date"

    def _max_ttl(self) -> str:
        minutes = self._status.parameters.number("CVMFS_MAX_TTL", 0)
        return f"{minutes} minutes" if minutes else "unset"

    def _device(self) -> str:
        return mounting.device_of(self._status.point) or "0:0"

    # --- the network

    def _hosts(self) -> str:
        servers = self._fetcher.ways().servers
        lines = [f"  [{place}] {server} (unprobed)" for place, server in enumerate(servers)]
        return "\n".join([*lines, f"Active host 0: {servers[0]}"])

    def _set_hosts(self, text: str) -> str:
        names = [name.strip() for name in text.replace(",", ";").split(";") if name.strip()]
        if not names or not all(name.startswith(("http://", "https://")) for name in names):
            return "Usage: host set <server URL;server URL;...>"
        self._fetcher.use_servers(names)
        return OK

    def _proxies(self) -> str:
        ways = self._fetcher.ways()
        groups = [f"[{place}] {', '.join(group)}" for place, group in enumerate(ways.proxy_groups)]
        return "\n".join(["Load-balance groups:", *groups, f"Active proxy: {ways.proxy}"])

    def _set_proxies(self, text: str) -> str:
        groups = [[plain(_scheme(one)) for one in group.split("|") if one] for group in text.split(";") if group]
        if not groups:
            return "Usage: proxy set <proxy|proxy;proxy;...>"
        self._fetcher.use_proxies(groups)
        return OK

    def _timeouts(self) -> str:
        http = self._client.network.http
        return f"Timeout with proxy: {http.timeout_proxy}s\nTimeout without proxy: {http.timeout_direct}s"

    def _set_timeouts(self, text: str) -> str:
        words = text.split()
        if len(words) != 2:
            return "Usage: timeout set <proxy> <direct>"
        http = self._client.network.http
        http.timeout_proxy, http.timeout_direct = max(1, _number(words[0])), max(1, _number(words[1]))
        return OK

    # --- the process

    def _affairs(self) -> str:
        numbers = self._client.view.counters.snapshot()
        return "\n".join(["Name|Value", *(f"{name}|{number}" for name, number in numbers.items())])

    def _reset(self) -> str:
        self._client.view.counters.reset(Counter.ERRORS)
        self._status.journal.last = 0
        return OK

    def _parameters(self) -> str:
        values = self._status.parameters.values
        return "\n".join(f"{name}={one.value}    # from {one.origin}" for name, one in sorted(values.items()))


def _number(text: str) -> int:
    word = text.split()[0] if text.split() else ""
    if not (word.isascii() and word.isdigit() and len(word) < 12):
        raise errors.Mistake(f"{text!r} is not a whole number")
    return int(word)


def _scheme(proxy: str) -> str:
    proxy = proxy.strip()
    return proxy if proxy == "DIRECT" or "://" in proxy else f"http://{proxy}"
