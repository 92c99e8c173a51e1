# SPDX-License-Identifier: BSD-3-Clause
"""ch.cern.cernvm.CopilotAgent1 on the bus; translates and decides nothing.  On the asyncio loop."""

from __future__ import annotations

from typing import Final

from cernvm.copilot.agent import Phase
from cernvm.kit.bus import BusObject, method, prop, signal

from .runner import Runner

INTERFACE: Final = "ch.cern.cernvm.CopilotAgent1"
PATH: Final = "/ch/cern/cernvm/CopilotAgent1"


class Control(BusObject):
    """The agent as an object on the bus; docs/dbus-copilot.md is the contract."""

    interface = INTERFACE

    def __init__(self, name: str, slots: int) -> None:
        self._name = name
        self._slots = slots
        self._runner: Runner | None = None
        self._shown: tuple[str, dict[str, str]] = ("", {})

    def show(self, runner: Runner) -> None:
        """Show what `runner` does."""
        self._runner = runner

    @method()
    async def Drain(self) -> None:
        """Finish what runs and take no further job until the next start."""
        if self._runner is not None:
            self._runner.drain()

    @prop("s")
    def Name(self) -> str:
        """What the agent calls itself towards the job manager."""
        return self._name

    @prop("s")
    def State(self) -> str:
        """One of disconnected, draining, running, idle."""
        runner = self._runner
        if runner is None or not runner.connected:
            return "disconnected"
        if runner.agent.draining:
            return "draining"
        return "running" if Phase.RUNNING in runner.agent.jobs.values() else "idle"

    @prop("s")
    def Job(self) -> str:
        """The id of a job that runs; empty when none does."""
        return next((job for job, phase in self.Jobs().items() if phase == Phase.RUNNING), "")

    @prop("a{ss}")
    def Jobs(self) -> dict[str, str]:
        """All jobs held: id and phase (running, asking, storing, reporting)."""
        if self._runner is None:
            return {}
        return {job: phase.value for (job, _), phase in self._runner.agent.jobs.items()}

    @prop("u")
    def Slots(self) -> int:
        """How many jobs may run at the same time."""
        return self._slots

    @signal("s")
    def JobStarted(self, job: str) -> None:
        """A job's work begins."""

    @signal("sss")
    def JobFinished(self, job: str, verdict: str, reason: str) -> None:
        """A job's work has ended here; verdict is done, failed or queued (another attempt may follow)."""

    def job_started(self, job: str) -> None:
        """See runner.Watcher."""
        self.JobStarted(job)

    def job_finished(self, job: str, verdict: str, reason: str) -> None:
        """See runner.Watcher."""
        self.JobFinished(job, verdict, reason)

    def state_changed(self) -> None:
        """See runner.Watcher; silent when nothing that is shown has changed."""
        now = (self.State(), self.Jobs())
        if now != self._shown:
            self._shown = now
            self.changed("State", "Job", "Jobs")
