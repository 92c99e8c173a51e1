# SPDX-License-Identifier: BSD-3-Clause
"""cvmfsd end to end: kernel FUSE, private dbus-daemon, nginx, repositories that the original server published."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from tests.support.cvmfs import fixture, site

pytestmark = pytest.mark.real

KINDS = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
}
EXTERNAL = {"/external/data.bin", "/external/text"}
"""Content on another server: what this client does not fetch yet.  Everything else of these two rows is compared."""


def escaped(name: bytes) -> str:
    return "".join(chr(c) if 32 < c < 127 and c != 92 else f"\\x{c:02x}" for c in name)


def row(root: bytes, path: bytes) -> str:
    """One line of a manifest.tsv, as ../shared/tools/manifest.py writes it."""
    full = root + path
    seen = os.lstat(full)
    kind = KINDS[stat.S_IFMT(seen.st_mode)]
    content = target = device = ""
    attributes = {}
    if kind == "f" and escaped(path) not in EXTERNAL:
        content = hashlib.sha1(Path(os.fsdecode(full)).read_bytes()).hexdigest()
    if kind == "l":
        target = escaped(os.fsencode(Path(os.fsdecode(full)).readlink()))
    elif path:
        attributes = {name: os.getxattr(full, name, follow_symlinks=False).hex() for name in os.listxattr(full)}
    if kind in "cb":
        device = f"{os.major(seen.st_rdev)}:{os.minor(seen.st_rdev)}"
    size = seen.st_size if kind in "fl" else ""
    owner = f"{seen.st_uid}\t{seen.st_gid}"
    shown = json.dumps(attributes, sort_keys=True)
    return (
        f"{escaped(path) or '/'}\t{kind}\t{seen.st_mode:06o}\t{owner}\t{seen.st_nlink}\t{size}\t{seen.st_mtime_ns}"
        f"\t{content}\t{target}\t{device}\t{shown}"
    )


def tree(root: Path) -> list[str]:
    rows = []

    def walk(path: bytes) -> None:
        rows.append(row(os.fsencode(root), path))
        full = os.fsencode(root) + path
        if stat.S_ISDIR(os.lstat(full).st_mode):
            for name in sorted(os.fsencode(child.name) for child in Path(os.fsdecode(full)).iterdir()):
                walk(path + b"/" + name)

    walk(b"")
    return rows


def expected(repository: Path) -> list[str]:
    lines = (repository / "manifest.tsv").read_text(encoding="ascii").splitlines()[1:]
    return [without_content(line) if line.split("\t")[0] in EXTERNAL else line for line in lines]


def without_content(line: str) -> str:
    fields = line.split("\t")
    fields[8] = ""
    return "\t".join(fields)


@pytest.mark.parametrize(
    ("name", "fqrn"), [("small", "small.test.org"), ("small-rmd160", "rmd160.test.org")], ids=["sha1", "rmd160"]
)
def test_the_mounted_tree_is_what_the_original_client_shows(tmp_path: Path, name: str, fqrn: str) -> None:
    published = fixture(name)
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / fqrn).symlink_to(published / "repo")
    keys = {"CVMFS_KEYS_DIR": str(published / "keys")}
    with site(tmp_path / "site", tmp_path / "web", keys) as here:
        here.call("Mount", fqrn)
        assert tree(here.mounts / fqrn) == expected(published)
