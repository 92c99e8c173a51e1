# SPDX-License-Identifier: BSD-3-Clause
"""Rows, counters and attributes of catalogs are as the format wants them."""

from __future__ import annotations

import inspect
import os
import sqlite3
import stat
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cernvm.cvmfs import flags
from cernvm.cvmfs.errors import CvmfsProblem, Mistake
from cernvm.cvmfs.hashes import Algorithm, ContentHash, hash_of, path_hash
from cernvm.cvmfs.publish.catalogs import COUNTERS, CatalogWriter, StoredCatalog, pack_attributes
from cernvm.cvmfs.publish.objects import Content, Piece
from cernvm.cvmfs.publish.scan import Directory, Entry, Left, measure, walk
from cernvm.cvmfs.xattrs import parse_xattrs

HASH = hash_of(b"content", Algorithm.SHAKE128)


def entry(path: bytes, mode: int, *, mtime_ns: int = 0, device: int = 0, size: int = 0, **more: bytes) -> Entry:
    """An entry of user 5, group 6."""
    fields = [mode, 0, 0, 1, 5, 6, size, 0, 0, 0]
    return Entry(path, os.stat_result(fields, {"st_mtime_ns": mtime_ns, "st_rdev": device}), more.get("target", b""))


def rows(file: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(file)) as database:
        database.text_factory = bytes
        return database.execute(query).fetchall()


def plain(size: int) -> Content:
    return Content((Piece(0, size, HASH),))


def test_rows_carry_flags_hashes_times_and_raw_names(tmp_path: Path) -> None:
    writer = CatalogWriter(tmp_path / "c", b"", Algorithm.SHAKE128)
    writer.add_directory(entry(b"", stat.S_IFDIR | 0o755, size=4096), 3)
    writer.add_directory(entry(b"/n", stat.S_IFDIR | 0o700), 2, flags.NESTED_MOUNTPOINT)
    writer.add_file(entry(b"/\xe9", stat.S_IFREG | 0o4600, mtime_ns=-1_500_000_000), plain(7), 9 << 32 | 2)
    writer.add_other(entry(b"/l", stat.S_IFLNK | 0o777, target=b"$(X)/\xff"))
    writer.add_other(entry(b"/c", stat.S_IFCHR | 0o600, device=os.makedev(1, 3)))
    writer.add_other(entry(b"/p", stat.S_IFIFO | 0o600, device=99))
    writer.finish({"revision": 4})
    found = rows(
        tmp_path / "c",
        "SELECT name, flags, hardlinks, hash, size, mode, mtime, mtimens, symlink, uid, gid, xattr"
        " FROM catalog ORDER BY name",
    )
    bits = flags.FILE | flags.storage_bits(Algorithm.SHAKE128, flags.Compression.ZLIB)
    assert found == [
        (b"", 1, 3, None, 4096, stat.S_IFDIR | 0o755, 0, 0, b"", 5, 6, None),
        (b"c", 20, 1, None, 259, stat.S_IFCHR | 0o600, 0, 0, b"", 5, 6, None),
        (b"l", 12, 1, None, 6, stat.S_IFLNK | 0o777, 0, 0, b"$(X)/\xff", 5, 6, None),
        (b"n", 3, 2, None, 0, stat.S_IFDIR | 0o700, 0, 0, b"", 5, 6, None),
        (b"p", 20, 1, None, 0, stat.S_IFIFO | 0o600, 0, 0, b"", 5, 6, None),
        (b"\xe9", bits, 9 << 32 | 2, HASH.digest, 7, stat.S_IFREG | 0o4600, -2, 500_000_000, b"", 5, 6, None),
    ]
    assert rows(tmp_path / "c", "SELECT DISTINCT typeof(name), typeof(symlink) FROM catalog") == [(b"text", b"text")]
    place = rows(tmp_path / "c", "SELECT md5path_1, md5path_2, parent_1, parent_2 FROM catalog WHERE name = 'l'")
    assert place == [(*path_hash(b"/l"), *path_hash(b""))]
    root = rows(tmp_path / "c", "SELECT parent_1, parent_2 FROM catalog WHERE name = ''")
    assert root == [(0, 0)]


def test_chunked_files_have_rows_of_chunks_and_no_hash(tmp_path: Path) -> None:
    writer = CatalogWriter(tmp_path / "c", b"", Algorithm.SHA1)
    pieces = (Piece(0, 10, ContentHash(b"a" * 20)), Piece(10, 5, ContentHash(b"b" * 20)))
    writer.add_file(entry(b"/f", stat.S_IFREG | 0o644), Content(pieces))
    writer.finish({})
    assert rows(tmp_path / "c", "SELECT hash, size, flags FROM catalog") == [(None, 15, 4 | 64)]
    assert rows(tmp_path / "c", "SELECT offset, size, hash FROM chunks ORDER BY offset") == [
        (0, 10, b"a" * 20),
        (10, 5, b"b" * 20),
    ]
    assert (writer.own["chunked"], writer.own["chunks"], writer.own["chunked_size"]) == (1, 2, 15)
    assert (writer.own["regular"], writer.own["file_size"]) == (1, 15)


