# SPDX-License-Identifier: BSD-3-Clause
"""Jobs, their states, and the file in which a physicist writes one."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from cernvm.copilot.errors import IllegalMove, JobMistake
from cernvm.copilot.job import (
    ENDED,
    LEGAL,
    InputFile,
    JobId,
    Limits,
    Package,
    State,
    job_id,
    job_table,
    move,
    read_job,
    read_job_file,
)

ID = JobId(str(UUID(int=7)))
FULL = {
    "name": "pythia, seed 1",
    "command": "run.sh",
    "arguments": ["--seed", "1"],
    "environment": {"OMP_NUM_THREADS": "1"},
    "input_files": [{"name": "run.sh", "size": 3, "sha256": "a" * 64}],
    "packages": [{"repository": "software.example.org", "path": "/pythia8/8.3"}],
    "output_files": ["out/hist.json"],
    "limits": {"wall_seconds": 60},
}


def test_a_job_is_read_and_written_without_loss() -> None:
    job = read_job(FULL, ID)
    assert job.input_files == (InputFile("run.sh", 3, "a" * 64),)
    assert job.packages == (Package("software.example.org", "pythia8/8.3"),)
    assert job.limits == Limits(wall_seconds=60)
    assert job.stored_names == ("out/hist.json", "_stdout", "_stderr")
    assert read_job(json.loads(json.dumps(job_table(job)))) == job


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"comand": "x"}, "unknown field 'comand'; did you mean command?"),
        ({"command": ""}, "field command is missing"),
        ({"command": 3}, "field command must be text"),
        ({"arguments": "--seed"}, "field arguments must be a list"),
        ({"arguments": [1]}, "field arguments must be a list of texts"),
        ({"arguments": ["a\0b"]}, "field arguments must be a list of texts"),
        ({"environment": {"A B": "x"}}, "field environment.A B must be a text"),
        ({"environment": {"A": 1}}, "field environment.A must be a text"),
        ({"output_files": ["../x"]}, "field output_files: '../x' must be a relative path"),
        ({"output_files": ["/x"]}, "relative path"),
        ({"output_files": ["_stdout"]}, "not _stdout or _stderr"),
        ({"output_files": ["a", "a"]}, "field output_files: 'a' stands there twice"),
        ({"output_files": ["a//b"]}, "relative path"),
        ({"output_files": ["."]}, "relative path"),
        ({"output_files": ["a\nb"]}, "relative path"),
        ({"packages": [{"repository": "nodots"}]}, "packages\\[0\\]: field repository must be a full repository name"),
        ({"packages": [{"repository": "a.b", "path": "x/../../y"}]}, "packages\\[0\\]: field path"),
        ({"packages": ["a.b"]}, "field packages must be a list of tables"),
        ({"limits": {"wall_second": 1}}, "limits: unknown field 'wall_second'; did you mean wall_seconds?"),
        ({"limits": {"wall_seconds": 0}}, "limits: field wall_seconds must be a whole number from 1"),
        ({"limits": {"memory_mb": True}}, "limits: field memory_mb must be a whole number"),
        ({"input_files": [{"name": "a", "size": 1, "sha256": "A" * 64}]}, "input_files\\[0\\]: field sha256"),
        ({"input_files": [{"name": "a", "size": -1, "sha256": "a" * 64}]}, "input_files\\[0\\]: field size"),
        ({"name": "\x1b[31m"}, "field name must be printable text"),
    ],
)
def test_a_wrong_field_is_one_sentence_with_its_place(change: dict[str, object], words: str) -> None:
    with pytest.raises(JobMistake, match=f"^job.toml: .*{words}") as caught:
        read_job({**FULL, **change}, ID, "job.toml")
    assert "\n" not in str(caught.value)


def test_a_job_file_is_toml_with_plain_input_paths() -> None:
    table = read_job_file('command = "run.sh"\ninput_files = ["run.sh", "data/x"]\n', "job.toml")
    assert table["input_files"] == ["run.sh", "data/x"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("command = x", "job.toml: this is not TOML: .*line 1"),
        ('command = "x"\nid = "y"', "field id is given by the job manager"),
        ('command = "x"\ninput_files = [1]', "field input_files must be a list of texts"),
        ('command = "x"\noutput_file = ["a"]', "unknown field 'output_file'; did you mean output_files?"),
    ],
)
def test_a_wrong_job_file_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(JobMistake, match=words):
        read_job_file(text, "job.toml")


@pytest.mark.parametrize("text", ["", "x", "../../etc", str(UUID(int=7)).upper() + "0", f"{{{UUID(int=7)}}}"])
def test_only_a_uuid_in_its_usual_form_is_a_job_id(text: str) -> None:
    with pytest.raises(JobMistake, match="is not the id of a job"):
        job_id(text)


def test_every_state_has_its_moves_and_the_last_ones_none() -> None:
    assert set(LEGAL) == set(State)
    assert {State.DONE, State.FAILED, State.CANCELLED} == ENDED


@pytest.mark.parametrize("now", list(State))
@pytest.mark.parametrize("to", list(State))
def test_only_legal_moves_are_made(now: State, to: State) -> None:
    if to in LEGAL[now]:
        assert move(ID, now, to) is to
    else:
        with pytest.raises(IllegalMove, match=f"is {now} and cannot become {to}"):
            move(ID, now, to)
