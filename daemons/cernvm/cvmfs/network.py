# SPDX-License-Identifier: BSD-3-Clause
"""From parameters to a `Fetcher` that knows its servers and proxies: what is read, discovered and looked up at a mount.

Synchronous; `connect` blocks on the network, within deadlines.  External data (files that stand elsewhere under their
own names) has parameters of its own: `EXTERNAL` instead of `REGULAR`.
Behaviour: docs/cvmfs-format.md, "Transport"; parameters: docs/cvmfs-parameters.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final
from uuid import UUID, uuid4

from cernvm import __version__
from cernvm.kit.backoff import Backoff
from cernvm.kit.files import write_atomically

from .addresses import Lookup, expand, host_of, look_up, look_up_all
from .counters import Counters
from .errors import NoProxy, ObjectCorrupt
from .fetch import Buffer, Fetcher
from .geo import MAX_ANSWER, nearest_first
from .http import DIRECT, Http, Transport
from .pac import MAX_SCRIPT, discover
from .parameters import Parameters
from .routes import Proxy

log = logging.getLogger(__name__)
AUTO: Final = "auto"
_WPAD: Final = "http://wpad/wpad.dat"


@dataclass(frozen=True)
class Names:
    """How the parameters of one kind of data are called."""

    servers: str
    proxies: str
    fallback: str
    most: str
    timeout: str
    timeout_direct: str


REGULAR: Final = Names(
    "CVMFS_SERVER_URL",
    "CVMFS_HTTP_PROXY",
    "CVMFS_FALLBACK_PROXY",
    "CVMFS_MAX_SERVERS",
    "CVMFS_TIMEOUT",
    "CVMFS_TIMEOUT_DIRECT",
)
EXTERNAL: Final = Names(
    "CVMFS_EXTERNAL_URL",
    "CVMFS_EXTERNAL_HTTP_PROXY",
    "CVMFS_EXTERNAL_FALLBACK_PROXY",
    "CVMFS_EXTERNAL_MAX_SERVERS",
    "CVMFS_EXTERNAL_TIMEOUT",
    "CVMFS_EXTERNAL_TIMEOUT_DIRECT",
)


@dataclass(frozen=True)
class Network:
    """A way to a repository's servers."""

    fetcher: Fetcher
    http: Http

    def close(self) -> None:
        """Let go of connections."""
        self.http.close()


def connect(
    parameters: Parameters,
    counters: Counters,
    workspace: Path,
    *,
    names: Names = REGULAR,
    random: Random | None = None,
    lookup: Lookup = look_up,
) -> Network:
    """Find proxies and the order of servers as the parameters say; `workspace` keeps what outlives a mount.

    Raises Mistake; NoProxy when proxies are to be discovered and none is found.
    """
    random = random or Random()
    identity = identity_in(workspace)
    listed = listed_proxies(parameters, names)
    if AUTO in _members(listed):
        listed = _discovered(parameters, names, listed, workspace, counters)
    transport = transport_of(parameters, names, listed=listed)
    transport = replace(transport, user_agent=f"cvmfs Fuse {__version__} {identity}")
    http = Http(transport, counters)
    expansion = _Expansion(transport, lookup)
    fetcher = Fetcher(
        transport,
        http,
        counters,
        random=random,
        groups=expansion.groups(transport.proxy_groups),
        renew=expansion.renewed if expansion.names else None,
    )
    if parameters.flag("CVMFS_USE_GEOAPI", False) and names is REGULAR:
        _order_by_distance(parameters, transport, fetcher, expansion, identity, random)
    return Network(fetcher, http)


