# SPDX-License-Identifier: BSD-3-Clause
"""The verb of `cvmfs-server` for Stratum 1 servers: snapshot."""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from random import Random

from cernvm import __version__
from cernvm.cvmfs.counters import Counters
from cernvm.cvmfs.fetch import Fetcher
from cernvm.cvmfs.http import Http, Transport
from cernvm.cvmfs.publish import replicate
from cernvm.cvmfs.routes import DIRECT

from .server_options import Answer, add_command, add_jobs
from .server_progress import watched


def add_replica(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    snapshot = add_command(commands, "snapshot", _snapshot, "Copy a repository from its servers.", keys=False)
    snapshot.add_argument(
        "--url", action="append", required=True, metavar="URL", help="where the repository is; repeat for more servers"
    )
    snapshot.add_argument("--public", type=Path, required=True, metavar="FILE", help="public master key")
    snapshot.add_argument("--proxy", default=DIRECT, metavar="URL", help="HTTP proxy (default: none)")
    add_jobs(snapshot, "fetch", "16")


def _snapshot(arguments: argparse.Namespace) -> Answer:
    transport = Transport(
        servers=tuple(arguments.url),
        proxy_groups=((arguments.proxy,),),
        user_agent=f"cernvm-snapshot {__version__}",
    )
    counters = Counters()
    with closing(Http(transport, counters)) as http, watched("copying", arguments.json, lambda: None) as progress:
        done = replicate(
            arguments.fqrn,
            arguments.storage,
            arguments.public,
            Fetcher(transport, http, counters, random=Random()),
            jobs=arguments.jobs or 16,
            on_files=progress.files,
            on_bytes=progress.bytes,
        )
    lines = [
        f"{done.fqrn}: revision {done.revision}, root {done.root_hash}",
        f"{done.objects_new} new objects, {done.catalogs_new} of them catalogs, {done.bytes_new / 1e6:.1f} MB "
        f"in {done.seconds:.1f} s",
    ]
    if done.revisions_missing:
        lines.append(f"{done.revisions_missing} tagged revisions are not there any more")
    return Answer(lines, asdict(done))
