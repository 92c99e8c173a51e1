# SPDX-License-Identifier: BSD-3-Clause
"""What parameters make of servers and proxies, without a network."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from cernvm.cvmfs import network
from cernvm.cvmfs.addresses import expand, host_of, look_up_all
from cernvm.cvmfs.counters import Counters
from cernvm.cvmfs.errors import Mistake, Unreachable
from cernvm.cvmfs.geo import SEPARATOR, nearest_first, order, question
from cernvm.cvmfs.http import DIRECT, Transport
from cernvm.cvmfs.network import EXTERNAL, transport_of
from cernvm.cvmfs.parameters import Parameters, read_parameters
from cernvm.cvmfs.routes import Proxy
from cernvm.kit.backoff import Backoff

FQRN = "sw.example.org"
GOOD = "CVMFS_SERVER_URL='http://a/@fqrn@; https://b/@fqrn@'\nCVMFS_HTTP_PROXY='p:3128|http://q:1;DIRECT'\n"


def read(etc: Path, text: str) -> Parameters:
    etc.mkdir(exist_ok=True)
    (etc / "default.local").write_text(text)
    return read_parameters(FQRN, etc)


def test_servers_proxies_and_patience(tmp_path: Path) -> None:
    transport = transport_of(read(tmp_path, GOOD))
    assert transport.servers == (f"http://a/{FQRN}", f"https://b/{FQRN}")
    assert transport.proxy_groups == (("http://p:3128", "http://q:1"), (DIRECT,))
    assert transport == Transport(transport.servers, transport.proxy_groups), "the defaults are one"


def test_every_parameter_of_the_network_has_its_effect(tmp_path: Path) -> None:
    text = (
        GOOD
        + """
        CVMFS_MAX_SERVERS=1
        CVMFS_TIMEOUT=7
        CVMFS_TIMEOUT_DIRECT=8
        CVMFS_LOW_SPEED_LIMIT=9
        CVMFS_MAX_RETRIES=3
        CVMFS_BACKOFF_INIT=4
        CVMFS_BACKOFF_MAX=20
        CVMFS_FOLLOW_REDIRECTS=yes
        CVMFS_HOST_RESET_AFTER=11
        CVMFS_PROXY_RESET_AFTER=12
        CVMFS_PROXY_SHARD=yes
        CVMFS_IPFAMILY_PREFER=6
        CVMFS_MAX_IPADDR_PER_PROXY=2
        CVMFS_DNS_TIMEOUT=5
        CVMFS_DNS_RETRIES=2
        CVMFS_DNS_MIN_TTL=70
        X509_CERT_BUNDLE=/ca.pem
    """
    )
    assert transport_of(read(tmp_path, text)) == Transport(
        servers=(f"http://a/{FQRN}",),
        proxy_groups=(("http://p:3128", "http://q:1"), (DIRECT,)),
        timeout_proxy=7,
        timeout_direct=8,
        low_speed=9,
        retries=Backoff(4, 20, 3),
        follow_redirects=True,
        server_reset=11,
        proxy_reset=12,
        shard=True,
        prefer_family=6,
        proxy_addresses=2,
        lookup_timeout=15.0,
        lookup_every=70,
        certificates="/ca.pem",
    )


def test_fallback_proxies_come_last_and_take_the_place_of_direct(tmp_path: Path) -> None:
    found = transport_of(read(tmp_path, GOOD + "CVMFS_FALLBACK_PROXY='f|g;h'\n"))
    assert found.proxy_groups == (("http://p:3128", "http://q:1"), ("http://f", "http://g"), ("http://h",))
    assert found.fallback_groups == 2
    alone = transport_of(read(tmp_path, GOOD + "CVMFS_HTTP_PROXY=DIRECT\nCVMFS_FALLBACK_PROXY=f\n"))
    assert (alone.proxy_groups, alone.fallback_groups) == ((("http://f",),), 1)


def test_external_data_has_its_own_parameters(tmp_path: Path) -> None:
    text = GOOD + "CVMFS_EXTERNAL_URL='http://e1;http://e2;http://e3'\nCVMFS_EXTERNAL_TIMEOUT=2\n"
    assert transport_of(read(tmp_path, text), EXTERNAL) == Transport(
        ("http://e1", "http://e2", "http://e3"), ((DIRECT,),), timeout_proxy=2
    )
    more = "CVMFS_EXTERNAL_HTTP_PROXY=x:1\nCVMFS_EXTERNAL_MAX_SERVERS=2\nCVMFS_EXTERNAL_TIMEOUT_DIRECT=3\n"
    found = transport_of(read(tmp_path, text + more + "CVMFS_EXTERNAL_FALLBACK_PROXY=y:1\n"), EXTERNAL)
    assert (found.servers, found.timeout_direct) == (("http://e1", "http://e2"), 3)
    assert found.proxy_groups == (("http://x:1",), ("http://y:1",))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("CVMFS_HTTP_PROXY=DIRECT", "CVMFS_SERVER_URL is not set"),
        ("CVMFS_SERVER_URL=http://a", "CVMFS_HTTP_PROXY is not set"),
        ("CVMFS_SERVER_URL=http://a\nCVMFS_HTTP_PROXY=", "CVMFS_HTTP_PROXY is not set"),
        ("CVMFS_SERVER_URL=http://a\nCVMFS_HTTP_PROXY=';|'", "names no proxy"),
        ("CVMFS_SERVER_URL=';'\nCVMFS_HTTP_PROXY=DIRECT", "names no server"),
        ("CVMFS_SERVER_URL=ftp://a\nCVMFS_HTTP_PROXY=DIRECT", "'ftp://a' is not an http URL"),
        ("CVMFS_IPFAMILY_PREFER=5", "CVMFS_IPFAMILY_PREFER=5: neither 4 nor 6"),
        ("CVMFS_FALLBACK_PROXY=DIRECT", "DIRECT is no proxy to fall back to"),
    ],
)
def test_a_transport_that_cannot_be_is_one_sentence(tmp_path: Path, text: str, told: str) -> None:
    base = "" if "SERVER_URL" in text or text == "CVMFS_HTTP_PROXY=DIRECT" else GOOD
    with pytest.raises(Mistake, match=told):
        transport_of(read(tmp_path, base + text))


def test_a_single_machine_needs_no_proxy(tmp_path: Path) -> None:
    single = read(tmp_path, "CVMFS_SERVER_URL=http://a\nCVMFS_CLIENT_PROFILE=single\n")
    assert network.listed_proxies(single) == "auto;DIRECT"
    own = read(tmp_path, "CVMFS_SERVER_URL=http://a\nCVMFS_CLIENT_PROFILE=single\nCVMFS_HTTP_PROXY=p\n")
    assert network.listed_proxies(own) == "p"


def test_the_silence_that_a_reader_may_meet_is_bounded() -> None:
    proxies = (("p", "q"), (DIRECT,))
    quick = Transport(("a", "b"), proxies, timeout_proxy=1, timeout_direct=2, retries=Backoff(0, 0, 1))
    assert quick.longest_silence() == 2 * (2 * 2 * 1 + 2 * 2 * 1 + 2 * 2 * 2)


# --- addresses


def test_a_proxy_is_as_many_as_it_has_addresses() -> None:
    found = ("2001:db8::1", "192.0.2.1", "192.0.2.2")
    url = "http://squid.example.org:3128"
    four = [Proxy(url, f"http://{one}:3128") for one in ("192.0.2.1", "192.0.2.2", "[2001:db8::1]")]
    assert expand(url, found, None, 0) == expand(url, found, 4, 0) == four
    assert expand(url, found, 6, 0) == [four[2], *four[:2]]
    assert expand(url, found, 4, 2) == four[:2]
    assert expand(url, (), 4, 2) == [Proxy(url, url)], "a name that is not known stays one"


@pytest.mark.parametrize("url", [DIRECT, "http://192.0.2.1:1", "http://[::1]:1", "https://p:1"])
def test_what_has_no_name_to_look_up_stays(url: str) -> None:
    assert host_of(url) is None
    assert expand(url, ("192.0.2.9",), None, 0) == [Proxy(url, url)]


def test_a_proxys_password_is_used_and_not_shown() -> None:
    (proxy,) = expand("http://user:s3cret@p:1", ("192.0.2.1",), None, 0)
    assert proxy == Proxy("http://p:1", "http://user:s3cret@192.0.2.1:1")


def test_a_resolver_that_hangs_holds_nothing_up() -> None:
    release = threading.Event()

    def lookup(name: str) -> Sequence[str]:
        if name == "slow":
            release.wait(20)
        if name == "unknown":
            raise OSError("no such name")
        return ("192.0.2.1",)

    try:
        assert look_up_all(["slow", "p", "unknown"], 0.2, lookup) == {"p": ("192.0.2.1",), "unknown": ()}
    finally:
        release.set()


def test_names_are_looked_up_at_the_start_and_again_later(tmp_path: Path) -> None:
    answers = {"p": ("192.0.2.1", "192.0.2.2"), "q": ()}
    parameters = read(tmp_path / "etc", GOOD.replace(";DIRECT", ""))
    transport = transport_of(parameters)
    expansion = network._Expansion(transport, lambda name: answers[name])
    first = expansion.groups(transport.proxy_groups)
    assert [proxy.url for proxy in first[0]] == ["http://192.0.2.1:3128", "http://192.0.2.2:3128", "http://q:1"]
    answers |= {"p": (), "q": ("192.0.2.3",)}
    later = expansion.renewed()
    assert [proxy.url for proxy in later[0]] == [
        "http://192.0.2.1:3128",
        "http://192.0.2.2:3128",
        "http://192.0.2.3:1",
    ], "addresses that were known stay while the resolver fails"


def test_the_clients_name_is_made_once(tmp_path: Path) -> None:
    made = network.identity_in(tmp_path)
    assert (tmp_path / "uuid").read_text() == f"{made}\n"
    assert len(made) == 36
    assert network.identity_in(tmp_path) == made
    (tmp_path / "uuid").write_text("not one")
    assert network.identity_in(tmp_path) != made


# --- geography


def test_an_order_is_believed_only_if_it_is_one() -> None:
    assert order(b" 2,1,3\n", 3) == [1, 0, 2]
    for answer in (b"", b"1,2", b"1,2,2", b"0,1,2", b"1,2,4", b"<html>", b"1,,2", b"3,2,1,", b"1 2 3"):
        assert order(answer, 3) is None


def test_servers_are_asked_until_one_tells() -> None:
    asked: list[tuple[str, str]] = []

    def ask(server: str, path: str) -> bytes:
        asked.append((server, path))
        if len(asked) == 1:
            raise Unreachable("it does not answer")
        return b"no idea" if len(asked) == 2 else b"3,1,2,4"

    servers = [f"http://{name}:8000/cvmfs/x" for name in "abcd"]
    near = nearest_first(ask, "me", servers, [], separated=False, random=Random(1))
    assert near == ([servers[2], servers[0], servers[1], servers[3]], [])
    assert [path for _, path in asked] == ["api/v1.0/geo/me/a,b,c,d"] * 3
    assert len({server for server, _ in asked}) == 3
    asked.clear()
    assert nearest_first(lambda *_: b"", "me", servers, [], separated=False, random=Random(1)) is None


def test_fallback_proxies_are_ordered_with_the_servers() -> None:
    def near(answer: bytes, separated: bool) -> tuple[list[str], list[str]] | None:
        proxies = ["http://f:1", "http://g:1"]
        return nearest_first(
            lambda *_: answer, "me", ["http://a", "http://b"], proxies, separated=separated, random=Random(1)
        )

    assert near(b"4,2,3,1", False) == (["http://b", "http://a"], ["http://g:1", "http://f:1"])
    assert near(b"5,2,3,1,4", True) == (["http://b", "http://a"], ["http://g:1", "http://f:1"])
    assert question("me", ["a", SEPARATOR, "f"]) == "api/v1.0/geo/me/a,+PXYSEP+,f"


def test_nobody_is_asked_when_there_is_nothing_to_order(tmp_path: Path) -> None:
    text = "CVMFS_SERVER_URL=http://a\nCVMFS_HTTP_PROXY=DIRECT\nCVMFS_USE_GEOAPI=yes\n"
    made = network.connect(read(tmp_path / "etc", text), Counters(), tmp_path)
    assert made.fetcher.ways().servers == ("http://a",)
    made.close()
