# SPDX-License-Identifier: BSD-3-Clause
"""The helper that mount(8) runs for `mount -t cvmfs REPOSITORY DIRECTORY`: /sbin/mount.cvmfs.

Below cvmfsd's own mount directory it asks cvmfsd, elsewhere (or without one) it mounts by itself as `cvmfsd-mount`
does.  Exit statuses of mount(8): 0 done, 1 usage or configuration, 32 the mount failed.  One thread.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cernvm import __version__
from cernvm.kit.bus import BusError, SyncBus
from cernvm.kit.errors import Problem

from . import cvmfs_looking as looking
from . import cvmfsd_mount

NAME: Final = "ch.cern.cernvm.Cvmfs1"
PATH: Final = "/ch/cern/cernvm/Cvmfs1"
PATIENCE: Final = 200.0
USAGE: Final = 1
FAILED: Final = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; returns the exit status."""
    arguments = _parser().parse_args(argv)
    repository = os.fspath(arguments.repository).rpartition("/")[2]
    try:
        settings = cvmfsd_mount.settings_of(",".join(arguments.options))
    except ValueError as error:
        print(f"mount.cvmfs: {error}", file=sys.stderr)
        return USAGE
    if arguments.fake:
        return 0
    if not settings["files"] and not looking.is_trigger(arguments.directory.absolute()):
        answered = _by_daemon(repository, arguments.directory.absolute())
        if answered is not None:
            return answered
    child = os.fork()
    if not child:
        os._exit(_alone(repository, arguments.directory, settings))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        return 0
    return USAGE if status == cvmfsd_mount.OPTIONS else FAILED


def _alone(repository: str, directory: Path, settings: dict[str, object]) -> int:
    try:
        return cvmfsd_mount.start(repository, directory, {**settings, "foreground": False})
    except OSError as error:
        print(f"mount.cvmfs: {error}", file=sys.stderr)
        return FAILED


def _by_daemon(repository: str, directory: Path) -> int | None:
    """Have cvmfsd mount it; None if that is not where it mounts, or nobody is there."""
    try:
        with SyncBus.system() as bus:
            if directory != Path(bus.get(NAME, PATH, NAME, "MountDirectory")) / repository:
                return None
            bus.call(NAME, PATH, NAME, "Mount", "s", repository, timeout=PATIENCE)
    except BusError as error:
        if not error.name.startswith("ch.cern.cernvm.Error."):
            return None
        print(f"mount.cvmfs: {error}", file=sys.stderr)
        return USAGE if error.name.endswith(("InvalidArgument", "NotFound")) else FAILED
    except Problem:
        return None
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mount.cvmfs", description="Helper of mount(8) for type cvmfs.")
    parser.add_argument("--version", "-V", action="version", version=f"mount.cvmfs {__version__}")
    parser.add_argument("repository", metavar="REPOSITORY")
    parser.add_argument("directory", type=Path, metavar="DIRECTORY")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="OPTIONS", help="as of cvmfsd-mount")
    parser.add_argument("-f", dest="fake", action="store_true", help="only check the command line")
    for letter in "snv":
        parser.add_argument(f"-{letter}", action="store_true", help="given by mount(8), without effect")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
