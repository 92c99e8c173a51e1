# SPDX-License-Identifier: BSD-3-Clause
"""What the demo shows: a live table while jobs run, the final table, and a summary for machines.  No threads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

COLOURS = {"done": "green", "failed": "red", "cancelled": "red", "running": "cyan", "storing": "yellow"}


@dataclass(frozen=True)
class Row:
    """One finished job; `seconds` of wall clock from lease to acceptance, `fetched` in bytes over the network."""

    job: str
    name: str
    state: str
    agent: str
    seconds: float
    attempts: int
    events: int
    cache_hits: int
    bytes_fetched: int
    reason: str


class Watch:
    """The live display: a bar over all jobs and a line for each, or plain lines where there is no terminal."""

    def __init__(self, total: int, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]jobs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self._task = self._progress.add_task("jobs", total=total)
        self._said: dict[str, str] = {}

    def update(self, jobs: Sequence[Mapping[str, Any]], ended: int) -> RenderableType:
        """Take the present list of jobs; returns what a terminal shows (elsewhere changes are printed)."""
        self._progress.update(self._task, completed=ended)
        if not self._console.is_terminal:
            for job in jobs:
                if self._said.get(job["id"]) != job["state"]:
                    self._said[job["id"]] = job["state"]
                    line = f"demo: {job['name']}: {job['state']} {agent_name(job)}".rstrip()
                    self._console.print(line, soft_wrap=True, highlight=False)
        table = Table(box=None, pad_edge=False)
        for title in ("job", "state", "agent"):
            table.add_column(title)
        for job in sorted(jobs, key=lambda j: str(j["name"])):
            colour = COLOURS.get(job["state"], "default")
            table.add_row(job["name"], f"[{colour}]{job['state']}[/]", agent_name(job))
        return Group(table, self._progress)


def agent_name(job: Mapping[str, Any]) -> str:
    """The short name of the agent that holds or held a job."""
    return str(job.get("agent") or "").partition("@")[0]


def final_table(rows: Sequence[Row]) -> Table:
    """The table that the demo ends with."""
    table = Table("job", "agent", "seconds", "events", "cache hits", "bytes fetched", "result")
    table.caption = "cache hits and bytes fetched: of the cvmfsd that all agents share, while the job ran"
    for column in table.columns[2:6]:
        column.justify = "right"
    for row in rows:
        colour = COLOURS.get(row.state, "default")
        figures = (f"{row.seconds:.1f}", f"{row.events:,}", f"{row.cache_hits:,}", f"{row.bytes_fetched:,}")
        result = f"[{colour}]{row.state}[/]" + (f" {row.reason}" if row.reason else "")
        table.add_row(row.name, row.agent, *figures, result)
    return table


def write_summary(path: Path, rows: Sequence[Row], **facts: object) -> None:
    """Write the machine-readable summary."""
    summary = {**facts, "jobs": [asdict(row) for row in rows]}
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