def test_counters_tell_own_rows_and_those_below(tmp_path: Path) -> None:
    writer = CatalogWriter(tmp_path / "c", b"/at/\xff", Algorithm.SHA1)
    writer.add_directory(entry(b"/at/\xff", stat.S_IFDIR), 3, flags.NESTED_ROOT)
    writer.add_directory(entry(b"/at/\xff/n", stat.S_IFDIR), 2, flags.NESTED_MOUNTPOINT)
    stored = StoredCatalog(ContentHash(b"c" * 20), 1234)
    writer.add_nested(b"/at/\xff/n", stored, Counter({"dir": 1, "regular": 2, "file_size": 30}))
    writer.finish({"revision": 1})
    counters = dict(rows(tmp_path / "c", "SELECT counter, value FROM statistics"))
    assert set(counters) == {f"{scope}_{name}".encode() for scope in ("self", "subtree") for name in COUNTERS}
    assert {name: value for name, value in counters.items() if value} == {
        b"self_dir": 2,
        b"self_nested": 1,
        b"subtree_dir": 1,
        b"subtree_regular": 2,
        b"subtree_file_size": 30,
    }
    assert rows(tmp_path / "c", "SELECT path, sha1, size FROM nested_catalogs") == [(b"/at/\xff/n", b"63" * 20, 1234)]
    assert dict(rows(tmp_path / "c", "SELECT key, value FROM properties")) == {
        b"schema": b"2.5",
        b"schema_revision": b"7",
        b"root_prefix": b"/at/\xff",
        b"revision": b"1",
    }


@pytest.mark.parametrize("change", ["none", "row", "more", "nested", "chunks"])
def test_catalogs_compare_by_their_rows(tmp_path: Path, change: str) -> None:
    def written(name: str, change: str) -> CatalogWriter:
        writer = CatalogWriter(tmp_path / name, b"", Algorithm.SHA1)
        writer.add_file(entry(b"/f", stat.S_IFREG, mtime_ns=1 if change == "row" else 0), plain(1))
        second = Piece(1, 2, ContentHash((b"x" if change == "chunks" else b"y") * 20))
        writer.add_file(entry(b"/g", stat.S_IFREG), Content((Piece(0, 1, HASH), second)))
        if change == "more":
            writer.add_file(entry(b"/h", stat.S_IFREG), plain(1))
        size = 2 if change == "nested" else 1
        writer.add_nested(b"/n", StoredCatalog(ContentHash(b"c" * 20), size), Counter())
        return writer

    old = written("old", "none")
    old.finish({"revision": 1})
    new = written("new", change)
    assert new.equals(tmp_path / "old") is (change == "none")
    new.finish({"revision": 2})
    assert rows(tmp_path / "new", "SELECT value FROM properties WHERE key = 'revision'") == [(b"2",)]


@given(st.dictionaries(st.binary(min_size=1, max_size=255), st.binary(max_size=255), max_size=255))
def test_attributes_are_read_back_as_they_were_packed(attributes: dict[bytes, bytes]) -> None:
    packed = pack_attributes(attributes)
    assert parse_xattrs(packed) == attributes
    assert (packed is None) is (not attributes)


def test_attributes_are_sorted_and_counted_in_bytes() -> None:
    assert pack_attributes({b"b": b"", b"a": b"xy"}) == b"\x01\x02" + b"\x01\x02axy" + b"\x01\x00b"


def test_a_walk_shows_parents_first_and_says_what_it_left(tmp_path: Path) -> None:
    for name in ("b/x", "a/y/z", "c"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a" / "file").write_bytes(b"12345")
    steps = [
        f"-{step.path.decode()}" if isinstance(step, Left) else f"+{step.entry.path.decode()}"
        for step in walk(os.fsencode(tmp_path))
    ]
    assert steps == [
        "+",
        "+/a",
        "+/a/y",
        "+/a/y/z",
        "-/a/y/z",
        "-/a/y",
        "-/a",
        "+/b",
        "+/b/x",
        "-/b/x",
        "-/b",
        "+/c",
        "-/c",
        "-",
    ]
    first = next(walk(os.fsencode(tmp_path)))
    assert isinstance(first, Directory)
    assert (first.link_count, [found.name for found in first.entries]) == (5, [b"a", b"b", b"c"])
    assert measure(tmp_path) == (1, 5)


def test_a_walk_does_not_recurse(tmp_path: Path) -> None:
    (tmp_path / "/".join("d" * 400)).mkdir(parents=True)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 60)
    try:
        found = sum(isinstance(step, Directory) for step in walk(os.fsencode(tmp_path)))
    finally:
        sys.setrecursionlimit(limit)
    assert found == 401


def test_what_is_no_tree_is_named(tmp_path: Path) -> None:
    with pytest.raises(CvmfsProblem, match="none: No such file"):
        list(walk(os.fsencode(tmp_path / "none")))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Mistake, match="file: is not a directory"):
        list(walk(os.fsencode(tmp_path / "file")))
