# SPDX-License-Identifier: BSD-3-Clause
"""The agent's side of the protocol, as a state machine: messages, ticks and ends of work in, commands out.

The agent asks for jobs while it has free slots, keeps the lease of each job alive, and keeps a result until the job
manager has taken it over or refuses it.  What must survive a restart is handed to the shell with `Keep` and comes back
through `restore`.

Thread rule: one owner, one thread.  `now` is any clock that only goes forward, in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from .assignment import Assignment, Key, read_assignment
from .job import JobId, State
from .messages import Address, Command, Json, Message, bare
from .record import MOST_ATTEMPTS, Output, Report

WORDS: Final[Mapping[State, str]] = {State.DONE: "done", State.FAILED: "failed", State.QUEUED: "error"}
"""How a verdict is spelled in jobDone."""

MOST_UPLOAD_TRIES: Final = 4
MOST_HELD_PER_SLOT: Final = 4
REST_FIRST: Final = 5.0
REST_CAP: Final = 300.0
"""Seconds before an agent whose machine has failed a job asks again, doubled for each: a broken machine is always free,
and would draw all jobs to itself.
"""
UNANSWERED: Final = 2
"""After so many heartbeats without an answer the next go to the job manager's bare address: any instance may know."""


@dataclass(frozen=True)
class Habits:
    """What the configuration decides; seconds."""

    manager: Address
    """The job managers' bare address."""
    name: str
    """What this agent calls itself; several agents may share an account."""
    slots: int = 1
    ask_first: float = 2.0
    ask_cap: float = 60.0
    answer_seconds: float = 10.0
    """How long to wait for runJob after getJob."""
    keep_seconds: float = 7 * 24 * 3600.0
    """How long to offer a result that nobody takes."""


class Phase(StrEnum):
    """Where a job is on this agent."""

    RUNNING = "running"
    """From staging its inputs in to the end of its program."""
    ASKING = "asking"
    """It has ended; the agent asks where its outputs go."""
    STORING = "storing"
    """Its outputs are being uploaded."""
    REPORTING = "reporting"
    """The job manager is told until it answers."""


@dataclass(frozen=True)
class Send:
    """Send `message` to `to`; with `once`, without repeating it until it is receipted."""

    to: Address
    message: Message
    once: bool = False


@dataclass(frozen=True)
class Start:
    """Begin the work: inputs, software, program.  Ends with `Agent.finished`."""

    assignment: Assignment


@dataclass(frozen=True)
class Upload:
    """Upload the outputs that are there.  Ends with `Agent.stored` or `Agent.not_stored`."""

    assignment: Assignment
    url: str
    token: str = field(repr=False)


@dataclass(frozen=True)
class Keep:
    """Put the report on the disk before anything else is done."""

    assignment: Assignment
    report: Report
    stored: bool


@dataclass(frozen=True)
class Drop:
    """Stop whatever runs for this attempt and delete what is left of it."""

    key: Key
    reason: str


Deed = Send | Start | Upload | Keep | Drop


@dataclass(frozen=True)
class _Holding:
    assignment: Assignment
    phase: Phase
    next_word: float
    report: Report | None = None
    unanswered: int = 0
    tries: int = 0
    ended: float = 0.0


