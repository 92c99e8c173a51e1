# SPDX-License-Identifier: BSD-3-Clause
"""Which revision a mount shows over time: pinned, forbidden, found again; with servers that go away and return."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dbus
import pytest

from cernvm.cvmfs.publish import create_repository, publish_tree
from cernvm.cvmfsd.mounting import is_mounted
from tests.support.cvmfs import Site, complaint, fixture, site
from tests.support.daemon import command_line, project_environment
from tests.support.server import wait_until

pytestmark = pytest.mark.real
FQRN = "time.test.org"
SMALL = "small.test.org"
TTL = 2
"""Seconds; also the time between two tries while no server answers."""


class Owner:
    """Who publishes to the site."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tree = directory / "tree"
        self.tree.mkdir()
        create_repository(FQRN, directory / "web" / FQRN, directory / "keys", ttl=TTL)

    def publish(self, **files: str) -> int:
        """A new revision, with these files changed."""
        for name, content in files.items():
            (self.tree / name).write_text(content)
        return publish_tree(FQRN, self.tree, self.directory / "web" / FQRN, self.directory / "keys").revision


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    made = Owner(tmp_path)
    (made.tree / "alone").mkdir()  # so that nothing fetches it ahead
    (made.tree / "alone" / "unread").write_text("never read")
    made.publish(read="one")
    return made


@pytest.fixture
def here(tmp_path: Path, owner: Owner) -> Iterator[Site]:
    keys = {"CVMFS_KEYS_DIR": str(tmp_path / "keys"), "CVMFS_BACKOFF_INIT": "0"}
    with site(tmp_path / "site", tmp_path / "web", keys) as running:
        yield running


def configure(here: Site, fqrn: str, text: str) -> None:
    """Parameters of one repository."""
    directory = here.parameters / "config.d"
    directory.mkdir(exist_ok=True)
    (directory / f"{fqrn}.conf").write_text(text)


def text_of(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def test_a_new_revision_comes_by_itself_when_its_time_has_come(here: Site, owner: Owner) -> None:
    here.call("Mount", FQRN)
    file = here.mounts / FQRN / "read"
    assert file.read_text() == "one"
    owner.publish(read="two")
    wait_until(lambda: file.read_text() == "two", seconds=20, what="the new revision")


def test_a_site_that_wants_no_updates_gets_them_when_it_asks(here: Site, owner: Owner) -> None:
    configure(here, FQRN, "CVMFS_AUTO_UPDATE=no\n")
    mount = here.call("Mount", FQRN)
    file = here.mounts / FQRN / "read"
    assert file.read_text() == "one"
    owner.publish(read="two")
    asked = here.web.hits(f"/{FQRN}/.cvmfspublished")
    time.sleep(3 * TTL)  # nothing can be waited for: it is about what does not happen
    assert here.web.hits(f"/{FQRN}/.cvmfspublished") == asked
    assert file.read_text() == "one"
    assert here.refresh(mount) == 3
    wait_until(lambda: file.read_text() == "two", seconds=10, what="the wanted revision")


def test_open_and_mapped_files_keep_their_content_over_a_switch(here: Site, owner: Owner) -> None:
    owner.publish(read="old " * 100_000)
    mount = here.call("Mount", FQRN)
    file = here.mounts / FQRN / "read"
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:4] == b"old "
        owner.publish(read="new " * 100_000)
        here.refresh(mount)
        wait_until(lambda: file.read_text()[:4] == "new ", seconds=10, what="the new content")
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        mapped.madvise(mmap.MADV_DONTNEED)
        assert bytes(mapped) == b"old " * 100_000
        assert opened.read() == b"old " * 100_000


def test_a_mount_lives_without_its_server_and_finds_it_again(here: Site, owner: Owner) -> None:
    here.call("Mount", FQRN)
    mounted = here.mounts / FQRN
    assert text_of(mounted / "read") == "one"
    here.web.stop()
    wait_until(lambda: text_of(mounted / "alone" / "unread") == "EIO", seconds=20, what="an error for what is not here")
    assert text_of(mounted / "read") == "one"
    owner.publish(read="two", new="new")
    here.web.start()
    wait_until(lambda: text_of(mounted / "new") == "new", seconds=40, what="the newer revision")
    assert text_of(mounted / "read") == "two"
    assert text_of(mounted / "alone" / "unread") == "never read"


def test_a_mount_begins_without_any_server_from_what_was_believed(here: Site, owner: Owner) -> None:
    here.call("Mount", FQRN)
    mounted = here.mounts / FQRN
    assert text_of(mounted / "read") == "one"
    here.call("Unmount", FQRN)
    here.web.stop()
    begun = time.monotonic()
    here.call("Mount", FQRN)
    assert time.monotonic() - begun < 30
    assert text_of(mounted / "read") == "one"
    assert text_of(mounted / "alone" / "unread") == "EIO"
    assert sorted(os.listdir(mounted)) == ["alone", "read"]  # noqa: PTH208  (as programs do)
    owner.publish(read="two")
    here.web.start()
    wait_until(lambda: text_of(mounted / "read") == "two", seconds=40, what="the newer revision")
    assert text_of(mounted / "alone" / "unread") == "never read"


