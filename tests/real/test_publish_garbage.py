# SPDX-License-Identifier: BSD-3-Clause
"""Garbage collection removes what nobody keeps, nothing else, and may be killed at any point."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from cernvm.cli import cvmfs_server
from cernvm.cvmfs.errors import Mistake
from cernvm.cvmfs.hashes import parse_hash
from cernvm.cvmfs.publish import add_tag, check_repository, collect_garbage, resign_whitelist, roll_back
from cernvm.cvmfs.publish.collect import references
from cernvm.cvmfs.publish.rows import stored_rows
from cernvm.cvmfs.publish.store import Store
from cernvm.cvmfs.publish.trustees import make_keys as adopt_keys
from tests.support.cvmfs import copy_of, fixture
from tests.support.deadly import killed_at
from tests.support.publisher import FQRN, Home, make_home, make_keys, plant, same

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("garbage") / "keys")


@pytest.fixture
def home(tmp_path: Path, keys: Path) -> Home:
    """Revisions 1 to 5; revision 3 is tagged."""
    made = make_home(tmp_path, keys)
    for number in range(2, 6):
        plant(made.tree, {"a": b"a%d" % number, "n/.cvmfscatalog": b"", "n/b": b"b%d" % number, "stays": b"s"})
        plant(made.tree, {"n/deep/.cvmfscatalog": b"", "n/deep/c": b"c%d" % (number // 4)})
        made.publish()
        if number == 3:
            add_tag(FQRN, made.storage, keys, "v3")
    return made


def objects(home: Home) -> set[str]:
    return {name for name in home.served() if name.startswith("data/")}


def whole(home: Home, tags: Iterable[str] = ("trunk", "v3")) -> None:
    for tag in tags:
        assert check_repository(FQRN, home.storage, public=home.public, tag=tag, objects=True).faults == ()


def test_what_only_old_revisions_refer_to_is_removed(home: Home) -> None:
    before = objects(home)
    planned = collect_garbage(FQRN, home.storage, home.keys, keep=1, dry_run=True)
    assert objects(home) == before
    done = collect_garbage(FQRN, home.storage, home.keys, keep=1)
    assert (done.revisions_kept, done.revisions_removed) == (3, 2)  # trunk, trunk-previous, v3
    assert (planned.objects_removed, planned.bytes_removed) == (done.objects_removed, done.bytes_removed)
    assert len(before - objects(home)) == done.objects_removed > done.catalogs_removed >= 3
    whole(home, ("trunk", "trunk-previous", "v3"))
    same(home)
    assert collect_garbage(FQRN, home.storage, home.keys, keep=1).objects_removed == 0
    assert home.publish().revision == 6
    roll_back(FQRN, home.storage, home.keys, "v3")
    whole(home)


def test_age_and_number_say_what_stays(home: Home) -> None:
    assert collect_garbage(FQRN, home.storage, home.keys).revisions_removed == 0
    assert collect_garbage(FQRN, home.storage, home.keys, keep=9).revisions_removed == 0
    long_ago = datetime.now(UTC) - timedelta(days=1)
    assert collect_garbage(FQRN, home.storage, home.keys, newer_than=long_ago).revisions_removed == 0
    soon = datetime.now(UTC) + timedelta(days=1)
    assert collect_garbage(FQRN, home.storage, home.keys, newer_than=soon, dry_run=True).revisions_removed == 2


def test_content_that_was_collected_is_stored_again(home: Home) -> None:
    collect_garbage(FQRN, home.storage, home.keys, keep=1)
    plant(home.tree, {"a": b"a2"})
    home.publish()
    same(home)
    whole(home)


def test_a_replica_collects_without_keys(home: Home) -> None:
    manifest = (home.storage / ".cvmfspublished").read_bytes()
    assert collect_garbage(FQRN, home.storage, None, keep=1).revisions_removed == 2
    assert (home.storage / ".cvmfspublished").read_bytes() == manifest
    whole(home)
    home.publish()
    whole(home)


@pytest.mark.timeout(300)
def test_a_collection_killed_between_any_two_writes_leaves_a_whole_repository(home: Home, tmp_path: Path) -> None:
    pristine = tmp_path / "pristine"
    shutil.copytree(home.storage, pristine)
    collect = partial(collect_garbage, FQRN, home.storage, home.keys, keep=1)
    collect()
    clean = objects(home)
    for write in range(1, 300):
        shutil.rmtree(home.storage)
        shutil.copytree(pristine, home.storage)
        killed = killed_at(write, collect)
        whole(home)
        catalogs_are_complete(home)
        collect()
        assert objects(home) == clean, f"after a kill before write {write}"
        if not killed:
            break
    assert not killed
    assert write > 20


def catalogs_are_complete(home: Home) -> None:
    """Every catalog that is stored can be followed to the end."""
    store = Store(home.storage)
    pending = [parse_hash(path.parent.name + path.name[:-1]) for path in (home.storage / "data").glob("??/*C")]
    seen = set()
    while pending:
        content = pending.pop()
        if content not in seen:
            seen.add(content)
            with stored_rows(store, content) as rows:
                assert all(store.has(found, kind) for found, kind in references(rows))
                pending += [nested.content for nested in rows.nested().values()]


def test_a_repository_of_the_original_server_is_collected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, fqrn, keys = fixture("small"), "small.test.org", tmp_path / "keys"
    storage = copy_of(place / "repo", tmp_path / "storage")
    adopt_keys(fqrn, keys)
    resign_whitelist(fqrn, storage, keys)
    with pytest.raises(Mistake, match="not both"):
        collect_garbage(fqrn, storage, keys, keep=1, newer_than=datetime.now(UTC))
    arguments = ["gc", fqrn, "--storage", str(storage), "--keys", str(keys), "--keep", "1", "--json"]
    assert cvmfs_server.main(arguments) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["revisions_removed"] == 4
    assert said["objects_removed"] > 0
    for tag in ("trunk", "v1.0", "v2.0", "v3.0"):
        found = check_repository(fqrn, storage, public=keys / f"{fqrn}.pub", tag=tag, objects=True)
        assert found.faults == ()
