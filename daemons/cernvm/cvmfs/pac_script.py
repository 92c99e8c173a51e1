# SPDX-License-Identifier: BSD-3-Clause
"""Runs one proxy auto-configuration script: the child process of `pac`, and the only import of quickjs.

A script comes from the network, so it runs in a process of its own, with bounds on memory and processor time, and the
parent's deadline.  Reads one JSON object (script, url, host) from standard input, writes what FindProxyForURL returned
as one JSON object.  The functions that scripts may call are those that browsers gave them; times are local unless
the last argument is "GMT".
"""

from __future__ import annotations

import ipaddress
import json
import re
import resource
import socket
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

import quickjs

MEMORY: Final = 32 << 20
"""Bytes for the script's values."""
STACK: Final = 1 << 20
PROCESSOR: Final = 5
"""Seconds of processor time."""
_DAYS: Final = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_MONTHS: Final = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
Value = str | int | float | bool | None


class Functions:
    """What a script may ask about names, addresses and times."""

    def __init__(self, resolve: Callable[[str], str | None], own_address: Callable[[], str], now: datetime) -> None:
        """`resolve`: the first IPv4 address of a name, None if it has none; `now` knows its time zone."""
        self._resolve = resolve
        self._own_address = own_address
        self._now = now

    def table(self) -> Mapping[str, Callable[..., Value]]:
        """The functions by the names that scripts use."""
        return {
            "isPlainHostName": lambda host: "." not in host,
            "dnsDomainIs": lambda host, domain: host.lower().endswith(domain.lower()),
            "localHostOrDomainIs": lambda host, full: host == full or ("." not in host and full.startswith(f"{host}.")),
            "isResolvable": lambda host: self._resolve(host) is not None,
            "isInNet": self.is_in_net,
            "dnsResolve": self._resolve,
            "myIpAddress": self._own_address,
            "dnsDomainLevels": lambda host: host.count("."),
            "shExpMatch": shell_match,
            "weekdayRange": self.weekday_range,
            "dateRange": self.date_range,
            "timeRange": self.time_range,
            "alert": lambda *_: None,
        }

    def is_in_net(self, host: str, pattern: str, mask: str) -> bool:
        """Whether the address of `host` equals `pattern` in the bits of `mask`."""
        address = host if _is_ipv4(host) else self._resolve(host)
        if address is None or not (_is_ipv4(pattern) and _is_ipv4(mask)):
            return False
        one, other, bits = (int(ipaddress.IPv4Address(text)) for text in (address, pattern, mask))
        return one & bits == other & bits

    def weekday_range(self, *given: str) -> bool:
        """One day, or from a day to another, over the week's end if need be."""
        now, words = self._time(given)
        days = [_DAYS.index(str(word).upper()) for word in words]
        return _between((days[0],), (now.weekday(),), (days[-1],), cyclic=True)

    def date_range(self, *given: str | float) -> bool:
        """One day, month or year, or from one combination of them to another of the same kind."""
        now, words = self._time(given)
        half = max(1, len(words) // 2)
        kinds = sorted({_date_kind(word) for word in words}, reverse=True)
        current = tuple((now.day, now.month, now.year)[kind] for kind in kinds)

        def key(part: tuple[str | float, ...]) -> tuple[int, ...]:
            return tuple(next(_date_number(word) for word in part if _date_kind(word) == kind) for kind in kinds)

        begin, end = (key(words[:half]), key(words[-half:])) if len(words) > 1 else (key(words), key(words))
        return _between(begin, current, end, cyclic=2 not in kinds)

    def time_range(self, *given: str | float) -> bool:
        """An hour, or from an hour (minute, second) to another, over midnight if need be."""
        now, words = self._time(given)
        numbers = [int(word) for word in words]
        if len(numbers) == 1:
            return now.hour == numbers[0]
        half = len(numbers) // 2
        begin, end = tuple(numbers[:half]), tuple(numbers[half:])
        return _between(begin, (now.hour, now.minute, now.second)[: len(begin)], end, cyclic=True)

    def _time(self, given: tuple[str | float, ...]) -> tuple[datetime, tuple[str | float, ...]]:
        if given and str(given[-1]).upper() == "GMT":
            return self._now.astimezone(UTC), given[:-1]
        return self._now, given


def shell_match(text: str, pattern: str) -> bool:
    """Whether `text` as a whole matches a pattern of the shell with `*` and `?`."""
    parts = (".*" if mark == "*" else "." if mark == "?" else re.escape(mark) for mark in re.sub(r"\*+", "*", pattern))
    return re.fullmatch("".join(parts), text, re.DOTALL) is not None


def evaluate(script: str, url: str, host: str, functions: Functions) -> str:
    """What the script's FindProxyForURL returns.  Raises quickjs.JSException, ValueError."""
    context = quickjs.Context()
    context.set_memory_limit(MEMORY)
    context.set_max_stack_size(STACK)
    for name, function in functions.table().items():
        context.add_callable(name, function)
    context.eval(script)
    finder = context.get("FindProxyForURL")
    if not callable(finder):
        raise ValueError("it has no function FindProxyForURL")
    answer = finder(url, host)
    if not isinstance(answer, str):
        raise ValueError("FindProxyForURL returns no text")
    return answer


def main() -> int:
    """Answer one question; returns the exit status."""
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR, PROCESSOR))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    given = json.load(sys.stdin)
    functions = Functions(_resolve, _own_address, datetime.now().astimezone())
    try:
        answer = {"proxies": evaluate(given["script"], given["url"], given["host"], functions)}
    except (quickjs.JSException, ValueError) as error:
        answer = {"complaint": (str(error).splitlines() or ["it fails"])[0][:200]}
    json.dump(answer, sys.stdout)
    return 0


def _resolve(host: str) -> str | None:
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    return str(found[0][4][0])


def _own_address() -> str:
    """The address from which the default route is taken; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: an address of nobody
        except OSError:
            return "127.0.0.1"
        address: str = probe.getsockname()[0]
        return address


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _date_kind(word: str | float) -> int:
    """0: a day of the month, 1: a month, 2: a year."""
    if str(word).upper() in _MONTHS:
        return 1
    return 2 if int(word) > 31 else 0


def _date_number(word: str | float) -> int:
    return _MONTHS.index(str(word).upper()) + 1 if _date_kind(word) == 1 else int(word)


def _between(first: tuple[int, ...], here: tuple[int, ...], last: tuple[int, ...], *, cyclic: bool) -> bool:
    if first <= last or not cyclic:
        return first <= here <= last
    return here >= first or here <= last


if __name__ == "__main__":
    raise SystemExit(main())
