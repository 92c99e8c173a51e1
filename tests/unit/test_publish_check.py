# SPDX-License-Identifier: BSD-3-Clause
"""`cvmfs-server check` accepts what is whole and names each thing that is not."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from cernvm.cli import cvmfs_server
from cernvm.cvmfs.errors import NoRepository
from cernvm.cvmfs.publish import check_repository
from cernvm.cvmfs.publish.check import MOST_FAULTS, Report
from tests.support.cvmfs import fixture
from tests.support.publisher import FQRN, Home, make_home, make_keys, plant
from tests.support.tamper import at, edit_nested, edit_root, stored


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("check") / "keys")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Home:
    made = make_home(tmp_path_factory.mktemp("pristine"), keys)
    plant(made.tree, {"a": b"alpha", "d/b": b"beta", "n/.cvmfscatalog": b"", "n/c": b"gamma", "big": bytes(2 << 20)})
    plant(made.tree, {"cut": Random(1).randbytes(10 << 20)})
    (made.tree / "link").symlink_to("a")
    (made.tree / "a2").hardlink_to(made.tree / "a")
    made.publish()
    return made


@pytest.fixture
def home(tmp_path: Path, pristine: Home) -> Home:
    made = Home(tmp_path, pristine.keys)
    shutil.copytree(pristine.storage, made.storage)
    return made


def report(home: Home, *, objects: bool = False) -> Report:
    return check_repository(FQRN, home.storage, public=home.public, objects=objects)


def faults(home: Home, *, objects: bool = False) -> list[str]:
    return [f"{fault.where}: {fault.what}" for fault in report(home, objects=objects).faults]


def test_what_we_publish_is_whole(home: Home) -> None:
    found = report(home, objects=True)
    assert (found.faults, found.catalogs, found.entries) == ((), 2, 11)
    assert found.objects == found.objects_read
    assert found.bytes_read > 10 << 20


@pytest.mark.parametrize(
    ("name", "fqrn", "entries"), [("small", "small.test.org", 5240), ("small-rmd160", "rmd160.test.org", 11)]
)
def test_what_the_original_server_published_is_whole(name: str, fqrn: str, entries: int) -> None:
    place = fixture(name)
    found = check_repository(fqrn, place / "repo", public=place / f"keys/{fqrn}.pub", objects=True)
    assert (found.faults, found.entries) == ((), entries)


ROWS: dict[str, tuple[str, str]] = {
    "a link count of a directory": ("UPDATE catalog SET hardlinks = 9 WHERE " + at("/d"), "/d: has 0 sub-directories"),
    "a link count of a file": ("UPDATE catalog SET hardlinks = 2 WHERE " + at("/big"), "/big: has the link count 2"),
    "a group of hard links": ("UPDATE catalog SET hardlinks = 1 << 32 | 3 WHERE " + at("/a"), "/a: has 2 hard links"),
    "hard links of other content": ("UPDATE catalog SET size = 1 WHERE " + at("/a2"), "/a: its hard links have"),
    "a symbolic link's size": ("UPDATE catalog SET size = 7 WHERE " + at("/link"), "/link: the link's size is 7"),
    "a file without hash": ("UPDATE catalog SET hash = NULL WHERE " + at("/big"), "/big: the file has no content hash"),
    "a hash of a link": ("UPDATE catalog SET hash = x'00' WHERE " + at("/link"), "/link: has a content hash although"),
    "an object that is not there": (
        f"UPDATE catalog SET hash = x'{'ab' * 20}' WHERE " + at("/big"),
        f"/big: the object {'ab' * 20} is missing",
    ),
    "a wrong kind": ("UPDATE catalog SET flags = 1 WHERE " + at("/big"), "/big: mode 100644 and flags 1 name diff"),
    "an unknown hash": ("UPDATE catalog SET flags = 4 | (7 << 8) WHERE " + at("/big"), "/big: a catalog entry"),
    "a name that is another's": ("UPDATE catalog SET name = 'x' WHERE " + at("/big"), "/x: the row's hash is not that"),
    "a lost parent": ("UPDATE catalog SET parent_1 = 1 WHERE " + at("/d/b"), "/: 1 rows cannot be reached"),
    "a chunk that is missing": ("DELETE FROM chunks WHERE offset = 0", "/cut: the chunk at "),
    "a chunk that overlaps": ("UPDATE chunks SET size = size + 1 WHERE offset = 0", "/cut: the chunk at "),
    "a last chunk that is short": (
        "UPDATE chunks SET size = size - 1 WHERE offset = (SELECT max(offset) FROM chunks)",
        f"/cut: its chunks have {(10 << 20) - 1} bytes together",
    ),
    "chunks of no file": ("UPDATE catalog SET flags = flags - 64, hash = zeroblob(20) WHERE " + at("/cut"), "/: "),
    "a counter of the catalog": (
        "UPDATE statistics SET value = 0 WHERE counter = 'self_regular'",
        "/: the counter self_regular is 0, counted were 5",
    ),
    "a counter of what is below": (
        "DELETE FROM statistics WHERE counter = 'subtree_file_size'",
        "/: the counter subtree_file_size is 0, counted were 5",
    ),
    "a transition that is not marked": ("UPDATE catalog SET flags = 1 WHERE " + at("/n"), "/n: a nested catalog is l"),
    "a transition that is not listed": ("DELETE FROM nested_catalogs", "/n: is marked as the place of a nested cata"),
    "another size of a nested catalog": ("UPDATE nested_catalogs SET size = 1", "/n: the catalog has "),
    "rows of a transition that differ": ("UPDATE catalog SET mtime = 1 WHERE " + at("/n"), "/n: the rows in the cata"),
    "attributes that break off": ("UPDATE catalog SET xattr = x'0101' WHERE " + at("/a"), "/a: a catalog entry's ext"),
    "another schema": ("UPDATE properties SET value = '3.0' WHERE key = 'schema'", "/: the catalog's schema is"),
    "another revision": ("UPDATE properties SET value = '9' WHERE key = 'revision'", ".cvmfspublished: is revision 2,"),
}


@pytest.mark.parametrize("what", list(ROWS))
def test_a_wrong_row_is_named(home: Home, what: str) -> None:
    statement, complaint = ROWS[what]
    edit_root(home, statement)
    found = faults(home)
    assert any(line.startswith(complaint) for line in found), found


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("DELETE FROM catalog WHERE " + at("/n/.cvmfscatalog"), "/n: a nested catalog has no file .cvmfscatalog"),
        ("UPDATE catalog SET flags = 1 WHERE " + at("/n"), "/n: the mark of a nested catalog's root is wrong"),
        ("DELETE FROM catalog WHERE " + at("/n"), "/n: the catalog has no row for its own root"),
        (
            "UPDATE properties SET value = '/x' WHERE key = 'root_prefix'",
            "/n: the catalog says that it belongs to b'/x'",
        ),
    ],
)
def test_a_wrong_nested_catalog_is_named(home: Home, statement: str, complaint: str) -> None:
    edit_nested(home, "/n", statement)
    found = faults(home)
    assert any(line.startswith(complaint) for line in found), found


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def swap(path: Path) -> None:
    path.write_bytes(zlib.compress(b"other"))


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize("harm", [cut_short, swap, append])
def test_a_harmed_object_is_found_by_reading_it(home: Home, harm: Callable[[Path], None]) -> None:
    harm(stored(home, "/big"))
    assert faults(home) == []
    assert len(faults(home, objects=True)) == 1
    assert faults(home, objects=True)[0].startswith("/big: the object ")


def test_a_file_of_another_length_than_its_object_is_found(home: Home) -> None:
    edit_root(home, "UPDATE catalog SET size = size - 1 WHERE " + at("/big"))
    assert any("does not have the 2097151 bytes" in line for line in faults(home, objects=True))


def test_signed_files_are_looked_at(home: Home, tmp_path: Path) -> None:
    served = home.storage
    good = {name: (served / name).read_bytes() for name in (".cvmfspublished", ".cvmfswhitelist", ".cvmfsreflog")}

    def complaint(name: str, data: bytes | None) -> str:
        if data is None:
            (served / name).unlink()
        else:
            (served / name).write_bytes(data)
        found = faults(home)
        (served / name).write_bytes(good[name])
        return "\n".join(found)

    manifest = good[".cvmfspublished"]
    assert "signature does not belong" in complaint(".cvmfspublished", manifest[:-1] + bytes([manifest[-1] ^ 1]))
    assert "is missing" in complaint(".cvmfswhitelist", None)
    assert "not signed by any" in complaint(".cvmfswhitelist", good[".cvmfswhitelist"][:-1] + b"!")
    assert "is missing" in complaint(".cvmfsreflog", None)
    assert "the manifest says" in complaint(".cvmfsreflog", good[".cvmfsreflog"] + b"x")
    other = make_keys(tmp_path / "other")
    found = check_repository(FQRN, served, public=other / f"{FQRN}.pub").faults
    assert [fault.where for fault in found] == [".cvmfswhitelist"]
    assert faults(home) == []


def test_a_tag_without_its_catalog_is_found_and_a_tag_may_be_checked(home: Home) -> None:
    plant(home.tree, {"more": b"1"})
    first = report(home).root_hash
    home.publish()
    assert check_repository(FQRN, home.storage, tag="trunk-previous").root_hash == first
    with pytest.raises(NoRepository, match="has no tag 'v1'"):
        check_repository(FQRN, home.storage, tag="v1")
    (home.storage / f"data/{first[:2]}/{first[2:]}C").unlink()
    assert any("the tag trunk-previous names" in line for line in faults(home))


def test_faults_beyond_measure_are_counted(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cernvm.cvmfs.publish.check.MOST_FAULTS", 2)
    edit_root(home, "UPDATE catalog SET hardlinks = 7")
    found = report(home)
    assert len(found.faults) == 2 < found.fault_count < MOST_FAULTS


def test_the_command_tells_by_its_status(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--storage", str(home.storage), "--public", str(home.public)]
    assert cvmfs_server.main(["check", FQRN, *places, "--objects"]) == 0
    assert capsys.readouterr().out.endswith("read): no fault\n")
    stored(home, "/big").unlink()
    assert cvmfs_server.main(["check", FQRN, *places, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["good"], said["fault_count"], said["faults"][0]["where"]) == (False, 1, "/big")
    assert cvmfs_server.main(["check", FQRN, "--storage", str(home.root / "none")]) == 2
    assert cvmfs_server.main(["check", FQRN]) == 2
    assert "give --storage DIR" in capsys.readouterr().err
