# SPDX-License-Identifier: BSD-3-Clause
"""Reading through a mount, by each adapter: cold, warm and hot, beside the same files on the machine's own disk.

cold: nothing in the cache; warm: everything in the cache, kernel caches dropped, mounted anew; hot: again at once.
The adapters take turns, so that what else the machine does falls on both.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

from bench.figures import Figure, figure, seconds
from bench.trees import software
from tests.support.house import House, Repository

RUNS: Final = 3
ADAPTERS: Final = ("kernel", "llfuse")
STATES: Final = ("cold", "warm", "hot")
FILES: Final = 5000
LARGE_MB: Final = 96
HOT: Final = 9
"""How often hot work is measured per run, in turn with the local disk: it is short."""
FQRN: Final = "bench.test.example"
Times = dict[str, list[float]]


def measure() -> list[Figure]:
    """Walk, read small files at random and one large file, `RUNS` times from cold, by each adapter."""
    times: dict[str, Times] = {adapter: {} for adapter in ADAPTERS}
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        tree = Path(scratch) / "tree"
        software(tree, files=FILES, large_mb=LARGE_MB)
        repository = Repository(FQRN, Path(scratch) / "storage", Path(scratch) / "keys")
        repository.publish(tree)
        for run in range(RUNS):
            for adapter in ADAPTERS:
                directory = Path(scratch) / f"{adapter}{run}"
                with House(directory, repositories=[repository], agents=0, fuse=adapter) as house:
                    _series("cold", house.mount(FQRN), tree, times[adapter])
                    house.cvmfsd.stop()
                    _drop_kernel_caches()
                    house.cvmfsd.start()
                    _series("warm", house.mount(FQRN), tree, times[adapter])
                    _series("hot", house.mount(FQRN), tree, times[adapter])
    return [one for adapter in ADAPTERS for one in _figures(adapter, times[adapter])]


def _series(state: str, mount: Path, tree: Path, times: Times) -> None:
    names = sorted(str(path.relative_to(tree)) for path in tree.glob("package*/module*"))
    Random(3).shuffle(names)
    work: Mapping[str, Callable[[Path], None]] = {
        "walk and lstat": _walk,
        "open, read, close at random": lambda root: _read_at_random(root, names),
        "one large file": _read_large,
    }
    for what, doing in work.items():
        for _ in range(HOT if state == "hot" else 1):
            times.setdefault(f"{state}: {what}", []).append(seconds(partial(doing, mount)))
            times.setdefault(f"{state}: {what}, local", []).append(seconds(partial(doing, tree)))


def _figures(adapter: str, times: Times) -> list[Figure]:
    found = []
    for state in STATES:
        amounts = {
            "walk and lstat": (FILES, "entries/s"),
            "open, read, close at random": (FILES, "files/s"),
            "one large file": (LARGE_MB * 1.048576, "MB/s"),
        }
        for what, (amount, unit) in amounts.items():
            mine = [amount / value for value in times[f"{state}: {what}"]]
            local = [amount / value for value in times[f"{state}: {what}, local"]]
            found.append(figure(f"{adapter}, {state}: {what}", unit, mine, ("same files, this disk", local)))
    return found


def _walk(root: Path) -> None:
    for directory, _, files in os.walk(root):
        for name in files:
            os.lstat(f"{directory}/{name}")


def _read_at_random(root: Path, names: list[str]) -> None:
    for name in names:
        descriptor = os.open(f"{root}/{name}", os.O_RDONLY)
        os.read(descriptor, 1 << 16)
        os.close(descriptor)


def _read_large(root: Path) -> None:
    with (root / "grid.dat").open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def _drop_kernel_caches() -> None:
    os.sync()
    control = Path("/proc/sys/vm/drop_caches")
    if os.access(control, os.W_OK):
        control.write_text("3")
