# SPDX-License-Identifier: BSD-3-Clause
"""The D-Bus face of the storage adapter: what it holds and whether it is connected.  It decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cernvm.copilot.store import Totals
from cernvm.kit.bus import BusObject, prop

NAME: Final = "ch.cern.cernvm.CopilotStorage1"
PATH: Final = "/ch/cern/cernvm/CopilotStorage1"


@dataclass(frozen=True)
class State:
    """What there is to show at one moment."""

    totals: Totals
    url: str
    connected: bool


class Control(BusObject):
    """`ch.cern.cernvm.CopilotStorage1`: read-only."""

    interface = NAME

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state

    @prop("t")
    def BytesStored(self) -> int:
        """Bytes of all accepted results."""
        return self._state().totals.bytes_stored

    @prop("u")
    def ResultsAccepted(self) -> int:
        """Jobs whose result is here."""
        return self._state().totals.results

    @prop("t")
    def BytesFree(self) -> int:
        """Bytes free on the disk of the store."""
        return self._state().totals.bytes_free

    @prop("s")
    def Url(self) -> str:
        """Where the HTTP side listens."""
        return self._state().url

    @prop("b")
    def Connected(self) -> bool:
        """Whether there is a session with the XMPP server."""
        return self._state().connected
