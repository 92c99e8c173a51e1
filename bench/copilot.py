# SPDX-License-Identifier: BSD-3-Clause
"""Co-Pilot: complete cycles of jobs of zero length (queue, XMPP, sandbox, upload, acceptance) through a whole house.

Beside it the same program run as often by plain fork and exec, one after the other: what the gateway adds.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

from bench.figures import Figure, figure, seconds
from cernvm.kit.errors import Problem
from tests.support.house import House
from tests.support.server import wait_until

RUNS: Final = 3
JOBS: Final = 40
PROGRAM: Final = "/bin/true"


def measure() -> list[Figure]:
    """Submit `JOBS` jobs and wait until all are done, `RUNS` times, with two agents."""
    rates, alone = [], []
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch, House(Path(scratch) / "house", agents=2) as house:
        for _ in range(RUNS):
            jobs = _run(house)
            first, last = min(job["leased"] for job in jobs), max(job["finished"] for job in jobs)
            rates.append(JOBS / (last - first))
            alone.append(JOBS / seconds(lambda: [subprocess.run([PROGRAM], check=True) for _ in range(JOBS)]))
    return [figure("job cycles, two agents, Prosody", "jobs/s", rates, ("plain fork and exec", alone))]


def _run(house: House) -> list[dict[str, Any]]:
    ids = {house.hand_in({"name": "empty", "command": PROGRAM}) for _ in range(JOBS)}

    def ended() -> bool:
        states = [job["state"] for job in house.jobs() if job["id"] in ids]
        if "failed" in states:
            raise Problem("a job of zero length failed; this machine cannot be measured")
        return states.count("done") == len(ids)

    wait_until(ended, seconds=300, what=f"{JOBS} jobs done")
    return [job for job in house.jobs() if job["id"] in ids]
