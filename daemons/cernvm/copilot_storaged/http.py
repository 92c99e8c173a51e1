# SPDX-License-Identifier: BSD-3-Clause
"""The HTTP side: agents and submitters put and get files, each request with a token (docs/storage.md).

It translates between HTTP and `cernvm.copilot.store` and decides nothing about jobs.  Bodies are streamed; what waits
in memory is bounded by the number of transfers that run at once.

Threads: requests live on the asyncio loop; whatever touches the disk runs in a thread.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from errno import EADDRINUSE
from typing import BinaryIO, Final

from aiohttp import web

from cernvm.copilot.disk import (
    BadName,
    Conflict,
    Mismatch,
    NoSpace,
    NoSuchFile,
    StoreFailed,
    TooLarge,
)
from cernvm.copilot.store import CHUNK, Incoming, Shelf, Store
from cernvm.copilot.tokens import LONGEST_TOKEN, BadToken, Direction, Grant, Scope, TokenVerifier
from cernvm.kit.errors import Problem, UserMistake, sentence

log: Final = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class BadRequest(Problem):
    """The request lacks something or says something impossible."""


class Forbidden(Problem):
    """The token is good, but not for this."""


class Slow(Problem):
    """The client let the deadline pass."""


class Busy(Problem):
    """More transfers run than are allowed."""


class Broken(Problem):
    """The client went away in the middle."""


STATUS: Final[Mapping[type[Problem], int]] = {
    BadName: 400,
    BadRequest: 400,
    Broken: 400,
    BadToken: 401,
    Forbidden: 403,
    NoSuchFile: 404,
    Slow: 408,
    Conflict: 409,
    TooLarge: 413,
    Mismatch: 422,
    StoreFailed: 500,
    Busy: 503,
    NoSpace: 507,
}
"""Every problem that a request can meet, and its status."""

LINGER_SECONDS: Final = 2.0
"""How long a refused upload may go on, so that its sender reads why before the connection breaks."""

_DIGEST: Final = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/=]{44}):\s*(?:$|,)")


@dataclass(frozen=True)
class Limits:
    """What clients may take: seconds without a byte, seconds of one transfer, and transfers at once."""

    stall_seconds: float
    transfer_seconds: float
    transfers: int


class Gate:
    """The handlers, and the checks in front of them."""

    def __init__(self, store: Store, verifier: TokenVerifier, limits: Limits) -> None:
        self._store = store
        self._verifier = verifier
        self._limits = limits
        self._running = 0

    def application(self) -> web.Application:
        """The aiohttp application that serves the store."""
        app = web.Application(middlewares=[answer_problems])
        put = self.put
        app.router.add_put("/jobs/{job}/input/{name:.+}", put, expect_handler=self.expect)
        app.router.add_put(r"/jobs/{job}/{attempt:\d{1,9}}/output/{name:.+}", put, expect_handler=self.expect)
        app.router.add_get("/jobs/{job}/input/{name:.+}", self.get_input, allow_head=False)
        app.router.add_get("/jobs/{job}/result/{name:.+}", self.get_result, allow_head=False)
        return app

    async def expect(self, request: web.Request) -> web.StreamResponse | None:
        """Let a client that asks first ('Expect: 100-continue') hear a refusal before it sends the file."""
        try:
            self._upload_grant(request)
        except Problem as error:
            return refusal(request, error)
        if request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    async def put(self, request: web.Request) -> web.Response:
        """Store one file of an attempt, or one input."""
        grant, shelf, name = self._upload_grant(request)
        digest = announced_digest(request)
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise BadRequest(f"{name}: send the bytes as they are, without a Content-Encoding")
        store, most, size = self._store, grant.max_bytes, request.content_length
        with self._transfer():
            incoming = await asyncio.to_thread(store.receive, shelf, name, size=size, max_bytes=most)
            with incoming:
                await self._receive(request, incoming)
                fresh = await asyncio.to_thread(store.keep, incoming, digest, max_bytes=most)
        log.info("job %s: %s %s, %d bytes from %s", shelf.job, shelf.directory, name, incoming.size, grant.agent)
        text = f"{name}: {incoming.size} bytes stored\n" if fresh else f"{name}: was stored already\n"
        return web.Response(status=201 if fresh else 200, text=text)

    async def get_input(self, request: web.Request) -> web.StreamResponse:
        """Give an input file."""
        shelf, name, _ = self._granted(request, "get", "input")
        return await self._send(request, await asyncio.to_thread(self._store.open_input, shelf.job, name))

    async def get_result(self, request: web.Request) -> web.StreamResponse:
        """Give a file of the accepted result."""
        shelf, name, _ = self._granted(request, "get", "output")
        return await self._send(request, await asyncio.to_thread(self._store.open_result, shelf.job, name))

    def _upload_grant(self, request: web.Request) -> tuple[Grant, Shelf, str]:
        scope: Scope = "output" if "attempt" in request.match_info else "input"
        shelf, name, grant = self._granted(request, "put", scope)
        if scope == "output" and (shelf.attempt != grant.attempt or shelf.attempt == 0):
            raise Forbidden(f"the token is for attempt {grant.attempt} of the job, not for {shelf.attempt}")
        return grant, shelf, name

    def _granted(self, request: web.Request, direction: Direction, scope: Scope) -> tuple[Shelf, str, Grant]:
        """Check the token against what the path names.  Raises BadToken, Forbidden, BadName."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise BadToken("a token is needed: 'Authorization: Bearer TOKEN'")
        grant = self._verifier.verify(token.strip())
        job, name = request.match_info["job"], request.match_info["name"]
        if not grant.allows(job, direction, scope, name):
            raise Forbidden(f"the token does not allow to {direction} the {scope} {name[:255]!r} of job {job[:64]!r}")
        return Shelf.checked(job, int(request.match_info.get("attempt", 0))), name, grant

    async def _receive(self, request: web.Request, incoming: Incoming) -> None:
        """Write the body in pieces of about CHUNK bytes.  Raises Slow, Broken, and what `incoming` raises."""
        name, waiting, data = incoming.name, bytearray(), b"first"
        try:
            async with asyncio.timeout(self._limits.transfer_seconds):
                while data:
                    async with asyncio.timeout(self._limits.stall_seconds):
                        data = await request.content.readany()
                    waiting += data
                    if len(waiting) >= CHUNK or (waiting and not data):
                        await asyncio.to_thread(incoming.write, bytes(waiting))
                        waiting.clear()
        except TimeoutError:
            raise Slow(f"{name}: the bytes came too slowly; try again") from None
        except (ConnectionError, web.PayloadAccessError) as error:
            raise Broken(f"{name}: the client went away in the middle") from error
        if request.content_length not in (None, incoming.size):
            raise Broken(f"{name}: {incoming.size} of {request.content_length} bytes came")

    async def _send(self, request: web.Request, file: BinaryIO) -> web.StreamResponse:
        with file, self._transfer():
            size = file.seek(0, 2)
            file.seek(0)
            response = web.StreamResponse(
                headers={
                    "Content-Type": "application/octet-stream",
                    "Content-Length": str(size),
                    "Cache-Control": "no-store",
                    "X-Content-Type-Options": "nosniff",
                }
            )
            try:
                async with asyncio.timeout(self._limits.transfer_seconds):
                    await response.prepare(request)
                    while data := await asyncio.to_thread(file.read, CHUNK):
                        async with asyncio.timeout(self._limits.stall_seconds):
                            await response.write(data)
                    await response.write_eof()
            except (TimeoutError, ConnectionError) as error:
                # The status has gone out; what is left is to break the connection, which the client notices.
                log.info("a download by %s ended early: %s", request.remote, sentence(error))
                if request.transport is not None:
                    request.transport.abort()
        return response

    @contextmanager
    def _transfer(self) -> Iterator[None]:
        if self._running >= self._limits.transfers:
            raise Busy("too many transfers run; try again in some seconds")
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1


