# SPDX-License-Identifier: BSD-3-Clause
"""The nearest servers first: what Stratum 1 servers answer when they are asked for an order by geography.

Pure, but for the question itself, which `nearest_first` puts through a function that is passed in.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Final
from urllib.parse import urlsplit

from .errors import CvmfsProblem

log = logging.getLogger(__name__)
ASKED: Final = 3
"""Servers that are asked before the given order is kept."""
MAX_ANSWER: Final = 4096
SEPARATOR: Final = "+PXYSEP+"
"""Between servers and proxies in the question, when nothing but fallback proxies leads to the servers."""
_ANSWER: Final = re.compile(rb"\s*(\d{1,4}(?:,\d{1,4})*)\s*")

Ask = Callable[[str, str], bytes]
"""The answer of a server (URL) to a path; at most MAX_ANSWER bytes.  Raises CvmfsProblem."""


def question(me: str, names: Sequence[str]) -> str:
    """The path that asks to order host `names` for the host or identity `me`."""
    return f"api/v1.0/geo/{me}/{','.join(names)}"


def order(answer: bytes, count: int) -> list[int] | None:
    """The places (from 0) in the order of the answer; None unless it names each of `count` exactly once."""
    match = _ANSWER.fullmatch(answer[:MAX_ANSWER])
    if match is None:
        return None
    places = [int(number) - 1 for number in match[1].split(b",")]
    return places if sorted(places) == list(range(count)) else None


def nearest_first(
    ask: Ask, me: str, servers: Sequence[str], fallback: Sequence[str], *, separated: bool, random: Random
) -> tuple[list[str], list[str]] | None:
    """`servers` and `fallback` proxies (URLs), each with the nearest first; None if nobody could tell.

    `separated`: no regular proxies are configured.
    """
    separator = [SEPARATOR] if separated and fallback else []
    names = [_host(url) for url in servers] + separator + [_host(url) for url in fallback]
    for server in random.sample(list(servers), min(ASKED, len(servers))):
        try:
            answer = ask(server, question(me, names))
        except CvmfsProblem as problem:
            log.info("the order of servers is not known from %s: %s", server, problem)
            continue
        places = order(answer, len(names))
        if places is None:
            log.info("the order of servers that %s gives cannot be used", server)
            continue
        first = len(servers) + len(separator)
        near = [servers[place] for place in places if place < len(servers)]
        return near, [fallback[place - first] for place in places if place >= first]
    return None


def _host(url: str) -> str:
    return urlsplit(url).hostname or url
