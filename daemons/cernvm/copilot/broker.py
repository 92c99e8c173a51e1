# SPDX-License-Identifier: BSD-3-Clause
"""The job manager's side of the protocol, as a state machine: messages and ticks in, messages and news out.

All that must survive a restart is in the queue; what is kept here (who waits, where agents were last heard) may be lost
at any time without harm.  The broker believes nobody: an agent may speak only about the attempt that it holds, and
only the configured storage adapter may say that outputs are there.

Thread rule: one owner, one thread.  `now` is the time in seconds since the epoch.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from . import record as step
from .access import Access, Grants
from .errors import BadMessage, JobMistake, NoSuchJob
from .job import ENDED, HELD, JobId, State, job_id, job_table
from .messages import MAX_MESSAGE_BYTES, Address, Command, Json, Message, bare
from .queue import Queue
from .record import Record
from .report import read_report
from .tokens import Grant

MAX_AGENTS: Final = 20_000
"""Agents remembered as waiting, and agents whose last address is remembered."""

MAX_JOB_BYTES: Final = MAX_MESSAGE_BYTES // 2
MOST_PAUSE: Final = 300.0
ASK_STORAGE_EVERY: Final = 15.0


@dataclass(frozen=True)
class Rules:
    """What the configuration decides."""

    storage: Address
    """The storage adapter's bare address."""
    storage_url: str
    """Base of its URLs, without a slash at the end."""
    agents: frozenset[str]
    """Bare addresses, and domains whose accounts all, may take jobs."""
    lease_seconds: float = 60.0
    max_attempts: int = 3
    retry_seconds: float = 2.0
    """Pause after an attempt that a machine or the network failed; doubled for each, so that a short trouble passes."""
    storing_seconds: float = 6 * 3600.0
    token_seconds: float = 24 * 3600.0


@dataclass(frozen=True)
class Send:
    """Send `message` to `to`; with `once`, without repeating it until it is receipted."""

    to: Address
    message: Message
    once: bool = False


@dataclass(frozen=True)
class Changed:
    """The job has a new state, which is already durable."""

    record: Record


News = Send | Changed


