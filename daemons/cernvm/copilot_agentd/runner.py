# SPDX-License-Identifier: BSD-3-Clause
"""The shell around the agent's machine: does what it decides and tells it what came of it.  On the asyncio loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from typing import Any, Final, Protocol

from cernvm.copilot.agent import Agent, Deed, Drop, Keep, Send, Start, Upload
from cernvm.copilot.assignment import Assignment, Key
from cernvm.copilot.job import State
from cernvm.copilot.messages import Address, Message
from cernvm.copilot.record import Report
from cernvm.copilot.transfer import TransferFailed
from cernvm.kit.errors import Problem, sentence
from cernvm.xmpp.mailbox import Mailbox

from .spool import Spool
from .worker import Worker

log: Final = logging.getLogger(__name__)

DROP_SECONDS: Final = 30.0


class Watcher(Protocol):
    """What the runner tells the world; the bus object is one."""

    def job_started(self, job: str) -> None:
        """A job's work begins."""

    def job_finished(self, job: str, verdict: str, reason: str) -> None:
        """A job's work has ended here."""

    def state_changed(self) -> None:
        """Something that the properties show has changed."""


class Runner:
    """See the module."""

    def __init__(self, agent: Agent, spool: Spool, worker: Worker, watcher: Watcher) -> None:
        self._agent = agent
        self._spool = spool
        self._worker = worker
        self._watcher = watcher
        self._mailbox: Mailbox | None = None
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._drops: set[asyncio.Task[None]] = set()

    @property
    def agent(self) -> Agent:
        """The machine, for those who only look."""
        return self._agent

    @property
    def connected(self) -> bool:
        """True while there is an XMPP session."""
        return self._mailbox is not None and self._mailbox.connected

    def received(self, sender: Address, message: Message) -> None:
        """A message has come.  Raises BadMessage."""
        self.do(self._agent.received(sender, message, _now()))

    def link_changed(self, up: bool) -> None:
        """The link came or went."""
        if up:
            self.do(self._agent.connected(_now()))
        self._watcher.state_changed()

    def drain(self) -> None:
        """Take no further job."""
        self._agent.drain()
        self._watcher.state_changed()

    async def serve(self, mailbox: Mailbox, stopping: asyncio.Event) -> None:
        """Work until `stopping` is set; then give back what runs and leave no process."""
        self._mailbox = mailbox
        for kept in list(self._spool.kept()):
            if kept.report is not None:
                self.do(self._agent.restore(kept.assignment, kept.report, kept.stored, _now()))
            else:
                self.do(self._agent.give_back(kept.assignment, "the agent was restarted"))
        try:
            while not stopping.is_set():
                self.do(self._agent.tick(_now()))
                with suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), 1.0)
        finally:
            self.do(self._agent.stop("the agent was stopped"))
            await self._end()
            if mailbox.connected:
                await mailbox.flush(3.0)

    def do(self, deeds: Iterable[Deed]) -> None:
        """Do what the machine decided, in order."""
        for deed in deeds:
            if isinstance(deed, Send):
                if self._mailbox is not None:
                    self._mailbox.send(deed.to, deed.message, once=deed.once)
            elif isinstance(deed, Start):
                self._begin(deed.assignment.key, self._work(deed.assignment))
            elif isinstance(deed, Upload):
                self._begin(deed.assignment.key, self._store(deed))
            elif isinstance(deed, Keep):
                self._keep(deed)
            else:
                self._drop(deed)
        self._watcher.state_changed()

    async def _work(self, assignment: Assignment) -> None:
        job = assignment.job.id
        log.info("job %s, attempt %d: begins", job, assignment.attempt)
        self._watcher.job_started(job)
        report = await _guarded(self._attempt(assignment))
        log.info("job %s, attempt %d: %s %s", job, assignment.attempt, report.verdict, report.reason)
        self._watcher.job_finished(job, report.verdict, report.reason)
        self.do(self._agent.finished(assignment.key, report, _now()))

    async def _attempt(self, assignment: Assignment) -> Report:
        work = self._spool.begin(assignment)
        return await self._worker.run(assignment, work)

    async def _store(self, deed: Upload) -> None:
        key = deed.assignment.key
        try:
            outputs = await self._worker.store(deed, self._spool.work(key))
        except TransferFailed as error:
            log.warning("job %s, attempt %d: %s", *key, error)
            self.do(self._agent.not_stored(key, str(error), _now()))
        else:
            self.do(self._agent.stored(key, outputs, _now()))

    def _keep(self, deed: Keep) -> None:
        try:
            self._spool.keep(deed.assignment, deed.report, deed.stored)
        except OSError as error:
            # The result is still in memory and will be reported; only a restart would lose it.
            log.warning("job %s, attempt %d: its result is not on the disk: %s", *deed.assignment.key, sentence(error))

    def _begin(self, key: Key, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"job-{key[0]}.{key[1]}")
        self._tasks[key] = task
        task.add_done_callback(lambda task: self._broken(key, task))

    def _broken(self, key: Key, task: asyncio.Task[None]) -> None:
        """An error of our own ended the work: log it, and let another agent try."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s stopped by an error of its own", task.get_name(), exc_info=error)
            reason = f"the agent failed: {sentence(error)}"
            self.do(self._agent.finished(key, Report(State.QUEUED, None, reason), _now()))
            self.do(self._agent.not_stored(key, reason, _now()))

    def _drop(self, deed: Drop) -> None:
        task = self._tasks.pop(deed.key, None)
        if task is not None and not task.done():
            log.info("job %s, attempt %d: stopped: %s", *deed.key, deed.reason)
        drop = asyncio.create_task(self._remove(deed.key, task))
        self._drops.add(drop)
        drop.add_done_callback(self._drops.discard)

    async def _remove(self, key: Key, task: asyncio.Task[None] | None) -> None:
        if task is not None and not task.done() and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait({task}, timeout=DROP_SECONDS)
        await asyncio.to_thread(self._spool.remove, key)

    async def _end(self) -> None:
        """Cancel what is left (uploads) and wait for all that is being dropped."""
        for task in self._tasks.values():
            task.cancel()
        left = [*self._tasks.values(), *self._drops]
        if left:
            await asyncio.wait(left, timeout=DROP_SECONDS)


async def _guarded(work: Coroutine[Any, Any, Report]) -> Report:
    """What the attempt came to; a failure of our own is the machine's fault, not the job's."""
    try:
        return await work
    except Problem as error:
        return Report(State.QUEUED, None, str(error))
    except OSError as error:
        return Report(State.QUEUED, None, f"the agent's machine failed: {sentence(error)}")


def _now() -> float:
    return asyncio.get_running_loop().time()
