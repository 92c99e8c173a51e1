# SPDX-License-Identifier: BSD-3-Clause
"""The independent checker accepts every repository that we publish, also after publishers that were killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random

import pytest

from cernvm.cvmfs.publish import publish_tree, read_manifest
from tests.support.cvmfs import missing
from tests.support.daemon import command_line, project_environment
from tests.support.deadly import killed_at
from tests.support.publisher import FQRN, Home, all_kinds, make_home, make_keys, plant, same
from tests.support.publishing import CHECKER, check
from tests.support.server import wait_until

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not CHECKER.is_file():
        missing(f"{CHECKER} is not here")
    return make_keys(tmp_path_factory.mktemp("verified") / "keys")


@pytest.fixture
def home(tmp_path: Path, keys: Path) -> Home:
    return make_home(tmp_path, keys)


def run(*arguments: str | Path, user: int | None = None) -> subprocess.CompletedProcess[str]:
    """The command cvmfs-server, in a process of its own."""
    return subprocess.run(
        command_line("cvmfs-server", *map(str, arguments)),
        env=project_environment({}),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        user=user,
    )


def test_a_new_repository_is_verified(home: Home) -> None:
    assert "tree {'dir': 1} catalogs 1 objects 0" in check(home.storage, home.public, FQRN)


def test_a_tree_of_all_kinds_is_verified_and_shown(home: Home) -> None:
    all_kinds(home.tree)
    done = home.publish()
    said = check(home.storage, home.public, FQRN)
    assert f"catalogs {done.catalogs} " in said
    assert done.catalogs == 5
    (home.tree / "sw/a/.cvmfscatalog").touch()  # what .cvmfsdirtab asks for is shown, but is not in the tree
    home.publish()
    same(home)


def test_a_revision_after_changes_is_verified(home: Home) -> None:
    all_kinds(home.tree)
    home.publish()
    shutil.rmtree(home.tree / "sw/a")
    (home.tree / "nest/deep/.cvmfscatalog").unlink()
    (home.tree / "links/c").unlink()
    plant(home.tree, {"hello": b"changed", "new/.cvmfscatalog": b"", "new/file": b"n", "links/d": b""})
    assert home.publish().revision == 3
    check(home.storage, home.public, FQRN)
    same(home)


@pytest.mark.timeout(300)
def test_a_publisher_killed_between_any_two_writes_leaves_the_old_revision_or_the_new(
    home: Home, tmp_path: Path
) -> None:
    plant(home.tree, {"a": b"one" * 900, "n/.cvmfscatalog": b"", "n/b": b"two", "gone": b"x"})
    home.publish()
    plant(home.tree, {"a": b"three" * 900, "n/b": b"four", "n/c": b"five"})
    (home.tree / "gone").unlink()
    pristine = tmp_path / "pristine"
    shutil.copytree(home.storage, pristine)
    before = (pristine / ".cvmfspublished").read_bytes()
    outcomes = []
    for write in range(1, 500):
        shutil.rmtree(home.storage)
        shutil.copytree(pristine, home.storage)
        killed = killed_at(write, partial(publish_tree, FQRN, home.tree, home.storage, home.keys, jobs=1))
        new = (home.storage / ".cvmfspublished").read_bytes() != before
        outcomes.append(new)
        check(home.storage, home.public, FQRN, reflog_ahead=not new)
        if write % 4 == 0 or new:
            assert home.publish().revision == (4 if new else 3)
            check(home.storage, home.public, FQRN)
            same(home)
            assert list((home.storage / "data/txn").iterdir()) == []
        if not killed:
            break
    assert not killed
    assert outcomes == sorted(outcomes), "once new, always new"
    assert outcomes.count(False) > 20


@pytest.mark.parametrize(
    ("planted", "complaint"),
    [("shut", "cannot be read by this user"), ("shut/file", "the directory cannot be read by this user")],
)
def test_the_command_names_what_it_cannot_read_and_changes_nothing(home: Home, planted: str, complaint: str) -> None:
    plant(home.tree, {"ok": b"1", planted: b"2"})
    (home.tree / "shut").chmod(0)
    before = (home.storage / ".cvmfspublished").read_bytes()
    done = run_as_nobody(home, home.storage, home.keys)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"cvmfs-server: {home.tree / 'shut'}: {complaint}\n"
    assert (home.storage / ".cvmfspublished").read_bytes() == before


def test_the_command_names_a_storage_that_it_cannot_write(home: Home) -> None:
    if os.geteuid() != 0:
        home.storage.chmod(0o555)
    done = run_as_nobody(home, home.keys)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"cvmfs-server: {home.storage}: is not writable for this user\n"


def run_as_nobody(home: Home, *owned: Path) -> subprocess.CompletedProcess[str]:
    """Publish as a user who is not root and to whom the directories `owned` belong meanwhile."""
    command = ("publish", FQRN, home.tree, "--storage", home.storage, "--keys", home.keys)
    if os.geteuid() != 0:
        return run(*command)
    for path in [home.root, *home.root.parents[:2], home.keys.parent]:
        path.chmod(path.stat().st_mode | 0o755)
    everything = [path for directory in owned for path in (directory, *directory.rglob("*"))]
    try:
        for path in everything:
            os.chown(path, 65534, 65534)
        return run(*command, user=65534)
    finally:
        for path in everything:
            os.chown(path, 0, 0)


def test_an_interrupted_command_says_so_and_leaves_the_old_revision(home: Home) -> None:
    plant(home.tree, {f"f{number}": Random(number).randbytes(4 << 20) for number in range(20)})
    command = command_line(
        "cvmfs-server", "publish", FQRN, str(home.tree), "--storage", str(home.storage), "--keys", str(home.keys)
    )
    with subprocess.Popen(command, env=project_environment({}), stderr=subprocess.PIPE) as process:
        wait_until((home.storage / "publisher/unfinished").exists, seconds=30, what="the publication begins")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert said.decode() == "cvmfs-server: interrupted; the served revision is as it was\n"
    assert read_manifest(FQRN, home.storage).revision == 1
    assert home.publish().revision == 2
    check(home.storage, home.public, FQRN)


def test_the_whole_life_by_the_command(tmp_path: Path, keys: Path) -> None:
    places = ("--storage", tmp_path / "s", "--keys", tmp_path / "k")
    plant(tmp_path / "t", {"a": b"x" * 100_000})
    for arguments in (("mkfs", FQRN, *places), ("publish", FQRN, tmp_path / "t", *places), ("resign", FQRN, *places)):
        done = run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
    said = check(tmp_path / "s", tmp_path / "k" / f"{FQRN}.pub", FQRN)
    assert "'regular': 1" in said
    assert f"{datetime.now(UTC):%Y}" in run("info", FQRN, "--storage", tmp_path / "s").stdout
