# SPDX-License-Identifier: BSD-3-Clause
"""The agent's disk and configuration."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from cernvm.copilot.assignment import Assignment
from cernvm.copilot.errors import CopilotProblem
from cernvm.copilot.job import InputFile, Job, JobId, Package, State
from cernvm.copilot.messages import Address
from cernvm.copilot.record import Output, Report
from cernvm.copilot_agentd.config import SPEC, Config, configure
from cernvm.copilot_agentd.spool import Spool
from cernvm.kit import config
from cernvm.kit.errors import UserMistake

JOB = Job(
    JobId(str(UUID(int=1))),
    "run.sh",
    input_files=(InputFile("run.sh", 3, "a" * 64),),
    packages=(Package("software.example.org", "x"),),
    output_files=("out",),
)
ASSIGNMENT = Assignment(JOB, 2, Address("jm@copilot.test/main"), 30, "http://s/", "secret-token")
REPORT = Report(State.DONE, 0, "", (Output("out", 3, "b" * 64),), {"wall_seconds": 1.5})


def test_an_ended_attempt_is_found_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    work = spool.begin(ASSIGNMENT)
    (work / "out").write_text("yes")
    spool.keep(ASSIGNMENT, REPORT, False)
    (kept,) = Spool(tmp_path).kept()
    assert (kept.assignment.job, kept.assignment.key, kept.assignment.manager) == (
        JOB,
        ASSIGNMENT.key,
        ASSIGNMENT.manager,
    )
    assert (kept.report, kept.stored) == (REPORT, False)
    assert (spool.work(kept.assignment.key) / "out").read_text() == "yes"


def test_a_cut_off_attempt_is_found_without_a_report(tmp_path: Path) -> None:
    Spool(tmp_path).begin(ASSIGNMENT)
    (kept,) = Spool(tmp_path).kept()
    assert (kept.assignment.key, kept.report) == (ASSIGNMENT.key, None)


def test_no_token_is_written_to_the_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.begin(ASSIGNMENT)
    spool.keep(ASSIGNMENT, REPORT, True)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and "secret-token" in p.read_text()]


def test_what_makes_no_sense_is_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path)
    spool.begin(ASSIGNMENT)
    spool.keep(ASSIGNMENT, REPORT, True)
    (place,) = (tmp_path / "jobs").iterdir()
    (place / "report.json").write_text('{"verdict": "marvellous"}')
    (tmp_path / "jobs" / "empty").mkdir()
    assert list(spool.kept()) == []
    assert list((tmp_path / "jobs").iterdir()) == []
    assert caplog.text.count("is no attempt that can be taken up") == 2


def test_everything_of_an_attempt_is_removed_whatever_modes_it_has(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    work = spool.begin(ASSIGNMENT)
    (work / "deep" / "er").mkdir(parents=True)
    (work / "deep" / "er" / "file").write_text("x")
    (work / "deep" / "er").chmod(0)
    (work / "deep").chmod(0o500)
    (work / "link").symlink_to("/etc")
    spool.remove(ASSIGNMENT.key)
    assert list((tmp_path / "jobs").iterdir()) == []
    assert Path("/etc").is_dir()
    spool.remove(ASSIGNMENT.key)


def test_the_same_attempt_does_not_begin_twice(tmp_path: Path) -> None:
    Spool(tmp_path).begin(ASSIGNMENT)
    with pytest.raises(CopilotProblem, match="cannot make the job's directory"):
        Spool(tmp_path).begin(ASSIGNMENT)


def test_a_name_is_made_once_and_kept(tmp_path: Path) -> None:
    name = Spool(tmp_path).name("")
    assert name == Spool(tmp_path).name("")
    assert 0 < len(name) <= 64
    assert Spool(tmp_path).name("given") == "given"


def test_a_place_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UserMistake, match=f"{file}: cannot be used for jobs"):
        Spool(file)


def configured(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "copilot-agentd.conf"
    file.write_text(text)
    return configure(config.load(SPEC, file, required=True))


def test_the_defaults_are_a_configuration(tmp_path: Path) -> None:
    found = configured(tmp_path, "")
    assert (found.slots, found.bus_name) == (1, "ch.cern.cernvm.CopilotAgent1")
    assert found.account.host == "localhost"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[xmpp]\njid = nobody\n", r"\[xmpp\] jid: 'nobody' is not an XMPP address"),
        ("[xmpp]\nmanager = a@b/c\n", r"\[xmpp\] manager: 'a@b/c' is not an XMPP address"),
        ("[agent]\nname = a b\n", r"\[agent\] name: "),
        ("[agent]\nslots = 0\n", r"\[agent\] slots: "),
        ("[agent]\nslotts = 1\n", r"\[agent\] slotts: unknown key; did you mean slots\?"),
        ("[agent]\ndirectory = here\n", r"\[agent\] directory: it must be an absolute path"),
        ("[agent]\nbus_name = 7.x\n", r"\[agent\] bus_name: '7.x' is not a name of the bus"),
    ],
)
def test_a_wrong_value_is_one_sentence_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserMistake, match=f"copilot-agentd.conf: {words}") as caught:
        configured(tmp_path, text)
    assert "\n" not in str(caught.value)
