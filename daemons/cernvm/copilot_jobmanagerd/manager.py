# SPDX-License-Identifier: BSD-3-Clause
"""The shell around the broker: its clock, its mailbox and its queue.  All on the asyncio loop's thread."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from cernvm.copilot.access import Access
from cernvm.copilot.broker import Broker, Changed, News, Send
from cernvm.copilot.errors import NotYours, QueueFailed
from cernvm.copilot.job import JobId, State, job_id, read_job
from cernvm.copilot.messages import Address, Message
from cernvm.copilot.queue import Queue
from cernvm.copilot.record import Record
from cernvm.kit.errors import UserMistake
from cernvm.xmpp.mailbox import Mailbox

log: Final = logging.getLogger(__name__)

ROOT: Final = 0
TICK: Final = 1.0
TICK_IN_TROUBLE: Final = 15.0


class Manager:
    """Carries what happens to the broker and what the broker decides to the world."""

    def __init__(self, queue: Queue, broker: Broker, changed: Callable[[Record], None]) -> None:
        """`changed(record)` is called after each durable change of a job's state."""
        self._queue = queue
        self._broker = broker
        self._changed = changed
        self._mailbox: Mailbox | None = None

    def received(self, sender: Address, message: Message) -> None:
        """A message has come.  Raises BadMessage."""
        self._publish(self._broker.received(sender, message, time.time()))

    async def serve(self, mailbox: Mailbox, stopping: asyncio.Event) -> None:
        """Work until `stopping` is set."""
        self._mailbox = mailbox
        self._publish(self._broker.started(time.time()))
        while not stopping.is_set():
            pause = TICK
            try:
                self._publish(self._broker.tick(time.time()))
            except QueueFailed as error:
                # A full disk, say: agents keep their results meanwhile, and what could not be written is asked again.
                log.error("%s", error)  # noqa: TRY400 - a sentence
                pause = TICK_IN_TROUBLE
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), pause)

    def submit(self, table: dict[str, object], owner: int) -> tuple[Record, Access]:
        """Take in a job; it waits for its inputs.  Raises JobMistake."""
        if "id" in table:
            raise UserMistake("the job: field id is given by the job manager; leave it out")
        job = read_job(table, JobId(str(uuid.uuid4())))
        record = Record(job, owner, State.STAGING, time.time())
        changed, access = self._broker.submit(record)
        self._publish([changed])
        return record, access

    def release(self, job: str, caller: int) -> None:
        """The inputs of `job` are uploaded.  Raises NoSuchJob, NotYours, IllegalMove."""
        self._publish(self._broker.release(self._own(job, caller).job.id, time.time()))

    def cancel(self, job: str, caller: int) -> None:
        """End `job`.  Raises NoSuchJob, NotYours, IllegalMove."""
        self._publish(self._broker.cancel(self._own(job, caller).job.id, time.time()))

    def result(self, job: str, caller: int) -> Access:
        """Access to the accepted outputs.  Raises NoSuchJob, NotYours, and UserMistake when there are none."""
        record = self._own(job, caller)
        if record.state not in (State.DONE, State.FAILED) or record.verdict is None:
            raise UserMistake(f"job {record.job.id} is {record.state} and has no stored result")
        return self._broker.result_access(record, time.time())

    def get(self, job: str) -> Record:
        """The record of `job`.  Raises NoSuchJob."""
        return self._queue.get(job_id(job))

    def jobs(self, states: Sequence[State], most: int) -> list[Record]:
        """The youngest `most` jobs in `states`, oldest first; no states mean all."""
        return self._queue.select(states, most=most) if states else self._queue.newest(most)

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        return {state.value: count for state, count in self._queue.counts().items()}

    @property
    def refused(self) -> int:
        """Messages about attempts that their agent does not hold, or of accounts that may take no jobs."""
        return self._broker.refused

    def _own(self, job: str, caller: int) -> Record:
        record = self.get(job)
        if caller not in (ROOT, record.owner):
            raise NotYours(f"job {job} belongs to another user")
        return record

    def _publish(self, news: list[News]) -> None:
        for item in news:
            if isinstance(item, Changed):
                _log(item.record)
                self._changed(item.record)
            elif isinstance(item, Send) and self._mailbox is not None:
                self._mailbox.send(item.to, item.message, once=item.once)


def _log(record: Record) -> None:
    agent = f" by {record.agent}" if record.agent else ""
    reason = f": {record.reason}" if record.reason else ""
    log.info("job %s is %s (attempt %d%s)%s", record.job.id, record.state, record.attempt, agent, reason)
