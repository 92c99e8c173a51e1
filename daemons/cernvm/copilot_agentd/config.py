# SPDX-License-Identifier: BSD-3-Clause
"""What the admin sets in copilot-agentd.conf.  Values only; thread-safe."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cernvm.copilot.messages import Address
from cernvm.kit.config import Settings
from cernvm.xmpp import settings as xmpp

SPEC: Final = (
    xmpp.spec("copilot-agentd", "copilot-agent")
    + """
# The job managers' XMPP address, local@domain; every instance behind it is asked.
manager = string(default="copilot-jobmanager@localhost")

[agent]
# What this agent calls itself, letters, digits, '.', '_' and '-'; agents that share an account must differ.
# Empty: a name is made at the first start and kept in the directory below.
name = string(default="")
# Jobs that run at the same time.
slots = integer(min=1, max=1024, default=1)
# Where jobs run and where results wait until they are taken; only for this agent.
directory = string(default="/var/lib/copilot-agentd")
# Seconds between two questions for a job while there is none; it begins with a thirtieth of this.
ask_seconds = integer(min=1, max=3600, default=60)
# Seconds for which a result that nobody takes is kept.
keep_seconds = integer(min=60, max=31536000, default=604800)
# Seconds that the transfer of one file may take.
transfer_seconds = integer(min=1, max=604800, default=3600)
# Seconds that cvmfsd may take to mount a repository.
mount_seconds = integer(min=1, max=3600, default=120)
# Name on the system bus; another agent on the same host needs another one.
bus_name = string(default="ch.cern.cernvm.CopilotAgent1")
"""
)

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{0,64}")
_BUS_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+")


@dataclass(frozen=True)
class Config:
    """The configuration of one agent."""

    account: xmpp.AccountFiles
    manager: Address
    name: str
    slots: int
    directory: Path
    ask_seconds: float
    keep_seconds: float
    transfer_seconds: float
    mount_seconds: float
    bus_name: str


def configure(settings: Settings) -> Config:
    """The configuration in `settings`.  Raises UserMistake naming file, section and key."""
    agent = settings["agent"]
    if not _NAME.fullmatch(agent["name"]):
        raise settings.mistake("agent", "name", "it may have 64 letters, digits, '.', '_' and '-'")
    if not _BUS_NAME.fullmatch(agent["bus_name"]):
        raise settings.mistake("agent", "bus_name", f"{agent['bus_name']!r} is not a name of the bus")
    if not Path(agent["directory"]).is_absolute():
        raise settings.mistake("agent", "directory", "it must be an absolute path")
    return Config(
        account=xmpp.account_files(settings),
        manager=xmpp.address(settings, "xmpp", "manager"),
        name=agent["name"],
        slots=agent["slots"],
        directory=Path(agent["directory"]),
        ask_seconds=agent["ask_seconds"],
        keep_seconds=agent["keep_seconds"],
        transfer_seconds=agent["transfer_seconds"],
        mount_seconds=agent["mount_seconds"],
        bus_name=agent["bus_name"],
    )
