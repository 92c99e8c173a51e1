# SPDX-License-Identifier: BSD-3-Clause
"""Publishing: a whole tree, one changed file; beside a plain zlib pass over the same bytes on one core."""

from __future__ import annotations

import tempfile
import zlib
from functools import partial
from pathlib import Path
from typing import Final

from bench.figures import Figure, figure, seconds
from bench.trees import software
from cernvm.cvmfs.publish import create_repository, publish_tree

RUNS: Final = 3
FILES: Final = 5000
LARGE_MB: Final = 64
FQRN: Final = "bench.test.example"


def measure() -> list[Figure]:
    """Publish a tree of 5,000 small files and one of 64 MB, `RUNS` times, and change a file each time."""
    whole, alone, changed = [], [], []
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        tree = Path(scratch) / "tree"
        megabytes = software(tree, files=FILES, large_mb=LARGE_MB) / 1e6
        for run in range(RUNS):
            storage, keys = Path(scratch) / f"storage{run}", Path(scratch) / f"keys{run}"
            create_repository(FQRN, storage, keys)
            publish = partial(publish_tree, FQRN, tree, storage, keys)
            whole.append(megabytes / seconds(publish))
            alone.append(megabytes / seconds(partial(_deflate, tree)))
            (tree / "package000" / "module00.py").write_text(f"changed in run {run}\n")
            changed.append(seconds(publish))
    return [
        figure(f"publish {FILES} files and {LARGE_MB} MB", "MB/s", whole, ("zlib level 6 alone, one core", alone)),
        figure("publish one changed file", "s", changed),
    ]


def _deflate(tree: Path) -> None:
    for path in tree.rglob("*"):
        if path.is_file():
            zlib.compress(path.read_bytes(), 6)
