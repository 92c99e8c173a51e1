# SPDX-License-Identifier: BSD-3-Clause
"""A repository of a test: keys, storage and tree in one scratch directory."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
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
