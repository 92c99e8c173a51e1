# SPDX-License-Identifier: BSD-3-Clause
"""What the process of one mount knows about itself and its network, as the attributes that `magic` cannot compute.

Each value is made when it is asked for, from state in memory and /proc; only `user.repo_metainfo` may go to the
network.  Thread-safe.
"""

from __future__ import annotations

import os
import resource
import time
from collections import deque
from pathlib import Path
from typing import Final

from . import magic
from .client import Client
from .hashes import Kind
from .objects import ObjectRef
from .parameters import Parameters

MAX_LINES: Final = 100


class Journal:
    """The last sentences about errors, and when the last was."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=MAX_LINES)
        self.last = 0
        """Unix seconds; 0: never."""

    def note(self, sentence: str) -> None:
        """Remember an error that a program has got."""
        self.last = int(time.time())
        self.lines.append(f"[{time.strftime('%F %T', time.gmtime(self.last))} UTC] {sentence}")


class Status:
    """The figures of one mount."""

    def __init__(self, client: Client, parameters: Parameters, journal: Journal, point: Path) -> None:
        self.client = client
        self.parameters = parameters
        self.journal = journal
        self.point = point
        self.begun = time.monotonic()
        self.looked = time.monotonic()
        """When a newer revision was asked for last, successfully or not."""

    def told(self) -> magic.Told:
        """The attributes."""
        network, get = self.client.network, self.parameters.get
        ways = network.fetcher.ways
        external = [one.strip() for one in get("CVMFS_EXTERNAL_URL").split(";") if one.strip()]
        return {
            b"user.pid": os.getpid,
            b"user.tag": lambda: get("CVMFS_REPOSITORY_TAG") or "trunk",
            b"user.host": lambda: ways().servers[0],
            b"user.host_list": lambda: ";".join(ways().servers),
            b"user.proxy": lambda: ways().proxy,
            b"user.proxy_list": lambda: "\n".join("|".join(group) for group in ways().proxy_groups),
            b"user.proxy_list_external": lambda: get("CVMFS_EXTERNAL_HTTP_PROXY").replace(";", "\n"),
            b"user.external_host": lambda: external[0] if external else "",
            b"user.external_timeout": lambda: get("CVMFS_EXTERNAL_TIMEOUT") or get("CVMFS_TIMEOUT", "5"),
            b"user.timeout": lambda: network.http.timeout_proxy,
            b"user.timeout_direct": lambda: network.http.timeout_direct,
            b"user.timestamp_last_ioerr": lambda: self.journal.last,
            b"user.ncleanup24": lambda: self.cleanups(24 * 3600),
            b"user.usedfd": used_descriptors,
            b"user.useddirp": lambda: 0,  # the kernel's listings hold nothing open
            b"user.maxfd": lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            b"user.expires": self.expires,
            b"user.uptime": lambda: int(time.monotonic() - self.begun) // 60,
            b"user.inode_max": self.client.view.highest_inode,
            b"user.repo_metainfo": self.metainfo,
            b"user.pubkeys": self.public_keys,
            b"user.logbuffer": lambda: "\n".join(self.journal.lines),
        }

    def cleanups(self, seconds: float) -> int:
        """How often this mount's cache gave way in the last `seconds`."""
        since = time.monotonic() - seconds
        return sum(when > since for when in self.client.repository.objects.cache.cleanups)

    def expires(self) -> str:
        """Minutes until a newer revision is asked for."""
        if not self.client.auto_update or self.client.repository.pin is not None:
            return "never (fixed root catalog)"
        left = self.client.ttl() - (time.monotonic() - self.looked)
        return str(max(0, int(left)) // 60)

    def metainfo(self) -> bytes:
        """What the repository's owner says about it, as stored.  Raises CvmfsProblem."""
        content = self.client.view.tree.manifest.metainfo
        if content is None:
            return b""
        return self.client.repository.objects.open(ObjectRef(content, Kind.METAINFO)).read_all().rstrip(b"\n")

    def public_keys(self) -> bytes:
        """The master keys that are trusted."""
        keys = self.client.repository.anchor.master_keys
        return b"".join(Path(key.origin).read_bytes() for key in keys).rstrip(b"\n")


def used_descriptors() -> int:
    """Open descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
