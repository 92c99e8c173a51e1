# SPDX-License-Identifier: BSD-3-Clause
"""`make bench AREA=...`: measures one area and writes build/bench/AREA.json."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from rich.console import Console

from bench.figures import Figure, show, write
from cernvm.kit.errors import EXIT_FAILED, EXIT_MISTAKE, EXIT_OK, Problem

AREAS: Final[Mapping[str, str]] = {
    "memory": "bench.memory",
    "publish": "bench.publish",
    "cvmfsd": "bench.cvmfsd",
    "cold": "bench.cold",
    "copilot": "bench.copilot",
}
"""Area -> the module whose `measure()` returns its figures."""


def main(argv: list[str]) -> int:
    """Measure the area named in `argv`; returns the exit status."""
    if len(argv) != 1 or argv[0] not in AREAS:
        print(f"bench: name one area that has a benchmark: make bench AREA={'|'.join(AREAS)}", file=sys.stderr)
        return EXIT_MISTAKE
    measure: Callable[[], list[Figure]] = importlib.import_module(AREAS[argv[0]]).measure
    try:
        figures = measure()
    except Problem as error:
        print(f"bench: {error}", file=sys.stderr)
        return EXIT_FAILED
    show(figures, Console())
    print(f"written to {write(argv[0], figures, Path('build/bench'))}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
