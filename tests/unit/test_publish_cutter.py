# SPDX-License-Identifier: BSD-3-Clause
"""Cuts are where the definition and the original server put them."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cernvm.cvmfs.hashes import Kind
from cernvm.cvmfs.manifest import parse_manifest, split_envelope
from cernvm.cvmfs.publish.cutter import Cutter, Sizes, checksum
from cernvm.cvmfs.publish.store import Store
from tests.support.cvmfs import fixture

SMALL = Sizes(minimum=64, average=1 << 16, maximum=200_000)


def cuts(data: bytes, sizes: Sizes, blocks: Sequence[int]) -> list[int]:
    """Feed `data` in blocks of the given sizes, over and over."""
    cutter = Cutter(sizes)
    found: list[int] = []
    position = turn = 0
    while position < len(data):
        size = blocks[turn % len(blocks)]
        found += cutter.feed(data[position : position + size])
        position += size
        turn += 1
    return found


def by_definition(data: bytes, sizes: Sizes) -> list[int]:
    """The rule of the format, one byte at a time."""
    threshold = 0xFFFFFFFF // sizes.average
    found = []
    start, value = 0, 0
    for at, byte in enumerate(data):
        value = ((value << 1) ^ byte) & 0xFFFFFFFF
        distance = (value - 0x7FFFFFFF) & 0xFFFFFFFF
        near = min(distance, 0x100000000 - distance) < threshold
        if at >= start + sizes.maximum or (at >= start + sizes.minimum and near):
            found.append(at)
            start = at
    return found


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 1 << 32),
    size=st.integers(0, 300_000),
    blocks=st.lists(st.sampled_from([33, 1000, 1 << 14, (1 << 14) + 1, 1 << 17, 1 << 20]), min_size=1, max_size=4),
    period=st.sampled_from([0, 1, 7, 100_000]),
)
def test_cuts_are_those_of_the_definition_however_the_stream_comes(
    seed: int, size: int, blocks: list[int], period: int
) -> None:
    random = Random(seed)
    data = random.randbytes(size) if period == 0 else (random.randbytes(period) * (size // period + 1))[:size]
    assert cuts(data, SMALL, blocks) == by_definition(data, SMALL)


def test_single_bytes_make_the_same_cuts() -> None:
    data = Random(5).randbytes(150_000)
    assert cuts(data, SMALL, [1]) == by_definition(data, SMALL)
    assert cuts(data, SMALL, [1])


def test_an_insertion_moves_few_cuts() -> None:
    data = Random(6).randbytes(3_000_000)
    before = [data[start:end] for start, end in spans(data, cuts(data, SMALL, [1 << 20]))]
    changed = data[:700_000] + b"inserted" + data[700_000:]
    after = [changed[start:end] for start, end in spans(changed, cuts(changed, SMALL, [1 << 20]))]
    assert len(before) > 20
    assert len(set(after) - set(before)) <= 3


def spans(data: bytes, found: list[int]) -> list[tuple[int, int]]:
    return list(zip([0, *found], [*found, len(data)], strict=True))


def test_zeros_are_cut_at_the_maximum_and_not_at_the_end() -> None:
    assert cuts(bytes(400_000), SMALL, [1 << 16]) == [200_000]
    assert cuts(bytes(400_001), SMALL, [1 << 16]) == [200_000, 400_000]


def test_the_checksum_forgets_after_32_bytes() -> None:
    assert checksum(b"x" * 9 + b"a" * 32) == checksum(b"y" * 70 + b"a" * 32)
    assert checksum(b"x" + b"a" * 31) != checksum(b"y" + b"a" * 31)


@pytest.mark.parametrize(("minimum", "average", "maximum"), [(31, 1 << 20, 1 << 21), (99, 100, 200), (2, 1, 3)])
def test_sizes_that_make_no_sense_are_refused(minimum: int, average: int, maximum: int) -> None:
    with pytest.raises(ValueError, match="chunk sizes"):
        Sizes(minimum, average, maximum)


def test_the_original_server_cuts_at_the_same_places(tmp_path: Path) -> None:
    storage = fixture("small") / "repo"
    manifest = parse_manifest(split_envelope((storage / ".cvmfspublished").read_bytes(), "manifest").text)
    catalog = tmp_path / "catalog"
    store = Store(storage)
    catalog.write_bytes(store.read(manifest.root_hash, Kind.CATALOG))
    database = sqlite3.connect(catalog)
    rows = database.execute(
        "SELECT json_group_array(json_array(chunks.offset, hex(chunks.hash)))"
        " FROM chunks JOIN catalog USING (md5path_1, md5path_2)"
        " WHERE (catalog.flags >> 11) & 7 = 0 AND catalog.flags & 128 = 0 GROUP BY md5path_1, md5path_2"
    ).fetchall()
    database.close()
    assert len(rows) >= 3
    for (text,) in rows:
        chunks = sorted(json.loads(text))
        data = b"".join(zlib.decompress(chunk_file(storage, name.lower()).read_bytes()) for _, name in chunks)
        found = cuts(data, Sizes(256 << 10, 512 << 10, 1 << 20), [1 << 20])
        assert [0, *found] == [offset for offset, _ in chunks]


def chunk_file(storage: Path, name: str) -> Path:
    return storage / "data" / name[:2] / f"{name[2:]}P"
