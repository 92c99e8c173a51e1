# SPDX-License-Identifier: BSD-3-Clause
"""Wires the agent's machine, its disk, mailbox and bus together.  asyncio owns the main thread; all runs in it."""

from __future__ import annotations

import os
import platform
import random
import socket
from collections.abc import Mapping
from typing import Final

import aiohttp

from cernvm.copilot.agent import Agent, Habits
from cernvm.copilot.messages import Json
from cernvm.kit.bus import Bus
from cernvm.kit.service import Life, Service
from cernvm.xmpp.mailbox import Mailbox

from .config import SPEC, Config, configure
from .control import PATH, Control
from .runner import Runner
from .software import Software
from .spool import Spool
from .worker import Worker


async def run(config: Config, life: Life[Config]) -> None:
    """Serve until told to stop.  Raises UserMistake for files that are missing, Problem for the bus."""
    spool = Spool(config.directory)
    name = spool.name(config.name)
    account = config.account.account(resource=name)
    habits = Habits(
        manager=config.manager,
        name=name,
        slots=config.slots,
        ask_first=config.ask_seconds / 30,
        ask_cap=config.ask_seconds,
        keep_seconds=config.keep_seconds,
    )
    control = Control(name, config.slots)
    async with Bus.system() as bus, aiohttp.ClientSession() as session:
        await bus.own(config.bus_name)
        worker = Worker(session, Software(bus, config.mount_seconds), config.transfer_seconds)
        runner = Runner(Agent(habits, random.random, host()), spool, worker, control)
        control.show(runner)
        bus.export(PATH, control)

        def link_changed(up: bool, reason: str) -> None:
            life.status(f"connected as {account.jid}/{name}" if up else f"no XMPP session: {reason}")
            runner.link_changed(up)

        async with Mailbox(account, runner.received, link_changed) as mailbox:
            life.ready(f"connecting to {account.host}:{account.port}")
            await runner.serve(mailbox, life.stopping)


def host() -> Mapping[str, Json]:
    """This machine, as the job manager is told: memory in MB."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return {
        "hostname": socket.gethostname(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "kernel": platform.release(),
        "cpus": os.cpu_count() or 1,
        "memory_mb": memory,
    }


SERVICE: Final = Service(
    name="copilot-agentd",
    summary="Co-Pilot agent: gets jobs over XMPP, runs them with software from CernVM-FS, stores their results.",
    spec=SPEC,
    configure=configure,
    run=run,
)
