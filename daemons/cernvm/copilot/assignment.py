# SPDX-License-Identifier: BSD-3-Clause
"""An attempt as it is given to an agent: read from runJob, written to the agent's disk, and read from there.

Pure and thread-safe: values only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from .errors import BadMessage, JobMistake
from .job import Job, JobId, job_table, read_job
from .messages import Address, Json, Message
from .record import MOST_ATTEMPTS

Key: TypeAlias = tuple[JobId, int]
"""What identifies an attempt: the job and the attempt's number."""


@dataclass(frozen=True)
class Assignment:
    """One attempt of a job, given to this agent."""

    job: Job
    attempt: int
    manager: Address
    """The full address of the instance that gave it."""
    lease_seconds: float
    inputs_url: str
    inputs_token: str = field(repr=False)

    @property
    def key(self) -> Key:
        """What identifies the attempt."""
        return (self.job.id, self.attempt)


def read_assignment(sender: Address, message: Message) -> Assignment:
    """The assignment in a runJob.  Raises BadMessage."""
    inputs = message.table("inputs")
    url, token, lease = inputs.get("url"), inputs.get("token"), message.fields.get("lease_seconds")
    if not isinstance(url, str) or not isinstance(token, str):
        raise BadMessage("runJob: field inputs must have url and token")
    if not isinstance(lease, int | float) or isinstance(lease, bool) or not 0 < lease <= 86_400:
        raise BadMessage("runJob: field lease_seconds must be a number of seconds up to a day")
    try:
        job = read_job(message.table("job"))
    except JobMistake as error:
        raise BadMessage(f"runJob: {error}") from None
    if job.id != message.text("jobID", longest=64):
        raise BadMessage("runJob: field jobID is not the id of the job inside")
    return Assignment(job, message.number("attempt", least=1, most=MOST_ATTEMPTS), sender, lease, url, token)


def assignment_table(assignment: Assignment) -> dict[str, Json]:
    """What `restored_assignment` reads, for the agent's disk; the inputs' token is not written."""
    return {
        "job": job_table(assignment.job),
        "attempt": assignment.attempt,
        "manager": assignment.manager,
        "lease_seconds": assignment.lease_seconds,
    }


def restored_assignment(table: dict[str, Json]) -> Assignment:
    """The assignment that `assignment_table` wrote.  Raises BadMessage."""
    job = table.get("job")
    inner = job if isinstance(job, dict) else {}
    inputs: dict[str, Json] = {"url": "", "token": ""}
    message = Message("restored", {**table, "jobID": inner.get("id"), "inputs": inputs})
    return read_assignment(Address(message.text("manager")), message)
