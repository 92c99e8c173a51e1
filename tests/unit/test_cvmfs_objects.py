# SPDX-License-Identifier: BSD-3-Clause
"""Objects: verified before they are visible, fetched once."""

from __future__ import annotations

import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cernvm.cvmfs.cache import Cache
from cernvm.cvmfs.counters import Counter, Counters
from cernvm.cvmfs.errors import ObjectCorrupt, ObjectMissing
from cernvm.cvmfs.flags import Compression
from cernvm.cvmfs.hashes import Algorithm, ContentHash, Kind, hash_of
from cernvm.cvmfs.objects import ObjectRef, Objects
from tests.support.storage import Storage

CONTENT = b"some content\n" * 1000


class Bench:
    """A storage directory and what reads from it."""

    def __init__(self, directory: Path) -> None:
        self.storage = Storage(directory / "storage")
        self.counters = Counters()
        self.cache = Cache(directory / "cache", None)
        self.objects = Objects(self.cache, self.storage, self.counters)

    def store(self, stored: bytes, ref: ObjectRef) -> ObjectRef:
        """Put bytes where the object belongs, whatever they are."""
        file = self.storage.directory / ref.content.path(ref.kind)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(stored)
        return ref

    def good(self, content: bytes = CONTENT, algorithm: Algorithm = Algorithm.SHA1) -> ObjectRef:
        """Store an object as a publisher does."""
        stored = zlib.compress(content)
        return self.store(stored, ObjectRef(hash_of(stored, algorithm), size=len(content)))

    def nothing_kept(self, ref: ObjectRef) -> bool:
        """Whether the cache has neither the object nor a leftover."""
        return self.cache.open(ref.cache_name) is None and not list((self.cache.directory / "txn").iterdir())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_an_object_is_fetched_once_and_then_found(bench: Bench, algorithm: Algorithm) -> None:
    ref = bench.good(algorithm=algorithm)
    assert [bench.objects.open(ref).read_all() for _ in range(3)] == [CONTENT] * 3
    assert len(bench.storage.taken) == 1
    bench.objects.close()
    assert bench.objects.open(ref).read_all() == CONTENT
    assert len(bench.storage.taken) == 1
    assert (bench.counters[Counter.CACHE_MISSES], bench.counters[Counter.CACHE_HITS]) == (1, 3)


def test_an_uncompressed_object_is_taken_as_it_is(bench: Bench) -> None:
    ref = ObjectRef(hash_of(CONTENT), Kind.CHUNK, Compression.NONE, len(CONTENT))
    assert bench.objects.open(bench.store(CONTENT, ref)).read_all() == CONTENT


def test_one_hash_stored_plain_and_as_a_stream_is_two_contents(bench: Bench) -> None:
    stored = zlib.compress(CONTENT)
    packed = bench.store(stored, ObjectRef(hash_of(stored), size=len(CONTENT)))
    plain = ObjectRef(hash_of(stored), compression=Compression.NONE, size=len(stored))
    assert bench.objects.open(plain).read_all() == stored
    assert bench.objects.open(packed).read_all() == CONTENT


def wrong_forms() -> list[object]:
    stored = zlib.compress(CONTENT)
    sized = len(CONTENT)
    other = zlib.compress(b"other content")
    bomb = zlib.compress(bytes(50_000_000), 9)
    return [
        pytest.param(other, hash_of(stored), sized, "the server's bytes have the hash", id="another object"),
        pytest.param(stored[:-1], hash_of(stored), sized, "the server's bytes have the hash", id="cut short"),
        pytest.param(b"", hash_of(stored), sized, "the server's bytes have the hash", id="empty"),
        pytest.param(b"<html>", hash_of(stored), sized, "cannot be inflated", id="a page"),
        pytest.param(stored[:-1], hash_of(stored[:-1]), sized, "does not end where it should", id="cut, right hash"),
        pytest.param(stored + b"x", hash_of(stored + b"x"), sized, "does not end where", id="longer, right hash"),
        pytest.param(stored, hash_of(stored), sized + 1, "bytes where the catalog says", id="smaller"),
        pytest.param(stored, hash_of(stored), sized - 1, "longer than the catalog says", id="larger"),
        pytest.param(bomb, hash_of(bomb), sized, "longer than the catalog says", id="inflates without end"),
        pytest.param(bytes(100_000), hash_of(stored), sized, "cannot be inflated", id="far too long"),
    ]


@pytest.mark.parametrize(("stored", "content", "size", "told"), wrong_forms())
def test_wrong_bytes_are_an_error_with_the_hash_and_leave_nothing(
    bench: Bench, stored: bytes, content: ContentHash, size: int, told: str
) -> None:
    ref = ObjectRef(content, size=size)
    bench.store(stored, ref)
    with pytest.raises(ObjectCorrupt, match=told) as refused:
        bench.objects.open(ref)
    assert str(content) in str(refused.value)
    assert bench.nothing_kept(ref)


def test_after_the_server_is_mended_the_object_reads(bench: Bench) -> None:
    ref = bench.good()
    good = (bench.storage.directory / ref.content.path(Kind.FILE)).read_bytes()
    bench.store(good[::-1], ref)
    with pytest.raises(ObjectCorrupt):
        bench.objects.open(ref)
    bench.store(good, ref)
    assert bench.objects.open(ref).read_all() == CONTENT


def test_an_object_torn_in_the_cache_is_fetched_again(bench: Bench) -> None:
    ref = bench.good()
    bench.objects.open(ref)
    bench.objects.close()
    os.truncate(bench.cache.directory / ref.cache_name[:2] / ref.cache_name[2:], 5)
    assert bench.objects.open(ref).read_all() == CONTENT
    assert len(bench.storage.taken) == 2


def test_threads_that_want_one_object_share_one_transfer(bench: Bench) -> None:
    ref = bench.good()
    bench.storage.open_gate.clear()
    with ThreadPoolExecutor(8) as threads:
        wanted = [threads.submit(lambda: bench.objects.open(ref).read_all()) for _ in range(8)]
        assert bench.storage.entered.wait(20)
        bench.storage.open_gate.set()
        assert [one.result(20) for one in wanted] == [CONTENT] * 8
    assert len(bench.storage.taken) == 1


def test_threads_that_wait_for_a_failure_get_it_too_and_the_next_one_tries_again(bench: Bench) -> None:
    ref = ObjectRef(hash_of(b"absent"), size=6)
    bench.storage.open_gate.clear()
    with ThreadPoolExecutor(4) as threads:
        wanted = [threads.submit(bench.objects.open, ref) for _ in range(4)]
        assert bench.storage.entered.wait(20)
        bench.storage.open_gate.set()
        assert {type(one.exception(20)) for one in wanted} == {ObjectMissing}
    before = len(bench.storage.taken)
    with pytest.raises(ObjectMissing):
        bench.objects.open(ref)
    assert len(bench.storage.taken) == before + 1


@pytest.mark.timeout(20)
def test_bytes_after_a_long_stream_are_corruption_and_not_an_endless_loop(bench: Bench) -> None:
    content = bytes(2 << 20)  # longer than what is inflated at once
    stored = zlib.compress(content) + b"x"
    ref = bench.store(stored, ObjectRef(hash_of(stored), size=len(content)))
    with pytest.raises(ObjectCorrupt, match="does not end where it should"):
        bench.objects.open(ref)
    assert bench.nothing_kept(ref)