def test_what_was_never_mounted_does_not_begin_without_a_server(here: Site) -> None:
    here.web.stop()
    with pytest.raises(dbus.DBusException) as refused:
        here.call("Mount", FQRN)
    assert complaint(refused.value)[0] == "Unreachable"


def test_a_revision_that_becomes_black_listed_is_taken_away(here: Site, owner: Owner) -> None:
    here.call("Mount", FQRN)
    mounted = here.mounts / FQRN
    assert text_of(mounted / "read") == "one"
    (here.parameters / "blacklist").write_text(f"<{FQRN} 3\n")
    wait_until(lambda: text_of(mounted / "read") != "one", seconds=30, what="the end of what is forbidden")
    assert not is_mounted(mounted)
    owner.publish(read="mended")
    wait_until(lambda: text_of(mounted / "read") == "mended", seconds=60, what="the mended revision")


# --- repositories of the original server


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Site]:
    published = fixture("small")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / SMALL).symlink_to(published / "repo")
    with site(tmp_path / "site", tmp_path / "web", {"CVMFS_KEYS_DIR": str(published / "keys")}) as running:
        yield running


def shown(here: Site, text: str) -> dict[str, Any]:
    """Mount with these parameters; what the mount says about itself."""
    configure(here, SMALL, text)
    properties = here.properties(here.call("Mount", SMALL))
    mounted = here.mounts / SMALL
    names = ("revision", "root_hash")
    told = {name: os.getxattr(mounted, f"user.{name}").decode() for name in names}
    told["readme"] = (mounted / "README.txt").read_text()
    assert str(properties["Revision"]) == told["revision"]
    here.call("Unmount", SMALL)
    return told


TAGS = {
    "v1.0": ("2", "b64c05e087ea15eb1b19f97feab8a1f642d0af36"),
    "v2.0": ("4", "7e33384c4a3c94b279202bc618a0e56ebe9d54df"),
    "v3.0": ("6", "595c89610db135157146f9dd74775574cc763307"),
    "trunk-previous": ("6", "595c89610db135157146f9dd74775574cc763307"),
    "trunk": ("7", "5d51790c17a96f019b32537d7cab6300162e6383"),
}


@pytest.mark.parametrize("tag", TAGS)
def test_a_named_tag_shows_its_revision(small: Site, tag: str) -> None:
    told = shown(small, f"CVMFS_REPOSITORY_TAG={tag}\n")
    assert (told["revision"], told["root_hash"]) == TAGS[tag]
    fixed = shown(small, f"CVMFS_ROOT_HASH={told['root_hash']}\n")
    assert fixed == told


def test_a_date_shows_what_was_current_then(small: Site) -> None:
    for second, tag in (
        ("1795333924", "v1.0"),
        ("1795333926", "v1.0"),
        ("1795333927", "v2.0"),
        ("1795339999", "trunk"),
    ):
        date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(second)))
        told = shown(small, f"CVMFS_REPOSITORY_DATE={date}\n")
        assert (told["revision"], told["root_hash"]) == TAGS[tag], second
    configure(small, SMALL, "CVMFS_REPOSITORY_DATE=2001-01-01T00:00:00Z\n")
    with pytest.raises(dbus.DBusException) as refused:
        small.call("Mount", SMALL)
    assert "no tag is as old as that" in complaint(refused.value)[1]


# --- repositories of our own server, with the other algorithm


@pytest.mark.parametrize("algorithm", ["shake128", "rmd160"])
def test_a_repository_of_our_own_with_another_hash_is_shown(tmp_path: Path, algorithm: str) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / ".cvmfscatalog").touch()
    (tree / "sub" / "file").write_text("content")
    (tree / "big").write_bytes(os.urandom(20_000_000))
    for verb in (["mkfs", "--hash", algorithm, FQRN], ["publish", FQRN, str(tree)]):
        places = ["--storage", str(tmp_path / "web" / FQRN), "--keys", str(tmp_path / "keys")]
        command = command_line("cvmfs-server", verb[0], *places, *verb[1:])
        subprocess.run(command, env=project_environment({}), capture_output=True, timeout=100, check=True)
    with site(tmp_path / "site", tmp_path / "web", {"CVMFS_KEYS_DIR": str(tmp_path / "keys")}) as here:
        here.call("Mount", FQRN)
        mounted = here.mounts / FQRN
        assert os.getxattr(mounted, "user.root_hash").decode().endswith(f"-{algorithm}")
        assert (mounted / "sub" / "file").read_text() == "content"
        assert (mounted / "big").read_bytes() == (tree / "big").read_bytes()
