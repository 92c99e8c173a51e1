# SPDX-License-Identifier: BSD-3-Clause
"""Merging the jobs' histograms and drawing them.  No threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cernvm.kit.errors import Problem

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Merged:
    """Sums over all jobs; edges have one element more than counts."""

    events: int
    multiplicity: Counts
    multiplicity_edges: Counts
    eta: Counts
    eta_edges: Counts


def merge(files: Sequence[Path]) -> Merged:
    """Add up the histogram files of all jobs.  Raises Problem when one does not fit the others."""
    events, multiplicity, eta = 0, None, None
    edges: tuple[Counts, Counts] | None = None
    for path in files:
        with np.load(path, allow_pickle=False) as data:
            mine = (data["multiplicity_edges"], data["eta_edges"])
            if edges is not None and not all(np.array_equal(a, b) for a, b in zip(mine, edges, strict=True)):
                raise Problem(f"{path}: its bins differ from those of the other jobs")
            edges = mine
            events += int(data["events"])
            multiplicity = data["multiplicity"] + (0 if multiplicity is None else multiplicity)
            eta = data["eta"] + (0 if eta is None else eta)
    if edges is None or multiplicity is None or eta is None:
        raise Problem("there are no histograms to merge")
    return Merged(events, multiplicity, edges[0], eta, edges[1])


def draw(merged: Merged, path: Path) -> None:
    """Draw charged multiplicity and pseudorapidity, normalised per event, into the PNG `path`."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(f"pp, 13 TeV, PYTHIA 8 SoftQCD:inelastic, {merged.events:,} events by Co-Pilot")
    _panel(left, merged.multiplicity, merged.multiplicity_edges, merged.events)
    left.set(xlabel="charged particles per event, $N_{ch}$", ylabel="$1/N_{ev}\\;dN_{ev}/dN_{ch}$", yscale="log")
    _panel(right, merged.eta, merged.eta_edges, merged.events)
    right.set(xlabel="pseudorapidity, $\\eta$", ylabel="$1/N_{ev}\\;dN_{ch}/d\\eta$", ylim=(0, None))
    figure.savefig(path, dpi=110)


def _panel(axes: Axes, counts: Counts, edges: Counts, events: int) -> None:
    """One histogram as steps, with its statistical errors."""
    widths = np.diff(edges)
    density = counts / widths / events
    errors = np.sqrt(counts) / widths / events
    axes.stairs(density, edges, color="#0033a0", linewidth=1.4)
    seen = counts > 0
    axes.errorbar(
        ((edges[:-1] + edges[1:]) / 2)[seen], density[seen], yerr=errors[seen], fmt="none", ecolor="#0033a0", alpha=0.5
    )
    axes.grid(alpha=0.25)
    axes.set_xlim(edges[0], edges[-1])
