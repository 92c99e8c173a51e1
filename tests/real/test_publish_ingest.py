# SPDX-License-Identifier: BSD-3-Clause
"""Archives put into a repository show what unpacking them would; hostile ones change nothing."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import pytest

from cernvm.cli import cvmfs_server
from cernvm.cvmfs.errors import CvmfsProblem, Mistake
from cernvm.cvmfs.publish import Bounds, check_repository, ingest, resign_whitelist
from cernvm.cvmfs.publish.trustees import make_keys as adopt_keys
from tests.support.cvmfs import copy_of, fixture
from tests.support.deadly import killed_at
from tests.support.publisher import FQRN, Home, make_home, make_keys, plant
from tests.support.publishing import Shown, check, on_disk, opened

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("ingest") / "keys")


@pytest.fixture
def home(tmp_path: Path, keys: Path) -> Home:
    made = make_home(tmp_path, keys)
    plant(made.tree, {"a": b"a", "far/.cvmfscatalog": b"", "far/away/.cvmfscatalog": b"", "far/away/f": b"f"})
    plant(made.tree, {"sw/.cvmfscatalog": b"", "sw/old/x": b"x", "sw/old/y": b"y", "cut": Random(3).randbytes(9 << 20)})
    (made.tree / "sw/twin").hardlink_to(made.tree / "sw/old/x")
    (made.tree / "sw/old/twin").hardlink_to(made.tree / "sw/old/y")
    made.publish()
    return made


def parcel(root: Path) -> Path:
    """Something to put into an archive."""
    plant(root, {"bin/run": b"#!/bin/sh\n", "lib/big": Random(4).randbytes(5 << 20), "lib/deep/.cvmfscatalog": b""})
    plant(root, {"lib/deep/f": b"deep", "empty": b"", os.fsdecode(b"latin-\xe9"): b"l"})
    (root / "bin/run").chmod(0o4755)
    (root / "lib/link").symlink_to("../bin/run")
    (root / "hollow").mkdir(mode=0o700)
    for number, path in enumerate(sorted(root.rglob("*"))):  # far from where coarse() rounds to one side or the other
        os.utime(path, ns=(0, 1_700_000_000_000_000_000 + number * 1_000_000), follow_symlinks=False)
    os.utime(root / "empty", ns=(0, 1_234_567_890_123_456_789))
    return root


def packed(root: Path, file: Path, mode: str = "w:gz") -> Path:
    with tarfile.open(file, mode, format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]  # a variable
        for path in sorted(root.iterdir()):
            archive.add(path, path.name)
    return file


def put(home: Home, file: Path, base: str = "sw/new", *delete: str, catalog: bool = False) -> int:
    with file.open("rb") as stream:
        archives = [(file.name, stream)]
        return ingest(FQRN, home.storage, home.keys, archives, base=base, delete=delete, catalog=catalog).revision


def shown(home: Home) -> dict[bytes, Shown]:
    with opened(FQRN, home.storage, home.public, home.root / "cache") as revision:
        return revision.shown()


def coarse(tree: dict[bytes, Shown]) -> dict[bytes, Shown]:
    """Without what tar stores coarsely: a fraction of a microsecond; and directories' times, which changes move."""
    return {
        path: replace(it, mtime_ns=0 if it.mode & 0o040000 else round(it.mtime_ns, -4)) for path, it in tree.items()
    }


def whole(home: Home) -> None:
    assert check_repository(FQRN, home.storage, public=home.public, objects=True).faults == ()


@pytest.mark.parametrize("mode", ["w:", "w:gz", "w:xz", "w:bz2"])
def test_an_archive_shows_what_unpacking_it_would(home: Home, tmp_path: Path, mode: str) -> None:
    root = parcel(tmp_path / "parcel")
    put(home, packed(root, tmp_path / "a.tar.x", mode))
    shutil.copytree(root, home.tree / "sw/new", symlinks=True)
    found, wanted = coarse(shown(home)), coarse(on_disk(home.tree))
    assert found.keys() == wanted.keys()
    made = b"/sw/new"
    assert {path for path in wanted if found[path] != wanted[path]} <= {made}
    whole(home)


def test_nested_catalogs_come_and_go_and_far_ones_stay(home: Home, tmp_path: Path) -> None:
    plant(tmp_path / "p", {"f": b"1"})
    archive = packed(tmp_path / "p", tmp_path / "p.tar.gz")
    with archive.open("rb") as stream:
        done = ingest(FQRN, home.storage, home.keys, [("p", stream)], base="sw/new", catalog=True)
    assert (done.catalogs, done.catalogs_kept) == (5, 2)
    whole(home)
    ingest(FQRN, home.storage, home.keys, [], delete=["sw/.cvmfscatalog", "far/away/.cvmfscatalog", "sw/new"])
    whole(home)
    tree = shown(home)
    assert b"/sw/.cvmfscatalog" not in tree
    assert b"/sw/new" not in tree
    assert tree[b"/sw/old/y"].links == 2
    assert check_repository(FQRN, home.storage).catalogs == 2
    ingest(FQRN, home.storage, home.keys, [], delete=["far", "sw/old/twin"])
    assert shown(home)[b"/sw/old/y"].links == 1
    whole(home)
    with pytest.raises(Mistake, match="is not in the repository"):
        ingest(FQRN, home.storage, home.keys, [], delete=["far"])


def test_what_an_archive_names_replaces_what_was_there(home: Home, tmp_path: Path) -> None:
    plant(tmp_path / "p", {"old": b"now a file", "twin/in": b"now a directory"})
    put(home, packed(tmp_path / "p", tmp_path / "p.tar"), "sw")
    tree = shown(home)
    assert tree[b"/sw/old"].size == 10
    assert b"/sw/old/x" not in tree
    assert tree[b"/sw/twin/in"].size == 15
    whole(home)
    with pytest.raises(Mistake, match="/a: is no directory, so nothing can be put below it"):
        put(home, tmp_path / "p.tar", "a/b")


