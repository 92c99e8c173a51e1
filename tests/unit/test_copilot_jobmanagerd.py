# SPDX-License-Identifier: BSD-3-Clause
"""The job manager's shell: whose jobs they are, and its configuration."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cernvm.copilot.broker import Broker, Rules
from cernvm.copilot.errors import NoSuchJob, NotYours
from cernvm.copilot.job import State
from cernvm.copilot.messages import Address
from cernvm.copilot.queue import SqliteQueue
from cernvm.copilot.record import Record
from cernvm.copilot_jobmanagerd.config import SPEC, Config, configure
from cernvm.copilot_jobmanagerd.control import Control
from cernvm.copilot_jobmanagerd.manager import Manager
from cernvm.kit import config
from cernvm.kit.bus import Caller
from cernvm.kit.errors import Problem, UserMistake

ALICE, BOB, ROOT = Caller(":1.1", 1000), Caller(":1.2", 1001), Caller(":1.3", 0)
RULES = Rules(storage=Address("storage@copilot.test"), storage_url="http://storage", agents=frozenset({"copilot.test"}))


@pytest.fixture
def changes() -> list[Record]:
    return []


@pytest.fixture
def control(changes: list[Record]) -> Iterator[Control]:
    with SqliteQueue(":memory:") as queue:
        yield Control(Manager(queue, Broker(queue, RULES, lambda grant: "token"), changes.append))


def submit(control: Control, text: str = '{"command": "x"}') -> str:
    answer = asyncio.run(control.Submit(text, ALICE))
    assert (answer["url"], answer["token"]) == (f"http://storage/jobs/{answer['id']}/input/", "token")
    return str(answer["id"])


def test_a_job_is_staged_and_then_released(control: Control, changes: list[Record]) -> None:
    job = submit(control)
    asyncio.run(control.Release(job, ALICE))
    assert [record.state for record in changes] == [State.STAGING, State.QUEUED]
    shown = json.loads(asyncio.run(control.Get(job)))
    assert (shown["id"], shown["state"], shown["owner"]) == (job, "queued", 1000)
    assert control.Counts()["queued"] == 1


def test_only_its_submitter_and_root_may_touch_a_job(control: Control) -> None:
    job = submit(control)
    with pytest.raises(NotYours, match="belongs to another user"):
        asyncio.run(control.Release(job, BOB))
    with pytest.raises(NotYours):
        asyncio.run(control.Cancel(job, BOB))
    with pytest.raises(NotYours):
        asyncio.run(control.ResultGrant(job, BOB))
    asyncio.run(control.Cancel(job, ROOT))
    assert json.loads(asyncio.run(control.Get(job)))["state"] == "cancelled"


def test_a_job_without_a_result_has_nothing_to_fetch(control: Control) -> None:
    with pytest.raises(UserMistake, match="is staging and has no stored result"):
        asyncio.run(control.ResultGrant(submit(control), ALICE))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "the job is not a JSON object"),
        ('{"id": "x", "command": "x"}', "field id is given by the job manager"),
        ('{"comand": "x"}', "did you mean command"),
    ],
)
def test_a_wrong_job_is_refused(control: Control, text: str, words: str) -> None:
    with pytest.raises(UserMistake, match=words):
        asyncio.run(control.Submit(text, ALICE))
    assert json.loads(asyncio.run(control.List({}))) == []


def test_listing_by_state_and_number(control: Control) -> None:
    jobs = [submit(control) for _ in range(3)]
    asyncio.run(control.Release(jobs[0], ALICE))
    assert [r["id"] for r in json.loads(asyncio.run(control.List({"states": ["queued"]})))] == jobs[:1]
    assert [r["id"] for r in json.loads(asyncio.run(control.List({"most": 2})))] == jobs[1:]
    for wanted, words in (({"state": []}, "filters states and most"), ({"states": ["asleep"]}, "the states are")):
        with pytest.raises(UserMistake, match=words):
            asyncio.run(control.List(dict(wanted)))


def test_an_unknown_job_and_a_wrong_id_are_told_apart(control: Control) -> None:
    with pytest.raises(NoSuchJob):
        asyncio.run(control.Get("00000000-0000-4000-8000-000000000000"))
    with pytest.raises(Problem, match="is not the id of a job"):
        asyncio.run(control.Get("../x"))


def configured(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "copilot-jobmanagerd.conf"
    file.write_text(text)
    return configure(config.load(SPEC, file, required=True))


def test_the_defaults_are_a_configuration(tmp_path: Path) -> None:
    found = configured(tmp_path, "[storage]\nurl = https://store.example.org/\n")
    assert (found.resource, found.rules.max_attempts) == ("main", 3)
    assert found.rules.agents == {"localhost"}
    assert found.rules.storage_url == "https://store.example.org"


def test_accounts_and_domains_may_take_jobs(tmp_path: Path) -> None:
    found = configured(tmp_path, "[xmpp]\nagents = One@Site.org, other.org\n")
    assert found.rules.agents == {"one@site.org", "other.org"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[storage]\nurl = ftp://x\n", r"\[storage\] url: 'ftp://x' is not the URL of an HTTP server"),
        ("[storage]\njid = x\n", r"\[storage\] jid: 'x' is not an XMPP address"),
        ("[jobs]\nlease_seconds = 1\n", r"\[jobs\] lease_seconds: "),
        ("[xmpp]\nagents = a@b@c,\n", r"\[xmpp\] agents: 'a@b@c' is neither"),
        ('[xmpp]\nresource = ""\n', r"\[xmpp\] resource: "),
    ],
)
def test_a_wrong_value_is_one_sentence_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserMistake, match=f"copilot-jobmanagerd.conf: {words}"):
        configured(tmp_path, text)
