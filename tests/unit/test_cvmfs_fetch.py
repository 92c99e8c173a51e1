# SPDX-License-Identifier: BSD-3-Clause
"""Which server, which proxy, how often: fail-over without a network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from random import Random

import pytest

from cernvm.cvmfs.counters import Counter, Counters
from cernvm.cvmfs.errors import ObjectCorrupt, ObjectMissing, Unreachable
from cernvm.cvmfs.fetch import Buffer, Fetcher, Throttle
from cernvm.cvmfs.http import DIRECT, Failed, Receiver, ServerFailed, Span, TransferFailed, Transport
from cernvm.cvmfs.routes import Groups, plain
from cernvm.kit.backoff import Backoff
from tests.support.server import wait_until

Answer = Callable[[], bytes]


class Judge(Buffer):
    """A receiver that wants `good`."""

    def finish(self) -> None:
        if self.data != b"good":
            raise ObjectCorrupt(f"object is corrupt: {bytes(self.data)!r}")


class Network:
    """A wire with a rule per (URL, proxy): bytes, or an error to raise; remembers what it was asked."""

    def __init__(self) -> None:
        self.rules: dict[tuple[str, str], bytes | Failed] = {}
        self.asked: list[tuple[str, str, bool]] = []
        self.slept: list[float] = []
        self.now = 0.0
        self.refreshed: bytes | None = None

    def get(self, url: str, proxy: str, receiver: Receiver, *, refresh: bool, span: Span | None = None) -> None:
        server = url.split("/")[2]
        self.asked.append((server, proxy, refresh))
        rule = self.rules.get((server, proxy), b"good")
        if isinstance(rule, Failed):
            raise rule
        receiver.write(self.refreshed if refresh and self.refreshed is not None else rule)

    def fetcher(self, servers: str, *groups: tuple[str, ...], tries: int = 1) -> Fetcher:
        transport = Transport(
            servers=tuple(f"http://{server}/cvmfs/repo" for server in servers.split()),
            proxy_groups=groups or ((DIRECT,),),
            retries=Backoff(first=2.0, cap=10.0, tries=tries),
        )
        counters = Counters()
        return Fetcher(transport, self, counters, random=Random(1), sleep=self.slept.append, clock=lambda: self.now)

    def servers(self) -> list[str]:
        return [server for server, _, _ in self.asked]


def take(fetcher: Fetcher, path: str = "data/ab/cd") -> bytes:
    return bytes(fetcher.fetch(path, lambda: Judge(100, "it")).data)


def test_the_server_that_works_is_asked_again() -> None:
    network = Network()
    network.rules["a", DIRECT] = ServerFailed("HTTP status 500")
    fetcher = network.fetcher("a b c")
    assert [take(fetcher), take(fetcher)] == [b"good", b"good"]
    assert network.servers() == ["a", "b", "b"]
    network.now = 1801.0
    del network.rules["a", DIRECT]
    take(fetcher)
    assert network.servers()[-1] == "a", "after a while the first one is tried again"


def test_transfers_are_tried_again_with_a_pause_and_an_end() -> None:
    network = Network()
    network.rules["a", DIRECT] = TransferFailed("timed out")
    with pytest.raises(Unreachable, match=r"data/ab/cd cannot be fetched \(http://a/cvmfs/repo: timed out\)"):
        take(network.fetcher("a", tries=3))
    assert len(network.asked) == 4
    assert [1.0 <= network.slept[0] <= 2.0, 2.0 <= network.slept[1] <= 4.0, 4.0 <= network.slept[2] <= 8.0] == [
        True
    ] * 3


def test_a_server_that_answers_no_is_not_asked_again_but_through_one_other_proxy() -> None:
    network = Network()
    network.rules |= dict.fromkeys([("a", "p"), ("a", "q"), ("a", "r")], ServerFailed("HTTP status 404", missing=True))
    with pytest.raises(ObjectMissing, match="no server has data/ab/cd"):
        take(network.fetcher("a", ("p",), ("q",), ("r",), tries=3))
    assert network.asked == [("a", "p", False), ("a", "q", False)]
    assert network.slept == [Throttle.FIRST], "only the failure is held back for a moment"


def test_a_dead_proxy_is_left_for_the_next_group_before_the_server_is() -> None:
    network = Network()
    network.rules |= {(server, "p"): TransferFailed("refused") for server in "ab"}
    fetcher = network.fetcher("a b", ("p",), ("q",), tries=0)
    take(fetcher)
    take(fetcher)
    assert network.asked == [("a", "p", False), ("a", "q", False), ("a", "q", False)]
    network.now = 301.0
    take(fetcher)
    assert network.asked[-2:] == [("a", "p", False), ("a", "q", False)]


def test_a_group_is_used_in_one_random_order() -> None:
    orders = set()
    for seed in range(20):
        network = Network()
        network.rules |= {("a", proxy): TransferFailed("refused") for proxy in "pq"}
        transport = Transport(("http://a/x",), (("p", "q"), ("z",)), retries=Backoff(1, 1, 0))
        take(Fetcher(transport, network, Counters(), random=Random(seed), sleep=network.slept.append))
        orders.add("".join(proxy for _, proxy, _ in network.asked))
    assert orders == {"pqz", "qpz"}


def test_corrupt_bytes_are_asked_for_once_more_past_the_caches() -> None:
    network = Network()
    network.rules["a", "p"] = b"bad"
    network.refreshed = b"good"
    assert take(network.fetcher("a b", ("p",))) == b"good"
    assert network.asked == [("a", "p", False), ("a", "p", True)]


def test_corrupt_bytes_of_one_server_are_taken_from_the_next() -> None:
    network = Network()
    network.rules["a", DIRECT] = b"bad"
    fetcher = network.fetcher("a b")
    assert take(fetcher) == b"good"
    assert network.asked == [("a", DIRECT, False), ("a", DIRECT, True), ("b", DIRECT, False)]


def test_corrupt_bytes_everywhere_are_told_as_such() -> None:
    network = Network()
    network.rules |= {("a", DIRECT): b"bad", ("b", DIRECT): ServerFailed("HTTP status 503")}
    with pytest.raises(ObjectCorrupt, match="bad"):
        take(network.fetcher("a b"))


def test_a_receiver_has_its_limit() -> None:
    with pytest.raises(ObjectCorrupt, match="it has more than 100 bytes"):
        Judge(100, "it").write(bytes(101))


def test_paths_are_escaped_as_the_servers_expect() -> None:
    asked: list[str] = []

    class Wire:
        def get(self, url: str, proxy: str, receiver: Receiver, *, refresh: bool, span: Span | None = None) -> None:
            asked.append(url)
            receiver.write(b"good")

    fetcher = Fetcher(Transport(("http://a/x/",)), Wire(), Counters(), random=Random(1))
    take(fetcher, "data/a b/[,]~é%")
    assert asked == ["http://a/x/data/a%20b/[,]~%C3%A9%25"]


def test_retries_and_corruption_are_counted() -> None:
    network = Network()
    network.rules["a", DIRECT] = b"bad"
    counters = Counters()
    fetcher = Fetcher(Transport(("http://a/x",)), network, counters, random=Random(1), sleep=network.slept.append)
    with pytest.raises(ObjectCorrupt):
        take(fetcher)
    assert (counters[Counter.RETRIES], counters[Counter.CORRUPT]) == (1, 2)


def test_failures_are_told_ever_later_and_that_is_forgotten() -> None:
    throttle = Throttle()
    delays = [throttle.failed(now) for now in range(9)]
    assert delays == [0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.0, 2.0, 2.0]
    assert throttle.failed(8 + 10.5) == 0.032


def test_the_object_that_a_proxy_gets_is_chosen_by_its_path_when_sharding() -> None:
    network = Network()
    transport = Transport(("http://a/x",), (("http://p:1", "http://q:1", "http://r:1"),), shard=True)
    for seed in (1, 2):
        fetcher = Fetcher(transport, network, Counters(), random=Random(seed))
        for number in range(60):
            take(fetcher, f"data/{number}")
    used = [proxy for _, proxy, _ in network.asked]
    assert used[:60] == used[60:], "another machine chooses alike"
    assert all(10 < used[:60].count(proxy) < 30 for proxy in transport.proxy_groups[0])


def test_one_server_can_be_asked_alone() -> None:
    network = Network()
    network.rules |= {("g", proxy): ServerFailed("HTTP status 400") for proxy in "pq"}
    fetcher = network.fetcher("a b", ("p",), ("q",))
    with pytest.raises(Unreachable, match="http://g: HTTP status 400"):
        fetcher.ask("http://g", "api", lambda: Buffer(10, "it"))
    assert network.servers() == ["g"]
    assert fetcher.ways().servers[0] == "http://a/cvmfs/repo", "what it says is nothing about the others"


def test_a_person_sees_and_changes_the_ways() -> None:
    network = Network()
    fetcher = network.fetcher("a b", ("p",), ("q",))
    ways = fetcher.ways()
    assert (ways.servers[0], ways.proxy, ways.proxy_groups) == ("http://a/cvmfs/repo", "p", (("p",), ("q",)))
    fetcher.switch_server()
    fetcher.switch_proxy_group()
    take(fetcher)
    assert network.asked == [("b", "q", False)]
    fetcher.use_servers(["http://c/cvmfs/repo"])
    fetcher.rebalance()
    take(fetcher)
    fetcher.use_proxies([[plain("r")]])
    take(fetcher)
    assert network.asked[1:] == [("c", "p", False), ("c", "r", False)]


def test_a_part_of_a_file_is_asked_for_as_such() -> None:
    spans: list[Span | None] = []

    class Wire:
        def get(self, url: str, proxy: str, receiver: Receiver, *, refresh: bool, span: Span | None = None) -> None:
            spans.append(span)
            receiver.write(b"good")

    Fetcher(Transport(("http://a",)), Wire(), Counters(), random=Random(1)).fetch(
        "f", lambda: Judge(9, "it"), span=Span(5, 4)
    )
    assert spans == [Span(5, 4)]


def test_proxies_are_looked_up_again_while_they_are_used() -> None:
    network = Network()
    asked = threading.Semaphore(0)

    def renewed() -> Groups:
        asked.release()
        return [[plain("new")]]

    transport = Transport(("http://a",), (("old",),), lookup_every=60)
    fetcher = Fetcher(transport, network, Counters(), random=Random(1), clock=lambda: network.now, renew=renewed)
    take(fetcher)
    network.now = 60.0
    take(fetcher)
    assert not asked.acquire(blocking=False), "not yet"
    network.now = 60.1
    take(fetcher)
    assert asked.acquire(timeout=20)
    wait_until(lambda: fetcher.ways().proxy == "new", seconds=20, what="the new address in use")
    take(fetcher)
    assert [proxy for _, proxy, _ in network.asked][-1] == "new"
    assert not asked.acquire(blocking=False), "once per period"
