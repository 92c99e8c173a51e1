# SPDX-License-Identifier: BSD-3-Clause
"""From a repository's parameters to a verified view of it: the one place that knows what each parameter means.

Synchronous; `open_client` blocks on the network.  A `Client` is used by the threads of one mount.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from .anchor import anchor_of, pin_of
from .cache import Cache
from .counters import Counters
from .magic import Protection, Visibility
from .network import EXTERNAL, Network, connect
from .objects import Objects
from .owners import OwnerMap, read_owner_map
from .parameters import Parameters
from .prefetch import WIDTH, Prefetcher
from .repository import Repository
from .view import Changes, Policy, View

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MountOptions:
    """What the kernel is told at the mount."""

    check_permissions: bool
    allow_setuid: bool


class Client:
    """An open repository and its view."""

    def __init__(
        self,
        repository: Repository,
        view: View,
        network: Network,
        options: MountOptions,
        auto_update: bool,
        external: Network | None = None,
    ) -> None:
        self.repository = repository
        self.view = view
        self.network = network
        self.external = external
        """The way to the servers of external data, if the site names any."""
        self.options = options
        self.auto_update = auto_update

    def refresh(self) -> Changes | None:
        """Switch to a newer revision if there is one.  Blocks; one thread only.  Raises CvmfsProblem."""
        newer = self.repository.newer(self.view.tree)
        return None if newer is None else self.view.switch(newer)

    def ttl(self) -> int:
        """Seconds until `refresh` is due."""
        return self.repository.ttl(self.view.tree)

    def retry_after(self) -> int:
        """Seconds until the next `refresh` after one that failed."""
        return self.repository.retry_after(self.view.tree)

    def close(self) -> None:
        """Let go of connections and open objects."""
        self.view.close()
        self.network.close()
        if self.external is not None:
            self.external.close()
        self.repository.objects.close()


def open_client(
    parameters: Parameters, cache: Cache, counters: Counters, *, alone: bool = False, ahead: int = WIDTH
) -> Client:
    """Fetch and verify the newest revision.  Raises Mistake and CvmfsProblem, each with one sentence.

    `alone`: no cvmfsd stands behind it, so that more of the parameters count.  `ahead`: transfers at a time of what
    will be wanted soon.
    """
    fqrn = parameters.fqrn
    for refusal in parameters.refusals(alone=alone):
        log.warning("%s: %s", fqrn, refusal)
    if parameters.flag("CVMFS_STRICT_MOUNT", False) and fqrn not in _words(parameters.get("CVMFS_REPOSITORIES")):
        raise parameters.mistake("CVMFS_STRICT_MOUNT", f"{fqrn} is not among CVMFS_REPOSITORIES")
    anchor = anchor_of(parameters)
    policy = policy_of(parameters)
    pin = pin_of(parameters)
    network = connect(parameters, counters, cache.directory)
    fetcher = network.fetcher
    has_external = bool(parameters.get(EXTERNAL.servers))
    external = connect(parameters, counters, cache.directory, names=EXTERNAL) if has_external else None
    objects = Objects(cache, fetcher, counters, external.fetcher if external else None)
    max_ttl = 60 * parameters.number("CVMFS_MAX_TTL", 0)
    repository = Repository(anchor, fetcher, objects, now=lambda: datetime.now(UTC), max_ttl=max_ttl, pin=pin)
    try:
        view = View(repository.load(), objects, policy, counters, Prefetcher(objects, width=ahead))
    except BaseException:
        network.close()
        if external is not None:
            external.close()
        objects.close()
        raise
    options = MountOptions(
        check_permissions=parameters.flag("CVMFS_CHECK_PERMISSIONS", True),
        allow_setuid=parameters.flag("CVMFS_SUID", False),
    )
    return Client(repository, view, network, options, parameters.flag("CVMFS_AUTO_UPDATE", True), external)


def policy_of(parameters: Parameters) -> Policy:
    """How entries are shown.  Raises Mistake naming the parameter."""
    try:
        visibility = Visibility(parameters.get("CVMFS_MAGIC_XATTRS_VISIBILITY", "rootonly").lower())
    except ValueError:
        allowed = ", ".join(one.value for one in Visibility)
        raise parameters.mistake("CVMFS_MAGIC_XATTRS_VISIBILITY", f"none of {allowed}") from None
    claim = parameters.flag("CVMFS_CLAIM_OWNERSHIP", True)
    return Policy(
        owner=(os.geteuid(), os.getegid()) if claim else None,
        users=_owner_map(parameters, "CVMFS_UID_MAP"),
        groups=_owner_map(parameters, "CVMFS_GID_MAP"),
        world_readable=parameters.flag("CVMFS_WORLD_READABLE", False),
        variables=_variables(parameters),
        list_magic=visibility,
        protection=Protection(
            frozenset(name.encode() for name in _words(parameters.get("CVMFS_XATTR_PROTECTED_XATTRS"))),
            frozenset(_groups(parameters, "CVMFS_XATTR_PRIVILEGED_GIDS")),
        ),
    )


def _owner_map(parameters: Parameters, name: str) -> OwnerMap:
    return read_owner_map(Path(parameters.get(name))) if parameters.get(name) else OwnerMap()


def _variables(parameters: Parameters) -> Mapping[bytes, bytes]:
    """What $(NAME) in a symbolic link may name: the environment, and above it every parameter."""
    own = {name: parameter.value for name, parameter in parameters.values.items()}
    own["CVMFS_FQRN"] = parameters.fqrn
    return dict(os.environb) | {os.fsencode(name): os.fsencode(value) for name, value in own.items()}


def _groups(parameters: Parameters, name: str) -> list[int]:
    words = _words(parameters.get(name))
    if not all(word.isascii() and word.isdigit() for word in words):
        raise parameters.mistake(name, "not a list of group numbers")
    return [int(word) for word in words]


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()
