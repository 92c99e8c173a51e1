# SPDX-License-Identifier: BSD-3-Clause
"""The command `cvmfsctl`: which repositories are mounted, mount one, unmount one, what they did, care of the cache.

A leaf: it asks cvmfsd over D-Bus and prints.  Exit status 0 done, 1 failed, 2 the person's mistake.  One thread.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from cernvm import __version__
from cernvm.kit.bus import BusError, SyncBus
from cernvm.kit.errors import EXIT_FAILED, EXIT_OK, NotFound, Problem, UserMistake

from .cvmfs_looking import NAME, PATH
from .cvmfsctl_care import Unwell, add_care

MOUNT: Final = "ch.cern.cernvm.Cvmfs1.Mount"
PATIENCE: Final = 200.0
"""Seconds to wait for a mount: longer than cvmfsd itself waits for its servers."""
MISTAKES: Final = ("InvalidArgument", "NotFound")
NOBODY: Final = ("org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; returns the exit status."""
    arguments = _parser().parse_args(argv)
    command: Callable[[SyncBus, argparse.Namespace], None] = arguments.command
    try:
        with SyncBus.system() as bus:
            command(bus, arguments)
    except BusError as error:
        complaint = "cvmfsd is not running on this bus" if error.name in NOBODY else str(error)
        print(f"cvmfsctl: {complaint}", file=sys.stderr)
        return UserMistake.exit_status if error.name.rpartition(".")[2] in MISTAKES else EXIT_FAILED
    except Unwell as found:
        return found.exit_status
    except Problem as error:
        print(f"cvmfsctl: {error}", file=sys.stderr)
        return error.exit_status
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cvmfsctl", description="Ask cvmfsd about CernVM-FS repositories.")
    parser.add_argument("--version", action="version", version=f"cvmfsctl {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="show what is mounted")
    listing.add_argument("--json", action="store_true", help="print JSON for machines")
    listing.set_defaults(command=_list)
    mounting = commands.add_parser("mount", help="mount a repository; prints where")
    mounting.add_argument("repository", metavar="REPOSITORY", help="name, as in software.example.org")
    mounting.set_defaults(command=_mount)
    unmounting = commands.add_parser("unmount", help="unmount a repository that nobody uses")
    unmounting.add_argument("repository", metavar="REPOSITORY")
    unmounting.set_defaults(command=_unmount)
    numbers = commands.add_parser("stat", help="show revision, state and statistics of one or all")
    numbers.add_argument("repository", metavar="REPOSITORY", nargs="?")
    numbers.add_argument("--json", action="store_true", help="print JSON for machines")
    numbers.set_defaults(command=_stat)
    add_care(commands)
    return parser


def _list(bus: SyncBus, arguments: argparse.Namespace) -> None:
    mounts = _mounts(bus)
    if arguments.json:
        keys = ("repository", "object", "mount_point", "state")
        print(json.dumps([dict(zip(keys, one, strict=True)) for one in mounts], indent=2))
        return
    for repository, _, point, state in mounts:
        print(f"{repository}  {point}  {state}")


def _mount(bus: SyncBus, arguments: argparse.Namespace) -> None:
    path = bus.call(NAME, PATH, NAME, "Mount", "s", arguments.repository, timeout=PATIENCE)
    print(bus.get(NAME, path, MOUNT, "MountPoint"))


def _unmount(bus: SyncBus, arguments: argparse.Namespace) -> None:
    bus.call(NAME, PATH, NAME, "Unmount", "s", arguments.repository, timeout=PATIENCE)


def _stat(bus: SyncBus, arguments: argparse.Namespace) -> None:
    wanted = [one for one in _mounts(bus) if arguments.repository in (None, one[0])]
    if arguments.repository is not None and not wanted:
        raise NotFound(f"{arguments.repository} is not mounted")
    shown = [bus.get_all(NAME, path, MOUNT) for _, path, _, _ in wanted]
    if arguments.json:
        print(json.dumps(shown, indent=2))
        return
    print("\n\n".join(_as_text(one) for one in shown))


def _as_text(properties: Mapping[str, Any]) -> str:
    lines = [f"{properties['Fqrn']} at {properties['MountPoint']}: {properties['State']}"]
    lines.append(f"  revision {properties['Revision']}, root catalog {properties['RootHash']}")
    if properties["LastError"]:
        lines.append(f"  last error: {properties['LastError']}")
    lines += [f"  {name.replace('_', ' '):20} {value:>14,}" for name, value in properties["Statistics"].items()]
    return "\n".join(lines)


def _mounts(bus: SyncBus) -> list[tuple[str, str, str, str]]:
    found: list[tuple[str, str, str, str]] = bus.call(NAME, PATH, NAME, "ListMounts")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
