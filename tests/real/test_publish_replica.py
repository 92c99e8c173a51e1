# SPDX-License-Identifier: BSD-3-Clause
"""A replica over HTTP: whole at every moment, resumed where it stopped, and as good as its source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import pytest

from cernvm.cli import cvmfs_server
from cernvm.cvmfs.counters import Counters
from cernvm.cvmfs.errors import ObjectCorrupt, ObjectMissing, RolledBack, Untrusted
from cernvm.cvmfs.fetch import Fetcher
from cernvm.cvmfs.http import Transport
from cernvm.cvmfs.publish import Replicated, add_tag, check_repository, collect_garbage, replicate, roll_back
from tests.support.cvmfs import fixture
from tests.support.deadly import killed_at
from tests.support.nginx import Nginx
from tests.support.publisher import FQRN, Home, make_home, make_keys, plant
from tests.support.publishing import SERVER, Disk, opened
from tests.support.tamper import stored

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("replica") / "keys")


@pytest.fixture
def home(tmp_path: Path, keys: Path) -> Home:
    made = make_home(tmp_path, keys)
    plant(
        made.tree, {"a": b"one", "n/.cvmfscatalog": b"", "n/b": b"two", "n/deep/.cvmfscatalog": b"", "n/deep/c": b"3"}
    )
    made.publish()
    add_tag(FQRN, made.storage, keys, "v2")
    plant(made.tree, {"a": b"changed", "n/deep/c": b"changed too", "cut": Random(2).randbytes(9 << 20)})
    made.publish()
    return made


def from_disk(storage: Path) -> Fetcher:
    return Fetcher(Transport((SERVER,)), Disk(storage), Counters(), random=Random(0), sleep=lambda _: None)


def copy(home: Home, to: Path, *, public: Path | None = None, jobs: int = 4) -> Replicated:
    return replicate(FQRN, to, public or home.public, from_disk(home.storage), jobs=jobs)


def whole(home: Home, replica: Path, *tags: str) -> None:
    for tag in (None, *tags):
        assert check_repository(FQRN, replica, public=home.public, tag=tag, objects=True).faults == ()


def test_a_copy_over_http_is_the_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, fqrn, replica = fixture("small"), "small.test.org", tmp_path / "replica"
    with Nginx(tmp_path / "web", place / "repo") as web:
        arguments = ["snapshot", fqrn, "--storage", str(replica), "--url", web.url]
        arguments += ["--public", str(place / f"keys/{fqrn}.pub"), "--json"]
        assert cvmfs_server.main(arguments) == 0
        first = json.loads(capsys.readouterr().out)
        asked = web.hits("/data/")
        assert cvmfs_server.main(arguments) == 0
        assert json.loads(capsys.readouterr().out)["objects_new"] == 0
        assert web.hits("/data/") == asked
    assert (first["revision"], first["revisions_missing"]) == (7, 0)
    for name in (".cvmfspublished", ".cvmfswhitelist", ".cvmfsreflog"):
        assert (replica / name).read_bytes() == (place / "repo" / name).read_bytes()
    for tag in ("trunk", "v1.0", "v2.0", "v3.0"):
        found = check_repository(fqrn, replica, public=place / f"keys/{fqrn}.pub", tag=tag, objects=True)
        assert found.faults == ()


def test_a_second_copy_brings_what_is_new(home: Home, tmp_path: Path) -> None:
    replica = tmp_path / "replica"
    copy(home, replica)
    whole(home, replica, "v2")
    plant(home.tree, {"n/b": b"newer"})
    home.publish()
    done = copy(home, replica)
    assert (done.revision, done.catalogs_new) == (4, 2)
    whole(home, replica, "v2", "trunk-previous")
    with opened(FQRN, replica, home.public, tmp_path / "cache") as revision:
        assert revision.tree.manifest.revision == 4


@pytest.mark.timeout(300)
def test_a_copy_killed_between_any_two_writes_goes_on(home: Home, tmp_path: Path) -> None:
    replica, pristine = tmp_path / "replica", tmp_path / "pristine"
    plant(home.tree, {"n/deep/d": b"d"})
    copy(home, replica)
    shutil.copytree(replica, pristine)
    before = (replica / ".cvmfspublished").read_bytes()
    home.publish()
    for write in range(1, 200, 2):
        shutil.rmtree(replica)
        shutil.copytree(pristine, replica)
        killed = killed_at(write, lambda: copy(home, replica, jobs=1))
        if (replica / ".cvmfspublished").read_bytes() == before:
            whole(home, replica, "v2")
        copy(home, replica)
        whole(home, replica, "v2", "trunk-previous")
        if not killed:
            break
    assert not killed
    assert write > 10


def test_what_is_corrupt_or_missing_at_the_source_is_not_served(home: Home, tmp_path: Path) -> None:
    replica = tmp_path / "replica"
    harmed = stored(home, "/a")
    good = harmed.read_bytes()
    harmed.write_bytes(b"other")
    with pytest.raises(ObjectCorrupt):
        copy(home, replica)
    assert not (replica / ".cvmfspublished").exists()
    harmed.unlink()
    with pytest.raises(ObjectMissing):
        copy(home, replica)
    harmed.write_bytes(good)
    copy(home, replica)
    whole(home, replica, "v2")
    assert list((replica / "data/txn").iterdir()) == []


def test_who_is_not_trusted_is_not_copied(home: Home, tmp_path: Path) -> None:
    other = make_keys(tmp_path / "other")
    with pytest.raises(Untrusted, match="not signed by any"):
        copy(home, tmp_path / "replica", public=other / f"{FQRN}.pub")
    assert not (tmp_path / "replica/.cvmfspublished").exists()
    copy(home, tmp_path / "replica")
    old = tmp_path / "old"
    shutil.copytree(home.storage, old)
    home.publish()
    copy(home, tmp_path / "replica")
    with pytest.raises(RolledBack):
        replicate(FQRN, tmp_path / "replica", home.public, from_disk(old))
    (home.storage / ".cvmfs_master_replica").unlink()
    with pytest.raises(ObjectMissing, match="cvmfs_master_replica"):
        copy(home, tmp_path / "replica")


def test_a_replica_outlives_garbage_collection_on_both_sides(home: Home, tmp_path: Path) -> None:
    replica = tmp_path / "replica"
    copy(home, replica)
    for number in range(3):
        plant(home.tree, {"a": b"again %d" % number})
        home.publish()
    copy(home, replica)
    collect_garbage(FQRN, home.storage, home.keys, keep=1)
    roll_back(FQRN, home.storage, home.keys, "v2")
    copy(home, replica)
    whole(home, replica, "v2")
    before = len(list((replica / "data").rglob("*")))
    assert collect_garbage(FQRN, replica, None, keep=1).revisions_removed > 0
    assert len(list((replica / "data").rglob("*"))) < before
    whole(home, replica, "v2", "trunk-previous")
    home.publish()
    copy(home, replica)
    whole(home, replica, "v2")
