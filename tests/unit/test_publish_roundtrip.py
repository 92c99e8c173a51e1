# SPDX-License-Identifier: BSD-3-Clause
"""Any tree comes back as it was: published, then read by the client's library with every check on."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cernvm.cvmfs.errors import CvmfsProblem, ObjectCorrupt
from tests.support.publisher import FQRN, Home, make_home, make_keys, same
from tests.support.publishing import opened

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Publishing waits for the disk; memory has none."""
NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b".hidden", b"a b", b"caf\xe9", b"\xff\xfe", b"*", b"\\", b"x" * 255]),
    st.binary(min_size=1, max_size=12).filter(lambda name: not set(name) & {0, 0x2F} and name not in (b".", b"..")),
)
TIMES = st.integers(-(1 << 31) * 10**9, (1 << 33) * 10**9)
FILES = st.tuples(st.just("file"), st.binary(max_size=3000), st.integers(0, 0o7777), TIMES)
LINKS = st.tuples(st.just("link"), st.binary(min_size=1, max_size=300).filter(lambda target: 0 not in target))
OTHERS = st.tuples(st.sampled_from(["fifo", "twin", "marker"]))
TREES = st.recursive(
    st.dictionaries(NAMES, st.one_of(FILES, LINKS, OTHERS), max_size=4),
    lambda inner: st.dictionaries(NAMES, st.one_of(FILES, LINKS, OTHERS, inner), max_size=5),
    max_leaves=12,
)


def build(place: bytes, tree: dict[bytes, Any]) -> None:
    """Make the directory `place` with what `tree` says."""
    last: bytes | None = None
    for name, what in tree.items():
        path = place + b"/" + name
        match what:
            case dict():
                os.mkdir(path)  # noqa: PTH102 - names are bytes
                build(path, what)
            case ("file", content, mode, time):
                Path(os.fsdecode(path)).write_bytes(content)
                os.chmod(path, mode | 0o400)  # noqa: PTH101 - names are bytes
                os.utime(path, ns=(0, time))
                last = path
            case ("link", target):
                os.symlink(target, path)  # noqa: PTH211 - names are bytes
            case ("fifo",):
                os.mkfifo(path)
            case ("twin",) if last is not None:
                os.link(last, path)
            case ("marker",) if not os.path.lexists(place + b"/.cvmfscatalog"):
                Path(os.fsdecode(place + b"/.cvmfscatalog")).touch()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("roundtrip") / "keys")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(first=TREES, second=TREES)
def test_any_two_trees_come_back(keys: Path, first: dict[bytes, Any], second: dict[bytes, Any]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as root:
        home = make_home(Path(root), keys)
        for tree in (first, second):
            shutil.rmtree(home.tree)
            home.tree.mkdir()
            build(os.fsencode(home.tree), tree)
            home.publish(jobs=2)
            same(home)


def test_a_flipped_bit_does_not_come_back(tmp_path: Path, keys: Path) -> None:
    home: Home = make_home(tmp_path, keys)
    (home.tree / "a").write_bytes(b"content")
    home.publish()
    for path in (home.storage / "data").rglob("*"):
        if path.is_file():
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
    with pytest.raises(ObjectCorrupt), opened(FQRN, home.storage, home.public, home.root / "cache"):
        pass


def test_a_changed_manifest_does_not_come_back(tmp_path: Path, keys: Path) -> None:
    home = make_home(tmp_path, keys)
    manifest = home.storage / ".cvmfspublished"
    manifest.write_bytes(manifest.read_bytes().replace(b"\nS1\n", b"\nS2\n"))
    with pytest.raises(CvmfsProblem), opened(FQRN, home.storage, home.public, home.root / "cache"):
        pass
