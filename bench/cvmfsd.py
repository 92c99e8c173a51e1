# SPDX-License-Identifier: BSD-3-Clause
"""Reading through a mount: cold, warm and hot, beside the same files on the machine's own file system.

cold: nothing in the cache; warm: everything in the cache, kernel caches dropped, mounted anew; hot: again at once.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

from bench.figures import Figure, figure, seconds
from bench.trees import software
from tests.support.house import House, Repository

RUNS: Final = 3
FILES: Final = 2000
LARGE_MB: Final = 48
FQRN: Final = "bench.test.example"


def measure() -> list[Figure]:
    """Walk, read small files at random and one large file, `RUNS` times from cold."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        tree = Path(scratch) / "tree"
        software(tree, files=FILES, large_mb=LARGE_MB)
        repository = Repository(FQRN, Path(scratch) / "storage", Path(scratch) / "keys")
        repository.publish(tree)
        for run in range(RUNS):
            with House(Path(scratch) / f"house{run}", repositories=[repository], agents=0) as house:
                _series("cold", house.mount(FQRN), tree, times)
                house.cvmfsd.stop()
                _drop_kernel_caches()
                house.cvmfsd.start()
                _series("warm", house.mount(FQRN), tree, times)
                _series("hot", house.mount(FQRN), tree, times)
    return list(_figures(times))


def _series(state: str, mount: Path, tree: Path, times: dict[str, list[float]]) -> None:
    names = sorted(str(path.relative_to(tree)) for path in tree.glob("package*/module*"))
    Random(3).shuffle(names)
    work: dict[str, Callable[[Path], None]] = {
        "walk": _walk,
        "small": lambda root: _read(root, names),
        "large": lambda root: _read(root, ["grid.dat"]),
    }
    for what, doing in work.items():
        times.setdefault(f"{state} {what}", []).append(seconds(partial(doing, mount)))
        times.setdefault(f"{state} {what} local", []).append(seconds(partial(doing, tree)))


def _figures(times: dict[str, list[float]]) -> list[Figure]:
    amounts = {"walk": (FILES, "entries/s"), "small": (FILES, "files/s"), "large": (LARGE_MB * 1.048576, "MB/s")}
    found = []
    for state in ("cold", "warm", "hot"):
        for what, (amount, unit) in amounts.items():
            mine = [amount / value for value in times[f"{state} {what}"]]
            local = [amount / value for value in times[f"{state} {what} local"]]
            found.append(figure(f"{state}: {what}", unit, mine, ("same files, this disk", local)))
    return found


def _walk(root: Path) -> None:
    for directory, _, files in os.walk(root):
        for name in files:
            (Path(directory) / name).lstat()


def _read(root: Path, names: list[str]) -> None:
    for name in names:
        with (root / name).open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def _drop_kernel_caches() -> None:
    os.sync()
    control = Path("/proc/sys/vm/drop_caches")
    if os.access(control, os.W_OK):
        control.write_text("3")
