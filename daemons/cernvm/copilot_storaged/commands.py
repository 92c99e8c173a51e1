# SPDX-License-Identifier: BSD-3-Clause
"""The XMPP side: job managers, and nobody else, have attempts accepted and jobs closed.

Each command is answered once its effect is on the disk.  The work (hashing whole files) runs in threads of
its own, so that uploads do not wait for it.  A command that fails for a passing reason, or comes while too many
wait, gets no answer: the job manager asks again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from cernvm.copilot.disk import BadName, Refused, Stored
from cernvm.copilot.messages import Address, Command, Json, Message, bare
from cernvm.copilot.store import Shelf, Store
from cernvm.kit.errors import Problem, sentence

log: Final = logging.getLogger(__name__)

WORKERS: Final = 2
MOST_WAITING: Final = 1000


class Commands:
    """`async with Commands(...)`: `received` takes messages, answers go out through `send`."""

    def __init__(self, store: Store, managers: Set[Address], send: Callable[[Address, Message], None]) -> None:
        self._store = store
        self._managers = managers
        self._send = send
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="accept")
        self._running: set[asyncio.Task[None]] = set()
        self.refused_senders = 0
        """Messages from accounts that may not command."""

    async def __aenter__(self) -> Commands:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)

    def received(self, sender: Address, message: Message) -> None:
        """Take one message.  Raises BadMessage for one of a job manager that cannot be understood."""
        if bare(sender) not in self._managers:
            self.refused_senders += 1
            log.warning("%s is not a job manager of this store; its %s is ignored", sender, message.command)
            return
        if message.command == Command.ACCEPT_OUTPUT:
            attempt = message.number("attempt", least=1)
            self._start(self._accept(sender, message.text("jobID"), attempt, _outputs(message)))
        elif message.command == Command.CLEAN_JOB:
            self._start(self._close(message.text("jobID")))
        else:
            log.info("%s sent %s, which means nothing here", sender, message.command)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._running) >= MOST_WAITING:
            log.warning("more than %d commands wait; one is dropped", MOST_WAITING)
            return
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a command failed by an error of our own: %s", sentence(error), exc_info=error)

    async def _accept(self, manager: Address, job: str, attempt: int, outputs: list[Stored]) -> None:
        fields: dict[str, Json] = {"jobID": job, "attempt": attempt}
        loop = asyncio.get_running_loop()
        try:
            shelf = Shelf.checked(job, attempt)
            await loop.run_in_executor(self._pool, self._store.accept, shelf, outputs)
        except Refused as error:
            log.warning("attempt %d of job %s is not accepted: %s", attempt, job, error)
            self._send(manager, Message(Command.OUTPUT_REFUSED, {**fields, "reason": str(error)}))
        except Problem as error:
            log.error("attempt %d of job %s could not be accepted now: %s", attempt, job, error)  # noqa: TRY400 - a sentence
        else:
            log.info("attempt %d is the result of job %s: %d files", attempt, job, len(outputs))
            self._send(manager, Message(Command.OUTPUT_ACCEPTED, fields))

    async def _close(self, job: str) -> None:
        try:
            shelf = Shelf.checked(job, 0)
            await asyncio.get_running_loop().run_in_executor(self._pool, self._store.close_job, shelf.job)
        except BadName as error:
            log.warning("cleanJob refused: %s", error)
        except Problem as error:
            log.warning("job %s could not be closed: %s", job, error)


def _outputs(message: Message) -> list[Stored]:
    """The files that `acceptOutput` names.  Raises BadMessage."""
    items = [Message("outputs", item) for item in message.items("outputs")]
    return [Stored(item.text("name"), item.number("size"), item.text("sha256", longest=64)) for item in items]
