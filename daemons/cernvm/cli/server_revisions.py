# SPDX-License-Identifier: BSD-3-Clause
"""The verbs of `cvmfs-server` about revisions: info, list, tag, rollback, diff."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from cernvm.cvmfs.publish import (
    add_tag,
    compare_revisions,
    describe,
    list_tags,
    remove_tag,
    roll_back,
)
from cernvm.cvmfs.publish.ledger import PREVIOUS, TRUNK, Tag
from cernvm.kit.errors import Problem, UserMistake

from . import server_options
from .server_options import Answer, add_command, plain


def add_revisions(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs."""
    add_command(commands, "info", _info, "Describe the newest revision.", keys=False)
    listing = commands.add_parser("list", help="List the repositories of this machine.")
    listing.add_argument("--below", type=Path, metavar="DIR", help="look into the directories in DIR instead")
    listing.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    listing.set_defaults(command=_list)
    keys_for_writing = frozenset({"keys"})
    tag = add_command(commands, "tag", _tag, "List, add or remove names of revisions.", optional=keys_for_writing)
    tag.add_argument("action", choices=("list", "add", "remove"), help="what to do")
    tag.add_argument("name", nargs="?", metavar="NAME", help="the tag to add or remove")
    tag.add_argument("--revision", metavar="REVISION", help="number or tag to name (default: the newest)")
    tag.add_argument("--description", default="", metavar="TEXT", help="what the tag is for")
    rollback = add_command(commands, "rollback", _rollback, "Publish the content of an older revision again.")
    rollback.add_argument("--to", default=PREVIOUS, metavar="REVISION", help=f"number or tag (default: {PREVIOUS})")
    diff = add_command(commands, "diff", _diff, "Show what changed between two revisions.", keys=False)
    diff.add_argument("old", nargs="?", default=PREVIOUS, metavar="OLD", help=f"number or tag (default: {PREVIOUS})")
    diff.add_argument("new", nargs="?", default=TRUNK, metavar="NEW", help=f"number or tag (default: {TRUNK})")


def _info(arguments: argparse.Namespace) -> Answer:
    found = asdict(describe(arguments.fqrn, arguments.storage))
    return Answer([f"{name.replace('_', ' '):<19} {plain(value)}" for name, value in found.items()], found)


def _list(arguments: argparse.Namespace) -> Answer:
    lines: list[str] = []
    machine: list[dict[str, object]] = []
    for fqrn, storage in sorted(_places(arguments.below)):
        try:
            found = describe(fqrn, storage)
        except Problem as problem:
            lines.append(f"{fqrn:<32} {problem}")
            continue
        lines.append(f"{fqrn:<32} revision {found.revision:<6} {plain(found.published)}  {storage}")
        machine.append({"storage": str(storage), **asdict(found)})
    return Answer(lines, {"repositories": machine})


def _places(below: Path | None) -> Iterator[tuple[str, Path]]:
    """Names and storage directories of the repositories."""
    if below is not None:
        if not below.is_dir():
            raise UserMistake(f"{below}: is not a directory")
        for path in below.iterdir():
            if (path / ".cvmfspublished").is_file():
                yield path.name, path
        return
    for path in server_options.REPOSITORIES.glob("*.conf"):
        storage = server_options.written_places(path)["storage"]
        if storage:
            yield path.stem, Path(storage)


def _tag(arguments: argparse.Namespace) -> Answer:
    fqrn, storage = arguments.fqrn, arguments.storage
    if arguments.action == "list":
        tags = list_tags(fqrn, storage)
        return Answer([_line(tag) for tag in tags], {"fqrn": fqrn, "tags": [_machine(tag) for tag in tags]})
    if arguments.name is None or arguments.keys is None:
        raise UserMistake(f"tag {arguments.action} needs a NAME and --keys DIR")
    if arguments.action == "add":
        tag = add_tag(
            fqrn,
            storage,
            arguments.keys,
            arguments.name,
            revision=arguments.revision,
            description=arguments.description,
        )
        return Answer([_line(tag)], {"fqrn": fqrn, **_machine(tag)})
    remove_tag(fqrn, storage, arguments.keys, arguments.name)
    return Answer([f"{fqrn}: removed the tag {arguments.name}"], {"fqrn": fqrn, "name": arguments.name})


def _line(tag: Tag) -> str:
    return f"{tag.name:<24} revision {tag.revision:<6} {plain(_when(tag))}  {tag.root_hash}  {tag.description}".rstrip()


def _machine(tag: Tag) -> dict[str, object]:
    return {**asdict(tag), "root_hash": str(tag.root_hash), "timestamp": _when(tag)}


def _when(tag: Tag) -> datetime:
    return datetime.fromtimestamp(tag.timestamp, tz=UTC)


def _rollback(arguments: argparse.Namespace) -> Answer:
    done = roll_back(arguments.fqrn, arguments.storage, arguments.keys, arguments.to)
    line = f"{done.fqrn}: revision {done.revision} has the content of revision {done.content_of}, root {done.root_hash}"
    return Answer([line], asdict(done))


def _diff(arguments: argparse.Namespace) -> Answer:
    found = list(compare_revisions(arguments.fqrn, arguments.storage, arguments.old, arguments.new))
    signs = {"added": "+", "removed": "-", "changed": "~"}
    lines = [
        f"{signs[it.change]} {it.path}  {it.new_kind or it.old_kind}"
        + (f" {it.old_size} -> {it.new_size} bytes" if it.old_size != it.new_size else "")
        + (f" ({', '.join(it.what)})" if it.what else "")
        for it in found
    ]
    machine = {"fqrn": arguments.fqrn, "old": arguments.old, "new": arguments.new}
    return Answer(lines or ["no difference"], {**machine, "differences": [asdict(it) for it in found]})
