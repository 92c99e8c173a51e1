# SPDX-License-Identifier: BSD-3-Clause
"""Two Stratum 1 servers (nginx) and two proxies (squid), each behind a relay that can spoil it, and readers."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from cernvm.cvmfs.cache import Cache
from cernvm.cvmfs.counters import Counters
from cernvm.cvmfs.errors import CvmfsProblem
from cernvm.cvmfs.flags import Compression
from cernvm.cvmfs.hashes import Kind, parse_hash
from cernvm.cvmfs.network import Network, connect
from cernvm.cvmfs.objects import ObjectRef, Objects
from cernvm.cvmfs.parameters import Parameters, read_parameters
from cernvm.kit.proc import find_program
from tests.support.cvmfs import fixture
from tests.support.nginx import Nginx
from tests.support.relay import Relay, Spoil
from tests.support.server import Server, answers_tcp, free_port
from tests.support.squid import Squid

FQRN: Final = "small.test.org"
READERS: Final = 16


@dataclass
class Farm:
    """The parts, each behind a relay; and what a reader should see."""

    directory: Path
    webs: list[Nginx]
    servers: list[Relay]
    squids: list[Squid]
    proxies: list[Relay]
    content: dict[ObjectRef, bytes]
    made: int = 0

    @property
    def place(self) -> str:
        """A path of this client alone, since the proxies remember what others asked for."""
        return f"client{self.made}"

    def parameters(self, *lines: str) -> Parameters:
        """Two servers, a group of two proxies, little patience; `lines` win."""
        etc = self.directory / "etc"
        etc.mkdir(exist_ok=True)
        text = [
            f"CVMFS_SERVER_URL='{self.servers[0].url}/{self.place}/@fqrn@;{self.servers[1].url}/{self.place}/@fqrn@'",
            f"CVMFS_HTTP_PROXY='{self.proxies[0].url}|{self.proxies[1].url}'",
            *("CVMFS_TIMEOUT=1", "CVMFS_TIMEOUT_DIRECT=1", "CVMFS_MAX_RETRIES=0", "CVMFS_BACKOFF_INIT=0"),
            *lines,
        ]
        (etc / "default.local").write_text("\n".join(text) + "\n")
        return read_parameters(FQRN, etc)

    def connect(self, *lines: str) -> Network:
        """A new client's network; its workspace is new as well."""
        self.made += 1
        workspace = self.directory / f"workspace{self.made}"
        workspace.mkdir()
        (self.directory / "web" / self.place).symlink_to(self.directory / "web")
        return connect(self.parameters(*lines), Counters(), workspace, random=Random(self.made))

    def mend(self) -> None:
        """All parts work again."""
        for part in (*self.servers, *self.proxies):
            part.spoil(Spoil.NOTHING)


@contextmanager
def farm_in(directory: Path) -> Iterator[Farm]:
    """Run all parts; the web servers' root is `directory`/web."""
    root = directory / "web"
    root.mkdir()
    (root / FQRN).symlink_to(fixture("small") / "repo")
    with ExitStack() as stack:
        webs = [stack.enter_context(Nginx(directory / name, root)) for name in ("a", "b")]
        squids = [stack.enter_context(Squid()) for _ in range(2)]
        servers = [stack.enter_context(Relay(web.port)) for web in webs]
        proxies = [stack.enter_context(Relay(squid.port)) for squid in squids]
        yield Farm(directory, webs, servers, squids, proxies, expected(fixture("small") / "repo"))


def expected(repository: Path) -> dict[ObjectRef, bytes]:
    """What the files and chunks in a storage directory hold."""
    found = {}
    for path in sorted((repository / "data").glob("??/*")):
        name = path.parent.name + path.name
        kind = next((kind for kind in Kind if kind.value and name.endswith(kind.value)), Kind.FILE)
        stored = path.read_bytes()
        if kind in (Kind.FILE, Kind.CHUNK) and len(stored) < 200_000:
            try:
                content, compression = zlib.decompress(stored), Compression.ZLIB
            except zlib.error:
                content, compression = stored, Compression.NONE
            found[ObjectRef(parse_hash(name.removesuffix(kind.value)), kind, compression, len(content))] = content
    assert len(found) > 100
    return found


@dataclass
class Outcome:
    """What the readers saw."""

    right: int = 0
    wrong: int = 0
    failures: list[CvmfsProblem] = field(default_factory=list)
    slowest: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


def read_everything(farm: Farm, network: Network, cache: Path, count: int | None = None) -> Outcome:
    """Sixteen threads read objects, each in an order of its own, from a cold cache."""
    outcome = Outcome()
    with closing(Cache(cache, None)) as kept:
        objects = Objects(kept, network.fetcher, Counters())

        def reader(number: int) -> None:
            wanted = list(farm.content)[:count]
            Random(number).shuffle(wanted)
            for ref in wanted:
                begun = time.monotonic()
                failure: CvmfsProblem | None = None
                same = False
                try:
                    same = objects.open(ref).read_all() == farm.content[ref]
                except CvmfsProblem as problem:
                    failure = problem
                with outcome.lock:
                    outcome.slowest = max(outcome.slowest, time.monotonic() - begun)
                    if failure is None:
                        outcome.right += same
                        outcome.wrong += not same
                    else:
                        outcome.failures.append(failure)

        threads = [threading.Thread(target=reader, args=(number,)) for number in range(READERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        objects.close()
    return outcome


class CustomNginx:
    """nginx with a server block of its own; as a context manager it gives its port."""

    def __init__(self, directory: Path, server: str, listen: str = "") -> None:
        place = directory / "custom"
        place.mkdir()
        self.port = free_port()
        config = place / "nginx.conf"
        temporary = " ".join(
            f"{kind}_temp_path {place}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config.write_text(
            f"daemon off; master_process off; pid {place}/pid; error_log {place}/error.log;"
            f"events {{ }} http {{ access_log {place}/access.log headers; {temporary}"
            f"server {{ listen 127.0.0.1:{self.port} {listen}; {server} }} }}".replace(" headers", "")
        )
        command = [find_program("nginx"), "-p", str(place), "-e", str(place / "error.log"), "-c", str(config)]
        self._server = Server(command, log=place / "output.log", ready=lambda: answers_tcp(self.port))

    def __enter__(self) -> int:
        self._server.start()
        return self.port

    def __exit__(self, *_: object) -> None:
        self._server.stop()
