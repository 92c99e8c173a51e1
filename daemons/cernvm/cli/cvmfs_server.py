# SPDX-License-Identifier: BSD-3-Clause
"""`cvmfs-server`: make repositories, publish to them, keep them.  A leaf: arguments in, lines or one JSON object out.

The verbs stand in `server_*.py`.  Exit status: 0 done; 1 something failed; 2 the arguments or the files that they
name are wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from cernvm import __version__
from cernvm.kit.errors import EXIT_FAILED, Problem, sentence

from .server_care import add_care
from .server_options import Command, fill_places, plain
from .server_publishing import add_publishing
from .server_replica import add_replica
from .server_revisions import add_revisions
from .server_trust import add_trust


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    arguments = _parser().parse_args(argv)
    command: Command = arguments.command
    try:
        fill_places(arguments)
        answer = command(arguments)
    except Problem as problem:
        print(f"cvmfs-server: {problem}", file=sys.stderr)
        return problem.exit_status
    except OSError as error:
        print(f"cvmfs-server: {sentence(error)}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("cvmfs-server: interrupted; the served revision is as it was", file=sys.stderr)
        return EXIT_FAILED
    print(json.dumps(answer.machine, default=plain) if arguments.json else "\n".join(answer.lines))
    return answer.status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cvmfs-server", description="Make CernVM-FS repositories, publish to them and keep them."
    )
    parser.add_argument("--version", action="version", version=f"cvmfs-server {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (add_publishing, add_revisions, add_trust, add_care, add_replica):
        add(commands)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
