# SPDX-License-Identifier: BSD-3-Clause
"""What is published is what the tree holds; what fails in the middle changes nothing."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sqlite3
import stat
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from cernvm.cvmfs.errors import CvmfsProblem
from cernvm.cvmfs.hashes import Algorithm, ContentHash, Kind, hash_of, parse_hash
from cernvm.cvmfs.publish import (
    Progress,
    create_repository,
    describe,
    publish_tree,
    read_manifest,
)
from cernvm.cvmfs.publish.store import Store
from cernvm.cvmfs.tree import Tree
from tests.support.publisher import FQRN, Home, make_home, make_keys, plant, same
from tests.support.publishing import opened


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("publish") / "keys")


@pytest.fixture
def home(tmp_path: Path, keys: Path) -> Home:
    return make_home(tmp_path, keys)


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_a_new_repository_is_empty_and_believed(tmp_path: Path, keys: Path, algorithm: Algorithm) -> None:
    done = create_repository(FQRN, tmp_path / "s", keys, algorithm=algorithm, ttl=60)
    assert (done.revision, done.files, done.entries, done.catalogs) == (1, 0, 1, 1)
    assert parse_hash(done.root_hash).algorithm is algorithm
    with opened(FQRN, tmp_path / "s", keys / f"{FQRN}.pub", tmp_path / "cache") as revision:
        assert list(revision.shown()) == [b""]
        assert revision.tree.root.ttl == 60
    found = describe(FQRN, tmp_path / "s")
    assert (found.revision, found.entries, found.bytes, found.ttl) == (1, 1, 0, 60)
    assert found.whitelist_expires is not None
    assert found.whitelist_expires - datetime.now(UTC) > timedelta(days=29, hours=22)


def test_a_revision_shows_the_tree(home: Home) -> None:
    plant(home.tree, {"a": b"one", "dir/b": b"two" * 1000, "dir/empty": b"", "n/.cvmfscatalog": b"", "n/x/y": b"deep"})
    (home.tree / "link").symlink_to("$(ARCH)//./x")
    (home.tree / "dir/again").hardlink_to(home.tree / "a")
    (home.tree / "dir/twice").hardlink_to(home.tree / "dir/b")
    os.mkfifo(home.tree / "fifo", 0o600)
    (home.tree / "a").chmod(0o4711)
    os.utime(home.tree / "dir/empty", ns=(0, -1))
    (home.tree / os.fsdecode(b"caf\xe9")).mkdir()
    done = home.publish()
    assert (done.revision, done.catalogs, done.files) == (2, 2, 7)
    same(home)


def test_removed_and_changed_files_are_gone_in_the_next_revision(home: Home) -> None:
    plant(home.tree, {"a": b"one", "b": b"two", "n/.cvmfscatalog": b"", "n/c": b"three"})
    home.publish()
    (home.tree / "a").unlink()
    (home.tree / "n/.cvmfscatalog").unlink()
    plant(home.tree, {"b": b"other"})
    assert home.publish().revision == 3
    same(home)


def test_known_content_is_not_stored_again(home: Home) -> None:
    plant(home.tree, {"a": b"x" * 5000, "n/.cvmfscatalog": b"", "n/b": b"y"})
    first = home.publish()
    plant(home.tree, {"copy": b"x" * 5000})
    second = home.publish()
    assert first.objects_new == 6  # a, marker, b, two catalogs, history; the certificate and metainfo were there
    assert second.objects_new == 2  # root catalog and history
    assert second.catalogs_kept == 1
    same(home)


def test_known_content_is_not_compressed_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(home.tree, {"a": b"x" * 5000})
    home.publish()
    (home.tree / "a").rename(home.tree / "b")

    def refuse(*_: object) -> None:
        raise AssertionError("compressed known content")

    monkeypatch.setattr("cernvm.cvmfs.publish.objects.Depositor._store_content", refuse)
    home.publish()
    same(home)


def test_content_whose_object_was_lost_is_stored_again(home: Home) -> None:
    plant(home.tree, {"a": b"x" * 5000})
    home.publish()
    lost = object_of(home, b"/a")
    lost.unlink()
    home.publish()
    assert lost.exists()


def test_a_damaged_index_of_known_content_is_replaced(home: Home) -> None:
    plant(home.tree, {"a": b"x"})
    home.publish()
    (home.storage / "publisher/seen.db").write_bytes(b"no database" * 1000)
    home.publish()
    same(home)


def test_large_files_are_chunked_and_small_changes_reuse_chunks(home: Home) -> None:
    data = Random(1).randbytes(18 << 20)
    plant(home.tree, {"big": data, "edge": bytes(4 << 20)})
    first = home.publish()
    same(home)
    plant(home.tree, {"big": data[:-1000] + b"changed" + data[-1000:]})
    second = home.publish()
    assert first.bytes_stored > 18 << 20
    assert second.bytes_stored < 10 << 20
    same(home)


def test_hard_links_form_groups_within_a_directory_only(home: Home) -> None:
    plant(home.tree, {"d/a": b"x", "e/keep": b""})
    for name in ("d/b", "d/c", "e/far"):
        (home.tree / name).hardlink_to(home.tree / "d/a")
    home.publish()
    with opened(FQRN, home.storage, home.public, home.root / "cache") as revision:
        groups = {name: entry(revision.tree, name) for name in (b"/d/a", b"/d/b", b"/d/c", b"/e/far")}
    assert {name: links for name, (_, links) in groups.items()} == {b"/d/a": 3, b"/d/b": 3, b"/d/c": 3, b"/e/far": 1}
    assert groups[b"/d/a"][0] == groups[b"/d/c"][0] != 0
    assert groups[b"/e/far"][0] == 0


def entry(tree: Tree, path: bytes) -> tuple[int, int]:
    located = tree.find(path)
    assert located is not None
    return located.entry.link_group, located.entry.links


def test_dirtab_makes_catalogs_without_writing_to_the_tree(home: Home) -> None:
    plant(home.tree, {".cvmfsdirtab": b"/sw/*\n!/sw/no", "sw/a/f": b"1", "sw/b/f": b"2", "sw/no/f": b"3"})
    assert home.publish().catalogs == 3
    assert not list(home.tree.rglob(".cvmfscatalog"))
    with opened(FQRN, home.storage, home.public, home.root / "cache") as revision:
        shown = revision.shown()
    markers = {path: shown[path].mode for path in shown if path.endswith(b".cvmfscatalog")}
    assert markers == {
        b"/sw/a/.cvmfscatalog": stat.S_IFREG | 0o644,
        b"/sw/b/.cvmfscatalog": stat.S_IFREG | 0o644,
    }


def test_revisions_are_chained_and_tagged(home: Home) -> None:
    first = read_manifest(FQRN, home.storage)
    home.publish()
    second = read_manifest(FQRN, home.storage)
    home.publish(ttl=77)
    third = read_manifest(FQRN, home.storage)
    assert (third.revision, third.ttl) == (3, 77)
    store = Store(home.storage)
    chain = [properties(store.read(manifest.root_hash, Kind.CATALOG)) for manifest in (third, second)]
    assert [one["previous_revision"] for one in chain] == [str(second.root_hash), str(first.root_hash)]
    assert (chain[0]["revision"], chain[0]["TTL"], chain[0]["schema_revision"]) == ("3", "77", "7")
    assert third.history is not None
    with closing(sqlite3.connect(":memory:")) as history:
        history.deserialize(store.read(third.history, Kind.HISTORY))
        tags = dict(history.execute("SELECT name, hash FROM tags"))
    assert tags == {"trunk": str(third.root_hash), "trunk-previous": str(second.root_hash)}
    with closing(sqlite3.connect(home.storage / ".cvmfsreflog")) as reflog:
        kinds = reflog.execute("SELECT type, count(*) FROM refs GROUP BY type ORDER BY type").fetchall()
    assert kinds == [(0, 3), (1, 1), (2, 3), (3, 1)]
    assert third.reflog == hash_of((home.storage / ".cvmfsreflog").read_bytes())
    assert (home.storage / "publisher/reflog.chksum").read_text() == str(third.reflog)


def properties(catalog: bytes) -> dict[str, str]:
    with closing(sqlite3.connect(":memory:")) as database:
        database.deserialize(catalog)
        return dict(database.execute("SELECT key, value FROM properties"))


def test_everything_that_is_served_can_be_read_by_all(home: Home) -> None:
    old = os.umask(0o077)
    try:
        plant(home.tree, {"a": b"x", "big": bytes(5 << 20)})
        home.publish()
    finally:
        os.umask(old)
    modes = {path: path.stat().st_mode for path in home.storage.rglob("*") if "publisher" not in path.parts}
    assert {
        path for path, mode in modes.items() if mode & 0o444 != 0o444 or (path.is_dir() and mode & 0o111 != 0o111)
    } == set()
    assert stat.S_IMODE((home.storage / "publisher").stat().st_mode) == 0o700


def test_a_file_that_changes_while_it_is_read_is_published_as_it_was_read(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(home.tree, {"shrinks": b"s" * (3 << 20), "grows": b"g" * 100})
    read = os.pread

    def disturbed(fd: int, size: int, offset: int) -> bytes:
        block = read(fd, size, offset)
        with (home.tree / "grows").open("ab") as file:
            file.write(b"more")
        os.truncate(home.tree / "shrinks", 1 << 20)
        return block

    monkeypatch.setattr(os, "pread", disturbed)
    home.publish(jobs=1)
    monkeypatch.undo()
    with opened(FQRN, home.storage, home.public, home.root / "cache") as revision:
        shown = revision.shown()
    assert shown[b"/grows"].size == 100
    assert shown[b"/shrinks"].size == 1 << 20
    assert shown[b"/shrinks"].sha256 == hashlib.sha256(b"s" * (1 << 20)).hexdigest()


def test_progress_adds_up_to_the_tree(home: Home) -> None:
    plant(home.tree, {"a": b"x" * 10, "b": b"x" * 10, "c": b"y" * (3 << 20)})
    for _ in range(2):
        files: list[int] = []
        sizes: list[int] = []
        publish_tree(FQRN, home.tree, home.storage, home.keys, progress=Progress(files.append, sizes.append))
        assert (sum(files), sum(sizes)) == (3, 20 + (3 << 20))


def test_a_second_publisher_is_refused_while_the_first_works(home: Home) -> None:
    before = home.served()
    with (home.storage / "publisher/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CvmfsProblem, match="another publisher is at work"):
            home.publish()
    assert home.served() == before
    assert home.publish().revision == 2


def test_leftovers_of_a_killed_publisher_are_removed(home: Home) -> None:
    (home.storage / "data/txn/left.object").write_bytes(b"half")
    home.publish()
    assert list((home.storage / "data/txn").iterdir()) == []


def test_objects_that_a_power_failure_tore_are_not_trusted(home: Home) -> None:
    plant(home.tree, {"a": b"content", "b": b"more"})
    home.publish()
    torn, older = object_of(home, b"/a"), object_of(home, b"/b")
    whole = {path for path in (home.storage / "data").rglob("*") if path.is_file()} - {torn}
    torn.write_bytes(b"")
    os.utime(older, (1000, 1000))
    (home.storage / "publisher/unfinished").write_text("another boot")
    (home.tree / "a").unlink()
    home.publish()
    assert not torn.exists()
    assert all(path.exists() for path in whole)
    assert not (home.storage / "publisher/unfinished").exists()
    plant(home.tree, {"a": b"content"})
    home.publish()
    shutil.rmtree(home.root / "cache")
    same(home)


def test_objects_of_a_publisher_killed_in_this_boot_are_kept(home: Home) -> None:
    plant(home.tree, {"a": b"content"})
    home.publish()
    kept = object_of(home, b"/a")
    inode = kept.stat().st_ino
    shutil.copy("/proc/sys/kernel/random/boot_id", home.storage / "publisher/unfinished")
    (home.storage / "publisher/seen.db").unlink()
    home.publish()
    assert kept.stat().st_ino == inode


def object_of(home: Home, path: bytes) -> Path:
    """Where the content of a file is stored."""
    with opened(FQRN, home.storage, home.public, home.root / "cache") as revision:
        located = revision.tree.find(path)
    assert located is not None
    assert located.entry.content is not None
    return home.storage / located.entry.content.path(Kind.FILE)


def test_a_reflog_that_fits_nothing_stops_the_publication(home: Home) -> None:
    with closing(sqlite3.connect(home.storage / ".cvmfsreflog")) as reflog, reflog:
        reflog.execute("DELETE FROM refs WHERE type = 0")
    with pytest.raises(CvmfsProblem, match=r"\.cvmfsreflog: fits neither"):
        home.publish()
    (home.storage / ".cvmfsreflog").unlink()
    with pytest.raises(CvmfsProblem, match=r"\.cvmfsreflog: is missing"):
        home.publish()


def test_a_failure_in_the_middle_changes_nothing_that_is_served(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(home.tree, {f"f{number}": Random(number).randbytes(2000) for number in range(20)})
    manifest = (home.storage / ".cvmfspublished").read_bytes()
    place = Store.place
    placed: list[object] = []

    def full(self: Store, temporary: Path, content: ContentHash, kind: Kind) -> None:
        placed.append(content)
        if len(placed) > 5:
            raise OSError(28, "No space left on device")
        place(self, temporary, content, kind)

    monkeypatch.setattr(Store, "place", full)
    with pytest.raises(CvmfsProblem, match=r"f\d+: could not be stored .*No space left on device"):
        home.publish()
    monkeypatch.undo()
    assert (home.storage / ".cvmfspublished").read_bytes() == manifest
    assert list((home.storage / "data/txn").iterdir()) == []
    assert home.publish().revision == 2
    same(home)
