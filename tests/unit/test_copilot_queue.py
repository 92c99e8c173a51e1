# SPDX-License-Identifier: BSD-3-Clause
"""The durable queue: what it returned is there after a crash, and nothing half done."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest

from cernvm.copilot import record as step
from cernvm.copilot.errors import IllegalMove, NoSuchJob, QueueFailed
from cernvm.copilot.job import HELD, InputFile, Job, JobId, Limits, Package, State
from cernvm.copilot.queue import SqliteQueue, Step
from cernvm.copilot.record import Output, Record, Report
from cernvm.kit.errors import UserMistake

AGENT = "agent@copilot.test/one"


def record(number: int, state: State = State.QUEUED) -> Record:
    job = Job(
        JobId(str(UUID(int=number))),
        "run.sh",
        name=f"job {number}",
        arguments=("a", "b"),
        environment={"A": "1"},
        input_files=(InputFile("run.sh", 3, "a" * 64),),
        packages=(Package("software.example.org", "x"),),
        output_files=("out",),
        limits=Limits(wall_seconds=5),
    )
    return Record(job, owner=1000, state=state, submitted=1.5)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[SqliteQueue]:
    with SqliteQueue(tmp_path / "queue.sqlite") as queue:
        yield queue


def lease(record: Record) -> Record:
    return step.leased(record, AGENT, now=10.0, until=70.0)


def test_a_record_is_stored_and_read_without_loss(queue: SqliteQueue) -> None:
    first = record(1)
    queue.add(first)
    assert queue.get(first.job.id) == first
    held = queue.change(first.job.id, lease)
    report = Report(State.DONE, 0, "", (Output("out", 1, "b" * 64),), {"wall_seconds": 1.5, "cvmfs": {"hits": 2}})
    queue.change(first.job.id, lambda r: step.storing(r, report, 20.0, 99.0))
    back = queue.change(first.job.id, lambda r: step.returned(r, "lost", 30.0, most=3))
    assert back.history == (step.Attempt(1, AGENT, 10.0, 30.0, "lost"),)
    assert held.attempt == back.attempt == 1
    assert queue.get(first.job.id) == back


def test_the_oldest_job_is_given_first(queue: SqliteQueue) -> None:
    for number in (3, 1, 2):
        queue.add(record(number))
    given = [queue.take(10.0, lease) for _ in range(4)]
    assert [r.job.name if r else None for r in given] == ["job 3", "job 1", "job 2", None]


def test_a_job_that_returns_keeps_its_place(queue: SqliteQueue) -> None:
    for number in (1, 2):
        queue.add(record(number))
    first = queue.take(10.0, lease)
    assert first is not None
    queue.change(first.job.id, lambda r: step.returned(r, "lost", 30.0, most=3))
    again = queue.take(10.0, lease)
    assert again is not None
    assert (again.job.name, again.attempt) == ("job 1", 2)


def test_a_job_that_pauses_is_not_given_before_its_time(queue: SqliteQueue) -> None:
    queue.add(record(1))
    given = queue.take(10.0, lease)
    assert given is not None
    queue.change(given.job.id, lambda r: step.returned(r, "no network", 30.0, most=3, pause=5.0))
    assert (queue.ready(34.9), queue.take(34.9, lease)) == (0, None)
    assert queue.ready(35.0) == 1
    assert queue.take(35.0, lease) is not None


def test_a_refused_step_changes_nothing(queue: SqliteQueue) -> None:
    first = record(1)
    queue.add(first)
    with pytest.raises(IllegalMove):
        queue.change(first.job.id, lambda r: step.accepted(r, 1.0))
    assert queue.get(first.job.id) == first


def test_selecting_by_agent_and_by_time(queue: SqliteQueue) -> None:
    for number in (1, 2, 3):
        queue.add(record(number))
    one, two = record(1).job.id, record(2).job.id
    queue.change(one, lease)
    queue.change(two, lambda r: step.leased(r, "other", now=10.0, until=50.0))
    assert [r.job.id for r in queue.select(HELD, agent=AGENT)] == [one]
    assert [r.job.id for r in queue.select(HELD, due=50.0)] == [two]
    assert [r.job.id for r in queue.select(State, most=2)] == [one, two]
    assert [r.job.id for r in queue.newest(2)] == [two, record(3).job.id]
    queue.postpone(HELD, 60.0)
    assert {r.job.id: r.until for r in queue.select(HELD)} == {one: 70.0, two: 60.0}
    assert queue.counts()[State.LEASED] == 2


def test_an_unknown_job_is_said_to_be_unknown(queue: SqliteQueue) -> None:
    with pytest.raises(NoSuchJob, match="there is no job"):
        queue.get(JobId(str(UUID(int=9))))


def test_a_crash_between_any_two_transactions_loses_nothing_that_was_returned(tmp_path: Path) -> None:
    """The files as they lie on the disk after each transaction are opened as after a crash."""
    file = tmp_path / "queue.sqlite"
    steps: list[Step] = [
        lease,
        partial(step.renewed, now=20.0, until=80.0),
        partial(step.storing, report=Report(State.DONE, 0, ""), now=30.0, until=99.0),
        partial(step.accepted, now=40.0),
    ]
    first = record(1)
    with SqliteQueue(file) as queue:
        queue.add(first)
        wanted = [first]
        for number, change in enumerate(steps):
            wanted.append(queue.change(first.job.id, change))
            place = tmp_path / f"crash-{number}"
            place.mkdir()
            for part in tmp_path.glob("queue.sqlite*"):
                shutil.copy(part, place)
            with SqliteQueue(place / "queue.sqlite") as after:
                assert after.get(first.job.id) == wanted[-1]
                assert list(after.newest(10)) == [wanted[-1]]


def test_a_transaction_that_is_cut_off_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "queue.sqlite"
    first = record(1)

    class PowerCut(BaseException):
        pass

    def cut(old: Record) -> Record:
        raise PowerCut

    with SqliteQueue(file) as queue:
        queue.add(first)
        with pytest.raises(PowerCut):
            queue.change(first.job.id, cut)
        assert queue.change(first.job.id, lease).attempt == 1
    with SqliteQueue(file) as queue:
        assert queue.get(first.job.id).attempt == 1


def test_another_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "other.sqlite"
    other = sqlite3.connect(file)
    other.execute("CREATE TABLE precious (x)")
    other.close()
    with pytest.raises(UserMistake, match=f"{file}: this is not a queue"):
        SqliteQueue(file)


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "queue.sqlite"
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(QueueFailed, match=f"{file}: "):
        SqliteQueue(file)


def test_a_directory_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="cannot open the queue"):
        SqliteQueue(tmp_path / "absent" / "queue.sqlite")


def test_a_failed_job_tells_its_last_reason_and_its_attempts() -> None:
    now = record(1)
    for attempt in (1, 2, 3):
        now = step.returned(step.leased(now, AGENT, 1.0, 2.0), f"reason {attempt}", 3.0, most=3)
    assert now.state is State.FAILED
    assert now.reason == "reason 3 (attempt 3, the last)"
    assert [a.reason for a in now.history] == ["reason 1", "reason 2", "reason 3"]


def test_attempts_without_blame_are_bounded_too() -> None:
    now = record(1)
    while now.state is State.QUEUED:
        now = step.returned(step.leased(now, AGENT, 1.0, 2.0), "stopped", 3.0, most=3, blame=False)
    assert (now.state, now.attempt) == (State.FAILED, step.MOST_ATTEMPTS)


def test_replacing_a_finished_job_is_impossible() -> None:
    done = replace(record(1), state=State.DONE)
    for change in (step.released, partial(step.cancelled, now=1.0), partial(step.renewed, now=1.0, until=2.0)):
        with pytest.raises(IllegalMove):
            change(done)
