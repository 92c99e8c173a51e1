# SPDX-License-Identifier: BSD-3-Clause
"""The cache when its disk or its processes fail: damage, power cuts, kills, a full or read-only disk, two users."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest

from cernvm.cvmfs import cache_stamp
from cernvm.cvmfs.cache import Cache
from cernvm.cvmfs.cache_check import check_cache
from cernvm.cvmfs.cache_lease import Leases
from cernvm.cvmfs.cache_owner import CacheOwner
from cernvm.cvmfs.counters import Counters
from cernvm.cvmfs.errors import CacheFull, TimedOut
from cernvm.cvmfs.flags import Compression
from cernvm.cvmfs.hashes import Algorithm, ContentHash, Hasher
from cernvm.cvmfs.objects import ObjectRef, Objects
from tests.support.storage import Storage

BLOCK = 4096


def name(number: int) -> str:
    return f"{number:040x}"


def put(cache: Cache, number: int, content: bytes = b"") -> Path:
    with cache.writing(name(number)) as fd:
        os.write(fd, content or bytes([number % 256]) * BLOCK)
    return cache.directory / name(number)[:2] / name(number)[2:]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda file: file.write_bytes(b"\x02" * BLOCK), id="other content"),
        pytest.param(lambda file: file.write_bytes(b"\x01" * 100), id="cut off"),
        pytest.param(lambda file: file.write_bytes(b""), id="empty"),
        pytest.param(lambda file: file.write_bytes(b"\x01" * 2000 + b"\x03" + b"\x01" * 2095), id="one bit"),
        pytest.param(lambda file: os.removexattr(file, "user.cernvm.crc32"), id="no checksum"),
    ],
)
def test_a_damaged_object_is_not_given_and_is_gone(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    file = put(Cache(tmp_path, None), 1)
    assert Cache(tmp_path, None).open(name(1)) is not None
    damage(file)
    fresh = Cache(tmp_path, None)
    assert fresh.open(name(1)) is None
    assert not file.exists()
    assert fresh.used() <= BLOCK, "every eviction counts anew"


def test_an_object_changed_while_it_is_known_is_looked_through_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path, None)
    file = put(cache, 1)
    assert cache.open(name(1)) is not None
    with file.open("r+b") as opened:
        opened.write(b"x")
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert cache.open(name(1)) is None


def test_a_look_through_the_cache_finds_what_is_damaged_and_is_no_use_of_the_rest(tmp_path: Path) -> None:
    cache = Cache(tmp_path, None)
    files = [put(cache, number) for number in range(5)]
    for file in files:
        os.utime(file, (100.0, file.stat().st_mtime))
    files[3].write_bytes(b"x" * BLOCK)
    before = files[0].stat().st_atime
    seen = Cache(tmp_path, None, clock=lambda: 120.0)
    found = check_cache(seen)
    assert (found.checked, found.damaged) == (5, (name(3),))
    assert [file.exists() for file in files] == [True, True, True, False, True]
    assert files[0].stat().st_atime == before
    assert check_cache(seen).damaged == ()


def test_a_power_cut_that_loses_what_was_not_written_loses_no_truth(tmp_path: Path) -> None:
    """Names reach the disk before contents: zeros and shorter files under good names, in any mixture."""
    cache = Cache(tmp_path, None)
    files = [put(cache, number, os.urandom(3 * BLOCK)) for number in range(30)]
    whole = [file.read_bytes() for file in files]
    for number, file in enumerate(files):
        stamps = os.getxattr(file, "user.cernvm.crc32")
        if number % 3 == 1:
            file.write_bytes(whole[number][: BLOCK * (number % 2)] + bytes(BLOCK))
        if number % 3 == 2:
            os.truncate(file, number % 5)
        os.setxattr(file, "user.cernvm.crc32", stamps)
        os.utime(file, (1000.0, 1000.0 + 1000 * number))
    (tmp_path / "txn" / "fetchlost").write_bytes(b"half")
    (tmp_path / "lock").write_bytes(b"\xff" * 3)
    with CacheOwner(tmp_path) as owner:
        owner.tidy(b"another boot")
    after = Cache(tmp_path, None)
    for number in range(30):
        opened = after.open(name(number))
        assert opened is None or opened.read_all() == whole[number]
    assert sum(after.open(name(number)) is not None for number in range(30)) >= 9
    assert after.used() == sum(3 * BLOCK for number in range(30) if after.open(name(number)) is not None)


def _write_for_ever(directory: str, first: int) -> None:
    cache = Cache(Path(directory), 60 * BLOCK)
    number = first
    while True:
        put(cache, number % 200, (b"%d " % (number % 200)) * 1000)
        number += 1


def test_writers_killed_at_any_moment_leave_whole_objects_and_a_right_count(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(8):
        writers = [context.Process(target=_write_for_ever, args=(str(tmp_path), 50 * n + attempt)) for n in range(2)]
        for writer in writers:
            writer.start()
        time.sleep(0.03 + 0.02 * attempt)  # the moment of the kill is the point
        for writer in writers:
            assert writer.pid is not None
            os.kill(writer.pid, signal.SIGKILL)
            writer.join(10)
    with CacheOwner(tmp_path) as owner:
        owner.tidy(b"same boot")
    cache = Cache(tmp_path, 60 * BLOCK)
    assert list((tmp_path / "txn").iterdir()) == []
    assert check_cache(cache).damaged == ()
    names = list(cache.names())
    assert names
    for found in names:
        opened = cache.open(found)
        assert opened is not None
        assert opened.read_all() == (b"%d " % int(found, 16)) * 1000
    files = [path for path in tmp_path.glob("??/*") if path.parent.name != "txn"]
    assert cache.used() == sum((path.stat().st_size + BLOCK - 1) // BLOCK * BLOCK for path in files) <= 60 * BLOCK


def test_a_new_daemon_leaves_what_a_worker_of_the_old_one_still_writes(tmp_path: Path) -> None:
    cache = Cache(tmp_path, None)
    with cache.writing(name(1)) as fd:
        os.write(fd, b"slow")
        with CacheOwner(tmp_path) as owner:
            owner.tidy(b"boot")
        put(Cache(tmp_path, None), 2)
    assert cache.open(name(1)) is not None
    assert cache.used() == Cache(tmp_path, None).used() == 2 * BLOCK


def test_a_disk_that_becomes_read_only_still_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path, None)
    put(cache, 1)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    monkeypatch.setattr(os, "utime", refuse)
    assert not cache.read_only
    with cache.writing(name(2)) as fd:
        os.write(fd, b"in memory")
        kept = os.dup(fd)
    assert cache.read_only
    assert os.pread(kept, 100, 0) == b"in memory"
    os.close(kept)
    assert cache.open(name(1)) is not None
    assert cache.open(name(2)) is None


class Slow(Storage):
    """A server that never answers until it is told to."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.open_gate.clear()