class Agent:
    """See the module.  `chance()` is uniform in [0, 1)."""

    def __init__(self, habits: Habits, chance: Callable[[], float], host: Mapping[str, Json]) -> None:
        self._habits = habits
        self._chance = chance
        self._host = dict(host)
        self._held: dict[Key, _Holding] = {}
        self._ask_at = 0.0
        self._ask_wait = habits.ask_first
        self._answer_by: float | None = None
        self._asked: Address | None = None
        """The job manager that a getJob is under way to, until `_answer_by`."""
        self._failures = 0
        self._rest_until = 0.0
        self.draining = False
        """True when no further job is asked for."""

    @property
    def jobs(self) -> dict[Key, Phase]:
        """What the agent holds."""
        return {key: holding.phase for key, holding in self._held.items()}

    @property
    def free(self) -> int:
        """Slots without a running program; none while many results wait to be taken (they fill the disk)."""
        if len(self._held) >= self._habits.slots * MOST_HELD_PER_SLOT:
            return 0
        return self._habits.slots - sum(held.phase is Phase.RUNNING for held in self._held.values())

    # What happens on this machine

    def restore(self, assignment: Assignment, report: Report, stored: bool, now: float) -> list[Deed]:
        """Take up a report that was kept before a restart."""
        phase = Phase.REPORTING if stored or report.verdict is State.QUEUED else Phase.ASKING
        self._held[assignment.key] = _Holding(assignment, phase, now, report, ended=now)
        return self._word(assignment.key, now)

    def give_back(self, assignment: Assignment, reason: str) -> list[Deed]:
        """Return an attempt that a restart has cut off."""
        return [self._release(assignment, reason), Drop(assignment.key, reason)]

    def connected(self, now: float) -> list[Deed]:
        """The link is up (again): say everything that is due at once."""
        self._ask_at, self._ask_wait, self._answer_by = now, self._habits.ask_first, None
        for key, held in self._held.items():
            self._held[key] = replace(held, next_word=now)
        return self.tick(now)

    def finished(self, key: Key, report: Report, now: float) -> list[Deed]:
        """The program has ended, or could not be run."""
        held = self._held.get(key)
        if held is None or held.phase is not Phase.RUNNING:
            return []
        stored = report.verdict is State.QUEUED  # nothing of such an attempt is stored
        self._learn(stored, now)
        phase = Phase.REPORTING if stored else Phase.ASKING
        self._held[key] = replace(held, phase=phase, report=report, ended=now)
        self._ask_at = now
        return [Keep(held.assignment, report, stored), *self._word(key, now), *self._ask(now)]

    def stored(self, key: Key, outputs: tuple[Output, ...], now: float) -> list[Deed]:
        """All outputs are uploaded."""
        held = self._held.get(key)
        if held is None or held.report is None or held.phase is not Phase.STORING:
            return []
        report = replace(held.report, outputs=outputs)
        self._held[key] = replace(held, phase=Phase.REPORTING, report=report)
        return [Keep(held.assignment, report, True), *self._word(key, now)]

    def not_stored(self, key: Key, reason: str, now: float) -> list[Deed]:
        """The upload failed; it is tried again with a fresh token, but not for ever."""
        held = self._held.get(key)
        if held is None or held.report is None or held.phase is not Phase.STORING:
            return []
        if held.tries + 1 < MOST_UPLOAD_TRIES:
            wait = self._jittered(5.0 * 2**held.tries)
            self._held[key] = replace(held, phase=Phase.ASKING, tries=held.tries + 1, next_word=now + wait)
            return []
        self._learn(True, now)
        report = Report(State.QUEUED, held.report.exit_code, reason, (), held.report.usage)
        self._held[key] = replace(held, phase=Phase.REPORTING, report=report)
        return [Keep(held.assignment, report, True), *self._word(key, now)]

    def drain(self) -> None:
        """Ask for no further job."""
        self.draining = True

    def stop(self, reason: str) -> list[Deed]:
        """The agent is being stopped: give back what runs; results that wait stay on the disk."""
        self.draining = True
        deeds: list[Deed] = []
        for key, held in list(self._held.items()):
            if held.phase is Phase.RUNNING:
                del self._held[key]
                deeds += [Drop(key, reason), self._release(held.assignment, reason)]
        return deeds

    def tick(self, now: float) -> list[Deed]:
        """Call about every second: leases, questions and reports that are due."""
        deeds: list[Deed] = []
        for key, held in list(self._held.items()):
            if held.report is not None and now - held.ended > self._habits.keep_seconds:
                del self._held[key]
                deeds.append(Drop(key, "nobody took its result"))
            elif now >= held.next_word:
                deeds += self._word(key, now)
        return deeds + self._ask(now)

    # What the job manager says

    def received(self, sender: Address, message: Message, now: float) -> list[Deed]:
        """React to a message.  Raises BadMessage when it is not what the protocol says."""
        if bare(sender) != bare(self._habits.manager):
            return []
        if message.command == Command.HAVE_JOB:
            return self._have_job(sender, now)
        if message.command == Command.RUN_JOB:
            return self._run_job(sender, message, now)
        key = (JobId(message.text("jobID", longest=64)), message.number("attempt", most=MOST_ATTEMPTS))
        held = self._held.get(key)
        if held is None:
            return []
        self._held[key] = held = replace(held, unanswered=0, assignment=replace(held.assignment, manager=sender))
        if message.command == Command.STORE_OUTPUT_DIR and held.phase is Phase.ASKING:
            self._held[key] = replace(held, phase=Phase.STORING, next_word=now + self._beat(held))
            url, token = message.text("url"), message.text("token", longest=16_384)
            return [Upload(held.assignment, url, token)]
        if message.command in (Command.STOP_JOB, Command.JOB_ACCEPTED, Command.JOB_REFUSED):
            del self._held[key]
            self._ask_at = now
            reason = message.optional_text("reason") or message.command
            return [Drop(key, reason), *self._ask(now)]
        return []

    def _have_job(self, sender: Address, now: float) -> list[Deed]:
        if now < self._rest_until:
            return []
        # a manager that offers again found nothing for the getJob before; another manager's offer has to wait
        if self.draining or self.free < 1 or (self._answer_by is not None and sender != self._asked):
            return []
        self._answer_by, self._asked = now + self._habits.answer_seconds, sender
        holding: list[Json] = [{"jobID": job, "attempt": attempt} for job, attempt in self._held]
        return [Send(sender, self._message(Command.GET_JOB, holding=holding, host=self._host))]

    def _run_job(self, sender: Address, message: Message, now: float) -> list[Deed]:
        assignment = read_assignment(sender, message)
        if assignment.key in self._held:
            return []
        self._answer_by = None
        if self.draining or self.free < 1:
            return [self._release(assignment, "the agent has no free slot")]
        self._held[assignment.key] = _Holding(assignment, Phase.RUNNING, now)
        self._ask_at, self._ask_wait = now, self._habits.ask_first
        return [Start(assignment), *self._word(assignment.key, now), *self._ask(now)]

    # Helpers

    def _ask(self, now: float) -> list[Deed]:
        """want_getJob, when a slot is free and the time has come; ever less often while nobody answers."""
        if self._answer_by is not None and now >= self._answer_by:
            self._answer_by, self._ask_at = None, now
        if self.draining or self.free < 1 or self._answer_by is not None or now < max(self._ask_at, self._rest_until):
            return []
        self._ask_at = now + self._jittered(self._ask_wait)
        self._ask_wait = min(self._ask_wait * 2, self._habits.ask_cap)
        wanted = self._message(Command.WANT_JOB, slots=self.free, host=self._host)
        return [Send(self._habits.manager, wanted, once=True)]

    def _word(self, key: Key, now: float) -> list[Deed]:
        """What has to be said about one job now; it also keeps the lease."""
        held = self._held[key]
        assignment = held.assignment
        to = assignment.manager if held.unanswered < UNANSWERED else bare(assignment.manager)
        self._held[key] = replace(held, next_word=now + self._beat(held), unanswered=held.unanswered + 1)
        if held.phase is Phase.ASKING:
            return [Send(to, self._about(Command.GET_OUTPUT_DIR, assignment), once=True)]
        if held.phase is Phase.REPORTING and held.report is not None:
            return [Send(to, self._job_done(assignment, held.report), once=True)]
        return [Send(to, self._about(Command.HEARTBEAT, assignment), once=True)]

    def _learn(self, failed: bool, now: float) -> None:
        """Rest after each failure of this machine, ever longer while nothing else comes."""
        self._failures = self._failures + 1 if failed else 0
        if failed:
            self._rest_until = now + self._jittered(min(REST_FIRST * 2 ** (self._failures - 1), REST_CAP))

    def _beat(self, held: _Holding) -> float:
        return self._jittered(held.assignment.lease_seconds / 3)

    def _jittered(self, seconds: float) -> float:
        return seconds * (0.75 + self._chance() / 4)

    def _job_done(self, assignment: Assignment, report: Report) -> Message:
        return self._about(
            Command.JOB_DONE,
            assignment,
            state=WORDS[report.verdict],
            exitCode=report.exit_code,
            error=report.reason,
            usage=dict(report.usage),
            outputs=[{"name": o.name, "size": o.size, "sha256": o.sha256} for o in report.outputs],
        )

    def _release(self, assignment: Assignment, reason: str) -> Send:
        return Send(assignment.manager, self._about(Command.RELEASE_JOB, assignment, reason=reason))

    def _about(self, command: str, assignment: Assignment, **fields: Json) -> Message:
        return self._message(command, jobID=assignment.job.id, attempt=assignment.attempt, **fields)

    def _message(self, command: str, **fields: Json) -> Message:
        return Message(command, {"agentID": self._habits.name, **fields})
