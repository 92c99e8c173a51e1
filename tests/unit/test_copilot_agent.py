# SPDX-License-Identifier: BSD-3-Clause
"""The agent's machine: asking, leases, results that wait, and strangers."""

from __future__ import annotations

from itertools import pairwise
from uuid import UUID

import pytest

from cernvm.copilot.agent import (
    MOST_HELD_PER_SLOT,
    MOST_UPLOAD_TRIES,
    Agent,
    Deed,
    Drop,
    Habits,
    Keep,
    Phase,
    Send,
    Start,
    Upload,
)
from cernvm.copilot.assignment import assignment_table, restored_assignment
from cernvm.copilot.errors import BadMessage
from cernvm.copilot.job import Job, JobId, State, job_table
from cernvm.copilot.messages import Address, Command, Json, Message
from cernvm.copilot.record import Output, Report

MANAGER = Address("jm@copilot.test")
MAIN = Address("jm@copilot.test/main")
DONE = Report(State.DONE, 0, "")
OUTPUTS = (Output("_stdout", 1, "a" * 64),)


def number(n: int) -> JobId:
    return JobId(str(UUID(int=n)))


def agent(slots: int = 1) -> Agent:
    return Agent(Habits(manager=MANAGER, name="one", slots=slots), lambda: 1.0, {"cpus": 2})


def run_job(n: int = 1, attempt: int = 1) -> Message:
    fields: dict[str, Json] = {
        "jobID": number(n),
        "attempt": attempt,
        "job": job_table(Job(number(n), "x")),
        "lease_seconds": 30,
        "inputs": {"url": "http://s/", "token": "t"},
    }
    return Message(Command.RUN_JOB, fields)


def about(command: str, n: int = 1, attempt: int = 1, **fields: Json) -> Message:
    return Message(command, {"jobID": number(n), "attempt": attempt, **fields})


def place() -> Message:
    return about(Command.STORE_OUTPUT_DIR, url="http://s/out/", token="t")


def said(deeds: list[Deed]) -> list[tuple[str, str]]:
    return [(item.message.command, item.to) for item in deeds if isinstance(item, Send)]


def kinds(deeds: list[Deed]) -> list[type]:
    return [type(item) for item in deeds if not isinstance(item, Send)]


def running(slots: int = 1) -> Agent:
    machine = agent(slots)
    machine.received(MAIN, run_job(), 0.0)
    return machine


def test_the_whole_way_of_a_job() -> None:
    machine, key = agent(), (number(1), 1)
    assert said(machine.connected(0.0)) == [(Command.WANT_JOB, MANAGER)]
    assert said(machine.received(MAIN, Message(Command.HAVE_JOB), 0.0)) == [(Command.GET_JOB, MAIN)]
    begun = machine.received(MAIN, run_job(), 0.0)
    assert kinds(begun) == [Start]
    assert said(begun) == [(Command.HEARTBEAT, MAIN)]
    ended = machine.finished(key, DONE, 10.0)
    assert kinds(ended) == [Keep]
    assert said(ended) == [(Command.GET_OUTPUT_DIR, MAIN), (Command.WANT_JOB, MANAGER)]
    assert kinds(machine.received(MAIN, place(), 11.0)) == [Upload]
    assert said(machine.stored(key, OUTPUTS, 12.0)) == [(Command.JOB_DONE, MAIN)]
    assert kinds(machine.received(MAIN, about(Command.JOB_ACCEPTED), 13.0)) == [Drop]
    assert machine.jobs == {}


def test_while_nobody_answers_it_asks_ever_less_often() -> None:
    machine = agent()
    machine.connected(0.0)
    times = [now for now in range(1, 1000) if said(machine.tick(float(now)))]
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps == sorted(gaps)
    assert gaps[-1] == 60


def test_the_first_offer_wins_and_an_unanswered_get_job_is_given_up() -> None:
    machine = agent()
    machine.connected(0.0)
    assert said(machine.received(MAIN, Message(Command.HAVE_JOB), 0.0)) == [(Command.GET_JOB, MAIN)]
    assert machine.received(Address("jm@copilot.test/second"), Message(Command.HAVE_JOB), 0.0) == []
    assert said(machine.tick(9.0)) == []
    assert said(machine.tick(10.0)) == [(Command.WANT_JOB, MANAGER)]


