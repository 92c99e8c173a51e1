# SPDX-License-Identifier: BSD-3-Clause
"""The journey of a release: a tree is published by the command, served by nginx, and stands in /cvmfs as it was."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.cvmfs import site
from tests.support.publisher import FQRN, Home, all_kinds, make_home, make_keys, plant
from tests.support.publishing import Shown, on_disk

pytestmark = pytest.mark.real


def comparable(tree: Path) -> dict[bytes, Shown]:
    """What a directory shows, without what a mount adds: its root's attributes, values in links, the marker file."""
    shown = on_disk(tree)
    shown[b""] = replace(shown[b""], attributes=())
    shown[b"/variable"] = replace(shown[b"/variable"], target=b"", size=0)
    shown[b"/twin"] = replace(shown[b"/twin"], target=b"", size=0)
    shown.pop(b"/sw/a/.cvmfscatalog", None)
    return shown


def test_what_is_published_is_what_is_mounted(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    web = tmp_path / "web"
    web.mkdir()
    home: Home = make_home(tmp_path, keys)
    home.storage = home.storage.rename(web / FQRN)
    all_kinds(home.tree)
    home.publish()
    with site(tmp_path / "site", web, {"CVMFS_PUBLIC_KEY": str(home.public)}) as machine:
        mount = str(machine.call("Mount", FQRN))
        assert comparable(machine.mounts / FQRN) == comparable(home.tree)
        assert (machine.mounts / FQRN / "variable").readlink() == Path("x86_64/lib/x")
        assert (machine.mounts / FQRN / "links/a").stat().st_nlink == 3
        shutil.rmtree(home.tree / "nest/deep")
        (home.tree / "far").unlink()
        plant(home.tree, {"hello": b"another content", "new/.cvmfscatalog": b"", "new/file": b"new"})
        assert machine.refresh(mount) == 2
        home.publish()
        assert machine.refresh(mount) == 3
        assert comparable(machine.mounts / FQRN) == comparable(home.tree)
