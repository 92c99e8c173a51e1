# SPDX-License-Identifier: BSD-3-Clause
"""A repository of a test: keys, storage and tree in one scratch directory."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Final

from cernvm.cvmfs.publish import Published, create_repository, publish_tree
from cernvm.cvmfs.publish.keys import KeyFiles, ensure_keys
from tests.support.publishing import on_disk, opened

FQRN: Final = "unit.test.org"


class Home:
    """Keys, storage and tree in one scratch directory."""

    def __init__(self, root: Path, keys: Path) -> None:
        self.keys = keys
        self.root = root
        self.storage = root / "storage"
        self.tree = root / "tree"
        self.tree.mkdir()
        self.public = keys / f"{FQRN}.pub"

    def publish(self, *, jobs: int | None = None, ttl: int | None = None) -> Published:
        """Publish the tree."""
        return publish_tree(FQRN, self.tree, self.storage, self.keys, jobs=jobs, ttl=ttl)

    def served(self) -> dict[str, bytes]:
        """Every served file."""
        files = (path for path in self.storage.rglob("*") if path.is_file())
        return {
            str(path.relative_to(self.storage)): path.read_bytes()
            for path in files
            if "publisher" not in path.relative_to(self.storage).parts
        }


def make_keys(directory: Path, fqrn: str = FQRN) -> Path:
    """Keys for `fqrn` in `directory`."""
    ensure_keys(KeyFiles(directory, fqrn), datetime.now(UTC))
    return directory


def make_home(root: Path, keys: Path) -> Home:
    """A repository at its empty first revision."""
    made = Home(root, keys)
    create_repository(FQRN, made.storage, keys)
    return made


def plant(tree: Path, files: dict[str, bytes]) -> None:
    """Write the files, with their directories."""
    for name, content in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def same(home: Home) -> None:
    """The newest revision shows what the tree holds."""
    with opened(FQRN, home.storage, home.public, home.root / "cache") as revision:
        assert revision.shown() == on_disk(home.tree)


def all_kinds(tree: Path) -> None:
    """Every kind of entry that a user may have, and of root's what this user may make."""
    random = Random(11)
    plant(
        tree,
        {
            ".cvmfsdirtab": b"# rules\n/sw/*\n! /sw/other\n",
            "empty": b"",
            "hello": b"hi\n",
            "old": b"",
            "secret": b"s",
            "big": random.randbytes(20 << 20),
            "zeros": bytes(17 << 20),
            "at-the-minimum": bytes(4 << 20),
            "nest/.cvmfscatalog": b"",
            "nest/deep/.cvmfscatalog": b"",
            "nest/deep/x/f": b"abc" * 1000,
            "sw/a/bin/p": b"1",
            "sw/b/.cvmfscatalog": b"",
            "sw/other/f": b"2",
            "links/a": b"x",
            os.fsdecode(b"latin-\xe9\xff"): b"l",
            os.fsdecode(b"d\xefr/q"): b"q",
        },
    )
    (tree / "bare").mkdir(mode=0o700)
    (tree / "sw/b").chmod(0o1777)
    (tree / "hello").chmod(0o4755)
    (tree / "secret").chmod(0 if os.geteuid() == 0 else 0o400)
    os.utime(tree / "old", ns=(-1_500_000_000, -1_500_000_000))
    (tree / "variable").symlink_to("$(CVMFS_ARCH)/lib//x")
    (tree / "twin").hardlink_to(tree / "variable")
    (tree / "dangling").symlink_to("nowhere")
    for name in ("links/b", "links/c", "far"):
        (tree / name).hardlink_to(tree / "links/a")
    os.mkfifo(tree / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(tree)
        listener.bind("socket")
        os.chdir(here)
    if os.geteuid() == 0:
        os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
        os.chown(tree / "links/a", 1234, 5678)
    with suppress(OSError):  # not every file system has extended attributes
        for name in ("hello", "nest", "sw/b", "."):
            os.setxattr(tree / name, "user.bin", bytes(range(200)))
            os.setxattr(tree / name, "user.empty", b"")
