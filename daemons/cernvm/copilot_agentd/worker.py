# SPDX-License-Identifier: BSD-3-Clause
"""One attempt of a job, from its inputs to its outputs.  On the asyncio loop; cancelling leaves no process.

What the job is to blame for ends as FAILED; what the machine, the network or the software's delivery is to blame for
ends as QUEUED, so that another attempt can be made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

import aiohttp

from cernvm.copilot import sandbox
from cernvm.copilot.agent import Upload
from cernvm.copilot.assignment import Assignment
from cernvm.copilot.errors import JobMistake
from cernvm.copilot.job import Job, State
from cernvm.copilot.messages import Json
from cernvm.copilot.record import Output, Report
from cernvm.copilot.transfer import download, upload
from cernvm.kit.errors import Problem, sentence

from .software import Mounted, Software

DEFAULT_MOUNT_DIRECTORY: Final = "/cvmfs"


class Worker:
    """Runs attempts; `seconds` bounds the transfer of one file."""

    def __init__(self, session: aiohttp.ClientSession, software: Software, seconds: float) -> None:
        self._session = session
        self._software = software
        self._seconds = seconds

    async def run(self, assignment: Assignment, work: Path) -> Report:
        """Do the attempt in the directory `work`."""
        try:
            await self._stage_in(assignment, work)
            mounted = await self._software.prepare(assignment.job.packages)
        except JobMistake as error:
            return Report(State.FAILED, None, str(error))
        except Problem as error:
            return Report(State.QUEUED, None, str(error))
        return await self._execute(assignment.job, work, mounted)

    async def store(self, deed: Upload, work: Path) -> tuple[Output, ...]:
        """Upload all outputs that are there.  Raises TransferFailed."""
        outputs = []
        for name in deed.assignment.job.stored_names:
            source = sandbox.output_file(work, name)
            if source is not None:
                url = f"{deed.url}{quote(name)}"
                stored = await upload(self._session, url, deed.token, source, deadline=self._seconds, name=name)
                outputs.append(Output(stored.name, stored.size, stored.sha256))
        return tuple(outputs)

    async def _stage_in(self, assignment: Assignment, work: Path) -> None:
        for file in assignment.job.input_files:
            to = work / file.name
            try:
                to.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise JobMistake(f"input file {file.name} cannot be placed: {sentence(error)}") from None
            url = f"{assignment.inputs_url}{quote(file.name)}"
            token = assignment.inputs_token
            await download(self._session, url, token, to, file.size, file.sha256, deadline=self._seconds)
            # An input may be the program itself.
            to.chmod(0o700)

    async def _execute(self, job: Job, work: Path, mounted: Sequence[Mounted]) -> Report:
        outcome = await sandbox.run(job, work, _environment(job, mounted), job.limits)
        usage: dict[str, Json] = {
            "wall_seconds": round(outcome.wall_seconds, 3),
            "cpu_seconds": round(outcome.cpu_seconds, 3),
            "max_rss_bytes": outcome.max_rss_bytes,
        }
        used = await self._software.used(mounted)
        if mounted:
            usage["cache_hits"] = used.counters.get("cache_hits", 0)
            usage["bytes_fetched"] = used.counters.get("bytes_received", 0)
            usage["cvmfs"] = dict(used.counters)
        if outcome.ending is sandbox.Ending.STOPPED:
            return Report(State.QUEUED, outcome.exit_code, outcome.reason, usage=usage)
        reason = outcome.reason or _missing(job, work)
        if not reason:
            return Report(State.DONE, outcome.exit_code, "", usage=usage)
        if used.trouble:
            reason = f"{reason}; its software: {used.trouble}"
            return Report(State.QUEUED, outcome.exit_code, reason, usage=usage)
        return Report(State.FAILED, outcome.exit_code, reason, usage=usage)


def _environment(job: Job, mounted: Sequence[Mounted]) -> Mapping[str, str]:
    directory = str(mounted[0].mount_point.parent) if mounted else DEFAULT_MOUNT_DIRECTORY
    return {**job.environment, "CVMFS_MOUNT_DIR": directory, "JOB_ID": job.id}


def _missing(job: Job, work: Path) -> str:
    for name in job.output_files:
        if sandbox.output_file(work, name) is None:
            return f"the job left no output file {name}"
    return ""
