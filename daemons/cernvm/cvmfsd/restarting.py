# SPDX-License-Identifier: BSD-3-Clause
"""Whether the daemon stops in order to be started again: then it leaves its mounts running for the next one.

systemd knows: it has a job for the unit, of the type `restart`.  On the asyncio loop, over the system bus.
"""

from __future__ import annotations

import logging
from typing import Final

from cernvm.kit.bus import Bus, BusError

log = logging.getLogger(__name__)
SYSTEMD: Final = "org.freedesktop.systemd1"
UNIT: Final = "/org/freedesktop/systemd1/unit/cvmfsd_2eservice"
_DEADLINE: Final = 3.0
_AGAIN: Final = frozenset({"restart", "try-restart"})


async def is_restarting(bus: Bus) -> bool:
    """Ask; False also when nobody can tell."""
    try:
        _, job = await bus.call(SYSTEMD, UNIT, _PROPERTIES, "Get", "ss", f"{SYSTEMD}.Unit", "Job", timeout=_DEADLINE)
        if job == "/":
            return False
        kind = await bus.call(SYSTEMD, job, _PROPERTIES, "Get", "ss", f"{SYSTEMD}.Job", "JobType", timeout=_DEADLINE)
    except BusError as error:
        log.debug("systemd does not tell why this stops: %s", error)
        return False
    return kind in _AGAIN


_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