class Broker:
    """See the module.  `issue` signs a grant for the storage adapter."""

    def __init__(self, queue: Queue, rules: Rules, issue: Callable[[Grant], str]) -> None:
        self._queue = queue
        self._rules = rules
        self._grants = Grants(rules.storage_url, rules.token_seconds, issue)
        self._waiting: OrderedDict[str, Address] = OrderedDict()
        self._heard: OrderedDict[str, Address] = OrderedDict()
        self._asked: dict[JobId, float] = {}
        self.refused = 0
        """Messages about attempts that their agent does not hold, or of accounts that may take no jobs."""

    # What the submitter wants

    def submit(self, record: Record) -> tuple[Changed, Access]:
        """Take a new job in; the submitter uploads its inputs with the access given and then releases it."""
        if len(json.dumps(job_table(record.job))) > MAX_JOB_BYTES:
            raise JobMistake(
                f"the job is too long for a message: its description may have {MAX_JOB_BYTES} characters; "
                "put long arguments into an input file"
            )
        record = replace(record, until=record.submitted + self._rules.token_seconds)
        self._queue.add(record)
        return Changed(record), self._grants.upload_inputs(record, record.submitted)

    def release(self, job: JobId, now: float) -> list[News]:
        """The inputs are there; agents that wait are told.  Raises NoSuchJob, IllegalMove."""
        return [*self._changed(self._queue.change(job, step.released)), *self._offers(now)]

    def cancel(self, job: JobId, now: float) -> list[News]:
        """End the job whatever it does.  Raises NoSuchJob, IllegalMove."""
        before = self._queue.get(job)
        after = self._queue.change(job, lambda record: step.cancelled(record, now))
        news = self._changed(after)
        if before.state in HELD and after.agent in self._heard:
            news.append(self._stop(self._heard[after.agent], after, after.attempt))
        return news

    def result_access(self, record: Record, now: float) -> Access:
        """Access to the accepted outputs of a job."""
        return self._grants.download_result(record, now)

    # What time brings

    def started(self, now: float) -> list[News]:
        """The job manager has started: agents could not renew while it was away, so leases get a new term."""
        self._queue.postpone(HELD, now + self._rules.lease_seconds)
        return self.tick(now)

    def tick(self, now: float) -> list[News]:
        """Call about every second: ends leases, asks the storage adapter again, offers what waits."""
        news: list[News] = []
        for record in self._queue.select(HELD, due=now):
            reason = f"agent {record.agent} was not heard of for {self._rules.lease_seconds:.0f} s"
            news += self._return(record.job.id, reason, now)
        for record in self._queue.select([State.STAGING], due=now):
            late = partial(step.cancelled, now=now, reason="its input files were not uploaded in time")
            news += self._changed(self._queue.change(record.job.id, late))
        for record in self._queue.select([State.STORING], due=now):
            news += self._give_up(record, now)
        for record in self._queue.select([State.STORING]):
            if now - self._asked.get(record.job.id, 0.0) >= ASK_STORAGE_EVERY:
                news.append(self._ask_storage(record, now))
        return news + self._offers(now)

    # What others say

    def received(self, sender: Address, message: Message, now: float) -> list[News]:
        """React to a message.  Raises BadMessage when it is not what the protocol says."""
        if bare(sender) == bare(self._rules.storage):
            return self._from_storage(message, now)
        handler = self._handlers().get(message.command)
        if handler is None:
            return []
        if not self._may_take_jobs(bare(sender)):
            self.refused += 1
            return []
        agent = f"{bare(sender)}/{message.text('agentID', longest=64)}"
        self._heard.pop(agent, None)
        _remember(self._heard, agent, sender)
        return handler(agent, sender, message, now)

    def _may_take_jobs(self, account: Address) -> bool:
        return account in self._rules.agents or account.partition("@")[2] in self._rules.agents

    def _handlers(self) -> dict[str, Callable[[str, Address, Message, float], list[News]]]:
        return {
            Command.WANT_JOB: self._want_job,
            Command.GET_JOB: self._get_job,
            Command.HEARTBEAT: self._heartbeat,
            Command.RELEASE_JOB: self._release_job,
            Command.GET_OUTPUT_DIR: self._get_output_dir,
            Command.JOB_DONE: self._job_done,
        }

    def _want_job(self, agent: str, sender: Address, message: Message, now: float) -> list[News]:
        _remember(self._waiting, agent, sender)
        return self._offers(now)

    def _get_job(self, agent: str, sender: Address, message: Message, now: float) -> list[News]:
        self._waiting.pop(agent, None)
        holding = {(item.get("jobID"), item.get("attempt")) for item in message.items("holding", most=1000)}
        for record in self._queue.select([State.LEASED], agent=agent):
            if (record.job.id, record.attempt) not in holding:
                return [self._run_job(sender, record, now)]  # its runJob was lost, or is under way
        until = now + self._rules.lease_seconds
        given = self._queue.take(now, lambda record: step.leased(record, agent, now, until))
        if given is None:
            _remember(self._waiting, agent, sender)
            return []
        return [Changed(given), self._run_job(sender, given, now)]

    def _heartbeat(self, agent: str, sender: Address, message: Message, now: float) -> list[News]:
        record, attempt = self._about(message)
        if record is None:
            return []
        if not record.held_by(agent, attempt):
            return [self._verdict(agent, sender, record, attempt)]
        was = record.state
        until = now + self._rules.lease_seconds
        record = self._queue.change(record.job.id, lambda held: step.renewed(held, now, until))
        lease = self._answer(Command.LEASE, record, attempt, lease_seconds=self._rules.lease_seconds)
        news: list[News] = [Send(sender, lease, once=True)]
        return news if was is State.RUNNING else [Changed(record), *news]

    def _release_job(self, agent: str, sender: Address, message: Message, now: float) -> list[News]:
        record, attempt = self._about(message)
        if record is None or not record.held_by(agent, attempt):
            return []
        reason = message.optional_text("reason", longest=step.LONGEST_REASON) or "given back by the agent"
        return [*self._return(record.job.id, reason, now, blame=False), *self._offers(now)]

    def _get_output_dir(self, agent: str, sender: Address, message: Message, now: float) -> list[News]:
        record, attempt = self._about(message)
        if record is None:
            return []
        if not record.held_by(agent, attempt):
            return [self._verdict(agent, sender, record, attempt)]
        until = now + self._rules.lease_seconds
        record = self._queue.change(record.job.id, lambda held: step.renewed(held, now, until))
        access = self._grants.upload_outputs(record, now)
        place = self._answer(Command.STORE_OUTPUT_DIR, record, attempt, url=access.url, token=access.token)
        return [Send(sender, place)]

    def _job_done(self, agent: str, sender: Address, message: Message, now: float) -> list[News]:
        record, attempt = self._about(message)
        if record is None:
            return []
        if not record.held_by(agent, attempt):
            return [self._verdict(agent, sender, record, attempt)]
        report = read_report(message, record)
        if report.verdict is State.QUEUED:
            pause = min(self._rules.retry_seconds * 2**record.blamed, MOST_PAUSE)
            back = self._return(record.job.id, report.reason, now, pause=pause)
            return [*back, Send(sender, self._answer(Command.JOB_ACCEPTED, record, attempt)), *self._offers(now)]
        until = now + self._rules.storing_seconds
        record = self._queue.change(record.job.id, lambda held: step.storing(held, report, now, until))
        return [Changed(record), self._ask_storage(record, now)]

    def _from_storage(self, message: Message, now: float) -> list[News]:
        if message.command not in (Command.OUTPUT_ACCEPTED, Command.OUTPUT_REFUSED):
            return []
        record, attempt = self._about(message)
        if record is None or record.state is not State.STORING or record.attempt != attempt:
            return []
        self._asked.pop(record.job.id, None)
        if message.command == Command.OUTPUT_REFUSED:
            why = message.optional_text("reason", longest=step.LONGEST_REASON)
            return self._refused_by_storage(record, f"the storage adapter refused the outputs: {why}", now)
        record = self._queue.change(record.job.id, lambda stored: step.accepted(stored, now))
        return [*self._changed(record), *self._tell_agent(record, Command.JOB_ACCEPTED)]

    def _refused_by_storage(self, record: Record, reason: str, now: float) -> list[News]:
        if record.verdict is State.FAILED:
            news = self._changed(self._queue.change(record.job.id, lambda r: step.accepted(r, now)))
        else:
            news = self._return(record.job.id, reason, now)
        return [*news, *self._tell_agent(record, Command.JOB_REFUSED, reason=reason), *self._offers(now)]

    def _give_up(self, record: Record, now: float) -> list[News]:
        self._asked.pop(record.job.id, None)
        hours = self._rules.storing_seconds / 3600
        return self._refused_by_storage(record, f"the storage adapter was silent for {hours:.1f} h", now)

    # Helpers

    def _about(self, message: Message) -> tuple[Record | None, int]:
        """The record and the attempt that `message` speaks of; None for a job that is not in this queue."""
        attempt = message.number("attempt", least=1, most=step.MOST_ATTEMPTS)
        try:
            return self._queue.get(job_id(message.text("jobID", longest=64))), attempt
        except NoSuchJob:
            return None, attempt
        except JobMistake as error:
            raise BadMessage(f"{message.command}: {error}") from None

    def _verdict(self, agent: str, sender: Address, record: Record, attempt: int) -> Send:
        """What an agent is told that speaks of an attempt which it does not hold (any more)."""
        if record.was_of(agent, attempt) and record.state is State.STORING:
            lease = self._rules.lease_seconds
            return Send(sender, self._answer(Command.LEASE, record, attempt, lease_seconds=lease), once=True)
        if record.was_of(agent, attempt) and record.state in (State.DONE, State.FAILED) and record.verdict:
            return Send(sender, self._answer(Command.JOB_ACCEPTED, record, attempt))
        self.refused += 1
        return self._stop(sender, record, attempt)

    def _stop(self, to: Address, record: Record, attempt: int) -> Send:
        if record.state is State.CANCELLED:
            reason = "the job was cancelled"
        elif record.state in ENDED:
            reason = f"the job is {record.state} already"
        else:
            reason = f"attempt {attempt} is not yours; the job is {record.state} in attempt {record.attempt}"
        return Send(to, self._answer(Command.STOP_JOB, record, attempt, reason=reason))

    def _tell_agent(self, record: Record, command: str, **fields: Json) -> list[News]:
        to = self._heard.get(record.agent)
        return [] if to is None else [Send(to, self._answer(command, record, record.attempt, **fields))]

    def _return(self, job: JobId, reason: str, now: float, *, blame: bool = True, pause: float = 0.0) -> list[News]:
        most = self._rules.max_attempts
        back = partial(step.returned, reason=reason, now=now, most=most, blame=blame, pause=pause)
        return self._changed(self._queue.change(job, back))

    def _changed(self, record: Record) -> list[News]:
        """The news of a new state; of a job that has ended the storage adapter keeps the result only."""
        if record.state not in ENDED:
            return [Changed(record)]
        return [Changed(record), Send(self._rules.storage, Message(Command.CLEAN_JOB, {"jobID": record.job.id}))]

    def _offers(self, now: float) -> list[News]:
        """Offer queued jobs to the agents that wait, one each, those first that wait longest."""
        if not self._waiting:
            return []
        news: list[News] = []
        for _ in range(min(len(self._waiting), self._queue.ready(now))):
            _, address = self._waiting.popitem(last=False)
            news.append(Send(address, Message(Command.HAVE_JOB), once=True))
        return news

    def _run_job(self, to: Address, record: Record, now: float) -> Send:
        access = self._grants.download_inputs(record, now)
        return Send(
            to,
            self._answer(
                Command.RUN_JOB,
                record,
                record.attempt,
                job=job_table(record.job),
                lease_seconds=self._rules.lease_seconds,
                inputs={"url": access.url, "token": access.token},
            ),
        )

    def _ask_storage(self, record: Record, now: float) -> Send:
        self._asked[record.job.id] = now
        outputs: list[Json] = [
            {"name": output.name, "size": output.size, "sha256": output.sha256} for output in record.outputs
        ]
        asked = self._answer(Command.ACCEPT_OUTPUT, record, record.attempt, outputs=outputs)
        return Send(self._rules.storage, asked, once=True)

    def _answer(self, command: str, record: Record, attempt: int, **fields: Json) -> Message:
        return Message(command, {"jobID": record.job.id, "attempt": attempt, **fields})


def _remember(book: OrderedDict[str, Address], agent: str, address: Address) -> None:
    book[agent] = address
    while len(book) > MAX_AGENTS:
        book.popitem(last=False)
