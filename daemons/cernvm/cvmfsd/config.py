# SPDX-License-Identifier: BSD-3-Clause
"""What the admin sets in cvmfsd.conf.  What belongs to a repository stands in /etc/cvmfs instead.  Values only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cernvm.cvmfs.errors import Mistake
from cernvm.cvmfs.parameters import check_fqrn
from cernvm.kit.config import Settings

from .wire import Choice

SPEC: Final = """
[cvmfsd]
# The directory with default.conf, default.local, domain.d, config.d and keys: what each repository needs.
parameters_directory = string(default="/etc/cvmfs")
# Repositories appear here, each in a directory of its own name.
mount_directory = string(default="/cvmfs")
# Repositories that are mounted as soon as cvmfsd starts, separated by commas; others are mounted on request.
repositories = list(default=list())
# Repositories that systemd mounts when somebody first looks, separated by commas (after systemctl daemon-reload).
automount = list(default=list())
# Requests of the kernel that one repository answers at the same time; each may wait for the network.
threads = integer(min=2, max=64, default=12)
# Transfers at a time of objects that will be wanted soon; 0: nothing is fetched before it is wanted.
fetch_ahead = integer(min=0, max=64, default=16)
# Seconds that a program waits for the network before its request is answered with an error; the transfer goes on.
deadline = integer(min=5, max=3600, default=120)
# Seconds that mounts go on without cvmfsd when it crashes or restarts; the next cvmfsd takes them over.
patience = integer(min=0, max=3600, default=60)
# Where Prometheus may fetch metrics: the path of a socket, or a port of 127.0.0.1. Empty: nowhere.
metrics = string(default="")
# What speaks to the kernel: kernel (its own protocol, fastest), llfuse, or auto: kernel where it can, else llfuse.
fuse = option("auto", "kernel", "llfuse", default="auto")

[cache]
# Fetched objects are kept here, for all repositories together; no other cvmfsd may use it.
directory = string(default="/var/lib/cvmfs")
# Megabytes that the cache may take; what was used least recently goes first. 0: no limit.
limit_mb = integer(min=0, max=1000000000, default=4000)
"""


@dataclass(frozen=True)
class Config:
    """The configuration of cvmfsd."""

    parameters_directory: Path
    mount_directory: Path
    repositories: tuple[str, ...]
    threads: int
    fetch_ahead: int
    deadline: float
    patience: float
    metrics: Path | int | None
    """A socket's path, or a port on loopback."""
    fuse: Choice
    cache_directory: Path
    cache_limit: int | None
    """Bytes; None: no limit."""


def configure(settings: Settings) -> Config:
    """The configuration in `settings`.  Raises UserMistake naming file, section and key."""
    own, cache = settings["cvmfsd"], settings["cache"]
    repositories = tuple(dict.fromkeys(name for name in own["repositories"] if name))
    for key in ("repositories", "automount"):
        for name in filter(None, own[key]):
            try:
                check_fqrn(name)
            except Mistake as error:
                raise settings.mistake("cvmfsd", key, str(error)) from error
    for key in ("parameters_directory", "mount_directory"):
        if not Path(own[key]).is_absolute():
            raise settings.mistake("cvmfsd", key, f"{own[key]!r} is not an absolute path")
    if not Path(cache["directory"]).is_absolute():
        raise settings.mistake("cache", "directory", f"{cache['directory']!r} is not an absolute path")
    return Config(
        parameters_directory=Path(own["parameters_directory"]),
        mount_directory=Path(own["mount_directory"]),
        repositories=repositories,
        threads=own["threads"],
        fetch_ahead=own["fetch_ahead"],
        deadline=own["deadline"],
        patience=own["patience"],
        metrics=_metrics(settings),
        fuse=Choice(own["fuse"]),
        cache_directory=Path(cache["directory"]),
        cache_limit=cache["limit_mb"] * 1_000_000 or None,
    )


def _metrics(settings: Settings) -> Path | int | None:
    text = settings["cvmfsd"]["metrics"]
    if not text:
        return None
    if text.isascii() and text.isdigit() and 0 < int(text) < 65536:
        return int(text)
    if Path(text).is_absolute():
        return Path(text)
    raise settings.mistake("cvmfsd", "metrics", f"{text!r} is neither a port nor an absolute path")
