# SPDX-License-Identifier: BSD-3-Clause
"""Transfers against a server that misbehaves: what may pass is tried again, what is final is not."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from cernvm.copilot.disk import Stored
from cernvm.copilot.transfer import TransferFailed, download, upload
from cernvm.kit.backoff import Backoff
from tests.support.server import free_port

pytestmark = pytest.mark.real

QUICK = Backoff(0.001, 0.001, 4)
DATA = bytes(range(256)) * 20_000  # 5 MB
SHA256 = hashlib.sha256(DATA).hexdigest()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Use = Callable[[aiohttp.ClientSession, str], Awaitable[None]]


class Script:
    """Answers each request by the next of its handlers, and remembers the requests."""

    def __init__(self, *handlers: Handler) -> None:
        self._handlers = list(handlers)
        self.seen: list[web.Request] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        return await self._handlers[min(len(self.seen), len(self._handlers)) - 1](request)


def serve(script: Script, use: Use) -> None:
    async def scenario() -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", script.answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            async with aiohttp.ClientSession() as session:
                await use(session, f"http://127.0.0.1:{runner.addresses[0][1]}/jobs/x")
        finally:
            await runner.cleanup()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def status(number: int, text: str = "no\n", **headers: str) -> Handler:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=number, text=text, headers=headers)

    return answer


def content(data: bytes) -> Handler:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=data)

    return answer


async def half(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(len(DATA))})
    await response.prepare(request)
    await response.write(DATA[: len(DATA) // 2])
    assert request.transport is not None
    request.transport.abort()
    return response


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(DATA)


async def silent(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    raise AssertionError("nobody waits so long")


async def take(request: web.Request) -> web.Response:
    body = await request.read()
    assert hashlib.sha256(body).hexdigest() == SHA256
    return web.Response(status=201, text="stored\n")


@pytest.mark.parametrize(
    "first", [status(503), status(429), half, content(DATA[:-1]), content(DATA[:-1] + b"!"), endless]
)
def test_a_download_that_fails_for_now_is_tried_again(tmp_path: Path, first: Handler) -> None:
    script = Script(first, content(DATA))

    async def use(session: aiohttp.ClientSession, url: str) -> None:
        await download(session, url, "t", tmp_path / "f", len(DATA), SHA256, deadline=30, retry=QUICK)

    serve(script, use)
    assert (tmp_path / "f").read_bytes() == DATA
    assert len(script.seen) == 2
    assert script.seen[0].headers["Authorization"] == "Bearer t"


@pytest.mark.parametrize("number", [400, 401, 403, 404, 409, 302])
def test_a_refused_download_is_final_and_carries_the_servers_sentence(tmp_path: Path, number: int) -> None:
    script = Script(status(number, "because\nsecond line", Location="/elsewhere"))

    async def use(session: aiohttp.ClientSession, url: str) -> None:
        with pytest.raises(TransferFailed, match=f"download of {url}: the server answered {number}: because$") as told:
            await download(session, url, "t", tmp_path / "f", 1, SHA256, deadline=30, retry=QUICK)
        assert told.value.final

    serve(script, use)
    assert len(script.seen) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("handler", "word"), [(content(b"x"), "1 bytes came"), (content(DATA[::-1]), "SHA-256"), (status(500), "500: no")]
)
def test_tries_have_an_end_and_nothing_is_left(tmp_path: Path, handler: Handler, word: str) -> None:
    script = Script(handler)

    async def use(session: aiohttp.ClientSession, url: str) -> None:
        with pytest.raises(TransferFailed, match=word) as told:
            await download(session, url, "t", tmp_path / "f", len(DATA), SHA256, deadline=30, retry=QUICK)
        assert not told.value.final

    serve(script, use)
    assert len(script.seen) == 5
    assert list(tmp_path.iterdir()) == []


def test_the_deadline_holds_over_all_tries(tmp_path: Path) -> None:
    async def use(session: aiohttp.ClientSession, url: str) -> None:
        with pytest.raises(TransferFailed, match=r"not done within 0.2 s"):
            await download(session, url, "t", tmp_path / "f", 1, SHA256, deadline=0.2, retry=QUICK)

    serve(Script(silent), use)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    port = free_port()

    url = f"http://127.0.0.1:{port}/x"

    async def scenario() -> None:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(TransferFailed, match=f"cannot connect to 127.0.0.1:{port}"):
                await download(session, url, "t", tmp_path / "f", 1, SHA256, deadline=30, retry=QUICK)

    asyncio.run(scenario())


def test_what_is_no_url_is_final(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(TransferFailed, match="not a URL") as told:
                await download(session, "nonsense", "t", tmp_path / "f", 1, SHA256, deadline=30, retry=QUICK)
            assert told.value.final

    asyncio.run(scenario())


def test_a_download_that_cannot_be_written_is_final(tmp_path: Path) -> None:
    to = tmp_path / "absent/f"

    async def use(session: aiohttp.ClientSession, url: str) -> None:
        with pytest.raises(TransferFailed, match="No such file or directory") as told:
            await download(session, url, "t", to, len(DATA), SHA256, deadline=30, retry=QUICK)
        assert told.value.final

    serve(Script(content(DATA)), use)


@pytest.mark.parametrize("first", [status(503), status(507), status(422), status(408)])
def test_an_upload_that_fails_for_now_is_tried_again(tmp_path: Path, first: Handler) -> None:
    source = tmp_path / "f"
    source.write_bytes(DATA)
    script = Script(first, take)

    async def use(session: aiohttp.ClientSession, url: str) -> None:
        stored = await upload(session, url, "t", source, deadline=30, retry=QUICK)
        assert stored == Stored("f", len(DATA), SHA256)

    serve(script, use)
    assert len(script.seen) == 2
    assert script.seen[1].headers["Content-Length"] == str(len(DATA))


@pytest.mark.parametrize("number", [401, 403, 409, 413])
def test_a_refused_upload_is_final(tmp_path: Path, number: int) -> None:
    source = tmp_path / "f"
    source.write_bytes(DATA)
    script = Script(status(number, "because\n"))

    async def use(session: aiohttp.ClientSession, url: str) -> None:
        with pytest.raises(TransferFailed, match=f"{number}: because$") as told:
            await upload(session, url, "t", source, deadline=30, retry=QUICK)
        assert told.value.final

    serve(script, use)
    assert len(script.seen) == 1


def test_an_empty_file_is_uploaded_under_the_name_given(tmp_path: Path) -> None:
    source = tmp_path / "f"
    source.write_bytes(b"")

    async def use(session: aiohttp.ClientSession, url: str) -> None:
        stored = await upload(session, url, "t", source, deadline=30, name="out/f", retry=QUICK)
        assert stored == Stored("out/f", 0, hashlib.sha256().hexdigest())

    script = Script(status(201))
    serve(script, use)
    assert script.seen[0].headers["Content-Length"] == "0"
    assert script.seen[0].headers["Content-Digest"] == "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"


def test_what_is_not_a_regular_file_is_not_uploaded(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "fifo")

    async def use(session: aiohttp.ClientSession, url: str) -> None:
        for name in ("link", "fifo", "absent", "."):
            with pytest.raises(TransferFailed, match="cannot be uploaded") as told:
                await upload(session, url, "t", tmp_path / name, deadline=30, retry=QUICK)
            assert told.value.final

    script = Script(status(500))
    serve(script, use)
    assert script.seen == []
