# SPDX-License-Identifier: BSD-3-Clause
"""The demo itself: real PYTHIA, few events; and what is left of it when somebody types Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from demo.histograms import merge
from tests.support.daemon import ROOT, project_environment
from tests.support.house import mounted_below, processes_naming

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for all runs here, so that the wheels are fetched once."""
    return tmp_path_factory.mktemp("demo")


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "demo", "--directory", str(place), *arguments]
    environment = {**project_environment({}), "PYTHONPATH": f"{ROOT / 'daemons'}:{ROOT}"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def assert_nothing_runs(place: Path) -> None:
    assert mounted_below(place) == []
    assert processes_naming(str(place)) == []


def assert_nothing_is_left(place: Path) -> None:
    assert_nothing_runs(place)
    assert [path for path in place.rglob("*") if path.is_socket()] == []


def test_the_demo_ends_with_exact_figures_and_a_picture(place: Path) -> None:
    with start(place, "--jobs", "3", "--events", "40") as demo:
        output, complaint = demo.communicate(timeout=300)
    assert demo.returncode == 0, complaint
    assert output.splitlines()[-1] == "demo: 3 of 3 jobs done, 120 events, 0 failed"
    summary = json.loads((place / "summary.json").read_text())
    assert summary["good"]
    assert summary["events"] == 120
    assert {job["state"] for job in summary["jobs"]} == {"done"}
    assert sum(job["bytes_fetched"] for job in summary["jobs"]) > 10_000_000, "the software came over the network"
    assert (place / "histograms.png").read_bytes().startswith(b"\x89PNG")
    files = sorted(place.glob("results/*/histograms.npz"))
    merged = merge(files)
    assert merged.multiplicity.sum() == 120
    assert merged.eta.sum() > 120 * 20, "real events have many charged particles"
    with np.load(files[0]) as one, np.load(files[1]) as two:
        assert not np.array_equal(one["eta"], two["eta"]), "different seeds make different events"
    assert_nothing_is_left(place)


def test_an_interrupted_demo_leaves_nothing_behind(place: Path) -> None:
    with start(place, "--jobs", "2", "--events", "100000") as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if ": running" in line:
                break
        time.sleep(1.0)  # somewhere inside the physics
        demo.send_signal(signal.SIGINT)
        _, complaint = demo.communicate(timeout=90)
    assert demo.returncode == 128 + signal.SIGINT
    assert complaint.strip() == "demo: interrupted; everything that it started is stopped"
    assert_nothing_is_left(place)


def test_a_killed_demo_takes_its_house_with_it(place: Path) -> None:
    with start(place, "--jobs", "1", "--events", "100000") as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if ": running" in line:
                break
        demo.kill()
        demo.wait(10)
    deadline = time.monotonic() + 60
    while processes_naming(str(place)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert_nothing_runs(place)


def test_a_mistake_is_one_sentence(place: Path) -> None:
    with start(place, "--jobs", "0") as demo:
        _, complaint = demo.communicate(timeout=60)
    assert demo.returncode == 2
    assert complaint.splitlines()[-1].endswith("--jobs, --agents and --events are at least 1")
