# SPDX-License-Identifier: BSD-3-Clause
"""The command `cvmfs_talk`: one command to the process behind a mount, and its answer.

A leaf: it writes to the mount's socket and prints.  Exit status 0 answered, 1 nobody answers, 2 the person's mistake.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cernvm import __version__
from cernvm.kit.errors import EXIT_FAILED, EXIT_OK, UserMistake, sentence

from . import cvmfs_looking as looking


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; returns the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.socket is not None:
        workspace, repository = arguments.socket.parent, arguments.socket.name.removeprefix("cvmfs_io.")
        wanted = [repository]
    else:
        places = looking.places()
        workspace = places.workspace
        wanted = [arguments.repository] if arguments.repository else _all(places)
    if not wanted:
        print("cvmfs_talk: nothing is mounted", file=sys.stderr)
        return UserMistake.exit_status
    status = EXIT_OK
    for repository in wanted:
        if len(wanted) > 1:
            print(f"{repository}:")
        status = max(status, _ask(workspace, repository, " ".join(arguments.command)))
    return status


def _all(places: looking.Places) -> list[str]:
    return sorted(path.name.removeprefix("cvmfs_io.") for path in places.workspace.glob("cvmfs_io.*"))


def _ask(workspace: Path, repository: str, command: str) -> int:
    try:
        sys.stdout.write(looking.talk_to(workspace, repository, command))
    except FileNotFoundError:
        print(f"cvmfs_talk: {repository} is not mounted (no socket in {workspace})", file=sys.stderr)
        return UserMistake.exit_status
    except OSError as error:
        print(f"cvmfs_talk: {repository} does not answer: {sentence(error)}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cvmfs_talk", description="Talk to the process behind a mount.")
    parser.add_argument("--version", action="version", version=f"cvmfs_talk {__version__}")
    parser.add_argument("-i", dest="repository", metavar="REPOSITORY", help="all that are mounted if not given")
    parser.add_argument("-p", dest="socket", type=Path, metavar="SOCKET", help="path of the mount's socket")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="as in: remount sync")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
