# SPDX-License-Identifier: BSD-3-Clause
"""Names for revisions, the way back to one, and what lies between two."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cernvm.cli import cvmfs_server, server_options
from cernvm.cvmfs.errors import Mistake, NoRepository
from cernvm.cvmfs.publish import (
    add_tag,
    check_repository,
    compare_revisions,
    list_tags,
    remove_repository,
    remove_tag,
    roll_back,
)
from tests.support.publisher import FQRN, Home, make_home, make_keys, plant
from tests.support.publishing import opened


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("tags") / "keys")


@pytest.fixture
def home(tmp_path: Path, keys: Path) -> Home:
    made = make_home(tmp_path, keys)
    plant(made.tree, {"same": b"s", "a": b"one", "gone/x": b"x", "n/.cvmfscatalog": b"", "n/f": b"f"})
    plant(made.tree, {"kept/.cvmfscatalog": b"", "kept/f": b"f", "turns": b"file"})
    (made.tree / "link").symlink_to("old")
    made.publish()
    return made


def change(home: Home) -> None:
    plant(home.tree, {"a": b"three", "n/g": b"new"})
    (home.tree / "gone/x").unlink()
    (home.tree / "gone").rmdir()
    (home.tree / "link").unlink()
    (home.tree / "link").symlink_to("newer")
    (home.tree / "turns").unlink()
    (home.tree / "turns/in").mkdir(parents=True)
    os.utime(home.tree / "same", ns=(0, 5))
    home.publish()


def names(home: Home) -> dict[str, int]:
    return {tag.name: tag.revision for tag in list_tags(FQRN, home.storage)}


def whole(home: Home) -> None:
    assert check_repository(FQRN, home.storage, public=home.public, objects=True).faults == ()


def test_tags_name_revisions_by_number_and_by_tag(home: Home) -> None:
    home.publish()
    assert names(home) == {"trunk": 3, "trunk-previous": 2}
    add_tag(FQRN, home.storage, home.keys, "now", description="as it is")
    add_tag(FQRN, home.storage, home.keys, "first", revision="1")
    add_tag(FQRN, home.storage, home.keys, "again", revision="first")
    assert names(home) == {"trunk": 3, "trunk-previous": 2, "now": 3, "first": 1, "again": 1}
    whole(home)
    remove_tag(FQRN, home.storage, home.keys, "again")
    assert "again" not in names(home)
    with opened(FQRN, home.storage, home.public, home.root / "cache") as revision:
        assert revision.tree.manifest.revision == 3
    whole(home)
    assert home.publish().revision == 4
    assert names(home)["first"] == 1


@pytest.mark.parametrize("name", ["trunk", "", "a b", "7", "x" * 256, "\u00e9"])
def test_names_that_cannot_be_tags_are_refused(home: Home, name: str) -> None:
    before = home.served()
    with pytest.raises(Mistake, match="cannot be the name of a tag"):
        add_tag(FQRN, home.storage, home.keys, name)
    assert home.served() == before


def test_tags_that_are_there_or_not_there_are_named(home: Home) -> None:
    add_tag(FQRN, home.storage, home.keys, "v1")
    with pytest.raises(Mistake, match="v1 is there already"):
        add_tag(FQRN, home.storage, home.keys, "v1")
    with pytest.raises(NoRepository, match="no stored revision '99'"):
        add_tag(FQRN, home.storage, home.keys, "v2", revision="99")
    with pytest.raises(NoRepository, match="has no tag 'v2'"):
        remove_tag(FQRN, home.storage, home.keys, "v2")
    with pytest.raises(Mistake, match="is kept by each publication"):
        remove_tag(FQRN, home.storage, home.keys, "trunk")


def test_a_rollback_is_a_new_revision_with_the_old_content(home: Home) -> None:
    with opened(FQRN, home.storage, home.public, home.root / "cache") as revision:
        old = revision.shown()
    change(home)
    done = roll_back(FQRN, home.storage, home.keys)
    assert (done.revision, done.content_of) == (4, 2)
    with opened(FQRN, home.storage, home.public, home.root / "cache") as revision:
        assert revision.shown() == old
        assert revision.tree.manifest.revision == 4
    assert names(home) == {"trunk": 4, "trunk-previous": 3}
    assert list(compare_revisions(FQRN, home.storage, "2", "4")) == []
    whole(home)
    assert home.publish().revision == 5
    whole(home)


def test_differences_have_names_kinds_and_sizes(home: Home) -> None:
    change(home)
    found = {(it.change, it.path): it for it in compare_revisions(FQRN, home.storage, "trunk-previous", "trunk")}
    assert {key for key in found if found[key].what not in [("mtime",), ("mtimens",), ("mtime", "mtimens")]} == {
        ("changed", "/a"),
        ("removed", "/gone"),
        ("removed", "/gone/x"),
        ("changed", "/link"),
        ("added", "/n/g"),
        ("removed", "/turns"),
        ("added", "/turns"),
        ("added", "/turns/in"),
    }
    changed = found["changed", "/a"]
    assert (changed.old_size, changed.new_size, changed.what[0]) == (3, 5, "content")
    assert found["changed", "/link"].what[0] == "target"
    assert ("changed", "/same") in found
    assert (found["removed", "/turns"].old_kind, found["added", "/turns"].new_kind) == ("file", "directory")


def test_the_command_lists_tags_rolls_back_and_removes(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written = tmp_path / "repositories.d"
    written.mkdir()
    (written / f"{FQRN}.conf").write_text(f"[repository]\nstorage = {home.storage}\nkeys = {home.keys}\n")
    monkeypatch.setattr(server_options, "REPOSITORIES", written)

    def command(*arguments: str) -> str:
        status = cvmfs_server.main(list(arguments))
        said = capsys.readouterr()
        assert (status, said.err) == (0, "")
        return said.out

    assert f"{FQRN} " in command("list")
    command("tag", FQRN, "add", "v1", "--description", "one")
    assert "v1 " in command("tag", FQRN, "list")
    change(home)
    assert "+ /n/g  file 0 -> 3 bytes\n" in command("diff", FQRN, "v1", "trunk")
    assert json.loads(command("diff", FQRN, "v1", "2", "--json"))["differences"] == []
    assert json.loads(command("rollback", FQRN, "--to", "v1", "--json"))["content_of"] == 2
    assert json.loads(command("info", FQRN, "--json"))["tags"] == 3
    command("tag", FQRN, "remove", "v1")
    assert "say --yes" in command("rmfs", FQRN)
    assert home.storage.exists()
    command("rmfs", FQRN, "--yes")
    assert not home.storage.exists()
    assert (home.keys / f"{FQRN}.key").exists()
    assert cvmfs_server.main(["rmfs", FQRN]) == 2


def test_what_is_not_the_repositorys_stays(home: Home) -> None:
    plant(home.storage, {"other": b"mine"})
    remove_repository(FQRN, home.storage)
    assert [path.name for path in home.storage.iterdir()] == ["other"]