def transport_of(parameters: Parameters, names: Names = REGULAR, *, listed: str | None = None) -> Transport:
    """Servers, proxies and patience.  Raises Mistake naming the parameter.

    `listed`: the proxies, once they are discovered; without it `auto` stands for no proxy yet.
    """
    if listed is None:
        listed = listed_proxies(parameters, names)
    retries = parameters.number("CVMFS_MAX_RETRIES", 1)
    cap = parameters.number("CVMFS_BACKOFF_MAX", 10)
    regular, fallback = _proxy_groups(parameters, names, listed)
    return Transport(
        servers=_servers(parameters, names),
        proxy_groups=(*regular, *fallback),
        fallback_groups=len(fallback),
        timeout_proxy=max(1, parameters.number(names.timeout, 5)),
        timeout_direct=max(1, parameters.number(names.timeout_direct, 10)),
        low_speed=max(1, parameters.number("CVMFS_LOW_SPEED_LIMIT", 1024)),
        retries=Backoff(first=min(cap, parameters.number("CVMFS_BACKOFF_INIT", 2)), cap=cap, tries=min(retries, 20)),
        follow_redirects=parameters.flag("CVMFS_FOLLOW_REDIRECTS", False),
        server_reset=parameters.number("CVMFS_HOST_RESET_AFTER", 1800),
        proxy_reset=parameters.number("CVMFS_PROXY_RESET_AFTER", 300),
        shard=parameters.flag("CVMFS_PROXY_SHARD", False),
        prefer_family=_family(parameters),
        proxy_addresses=parameters.number("CVMFS_MAX_IPADDR_PER_PROXY", 0),
        lookup_timeout=parameters.number("CVMFS_DNS_TIMEOUT", 3) * (1.0 + parameters.number("CVMFS_DNS_RETRIES", 1)),
        lookup_every=max(60, parameters.number("CVMFS_DNS_MIN_TTL", 60)),
        certificates=parameters.get("X509_CERT_BUNDLE") or parameters.get("X509_CERT_DIR"),
    )


def identity_in(workspace: Path) -> str:
    """The random name of this machine's client, made at its first start; it stands in `workspace`."""
    file = workspace / "uuid"
    try:
        return str(UUID(file.read_text(encoding="ascii", errors="replace").strip()))
    except (OSError, ValueError):
        made = str(uuid4())
    try:
        write_atomically(file, f"{made}\n".encode(), mode=0o644, sync=False)
    except OSError as error:
        log.warning("%s: cannot be written: %s", file, error.strerror)
    return made


def _servers(parameters: Parameters, names: Names) -> tuple[str, ...]:
    servers = tuple(one.strip() for one in parameters.need(names.servers).replace('"', "").split(";") if one.strip())
    if not servers:
        raise parameters.mistake(names.servers, "names no server")
    for server in servers:
        if not server.startswith(("http://", "https://")):
            raise parameters.mistake(names.servers, f"{server!r} is not an http URL")
    most = parameters.number(names.most, 0)
    return servers[:most] if most and not parameters.flag("CVMFS_USE_GEOAPI", False) else servers


