# SPDX-License-Identifier: BSD-3-Clause
"""Two Stratum 1 servers (nginx) behind two proxies (squid), any of which may be dead, mute, lying or refusing.

Readers get right bytes or an error within the configured time, never wrong bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Final

import pytest

from cernvm.cvmfs.cache import Cache
from cernvm.cvmfs.counters import Counters
from cernvm.cvmfs.errors import CvmfsProblem, ObjectMissing, Unreachable
from cernvm.cvmfs.network import Network, transport_of
from cernvm.cvmfs.objects import Objects
from tests.support.cvmfs import Site, fixture, site
from tests.support.farm import FQRN, READERS, Farm, farm_in, read_everything
from tests.support.nginx import Nginx
from tests.support.relay import Spoil
from tests.support.squid import Squid

pytestmark = pytest.mark.real
ROUNDS: Final = 6
MARGIN: Final = 3.0
"""Seconds that a busy machine may add."""
FAULTS: Final = [one for one in Spoil if one is not Spoil.NOTHING]


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with farm_in(tmp_path_factory.mktemp("farm")) as running:
        yield running


@pytest.fixture(autouse=True)
def mended(farm: Farm) -> Iterator[None]:
    yield
    farm.mend()


def check_all_right(farm: Farm, network: Network, cache: Path, count: int) -> None:
    with closing(network):
        outcome = read_everything(farm, network, cache, count)
    assert (outcome.wrong, outcome.failures) == (0, [])
    assert outcome.right == READERS * count
    assert outcome.slowest < transport_of(farm.parameters()).longest_silence() + MARGIN


# --- one part is broken


@pytest.mark.parametrize("part", ["server", "proxy"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.lower())
def test_one_broken_part_is_gone_around(farm: Farm, tmp_path: Path, part: str, fault: Spoil) -> None:
    network = farm.connect()
    broken = farm.servers[0]
    if part == "proxy":
        first = network.fetcher.ways().proxy
        broken = next(proxy for proxy in farm.proxies if proxy.url == first)
    broken.spoil(fault)
    before = broken.connections
    check_all_right(farm, network, tmp_path / "cache", 60)
    assert fault is Spoil.KILLED or broken.connections > before, "nobody met the fault"


def test_parts_break_one_after_the_other_while_readers_read(farm: Farm, tmp_path: Path) -> None:
    stop = threading.Event()

    def trouble() -> None:
        random = Random(7)
        while not stop.is_set():
            part = random.choice([*farm.servers, *farm.proxies])
            part.spoil(random.choice(FAULTS))
            stop.wait(0.4)
            part.spoil(Spoil.NOTHING)

    breaker = threading.Thread(target=trouble)
    breaker.start()
    outcomes = []
    try:
        for number in range(ROUNDS):
            with closing(farm.connect("CVMFS_MAX_RETRIES=2")) as network:
                outcomes.append(read_everything(farm, network, tmp_path / f"cache{number}"))
    finally:
        stop.set()
        breaker.join()
    reads = ROUNDS * READERS * len(farm.content)
    right = sum(outcome.right for outcome in outcomes)
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    assert [outcome.wrong for outcome in outcomes] == [0] * ROUNDS
    assert (right + len(failures), right > 0.9 * reads) == (reads, True), failures[:3]
    bound = transport_of(farm.parameters("CVMFS_MAX_RETRIES=2")).longest_silence()
    assert max(outcome.slowest for outcome in outcomes) < bound + MARGIN


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
@pytest.mark.parametrize("part", ["nginx", "squid"])
def test_a_real_server_that_is_killed_or_stopped_is_gone_around(
    farm: Farm, tmp_path: Path, part: str, number: signal.Signals
) -> None:
    network = farm.connect("CVMFS_HTTP_PROXY=" + f"'{farm.squids[0].url};{farm.squids[1].url}'")
    victim: Nginx | Squid = farm.webs[0] if part == "nginx" else farm.squids[0]
    pid = victim.pid
    os.kill(pid, number)
    try:
        check_all_right(farm, network, tmp_path / "cache", 40)
    finally:
        if number is signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
        else:
            victim.stop()
            victim.start()


# --- everything is broken


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.lower())
def test_when_all_servers_are_broken_every_read_is_an_error_in_time(farm: Farm, tmp_path: Path, fault: Spoil) -> None:
    for server in farm.servers:
        server.spoil(fault)
    lines = ("CVMFS_HTTP_PROXY=DIRECT", "CVMFS_MAX_RETRIES=1")
    small = [ref for ref in farm.content if len(farm.content[ref]) > 2000][:1]
    with closing(farm.connect(*lines)) as network, closing(Cache(tmp_path / "cache", None)) as cache:
        objects = Objects(cache, network.fetcher, Counters())
        for ref in small:
            begun = time.monotonic()
            with pytest.raises(CvmfsProblem) as failed:
                objects.open(ref)
            assert time.monotonic() - begun < transport_of(farm.parameters(*lines)).longest_silence() + MARGIN
            kind = {Spoil.CORRUPT: CvmfsProblem, Spoil.NOT_FOUND: ObjectMissing}.get(fault, Unreachable)
            assert isinstance(failed.value, kind)
    assert list((tmp_path / "cache" / "txn").iterdir()) == []


def test_recovery_is_at_once(farm: Farm, tmp_path: Path) -> None:
    ref = next(iter(farm.content))
    with closing(farm.connect()) as network, closing(Cache(tmp_path / "cache", None)) as cache:
        objects = Objects(cache, network.fetcher, Counters())
        for server in farm.servers:
            server.spoil(Spoil.KILLED)
        with pytest.raises(Unreachable):
            objects.open(ref)
        farm.mend()
        assert objects.open(ref).read_all() == farm.content[ref]


# --- at the mount


def test_readers_of_a_mount_get_right_bytes_or_eio_while_parts_fail(farm: Farm, tmp_path: Path) -> None:
    given = {
        "CVMFS_KEYS_DIR": str(fixture("small") / "keys"),
        "CVMFS_SERVER_URL": f"{farm.servers[0].url}/@fqrn@;{farm.servers[1].url}/@fqrn@",
        "CVMFS_HTTP_PROXY": f"{farm.proxies[0].url};{farm.proxies[1].url}",
        "CVMFS_TIMEOUT": "1",
        "CVMFS_MAX_RETRIES": "0",
    }
    with site(tmp_path / "site", farm.directory / "web", given) as here:
        mount = here.call("Mount", FQRN)
        farm.servers[0].spoil(Spoil.STALLED)
        farm.proxies[0].spoil(Spoil.TRUNCATING)
        right, slowest = walk(here)
        assert right > 100
        assert slowest < transport_of(farm.parameters()).longest_silence() + MARGIN
        assert here.properties(mount)["Statistics"]["errors"] == 0
        for proxy in farm.proxies:
            proxy.spoil(Spoil.STALLED)
        begun = time.monotonic()
        with pytest.raises(OSError, match="Input/output error"):
            (here.mounts / FQRN / big_file()).read_bytes()
        assert time.monotonic() - begun < transport_of(farm.parameters()).longest_silence() + MARGIN


def rows() -> list[dict[str, str]]:
    """The files of the repository that stand in it with their content."""
    lines = (fixture("small") / "manifest.tsv").read_text(errors="surrogateescape").splitlines()
    columns = lines[0].split("\t")
    found = [dict(zip(columns, line.split("\t"), strict=False)) for line in lines[1:]]
    return [row for row in found if row["type"] == "f" and not re.search(r"^/external/|\\", row["path"])]


def big_file() -> str:
    """The path of a file that `walk` leaves alone."""
    return next(row["path"].removeprefix("/") for row in rows() if int(row["size"]) >= 100_000)


def walk(here: Site) -> tuple[int, float]:
    """Read small files by sixteen threads, their number and the slowest; fails for a byte that is wrong."""
    small = [row for row in rows() if 0 < int(row["size"]) < 100_000]

    def read(row: dict[str, str]) -> float:
        begun = time.monotonic()
        data = (here.mounts / FQRN / row["path"].removeprefix("/")).read_bytes()
        assert hashlib.sha1(data).hexdigest() == row["sha1"], row["path"]
        return time.monotonic() - begun

    with ThreadPoolExecutor(READERS) as pool:
        times = list(pool.map(read, small[:400]))
    return len(times), max(times)
