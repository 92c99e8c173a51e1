# SPDX-License-Identifier: BSD-3-Clause
"""`make demo`: publish PYTHIA 8, start the house on loopback, run the physicist's jobs, check and draw what came back.

Exit status 0 only if every job is done, every output's checksum matches and the merged number of events is exact.
What it starts it also ends, on success, failure or Ctrl-C.  One thread.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.live import Live

from cernvm.kit.errors import EXIT_FAILED, EXIT_OK, Problem, sentence
from demo.histograms import draw, merge
from demo.report import Row, Watch, agent_name, final_table, write_summary
from demo.software import lay_out
from tests.support.house import House, Repository, tidy
from tests.support.server import ServerFailed

FQRN: Final = "software.demo.example"
ENDED: Final = ("done", "failed", "cancelled")
HERE: Final = Path(__file__).parent
OUTPUT: Final = "histograms.npz"
JOB_DEADLINE: Final = 900.0

JOB_FILE: Final = """\
# One of {count} Monte-Carlo jobs: inelastic proton-proton collisions at 13 TeV.
name = "minbias-{number:02d}"
command = "/bin/sh"
arguments = ["run.sh", "{seed}", "{events}"]
input_files = ["{inputs}/run.sh", "{inputs}/minbias.py"]
output_files = ["{output}"]
packages = [
    {{ repository = "{fqrn}", path = "pythia8" }},
    {{ repository = "{fqrn}", path = "numpy" }},
]

[environment]
PYTHON = "{python}"

