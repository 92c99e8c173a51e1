# SPDX-License-Identifier: BSD-3-Clause
"""Catalogs of every age, and catalogs that break the format."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cernvm.cvmfs import flags
from cernvm.cvmfs.cache import OpenObject
from cernvm.cvmfs.catalog import Catalog, Nested
from cernvm.cvmfs.errors import Malformed, Unsupported
from cernvm.cvmfs.hashes import Algorithm, ContentHash, path_hash
from cernvm.cvmfs.xattrs import parse_xattrs

SOME = ContentHash(bytes(range(20)))
NEW = "md5path_1 parent_1 parent_2 md5path_2 hardlinks hash size mode mtime mtimens flags name symlink uid gid xattr"
OLD = "name symlink md5path_1 md5path_2 parent_1 parent_2 hash size mode mtime flags uid gid hardlinks"


class Maker:
    """Writes a catalog row by row."""

    def __init__(self, file: Path, *, columns: str = NEW, schema: str = "2.5", prefix: str = "") -> None:
        self.file = file
        self.columns = columns.split()
        self.database = sqlite3.connect(file)
        self.run(f"CREATE TABLE catalog ({', '.join(self.columns)})")
        self.run("CREATE TABLE properties (key TEXT, value TEXT)")
        self.run("CREATE TABLE chunks (md5path_1, md5path_2, offset, size, hash)")
        size = "" if columns == OLD else ", size"
        self.run(f"CREATE TABLE nested_catalogs (path TEXT, sha1 TEXT{size})")
        self.run("CREATE TABLE statistics (counter TEXT, value INTEGER)")
        self.run("INSERT INTO properties VALUES ('schema', ?)", schema)
        if prefix:
            self.run("INSERT INTO properties VALUES ('root_prefix', ?)", prefix)

    def run(self, statement: str, *values: object) -> None:
        self.database.execute(statement, values)

    def row(self, path: bytes, **changes: Any) -> None:
        parent = path_hash(path.rpartition(b"/")[0]) if path else (0, 0)
        own = path_hash(path)
        row: dict[str, Any] = dict.fromkeys(self.columns)
        row |= {"md5path_1": own[0], "md5path_2": own[1], "parent_1": parent[0], "parent_2": parent[1]}
        row |= {"hardlinks": 1, "size": 0, "mode": 0o100644, "mtime": 5, "flags": flags.FILE, "uid": 1, "gid": 2}
        row |= {"name": path.rpartition(b"/")[2].decode("latin-1"), "symlink": ""} | changes
        row = {key: value for key, value in row.items() if key in self.columns}
        marks = ", ".join("?" * len(row))
        self.run(f"INSERT INTO catalog ({', '.join(row)}) VALUES ({marks})", *row.values())

    def directory(self, path: bytes, **changes: Any) -> None:
        self.row(path, mode=0o040755, flags=flags.DIRECTORY, size=4096, **changes)

    def open(self, prefix: bytes = b"") -> Catalog:
        self.database.commit()
        self.database.close()
        return Catalog(OpenObject(os.open(self.file, os.O_RDONLY)), Nested(SOME, None, prefix), prefix)


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    made = Maker(tmp_path / "catalog")
    made.directory(b"")
    return made


@pytest.mark.parametrize(("columns", "schema"), [(NEW, "2.5"), (OLD, "2.4"), (OLD, "2.5")])
def test_columns_are_found_by_name_whatever_their_order_and_age(tmp_path: Path, columns: str, schema: str) -> None:
    maker = Maker(tmp_path / "catalog", columns=columns, schema=schema)
    maker.directory(b"")
    maker.row(b"/f", hash=SOME.digest, size=3, mtime=-7, mtimens=9, uid=4294967294)
    maker.run("INSERT INTO nested_catalogs (path, sha1) VALUES ('/n', ?)", str(SOME))
    catalog = maker.open()
    entry = catalog.find(b"/f")
    assert entry is not None
    assert (entry.name, entry.size, entry.content, entry.uid, entry.gid) == (b"f", 3, SOME, 4294967294, 2)
    assert entry.mtime_ns == -7 * 10**9 + (9 if columns == NEW else 0)
    assert catalog.nested[b"/n"].size is None
    assert catalog.find(b"/absent") is None


def test_names_are_bytes_and_listings_are_sorted_without_hidden_ones(maker: Maker) -> None:
    maker.run("UPDATE catalog SET name = ''")
    for name in (b"/b", b"/a", b"/hidden"):
        maker.row(name, flags=flags.FILE | (flags.HIDDEN if name == b"/hidden" else 0))
    latin = path_hash(b"/\xe9")
    maker.row(b"/placeholder", md5path_1=latin[0], md5path_2=latin[1])
    maker.run("UPDATE catalog SET name = CAST(x'e9' AS TEXT) WHERE name = 'placeholder'")
    catalog = maker.open()
    assert [entry.name for entry in catalog.children(b"")] == [b"a", b"b", b"\xe9"]
    assert catalog.find(b"/hidden") is not None


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "x" * 256])
def test_impossible_names_are_refused(maker: Maker, name: str) -> None:
    maker.row(b"/f", name=name)
    with pytest.raises(Malformed, match="impossible name"):
        maker.open().children(b"")


@pytest.mark.parametrize(
    "changes",
    [
        {"hash": b"short"},
        {"mode": 0o777},
        {"mode": 0o040755},
        {"size": "many"},
        {"flags": flags.FILE | 5 << flags.HASH_SHIFT, "hash": SOME.digest},
        {"mtime": None},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_rows_that_contradict_themselves_are_refused(maker: Maker, changes: dict[str, Any]) -> None:
    maker.row(b"/f", **changes)
    with pytest.raises(Malformed):
        maker.open().find(b"/f")


def test_hard_links_and_algorithms_are_taken_apart(maker: Maker) -> None:
    bits = flags.FILE | flags.storage_bits(Algorithm.SHAKE128, flags.Compression.NONE)
    maker.row(b"/f", hardlinks=7 << 32 | 3, flags=bits, hash=SOME.digest, size=5)
    entry = maker.open().find(b"/f")
    assert entry is not None
    assert (entry.links, entry.link_group) == (3, 7)
    assert entry.object.content.algorithm is Algorithm.SHAKE128
    assert entry.object.compression is flags.Compression.NONE
    assert stat.S_ISREG(entry.mode)


@pytest.mark.parametrize(
    ("rows", "good"),
    [
        ([(0, 4), (4, 6)], True),
        ([(0, 4), (5, 5)], False),
        ([(1, 9)], False),
        ([(0, 4), (4, 0), (4, 6)], False),
        ([(0, 4)], False),
        ([(0, 11)], False),
        ([], False),
    ],
)
def test_chunks_follow_one_another_and_make_up_the_size(maker: Maker, rows: list[tuple[int, int]], good: bool) -> None:
    maker.row(b"/f", size=10, flags=flags.FILE | flags.CHUNKED)
    for offset, size in rows:
        maker.run("INSERT INTO chunks VALUES (?, ?, ?, ?, ?)", *path_hash(b"/f"), offset, size, SOME.digest)
    catalog = maker.open()
    entry = catalog.find(b"/f")
    assert entry is not None
    if good:
        assert [(chunk.offset, chunk.object.size) for chunk in catalog.chunks(entry)] == rows
    else:
        with pytest.raises(Malformed, match="the chunks of"):
            catalog.chunks(entry)


def test_a_catalog_for_another_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="is not the one for b'/other'"):
        Maker(tmp_path / "one", prefix="/n").open(b"/other")
    outside = Maker(tmp_path / "two", prefix="/n")
    outside.run("INSERT INTO nested_catalogs VALUES ('/nn/x', ?, 1)", str(SOME))
    with pytest.raises(Malformed, match="outside of"):
        outside.open(b"/n")


def test_other_schemas_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"has the schema '3\.0'"):
        Maker(tmp_path / "one", schema="3.0").open()
    with pytest.raises(Malformed, match="has no column uid"):
        Maker(tmp_path / "two", columns=NEW.replace(" uid", "")).open()
    (tmp_path / "three").write_bytes(b"no data base")
    for file in ("three", "empty"):
        (tmp_path / file).touch()
        with pytest.raises(Malformed, match="cannot be read"):
            Catalog(OpenObject(os.open(tmp_path / file, os.O_RDONLY)), Nested(SOME, None), b"")


def test_a_catalog_reads_on_after_its_file_lost_its_name(maker: Maker) -> None:
    maker.row(b"/f")
    catalog = maker.open()
    maker.file.unlink()
    assert [entry.name for entry in catalog.children(b"")] == [b"f"]


@given(st.dictionaries(st.binary(min_size=1, max_size=255), st.binary(max_size=255), max_size=255))
def test_extended_attributes_read_back(attributes: dict[bytes, bytes]) -> None:
    blob = bytes([1, len(attributes)]) + b"".join(
        bytes([len(key), len(value)]) + key + value for key, value in sorted(attributes.items())
    )
    assert parse_xattrs(blob) == attributes


@given(st.binary(max_size=600))
def test_any_blob_of_attributes_is_read_or_refused(blob: bytes) -> None:
    try:
        found = parse_xattrs(blob)
    except Malformed:
        return
    assert sum(len(key) + len(value) for key, value in found.items()) <= len(blob)


@pytest.mark.parametrize("revision", range(8))
def test_catalogs_of_every_revision_are_read(tmp_path: Path, revision: int) -> None:
    """What each revision of the schema brought: 1 the size of nested catalogs, 2 xattr, 4 binds, 7 nanoseconds."""
    columns = [name for name in NEW.split() if revision >= {"xattr": 2, "mtimens": 7}.get(name, 0)]
    maker = Maker(tmp_path / "catalog", columns=" ".join(columns))
    maker.run("INSERT INTO properties VALUES ('schema_revision', ?)", str(revision))
    maker.run("DROP TABLE nested_catalogs")
    maker.run(f"CREATE TABLE nested_catalogs (path TEXT, sha1 TEXT{', size INTEGER' if revision >= 1 else ''})")
    maker.run("INSERT INTO nested_catalogs (path, sha1) VALUES ('/n', ?)", str(SOME))
    if revision >= 1:
        maker.run("UPDATE nested_catalogs SET size = 77")
    if revision >= 4:
        maker.run("CREATE TABLE bind_mountpoints (path TEXT, sha1 TEXT, size INTEGER)")
        maker.run("INSERT INTO bind_mountpoints VALUES ('/b', ?, 0)", str(SOME))
    if revision == 0:
        maker.run("DROP TABLE statistics")
    maker.directory(b"")
    maker.row(b"/f", hash=SOME.digest, mtimens=9, xattr=b"\x01\x01\x06\x01user.a1")
    catalog = maker.open()
    entry = catalog.find(b"/f")
    assert entry is not None
    assert entry.mtime_ns == 5 * 10**9 + (9 if revision >= 7 else 0)
    assert parse_xattrs(entry.xattrs) == ({b"user.a": b"1"} if revision >= 2 else {})
    assert catalog.nested[b"/n"].size == (77 if revision >= 1 else None)
    assert (b"/b" in catalog.nested) == (revision >= 4)
    assert catalog.statistics() == {}


def test_a_question_without_end_has_one(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cernvm.cvmfs.catalog._MOST_TICKS", 10)
    maker.run("DROP TABLE statistics")
    endless = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT 'x' AS counter, max(i) AS value FROM n"
    )
    maker.run(f"CREATE VIEW statistics AS {endless}")
    with pytest.raises(Malformed, match="interrupted"):
        maker.open().statistics()


@pytest.mark.parametrize("column", ["mode", "flags", "uid", "hardlinks"])
def test_numbers_that_are_none_are_refused(maker: Maker, column: str) -> None:
    maker.row(b"/f", **{column: "1.5"})
    with pytest.raises(Malformed, match="wrong types"):
        maker.open().find(b"/f")
