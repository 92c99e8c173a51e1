# SPDX-License-Identifier: BSD-3-Clause
"""What the person got wrong is said in one sentence, with the place, and changes nothing."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cernvm.cli import cvmfs_server
from cernvm.cli.server_progress import Lines
from cernvm.cvmfs.errors import Mistake, NoRepository
from cernvm.cvmfs.publish import (
    create_repository,
    publish_tree,
    resign_whitelist,
    revisions,
    trustees,
)
from cernvm.cvmfs.publish.keys import KeyFiles, ensure_keys
from tests.support.daemon import command_line, project_environment
from tests.support.publisher import FQRN, Home, make_home, make_keys, plant, same


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("publish") / "keys")


@pytest.fixture
def home(tmp_path: Path, keys: Path) -> Home:
    return make_home(tmp_path, keys)


def test_mkfs_refuses_to_write_over_a_repository(home: Home) -> None:
    before = home.served()
    with pytest.raises(Mistake, match="holds a repository already"):
        create_repository(FQRN, home.storage, home.keys)
    assert home.served() == before


def test_mkfs_refuses_to_serve_the_keys(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="would be served to everyone"):
        create_repository(FQRN, tmp_path / "s", tmp_path / "s/keys")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["nodot", "", "a..b", ".a.b", "a/b.c", "a.b\n", "a." + "b" * 254])
def test_names_that_are_none_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Mistake, match="is not the name of a repository"):
        create_repository(name, tmp_path / "s", tmp_path / "k")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_of_the_person_are_named(home: Home, tmp_path: Path) -> None:
    before = home.served()

    def refused(fqrn: str, tree: Path, storage: Path, keys: Path) -> str:
        with pytest.raises(Mistake) as caught:
            publish_tree(fqrn, tree, storage, keys)
        return str(caught.value)

    plant(tmp_path, {"file": b""})
    assert "file: is not a directory" in refused(FQRN, tmp_path / "file", home.storage, home.keys)
    assert "none: is not a directory" in refused(FQRN, tmp_path / "none", home.storage, home.keys)
    assert "must not be published" in refused(FQRN, home.root, home.storage, home.keys)
    assert "must not be published" in refused(FQRN, home.keys, home.storage, home.keys)
    assert "key file is missing" in refused(FQRN, home.tree, home.storage, tmp_path)
    other = tmp_path / "other"
    ensure_keys(KeyFiles(other, FQRN), datetime.now(UTC))
    assert "does not list the certificate" in refused(FQRN, home.tree, home.storage, other)
    ensure_keys(KeyFiles(other, "b.test.org"), datetime.now(UTC))
    assert "holds the repository unit.test.org, not b.test.org" in refused("b.test.org", home.tree, home.storage, other)
    plant(home.tree, {".cvmfsdirtab": b"relative"})
    assert ".cvmfsdirtab: line 1" in refused(FQRN, home.tree, home.storage, home.keys)
    (home.tree / ".cvmfsdirtab").unlink()
    (home.tree / "d/.cvmfscatalog").mkdir(parents=True)
    assert "d/.cvmfscatalog: must be a regular file" in refused(FQRN, home.tree, home.storage, home.keys)
    with pytest.raises(NoRepository, match="holds no repository"):
        publish_tree(FQRN, home.tree, tmp_path / "nowhere", home.keys)
    assert home.served() == before


@pytest.mark.parametrize("days", ["0", "-1", "many", "1000001", "9" * 40, "\u0663"])
def test_numbers_that_make_no_sense_are_refused(days: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cvmfs_server.main(["resign", FQRN, "--storage", "s", "--keys", "k", f"--days={days}"])
    assert ended.value.code == 2
    assert "is not a whole number from 1 to 1000000" in capsys.readouterr().err


def test_a_name_that_does_not_fit_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(home.tree, {"long-name": b""})
    monkeypatch.setattr("cernvm.cvmfs.publish.scan.MAX_NAME", 8)
    with pytest.raises(Mistake, match=r"/long-name: the name is longer than 8 bytes"):
        home.publish()


def test_an_attribute_that_does_not_fit_is_named(home: Home) -> None:
    plant(home.tree, {"a": b""})
    try:
        os.setxattr(home.tree / "a", "user.long", b"v" * 256)
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    with pytest.raises(Mistake, match=r"/a: the extended attribute user\.long is longer than 255 bytes"):
        home.publish()


def test_attributes_of_users_are_published(home: Home) -> None:
    plant(home.tree, {"d/a": b""})
    try:
        os.setxattr(home.tree / "d/a", "user.b", b"v" * 255)
        os.setxattr(home.tree / "d/a", "user.a", b"\0\xff")
        os.setxattr(home.tree / "d", "user.empty", b"")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    home.publish()
    same(home)


def test_an_expired_whitelist_stops_publication_until_it_is_signed_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = datetime.now(UTC) + timedelta(days=31)
    for module in (revisions, trustees):
        monkeypatch.setattr(module, "now", lambda: later)
    with pytest.raises(Mistake, match="renew it with 'cvmfs-server resign'"):
        home.publish()
    assert resign_whitelist(FQRN, home.storage, home.keys, days=7) == later + timedelta(days=7)
    assert home.publish().revision == 2


def command(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    status = cvmfs_server.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_command_makes_publishes_and_describes(
    tmp_path: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ("--storage", tmp_path / "s", "--keys", keys)
    plant(tmp_path / "t", {"a": b"x"})
    status, out, err = command(capsys, "mkfs", FQRN, *places, "--hash", "shake128")
    assert (status, err) == (0, "")
    assert out.startswith(f"{FQRN}: made in ")
    status, out, err = command(capsys, "publish", FQRN, tmp_path / "t", *places, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["revision"] == 2
    assert json.loads(out)["root_hash"].endswith("-shake128")
    status, out, _ = command(capsys, "info", FQRN, "--storage", tmp_path / "s")
    assert status == 0
    assert "revision            2\n" in out
    status, out, _ = command(capsys, "resign", FQRN, *places, "--json")
    assert status == 0
    assert json.loads(out)["fqrn"] == FQRN


def test_the_command_says_one_sentence_and_tells_whose_fault_it_was(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ("--storage", home.storage, "--keys", home.keys)
    status, out, err = command(capsys, "publish", FQRN, home.root / "none", *places)
    assert (status, out) == (2, "")
    assert err == f"cvmfs-server: {home.root / 'none'}: is not a directory\n"
    (home.storage / ".cvmfsreflog").unlink()
    status, out, err = command(capsys, "publish", FQRN, home.tree, *places)
    assert (status, out) == (1, "")
    assert err.count("\n") == 1


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([100.0, 105.0, 110.5, 111.0, 125.0])
    lines = Lines(lambda: next(times), "publishing")
    lines.bytes(1_000_000)
    lines.files(3)
    lines.bytes(500_000)
    lines.files(1)
    assert capsys.readouterr().err.splitlines() == [
        "publishing: 3 files, 1.0 MB",
        "publishing: 4 files, 1.5 MB",
    ]


def test_a_terminal_sees_bars(home: Home) -> None:
    plant(home.tree, {f"f{number}": bytes([number]) * 300_000 for number in range(30)})
    controller, terminal = pty.openpty()
    command = command_line("cvmfs-server", "publish", FQRN, str(home.tree))
    places = ["--storage", str(home.storage), "--keys", str(home.keys)]
    environment = project_environment({"TERM": "xterm", "COLUMNS": "120"})
    with subprocess.Popen([*command, *places], env=environment, stdout=subprocess.PIPE, stderr=terminal) as process:
        os.close(terminal)
        said = b""
        with suppress(OSError):  # a terminal whose other side is closed answers EIO
            while more := os.read(controller, 4096):
                said += more
        assert process.stdout is not None
        assert b"revision 2" in process.stdout.read()
        assert process.wait(60) == 0
    os.close(controller)
    assert b"publishing" in said
    assert b"30 files" in said