[limits]
wall_seconds = {wall}
memory_mb = 2048
"""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    jobs: int
    agents: int
    events: int
    directory: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    options = _options(argv)
    console = Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    options.directory.mkdir(parents=True, exist_ok=True)
    try:
        return _run(options, console)
    except KeyboardInterrupt:
        print("demo: interrupted; everything that it started is stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except (Problem, ServerFailed, OSError, TimeoutError) as error:
        print(f"demo: {sentence(error)}", file=sys.stderr)
        return EXIT_FAILED


def say(console: Console, text: str) -> None:
    """Print one plain line."""
    console.print(f"demo: {text}", soft_wrap=True, highlight=False)


def _options(argv: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--agents", type=int, default=2)
    parser.add_argument("--events", type=int, default=1000, help="events of each job")
    parser.add_argument("--directory", type=Path, default=Path("build/demo"))
    given = parser.parse_args(argv)
    if min(given.jobs, given.agents, given.events) < 1:
        parser.error("--jobs, --agents and --events are at least 1")
    return Options(given.jobs, given.agents, given.events, given.directory.absolute())


def _run(options: Options, console: Console) -> int:
    started = time.monotonic()
    scratch = options.directory / "run"
    tidy(scratch)
    software = _software(options.directory, console)
    say(console, f"starting the bus, Prosody, nginx, cvmfsd, managers and {options.agents} agents in {scratch}")
    with House(scratch, repositories=[software], agents=options.agents) as house:
        begun = time.monotonic()
        ids = _submit(house, options, console)
        jobs = _watch(house, ids, console)
        physics = time.monotonic() - begun
        files, mismatches = _collect(house, jobs, options.directory / "results", console)
        revision = house.mount_properties(FQRN)["Revision"]
    rows = [_row(job, files.get(job["id"])) for job in jobs]
    done = [row for row in rows if row.state == "done"]
    console.print(final_table(rows))
    merged = merge(list(files.values())) if files else None
    events = merged.events if merged else 0
    if merged:
        draw(merged, options.directory / "histograms.png")
        say(console, f"the histograms are drawn in {options.directory / 'histograms.png'}")
    exact = events == options.jobs * options.events == sum(row.events for row in done)
    good = len(done) == options.jobs and not mismatches and exact
    write_summary(
        options.directory / "summary.json",
        rows,
        good=good,
        events=events,
        events_wanted=options.jobs * options.events,
        checksum_mismatches=mismatches,
        repository_revision=revision,
        seconds_physics=round(physics, 1),
        seconds=round(time.monotonic() - started, 1),
    )
    for complaint in mismatches:
        print(f"demo: {complaint}", file=sys.stderr)
    if not exact:
        print(f"demo: {events} events were merged, {options.jobs * options.events} were asked for", file=sys.stderr)
    failed = options.jobs - len(done)
    print(f"demo: {len(done)} of {options.jobs} jobs done, {events} events, {failed} failed", flush=True)
    return EXIT_OK if good else EXIT_FAILED


def _software(directory: Path, console: Console) -> Repository:
    """Publish the software, unless the repository of an earlier run holds it."""
    tree = directory / "software"
    say(console, "laying out PYTHIA 8 and numpy from their wheels")
    changed = lay_out(tree)
    repository = Repository(FQRN, directory / "repository", directory / "keys")
    if repository.exists() and not changed:
        say(console, f"{FQRN} is published already")
        repository.resign()
        return repository
    say(console, f"publishing {FQRN}")
    repository.publish(tree)
    return repository


def _submit(house: House, options: Options, console: Console) -> list[str]:
    """Submit all jobs through copilotctl, as a physicist does; returns their ids."""
    files = []
    for number in range(1, options.jobs + 1):
        path = house.directory / f"minbias-{number:02d}.toml"
        path.write_text(
            JOB_FILE.format(
                count=options.jobs,
                number=number,
                seed=1000 + number,
                events=options.events,
                inputs=HERE / "physics",
                output=OUTPUT,
                fqrn=FQRN,
                python=Path(sys.executable).resolve(),
                wall=int(JOB_DEADLINE),
            )
        )
        files.append(path)

    def submit(path: Path) -> str:
        return str(json.loads(house.command("copilotctl", "submit", "--json", str(path)))["id"])

    with ThreadPoolExecutor(2) as pool:
        ids = list(pool.map(submit, files))
    say(console, f"{len(ids)} jobs of {options.events:,} events submitted")
    return ids


def _watch(house: House, ids: Sequence[str], console: Console) -> list[dict[str, Any]]:
    """Show the jobs until all have ended; returns them in order of submission.  Raises TimeoutError."""
    watch = Watch(len(ids), console)
    deadline = time.monotonic() + JOB_DEADLINE
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while True:
            jobs = {job["id"]: job for job in house.jobs() if job["id"] in ids}
            house.check()
            ended = sum(job["state"] in ENDED for job in jobs.values())
            shown = watch.update(list(jobs.values()), ended)
            if console.is_terminal:
                live.update(shown)
            if ended == len(ids):
                return [jobs[job] for job in ids]
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(ids) - ended} jobs have not ended within {JOB_DEADLINE:.0f} s")
            time.sleep(0.25)


def _collect(
    house: House, jobs: Sequence[dict[str, Any]], directory: Path, console: Console
) -> tuple[dict[str, Path], list[str]]:
    """Fetch the outputs of the done jobs; returns the histogram file by job id, and what was wrong with checksums."""
    files, mismatches = {}, []
    for job in jobs:
        if job["state"] != "done":
            continue
        place = directory / job["name"]
        try:
            house.command("copilotctl", "fetch", job["id"], str(place))
            files[job["id"]] = place / OUTPUT
        except Problem as error:
            mismatches.append(f"{job['name']}: {error}")
    say(console, f"the outputs of {len(files)} jobs are in {directory}, checksums compared")
    return files, mismatches


def _row(job: dict[str, Any], histograms: Path | None) -> Row:
    usage = job.get("usage") or {}
    return Row(
        job=job["id"],
        name=job["name"],
        state=job["state"],
        agent=agent_name(job),
        seconds=float(job["finished"] or 0) - float(job["leased"] or 0),
        attempts=int(job["attempt"]),
        events=merge([histograms]).events if histograms else 0,
        cache_hits=int(usage.get("cache_hits", 0)),
        bytes_fetched=int(usage.get("bytes_fetched", 0)),
        reason=str(job.get("reason") or ""),
    )


if __name__ == "__main__":
    sys.exit(main())