def test_wheels_are_put_in(home: Home, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x-1-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("x/__init__.py", "print(1)\n" * 1000)
        wheel.writestr("x-1.dist-info/RECORD", "")
    put(home, tmp_path / "x-1-py3-none-any.whl", "python")
    assert shown(home)[b"/python/x/__init__.py"].size == 9000
    whole(home)


def test_hard_links_are_copies(home: Home, tmp_path: Path) -> None:
    plant(tmp_path / "p", {"one": b"content"})
    (tmp_path / "p/two").hardlink_to(tmp_path / "p/one")
    put(home, packed(tmp_path / "p", tmp_path / "p.tar.gz"), "")
    tree = shown(home)
    assert tree[b"/two"].sha256 == tree[b"/one"].sha256
    assert (tree[b"/two"].links, tree[b"/one"].links) == (1, 1)
    whole(home)


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname = size, kind, target
    return made


def archive_of(*members: tarfile.TarInfo) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for it in members:
            archive.addfile(it, io.BytesIO(bytes(it.size)))
    return held.getvalue()


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "a path upwards": (lambda: archive_of(member("../../etc/passwd")), "leads out of the archive's place"),
    "an absolute path": (lambda: archive_of(member("/etc/passwd")), "leads out of the archive's place"),
    "a path through a link": (
        lambda: archive_of(member("l", kind=tarfile.SYMTYPE, target="/etc"), member("l/passwd")),
        "/sw/new/l: is no directory",
    ),
    "a hard link to nothing": (lambda: archive_of(member("l", kind=tarfile.LNKTYPE, target="x")), "does not have"),
    "a hard link upwards": (lambda: archive_of(member("l", kind=tarfile.LNKTYPE, target="../a")), "leads out of"),
    "a long name": (lambda: archive_of(member("n" * 256)), "longer than the format allows"),
    "too many bytes": (lambda: archive_of(member("a", 900), member("b", 200)), "more than 4 entries or 1000 bytes"),
    "too many entries": (lambda: archive_of(*(member(str(n)) for n in range(5))), "more than 4 entries"),
    "an end within a file": (lambda: archive_of(member("a", 900))[:700], "is not a whole tar archive"),
    "noise": (lambda: b"noise" * 500, "is not a whole tar archive"),
    "a marker that is a directory": (
        lambda: archive_of(member(".cvmfscatalog", kind=tarfile.DIRTYPE)),
        "must be a regular file",
    ),
}


@pytest.mark.parametrize("what", list(HOSTILE))
def test_hostile_archives_change_nothing(home: Home, what: str) -> None:
    make, complaint = HOSTILE[what]
    before = (home.storage / ".cvmfspublished").read_bytes()
    archives = [("bad", io.BytesIO(make()))]
    with pytest.raises((Mistake, CvmfsProblem), match=complaint):
        ingest(FQRN, home.storage, home.keys, archives, base="sw/new", bounds=Bounds(4, 1000))
    assert (home.storage / ".cvmfspublished").read_bytes() == before
    assert list((home.storage / "data/txn").iterdir()) == []


def test_a_zip_bomb_and_a_zip_upwards_are_refused(home: Home, tmp_path: Path) -> None:
    for name, content in (("big", bytes(2000)), ("../up", b"")):
        with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as bad:
            bad.writestr(name, content)
        with (tmp_path / "z.zip").open("rb") as stream, pytest.raises(Mistake, match=r"more than|leads out"):
            ingest(FQRN, home.storage, home.keys, [("z.zip", stream)], bounds=Bounds(4, 1000))


def test_one_of_the_original_servers_repositories_takes_an_archive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, fqrn, keys = fixture("small"), "small.test.org", tmp_path / "keys"
    storage = copy_of(place / "repo", tmp_path / "storage")
    adopt_keys(fqrn, keys)
    resign_whitelist(fqrn, storage, keys)
    archive = packed(parcel(tmp_path / "parcel"), tmp_path / "a.tar.xz", "w:xz")
    arguments = ["ingest", fqrn, str(archive), "--base", "sw/pkg-9", "--storage", str(storage), "--keys", str(keys)]
    assert cvmfs_server.main([*arguments, "--catalog", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["revision"], said["entries"]) == (8, 5240 + 13 + 3)  # its .cvmfsdirtab marks /sw/*/*
    found = check_repository(fqrn, storage, public=keys / f"{fqrn}.pub", objects=True)
    assert (found.faults, found.entries) == ((), 5256)
    check(storage, keys / f"{fqrn}.pub", fqrn)


@pytest.mark.timeout(300)
def test_a_killed_ingestion_leaves_the_old_revision_or_the_new(home: Home, tmp_path: Path) -> None:
    plant(tmp_path / "p", {"f": b"1", "n/.cvmfscatalog": b"", "n/g": b"2"})
    archive, pristine = packed(tmp_path / "p", tmp_path / "p.tar.gz"), tmp_path / "pristine"
    shutil.copytree(home.storage, pristine)
    outcomes = []
    for write in range(1, 200, 2):
        shutil.rmtree(home.storage)
        shutil.copytree(pristine, home.storage)
        killed = killed_at(write, partial(put, home, archive))
        whole(home)
        outcomes.append((home.storage / ".cvmfspublished").read_bytes() != (pristine / ".cvmfspublished").read_bytes())
        if not killed:
            break
    assert not killed
    assert outcomes == sorted(outcomes)
    assert len(outcomes) > 5