def ref_of(storage: Path, content: bytes) -> ObjectRef:
    hasher = Hasher(Algorithm.SHA1)
    hasher.update(content)
    digest: ContentHash = hasher.finish()
    ref = ObjectRef(digest, compression=Compression.NONE, size=len(content))
    path = storage / digest.path(ref.kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return ref


def test_a_hundred_readers_of_one_object_cost_one_transfer(tmp_path: Path) -> None:
    storage = Slow(tmp_path / "web")
    ref = ref_of(storage.directory, b"one" * 1000)
    objects = Objects(Cache(tmp_path / "cache", None), storage, Counters())
    got: list[bytes] = []
    readers = [threading.Thread(target=lambda: got.append(objects.open(ref).read_all())) for _ in range(100)]
    for reader in readers:
        reader.start()
    assert storage.entered.wait(10)
    storage.open_gate.set()
    for reader in readers:
        reader.join(20)
    assert got == [b"one" * 1000] * 100
    assert len(storage.taken) == 1


def test_two_workers_of_one_cache_fetch_an_object_once(tmp_path: Path) -> None:
    storage = Slow(tmp_path / "web")
    ref = ref_of(storage.directory, b"shared")
    one, two = (Objects(Cache(tmp_path / "cache", None), storage, Counters()) for _ in range(2))
    got: list[bytes] = []
    readers = [threading.Thread(target=lambda by=by: got.append(by.open(ref).read_all())) for by in (one, two)]
    readers[0].start()
    assert storage.entered.wait(10)
    readers[1].start()
    storage.open_gate.set()
    for reader in readers:
        reader.join(20)
    assert got == [b"shared"] * 2
    assert len(storage.taken) == 1


def test_a_lease_that_is_not_given_back_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    slept: list[float] = []
    one, two = Leases(tmp_path), Leases(tmp_path, sleep=slept.append)
    with one.holding("x"), two.holding("y") as waited:
        assert not waited
        with two.holding("x") as waited:
            assert waited
    assert 15 < sum(slept) < 25


def test_who_waits_too_long_gets_an_error_and_the_transfer_goes_on(tmp_path: Path) -> None:
    storage = Slow(tmp_path / "web")
    ref = ref_of(storage.directory, b"late")
    objects = Objects(Cache(tmp_path / "cache", None), storage, Counters(), patience=0.05)
    with pytest.raises(TimedOut, match="is not here after"):
        objects.open(ref)
    objects.patience = 20
    late: list[bytes] = []
    reader = threading.Thread(target=lambda: late.append(objects.open(ref).read_all()))
    reader.start()
    storage.open_gate.set()
    reader.join(20)
    assert late == [b"late"]
    assert len(storage.taken) == 1


def test_a_full_disk_makes_the_cache_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(tmp_path / "web")
    cache = Cache(tmp_path / "cache", None)
    objects = Objects(cache, storage, Counters())
    old = [put(cache, number) for number in range(10)]
    ref = ref_of(storage.directory, b"new" * 1000)
    genuine = os.pwrite

    def write(fd: int, data: bytes, offset: int) -> int:
        if len(data) > 100 and sum(file.exists() for file in old) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return genuine(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    assert objects.open(ref).read_all() == b"new" * 1000
    assert sum(file.exists() for file in old) == 5
    for file in old:
        file.unlink(missing_ok=True)
    monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(CacheFull, match="no space left"):
        objects.open(ref_of(storage.directory, b"never"))


def test_the_checksum_is_that_of_all_pieces(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(os.urandom(3 << 20))
    with file.open("r+b") as opened:
        cache_stamp.stamp(opened.fileno())
        assert cache_stamp.intact(opened.fileno())
        os.pwrite(opened.fileno(), b"?" * 9, 2_500_000)
        assert not cache_stamp.intact(opened.fileno())
