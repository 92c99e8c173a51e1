# SPDX-License-Identifier: BSD-3-Clause
"""Proxies by address: one name may stand for many machines, each of which can fail alone.

`expand` is pure; `look_up_all` asks the system's resolver in threads of its own, which end by themselves later when
the deadline is over first.  Any thread may call.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from urllib.parse import urlsplit, urlunsplit

from .routes import DIRECT, Proxy

Lookup = Callable[[str], Sequence[str]]
"""The addresses of a name as text.  Raises OSError."""


def look_up(name: str) -> Sequence[str]:
    """What the system's resolver says, each address once.  Raises OSError.  Blocks."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def look_up_all(names: Iterable[str], seconds: float, lookup: Lookup = look_up) -> Mapping[str, Sequence[str]]:
    """The addresses of those names that are known within `seconds`."""
    wanted = sorted(set(names))
    answers: queue.SimpleQueue[tuple[str, Sequence[str]]] = queue.SimpleQueue()

    def ask(name: str) -> None:
        try:
            answers.put((name, tuple(lookup(name))))
        except (OSError, UnicodeError):  # a name that no resolver takes is one that does not exist
            answers.put((name, ()))

    for name in wanted:
        threading.Thread(target=ask, args=(name,), name=f"look up {name}", daemon=True).start()
    found: dict[str, Sequence[str]] = {}
    until = Deadline(seconds)
    for _ in wanted:
        try:
            name, addresses = answers.get(timeout=until.left())
        except queue.Empty:
            break
        found[name] = addresses
    return found


def host_of(url: str) -> str | None:
    """The name to look up for a proxy's URL; None where there is none: DIRECT, an address, https (checks the name)."""
    if url == DIRECT:
        return None
    parts = urlsplit(url)
    if parts.scheme == "https" or not parts.hostname or _is_address(parts.hostname):
        return None
    return parts.hostname


def expand(url: str, addresses: Sequence[str], prefer: int | None, most: int) -> list[Proxy]:
    """One proxy per address, the preferred family (4 unless said otherwise) first, at most `most` (0: all).

    A name without addresses stays a name: whoever connects then says what is wrong with it.
    """
    name = without_secrets(url)
    parts = urlsplit(url)
    usable = [address for address in addresses if _is_address(address)]
    if host_of(url) is None or not usable:
        return [Proxy(name, url)]
    usable.sort(key=lambda address: _family(address) != (prefer or 4))
    user = parts.netloc.rpartition("@")[0]
    port = "" if parts.port is None else f":{parts.port}"
    made = []
    for address in usable[: most or None]:
        bare = f"[{address}]" if _family(address) == 6 else address
        place = f"{user}@{bare}{port}" if user else f"{bare}{port}"
        made.append(Proxy(name, urlunsplit((parts.scheme, place, parts.path, "", ""))))
    return made


def without_secrets(url: str) -> str:
    """A proxy's URL without its user and password, for logs and people."""
    before, at, after = url.rpartition("@")
    return f"{before.partition('://')[0]}://{after}" if at and "://" in before else url


class Deadline:
    """Seconds that run out."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._end - time.monotonic())


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def _family(address: str) -> int:
    return ipaddress.ip_address(address.partition("%")[0]).version
