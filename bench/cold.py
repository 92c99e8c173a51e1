# SPDX-License-Identifier: BSD-3-Clause
"""Cold starts over a network: numpy and PYTHIA from an empty cache, at several round-trip times.

Server and client are in two network namespaces (`bench.latency`).  Beside each figure: the same program with the same
files on this disk.  Needs root.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench.figures import Figure, figure, seconds
from bench.latency import delayed_link
from cernvm.kit.errors import Problem
from demo.software import lay_out
from tests.support.house import Apart, House, Repository

RUNS: Final = 2
FQRN: Final = "cold.bench.example"
ROUND_TRIPS_MS: Final = (0, 20, 100)

PROGRAMS: Final = {
    "import numpy": "import numpy, numpy.fft, numpy.linalg, numpy.random",
    "PYTHIA, 20 events": """
import pythia8mc
pythia = pythia8mc.Pythia("", False)
for setting in ("Beams:eCM = 13000.", "HardQCD:all = on", "PhaseSpace:pTHatMin = 20.", "Print:quiet = on"):
    pythia.readString(setting)
pythia.init()
for _ in range(20):
    pythia.next()
""",
}


def measure() -> list[Figure]:
    """Run each program `RUNS` times at each round-trip time, each from an empty cache; count the requests."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        tree = Path("build/bench/software").absolute()
        tree.parent.mkdir(parents=True, exist_ok=True)
        lay_out(tree)
        repository = Repository(FQRN, Path(scratch) / "storage", Path(scratch) / "keys")
        repository.publish(tree)
        for milliseconds in ROUND_TRIPS_MS:
            for name, program in PROGRAMS.items():
                times, requests, local = [], [], []
                for run in range(RUNS):
                    place = Path(scratch) / f"{milliseconds}-{len(figures)}-{run}"
                    took, count = _cold(place, repository, milliseconds / 1000, program)
                    times.append(took)
                    requests.append(float(count))
                    local.append(_run(program, tree))
                title = f"{name}, cold, RTT {milliseconds} ms"
                figures.append(figure(title, "s", times, ("same files, this disk", local)))
                figures.append(figure(f"{title}: requests", "", requests))
    return figures


def _cold(place: Path, repository: Repository, round_trip: float, program: str) -> tuple[float, int]:
    """Mount with an empty cache, run; returns seconds and HTTP requests."""
    with delayed_link(round_trip) as (server, client):
        apart = Apart(server.enter, client.enter, server.address)
        with House(place, repositories=[repository], agents=0, apart=apart) as house:
            root = house.mount(repository.fqrn)
            took = _run(program, root)
            return took, house.web.hits("/cvmfs/")


def _run(program: str, root: Path) -> float:
    (pythia,), (numpy,) = (list((root / name).iterdir()) for name in ("pythia8", "numpy"))
    environment = {
        **os.environ,
        "PYTHONPATH": f"{pythia}:{numpy}",
        "PYTHIA8DATA": str(pythia / "share" / "Pythia8" / "xmldoc"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    python = str(Path(sys.executable).resolve())

    def run() -> None:
        done = subprocess.run([python, "-c", program], env=environment, capture_output=True, timeout=600, check=False)
        if done.returncode:
            raise Problem(f"the measured program failed: {done.stderr.decode(errors='replace')[-300:]}")

    return seconds(run)
