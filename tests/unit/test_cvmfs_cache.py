# SPDX-License-Identifier: BSD-3-Clause
"""The disk cache: whole or not there, a limit, pins, and order after a crash."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cernvm.cvmfs.cache import Cache
from cernvm.cvmfs.cache_owner import CacheOwner
from cernvm.cvmfs.errors import CacheFull, Mistake

BLOCK = 4096


class Clock:
    """A time that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def name(number: int) -> str:
    return f"{number:040x}"


def put(cache: Cache, number: int, size: int = BLOCK) -> None:
    with cache.writing(name(number)) as fd:
        os.write(fd, bytes([number]) * size)


def used_at(cache: Cache, number: int, when: float) -> None:
    file = cache.directory / name(number)[:2] / name(number)[2:]
    os.utime(file, (when, when))


def here(cache: Cache, *numbers: int) -> list[int]:
    return [number for number in numbers if (cache.directory / name(number)[:2] / name(number)[2:]).exists()]


def test_an_object_is_there_after_its_writing_and_not_before(tmp_path: Path) -> None:
    cache = Cache(tmp_path, None)
    with cache.writing(name(1)) as fd:
        os.write(fd, b"content")
        assert cache.open(name(1)) is None
    opened = cache.open(name(1))
    assert opened is not None
    assert (opened.read(3, 100), opened.size, cache.used()) == (b"tent", 7, BLOCK)
    assert (tmp_path / name(1)[:2] / name(1)[2:]).stat().st_mode & 0o777 == 0o600


def fail_halfway(cache: Cache) -> None:
    with cache.writing(name(1)) as fd:
        os.write(fd, b"half")
        raise KeyError


def test_a_writing_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path, None)
    with pytest.raises(KeyError):
        fail_halfway(cache)
    assert cache.open(name(1)) is None
    assert list((tmp_path / "txn").iterdir()) == []
    assert cache.used() == 0


def test_what_was_used_least_recently_goes_until_half_is_left(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10 * BLOCK)
    for number in range(10):
        put(cache, number)
        used_at(cache, number, 100.0 + (number if number else 50))
    put(cache, 10)
    assert here(cache, *range(11)) == [0, 6, 7, 8, 9, 10]
    assert cache.used() == 6 * BLOCK


def test_a_use_counts_at_most_once_a_minute(tmp_path: Path) -> None:
    clock = Clock()
    cache = Cache(tmp_path, None, clock=clock)
    put(cache, 1)
    file = tmp_path / name(1)[:2] / name(1)[2:]
    used_at(cache, 1, clock.now - 30)
    assert cache.open(name(1)) is not None
    assert file.stat().st_atime == clock.now - 30
    clock.now += 100
    assert cache.open(name(1)) is not None
    assert file.stat().st_atime == clock.now


def test_pinned_objects_stay_and_open_ones_stay_readable(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 4 * BLOCK)
    for number in range(4):
        put(cache, number)
        used_at(cache, number, 100.0 + number)
    pinned, opened = cache.open(name(0)), cache.open(name(1))
    assert pinned is not None
    assert opened is not None
    pinned.pin()
    for number in (0, 1):
        used_at(cache, number, 100.0 + number)
    put(cache, 4)
    assert here(cache, *range(5)) == [0, 3, 4]
    assert opened.read(0, 1) == b"\x01"
    del pinned
    for number in (5, 6):
        put(cache, number)
    assert 0 not in here(cache, 0)


def test_an_object_larger_than_half_the_limit_is_refused(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 4 * BLOCK)
    put(cache, 1, 2 * BLOCK)
    with pytest.raises(CacheFull, match="larger than half"):
        put(cache, 2, 2 * BLOCK + 1)
    assert here(cache, 1, 2) == [1]


def test_two_processes_see_one_size(tmp_path: Path) -> None:
    one, two = Cache(tmp_path, None), Cache(tmp_path, None)
    put(one, 1)
    put(two, 2)
    put(two, 2)
    assert one.used() == two.used() == 2 * BLOCK
    one.forget(name(2))
    one.forget(name(2))
    assert two.used() == BLOCK


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Mistake, match=r"file: the cache cannot be used"):
        Cache(tmp_path / "file", None)


def test_one_daemon_owns_a_cache(tmp_path: Path) -> None:
    with CacheOwner(tmp_path):
        with pytest.raises(Mistake, match="another cvmfsd uses this cache directory"):
            CacheOwner(tmp_path)
    with CacheOwner(tmp_path):
        pass


def test_a_start_counts_anew_and_removes_leftovers(tmp_path: Path) -> None:
    cache = Cache(tmp_path, None)
    put(cache, 1)
    (tmp_path / "txn" / "fetch-left").write_bytes(b"half")
    put(cache, 2)
    (tmp_path / name(2)[:2] / name(2)[2:]).unlink()
    with CacheOwner(tmp_path) as owner:
        owner.tidy(b"boot-1")
    assert list((tmp_path / "txn").iterdir()) == []
    assert Cache(tmp_path, None).used() == BLOCK


def test_after_a_new_boot_the_last_written_objects_are_not_believed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, None)
    with CacheOwner(tmp_path) as owner:
        owner.tidy(b"boot-1")
    for number, written in ((1, 1000.0), (2, 5000.0), (3, 5100.0)):
        put(cache, number)
        used_at(cache, number, written)
    with CacheOwner(tmp_path) as owner:
        owner.tidy(b"boot-1")
    assert here(cache, 1, 2, 3) == [1, 2, 3]
    with CacheOwner(tmp_path) as owner:
        owner.tidy(b"boot-2")
    assert here(cache, 1, 2, 3) == [1]
