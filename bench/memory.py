# SPDX-License-Identifier: BSD-3-Clause
"""Resident memory of a mount's worker after every entry of a repository was looked at, for two sizes of repository.

Beside each figure: the same worker right after the mount.  The files are empty, so that only names are measured.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from bench.figures import Figure, figure
from cernvm.kit.errors import Problem
from tests.support.house import House, Repository

SIZES: Final = (25_000, 100_000)
FQRN: Final = "memory.bench.example"
_PER_DIRECTORY: Final = 500
_DIRECTORIES_PER_CATALOG: Final = 10


def measure() -> list[Figure]:
    """Publish, mount, walk with `lstat` and weigh, for each size; then the bytes for each further entry."""
    figures, after = [], []
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        for entries in SIZES:
            place = Path(scratch) / str(entries)
            _make(place / "tree", entries)
            repository = Repository(FQRN, place / "storage", place / "keys")
            repository.publish(place / "tree")
            with House(place / "house", repositories=[repository], agents=0) as house:
                root = house.mount(FQRN)
                before = _resident_mb(house)
                seen = _walk(root)
                after.append(_resident_mb(house))
            if seen < entries:
                raise Problem(f"only {seen} of {entries} entries were seen")
            beside = ("right after the mount", [before])
            figures.append(figure(f"worker after walking {entries:,} entries", "MB", after[-1:], beside))
    each = (after[1] - after[0]) * 1e6 / (SIZES[1] - SIZES[0])
    return [*figures, figure("for each further entry", "bytes", [each])]


def _make(tree: Path, entries: int) -> None:
    for number in range(entries // _PER_DIRECTORY):
        directory = tree / f"part{number // _DIRECTORIES_PER_CATALOG:03d}" / f"directory{number:04d}"
        directory.mkdir(parents=True)
        if number % _DIRECTORIES_PER_CATALOG == 0:
            (directory.parent / ".cvmfscatalog").touch()
        for name in range(_PER_DIRECTORY):
            (directory / f"some_module_name_{name:04d}.py").touch()


def _walk(root: Path) -> int:
    seen = 0
    for directory, _, files in os.walk(root):
        for name in files:
            os.lstat(f"{directory}/{name}")
        seen += len(files)
    return seen


def _resident_mb(house: House) -> float:
    """VmRSS of the worker process, the child of cvmfsd that carries the mount."""
    parent = house.cvmfsd.process.pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for child in children:
        if b"cernvm.cvmfsd.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
            for line in Path(f"/proc/{child}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024 / 1e6
    raise Problem("cvmfsd has no worker to weigh")
