# SPDX-License-Identifier: BSD-3-Clause
"""Computed attributes without a mount: pages, protection, visibility, counters of the right catalog."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cernvm.cvmfs import magic
from cernvm.cvmfs.errors import NoAttribute
from cernvm.cvmfs.inodes import ROOT
from cernvm.cvmfs.view import Policy, View
from tests.support.cvmfs import fixture
from tests.support.storage import StorageView


@pytest.fixture
def small(tmp_path: Path) -> StorageView:
    return StorageView(fixture("small") / "repo", tmp_path)


def value(view: View, name: bytes, group: int = 0) -> bytes:
    return view.xattr(ROOT, name, group)


def test_long_values_come_in_pages_only(small: StorageView) -> None:
    long = b"".join(b"%09d\n" % number for number in range(10_000)).rstrip(b"\n")
    small.view.told = {b"user.logbuffer": lambda: long}
    count = value(small.view, b"user.logbuffer~?")
    assert count == b"num_pages, 3"
    pages = [value(small.view, b"user.logbuffer~%d" % number) for number in range(3)]
    assert b"".join(pages) == long
    assert all(len(page) <= magic.PAGE for page in pages)
    first = value(small.view, b"user.logbuffer")
    assert first.partition(b"\n")[2] == pages[0]
    assert len(first) < 65536
    with pytest.raises(NoAttribute):
        value(small.view, b"user.logbuffer~3")


def test_protection_covers_pages_and_spares_root_and_the_privileged(small: StorageView) -> None:
    protection = magic.Protection(frozenset({b"user.fqrn"}), frozenset({7}))
    small.view.policy = replace(small.view.policy, protection=protection)
    assert value(small.view, b"user.fqrn", 7) == value(small.view, b"user.fqrn", 0) == b"small.test.org"
    assert value(small.view, b"user.revision", 8)
    for name in (b"user.fqrn", b"user.fqrn~0", b"user.fqrn@?"):
        with pytest.raises(NoAttribute):
            value(small.view, name, 8)


@pytest.mark.parametrize(
    ("visibility", "on_root", "elsewhere"),
    [
        (magic.Visibility.ROOT_ONLY, True, False),
        (magic.Visibility.ALWAYS, True, True),
        (magic.Visibility.NEVER, False, False),
    ],
)
def test_listings_name_them_where_the_site_wants_it(
    tmp_path: Path, visibility: magic.Visibility, on_root: bool, elsewhere: bool
) -> None:
    view = StorageView(fixture("small") / "repo", tmp_path, Policy(list_magic=visibility))
    readme = view.walk("README.txt")
    assert (b"user.fqrn" in view.view.xattr_names(ROOT)) is on_root
    assert (b"user.fqrn" in view.view.xattr_names(readme)) is elsewhere
    assert view.view.xattr(readme, b"user.fqrn") == b"small.test.org", "they are answered everywhere"


def test_a_file_that_is_not_cached_says_so(small: StorageView) -> None:
    readme = small.walk("README.txt")
    assert small.view.xattr(readme, b"user.lhash") == b"Not in cache"
    small.view.open(readme)
    assert small.view.xattr(readme, b"user.lhash") == small.view.xattr(readme, b"user.hash")


def test_counters_are_of_the_catalog_that_holds_the_entry(small: StorageView) -> None:
    root = value(small.view, b"user.catalog_counters").splitlines()
    assert root[0] == b"catalog_hash: " + value(small.view, b"user.root_hash")
    assert root[1] == b"catalog_mountpoint: /"
    assert all(line.rpartition(b",")[2].isdigit() for line in root[2:])
    assert root[2:] == value(small.view, b"user.repo_counters").splitlines()
