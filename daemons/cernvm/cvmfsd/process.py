# SPDX-License-Identifier: BSD-3-Clause
"""A worker process as the supervisor holds it: started, spoken to, ended within a time.

On the asyncio loop.  A worker whose socket closes ends by itself, so that none outlives the supervisor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import cernvm

from . import wire

log = logging.getLogger(__name__)
END: Final = 10.0
"""Seconds for a worker to end after its socket closed."""


class Worker:
    """A running worker."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._executioner: asyncio.TimerHandle | None = None

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

    def stop(self, patience: float) -> None:
        """Ask the worker to unmount and end; kill it after `patience` seconds."""
        self.say(wire.Unmount())
        if self._executioner is None:
            self._executioner = asyncio.get_running_loop().call_later(patience, self._kill)

    async def ended(self) -> None:
        """Close the socket and wait for the process, at most `END` seconds before it is killed."""
        self._writer.close()
        try:
            await asyncio.wait_for(self._process.wait(), END)
        except TimeoutError:
            self._kill()
            await self._process.wait()
        finally:
            if self._executioner is not None:
                self._executioner.cancel()

    def _kill(self) -> None:
        log.warning("worker %d does not end; it is killed", self._process.pid)
        with suppress(ProcessLookupError):
            self._process.kill()


@asynccontextmanager
async def running(counters_fd: int) -> AsyncIterator[Worker]:
    """Run a worker that counts in `counters_fd`; it has ended when the block has."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cernvm.cvmfsd.worker", str(theirs.fileno()), str(counters_fd)),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), counters_fd),
            env=_environment(),
            cwd="/",
        )
    worker = Worker(process, *await asyncio.open_connection(sock=ours))
    try:
        yield worker
    finally:
        await worker.ended()


def _environment() -> dict[str, str]:
    """This process's, with the package findable also where it is not installed."""
    home = str(Path(cernvm.__file__).parents[1])
    others = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{home}:{others}" if others else home}
