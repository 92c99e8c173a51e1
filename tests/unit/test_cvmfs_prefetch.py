# SPDX-License-Identifier: BSD-3-Clause
"""What is fetched ahead, and what is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cernvm.cvmfs.errors import Unreachable
from cernvm.cvmfs.prefetch import CHUNKS_AHEAD, FREE_BYTES, PAUSE, Prefetcher
from cernvm.cvmfs.publish import create_repository, publish_tree
from tests.support.storage import StorageView

FQRN = "ahead.test.example"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def shown(tmp_path: Path) -> StorageView:
    tree = tmp_path / "tree"
    (tree / "package").mkdir(parents=True)
    for number in range(80):
        (tree / "package" / f"module{number:02d}.py").write_text(f"number = {number}\n" * 50)
    (tree / "package" / "huge.dat").write_bytes(os.urandom(400_000))
    (tree / "package" / "empty.py").touch()
    (tree / "other").mkdir()
    for name in ("a.py", "b.py", "c.py"):
        (tree / "other" / name).write_text(name)
    create_repository(FQRN, tmp_path / "storage", tmp_path / "keys")
    publish_tree(FQRN, tree, tmp_path / "storage", tmp_path / "keys")
    return StorageView(tmp_path / "storage", tmp_path / "cache")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ahead(shown: StorageView, clock: Clock) -> Iterator[Prefetcher]:
    prefetcher = Prefetcher(shown.objects, width=4, clock=clock)
    yield prefetcher
    prefetcher.close()


def miss(shown: StorageView, ahead: Prefetcher, name: str) -> None:
    tree = shown.view.tree
    path = os.path.normpath(f"/package/{name}").encode()
    located = tree.find(path)
    assert located is not None
    ahead.missed(tree, path, located.entry)


def files_taken(shown: StorageView) -> int:
    return sum(not path.endswith("C") for path in shown.storage.taken)


def test_the_second_missing_file_of_a_directory_brings_its_small_siblings(
    shown: StorageView, ahead: Prefetcher
) -> None:
    miss(shown, ahead, "module05.py")
    assert ahead.settled(10)
    assert files_taken(shown) == 0, "one file is no habit"
    miss(shown, ahead, "module06.py")
    assert ahead.settled(10)
    assert files_taken(shown) == 79, "all small ones but the first; neither the large nor the empty one"
    miss(shown, ahead, "module07.py")
    assert ahead.settled(10)
    assert files_taken(shown) == 79, "nothing twice"


def test_after_a_failure_nothing_is_fetched_ahead_for_a_while(
    shown: StorageView, ahead: Prefetcher, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = shown.objects.open

    def fail(*_: object, **__: object) -> None:
        raise Unreachable("the network is down")

    monkeypatch.setattr(shown.objects, "open", fail)
    miss(shown, ahead, "module00.py")
    miss(shown, ahead, "module01.py")
    assert ahead.settled(10)
    monkeypatch.setattr(shown.objects, "open", good)
    miss(shown, ahead, "module02.py")
    assert ahead.settled(10)
    assert files_taken(shown) == 0
    clock.now += PAUSE
    miss(shown, ahead, "../other/b.py")
    assert ahead.settled(10)
    assert files_taken(shown) == 2, "and then again; a small directory comes along at once"


def test_what_is_fetched_ahead_stays_within_its_allowance(
    shown: StorageView, ahead: Prefetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cernvm.cvmfs.prefetch.FREE_BYTES", 5 * 650)
    miss(shown, ahead, "module00.py")
    miss(shown, ahead, "module01.py")
    assert ahead.settled(10)
    wanted = 2 * 600
    assert files_taken(shown) <= max(5 * 650, 4 * wanted) // 600 + 1
    assert FREE_BYTES > 1 << 20


def test_the_next_chunks_of_a_large_file_come_along(tmp_path: Path, clock: Clock) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "large").write_bytes(os.urandom(40 << 20))
    create_repository(FQRN, tmp_path / "storage", tmp_path / "keys")
    publish_tree(FQRN, tree, tmp_path / "storage", tmp_path / "keys")
    shown = StorageView(tmp_path / "storage", tmp_path / "cache")
    located = shown.view.tree.find(b"/large")
    assert located is not None
    chunks = located.catalog.chunks(located.entry)
    ahead = Prefetcher(shown.objects, width=4, clock=clock)
    ahead.missed_chunk(chunks, 0)
    assert ahead.settled(20)
    assert files_taken(shown) == min(CHUNKS_AHEAD, len(chunks) - 1)
    ahead.close()


def test_a_width_of_nothing_fetches_nothing_ahead(shown: StorageView, clock: Clock) -> None:
    ahead = Prefetcher(shown.objects, width=0, clock=clock)
    for name in ("module00.py", "module01.py", "../other/a.py"):
        miss(shown, ahead, name)
    assert ahead.settled(10)
    assert files_taken(shown) == 0
