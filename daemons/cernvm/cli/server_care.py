# SPDX-License-Identifier: BSD-3-Clause
"""The verbs of `cvmfs-server` that keep a repository in order: check, gc, rmfs."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cernvm.cvmfs.publish import check_repository, collect_garbage, describe, remove_repository
from cernvm.kit.errors import EXIT_FAILED, EXIT_OK

from .server_options import Answer, add_command, add_jobs, positive
from .server_progress import watched


def add_care(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs."""
    check = add_command(commands, "check", _check, "Look whether a repository is whole.", keys=False)
    check.add_argument(
        "--public", type=Path, metavar="FILE", help="public master key; checks the whitelist's signature"
    )
    check.add_argument("--objects", action="store_true", help="read, inflate and hash every object")
    check.add_argument("--tag", metavar="NAME", help="look at the tagged revision instead of the newest")
    add_jobs(check, "hash")
    text = "Remove what only old revisions refer to."
    garbage = add_command(commands, "gc", _gc, text, optional=frozenset({"keys"}))
    kept = garbage.add_mutually_exclusive_group()
    kept.add_argument("--keep", type=positive, metavar="N", help="keep the last N revisions")
    kept.add_argument("--days", type=positive, metavar="N", help="keep the revisions of the last N days (default: 3)")
    garbage.add_argument("--dry-run", action="store_true", help="only count what would go")
    gone = add_command(commands, "rmfs", _rmfs, "Take a repository away; its keys stay.", keys=False)
    gone.add_argument("--yes", action="store_true", help="do it; without this only say what would go")


def _check(arguments: argparse.Namespace) -> Answer:
    with watched("checking", arguments.json, lambda: None) as progress:
        report = check_repository(
            arguments.fqrn,
            arguments.storage,
            public=arguments.public,
            tag=arguments.tag,
            objects=arguments.objects,
            jobs=arguments.jobs or 2,
            on_objects=progress.files,
        )
    lines = [f"{fault.where}: {fault.what}" for fault in report.faults]
    if report.fault_count > len(report.faults):
        lines.append(f"and {report.fault_count - len(report.faults)} more")
    read = f"{report.objects_read} of them read" if arguments.objects else "not read"
    lines.append(
        f"{report.fqrn}: revision {report.revision}, {report.catalogs} catalogs, {report.entries} entries, "
        f"{report.objects} objects ({read}): {'no fault' if report.good else f'{report.fault_count} faults'}"
    )
    status = EXIT_OK if report.good else EXIT_FAILED
    return Answer(lines, {**asdict(report), "good": report.good}, status)


def _gc(arguments: argparse.Namespace) -> Answer:
    done = collect_garbage(
        arguments.fqrn,
        arguments.storage,
        arguments.keys,
        keep=arguments.keep,
        newer_than=datetime.now(UTC) - timedelta(days=arguments.days) if arguments.days else None,
        dry_run=arguments.dry_run,
    )
    verb = "would remove" if done.dry_run else "removed"
    line = (
        f"{done.fqrn}: {verb} {done.revisions_removed} revisions, {done.catalogs_removed} catalogs, "
        f"{done.objects_removed} objects, {done.bytes_removed / 1e6:.1f} MB; {done.revisions_kept} revisions stay"
    )
    return Answer([line], asdict(done))


def _rmfs(arguments: argparse.Namespace) -> Answer:
    found = describe(arguments.fqrn, arguments.storage)
    if arguments.yes:
        remove_repository(arguments.fqrn, arguments.storage)
    what = f"{found.fqrn}: revision {found.revision} with {found.entries} entries in {arguments.storage}"
    line = f"{what} is gone" if arguments.yes else f"{what} would go; say --yes to take it away"
    return Answer([line], {"fqrn": found.fqrn, "removed": arguments.yes})
