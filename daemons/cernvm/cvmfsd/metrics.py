# SPDX-License-Identifier: BSD-3-Clause
"""Numbers of all mounts for Prometheus, over HTTP on a local socket or on a port of 127.0.0.1; off unless configured.

Text format 0.0.4 of Prometheus.  On the asyncio loop; it reads the numbers from shared memory and asks no worker, so
that it answers whatever they do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

log = logging.getLogger(__name__)
PATIENCE: Final = 5.0
"""Seconds for a client to ask."""
_GAUGES: Final = ("revision", "up")


class Shown(Protocol):
    """What is shown of a mount."""

    fqrn: str
    revision: int

    @property
    def is_up(self) -> bool:
        """Whether it can be used."""

    def statistics(self) -> Mapping[str, int]:
        """Its numbers."""


def text(mounts: Iterable[Shown]) -> str:
    """The page."""
    rows: dict[str, list[str]] = {}
    for mount in sorted(mounts, key=lambda one: one.fqrn):
        numbers = {"up": int(mount.is_up), "revision": mount.revision, **mount.statistics()}
        for name, value in numbers.items():
            full = f"cernvm_cvmfs_{name}" + ("" if name in _GAUGES else "_total")
            rows.setdefault(full, []).append(f'{full}{{repository="{mount.fqrn}"}} {value}')
    lines = []
    for full, values in rows.items():
        lines += [f"# TYPE {full} {'counter' if full.endswith('_total') else 'gauge'}", *values]
    return "".join(f"{line}\n" for line in lines)


@asynccontextmanager
async def serving(where: Path | int | None, mounts: Mapping[str, Shown]) -> AsyncIterator[None]:
    """Answer at `where` meanwhile; None: nowhere.  Raises OSError when it is taken."""
    if where is None:
        yield
        return

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
            writer.write(_response(request, mounts.values()))
            await asyncio.wait_for(writer.drain(), PATIENCE)
        writer.close()

    if isinstance(where, int):
        server = await asyncio.start_server(answer, "127.0.0.1", where)
    else:
        server = await asyncio.start_unix_server(answer, str(where))
        where.chmod(0o660)
    try:
        yield
    finally:
        server.close()
        if isinstance(where, Path):
            where.unlink(missing_ok=True)


def _response(request: bytes, mounts: Iterable[Shown]) -> bytes:
    words = request.split(b" ", 2)
    if words[0] != b"GET":
        status, body = "405 Method Not Allowed", ""
    elif words[1].partition(b"?")[0] != b"/metrics":
        status, body = "404 Not Found", ""
    else:
        status, body = "200 OK", text(mounts)
    data = body.encode()
    kind = "text/plain; version=0.0.4; charset=utf-8"
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    return head.encode() + data
