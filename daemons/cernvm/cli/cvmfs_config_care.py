# SPDX-License-Identifier: BSD-3-Clause
"""What `cvmfs_config` does to a client that may be ill: check, find users, end everything, report.

None of it can be blocked by a mount: links in /proc are read, never followed; children have deadlines.  One thread.
"""

from __future__ import annotations

import io
import logging
import os
import platform
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from cernvm import __version__
from cernvm.cvmfs.anchor import anchor_of
from cernvm.cvmfs.counters import Counters
from cernvm.cvmfs.fetch import Buffer
from cernvm.cvmfs.network import connect
from cernvm.cvmfs.parameters import Parameters, read_parameters
from cernvm.kit.errors import Problem
from cernvm.kit.proc import find_program

from . import cvmfs_looking as looking

DEADLINE: Final = 10.0
REACHED: Final = 60.0
MARGIN: Final = 1.15
"""Of the cache's limit that the disk should have free, as the original asks."""
_MANIFEST: Final = 1 << 16
_CARED: Final = (
    "internal affairs",
    "cache size",
    "host info",
    "proxy info",
    "timeout info",
    "open catalogs",
    "revision",
)


def complaints(etc: Path, places: looking.Places, repositories: Sequence[str]) -> list[str]:
    """What is wrong, a line each, beginning with Error: or Warning:."""
    found = []
    if not Path("/dev/fuse").exists():
        found.append("Error: /dev/fuse is not there; is the kernel's module fuse loaded?")
    try:
        find_program("fusermount")
    except Problem as error:
        found.append(f"Warning: {error}")
    if not repositories:
        found.append(f"Warning: CVMFS_REPOSITORIES is not set below {etc}; none is looked at")
    for repository in repositories:
        found += [f"Error: {repository}: {text}" for text in _of_repository(repository, etc)]
    found += _of_cache(places.workspace)
    return found


def _of_repository(repository: str, etc: Path) -> Iterator[str]:
    try:
        parameters = read_parameters(repository, etc)
        anchor_of(parameters)
    except Problem as error:
        yield str(error)
        return
    trouble = looking.bounded(lambda: _unreachable(parameters), REACHED)
    if trouble is None:
        yield f"its servers do not answer within {REACHED:.0f} s"
    else:
        yield from trouble


def _unreachable(parameters: Parameters) -> list[str]:
    """A line for each server that does not give the manifest."""
    logging.disable()  # in a child, whose result is all that counts
    lines = []
    try:
        network = connect(parameters, Counters(), Path("/nonexistent"))
    except Problem as error:
        return [str(error)]
    for server in network.fetcher.ways().servers:
        try:
            network.fetcher.ask(server, ".cvmfspublished", lambda: Buffer(_MANIFEST, "the manifest"))
        except Problem as error:
            lines.append(f"{server}: {error}")
    return lines


def _of_cache(workspace: Path) -> list[str]:
    if not workspace.is_dir():
        return [f"Warning: the cache directory {workspace} is not there yet"]
    if not os.access(workspace, os.W_OK):
        return [f"Warning: the cache directory {workspace} may be written by root only, or lies on a read-only disk"]
    space = os.statvfs(workspace)
    if space.f_bavail * space.f_frsize < (MARGIN - 1) * space.f_blocks * space.f_frsize:
        return [f"Warning: less than 15 % of the disk of {workspace} is free"]
    return []


def users(point: Path) -> list[tuple[int, str]]:
    """Processes that have something of a mount open, as root or working directory, or run: number and name."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _uses(process, point):
            name = "?"
            with suppress(OSError):
                name = (process / "comm").read_text().strip()
            found.append((int(process.name), name))
    return sorted(found)


def _uses(process: Path, point: Path) -> bool:
    links = [process / "cwd", process / "root", process / "exe"]
    with suppress(OSError):
        links += [process / "fd" / name for name in os.listdir(process / "fd")]  # noqa: PTH208 - must not stat
    for link in links:
        with suppress(OSError):
            target = Path(os.readlink(link))  # noqa: PTH115 - must not resolve
            if target == point or point in target.parents:
                return True
    return False


def kill_all(places: looking.Places) -> Iterator[str]:
    """Take every mount away and end the process behind it; cvmfsd may mount again what it is configured to."""
    for seen in looking.mounted(places.mounts):
        pid = looking.pid_of(places.workspace, seen.repository)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        done = _run("umount", "-l", str(seen.point))
        yield f"{seen.repository}: process {pid or 'unknown'} ended, {seen.point} taken away{done and ': ' + done}"


def _run(name: str, *arguments: str) -> str:
    """What a program complains of; empty when all is well."""
    try:
        command = [find_program("umount") if name == "umount" else find_program("journalctl"), *arguments]
        done = subprocess.run(command, capture_output=True, timeout=DEADLINE, check=False)
    except (Problem, OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stdout if name == "journalctl" else done.stderr).decode("utf-8", "replace").strip()


def bug_report(etc: Path, places: looking.Places, repositories: Sequence[str]) -> Path:
    """Write an archive with what a report needs; its path.  Each part is what could be had in time."""
    parts: dict[str, Callable[[], str]] = {
        "version": lambda: f"cernvm {__version__}\n{platform.platform()}\nPython {platform.python_version()}\n",
        "mountinfo": lambda: Path("/proc/self/mountinfo").read_text(errors="replace"),
        "log": lambda: _run("journalctl", "-u", "cvmfsd", "-n", "1000", "--no-pager"),
    }
    for repository in {*repositories, *(one.repository for one in looking.mounted(places.mounts))}:
        parts[f"{repository}/parameters"] = partial(_parameters, repository, etc)
        parts[f"{repository}/talk"] = partial(_talk_text, places.workspace, repository)
        parts[f"{repository}/users"] = partial(_users_text, places.mounts / repository)
    archive = Path.cwd() / time.strftime("cvmfs-bugreport-%Y%m%d-%H%M%S.tar.gz")
    with tarfile.open(archive, "w:gz") as tar:
        for name, make in parts.items():
            try:
                data = make().encode("utf-8", "replace")
            except (Problem, OSError) as error:
                data = f"cannot be had: {error}\n".encode()
            info = tarfile.TarInfo(f"cvmfs-bugreport/{name}")
            info.size, info.mtime = len(data), int(time.time())
            tar.addfile(info, io.BytesIO(data))
    return archive


def _talk_text(workspace: Path, repository: str) -> str:
    """The answers to some commands of `cvmfs_talk`.  Raises OSError at the first that does not come."""
    texts = []
    for command in _CARED:
        texts.append(f"--- {command}\n{looking.talk_to(workspace, repository, command, looking.PATIENCE)}")
    return "".join(texts)


def _users_text(point: Path) -> str:
    return "".join(f"{pid} {name}\n" for pid, name in users(point))


def _parameters(repository: str, etc: Path) -> str:
    values = read_parameters(repository, etc).values
    return "".join(f"{name}={one.value}    # from {one.origin}\n" for name, one in sorted(values.items()))
