# SPDX-License-Identifier: BSD-3-Clause
"""The agent's disk: one directory per attempt, with what has to survive a restart.

    DIRECTORY/name                      what the agent calls itself
    DIRECTORY/jobs/JOB.ATTEMPT/assignment.json   the attempt, from the moment that it was given
    DIRECTORY/jobs/JOB.ATTEMPT/report.json       its end, from the moment that it was known
    DIRECTORY/jobs/JOB.ATTEMPT/work/             the job's own directory

Thread rule: `remove` may run in any thread; the rest is called by the owner's.
"""

from __future__ import annotations

import json
import logging
import shutil
import socket
import stat
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cernvm.copilot.assignment import Assignment, Key, assignment_table, restored_assignment
from cernvm.copilot.errors import BadMessage, CopilotProblem
from cernvm.copilot.job import State
from cernvm.copilot.messages import parse_object
from cernvm.copilot.record import Output, Report
from cernvm.kit.errors import UserMistake, sentence
from cernvm.kit.files import sync_directory, write_atomically

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """What was found on the disk at a start; no report means that the attempt was cut off."""

    assignment: Assignment
    report: Report | None
    stored: bool


class Spool:
    """The directory `directory`, which is made if need be.  Raises UserMistake when that cannot be."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._jobs = directory / "jobs"
        try:
            self._jobs.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self._jobs / ".probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserMistake(f"{directory}: cannot be used for jobs: {error.strerror}") from None

    def name(self, configured: str) -> str:
        """The agent's name: the configured one, or one made once and kept."""
        if configured:
            return configured
        file = self._directory / "name"
        if not file.exists():
            host = "".join(c for c in socket.gethostname() if c.isascii() and (c.isalnum() or c in ".-"))
            write_atomically(file, f"{host[:40] or 'agent'}-{uuid.uuid4().hex[:12]}\n".encode())
        return file.read_text("utf-8").strip()

    def begin(self, assignment: Assignment) -> Path:
        """Make the place of a new attempt and return its work directory.  Raises CopilotProblem."""
        place = self._place(assignment.key)
        try:
            work = place / "work"
            work.mkdir(mode=0o700, parents=True)
            write_atomically(place / "assignment.json", json.dumps(assignment_table(assignment)).encode())
            sync_directory(self._jobs)
        except OSError as error:
            raise CopilotProblem(f"the agent cannot make the job's directory: {sentence(error)}") from error
        return work

    def work(self, key: Key) -> Path:
        """The work directory of an attempt."""
        return self._place(key) / "work"

    def keep(self, assignment: Assignment, report: Report, stored: bool) -> None:
        """Write how the attempt ended; on the disk when this returns.  Raises OSError."""
        table = {
            "verdict": report.verdict,
            "exit_code": report.exit_code,
            "reason": report.reason,
            "outputs": [vars(output) for output in report.outputs],
            "usage": dict(report.usage),
            "stored": stored,
        }
        write_atomically(self._place(assignment.key) / "report.json", json.dumps(table).encode())

    def remove(self, key: Key) -> None:
        """Delete all of an attempt, whatever its program made of the modes in there."""
        place = self._place(key)
        with suppress(FileNotFoundError):
            (place / "assignment.json").unlink()

        def open_and_retry(function: object, path: str, error: object) -> None:
            with suppress(OSError):
                parent = Path(path).parent
                parent.chmod(stat.S_IRWXU)
                Path(path).chmod(stat.S_IRWXU, follow_symlinks=True)
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):
                Path(path).unlink()

        if place.exists():
            shutil.rmtree(place, onerror=open_and_retry)
        if place.exists():
            log.warning("%s could not be deleted whole", place)

    def kept(self) -> Iterator[Kept]:
        """What an earlier run of the agent left; leftovers that make no sense are deleted."""
        for place in sorted(self._jobs.iterdir()):
            try:
                assignment = restored_assignment(parse_object((place / "assignment.json").read_text("utf-8")))
                file = place / "report.json"
                report, stored = _read_report(file) if file.exists() else (None, False)
            except (OSError, BadMessage, ValueError, KeyError, TypeError) as error:
                log.warning("%s is no attempt that can be taken up (%s); deleted", place, error)
                shutil.rmtree(place, ignore_errors=True)
                continue
            yield Kept(assignment, report, stored)

    def _place(self, key: Key) -> Path:
        return self._jobs / f"{key[0]}.{key[1]}"


def _read_report(file: Path) -> tuple[Report, bool]:
    table = json.loads(file.read_text("utf-8"))
    report = Report(
        verdict=State(table["verdict"]),
        exit_code=table["exit_code"],
        reason=table["reason"],
        outputs=tuple(Output(**output) for output in table["outputs"]),
        usage=table["usage"],
    )
    return report, bool(table["stored"])
