# SPDX-License-Identifier: BSD-3-Clause
"""A job in the queue: what is known of it, and every step it can take, as functions from record to record.

The queue stores records and applies one of these steps in a transaction; the broker decides which.  Times are seconds
since the epoch.  Pure and thread-safe: values only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from .errors import IllegalMove
from .job import ENDED, HELD, Job, State, job_table, move
from .messages import Json

MOST_ATTEMPTS: Final = 50
"""Attempts of one job, whoever is to blame for their end; so that no job wanders for ever."""

LONGEST_REASON: Final = 2000


@dataclass(frozen=True)
class Output:
    """A file that an attempt has stored."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Report:
    """What an agent says at the end of an attempt.

    `verdict` is DONE, FAILED (the job itself is at fault; final) or QUEUED (this machine or the network is; another
    attempt may do better).
    """

    verdict: State
    exit_code: int | None
    reason: str
    outputs: tuple[Output, ...] = ()
    usage: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Attempt:
    """An attempt that has ended without an accepted result, and why."""

    number: int
    agent: str
    began: float
    ended: float
    reason: str


@dataclass(frozen=True)
class Record:
    """A job and where it stands."""

    job: Job
    owner: int
    """Numeric user id of the submitter."""
    state: State
    submitted: float
    attempt: int = 0
    """The number of the current or last attempt; results of any other are refused."""
    blamed: int = 0
    """Attempts that count against the job."""
    agent: str = ""
    """Who holds, or held, the current attempt: bare address, '/', the name the agent gives itself."""
    until: float | None = None
    """When the lease runs out.  While STAGING, when waiting for the inputs ends; while STORING, when waiting for the
    storage adapter ends; while QUEUED after a failed attempt, when the next may begin.
    """
    leased: float | None = None
    started: float | None = None
    finished: float | None = None
    verdict: State | None = None
    """While STORING: what the job becomes when its outputs are accepted."""
    exit_code: int | None = None
    reason: str = ""
    outputs: tuple[Output, ...] = ()
    usage: Mapping[str, Json] = field(default_factory=dict)
    history: tuple[Attempt, ...] = ()

    def held_by(self, agent: str, attempt: int) -> bool:
        """True when `agent` holds attempt number `attempt` under a lease."""
        return self.state in HELD and (self.agent, self.attempt) == (agent, attempt)

    def was_of(self, agent: str, attempt: int) -> bool:
        """True when the current or last attempt is number `attempt` and `agent`'s."""
        return attempt > 0 and (self.agent, self.attempt) == (agent, attempt)


def released(record: Record) -> Record:
    """Its inputs are there: the job may run."""
    return replace(_to(record, State.QUEUED), until=None)


def leased(record: Record, agent: str, now: float, until: float) -> Record:
    """Given to `agent` until `until`."""
    moved = _to(record, State.LEASED)
    return replace(moved, attempt=record.attempt + 1, agent=agent, leased=now, until=until)


def renewed(record: Record, now: float, until: float) -> Record:
    """Its agent is alive and runs it."""
    if record.state is State.LEASED:
        return replace(_to(record, State.RUNNING), started=now, until=until)
    if record.state is not State.RUNNING:
        raise IllegalMove(f"job {record.job.id} is {record.state}; there is no lease to renew")
    return replace(record, until=until)


def storing(record: Record, report: Report, now: float, until: float) -> Record:
    """Its agent has finished; the storage adapter is asked for the outputs until `until`."""
    return replace(
        _to(record, State.STORING),
        until=until,
        started=record.started or record.leased,
        verdict=report.verdict,
        exit_code=report.exit_code,
        reason=report.reason[:LONGEST_REASON],
        outputs=report.outputs,
        usage=dict(report.usage),
    )


def accepted(record: Record, now: float) -> Record:
    """The outputs are in the store for good."""
    if record.state is not State.STORING or record.verdict is None:
        raise IllegalMove(f"job {record.job.id} is {record.state}; no result of it waits to be accepted")
    return replace(_to(record, record.verdict), until=None, finished=now)


def returned(record: Record, reason: str, now: float, *, most: int, blame: bool = True, pause: float = 0.0) -> Record:
    """The attempt came to nothing: back to the queue for `pause` seconds at least, or FAILED.

    It fails when `most` attempts were to blame.
    """
    reason = reason[:LONGEST_REASON]
    ended = Attempt(record.attempt, record.agent, record.leased or now, now, reason)
    blamed = record.blamed + (1 if blame else 0)
    # Whatever this attempt has left will not be accepted.
    record = replace(record, history=(*record.history, ended), blamed=blamed, verdict=None, outputs=())
    if blamed >= most or record.attempt >= MOST_ATTEMPTS:
        tries = f" (attempt {record.attempt}, the last)" if record.attempt > 1 else ""
        return failed(record, reason + tries, now)
    waiting = _to(record, State.QUEUED)
    return replace(
        waiting,
        until=now + pause if pause else None,
        leased=None,
        started=None,
        verdict=None,
        exit_code=None,
        reason=reason,
        outputs=(),
        usage={},
    )


def failed(record: Record, reason: str, now: float) -> Record:
    """The job has ended without success."""
    return replace(_to(record, State.FAILED), until=None, finished=now, reason=reason[:LONGEST_REASON])


def cancelled(record: Record, now: float, reason: str = "cancelled by its submitter") -> Record:
    """The submitter does not want it any more."""
    if record.state in ENDED:
        raise IllegalMove(f"job {record.job.id} is {record.state} already; there is nothing to cancel")
    return replace(_to(record, State.CANCELLED), until=None, finished=now, reason=reason)


def _to(record: Record, state: State) -> Record:
    return replace(record, state=move(record.job.id, record.state, state))


def shown(record: Record) -> dict[str, Json]:
    """`record` as people and programs get it from the job manager; docs/dbus-copilot.md tells each field."""
    return {
        "id": record.job.id,
        "name": record.job.name,
        "state": record.state.value,
        "owner": record.owner,
        "attempt": record.attempt,
        "agent": record.agent,
        "submitted": record.submitted,
        "leased": record.leased,
        "started": record.started,
        "finished": record.finished,
        "exit_code": record.exit_code,
        "reason": record.reason,
        "outputs": [{"name": o.name, "size": o.size, "sha256": o.sha256} for o in record.outputs],
        "usage": dict(record.usage),
        "history": [
            {"attempt": a.number, "agent": a.agent, "began": a.began, "ended": a.ended, "reason": a.reason}
            for a in record.history
        ],
        "job": job_table(record.job),
    }
