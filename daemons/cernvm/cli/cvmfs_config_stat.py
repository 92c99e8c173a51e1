# SPDX-License-Identifier: BSD-3-Clause
"""`cvmfs_config stat`: the figures of one mount in the original's two forms.  All of it is asked with a deadline."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cernvm.cvmfs.counters import Counters
from cernvm.cvmfs.fetch import Buffer
from cernvm.cvmfs.network import connect
from cernvm.cvmfs.parameters import read_parameters

from . import cvmfs_looking as looking

HEADER: Final = (
    "VERSION PID UPTIME(M) MEM(K) REVISION EXPIRES(M) NOCATALOGS CACHEUSE(K) CACHEMAX(K) NOFDUSE NOFDMAX NOIOERR "
    "NOOPEN HITRATE(%) RX(K) SPEED(K/S) HOST PROXY ONLINE"
)
_ASKED: Final = (
    "version pid uptime revision expires nclg usedfd maxfd nioerr nopen hitrate rx speed host proxy root_hash "
    "useddirp ndiropen"
)
_ONLINE: Final = 20.0
_MANIFEST: Final = 1 << 16


def told(seen: looking.Seen, etc: Path) -> dict[str, str] | None:
    """All figures by name; None if the mount does not answer."""
    values = looking.attributes(seen.point, _ASKED.split())
    space = looking.bounded(lambda: list(os.statvfs(seen.point)))
    if values is None or space is None:
        return None
    block, _, blocks, free, *_ = space
    block = space[1] or block
    return {
        **values,
        "memory": _memory(values["pid"]),
        "cache_used": str((blocks - free) * block // 1024),
        "cache_max": str(blocks * block // 1024),
        "online": "1" if looking.bounded(lambda: _online(seen.repository, etc), _ONLINE) else "0",
    }


def _memory(pid: str) -> str:
    """Kilobytes in memory."""
    try:
        pages = int(Path(f"/proc/{int(pid)}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return "0"
    return str(pages * os.sysconf("SC_PAGE_SIZE") // 1024)


def _online(repository: str, etc: Path) -> bool:
    """Whether the repository's manifest can be fetched.  Raises Problem."""
    logging.disable()  # in a child, whose result is all that counts
    network = connect(read_parameters(repository, etc), Counters(), Path("/nonexistent"))
    network.fetcher.fetch(".cvmfspublished", lambda: Buffer(_MANIFEST, "the manifest"))
    return True


def short_form(t: Mapping[str, str]) -> str:
    """A header and a line of values."""
    names = [
        "version",
        "pid",
        "uptime",
        "memory",
        "revision",
        "expires",
        "nclg",
        "cache_used",
        "cache_max",
        "usedfd",
        "maxfd",
        "nioerr",
        "nopen",
        "hitrate",
        "rx",
        "speed",
        "host",
        "proxy",
        "online",
    ]
    return f"{HEADER}\n" + " ".join(t[name].replace(" ", "_") or "-" for name in names)


def long_form(t: Mapping[str, str]) -> str:
    """The same in words."""
    online = "online" if t["online"] == "1" else "offline"
    return "\n".join(
        [
            f"Version: {t['version']}",
            f"PID: {t['pid']}",
            f"Uptime: {t['uptime']} minutes",
            f"Memory Usage: {t['memory']}k",
            f"File Catalog Revision: {t['revision']} (expires in {t['expires']} minutes)",
            f"File Catalog ID: {t['root_hash']}",
            f"No. Active File Catalogs: {t['nclg']}",
            f"Cache Usage: {t['cache_used']}k / {t['cache_max']}k",
            f"File Descriptor Usage: {t['usedfd']} / {t['maxfd']}",
            f"No. Open Directories: {t['useddirp']}",
            f"No. IO Errors: {t['nioerr']}",
            f"Connection: {t['host']} through proxy {t['proxy']} ({online})",
            f"Usage: {t['nopen']} open() calls (hitrate {t['hitrate']}%), {t['ndiropen']} opendir() calls",
            f"Transfer Statistics: {t['rx']}k read, avg. speed: {t['speed']}k/s",
        ]
    )
