# SPDX-License-Identifier: BSD-3-Clause
"""Where the files of a job are, and who may touch them: the job manager's grants for the storage adapter.

The URLs are those of docs/storage.md.  Thread-safe: no state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from .record import Record
from .tokens import Direction, Grant, Scope

TOKEN_NAMES_BYTES: Final = 6000
"""Names of at most this length together are written into a token; longer lists are compared at acceptance only."""


@dataclass(frozen=True)
class Access:
    """The URL to which file names are appended, and the token that opens the place."""

    url: str
    token: str = field(repr=False)


@dataclass(frozen=True)
class Grants:
    """`base` is the storage adapter's URL without a slash at the end; tokens are good for `seconds`."""

    base: str
    seconds: float
    issue: Callable[[Grant], str]

    def upload_inputs(self, record: Record, now: float) -> Access:
        """For the submitter."""
        return self._inputs(record, "put", now)

    def download_inputs(self, record: Record, now: float) -> Access:
        """For the agent that holds the job."""
        return self._inputs(record, "get", now)

    def upload_outputs(self, record: Record, now: float) -> Access:
        """For the agent that holds the job."""
        names, most = record.job.stored_names, record.job.limits.disk_mb << 20
        return self._access(record, f"{record.attempt}/output", "put", "output", names, most, now)

    def download_result(self, record: Record, now: float) -> Access:
        """For the submitter, once the job has ended."""
        return self._access(record, "result", "get", "output", record.job.stored_names, 0, now)

    def _inputs(self, record: Record, direction: Direction, now: float) -> Access:
        files = record.job.input_files
        names, most = tuple(file.name for file in files), sum(file.size for file in files)
        return self._access(record, "input", direction, "input", names, most, now)

    def _access(
        self,
        record: Record,
        place: str,
        direction: Direction,
        scope: Scope,
        names: tuple[str, ...],
        most: int,
        now: float,
    ) -> Access:
        token = self.issue(
            Grant(
                job=record.job.id,
                attempt=record.attempt,
                agent=record.agent,
                direction=direction,
                scope=scope,
                names=names if sum(map(len, names)) <= TOKEN_NAMES_BYTES else None,
                max_bytes=most,
                expires=int(now + self.seconds),
            )
        )
        return Access(f"{self.base}/jobs/{record.job.id}/{place}/", token)
