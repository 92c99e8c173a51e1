# SPDX-License-Identifier: BSD-3-Clause
"""What the verbs of `cvmfs-server` share: options, where a repository's places are written down, and answers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from cernvm.cvmfs.hashes import Algorithm
from cernvm.kit.config import load
from cernvm.kit.errors import EXIT_OK, UserMistake

REPOSITORIES: Final = Path("/etc/cernvm/repositories.d")
"""One file FQRN.conf for each repository that this machine publishes or replicates."""
ALGORITHMS: Final = {"sha1": Algorithm.SHA1, "rmd160": Algorithm.RMD160, "shake128": Algorithm.SHAKE128}
MOST: Final = 1_000_000
"""Days, seconds or threads that an option takes."""
_SPEC: Final = """
[repository]
# Directory that is served.
storage = string(default='')
# Directory of the key files.
keys = string(default='')
"""


@dataclass(frozen=True)
class Answer:
    """What a verb says: lines for a person, a mapping for a machine, and the exit status."""

    lines: list[str]
    machine: dict[str, object]
    status: int = field(default=EXIT_OK)


Command = Callable[[argparse.Namespace], Answer]


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Command,
    text: str,
    *,
    storage: bool = True,
    keys: bool = True,
    optional: frozenset[str] = frozenset(),
) -> argparse.ArgumentParser:
    """Add a verb with the options that most have; `optional` names places that may stay unknown."""
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("fqrn", metavar="FQRN", help="name of the repository, such as software.example.org")
    if storage:
        parser.add_argument("--storage", type=Path, metavar="DIR", help="directory that is served")
    if keys:
        parser.add_argument("--keys", type=Path, metavar="DIR", help="directory of the key files")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(command=command, optional=optional)
    return parser


def fill_places(arguments: argparse.Namespace) -> None:
    """Take the storage and the keys that were not given from the repository's file.  Raises UserMistake."""
    wanted = [name for name in ("storage", "keys") if name in arguments and getattr(arguments, name) is None]
    if not wanted:
        return
    path = REPOSITORIES / f"{Path(arguments.fqrn).name}.conf"
    written = written_places(path)
    for name in wanted:
        if written[name]:
            setattr(arguments, name, Path(written[name]))
        elif name not in arguments.optional:
            raise UserMistake(f"give --{name} DIR, or write '{name} = DIR' below [repository] in {path}")


def written_places(path: Path) -> Mapping[str, str]:
    """The keys `storage` and `keys` of a repository's file, empty where it has none.  Raises UserMistake."""
    return load(_SPEC, path, required=False)["repository"]


def add_days(parser: argparse.ArgumentParser) -> None:
    """The life of a whitelist."""
    parser.add_argument("--days", type=positive, default=30, metavar="N", help="life of the whitelist (default: 30)")


def add_jobs(parser: argparse.ArgumentParser, what: str, default: str = "processors") -> None:
    """The number of threads."""
    parser.add_argument("--jobs", type=positive, metavar="N", help=f"threads that {what} (default: {default})")


def positive(text: str) -> int:
    """A whole number for an option.  Raises ArgumentTypeError."""
    if not re.fullmatch("[0-9]{1,7}", text) or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MOST}")
    return int(text)


def plain(value: object) -> str:
    """A value as text: times in UTC, all else as it says itself."""
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime) else str(value)
