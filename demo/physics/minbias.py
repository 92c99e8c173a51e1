# SPDX-License-Identifier: BSD-3-Clause
"""Inelastic proton-proton collisions at 13 TeV with PYTHIA 8: what a physicist sends as a job.

Runs with the software that the repository delivers (setup.sh) and knows nothing of CernVM.  Writes
`histograms.npz` (counts, edges and the number of events) and, at the end, one line to standard output.
"""

import argparse

import numpy as np
import pythia8mc

ENERGY_GEV = 13000.0
MULTIPLICITY_EDGES = np.arange(0.0, 401.0, 8.0)
ETA_EDGES = np.linspace(-8.0, 8.0, 65)


def main() -> None:
    """Generate --events events with --seed and write the histograms of their charged particles."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--output", required=True)
    options = parser.parse_args()

    pythia = pythia8mc.Pythia("", False)
    for setting in (
        f"Beams:eCM = {ENERGY_GEV}",
        "SoftQCD:inelastic = on",
        "Random:setSeed = on",
        f"Random:seed = {options.seed}",
        "Print:quiet = on",
    ):
        if not pythia.readString(setting):
            raise SystemExit(f"PYTHIA does not know the setting {setting!r}")
    if not pythia.init():
        raise SystemExit("PYTHIA could not be initialised")

    multiplicities: list[int] = []
    etas: list[float] = []
    while len(multiplicities) < options.events:
        if not pythia.next():
            continue  # PYTHIA gives up an event now and then; it does not count
        charged = [p.eta() for p in pythia.event if p.isFinal() and p.isCharged()]
        multiplicities.append(len(charged))
        etas += charged

    overflow = np.clip(multiplicities, MULTIPLICITY_EDGES[0], np.nextafter(MULTIPLICITY_EDGES[-1], 0))
    np.savez(
        options.output,
        events=len(multiplicities),
        seed=options.seed,
        multiplicity=np.histogram(overflow, MULTIPLICITY_EDGES)[0],
        multiplicity_edges=MULTIPLICITY_EDGES,
        eta=np.histogram(etas, ETA_EDGES)[0],
        eta_edges=ETA_EDGES,
    )
    print(f"{len(multiplicities)} events, {len(etas)} charged particles, seed {options.seed}")


if __name__ == "__main__":
    main()
