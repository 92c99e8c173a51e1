# SPDX-License-Identifier: BSD-3-Clause
"""A worker process as the supervisor holds it: started or adopted, spoken to, ended within a time.

On the asyncio loop.  A worker whose supervisor is gone goes on serving for a while and waits on a socket in the cache
directory for the next one, which adopts it; if none comes, it takes its mount away and ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import cernvm
from cernvm.kit.errors import sentence

from . import wire

log = logging.getLogger(__name__)
END: Final = 10.0
"""Seconds for a worker to end after its socket closed."""
GREETING: Final = 5.0
"""Seconds for an orphan to answer."""
BEAT: Final = 2.0
"""Seconds between two signs of life that a worker is asked for."""
SILENCE: Final = 6.0
"""Seconds without one after which a worker is asked a last time, and given one `BEAT` more."""
_CREDENTIALS: Final = struct.Struct("3i")


class Process(Protocol):
    """A process that can be waited for: a child, or one found running."""

    @property
    def pid(self) -> int:
        """Its number."""

    async def wait(self) -> object:
        """Wait for its end."""

    def kill(self) -> None:
        """SIGKILL.  Raises ProcessLookupError."""


class Foreign:
    """A process that is no child of this one."""

    def __init__(self, pid: int) -> None:
        """Raises OSError when it is gone."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    async def wait(self) -> None:
        """Wait for its end."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._fd, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(self._fd)

    def kill(self) -> None:
        """SIGKILL."""
        signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):
            os.close(self._fd)


class Silent(Exception):
    """A worker gives no sign of life."""


class Worker:
    """A running worker."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._executioner: asyncio.TimerHandle | None = None
        self._released = False

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    def say(self, message: wire.Message) -> None:
        """Send one message; a worker that is gone is noticed by `hear`."""
        self._writer.write(wire.encode(message))

    async def hear(self) -> wire.Message | None:
        """The next message; None when the worker is gone."""
        try:
            line = await self._reader.readline()
        except (OSError, ValueError):
            return None
        return wire.decode(line) if line.endswith(b"\n") else None

    async def hear_alive(self) -> wire.Message | None:
        """The next message that is not a mere sign of life.  Raises Silent when not even those come."""
        while True:
            message = await self._hear_within(SILENCE)
            if not isinstance(message, wire.Pong):
                return message

    async def _hear_within(self, seconds: float) -> wire.Message | None:
        """Listen; once more after that, since this process itself may have been held up."""
        try:
            return await asyncio.wait_for(self.hear(), seconds)
        except TimeoutError:
            self.say(wire.Ping())
        try:
            return await asyncio.wait_for(self.hear(), BEAT)
        except TimeoutError:
            raise Silent from None

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Ask for signs of life meanwhile."""

        async def beat() -> None:
            while True:
                self.say(wire.Ping())
                await asyncio.sleep(BEAT)

        task = asyncio.create_task(beat(), name=f"beat {self.pid}")
        try:
            yield
        finally:
            task.cancel()

    def stop(self, patience: float) -> None:
        """Ask the worker to unmount and end; kill it after `patience` seconds."""
        self.say(wire.Unmount())
        if self._executioner is None:
            self._executioner = asyncio.get_running_loop().call_later(patience, self.kill)

    def release(self) -> None:
        """Let the worker live on without this process."""
        self._released = True
        self._writer.close()

    async def ended(self) -> None:
        """Close the socket and wait for the process, at most `END` seconds before it is killed; not if released."""
        self._writer.close()
        if self._released:
            return
        try:
            await asyncio.wait_for(self._process.wait(), END)
        except TimeoutError:
            log.warning("worker %d does not end; it is killed", self.pid)
            self.kill()
            await self._process.wait()
        finally:
            if self._executioner is not None:
                self._executioner.cancel()

    async def left(self) -> None:
        """Wait for the end of a released worker, however long its users stay."""
        await self._process.wait()

    def kill(self) -> None:
        """End it at once."""
        with suppress(ProcessLookupError):
            self._process.kill()


@dataclass(frozen=True)
class Orphan:
    """A worker of an earlier daemon, and what it told about itself."""

    worker: Worker
    hello: wire.Hello
    shows: wire.Shows
    counters_fd: int


async def start(counters_fd: int) -> Worker:
    """Run a worker that counts in `counters_fd`."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cernvm.cvmfsd.worker", str(theirs.fileno()), str(counters_fd)),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), counters_fd),
            env=environment(),
            cwd="/",
        )
    return Worker(process, *await asyncio.open_connection(sock=ours))


async def orphans(cache: Path) -> tuple[list[Orphan], list[str]]:
    """Adopt the workers that an earlier daemon with this cache left running.

    Those that give no answer are killed; second, the names of their repositories.
    """
    paths = list(cache.glob(f"{wire.ORPHAN}*"))
    found = await asyncio.gather(*(_adopted(path) for path in paths))
    lost = [path.name.removeprefix(wire.ORPHAN) for path, one in zip(paths, found, strict=True) if one is None]
    return [one for one in found if one is not None], lost


async def _adopted(path: Path) -> Orphan | None:
    """Greet the worker behind a socket; None if there is none, or none that answers."""
    connection = socket.socket(socket.AF_UNIX)
    worker = None
    try:
        with wire.reachable(path) as address:
            connection.settimeout(GREETING)
            connection.connect(address)
        pid, _, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        worker = Worker(Foreign(pid), *await asyncio.open_connection(sock=connection))
        hello = await asyncio.wait_for(worker.hear(), GREETING)
        shows = await asyncio.wait_for(worker.hear(), GREETING)
        if isinstance(hello, wire.Hello) and isinstance(shows, wire.Shows):
            counters_fd = os.open(f"/proc/{pid}/fd/{hello.counters_fd}", os.O_RDWR | os.O_CLOEXEC)
            return Orphan(worker, hello, shows, counters_fd)
        log.warning("%s: worker %d does not say what it does", path, pid)
    except ConnectionRefusedError:
        log.info("%s: the worker behind it is gone", path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s: the worker behind it is not adopted: %s", path, sentence(error))
    connection.close()
    if worker is not None:
        worker.kill()
    path.unlink(missing_ok=True)
    return None


def environment() -> dict[str, str]:
    """This process's, with the package findable also where it is not installed."""
    home = str(Path(cernvm.__file__).parents[1])
    others = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{home}:{others}" if others else home}
