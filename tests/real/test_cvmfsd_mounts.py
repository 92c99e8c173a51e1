# SPDX-License-Identifier: BSD-3-Clause
"""cvmfsd end to end: kernel FUSE, private dbus-daemon, nginx, repositories that the original server published."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.cvmfs import FIXTURES, fixture, site
from tests.support.nginx import Nginx

pytestmark = pytest.mark.real

TOOL = FIXTURES.parent.parent / "tools" / "manifest.py"
"""The same program wrote the expected trees, of mounts of the original client."""


def tree(root: Path) -> list[str]:
    """Every entry below a mount with all its columns, content included."""
    done = subprocess.run([sys.executable, TOOL, root], capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("ascii").splitlines()


def expected(repository: Path) -> list[str]:
    """What `tree` gives for the original client."""
    return (repository / "manifest.tsv").read_text(encoding="ascii").splitlines()


@contextmanager
def external_data(directory: Path, published: Path, fqrn: str) -> Iterator[dict[str, str]]:
    """A server of its own for what stands outside of the repository; the parameters that name it."""
    (directory / "root").mkdir(parents=True)
    if (published / "external").is_dir():
        (directory / "root" / fqrn).symlink_to(published / "external")
    with Nginx(directory / "nginx", directory / "root") as web:
        yield {"CVMFS_EXTERNAL_URL": f"{web.url}/@fqrn@", "CVMFS_EXTERNAL_HTTP_PROXY": "DIRECT"}


@pytest.mark.parametrize("adapter", ["kernel", "llfuse"])
@pytest.mark.parametrize(
    ("name", "fqrn"), [("small", "small.test.org"), ("small-rmd160", "rmd160.test.org")], ids=["sha1", "rmd160"]
)
def test_the_mounted_tree_is_what_the_original_client_shows(tmp_path: Path, name: str, fqrn: str, adapter: str) -> None:
    published = fixture(name)
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / fqrn).symlink_to(published / "repo")
    keys = {"CVMFS_KEYS_DIR": str(published / "keys")}
    with (
        external_data(tmp_path / "external", published, fqrn) as external,
        site(tmp_path / "site", tmp_path / "web", keys | external, f"fuse = {adapter}") as here,
    ):
        here.call("Mount", fqrn)
        assert tree(here.mounts / fqrn) == expected(published)
