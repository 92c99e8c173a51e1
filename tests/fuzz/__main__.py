# SPDX-License-Identifier: BSD-3-Clause
"""The long run: `python -m tests.fuzz --minutes 30 [--seed N] [--into DIRECTORY]` keeps what breaks a parser."""

from __future__ import annotations

import argparse
import faulthandler
import json
import sys
import time
import traceback
from pathlib import Path

from tests.fuzz.runner import Finding, run


def main() -> int:
    """Attack until the time is over; 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--into", type=Path, default=Path("build/fuzz"))
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    faulthandler.enable()
    found = 0

    def keep(finding: Finding) -> None:
        nonlocal found
        found += 1
        name = options.into / f"{finding.target}-{options.seed}-{found}"
        name.write_bytes(finding.data)
        told = "".join(traceback.format_exception(finding.error)) if finding.error else f"{finding.seconds:.1f} s"
        name.with_suffix(".txt").write_text(told)
        print(f"{name}: {finding.error!r} after {finding.seconds:.3f} s", flush=True)

    begun = time.monotonic()
    counts = run(options.seed, keep, seconds=60 * options.minutes)
    minutes = (time.monotonic() - begun) / 60
    result = {"seed": options.seed, "minutes": round(minutes, 2), "findings": found, "runs": counts}
    (options.into / f"run-{options.seed}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
