# SPDX-License-Identifier: BSD-3-Clause
"""The verbs of `cvmfs-server` that keep a repository in order: check."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from cernvm.cvmfs.publish import check_repository
from cernvm.kit.errors import EXIT_FAILED, EXIT_OK

from .server_options import Answer, add_command, add_jobs
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
