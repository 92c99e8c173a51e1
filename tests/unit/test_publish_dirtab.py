# SPDX-License-Identifier: BSD-3-Clause
"""`.cvmfsdirtab` picks the directories that its patterns name, and mistakes in it name their line."""

from __future__ import annotations

import csv
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cernvm.cvmfs.errors import Mistake
from cernvm.cvmfs.hashes import ContentHash, Kind
from cernvm.cvmfs.manifest import parse_manifest, split_envelope
from cernvm.cvmfs.publish.dirtab import MAX_SIZE, parse_dirtab
from cernvm.cvmfs.publish.store import Store
from tests.support.cvmfs import fixture


@pytest.mark.parametrize(
    ("rules", "path", "picked"),
    [
        (b"/sw/*", b"/sw/a", True),
        (b"/sw/*/", b"/sw/a", True),
        (b"/sw/*", b"/sw", False),
        (b"/sw/*", b"/sw/a/b", False),
        (b"/sw/*/*", b"/sw/a/b", True),
        (b"/sw/*", b"/sw/.hidden", True),
        (b"/sw/?.?", b"/sw/1.2", True),
        (b"/sw/?.?", b"/sw/1/2", False),
        (b"/sw/[ab]", b"/sw/b", True),
        (b"/sw/[!ab]", b"/sw/b", False),
        (b"/sw/[^ab]", b"/sw/c", True),
        (b"/sw/[a-c]x", b"/sw/bx", True),
        (b"/s.w", b"/sxw", False),
        (rb"/s\*w", b"/s*w", True),
        (rb"/s\*w", b"/sxw", False),
        (b"/sw/\xe9*", b"/sw/\xe9t\xe9", True),
        (b"/sw/*\n! /sw/other", b"/sw/other", False),
        (b"/sw/*\n! /sw/other", b"/sw/others", True),
        (b"/sw/*\n!*.svn", b"/sw/x.svn", False),
        (b"/*/*\n!tmp", b"/a/tmp", False),
        (b"/*/*\n!tmp", b"/a/xtmp", True),
        (b"# /sw/*\n\n  /lib  \n", b"/sw/a", False),
        (b"# /sw/*\n\n  /lib  \n", b"/lib", True),
        (b"", b"/a", False),
        (b"! /a", b"/a", False),
    ],
)
def test_patterns_pick(rules: bytes, path: bytes, picked: bool) -> None:
    assert parse_dirtab(rules).matches(path) is picked


@pytest.mark.parametrize(
    ("rules", "place"), [(b"/ok\nsw/*", "line 2"), (b"!", "line 1"), (b"/\n", "line 1"), (b"/a[z-a]", "line 1")]
)
def test_mistakes_name_the_line(rules: bytes, place: str) -> None:
    with pytest.raises(Mistake, match=rf"\.cvmfsdirtab: {place}"):
        parse_dirtab(rules)


def test_an_endless_file_is_refused() -> None:
    with pytest.raises(Mistake, match="bytes"):
        parse_dirtab(b"#" * (MAX_SIZE + 1))


def test_the_original_server_picked_the_same_directories() -> None:
    repository = fixture("small")
    storage = repository / "repo"
    rules = parse_dirtab(content(storage, ".cvmfsdirtab"))
    with (repository / "manifest.tsv").open(newline="") as file:
        rows = [(row["path"].encode(), row["type"]) for row in csv.DictReader(file, delimiter="\t")]
    below = [path for path, kind in rows if kind == "d" and path.startswith(b"/sw/")]
    marked = {path.removesuffix(b"/.cvmfscatalog") for path, _ in rows if path.endswith(b"/.cvmfscatalog")}
    assert {path for path in below if rules.matches(path)} == {path for path in marked if path.startswith(b"/sw/")}
    assert set(below) - marked, "the fixture has a directory that the rules exclude"


def content(storage: Path, name: str) -> bytes:
    """A file of the root directory, as the original server stored it."""
    store = Store(storage)
    manifest = parse_manifest(split_envelope((storage / ".cvmfspublished").read_bytes(), "manifest").text)
    with closing(sqlite3.connect(":memory:")) as database:
        database.deserialize(store.read(manifest.root_hash, Kind.CATALOG))
        (digest,) = database.execute("SELECT hash FROM catalog WHERE name = ?", (name,)).fetchone()
    return store.read(ContentHash(digest), Kind.FILE)
