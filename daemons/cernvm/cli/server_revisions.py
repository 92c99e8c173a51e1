# SPDX-License-Identifier: BSD-3-Clause
"""The verbs of `cvmfs-server` about revisions: info."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from cernvm.cvmfs.publish import describe

from .server_options import Answer, add_command, plain


def add_revisions(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs."""
    add_command(commands, "info", _info, "Describe the newest revision.", keys=False)


def _info(arguments: argparse.Namespace) -> Answer:
    found = asdict(describe(arguments.fqrn, arguments.storage))
    return Answer([f"{name.replace('_', ' '):<18} {plain(value)}" for name, value in found.items()], found)
