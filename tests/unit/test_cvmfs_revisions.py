# SPDX-License-Identifier: BSD-3-Clause
"""Which revision is shown: the newest, a pinned one, or without any server the last one believed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cernvm.cvmfs.anchor import anchor_of, pin_of
from cernvm.cvmfs.errors import Malformed, Mistake, Revoked, RolledBack, Unreachable
from cernvm.cvmfs.hashes import ContentHash, Kind
from cernvm.cvmfs.history import DatePin, Pin, RootPin, Tag, TagPin, parse_date, pinned_tag, read_tags
from cernvm.cvmfs.objects import ObjectRef
from cernvm.cvmfs.parameters import read_parameters
from cernvm.cvmfs.tree import Tree
from tests.support.chain import FQRN, Chain, publish_chain
from tests.support.cvmfs import fixture
from tests.support.storage import StorageView


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_chain(tmp_path_factory.mktemp("published"))


@pytest.fixture
def chain(tmp_path: Path, published: Path) -> Chain:
    return Chain(tmp_path, published)


def content(chain: Chain, tree: Tree) -> ContentHash:
    located = tree.find(b"/file")
    assert located is not None
    assert located.entry.content is not None
    return located.entry.content


# --- without a server


def test_a_mount_begins_from_the_cache_when_no_server_answers(chain: Chain) -> None:
    before = chain.repository().load()
    chain.storage.down = True
    repository = chain.repository()
    tree = repository.load()
    assert tree.manifest == before.manifest
    assert repository.offline
    assert content(chain, tree) == content(chain, before)


def test_what_was_never_believed_or_is_not_cached_does_not_begin_without_a_server(chain: Chain) -> None:
    chain.storage.down = True
    with pytest.raises(Unreachable, match="down"):
        chain.repository().load()
    chain.storage.down = False
    tree = chain.repository().load()
    chain.storage.down = True
    chain.cache.forget(str(tree.manifest.root_hash))
    del tree
    with pytest.raises(Unreachable, match="down"):
        chain.repository().load()


def test_without_the_kept_manifest_the_breadcrumb_alone_is_enough(chain: Chain) -> None:
    before = chain.repository().load().manifest
    (chain.cache.directory / f"cvmfspublished.{FQRN}").write_bytes(b"torn")
    chain.storage.down = True
    shown = chain.repository().load().manifest
    assert (shown.root_hash, shown.revision, shown.timestamp) == (before.root_hash, before.revision, before.timestamp)


def test_a_server_that_is_half_there_is_no_server(chain: Chain) -> None:
    chain.repository().load()
    old = chain.manifest()
    chain.publish("newer")
    (chain.root / ".cvmfswhitelist").unlink()
    repository = chain.repository()
    assert repository.load().manifest.revision == old.revision
    assert repository.offline


def test_a_portal_that_answers_with_its_page_is_no_server(chain: Chain) -> None:
    chain.repository().load()
    (chain.root / ".cvmfspublished").write_bytes(b"<html>sign in here</html>")
    repository = chain.repository()
    assert repository.load().manifest.revision == 2
    assert repository.offline


def test_a_server_that_returns_is_noticed_and_asked_soon(chain: Chain) -> None:
    chain.repository().load()
    chain.storage.down = True
    repository = chain.repository()
    tree = repository.load()
    assert repository.ttl(tree) == 180, "777 seconds are not waited for while there is no server"
    with pytest.raises(Unreachable):
        repository.newer(tree)
    assert repository.retry_after(tree) == 180
    chain.storage.down = False
    assert repository.newer(tree) is None
    assert not repository.offline
    assert repository.ttl(tree) == 777
    chain.publish("after")
    newer = repository.newer(tree)
    assert newer is not None
    assert newer.manifest.revision == 3


def test_a_short_time_to_live_is_also_the_time_to_the_next_try(chain: Chain) -> None:
    repository = chain.repository(max_ttl=5)
    assert repository.retry_after(repository.load()) == 5


def test_a_black_list_holds_without_a_server_too(chain: Chain) -> None:
    chain.repository().load()
    chain.storage.down = True
    with pytest.raises(Revoked, match="revision 2 is black-listed"):
        chain.repository(blacklist=f"<{FQRN} 3").load()


# --- what is shown may become forbidden


def test_a_black_list_that_grows_takes_away_what_is_shown(chain: Chain) -> None:
    repository = chain.repository()
    tree = repository.load()
    assert repository.newer(tree) is None
    chain.blacklist = f"<{FQRN} 3"
    with pytest.raises(Revoked):
        repository.newer(tree)
    chain.storage.down = True
    with pytest.raises(Revoked):
        repository.newer(tree)
    chain.storage.down = False
    chain.publish("mended")
    newer = repository.newer(tree)
    assert newer is not None
    assert newer.manifest.revision == 3


def test_a_certificate_that_becomes_black_listed_takes_away_what_it_signed(chain: Chain) -> None:
    repository = chain.repository()
    tree = repository.load()
    whitelist = (chain.root / ".cvmfswhitelist").read_text("latin-1")
    chain.blacklist = next(line for line in whitelist.splitlines() if line.count(":") == 19)
    with pytest.raises(Revoked, match="certificate is black-listed"):
        repository.newer(tree)


@pytest.mark.parametrize("change", [{"timestamp": -1}, {"revision": -1}, {"timestamp": 9, "revision": -1}])
def test_an_older_time_or_an_older_revision_is_refused(chain: Chain, change: dict[str, int]) -> None:
    repository = chain.repository()
    tree = repository.load()
    old = chain.manifest()
    older = replace(
        old,
        timestamp=old.timestamp + change.get("timestamp", 0),
        revision=old.revision + change.get("revision", 0),
        root_hash=ContentHash(bytes(20)),
    )
    chain.sign(older)
    with pytest.raises(RolledBack):
        repository.newer(tree)
    with pytest.raises(RolledBack):
        chain.repository().load()


# --- pinned


def tagged(chain: Chain) -> tuple[Tag, ...]:
    history = chain.manifest().history
    assert history is not None
    objects = chain.repository().objects
    return read_tags(objects.open(ObjectRef(history, Kind.HISTORY)).read_all())


@pytest.mark.parametrize("how", ["root", "tag", "date"])
def test_a_pinned_revision_stays_whatever_is_published(chain: Chain, how: str) -> None:
    old = chain.manifest()
    chain.publish("newest")
    previous = next(tag for tag in tagged(chain) if tag.name == "trunk-previous")
    assert previous.root_hash == old.root_hash
    pins: dict[str, Pin] = {
        "root": RootPin(old.root_hash),
        "tag": TagPin("trunk-previous"),
        "date": DatePin(previous.timestamp),
    }
    if how == "date":  # both were published in this second
        pins["date"] = DatePin(2**40)
        old = chain.manifest()
    repository = chain.repository(pin=pins[how])
    tree = repository.load()
    assert (tree.manifest.root_hash, tree.manifest.revision) == (old.root_hash, old.revision)
    chain.publish("still newer")
    assert repository.newer(tree) is None
    chain.storage.down = True
    assert chain.repository(pin=pins[how]).load() is not None


def test_a_root_hash_needs_nobody_who_vouches_and_no_server(chain: Chain) -> None:
    pin = RootPin(chain.manifest().root_hash)
    chain.repository(pin=pin).load()
    chain.storage.down = True
    for name in (".cvmfspublished", ".cvmfswhitelist"):
        (chain.root / name).unlink()
    assert chain.repository(pin=pin).load().manifest.revision == 2
    with pytest.raises(Revoked):
        chain.repository(pin=pin, blacklist=f"<{FQRN} 3").load()


def test_a_black_listed_tag_is_refused(chain: Chain) -> None:
    chain.publish("newest")
    with pytest.raises(Revoked, match="revision 2 is black-listed"):
        chain.repository(pin=TagPin("trunk-previous"), blacklist=f"<{FQRN} 3").load()


def test_a_tag_that_is_none_is_named(chain: Chain) -> None:
    with pytest.raises(Mistake, match="CVMFS_REPOSITORY_TAG names 'absent'"):
        chain.repository(pin=TagPin("absent")).load()
    with pytest.raises(Mistake, match="no tag is as old as that"):
        chain.repository(pin=DatePin(1_000_000)).load()


SOME = ContentHash(bytes(20))
TAGS = [Tag(f"r{number}", SOME, number, 100 * number, None) for number in (1, 3, 2)]


def test_a_date_means_the_highest_revision_until_then() -> None:
    for when, name in ((100, "r1"), (299, "r2"), (300, "r3"), (10**9, "r3")):
        assert pinned_tag(DatePin(when), TAGS, FQRN).name == name


def test_the_original_servers_tags_each_show_their_tree(tmp_path: Path) -> None:
    shown = StorageView(fixture("small") / "repo", tmp_path / "cache")
    history = shown.newest().manifest.history
    assert history is not None
    tags = read_tags(shown.objects.open(ObjectRef(history, Kind.HISTORY)).read_all())
    assert {tag.name for tag in tags} == {"v1.0", "v2.0", "v3.0", "trunk", "trunk-previous"}
    for tag in tags:
        manifest = replace(shown.newest().manifest, root_hash=tag.root_hash, root_size=tag.size)
        tree = Tree(manifest, shown.loader)
        assert tree.root.properties[b"revision"] == str(tag.revision).encode()


@pytest.mark.parametrize(
    ("text", "pin"),
    [
        ("", None),
        (f"CVMFS_ROOT_HASH={SOME}\nCVMFS_REPOSITORY_TAG=x\n", RootPin(SOME)),
        ("CVMFS_REPOSITORY_TAG=x\nCVMFS_REPOSITORY_DATE=2026-01-31T00:00:00Z\n", TagPin("x")),
        ("CVMFS_REPOSITORY_DATE=2026-01-31T23:59:59Z\n", DatePin(1769903999)),
    ],
)
def test_the_parameters_name_the_pin(tmp_path: Path, text: str, pin: Pin | None) -> None:
    (tmp_path / "default.local").write_text(text)
    assert pin_of(read_parameters(FQRN, tmp_path)) == pin


@pytest.mark.parametrize("text", ["CVMFS_ROOT_HASH=abc", "CVMFS_REPOSITORY_DATE=yesterday"])
def test_a_pin_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "default.local").write_text(f"{text}\n")
    with pytest.raises(Mistake, match=text):
        pin_of(read_parameters(FQRN, tmp_path))


def test_dates_are_utc() -> None:
    assert parse_date("1970-01-02T00:00:01Z") == DatePin(86401)
    assert parse_date("1970-01-02 00:00:01") is None


def test_a_data_base_of_tags_that_is_none_is_refused() -> None:
    with pytest.raises(Malformed, match="tags"):
        read_tags(b"<html>" * 100)


def test_the_sites_black_lists_are_read_anew(tmp_path: Path, published: Path) -> None:
    (tmp_path / "default.local").write_text(f"CVMFS_KEYS_DIR={published / 'keys'}\n")
    anchor = anchor_of(read_parameters(FQRN, tmp_path))
    anchor.blacklist().check_revision(FQRN, 1)
    (tmp_path / "blacklist").write_text(f"<{FQRN} 5\n")
    with pytest.raises(Revoked, match="revisions below 5"):
        anchor.blacklist().check_revision(FQRN, 4)
    (tmp_path / "blacklist").unlink()
    (tmp_path / "blacklist").mkdir()
    with pytest.raises(Revoked):
        anchor.blacklist().check_revision(FQRN, 4)


def test_the_black_list_of_the_configuration_repository_counts_too(tmp_path: Path, published: Path) -> None:
    theirs = tmp_path / "mounts" / "config.test.org" / "etc" / "cvmfs"
    theirs.mkdir(parents=True)
    (theirs / "blacklist").write_text(f"<{FQRN} 7\n")
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "default.conf").write_text("CVMFS_CONFIG_REPOSITORY=config.test.org\n")
    (etc / "default.local").write_text(f"CVMFS_KEYS_DIR={published / 'keys'}\n")
    (etc / "blacklist").write_text("<else.test.org 3\n")
    anchor = anchor_of(read_parameters(FQRN, etc, tmp_path / "mounts"))
    with pytest.raises(Revoked, match="revisions below 7"):
        anchor.blacklist().check_revision(FQRN, 6)
    assert anchor.blacklist().least_revisions == (("else.test.org", 3), (FQRN, 7))


def test_after_a_month_offline_the_clock_does_not_matter(chain: Chain) -> None:
    chain.repository().load()
    chain.storage.down = True
    chain.now = datetime.now(UTC) + timedelta(days=40)
    assert chain.repository().load().manifest.revision == 2
