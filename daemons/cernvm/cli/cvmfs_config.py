# SPDX-License-Identifier: BSD-3-Clause
"""The command `cvmfs_config`: what site scripts ask about the client and its mounts, by the original's words.

A leaf: it reads parameters, asks cvmfsd over D-Bus, and looks at mounts in ways that they cannot block.  Exit status
0 all is well, 1 something is not, 2 the person's mistake.  One thread.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from cernvm import __version__
from cernvm.cvmfs.parameters import read_parameters
from cernvm.kit.bus import BusError, SyncBus
from cernvm.kit.errors import EXIT_FAILED, EXIT_OK, NotFound, Problem

from . import cvmfs_config_care as care
from . import cvmfs_config_stat as stat
from . import cvmfs_looking as looking
from .cvmfs_looking import NAME, PATH

PATIENCE: Final = 600.0
ANY: Final = "default.example.org"
"""Stands for any repository when the parameters that are not of one are read."""
Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; returns the exit status."""
    arguments = _parser().parse_args(argv)
    command: Command = arguments.run
    try:
        return command(arguments)
    except Problem as error:
        print(f"cvmfs_config: {error}", file=sys.stderr)
        return error.exit_status if not isinstance(error, BusError) else EXIT_FAILED


def _setup(_: argparse.Namespace) -> int:
    print("Nothing to do: the package sets everything up; start the client with: systemctl enable --now cvmfsd")
    return EXIT_OK


def _chksetup(arguments: argparse.Namespace) -> int:
    complaints = care.complaints(arguments.etc, looking.places(), _configured(arguments))
    print("\n".join(complaints) or "OK")
    return EXIT_FAILED if any(line.startswith("Error") for line in complaints) else EXIT_OK


def _showconfig(arguments: argparse.Namespace) -> int:
    names = [arguments.repository] if arguments.repository else _configured(arguments) or [ANY]
    for name in names:
        values = read_parameters(name, arguments.etc).values
        if len(names) > 1:
            print(f"{name}:")
        for key, one in sorted(values.items()):
            if one.value or not arguments.set_only:
                print(f"{key}={one.value}    # from {one.origin}")
    return EXIT_OK


def _stat(arguments: argparse.Namespace) -> int:
    status = EXIT_OK
    for seen in _seen(arguments.repository):
        told = stat.told(seen, arguments.etc)
        if told is None:
            print(f"{seen.repository} does not answer", file=sys.stderr)
            status = EXIT_FAILED
            continue
        if arguments.repository is None:
            print(f"Running {sys.argv[0].rpartition('/')[2]} stat {seen.repository}:")
        print(stat.long_form(told) if arguments.verbose else stat.short_form(told))
    return status


def _status(_: argparse.Namespace) -> int:
    where = looking.places()
    for seen in looking.mounted(where.mounts):
        pid = looking.pid_of(where.workspace, seen.repository)
        print(f"{seen.repository} mounted on {seen.point} with pid {pid or 'unknown'}")
    return EXIT_OK


def _probe(arguments: argparse.Namespace) -> int:
    where = looking.places()
    names = (
        arguments.repositories or _configured(arguments) or [one.repository for one in looking.mounted(where.mounts)]
    )
    status = EXIT_OK
    for name in names:
        print(f"Probing {where.mounts / name}... ", end="", flush=True)
        well = _mount(name) and looking.answers(where.mounts / name)
        print("OK" if well else "Failed!")
        status = status if well else EXIT_FAILED
    return status


def _mount(name: str) -> bool:
    try:
        _call("Mount", "s", name, timeout=200.0)
    except BusError:
        return False
    return True


def _reload(arguments: argparse.Namespace) -> int:
    if arguments.wipe:
        _call("Wipe")
    for seen in _seen(arguments.repository):
        _call("Reload", "s", seen.repository)
        print(f"{seen.repository} reloaded")
    return EXIT_OK


def _umount(arguments: argparse.Namespace) -> int:
    for seen in _seen(arguments.repository):
        _call("Unmount", "s", seen.repository)
        print(f"Unmounted {seen.point}")
    return EXIT_OK


def _wipecache(_: argparse.Namespace) -> int:
    print(f"{_call('Wipe')} bytes are left, in catalogs that are in use")
    return EXIT_OK


def _fsck(_: argparse.Namespace) -> int:
    checked, damaged = _call("Check")
    for name in damaged:
        print(f"removed {name}: it was damaged")
    print(f"{checked} objects checked, {len(damaged)} damaged")
    return EXIT_FAILED if damaged else EXIT_OK


def _fuser(arguments: argparse.Namespace) -> int:
    for seen in _seen(arguments.repository):
        for pid, name in care.users(seen.point):
            print(f"{seen.repository} is used by {pid} ({name})")
    return EXIT_OK


def _killall(_: argparse.Namespace) -> int:
    for line in care.kill_all(looking.places()):
        print(line)
    return EXIT_OK


def _bugreport(arguments: argparse.Namespace) -> int:
    print(care.bug_report(arguments.etc, looking.places(), _configured(arguments)))
    return EXIT_OK


def _call(member: str, *arguments: str, timeout: float = PATIENCE) -> Any:
    with SyncBus.system() as bus:
        return bus.call(NAME, PATH, NAME, member, *arguments, timeout=timeout)


def _seen(repository: str | None) -> list[looking.Seen]:
    found = [one for one in looking.mounted(looking.places().mounts) if repository in (None, one.repository)]
    if repository is not None and not found:
        raise NotFound(f"{repository} is not mounted")
    return found


def _configured(arguments: argparse.Namespace) -> list[str]:
    text = read_parameters(ANY, arguments.etc).get("CVMFS_REPOSITORIES")
    return text.replace(",", " ").split()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cvmfs_config", description="Questions and care of a CernVM-FS client.")
    parser.add_argument("--version", action="version", version=f"cvmfs_config {__version__}")
    parser.add_argument("-e", dest="etc", type=Path, default=Path("/etc/cvmfs"), metavar="DIRECTORY", help="parameters")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Command, about: str, *, one: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about)
        sub.set_defaults(run=run)
        if one:
            sub.add_argument("repository", nargs="?", metavar="REPOSITORY")
        return sub

    command("setup", _setup, "prepare the host (nothing to do)")
    command("chksetup", _chksetup, "look for mistakes in the configuration")
    command("showconfig", _showconfig, "show parameters and where they come from", one=True).add_argument(
        "-s", dest="set_only", action="store_true", help="only those that are not empty"
    )
    command("stat", _stat, "show figures of mounts", one=True).add_argument(
        "-v", dest="verbose", action="store_true", help="in words"
    )
    command("status", _status, "show what is mounted")
    command("probe", _probe, "mount and look").add_argument("repositories", nargs="*", metavar="REPOSITORY")
    command("fsck", _fsck, "look the cache through")
    command("fuser", _fuser, "show who uses mounts", one=True)
    command("reload", _reload, "take new parameters and code, readers go on", one=True).add_argument(
        "-c", dest="wipe", action="store_true", help="wipe the cache as well"
    )
    command("umount", _umount, "unmount what nobody uses", one=True)
    command("wipecache", _wipecache, "empty the cache")
    command("killall", _killall, "end all mounts at once, whatever they do")
    command("bugreport", _bugreport, "collect what a report needs into an archive")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
