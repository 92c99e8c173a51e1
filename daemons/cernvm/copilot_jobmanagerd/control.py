# SPDX-License-Identifier: BSD-3-Clause
"""ch.cern.cernvm.CopilotJobManager1 on the bus; translates and decides nothing.  On the asyncio loop."""

from __future__ import annotations

import json
from typing import Any, Final

from cernvm.copilot.errors import BadMessage
from cernvm.copilot.job import State
from cernvm.copilot.messages import parse_object
from cernvm.copilot.record import Record, shown
from cernvm.kit.bus import BusObject, Caller, method, prop, signal
from cernvm.kit.errors import UserMistake

from .manager import Manager

NAME: Final = "ch.cern.cernvm.CopilotJobManager1"
PATH: Final = "/ch/cern/cernvm/CopilotJobManager1"
MOST_LISTED: Final = 1000


class Control(BusObject):
    """The job manager as an object on the bus; docs/dbus-copilot.md is the contract."""

    interface = NAME

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    @method("s", "a{sv}", caller=True)
    async def Submit(self, job: str, caller: Caller) -> dict[str, Any]:
        """Take in a job (JSON); returns id, url and token for its inputs."""
        try:
            table = parse_object(job)
        except BadMessage as error:
            raise UserMistake(f"the job is not a JSON object: {error}") from None
        record, access = self._manager.submit(dict(table), caller.uid)
        return {"id": record.job.id, "url": access.url, "token": access.token}

    @method("s", "", caller=True)
    async def Release(self, job: str, caller: Caller) -> None:
        """The inputs are uploaded: the job may run."""
        self._manager.release(job, caller.uid)

    @method("s", "", caller=True)
    async def Cancel(self, job: str, caller: Caller) -> None:
        """End a job whatever it does."""
        self._manager.cancel(job, caller.uid)

    @method("s", "s")
    async def Get(self, job: str) -> str:
        """All that is known of one job (JSON)."""
        return json.dumps(shown(self._manager.get(job)))

    @method("a{sv}", "s")
    async def List(self, wanted: dict[str, Any]) -> str:
        """Jobs (a JSON list without their descriptions); `wanted` may have states (as) and most (u)."""
        unknown = set(wanted) - {"states", "most"}
        if unknown:
            raise UserMistake(f"List knows the filters states and most, not {sorted(unknown)[0]}")
        try:
            states = [State(name) for name in wanted.get("states", [])]
        except ValueError as error:
            raise UserMistake(f"{error}; the states are {', '.join(State)}") from None
        most = min(int(wanted.get("most", MOST_LISTED)), MOST_LISTED)
        return json.dumps([_short(record) for record in self._manager.jobs(states, most)])

    @method("s", "a{sv}", caller=True)
    async def ResultGrant(self, job: str, caller: Caller) -> dict[str, Any]:
        """Where the accepted outputs are, and the token to read them: url, token."""
        access = self._manager.result(job, caller.uid)
        return {"url": access.url, "token": access.token}

    @prop("a{su}")
    def Counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        return self._manager.counts()

    @prop("t")
    def Refused(self) -> int:
        """Messages about attempts that their agent does not hold, or of accounts that may take no jobs."""
        return self._manager.refused

    @signal("ss")
    def JobChanged(self, job: str, state: str) -> None:
        """A job has a new state."""

    def job_changed(self, record: Record) -> None:
        """Tell the bus."""
        self.JobChanged(record.job.id, record.state.value)


def _short(record: Record) -> dict[str, Any]:
    full = shown(record)
    return {key: full[key] for key in full if key not in ("job", "history")}