def test_an_offer_that_came_to_nothing_does_not_close_the_ear_for_the_next() -> None:
    machine, second = agent(), Address("jm@copilot.test/second")
    offer = Message(Command.HAVE_JOB)
    assert said(machine.received(MAIN, offer, 1.0)) == [(Command.GET_JOB, MAIN)]
    assert said(machine.received(second, offer, 1.1)) == [], "one job is asked for at a time"
    assert said(machine.received(MAIN, offer, 1.2)) == [(Command.GET_JOB, MAIN)], "that manager has another job now"
    assert said(machine.tick(60.0)) == [(Command.WANT_JOB, MANAGER)]
    assert said(machine.received(second, offer, 61.0)) == [(Command.GET_JOB, second)]


def test_strangers_are_not_heard() -> None:
    machine = agent()
    for stranger in ("evil@copilot.test/main", "jm@evil.test/main"):
        assert machine.received(Address(stranger), Message(Command.HAVE_JOB), 0.0) == []
        assert machine.received(Address(stranger), run_job(), 0.0) == []
    assert machine.jobs == {}


def test_the_same_run_job_twice_is_one_run() -> None:
    assert running().received(MAIN, run_job(), 1.0) == []


def test_a_job_without_a_free_slot_is_given_back() -> None:
    assert said(running().received(MAIN, run_job(2), 1.0)) == [(Command.RELEASE_JOB, MAIN)]


def test_with_two_slots_it_asks_for_a_second_job_and_tells_what_it_holds() -> None:
    machine = running(slots=2)
    (asked,) = machine.received(MAIN, Message(Command.HAVE_JOB), 1.0)
    assert isinstance(asked, Send)
    assert asked.message.items("holding") == [{"jobID": number(1), "attempt": 1}]
    assert kinds(machine.received(MAIN, run_job(2), 1.0)) == [Start]
    assert machine.received(MAIN, Message(Command.HAVE_JOB), 2.0) == []


def test_the_lease_is_renewed_within_a_third_of_its_time() -> None:
    machine = running()
    times = [now for now in range(1, 40) if (Command.HEARTBEAT, MAIN) in said(machine.tick(float(now)))]
    assert times[0] <= 10


def test_after_unanswered_heartbeats_any_instance_is_asked() -> None:
    machine = running()
    addresses = [to for now in (10.0, 20.0, 30.0) for _, to in said(machine.tick(now))]
    assert addresses == [MAIN, MANAGER, MANAGER]
    second = Address("jm@copilot.test/second")
    machine.received(second, about(Command.LEASE, lease_seconds=30), 31.0)
    assert said(machine.tick(45.0)) == [(Command.HEARTBEAT, second)]


def test_a_stopped_job_is_dropped_and_the_next_one_asked_for() -> None:
    deeds = running().received(MAIN, about(Command.STOP_JOB, reason="cancelled"), 1.0)
    assert Drop((number(1), 1), "cancelled") in deeds
    assert (Command.WANT_JOB, MANAGER) in said(deeds)


def test_words_about_another_attempt_change_nothing() -> None:
    machine = running()
    assert machine.received(MAIN, about(Command.STOP_JOB, attempt=2), 1.0) == []
    assert machine.jobs == {(number(1), 1): Phase.RUNNING}


def test_a_failure_of_the_machine_is_reported_without_upload() -> None:
    deeds = running().finished((number(1), 1), Report(State.QUEUED, None, "no mount"), 5.0)
    (done,) = [item.message for item in deeds if isinstance(item, Send) and item.message.command == Command.JOB_DONE]
    assert (done.text("state"), done.text("error")) == ("error", "no mount")


def test_a_machine_that_fails_jobs_rests_ever_longer() -> None:
    machine, now, rests = agent(), 0.0, []
    for n in range(1, 9):
        machine.received(MAIN, run_job(n), now)
        machine.finished((number(n), 1), Report(State.QUEUED, None, "the disk is full"), now)
        machine.received(MAIN, about(Command.JOB_ACCEPTED, n), now)
        assert machine.received(MAIN, Message(Command.HAVE_JOB), now) == []
        rest = next(s for s in range(1, 1000) if said(machine.tick(now + s)))
        rests.append(rest)
        now += rest
    assert rests == [5, 10, 20, 40, 80, 160, 300, 300]
    machine.received(MAIN, run_job(9), now)
    asked = machine.finished((number(9), 1), DONE, now)
    assert (Command.WANT_JOB, MANAGER) in said(asked)


