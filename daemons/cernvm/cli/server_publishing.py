# SPDX-License-Identifier: BSD-3-Clause
"""The verbs of `cvmfs-server` that write content: mkfs, publish."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from cernvm.cvmfs.publish import Published, create_repository, measure, publish_tree

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
