# SPDX-License-Identifier: BSD-3-Clause
"""`cvmfs-server`: make repositories and publish to them.  A leaf: arguments in, one sentence or a table out.

Exit status: 0 done; 1 something failed; 2 the arguments or the files that they name are wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from cernvm import __version__
from cernvm.cvmfs.hashes import Algorithm
from cernvm.cvmfs.publish import (
    Progress,
    Published,
    create_repository,
    describe,
    measure,
    publish_tree,
    resign_whitelist,
)
from cernvm.kit.errors import EXIT_FAILED, EXIT_OK, Problem, sentence

LINE_EVERY: Final = 10.0
"""Seconds between lines of progress where there is no terminal."""
MOST: Final = 1_000_000
"""Days, seconds or threads that an option takes."""
_ALGORITHMS: Final = {"sha1": Algorithm.SHA1, "rmd160": Algorithm.RMD160, "shake128": Algorithm.SHAKE128}


class _Answer(Protocol):
    """What a subcommand prints: lines for a person, a mapping for a machine."""

    def __call__(self, arguments: argparse.Namespace) -> tuple[list[str], dict[str, object]]: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    arguments = _parser().parse_args(argv)
    command: _Answer = arguments.command
    try:
        lines, machine = command(arguments)
    except Problem as problem:
        print(f"cvmfs-server: {problem}", file=sys.stderr)
        return problem.exit_status
    except OSError as error:
        print(f"cvmfs-server: {sentence(error)}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("cvmfs-server: interrupted; the served revision is as it was", file=sys.stderr)
        return EXIT_FAILED
    print(json.dumps(machine, default=_plain) if arguments.json else "\n".join(lines))
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cvmfs-server", description="Make CernVM-FS repositories and publish to them."
    )
    parser.add_argument("--version", action="version", version=f"cvmfs-server {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: _Answer, text: str, *, keys: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("fqrn", metavar="FQRN", help="name of the repository, such as software.example.org")
        sub.add_argument("--storage", type=Path, required=True, metavar="DIR", help="directory that is served")
        if keys:
            sub.add_argument("--keys", type=Path, required=True, metavar="DIR", help="directory of the key files")
        sub.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        sub.set_defaults(command=command)
        return sub

    made = add("mkfs", _mkfs, "Make keys and an empty repository.")
    made.add_argument("--hash", choices=list(_ALGORITHMS), default="sha1", help="content hash (default: sha1)")
    made.add_argument("--ttl", type=_positive, default=240, metavar="SECONDS", help="how long clients keep a revision")
    _add_days(made)
    published = add("publish", _publish, "Make the repository's content equal to a directory.")
    published.add_argument("tree", metavar="TREE", type=Path, help="the directory to publish")
    published.add_argument("--jobs", type=_positive, metavar="N", help="threads that compress (default: processors)")
    published.add_argument("--ttl", type=_positive, metavar="SECONDS", help="how long clients keep a revision")
    _add_days(add("resign", _resign, "Sign a new whitelist with the master key."))
    add("info", _info, "Describe the newest revision.", keys=False)
    return parser


def _add_days(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--days", type=_positive, default=30, metavar="N", help="life of the whitelist (default: 30)")


def _positive(text: str) -> int:
    if not re.fullmatch("[0-9]{1,7}", text) or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MOST}")
    return int(text)


def _mkfs(arguments: argparse.Namespace) -> tuple[list[str], dict[str, object]]:
    done = create_repository(
        arguments.fqrn,
        arguments.storage,
        arguments.keys,
        algorithm=_ALGORITHMS[arguments.hash],
        whitelist_days=arguments.days,
        ttl=arguments.ttl,
    )
    public = arguments.keys / f"{arguments.fqrn}.pub"
    lines = [
        f"{done.fqrn}: made in {arguments.storage}, revision {done.revision}, root {done.root_hash}",
        f"clients need {public}; keep {arguments.fqrn}.masterkey off this machine if you can",
    ]
    return lines, {**asdict(done), "public_key": str(public)}


def _publish(arguments: argparse.Namespace) -> tuple[list[str], dict[str, object]]:
    with _watched(arguments.tree, arguments.json) as progress:
        done = publish_tree(
            arguments.fqrn,
            arguments.tree,
            arguments.storage,
            arguments.keys,
            jobs=arguments.jobs,
            progress=progress,
            ttl=arguments.ttl,
        )
    return _published(done), asdict(done)


def _published(done: Published) -> list[str]:
    rate = done.bytes / max(done.seconds, 0.001) / 1e6
    return [
        f"{done.fqrn}: revision {done.revision}, root {done.root_hash}",
        f"{done.entries} entries, {done.files} files, {done.bytes / 1e6:.1f} MB in {done.seconds:.1f} s "
        f"({rate:.1f} MB/s, {done.files / max(done.seconds, 0.001):.0f} files/s)",
        f"{done.objects_new} new objects, {done.bytes_stored / 1e6:.1f} MB stored; "
        f"{done.catalogs} catalogs, {done.catalogs_kept} of them as before",
    ]


def _resign(arguments: argparse.Namespace) -> tuple[list[str], dict[str, object]]:
    expires = resign_whitelist(arguments.fqrn, arguments.storage, arguments.keys, days=arguments.days)
    line = f"{arguments.fqrn}: whitelist valid until {expires:%Y-%m-%d %H:00} UTC"
    return [line], {"fqrn": arguments.fqrn, "whitelist_expires": expires}


def _info(arguments: argparse.Namespace) -> tuple[list[str], dict[str, object]]:
    found = asdict(describe(arguments.fqrn, arguments.storage))
    return [f"{name.replace('_', ' '):<18} {_plain(value)}" for name, value in found.items()], found


def _plain(value: object) -> str:
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime) else str(value)


@contextmanager
def _watched(tree: Path, quiet: bool) -> Iterator[Progress]:
    """Bars with files, bytes, rate and time left on a terminal, a line now and then elsewhere."""
    console = Console(stderr=True)
    if quiet or not tree.is_dir():
        yield Progress()
    elif not console.is_terminal:
        lines = _Lines(time.monotonic)
        yield Progress(files=lines.files, bytes=lines.bytes)
    else:
        files, size = measure(tree)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[files]}/" + f"{files} files"),
        )
        with Bars(*columns, console=console, transient=True) as bars:
            task = bars.add_task("publishing", total=size, files=0)
            done = count(1)  # files are counted by one thread, bytes by many

            def advance_files(more: int) -> None:
                for _ in range(more):
                    bars.update(task, files=next(done))

            yield Progress(files=advance_files, bytes=lambda more: bars.advance(task, more))


class _Lines:
    """Progress as plain lines, the first after some seconds.  Called from any thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._next = clock() + LINE_EVERY
        self._files = self._bytes = 0

    def files(self, more: int) -> None:
        """`more` files are done."""
        self._count(files=more)

    def bytes(self, more: int) -> None:
        """`more` bytes of files are done."""
        self._count(size=more)

    def _count(self, files: int = 0, size: int = 0) -> None:
        with self._lock:
            self._files += files
            self._bytes += size
            if self._clock() >= self._next:
                self._next += LINE_EVERY
                print(f"publishing: {self._files} files, {self._bytes / 1e6:.1f} MB", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
