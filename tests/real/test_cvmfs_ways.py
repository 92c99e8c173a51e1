# SPDX-License-Identifier: BSD-3-Clause
"""How a client finds its way to servers, and what it makes of what they and the proxies say: real nginx, real squid."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from cernvm.cvmfs.cache import Cache
from cernvm.cvmfs.counters import Counter, Counters
from cernvm.cvmfs.errors import Mistake, NoProxy, ObjectCorrupt, ObjectMissing, Unreachable
from cernvm.cvmfs.fetch import Buffer
from cernvm.cvmfs.http import DIRECT, Failed, Http, Span, Transport
from cernvm.cvmfs.network import connect, identity_in
from cernvm.cvmfs.objects import Objects
from cernvm.cvmfs.routes import Fault
from cernvm.kit.proc import find_program
from tests.support.cvmfs import fixture, site
from tests.support.farm import FQRN, CustomNginx, Farm, farm_in
from tests.support.nginx import Nginx
from tests.support.publisher import FQRN as CONFIGURING
from tests.support.publisher import make_home, make_keys, plant
from tests.support.relay import Relay, Spoil
from tests.support.server import free_port

pytestmark = pytest.mark.real
MARGIN: Final = 3.0


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with farm_in(tmp_path_factory.mktemp("farm")) as running:
        yield running


@pytest.fixture(autouse=True)
def mended(farm: Farm) -> Iterator[None]:
    yield
    farm.mend()


# --- what proxies and servers say


def test_wrong_bytes_that_a_proxy_keeps_are_asked_for_past_it(farm: Farm, tmp_path: Path) -> None:
    root = tmp_path / "web"
    root.mkdir()
    ref, content = next((ref, content) for ref, content in farm.content.items() if len(content) > 5000)
    stored = (fixture("small") / "repo" / ref.content.path(ref.kind)).read_bytes()
    served = root / ref.content.path(ref.kind)
    served.parent.mkdir(parents=True)
    served.write_bytes(stored[:-9] + bytes(9))
    os.utime(served, (1, 1))
    with Nginx(tmp_path / "nginx", root) as web:
        lines = (f"CVMFS_SERVER_URL={web.url}", f"CVMFS_HTTP_PROXY={farm.squids[0].url}")
        with closing(farm.connect(*lines)) as network, closing(Cache(tmp_path / "cache", None)) as cache:
            objects = Objects(cache, network.fetcher, Counters())
            with pytest.raises(ObjectCorrupt):
                objects.open(ref)
            served.write_bytes(stored)
            asked = web.hits("/data")
            taken = network.fetcher.ask(web.url, ref.content.path(ref.kind), lambda: Buffer(1 << 20, "it"))
            assert (bytes(taken.data) != stored, web.hits("/data")) == (True, asked), "the proxy keeps wrong bytes"
            assert objects.open(ref).read_all() == content


def test_a_missing_object_is_told_as_such_through_proxies(farm: Farm) -> None:
    with closing(farm.connect()) as network, pytest.raises(ObjectMissing, match="no server has data/00/x"):
        network.fetcher.fetch("data/00/x", lambda: Buffer(10, "it"))


def test_a_part_of_a_file_comes_alone(farm: Farm) -> None:
    with closing(farm.connect()) as network:
        ref = next(ref for ref, content in farm.content.items() if len(content) > 5000)
        stored = (fixture("small") / "repo" / ref.content.path(ref.kind)).read_bytes()
        for span in (Span(0, 1), Span(100, 50), Span(len(stored) - 7, 7)):
            taken = network.fetcher.fetch(ref.content.path(ref.kind), lambda: Buffer(99, "it"), span=span)
            assert bytes(taken.data) == stored[span.first : span.first + span.size]


def test_a_name_that_nobody_knows_costs_no_retries(farm: Farm) -> None:
    begun = time.monotonic()
    bad = "CVMFS_HTTP_PROXY='http://nowhere.invalid:1;DIRECT'"
    with closing(farm.connect(bad, "CVMFS_MAX_RETRIES=9", "CVMFS_BACKOFF_INIT=9")) as network:
        network.fetcher.fetch(".cvmfspublished", lambda: Buffer(1 << 20, "it"))
    assert time.monotonic() - begun < 8


def test_too_slow_is_as_bad_as_silent(tmp_path: Path) -> None:
    done = threading.Event()
    server = _serving_slowly(done)
    transport = Transport((f"http://127.0.0.1:{server}",), timeout_direct=1, low_speed=10_000)
    begun = time.monotonic()
    try:
        with pytest.raises(Exception, match="too slow"):
            Http(transport, Counters()).get(transport.servers[0], DIRECT, Buffer(1 << 20, "it"), refresh=False)
    finally:
        done.set()
    assert time.monotonic() - begun < 1 + MARGIN


def _serving_slowly(done: threading.Event) -> int:
    """One answer of some bytes a second; returns the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as client:
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not done.wait(0.1):
                try:
                    client.sendall(b"x" * 10)
                except OSError:
                    return

    threading.Thread(target=serve, daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


# --- finding the way


def test_proxies_are_discovered_and_remembered(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "wpad.dat").write_text(
        f"""function FindProxyForURL(url, host) {{
            if (!isInNet(host, "127.0.0.0", "255.0.0.0")) return "DIRECT";
            return "PROXY 127.0.0.1:{free_port()}; PROXY 127.0.0.1:{farm.squids[1].port}";
        }}"""
    )
    workspace = tmp_path / "work"
    workspace.mkdir()
    with Nginx(tmp_path / "nginx", tmp_path) as web:
        lines = ("CVMFS_HTTP_PROXY=auto", f"CVMFS_PAC_URLS='{web.url}/none.dat;{web.url}/wpad.dat'")
        parameters = farm.parameters(*lines)
        with closing(connect(parameters, Counters(), workspace)) as network:
            network.fetcher.fetch(".cvmfspublished", lambda: Buffer(1 << 20, "it"))
            assert network.fetcher.ways().proxy == farm.squids[1].url
    assert (workspace / f"proxies.{FQRN}").read_text().endswith(f"http://127.0.0.1:{farm.squids[1].port}\n")
    with closing(connect(parameters, Counters(), workspace)) as network:
        network.fetcher.fetch(".cvmfspublished", lambda: Buffer(1 << 20, "it"))
    (workspace / f"proxies.{FQRN}").unlink()
    with pytest.raises(NoProxy, match="no proxy was discovered"):
        connect(parameters, Counters(), workspace)
    parameters = farm.parameters(*lines, "CVMFS_HTTP_PROXY='auto;DIRECT'")
    with closing(connect(parameters, Counters(), workspace)) as network:
        assert network.fetcher.ways().proxy == DIRECT


def test_the_nearest_server_is_asked_first(farm: Farm, tmp_path: Path) -> None:
    workspace = tmp_path / "work"
    workspace.mkdir()
    me = identity_in(workspace)
    web_root = tmp_path / "web"
    answers = web_root / "api/v1.0/geo" / me
    answers.mkdir(parents=True)
    (answers / "127.0.0.1,localhost").write_text("2,1\n")
    with Nginx(tmp_path / "a", web_root) as a, Nginx(tmp_path / "b", web_root) as b:
        servers = [a.url, b.url.replace("127.0.0.1", "localhost")]
        lines = (f"CVMFS_SERVER_URL='{servers[0]};{servers[1]}'", "CVMFS_HTTP_PROXY=DIRECT", "CVMFS_USE_GEOAPI=yes")
        with closing(connect(farm.parameters(*lines), Counters(), workspace)) as network:
            assert network.fetcher.ways().servers == (servers[1], servers[0])
        with closing(connect(farm.parameters(*lines, "CVMFS_MAX_SERVERS=1"), Counters(), workspace)) as network:
            assert network.fetcher.ways().servers == (servers[1],)
        (answers / "127.0.0.1,localhost").write_text("2\n")
        with closing(connect(farm.parameters(*lines), Counters(), workspace)) as network:
            assert network.fetcher.ways().servers == tuple(servers)


@pytest.mark.parametrize(("family", "host"), [(4, "127.0.0.1"), (6, "::1")])
def test_both_families_of_addresses_are_reached_whatever_is_preferred(farm: Farm, family: int, host: str) -> None:
    try:
        gate = Relay(farm.webs[0].port, host)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with gate:
        for prefer in (4, 6):
            lines = (f"CVMFS_SERVER_URL=http://localhost:{gate.port}/@fqrn@", f"CVMFS_IPFAMILY_PREFER={prefer}")
            with closing(farm.connect(*lines, "CVMFS_HTTP_PROXY=DIRECT")) as network:
                network.fetcher.fetch(".cvmfspublished", lambda: Buffer(1 << 20, "it"))
    assert gate.connections >= 1


def test_redirects_are_followed_only_if_wanted(farm: Farm, tmp_path: Path) -> None:
    there = f"{farm.webs[0].url}/{FQRN}/.cvmfspublished"
    config = f"location /moved/ {{ return 302 {there}; }} location /loop {{ return 302 /loop; }}"
    with CustomNginx(tmp_path, config) as port:
        server = f"CVMFS_SERVER_URL=http://127.0.0.1:{port}"
        direct = "CVMFS_HTTP_PROXY=DIRECT"
        with closing(farm.connect(server, direct)) as network, pytest.raises(Unreachable, match="HTTP status 302"):
            network.fetcher.fetch("moved/.cvmfspublished", lambda: Buffer(1 << 20, "it"))
        with closing(farm.connect(server, direct, "CVMFS_FOLLOW_REDIRECTS=yes")) as network:
            taken = network.fetcher.fetch("moved/x", lambda: Buffer(1 << 20, "it"))
            assert bytes(taken.data) == (fixture("small") / "repo" / ".cvmfspublished").read_bytes()
            with pytest.raises(Unreachable, match=r"Maximum \(4\) redirects"):
                network.fetcher.fetch("loop", lambda: Buffer(1 << 20, "it"))


ANSWERS: Final = """
    location /302 { return 302 /elsewhere; }
    location /400 { return 400; }
    location /403 { return 403; }
    location /404 { return 404; }
    location /429 { return 429; }
    location /503 { return 503; }
    location /squid { add_header X-Squid-Error "ERR_DNS_FAIL 0" always; return 503; }
    location /status { add_header Proxy-Status "here; error=dns_error" always; return 404; }
    location /fine { add_header Proxy-Status "here; received-status=404" always; return 404; }
"""


class Unwanted(Buffer):
    """A receiver for which every byte is wrong."""

    def write(self, data: bytes) -> None:
        raise ObjectCorrupt("the text of a refusal was taken for content")


@pytest.mark.parametrize(
    ("path", "direct", "proxied"),
    [
        ("302", Fault.SERVER, Fault.PROXY),
        ("400", Fault.SERVER, Fault.SERVER),
        ("403", Fault.SERVER, Fault.PROXY),
        ("404", Fault.SERVER, Fault.SERVER),
        ("429", Fault.BUSY, Fault.BUSY),
        ("503", Fault.SERVER, Fault.SERVER),
        ("squid", Fault.SERVER, Fault.PROXY),
        ("status", Fault.SERVER, Fault.PROXY),
        ("fine", Fault.SERVER, Fault.SERVER),
    ],
)
def test_whose_fault_a_refusal_is(tmp_path: Path, path: str, direct: Fault, proxied: Fault) -> None:
    with CustomNginx(tmp_path, ANSWERS) as port:  # to a client, a proxy that answers by itself looks like any server
        http = Http(Transport(("http://127.0.0.1:1",)), Counters())
        for proxy, fault in ((DIRECT, direct), (f"http://127.0.0.1:{port}", proxied)):
            place = f"http://127.0.0.1:{port}/{path}"
            with pytest.raises(Failed) as failed:
                http.get(place, proxy, Unwanted(0, "it"), refresh=False)
            assert failed.value.fault is fault
        http.close()


def test_https_is_spoken_and_an_unknown_authority_is_refused(farm: Farm, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "ca.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = [find_program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=60)
    root = f"root {farm.directory / 'web'}; ssl_certificate {certificate}; ssl_certificate_key {key};"
    with CustomNginx(tmp_path, root, "ssl") as port:
        lines = (f"CVMFS_SERVER_URL=https://localhost:{port}/@fqrn@", "CVMFS_HTTP_PROXY=DIRECT", "CVMFS_MAX_RETRIES=9")
        with closing(farm.connect(*lines)) as network, pytest.raises(Unreachable, match=r"certificate|SSL"):
            network.fetcher.fetch(".cvmfspublished", lambda: Buffer(1 << 20, "it"))
        for proxy in (DIRECT, farm.squids[0].url):
            trusting = (*lines, f"X509_CERT_BUNDLE={certificate}", f"CVMFS_HTTP_PROXY={proxy}")
            with closing(farm.connect(*trusting)) as network:
                network.fetcher.fetch(".cvmfspublished", lambda: Buffer(1 << 20, "it"))


def test_requests_say_who_asks_and_not_what_for(farm: Farm, tmp_path: Path) -> None:
    config = 'location / { return 200 "$http_user_agent|$http_pragma|$http_cache_control|$http_cvmfs_info|$request"; }'
    with CustomNginx(tmp_path, config) as port:
        lines = (f"CVMFS_SERVER_URL=http://127.0.0.1:{port}", "CVMFS_HTTP_PROXY=DIRECT")
        with closing(farm.connect(*lines)) as network:
            said = bytes(network.fetcher.fetch("x y", lambda: Buffer(999, "it")).data).decode()
    agent, pragma, control, info, request = said.split("|")
    assert agent.startswith("cvmfs Fuse 0.")
    assert agent.split()[-1] == identity_in(farm.directory / f"workspace{farm.made}")
    assert (pragma, control, info, request) == ("", "", "", "GET /x%20y HTTP/1.1")


def test_a_mount_without_a_word_about_proxies_is_refused(farm: Farm) -> None:
    with pytest.raises(Mistake, match="CVMFS_HTTP_PROXY is not set"):
        farm.connect("CVMFS_HTTP_PROXY=")


def test_retries_are_counted_and_end(farm: Farm) -> None:
    counters = Counters()
    parameters = farm.parameters("CVMFS_HTTP_PROXY=DIRECT", "CVMFS_MAX_RETRIES=3", "CVMFS_MAX_SERVERS=1")
    farm.servers[0].spoil(Spoil.BUSY)
    before = farm.servers[0].connections
    with closing(connect(parameters, counters, farm.directory)) as network, pytest.raises(Unreachable, match="429"):
        network.fetcher.fetch("x", lambda: Buffer(9, "it"))
    assert (counters[Counter.RETRIES], farm.servers[0].connections - before) == (3, 4)


def test_the_configuration_repository_is_mounted_first_and_read(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    home = make_home(tmp_path / "home", make_keys(tmp_path / "private"))
    plant(home.tree, {"etc/cvmfs/default.conf": b"CVMFS_MAGIC_XATTRS_VISIBILITY=never\n"})
    home.publish()
    web, keys = tmp_path / "web", tmp_path / "keys"
    web.mkdir()
    keys.mkdir()
    (web / CONFIGURING).symlink_to(home.storage)
    (web / FQRN).symlink_to(fixture("small") / "repo")
    for key in (home.public, *(fixture("small") / "keys").glob("*.pub")):
        shutil.copy(key, keys)
    with site(tmp_path / "site", web, {"CVMFS_KEYS_DIR": str(keys)}) as here:
        here.call("Mount", FQRN)
        assert os.listxattr(here.mounts / FQRN) != []
        here.call("Unmount", FQRN)
        (here.parameters / "default.conf").write_text(f"CVMFS_CONFIG_REPOSITORY={CONFIGURING}\n")
        here.call("Mount", FQRN)
        assert (here.mounts / CONFIGURING / "etc/cvmfs/default.conf").exists()
        assert os.listxattr(here.mounts / FQRN) == []
