# SPDX-License-Identifier: BSD-3-Clause
"""A mount whose cache lies on a bad disk: full, read-only, with flipped bits."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cernvm.cvmfs.publish import create_repository, publish_tree
from cernvm.kit.proc import find_program
from tests.support.cvmfs import Site, site

pytestmark = pytest.mark.real
FQRN = "disk.test.org"
SIZE = 3_000_000


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """A published repository, below a web server's root."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "small").write_text("small\n")
    for number in range(8):
        (tree / f"big{number}").write_bytes(os.urandom(SIZE))
    create_repository(FQRN, tmp_path / "web" / FQRN, tmp_path / "keys")
    publish_tree(FQRN, tree, tmp_path / "web" / FQRN, tmp_path / "keys")
    return tmp_path / "web"


@pytest.fixture
def here(tmp_path: Path, web: Path) -> Iterator[Site]:
    keys = {"CVMFS_KEYS_DIR": str(tmp_path / "keys")}
    with site(tmp_path / "site", web, keys, "deadline = 5\n        patience = 20") as running:
        yield running


@contextmanager
def small_disk(tmp_path: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own, where a site's cache is."""
    directory = tmp_path / "disk"
    directory.mkdir()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "cache").symlink_to(directory)
    image = directory.with_suffix(".image")
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    subprocess.run([find_program("mkfs.ext4"), "-q", "-m0", str(image)], check=True, timeout=30)
    done = subprocess.run(
        [find_program("mount"), "-o", "loop", str(image), str(directory)], capture_output=True, timeout=30, check=False
    )
    if done.returncode:  # no loop devices here
        subprocess.run(
            [find_program("mount"), "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(directory)],
            check=True,
            timeout=30,
        )
    shutil.rmtree(directory / "lost+found", ignore_errors=True)
    try:
        yield directory
    finally:
        subprocess.run([find_program("umount"), "-l", str(directory)], check=True, timeout=30)


def test_a_full_cache_disk_gives_way_and_is_an_error_where_it_cannot(tmp_path: Path, web: Path) -> None:
    with small_disk(tmp_path, 20) as cache:
        with site(tmp_path / "site", web, {"CVMFS_KEYS_DIR": str(tmp_path / "keys")}) as here:
            mount = here.call("Mount", FQRN)
            mounted = here.mounts / FQRN
            for number in range(8):
                with (mounted / f"big{number}").open("rb") as file:
                    assert len(file.read()) == SIZE, "the cache made room, although its limit is far away"
            assert os.statvfs(mounted).f_blocks > 0
            ballast = cache / "ballast"
            with ballast.open("wb") as file, suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()
            here.call("Wipe")
            with ballast.open("ab") as file, suppress(OSError):
                while True:
                    file.write(bytes(4096))
                    file.flush()
            outcomes = [outcome(mounted / f"big{number}") for number in range(8)]
            assert set(outcomes) <= {0, errno.ENOSPC, errno.EIO}
            assert (mounted / "small").stat().st_size == 6
            os.statvfs(mounted)
            ballast.unlink()
            assert len((mounted / "big7").read_bytes()) == SIZE
            assert here.properties(mount)["State"] == "mounted"


def outcome(path: Path) -> int:
    try:
        assert len(path.read_bytes()) == SIZE
    except OSError as error:
        return error.errno or -1
    return 0


def test_a_cache_disk_that_is_read_only_still_serves(tmp_path: Path, web: Path) -> None:
    with small_disk(tmp_path, 40) as cache:
        with site(tmp_path / "site", web, {"CVMFS_KEYS_DIR": str(tmp_path / "keys")}) as here:
            here.call("Mount", FQRN)
            mounted = here.mounts / FQRN
            big = (mounted / "big0").read_bytes()
            here.daemon.stop()
            subprocess.run([find_program("mount"), "-o", "remount,ro", str(cache)], check=True, timeout=30)
            here.daemon.start()
            before = here.web.hits(f"/{FQRN}/data/")
            here.call("Mount", FQRN)
            assert (mounted / "big0").read_bytes() == big
            assert here.web.hits(f"/{FQRN}/data/") == before, "all that was wanted is in the cache"
            assert len((mounted / "big1").read_bytes()) == SIZE, "fetched into memory"
            assert len((mounted / "small").read_bytes()) == 6
            os.statvfs(mounted)
            here.call("Unmount", FQRN)


def test_a_flipped_bit_in_the_cache_is_noticed_by_the_next_worker_and_fetched_again(here: Site) -> None:
    here.call("Mount", FQRN)
    good = (here.mounts / FQRN / "big0").read_bytes()
    digest = os.getxattr(here.mounts / FQRN / "big0", "user.hash").decode()
    here.call("Unmount", FQRN)
    stored = here.cache / digest[:2] / digest[2:]
    with stored.open("r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)
        file.seek(1_000_000)
        file.write(bytes([byte[0] ^ 1]))
    here.call("Mount", FQRN)
    assert (here.mounts / FQRN / "big0").read_bytes() == good
    assert stored.read_bytes() == good
