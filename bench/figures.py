# SPDX-License-Identifier: BSD-3-Clause
"""What a measurement is, and how it is written down.  No threads.

`build/bench/AREA.json` is a list of objects {name, value, unit, runs, min, max, beside}; `value` is the median of
`runs` runs, `beside` the median of the comparison measured in turn with them (machines are noisy: only the ratio of
one run means something), or null.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Beside:
    """The comparison: what it was and its median, in the figure's unit."""

    name: str
    value: float


@dataclass(frozen=True)
class Figure:
    """One measured figure."""

    name: str
    value: float
    unit: str
    runs: int
    min: float
    max: float
    beside: Beside | None = None


def figure(name: str, unit: str, values: Sequence[float], beside: tuple[str, Sequence[float]] | None = None) -> Figure:
    """Sum up `values` of several runs, and those of the comparison `beside` = (its name, its values)."""
    other = Beside(beside[0], statistics.median(beside[1])) if beside else None
    return Figure(name, statistics.median(values), unit, len(values), min(values), max(values), other)


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` took."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def write(area: str, figures: Sequence[Figure], directory: Path) -> Path:
    """Write the figures of `area`; returns the file."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{area}.json"
    path.write_text(json.dumps([asdict(f) for f in figures], indent=2) + "\n", encoding="utf-8")
    return path


def show(figures: Sequence[Figure], console: Console) -> None:
    """Print the figures as a table."""
    table = Table("figure", "median", "min", "max", "runs", "beside", "ratio")
    for one in figures:
        beside = f"{one.beside.value:,.3g} ({one.beside.name})" if one.beside else ""
        ratio = f"{one.value / one.beside.value:.2f}" if one.beside and one.beside.value else ""
        row = (f"{one.value:,.4g} {one.unit}", f"{one.min:,.4g}", f"{one.max:,.4g}", str(one.runs), beside, ratio)
        table.add_row(one.name, *row)
    console.print(table)
