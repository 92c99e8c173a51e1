# SPDX-License-Identifier: BSD-3-Clause
"""The verbs of `cvmfs-server` about who may sign: keys, whitelist, resign."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from cernvm.cvmfs.publish import install_whitelist, make_keys, resign_whitelist, sign_whitelist
from cernvm.kit.errors import UserMistake

from .server_options import ALGORITHMS, Answer, add_command, add_days


def add_trust(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs."""
    keys = add_command(
        commands, "keys", _keys, "Make the keys of a repository, or a new repository key.", storage=False
    )
    keys.add_argument("--rotate", action="store_true", help="replace the repository key; the master key stays")
    add_days(add_command(commands, "resign", _resign, "Sign a new whitelist with the master key."))
    text = "Sign a whitelist into a file with an offline master key, or install one."
    whitelist = add_command(commands, "whitelist", _whitelist, text, optional=frozenset({"storage"}))
    what = whitelist.add_mutually_exclusive_group(required=True)
    what.add_argument("--sign", type=Path, metavar="FILE", help="write a new whitelist into FILE; needs no storage")
    what.add_argument("--install", type=Path, metavar="FILE", help="check FILE and serve it; needs no master key")
    whitelist.add_argument(
        "--certificate", type=Path, action="append", metavar="FILE", help="certificate to list (default: FQRN.crt)"
    )
    whitelist.add_argument("--hash", choices=list(ALGORITHMS), default="sha1", help="hash of the repository")
    add_days(whitelist)


def _keys(arguments: argparse.Namespace) -> Answer:
    done = make_keys(arguments.fqrn, arguments.keys, rotate=arguments.rotate)
    lines = [f"{done.fqrn}: {'wrote ' + ', '.join(done.made) if done.made else 'all keys are there'}, {done.directory}"]
    if arguments.rotate:
        lines.append("sign a new whitelist with 'cvmfs-server resign' before the next publication")
    return Answer(lines, {**asdict(done), "directory": str(done.directory)})


def _resign(arguments: argparse.Namespace) -> Answer:
    return _valid(arguments, resign_whitelist(arguments.fqrn, arguments.storage, arguments.keys, days=arguments.days))


def _whitelist(arguments: argparse.Namespace) -> Answer:
    if arguments.install is not None:
        if arguments.storage is None:
            raise UserMistake("give --storage DIR, the directory that is served")
        return _valid(
            arguments, install_whitelist(arguments.fqrn, arguments.storage, arguments.install, arguments.keys)
        )
    listed = arguments.certificate or [arguments.keys / f"{arguments.fqrn}.crt"]
    expires = sign_whitelist(
        arguments.fqrn,
        arguments.keys,
        listed,
        arguments.sign,
        algorithm=ALGORITHMS[arguments.hash],
        days=arguments.days,
    )
    return _valid(arguments, expires)


def _valid(arguments: argparse.Namespace, expires: datetime) -> Answer:
    line = f"{arguments.fqrn}: whitelist valid until {expires:%Y-%m-%d %H:00} UTC"
    return Answer([line], {"fqrn": arguments.fqrn, "whitelist_expires": expires})
