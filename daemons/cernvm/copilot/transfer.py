# SPDX-License-Identifier: BSD-3-Clause
"""Job files over HTTP: to and from the storage adapter, tried again where that can help, and verified.

A download has its name only when size and SHA-256 are right; an upload announces its SHA-256 and the receiver keeps
nothing else.  Redirects are not followed, since the token is for one server.

Threads: runs on the asyncio loop; hashing and disk work go to threads.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from errno import EINVAL
from pathlib import Path
from random import Random
from typing import BinaryIO, Final, TypeVar

import aiohttp

from cernvm.kit.backoff import Backoff
from cernvm.kit.errors import Problem, sentence
from cernvm.kit.files import replacing

from .disk import Stored

CHUNK: Final = 1024 * 1024
RETRY: Final = Backoff(first=0.5, cap=20.0, tries=10)
STALL_SECONDS: Final = 60.0
"""Longest silence of the server within one try."""
PASSING: Final = frozenset({408, 421, 422, 425, 429})
"""Statuses below 500 after which another try may do better (422: the bytes were hurt on their way)."""

T = TypeVar("T")


class TransferFailed(Problem):
    """A file did not come or go; the sentence tells the file, the server and its last word.

    `final` is True when the server refused and another try would not help.
    """

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


async def download(
    session: aiohttp.ClientSession,
    url: str,
    token: str,
    to: Path,
    size: int,
    sha256: str,
    *,
    deadline: float,
    retry: Backoff = RETRY,
) -> None:
    """Get `url` into the file `to`, which appears only when it has `size` bytes and hash `sha256` (hexadecimal).

    `deadline`: seconds that all tries may take together.  Raises TransferFailed; nothing is left then.
    """

    async def once() -> None:
        async with session.get(url, headers=_headers(token), allow_redirects=False, timeout=_TIMEOUT) as answer:
            await _check(answer, 200)
            await _save(answer, to, size, sha256)

    await _persist(once, f"download of {url}", deadline, retry)


async def upload(
    session: aiohttp.ClientSession,
    url: str,
    token: str,
    source: Path,
    *,
    deadline: float,
    name: str | None = None,
    retry: Backoff = RETRY,
) -> Stored:
    """Put the file `source` at `url`; what was stored, under `name` (else that of the file).

    `deadline`: seconds that all tries may take together.  `source` may not be a symlink.  Raises TransferFailed.
    """
    try:
        file = await asyncio.to_thread(_open_plain, source)
    except OSError as error:
        raise TransferFailed(f"{source} cannot be uploaded: {sentence(error)}", final=True) from error
    with file:
        size, digest = await asyncio.to_thread(_measure, file)
        checksum = base64.b64encode(digest).decode()
        headers = {
            **_headers(token),
            "Content-Digest": f"sha-256=:{checksum}:",
            "Content-Length": str(size),
            "Content-Type": "application/octet-stream",
        }

        async def once() -> None:
            body = _pieces(file, size) if size else b""
            request = session.put(
                url, data=body, headers=headers, allow_redirects=False, timeout=_TIMEOUT, expect100=size > CHUNK
            )
            async with request as answer:
                await _check(answer, 200, 201)

        await _persist(once, f"upload of {source.name} to {url}", deadline, retry)
    return Stored(name or source.name, size, digest.hex())


_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=20.0, sock_read=STALL_SECONDS)


async def _persist(once: Callable[[], Awaitable[None]], what: str, deadline: float, retry: Backoff) -> None:
    """Call `once` until it succeeds, fails for good, or time or tries are over.  Raises TransferFailed."""
    last = "no try came to an end"
    delays = retry.delays(Random())
    try:
        async with asyncio.timeout(deadline):
            while True:
                try:
                    return await once()
                except TransferFailed as error:
                    if error.final:
                        raise TransferFailed(f"{what}: {error}", final=True) from error
                    last = str(error)
                except (aiohttp.InvalidURL, aiohttp.ClientConnectorCertificateError) as error:
                    raise TransferFailed(f"{what}: {_words(error)}", final=True) from error
                except (aiohttp.ClientError, ConnectionError) as error:
                    last = _words(error)
                except TimeoutError:
                    last = f"the server was silent for {STALL_SECONDS:.0f} s"
                delay = next(delays, None)
                if delay is None:
                    break
                await asyncio.sleep(delay)
    except TimeoutError:
        raise TransferFailed(f"{what}: not done within {deadline:g} s; the last try: {last}") from None
    except OSError as error:
        raise TransferFailed(f"{what}: {sentence(error)}", final=True) from error
    raise TransferFailed(f"{what}: given up; the last try: {last}")


async def _check(answer: aiohttp.ClientResponse, *wanted: int) -> None:
    """Raise TransferFailed with the server's sentence unless the status is one of `wanted`."""
    if answer.status in wanted:
        return
    said = (await answer.content.read(1000)).decode(errors="replace").strip().split("\n")[0]
    final = answer.status < 500 and answer.status not in PASSING
    raise TransferFailed(f"the server answered {answer.status}: {said or answer.reason}", final=final)


async def _save(answer: aiohttp.ClientResponse, to: Path, size: int, sha256: str) -> None:
    hasher, got = hashlib.sha256(), 0

    def add(file: BinaryIO, data: bytes) -> None:
        hasher.update(data)
        file.write(data)

    with replacing(to, sync=False) as file:
        async for data in answer.content.iter_chunked(CHUNK):
            got += len(data)
            if got > size:
                break
            await asyncio.to_thread(add, file, data)
        if got != size:
            raise TransferFailed(f"{'more than ' if got > size else ''}{got} bytes came instead of {size}")
        if hasher.hexdigest() != sha256:
            raise TransferFailed(f"the SHA-256 of what came is {hasher.hexdigest()} instead of {sha256}")


async def _pieces(file: BinaryIO, size: int) -> AsyncIterator[bytes]:
    """The first `size` bytes of `file`, also when it grows meanwhile."""
    done = 0
    while done < size:
        data = await asyncio.to_thread(_read_at, file, done, min(CHUNK, size - done))
        if not data:
            raise TransferFailed("the file became shorter while it was sent", final=True)
        done += len(data)
        yield data


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    return os.pread(file.fileno(), size, offset)


def _open_plain(path: Path) -> BinaryIO:
    """Open a regular file that is no symlink.  Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def _measure(file: BinaryIO) -> tuple[int, bytes]:
    hasher, size = hashlib.sha256(), 0
    while data := _read_at(file, size, CHUNK):
        hasher.update(data)
        size += len(data)
    return size, hasher.digest()


def _headers(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"}


def _words(error: Exception) -> str:
    """What an HTTP client's exception says, as part of a sentence."""
    if isinstance(error, aiohttp.InvalidURL):
        return "that is not a URL"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"the certificate of {error.host}:{error.port} does not hold: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect to {error.host}:{error.port}: {error.os_error.strerror or error.os_error}"
    return str(error) or type(error).__name__
