# SPDX-License-Identifier: BSD-3-Clause
"""One repository mounted without daemon and bus: `python -m cernvm.cvmfsd.alone FQRN DIRECTORY SETTINGS` (JSON).

`cvmfsd-mount` and `mount.cvmfs` start this.  It starts one worker, says how it went, and leaves it running (or stays,
with `foreground`, and hands signals on).  Exit statuses are the original client's.  One thread.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from cernvm.cvmfs import errors
from cernvm.cvmfs.cache import Cache
from cernvm.cvmfs.cache_owner import CacheOwner
from cernvm.cvmfs.counters import Counters
from cernvm.cvmfs.parameters import Parameters, read_files, read_parameters
from cernvm.cvmfs.prefetch import WIDTH
from cernvm.kit.errors import Problem, UserMistake, sentence

from . import mounting, wire
from .process import environment

START: Final = 180.0
DEADLINE: Final = 120.0
OK: Final = 0
OPTIONS: Final = 2
PERMISSION: Final = 3
MOUNT: Final = 4
CACHE: Final = 9
SIGNATURE: Final = 15
CATALOG: Final = 16
DOUBLE: Final = 21
HISTORY: Final = 22
PROXY_DISCOVERY: Final = 23
QUOTA_MB: Final = 4000
"""Megabytes, where CVMFS_QUOTA_LIMIT does not say."""


class Refused(Problem):
    """The mount is not made; `status` is the exit status."""

    def __init__(self, status: int, complaint: str) -> None:
        super().__init__(complaint)
        self.status = status


def main(arguments: list[str]) -> int:
    """Mount; returns the exit status."""
    fqrn, directory, settings = arguments[0], Path(arguments[1]).absolute(), json.loads(arguments[2])
    try:
        return _mount(fqrn, directory, settings)
    except Refused as error:
        print(f"{fqrn}: {error}", file=sys.stderr)
        return error.status


def _mount(fqrn: str, point: Path, settings: dict[str, Any]) -> int:
    parameters = _parameters(fqrn, settings)
    _check_point(point)
    cache, limit = _cache(parameters)
    task = wire.Task(
        fqrn=fqrn,
        mount_point=str(point),
        parameters_directory=settings["parameters_directory"],
        parameter_files=settings["files"],
        cache_directory=str(cache),
        cache_limit=limit,
        threads=12,
        fuse=settings["fuse"],
        log_level="info",
        fetch_ahead=WIDTH,
        deadline=DEADLINE,
        patience=None,
        point_created=False,
        replaces=False,
    )
    return _run(task, foreground=settings["foreground"])


def _parameters(fqrn: str, settings: dict[str, Any]) -> Parameters:
    try:
        if settings["files"]:
            return read_files(fqrn, [Path(file) for file in settings["files"]])
        return read_parameters(fqrn, Path(settings["parameters_directory"]))
    except Problem as error:
        raise Refused(OPTIONS, str(error)) from error


def _check_point(point: Path) -> None:
    if mounting.is_mounted(point):
        raise Refused(DOUBLE, f"{point}: something is mounted there already")
    if not point.is_dir():
        raise Refused(MOUNT, f"{point}: is no directory, so nothing can be mounted on it")
    if os.geteuid() != 0 and not os.access(point, os.W_OK):
        raise Refused(PERMISSION, f"{point}: may be mounted on only by its owner or root")


def _cache(parameters: Parameters) -> tuple[Path, int | None]:
    """The cache directory and its limit in bytes, as the original's parameters say."""
    base = Path(parameters.get("CVMFS_CACHE_DIR") or parameters.get("CVMFS_CACHE_BASE") or "/var/lib/cvmfs")
    try:
        shared = parameters.flag("CVMFS_SHARED_CACHE", True)
        quota = parameters.get("CVMFS_QUOTA_LIMIT", str(QUOTA_MB))
        megabytes = 0 if quota == "-1" else parameters.number("CVMFS_QUOTA_LIMIT", QUOTA_MB)
    except Problem as error:
        raise Refused(OPTIONS, str(error)) from error
    place = base if parameters.get("CVMFS_CACHE_DIR") else base / ("shared" if shared else parameters.fqrn)
    try:
        Cache(place, None).close()
        with suppress(errors.Mistake), CacheOwner(place) as owner:
            owner.tidy(Path("/proc/sys/kernel/random/boot_id").read_bytes().strip())
    except (Problem, OSError) as error:
        raise Refused(CACHE, sentence(error)) from error
    return place, megabytes * 1_000_000 or None


def _run(task: wire.Task, *, foreground: bool) -> int:
    ours, theirs = socket.socketpair()
    counters_fd = Counters.shared()
    output = None if foreground else subprocess.DEVNULL
    with theirs:
        worker = subprocess.Popen(
            [sys.executable, "-m", "cernvm.cvmfsd.worker", str(theirs.fileno()), str(counters_fd)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(theirs.fileno(), counters_fd),
            env=environment(),
            cwd="/",
        )
    with ours, ours.makefile("rb") as lines:
        ours.sendall(wire.encode(task))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ours.sendall(wire.encode(wire.Unmount())))
        ours.settimeout(START)
        try:
            first = lines.readline()
        except TimeoutError:
            worker.kill()
            raise Refused(MOUNT, f"its worker did not mount it within {START:.0f} s") from None
        _check(first)
        if not foreground:
            worker.returncode = 0  # it lives on, and is nobody's child any more
            return OK
        ours.settimeout(None)
        for _ in lines:
            pass  # what it tells a supervisor stands in its log as well
        return OK if worker.wait() == 0 else MOUNT


def _check(first: bytes) -> None:
    """Raises Refused unless the worker's first word is that it has mounted."""
    message = wire.decode(first) if first.endswith(b"\n") else None
    if isinstance(message, wire.Failed):
        raise Refused(status_of(wire.error_of(message.kind, message.sentence)), message.sentence)
    if not isinstance(message, wire.Shows):
        raise Refused(MOUNT, "its worker ended before it was mounted; the system's log tells why")


def status_of(error: Problem) -> int:
    """The original client's exit status for an error."""
    if isinstance(error, errors.Untrusted):
        return SIGNATURE
    if isinstance(error, errors.CacheFull):
        return CACHE
    if isinstance(error, errors.NoProxy):
        return PROXY_DISCOVERY
    if isinstance(error, errors.CvmfsProblem):
        return CATALOG
    return OPTIONS if isinstance(error, UserMistake) else MOUNT


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
