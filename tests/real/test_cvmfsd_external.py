# SPDX-License-Identifier: BSD-3-Clause
"""Data that stands on another server under its own name: whole or in ranges, always verified."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from hashlib import sha1
from pathlib import Path
from random import Random
from sqlite3 import Connection

import pytest

from cernvm.cvmfs import flags
from cernvm.cvmfs.hashes import path_hash
from tests.support.chain import FQRN, Chain, publish_chain
from tests.support.cvmfs import site
from tests.support.nginx import Nginx

pytestmark = pytest.mark.real
PIECE = 300_000
BIG = Random(1).randbytes(2 * PIECE + 1234)
OTHER = Random(2).randbytes(2 * PIECE)
WHOLE = "whole ü [x]+%41?#"
LATIN = b"latin-\xe9"
BITS = flags.FILE | flags.EXTERNAL | flags.Compression.NONE << flags.COMPRESSION_SHIFT


def insert(database: Connection, name: bytes, content: bytes, piece: int = 0) -> None:
    """A row for external data in the root; `piece`: cut into chunks of that size."""
    path = b"/" + name
    digest = None if piece else sha1(content).digest()
    bits = BITS | flags.CHUNKED if piece else BITS
    values = (*path_hash(path), *path_hash(b""), digest, len(content), bits, name)
    database.execute(
        "INSERT INTO catalog (md5path_1, md5path_2, parent_1, parent_2, hardlinks, hash, size, mode, mtime, flags,"
        " name, symlink, uid, gid) VALUES (?, ?, ?, ?, 1, ?, ?, 33188, 5, ?, CAST(? AS TEXT), '', 0, 0)",
        values,
    )
    for at in range(0, len(content), piece) if piece else ():
        part = content[at : at + piece]
        database.execute(
            "INSERT INTO chunks VALUES (?, ?, ?, ?, ?)", (*path_hash(path), at, len(part), sha1(part).digest())
        )


def change(database: Connection) -> None:
    insert(database, WHOLE.encode(), b"whole content")
    insert(database, LATIN, b"latin content")
    insert(database, b"big", BIG, PIECE)
    insert(database, b"false", b"right")
    insert(database, b"false-big", OTHER, PIECE)
    insert(database, b"absent", b"absent")


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Nginx]:
    """The server of external data."""
    root = tmp_path / "outside" / FQRN
    root.mkdir(parents=True)
    (root / WHOLE).write_text("whole content")
    (root / os.fsdecode(LATIN)).write_bytes(b"latin content")
    (root / "big").write_bytes(BIG)
    (root / "false").write_bytes(b"wrong")
    (root / "false-big").write_bytes(OTHER[:PIECE] + bytes([OTHER[PIECE] ^ 1]) + OTHER[PIECE + 1 :])
    with Nginx(tmp_path / "outside-web", root.parent) as web:
        yield web


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """The repository, with rows that our publisher does not write yet."""
    (tmp_path / "published").mkdir()
    chain = Chain(tmp_path / "chain", publish_chain(tmp_path / "published"))
    chain.change_catalog(change)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / FQRN).symlink_to(chain.root)
    return tmp_path / "served"


def error_of(path: Path) -> int:
    with pytest.raises(OSError) as failed:
        path.read_bytes()
    return failed.value.errno or 0


def test_external_data_is_fetched_by_name_and_in_ranges_and_verified(tmp_path: Path, web: Path, outside: Nginx) -> None:
    keys = {"CVMFS_KEYS_DIR": str(tmp_path / "published" / "keys"), "CVMFS_BACKOFF_INIT": "0"}
    # the first is not there at all: the external servers are a ring of their own
    ring = f"http://127.0.0.1:1/@fqrn@;{outside.url}/@fqrn@"
    own = {"CVMFS_EXTERNAL_URL": ring, "CVMFS_EXTERNAL_TIMEOUT_DIRECT": "5"}
    with site(tmp_path / "site", web, keys | own) as here:
        here.call("Mount", FQRN)
        root = here.mounts / FQRN
        assert (root / WHOLE).read_bytes() == b"whole content"
        assert (root / os.fsdecode(LATIN)).read_bytes() == b"latin content"
        with (root / "big").open("rb") as big:
            assert os.pread(big.fileno(), 10, PIECE + 7) == BIG[PIECE + 7 : PIECE + 17]
            assert {(hit.status, hit.size) for hit in outside.log() if hit.path.endswith("/big")} <= {
                (206, PIECE),
                (206, 1234),
            }
        assert (root / "big").read_bytes() == BIG
        assert here.web.hits(f"/{FQRN}/data/") < 5, "nothing of it is asked of the repository's server"
        assert os.getxattr(root / "big", "user.external_file") == b"1"
        for name in ("false", "false-big", "absent"):
            assert error_of(root / name) == errno.EIO
        with (root / "false-big").open("rb") as big:
            assert os.pread(big.fileno(), 10, 0) == OTHER[:10], "the other pieces are right"


def test_without_a_server_for_it_external_data_is_listed_and_not_read(tmp_path: Path, web: Path) -> None:
    with site(tmp_path / "site", web, {"CVMFS_KEYS_DIR": str(tmp_path / "published" / "keys")}) as here:
        here.call("Mount", FQRN)
        root = here.mounts / FQRN
        assert (root / "big").stat().st_size == len(BIG)
        assert error_of(root / "big") == errno.EIO
        assert (root / "file").read_text() == "content"