def _proxy_groups(
    parameters: Parameters, names: Names, listed: str
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """The regular groups, and those that come after them; the latter take DIRECT's place."""
    fallback = [group for group in (_group(text) for text in parameters.get(names.fallback).split(";")) if group]
    regular = [group for group in (_group(text) for text in listed.split(";")) if group]
    if not regular:
        raise parameters.mistake(names.proxies, "names no proxy; DIRECT means none is wanted")
    if any(DIRECT in group for group in fallback):
        raise parameters.mistake(names.fallback, "DIRECT is no proxy to fall back to; put it into " + names.proxies)
    if fallback:
        regular = [kept for group in regular if (kept := tuple(one for one in group if one != DIRECT))]
    return regular, fallback


def listed_proxies(parameters: Parameters, names: Names = REGULAR) -> str:
    """The list of proxies; one that is missing is an error, except for external data and single machines."""
    if names is EXTERNAL:
        return parameters.get(names.proxies) or DIRECT
    if parameters.get(names.proxies):
        return parameters.get(names.proxies)
    if parameters.get("CVMFS_CLIENT_PROFILE") == "single":
        return f"{AUTO};{DIRECT}"
    return parameters.need(names.proxies)


def _group(text: str) -> tuple[str, ...]:
    members = (member.strip() for member in text.split("|"))
    return tuple(one if one == DIRECT or "://" in one else f"http://{one}" for one in members if one not in ("", AUTO))


def _members(listed: str) -> set[str]:
    return {member.strip() for group in listed.split(";") for member in group.split("|")}


def _family(parameters: Parameters) -> int | None:
    family = parameters.number("CVMFS_IPFAMILY_PREFER", 0)
    if family not in (0, 4, 6):
        raise parameters.mistake("CVMFS_IPFAMILY_PREFER", "neither 4 nor 6")
    return family or None


def _discovered(parameters: Parameters, names: Names, listed: str, workspace: Path, counters: Counters) -> str:
    """The list of proxies with what was discovered in the place of `auto`.  Raises NoProxy: nothing is left."""
    plain = transport_of(parameters, names, listed=DIRECT)
    files = [url.strip() for url in (parameters.get("CVMFS_PAC_URLS") or _WPAD).split(";") if url.strip()]
    http = Http(plain, counters)
    try:

        def download(url: str, seconds: float) -> str:
            taken = _Hasty(MAX_SCRIPT, url, seconds)
            http.get(url, DIRECT, taken, refresh=False)
            return taken.data.decode("utf-8", "replace")

        found = discover(files, plain.servers[0], download, workspace / f"proxies.{parameters.fqrn}")
        log.info("%s: proxies discovered: %s", parameters.fqrn, found)
    except NoProxy as problem:
        if _members(listed) <= {AUTO, ""}:
            raise
        log.warning("%s; the others are used", problem)
        found = ""
    finally:
        http.close()
    return ";".join(found if AUTO in _members(group) else group for group in listed.split(";"))


class _Hasty(Buffer):
    """A buffer that wants its bytes within seconds."""

    def __init__(self, limit: int, what: str, seconds: float) -> None:
        super().__init__(limit, what)
        self._end = time.monotonic() + seconds

    def write(self, data: bytes) -> None:
        """Take a piece.  Raises ObjectCorrupt: it comes too slowly to be of use."""
        if time.monotonic() > self._end:
            raise ObjectCorrupt("it does not come within the time for it")
        super().write(data)


class _Expansion:
    """The proxies of a transport by address; looked up at the start and again while they are used."""

    def __init__(self, transport: Transport, lookup: Lookup) -> None:
        self._transport = transport
        self._lookup = lookup
        self._known: dict[str, Sequence[str]] = {}
        self._groups = transport.proxy_groups
        hosts = (host_of(url) for group in transport.proxy_groups for url in group)
        self.names = sorted({host for host in hosts if host})

    def groups(self, groups: Sequence[Sequence[str]]) -> list[list[Proxy]]:
        """Look names up; one that is not known now keeps the addresses that it had."""
        self._groups = tuple(tuple(group) for group in groups)
        found = look_up_all(self.names, self._transport.lookup_timeout, self._lookup) if self.names else {}
        self._known |= {name: addresses for name, addresses in found.items() if addresses}
        return [[proxy for url in group for proxy in self._of(url)] for group in self._groups]

    def renewed(self) -> list[list[Proxy]]:
        """The groups with their names looked up again."""
        return self.groups(self._groups)

    def _of(self, url: str) -> list[Proxy]:
        known = self._known.get(host_of(url) or "", ())
        return expand(url, known, self._transport.prefer_family, self._transport.proxy_addresses)


def _order_by_distance(
    parameters: Parameters,
    transport: Transport,
    fetcher: Fetcher,
    expansion: _Expansion,
    identity: str,
    random: Random,
) -> None:
    """Put the nearest servers and fallback proxies first, if a server tells which those are."""
    regular = len(transport.proxy_groups) - transport.fallback_groups
    fallback = [url for group in transport.proxy_groups[regular:] for url in group]
    servers = list(transport.servers)
    if len(servers) + len(fallback) > 1:
        proxy = fetcher.ways().proxy
        me = identity if proxy == DIRECT else host_of(proxy) or identity

        def ask(server: str, path: str) -> bytes:
            return bytes(fetcher.ask(server, path, lambda: Buffer(MAX_ANSWER, "the order of servers")).data)

        near = nearest_first(ask, me, servers, fallback, separated=regular == 0, random=random)
        if near is None:
            log.warning("%s: no server tells which is near; the order stays as configured", parameters.fqrn)
        else:
            servers = near[0]
            alone = [(url,) for url in near[1]]
            if alone:
                fetcher.use_proxies(expansion.groups([*transport.proxy_groups[:regular], *alone]))
    most = parameters.number("CVMFS_MAX_SERVERS", 0)
    fetcher.use_servers(servers[:most] if most else servers)
