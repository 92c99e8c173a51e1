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
from typing import Final

from .cache import Cache
from .counters import Counters
from .errors import Mistake
from .magic import Visibility
from .network import Network, connect
from .objects import Objects
from .parameters import Parameters
from .prefetch import Prefetcher
from .repository import Anchor, Repository
from .trust import Blacklist, load_master_keys, parse_blacklist
from .view import Changes, Policy, View

log = logging.getLogger(__name__)
KEYS: Final = "keys"
"""Directory of master keys below the parameters' directory."""


@dataclass(frozen=True)
class MountOptions:
    """What the kernel is told at the mount."""

    check_permissions: bool
    allow_setuid: bool


class Client:
    """An open repository and its view."""

    def __init__(
        self, repository: Repository, view: View, network: Network, options: MountOptions, auto_update: bool
    ) -> None:
        self.repository = repository
        self.view = view
        self.network = network
        self.options = options
        self.auto_update = auto_update

    def refresh(self) -> Changes | None:
        """Switch to a newer revision if there is one.  Blocks; one thread only.  Raises CvmfsProblem."""
        newer = self.repository.newer(self.view.tree)
        return None if newer is None else self.view.switch(newer)

    def ttl(self) -> int:
        """Seconds until `refresh` is due."""
        return self.repository.ttl(self.view.tree)

    def close(self) -> None:
        """Let go of connections and open objects."""
        self.view.close()
        self.network.close()
        self.repository.objects.close()


def open_client(parameters: Parameters, cache: Cache, counters: Counters) -> Client:
    """Fetch and verify the newest revision.  Raises Mistake and CvmfsProblem, each with one sentence."""
    fqrn = parameters.fqrn
    for refusal in parameters.refusals():
        log.warning("%s: %s", fqrn, refusal)
    if parameters.flag("CVMFS_STRICT_MOUNT", False) and fqrn not in _words(parameters.get("CVMFS_REPOSITORIES")):
        raise parameters.mistake("CVMFS_STRICT_MOUNT", f"{fqrn} is not among CVMFS_REPOSITORIES")
    anchor = anchor_of(parameters)
    policy = policy_of(parameters)
    network = connect(parameters, counters, cache.directory)
    fetcher = network.fetcher
    objects = Objects(cache, fetcher, counters)
    repository = Repository(
        anchor, fetcher, objects, now=lambda: datetime.now(UTC), max_ttl=60 * parameters.number("CVMFS_MAX_TTL", 0)
    )
    try:
        view = View(repository.load(), objects, policy, counters, Prefetcher(objects))
    except BaseException:
        network.close()
        objects.close()
        raise
    options = MountOptions(
        check_permissions=parameters.flag("CVMFS_CHECK_PERMISSIONS", True),
        allow_setuid=parameters.flag("CVMFS_SUID", False),
    )
    return Client(repository, view, network, options, parameters.flag("CVMFS_AUTO_UPDATE", True))


def anchor_of(parameters: Parameters) -> Anchor:
    """Master keys and black list.  Raises Mistake naming the file."""
    text = parameters.get("CVMFS_PUBLIC_KEY")
    if text:
        files = [Path(name) for name in text.split(":") if name]
    else:
        directory = Path(parameters.get("CVMFS_KEYS_DIR") or parameters.directory / KEYS)
        files = sorted(directory.glob("*.pub"))
        if not files:
            raise Mistake(f"{parameters.fqrn}: there is no public master key (*.pub) in {directory}")
    return Anchor(parameters.fqrn, load_master_keys(files), _blacklist(parameters))


def _blacklist(parameters: Parameters) -> Blacklist:
    given = parameters.get("CVMFS_BLACKLIST")
    file = Path(given) if given else parameters.directory / "blacklist"
    try:
        return parse_blacklist(file.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        if given:
            raise parameters.mistake("CVMFS_BLACKLIST", "no such file") from None
        return Blacklist()
    except OSError as error:
        raise Mistake(f"{file}: the black list cannot be read: {error.strerror}") from error


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
        world_readable=parameters.flag("CVMFS_WORLD_READABLE", False),
        variables=_variables(parameters),
        list_magic=visibility,
    )


def _variables(parameters: Parameters) -> Mapping[bytes, bytes]:
    """What $(NAME) in a symbolic link may name: the environment, and above it every parameter."""
    own = {name: parameter.value for name, parameter in parameters.values.items()}
    own["CVMFS_FQRN"] = parameters.fqrn
    return dict(os.environb) | {os.fsencode(name): os.fsencode(value) for name, value in own.items()}


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()