def test_a_result_is_reported_until_the_manager_takes_it_but_not_for_ever() -> None:
    machine, key = running(), (number(1), 1)
    machine.finished(key, DONE, 0.0)
    machine.received(MAIN, place(), 0.0)
    machine.stored(key, OUTPUTS, 0.0)
    for now in range(10, 1000, 10):
        assert Command.JOB_DONE in [command for command, _ in said(machine.tick(float(now)))]
    assert kinds(machine.tick(8 * 24 * 3600.0)) == [Drop]


def test_a_failed_upload_is_tried_again_with_a_new_token_and_then_reported() -> None:
    machine, key, now = running(), (number(1), 1), 0.0
    machine.finished(key, DONE, now)
    for _ in range(MOST_UPLOAD_TRIES):
        assert kinds(machine.received(MAIN, place(), now)) == [Upload]
        last = machine.not_stored(key, "no route to the storage adapter", now)
        now += 100.0
        asked = said(machine.tick(now))
    assert kinds(last) == [Keep]
    assert (Command.JOB_DONE, MANAGER) in asked or (Command.JOB_DONE, MAIN) in asked


def test_results_that_wait_keep_the_agent_from_filling_its_disk() -> None:
    machine = agent()
    for n in range(1, MOST_HELD_PER_SLOT + 1):
        machine.received(MAIN, run_job(n), 0.0)
        machine.finished((number(n), 1), DONE, 0.0)
    assert machine.free == 0
    assert said(machine.received(MAIN, Message(Command.HAVE_JOB), 1.0)) == []


def test_a_kept_result_is_taken_up_after_a_restart() -> None:
    machine = running()
    keep = next(item for item in machine.finished((number(1), 1), DONE, 0.0) if isinstance(item, Keep))
    again = agent()
    assignment = restored_assignment(assignment_table(keep.assignment))
    assert assignment.key == keep.assignment.key
    assert said(again.restore(assignment, keep.report, keep.stored, 0.0)) == [(Command.GET_OUTPUT_DIR, MAIN)]


def test_a_cut_off_attempt_is_given_back() -> None:
    keep = next(item for item in running().finished((number(1), 1), DONE, 0.0) if isinstance(item, Keep))
    deeds = agent().give_back(keep.assignment, "restarted")
    assert said(deeds) == [(Command.RELEASE_JOB, MAIN)]
    assert kinds(deeds) == [Drop]


def test_a_stopping_agent_gives_back_what_runs_and_keeps_what_has_ended() -> None:
    machine = running(slots=2)
    machine.received(MAIN, run_job(2), 0.0)
    machine.finished((number(2), 1), DONE, 0.0)
    deeds = machine.stop("stopped")
    assert said(deeds) == [(Command.RELEASE_JOB, MAIN)]
    assert list(machine.jobs) == [(number(2), 1)]
    assert said(machine.received(MAIN, Message(Command.HAVE_JOB), 1.0)) == []


def test_a_draining_agent_asks_for_nothing() -> None:
    machine = agent()
    machine.drain()
    assert machine.connected(0.0) == []
    assert said(machine.received(MAIN, run_job(), 0.0)) == [(Command.RELEASE_JOB, MAIN)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"job": {}},
        {"job": job_table(Job(number(2), "x"))},
        {"job": {**job_table(Job(number(1), "x")), "output_files": ["../../etc/passwd"]}},
        {"job": {**job_table(Job(number(1), "x")), "id": "../../x"}},
        {"inputs": {}},
        {"lease_seconds": 0},
        {"lease_seconds": "30"},
        {"attempt": 0},
        {"attempt": 10_000},
    ],
)
def test_a_wrong_run_job_is_refused(wrong: dict[str, Json]) -> None:
    machine = agent()
    with pytest.raises(BadMessage):
        machine.received(MAIN, Message(Command.RUN_JOB, {**run_job().fields, **wrong}), 0.0)
    assert machine.jobs == {}
