# SPDX-License-Identifier: BSD-3-Clause
"""The job manager's machine: leases, results, and those who lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from uuid import UUID

import pytest

from cernvm.copilot.broker import ASK_STORAGE_EVERY, Broker, Changed, News, Rules, Send
from cernvm.copilot.errors import BadMessage, IllegalMove, JobMistake, NoSuchJob
from cernvm.copilot.job import InputFile, Job, JobId, State
from cernvm.copilot.messages import Address, Command, Json, Message
from cernvm.copilot.queue import SqliteQueue
from cernvm.copilot.record import Record
from cernvm.copilot.tokens import Grant

AGENT = Address("agent@copilot.test/one")
OTHER = Address("other@copilot.test/two")
STORAGE = Address("storage@copilot.test/x")
RULES = Rules(
    storage=Address("storage@copilot.test"),
    storage_url="http://storage:1",
    agents=frozenset({"copilot.test"}),
    lease_seconds=30,
    max_attempts=3,
)
ID = JobId(str(UUID(int=1)))
HASH = "a" * 64
OUTPUTS: list[Json] = [
    {"name": "out", "size": 1, "sha256": HASH},
    {"name": "_stdout", "size": 0, "sha256": HASH},
]


@dataclass
class Table:
    """A broker with one queue, and what it wanted signed."""

    broker: Broker
    queue: SqliteQueue
    grants: list[Grant]

    def add(self, number: int = 1) -> JobId:
        job = Job(JobId(str(UUID(int=number))), "run.sh", output_files=("out",), name=f"job {number}")
        self.queue.add(Record(job, owner=1, state=State.QUEUED, submitted=0.0))
        return job.id

    def say(self, sender: Address, command: str, now: float = 0.0, **fields: Json) -> list[News]:
        named: dict[str, Json] = {"agentID": sender.partition("/")[2], **fields}
        return self.broker.received(sender, Message(command, named), now)

    def lease(self, sender: Address = AGENT, now: float = 0.0) -> list[News]:
        return self.say(sender, Command.GET_JOB, now)

    def about(self, sender: Address, command: str, now: float = 0.0, attempt: int = 1, **fields: Json) -> list[News]:
        return self.say(sender, command, now, jobID=ID, attempt=attempt, **fields)

    def done(self, sender: Address = AGENT, now: float = 0.0, attempt: int = 1, **fields: Json) -> list[News]:
        report: dict[str, Json] = {"state": "done", "exitCode": 0, "outputs": OUTPUTS, **fields}
        return self.about(sender, Command.JOB_DONE, now, attempt, **report)

    @property
    def state(self) -> State:
        return self.queue.get(ID).state


@pytest.fixture
def table() -> Iterator[Table]:
    grants: list[Grant] = []

    def issue(grant: Grant) -> str:
        grants.append(grant)
        return f"token-{len(grants)}"

    with SqliteQueue(":memory:") as queue:
        yield Table(Broker(queue, RULES, issue), queue, grants)


def said(news: list[News], to: Address | None = None) -> list[str]:
    """The commands sent (to `to`)."""
    return [item.message.command for item in news if isinstance(item, Send) and to in (None, item.to)]


def states(news: list[News]) -> list[State]:
    return [item.record.state for item in news if isinstance(item, Changed)]


def test_the_whole_way_of_a_job(table: Table) -> None:
    table.add()
    assert said(table.say(AGENT, Command.WANT_JOB)) == [Command.HAVE_JOB]
    given = table.lease()
    assert (states(given), said(given, AGENT)) == ([State.LEASED], [Command.RUN_JOB])
    run = next(item.message for item in given if isinstance(item, Send))
    assert run.number("attempt") == 1
    assert run.table("inputs") == {"url": f"http://storage:1/jobs/{ID}/input/", "token": "token-1"}
    assert states(table.about(AGENT, Command.HEARTBEAT)) == [State.RUNNING]
    place = table.about(AGENT, Command.GET_OUTPUT_DIR)
    assert said(place) == [Command.STORE_OUTPUT_DIR]
    assert table.grants[-1].names == ("out", "_stdout", "_stderr")
    assert (table.grants[-1].attempt, table.grants[-1].direction, table.grants[-1].scope) == (1, "put", "output")
    finished = table.done()
    assert (states(finished), said(finished)) == ([State.STORING], [Command.ACCEPT_OUTPUT])
    accepted = table.about(STORAGE, Command.OUTPUT_ACCEPTED)
    assert states(accepted) == [State.DONE]
    assert said(accepted, AGENT) == [Command.JOB_ACCEPTED]
    assert said(accepted, RULES.storage) == [Command.CLEAN_JOB]


def test_an_agent_that_waits_is_told_when_a_job_comes(table: Table) -> None:
    assert table.say(AGENT, Command.WANT_JOB) == []
    record = Record(Job(ID, "x"), owner=1, state=State.STAGING, submitted=0.0)
    table.broker.submit(record)
    assert table.say(OTHER, Command.WANT_JOB) == []
    news = table.broker.release(ID, 1.0)
    assert (states(news), said(news, AGENT), said(news, OTHER)) == ([State.QUEUED], [Command.HAVE_JOB], [])


def test_who_asks_for_a_job_when_there_is_none_is_remembered(table: Table) -> None:
    assert table.lease() == []
    table.add()
    assert said(table.broker.tick(1.0), AGENT) == [Command.HAVE_JOB]
    assert said(table.broker.tick(2.0)) == []


def test_a_lost_run_job_is_sent_again_with_the_same_attempt(table: Table) -> None:
    table.add()
    table.lease()
    again = table.lease(now=10.0)
    assert (states(again), said(again)) == ([], [Command.RUN_JOB])
    assert table.queue.get(ID).attempt == 1


def test_an_agent_with_two_slots_gets_a_second_job(table: Table) -> None:
    table.add(1)
    table.add(2)
    table.lease()
    second = table.say(AGENT, Command.GET_JOB, 1.0, holding=[{"jobID": ID, "attempt": 1}])
    assert states(second) == [State.LEASED]


def test_a_heartbeat_renews_the_lease(table: Table) -> None:
    table.add()
    table.lease()
    for now in range(0, 300, 20):
        assert said(table.about(AGENT, Command.HEARTBEAT, float(now))) == [Command.LEASE]
        assert states(table.broker.tick(now + 19.0)) == []
    assert table.state is State.RUNNING


def test_a_lease_that_runs_out_puts_the_job_back_and_then_fails_it(table: Table) -> None:
    table.add()
    for attempt in (1, 2, 3):
        table.lease(now=attempt * 100.0)
        news = table.broker.tick(attempt * 100.0 + 30.0)
        assert states(news) == ([State.QUEUED] if attempt < 3 else [State.FAILED])
    failed = table.queue.get(ID)
    assert "was not heard of for 30 s" in failed.reason
    assert len(failed.history) == 3


def test_a_late_result_of_an_old_attempt_is_refused(table: Table) -> None:
    table.add()
    table.lease()
    table.broker.tick(30.0)
    table.lease(OTHER, 40.0)
    late = table.done(AGENT, 50.0)
    assert (states(late), said(late)) == ([], [Command.STOP_JOB])
    assert states(table.done(OTHER, 60.0, attempt=2)) == [State.STORING]
    assert table.queue.get(ID).attempt == 2


def test_a_result_that_comes_twice_counts_once(table: Table) -> None:
    table.add()
    table.lease()
    table.done()
    assert said(table.done(now=1.0)) == [Command.LEASE]
    table.about(STORAGE, Command.OUTPUT_ACCEPTED)
    again = table.done(now=2.0)
    assert (states(again), said(again)) == ([], [Command.JOB_ACCEPTED])
    assert table.about(STORAGE, Command.OUTPUT_ACCEPTED) == []


@pytest.mark.parametrize("command", [Command.HEARTBEAT, Command.GET_OUTPUT_DIR, Command.JOB_DONE, Command.RELEASE_JOB])
def test_nobody_speaks_for_another_agents_job(table: Table, command: str) -> None:
    table.add()
    table.lease()
    before = table.queue.get(ID)
    news = table.about(OTHER, command, state="done", outputs=OUTPUTS)
    assert states(news) == []
    assert set(said(news)) <= {Command.STOP_JOB}
    assert table.queue.get(ID) == before


def test_an_agent_cannot_take_the_name_of_one_with_another_account(table: Table) -> None:
    table.add()
    table.lease()
    forger = Address("other@copilot.test/one")
    assert states(table.about(forger, Command.HEARTBEAT)) == []
    assert table.broker.refused == 1


@pytest.mark.parametrize(
    ("address", "may"),
    [("a@copilot.test/x", True), ("A@Copilot.Test/x", True), ("a@evil.test/x", False), ("a@sub.copilot.test/x", False)],
)
def test_only_the_accounts_of_the_rules_get_jobs(table: Table, address: str, may: bool) -> None:
    table.add()
    assert bool(table.lease(Address(address))) is may
    assert table.state is (State.LEASED if may else State.QUEUED)
    assert table.broker.refused == (0 if may else 1)


def test_only_the_storage_adapter_says_that_outputs_are_there(table: Table) -> None:
    table.add()
    table.lease()
    table.done()
    assert table.about(AGENT, Command.OUTPUT_ACCEPTED) == []
    assert table.about(Address("storage@evil.test/x"), Command.OUTPUT_ACCEPTED) == []
    assert table.state is State.STORING


def test_the_storage_adapters_word_about_an_old_attempt_is_ignored(table: Table) -> None:
    table.add()
    table.lease()
    table.done()
    assert table.about(STORAGE, Command.OUTPUT_ACCEPTED, attempt=2) == []
    assert table.state is State.STORING


def test_outputs_that_the_storage_adapter_refuses_are_made_again(table: Table) -> None:
    table.add()
    table.lease()
    table.done()
    refused = table.about(STORAGE, Command.OUTPUT_REFUSED, reason="out: wrong SHA-256")
    assert states(refused) == [State.QUEUED]
    assert said(refused, AGENT) == [Command.JOB_REFUSED]
    assert table.queue.get(ID).reason == "the storage adapter refused the outputs: out: wrong SHA-256"


def test_a_job_whose_outputs_were_refused_to_the_end_has_no_result(table: Table) -> None:
    table.add()
    for attempt in (1, 2, 3):
        table.lease()
        table.done(attempt=attempt)
        table.about(STORAGE, Command.OUTPUT_REFUSED, attempt=attempt, reason="no")
    failed = table.queue.get(ID)
    assert (failed.state, failed.verdict, failed.outputs) == (State.FAILED, None, ())


def test_the_storage_adapter_is_asked_again_until_it_answers(table: Table) -> None:
    table.add()
    table.lease()
    table.done()
    assert said(table.broker.tick(1.0)) == []
    assert said(table.broker.tick(ASK_STORAGE_EVERY)) == [Command.ACCEPT_OUTPUT]
    silent = table.broker.tick(RULES.storing_seconds)
    assert State.QUEUED in states(silent)


def test_a_restarted_broker_asks_the_storage_adapter_and_gives_leases_a_new_term(table: Table) -> None:
    table.add()
    table.lease()
    table.add(2)
    table.say(OTHER, Command.GET_JOB)
    table.done()
    restarted = Broker(table.queue, RULES, lambda grant: "token")
    news = restarted.started(1000.0)
    assert states(news) == []
    assert said(news) == [Command.ACCEPT_OUTPUT]
    assert restarted.tick(1029.0) != []
    assert State.QUEUED in states(restarted.tick(1030.0))


def test_a_job_that_fails_by_itself_is_not_tried_again(table: Table) -> None:
    table.add()
    table.lease()
    assert states(table.done(state="failed", exitCode=3, error="exit code 3", outputs=[])) == [State.STORING]
    assert states(table.about(STORAGE, Command.OUTPUT_ACCEPTED)) == [State.FAILED]
    assert (table.queue.get(ID).exit_code, table.queue.get(ID).reason) == (3, "exit code 3")


def test_a_failed_job_whose_logs_are_refused_has_failed_all_the_same(table: Table) -> None:
    table.add()
    table.lease()
    table.done(state="failed", exitCode=3, error="exit code 3", outputs=[])
    assert states(table.about(STORAGE, Command.OUTPUT_REFUSED, reason="no")) == [State.FAILED]


def test_a_failure_of_the_machine_is_tried_again_after_a_pause_and_keeps_its_sentence(table: Table) -> None:
    table.add()
    now = 0.0
    for attempt in (1, 2, 3):
        now += 100.0
        table.lease(now=now)
        news = table.done(now=now, attempt=attempt, state="error", error=f"object {HASH} is corrupt", outputs=[])
        assert states(news) == ([State.QUEUED] if attempt < 3 else [State.FAILED])
        assert table.lease(OTHER, now=now + 0.5) == []
    assert HASH in table.queue.get(ID).reason


def test_a_job_given_back_is_queued_at_once_without_blame(table: Table) -> None:
    table.add()
    table.lease()
    table.say(OTHER, Command.WANT_JOB)
    news = table.about(AGENT, Command.RELEASE_JOB, reason="the agent was stopped")
    assert (states(news), said(news, OTHER)) == ([State.QUEUED], [Command.HAVE_JOB])
    assert table.queue.get(ID).blamed == 0


def test_success_without_an_output_is_a_failure(table: Table) -> None:
    table.add()
    table.lease()
    table.done(outputs=[OUTPUTS[1]])
    table.about(STORAGE, Command.OUTPUT_ACCEPTED)
    assert (table.state, table.queue.get(ID).reason) == (State.FAILED, "the job left no output file out")


def test_a_cancelled_job_is_stopped_and_cleaned(table: Table) -> None:
    table.add()
    table.lease()
    news = table.broker.cancel(ID, 5.0)
    assert (states(news), said(news, AGENT)) == ([State.CANCELLED], [Command.STOP_JOB])
    assert said(news, RULES.storage) == [Command.CLEAN_JOB]
    assert said(table.about(AGENT, Command.HEARTBEAT)) == [Command.STOP_JOB]
    assert said(table.done()) == [Command.STOP_JOB]
    with pytest.raises(IllegalMove, match="is cancelled already"):
        table.broker.cancel(ID, 6.0)


def test_an_unknown_job_is_another_managers(table: Table) -> None:
    """Several managers may share an account: what one does not know it leaves to the others."""
    for command in (Command.HEARTBEAT, Command.GET_OUTPUT_DIR, Command.JOB_DONE, Command.RELEASE_JOB):
        assert table.about(AGENT, command, state="done") == []
    with pytest.raises(NoSuchJob):
        table.broker.cancel(ID, 0.0)


def test_a_job_whose_inputs_never_come_is_given_up(table: Table) -> None:
    table.broker.submit(Record(Job(ID, "x"), owner=1, state=State.STAGING, submitted=0.0))
    assert states(table.broker.tick(RULES.token_seconds - 1.0)) == []
    late = table.broker.tick(RULES.token_seconds)
    assert (states(late), said(late)) == ([State.CANCELLED], [Command.CLEAN_JOB])


def test_a_released_job_is_ready_at_once(table: Table) -> None:
    table.broker.submit(Record(Job(ID, "x"), owner=1, state=State.STAGING, submitted=0.0))
    table.broker.release(ID, 1.0)
    assert states(table.lease(now=1.0)) == [State.LEASED]


def test_a_job_too_long_for_a_message_is_refused_at_the_door(table: Table) -> None:
    long = replace(Job(ID, "x"), arguments=("y" * 30_000,) * 4)
    with pytest.raises(JobMistake, match="too long for a message"):
        table.broker.submit(Record(long, owner=1, state=State.STAGING, submitted=0.0))
    assert table.queue.newest(10) == []


def test_access_to_inputs_is_bounded_to_what_was_declared(table: Table) -> None:
    job = replace(Job(ID, "x"), input_files=(InputFile("a", 3, HASH), InputFile("b", 4, HASH)))
    _, access = table.broker.submit(Record(job, owner=1, state=State.STAGING, submitted=0.0))
    assert access.url == f"http://storage:1/jobs/{ID}/input/"
    assert table.grants == [Grant(ID, 0, "", "put", "input", ("a", "b"), 7, int(RULES.token_seconds))]


@pytest.mark.parametrize(
    "wrong",
    [
        {"state": "perfect"},
        {"outputs": "all"},
        {"outputs": [{"name": "other", "size": 1, "sha256": HASH}]},
        {"outputs": [{"name": "out", "size": -1, "sha256": HASH}]},
        {"outputs": [{"name": "out", "size": True, "sha256": HASH}]},
        {"outputs": [{"name": "out", "size": 1, "sha256": "x"}]},
        {"outputs": [{"name": "out", "size": 1, "sha256": HASH}] * 2},
        {"exitCode": "0"},
        {"usage": {"a": "x" * 20_000}},
        {"attempt": 0},
        {"jobID": "../../etc"},
        {"agentID": 7},
    ],
)
def test_a_wrong_report_is_refused_and_changes_nothing(table: Table, wrong: dict[str, Json]) -> None:
    table.add()
    table.lease()
    before = table.queue.get(ID)
    right: dict[str, Json] = {"agentID": "one", "jobID": ID, "attempt": 1, "state": "done", "outputs": OUTPUTS}
    with pytest.raises(BadMessage):
        table.broker.received(AGENT, Message(Command.JOB_DONE, {**right, **wrong}), 0.0)
    assert table.queue.get(ID) == before
