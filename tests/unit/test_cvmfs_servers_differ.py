# SPDX-License-Identifier: BSD-3-Clause
"""Servers that do not agree: one that lags, lies or lost something is left for the next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from cernvm.cvmfs.counters import Counters
from cernvm.cvmfs.errors import RolledBack, Untrusted
from cernvm.cvmfs.fetch import Fetcher
from cernvm.cvmfs.http import Receiver, ServerFailed, Span, Transport
from cernvm.cvmfs.objects import Objects
from cernvm.cvmfs.repository import Anchor, Repository
from cernvm.cvmfs.trust import load_master_keys
from tests.support.chain import FQRN, Chain, publish_chain
from tests.support.cvmfs import copy_of


class Wire:
    """Answers from one directory per server."""

    def __init__(self, **servers: Path) -> None:
        self.servers = servers
        self.asked: list[tuple[str, str]] = []

    def get(self, url: str, proxy: str, receiver: Receiver, *, refresh: bool, span: Span | None = None) -> None:
        server, path = url.removeprefix("http://").split("/", 1)
        self.asked.append((server, path))
        file = self.servers[server] / path
        if not file.is_file():
            raise ServerFailed("HTTP status 404", missing=True)
        receiver.write(file.read_bytes())


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    (tmp_path / "published").mkdir()
    return Chain(tmp_path, publish_chain(tmp_path / "published"))


def repository(chain: Chain, wire: Wire) -> Repository:
    transport = Transport(tuple(f"http://{name}" for name in wire.servers))
    fetcher = Fetcher(transport, wire, Counters(), random=Random(1), sleep=lambda _: None)
    anchor = Anchor(FQRN, load_master_keys([chain.published / "keys" / f"{FQRN}.pub"]))
    return Repository(anchor, fetcher, Objects(chain.cache, fetcher, Counters()), now=lambda: chain.now)


def test_a_server_that_lags_behind_what_is_known_is_left_for_the_next(chain: Chain, tmp_path: Path) -> None:
    stale = copy_of(chain.root, tmp_path / "stale")
    newest = chain.publish("newer")
    wire = Wire(stale=stale, fresh=chain.root)
    assert repository(chain, Wire(fresh=chain.root)).load().manifest == newest
    assert repository(chain, wire).load().manifest == newest
    assert [server for server, path in wire.asked if path == ".cvmfspublished"] == ["stale", "stale", "fresh"]
    with pytest.raises(RolledBack):
        repository(chain, Wire(stale=stale)).load()


@pytest.mark.parametrize("name", [".cvmfspublished", ".cvmfswhitelist"])
def test_a_server_that_lies_is_left_for_the_next(chain: Chain, tmp_path: Path, name: str) -> None:
    liar = copy_of(chain.root, tmp_path / "liar")
    (liar / name).write_bytes((liar / name).read_bytes()[:-1] + b"?")
    if name == ".cvmfspublished":
        (liar / name).write_bytes(b"<html>")
    wire = Wire(liar=liar, honest=chain.root)
    assert repository(chain, wire).load().manifest.revision == 2
    assert ("honest", name) in wire.asked


def test_a_forged_signature_of_a_manifest_is_refused_whoever_else_is_there(chain: Chain, tmp_path: Path) -> None:
    liar = Chain(tmp_path / "liar", chain.published)
    liar.sign(replace(liar.manifest(), revision=9), "other-keys")
    with pytest.raises(Untrusted, match="does not belong to the repository's certificate"):
        repository(chain, Wire(liar=liar.root, honest=chain.root)).load()