@web.middleware
async def answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The boundary: every problem becomes its status with one sentence as the body."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status >= 400:
            text = f"{request.method} {request.path[:200]}: {error.reason}\n"
            allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
            return web.Response(status=error.status, text=text, headers=allow)
        raise
    except Problem as error:
        return refusal(request, error)


def refusal(request: web.Request, error: Problem) -> web.Response:
    """The answer that carries `error`: its status, and its sentence as the body."""
    status = status_of(error)
    level = logging.WARNING if status >= 500 else logging.INFO
    log.log(level, "%s %s refused with %d: %s", request.method, request.path[:200], status, error)
    response = web.Response(status=status, text=f"{error}\n")
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="copilot-storaged"'
    if status in (503, 507):
        response.headers["Retry-After"] = "5"
    return response


def status_of(error: Problem) -> int:
    """The HTTP status of `error`; 500 for one that stands in no line of the table."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def announced_digest(request: web.Request) -> str:
    """The SHA-256 in `Content-Digest` (RFC 9530), as hexadecimal digits.  Raises BadRequest."""
    found = _DIGEST.search(request.headers.get("Content-Digest", ""))
    try:
        digest = base64.b64decode(found.group(1), validate=True) if found else b""
    except binascii.Error:
        digest = b""
    if len(digest) != 32:
        raise BadRequest("a SHA-256 is needed: 'Content-Digest: sha-256=:BASE64:'")
    return digest.hex()


@contextmanager
def listening(address: str, port: int) -> Iterator[socket.socket]:
    """A bound socket, before anything else is begun.  Raises UserMistake when the address cannot be had."""
    bound: socket.socket | None = None
    try:
        family, kind, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
        bound.listen(128)
    except OSError as error:
        if bound is not None:
            bound.close()
        why = "another program uses this port" if error.errno == EADDRINUSE else sentence(error)
        raise UserMistake(f"cannot serve HTTP on {address}:{port}: {why}; stop it or change [http]") from error
    with bound:
        yield bound


@asynccontextmanager
async def serving(
    app: web.Application, bound: socket.socket, *, tls: ssl.SSLContext | None, stall_seconds: float
) -> AsyncIterator[str]:
    """Serve `app` on a socket as long as the block lasts; gives the URL."""
    runner = web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,
        max_field_size=LONGEST_TOKEN + 1024,
        keepalive_timeout=stall_seconds,
        lingering_time=LINGER_SECONDS,
        shutdown_timeout=5.0,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, bound, ssl_context=tls).start()
        host, port = bound.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        yield f"{'https' if tls else 'http'}://{shown}:{port}"
    finally:
        await runner.cleanup()
