# SPDX-License-Identifier: BSD-3-Clause
"""The verbs of `cvmfs-server` that write content: mkfs, publish, ingest."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO

from cernvm.cvmfs.publish import Bounds, Published, create_repository, ingest, measure, publish_tree
from cernvm.kit.errors import UserMistake, sentence

from .server_options import ALGORITHMS, Answer, add_command, add_days, add_jobs, positive
from .server_progress import watched


def add_publishing(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs."""
    made = add_command(commands, "mkfs", _mkfs, "Make keys and an empty repository.")
    made.add_argument("--hash", choices=list(ALGORITHMS), default="sha1", help="content hash (default: sha1)")
    made.add_argument("--ttl", type=positive, default=240, metavar="SECONDS", help="how long clients keep a revision")
    add_days(made)
    tree = add_command(commands, "publish", _publish, "Make the repository's content equal to a directory.")
    tree.add_argument("tree", metavar="TREE", type=Path, help="the directory to publish")
    add_jobs(tree, "compress")
    tree.add_argument("--ttl", type=positive, metavar="SECONDS", help="how long clients keep a revision")
    put = add_command(commands, "ingest", _ingest, "Put archives into a repository, or take paths out of it.")
    put.add_argument(
        "archives", nargs="*", metavar="ARCHIVE", help="tar, compressed or not, zip or wheel; - is the input"
    )
    put.add_argument("--base", default="", metavar="PATH", help="where in the repository (default: its root)")
    put.add_argument(
        "--delete", action="append", default=[], metavar="PATH", help="take this away first; may be repeated"
    )
    put.add_argument("--catalog", action="store_true", help="give the base a catalog of its own")
    put.add_argument("--max-files", type=int, default=10_000_000, metavar="N", help="refuse archives with more entries")
    put.add_argument("--max-bytes", type=int, default=1 << 40, metavar="N", help="refuse archives with more content")
    add_jobs(put, "compress")


def _mkfs(arguments: argparse.Namespace) -> Answer:
    done = create_repository(
        arguments.fqrn,
        arguments.storage,
        arguments.keys,
        algorithm=ALGORITHMS[arguments.hash],
        whitelist_days=arguments.days,
        ttl=arguments.ttl,
    )
    public = arguments.keys / f"{arguments.fqrn}.pub"
    lines = [
        f"{done.fqrn}: made in {arguments.storage}, revision {done.revision}, root {done.root_hash}",
        f"clients need {public}; keep {arguments.fqrn}.masterkey off this machine if you can",
    ]
    return Answer(lines, {**asdict(done), "public_key": str(public)})


def _publish(arguments: argparse.Namespace) -> Answer:
    tree: Path = arguments.tree
    with watched("publishing", arguments.json or not tree.is_dir(), lambda: measure(tree)) as progress:
        done = publish_tree(
            arguments.fqrn,
            tree,
            arguments.storage,
            arguments.keys,
            jobs=arguments.jobs,
            progress=progress,
            ttl=arguments.ttl,
        )
    return Answer(published_lines(done), asdict(done))


def _ingest(arguments: argparse.Namespace) -> Answer:
    with ExitStack() as stack:
        archives: list[tuple[str, IO[bytes]]] = [
            (name, sys.stdin.buffer if name == "-" else stack.enter_context(_opened(Path(name))))
            for name in arguments.archives
        ]
        progress = stack.enter_context(watched("ingesting", arguments.json, lambda: None))
        done = ingest(
            arguments.fqrn,
            arguments.storage,
            arguments.keys,
            archives,
            base=arguments.base,
            delete=arguments.delete,
            catalog=arguments.catalog,
            bounds=Bounds(arguments.max_files, arguments.max_bytes),
            jobs=arguments.jobs,
            progress=progress,
        )
    return Answer(published_lines(done), asdict(done))


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserMistake(f"cannot read the archive {sentence(error)}") from error


def published_lines(done: Published) -> list[str]:
    """A new revision for a person."""
    rate = done.bytes / max(done.seconds, 0.001) / 1e6
    return [
        f"{done.fqrn}: revision {done.revision}, root {done.root_hash}",
        f"{done.entries} entries, {done.files} files, {done.bytes / 1e6:.1f} MB in {done.seconds:.1f} s "
        f"({rate:.1f} MB/s, {done.files / max(done.seconds, 0.001):.0f} files/s)",
        f"{done.objects_new} new objects, {done.bytes_stored / 1e6:.1f} MB stored; "
        f"{done.catalogs} catalogs, {done.catalogs_kept} of them as before",
    ]
