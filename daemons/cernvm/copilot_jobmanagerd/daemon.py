# SPDX-License-Identifier: BSD-3-Clause
"""Wires queue, broker, mailbox and bus together.  asyncio owns the main thread; everything here runs in it."""

from __future__ import annotations

from typing import Final

from cernvm.copilot.broker import Broker
from cernvm.copilot.queue import SqliteQueue
from cernvm.copilot.record import Record
from cernvm.copilot.tokens import TokenIssuer
from cernvm.kit.bus import Bus
from cernvm.kit.service import Life, Service
from cernvm.xmpp.mailbox import Mailbox

from .config import SPEC, Config, configure
from .control import NAME, PATH, Control
from .manager import Manager


async def run(config: Config, life: Life[Config]) -> None:
    """Serve until told to stop.  Raises UserMistake for files that are missing, Problem for the bus."""
    account = config.account.account(config.resource)
    issuer = TokenIssuer.from_file(config.token_key)

    def link_changed(up: bool, reason: str) -> None:
        life.status(f"serving agents as {account.jid}" if up else f"no XMPP session: {reason}")

    def changed(record: Record) -> None:
        control.job_changed(record)

    with SqliteQueue(config.queue_file) as queue:
        manager = Manager(queue, Broker(queue, config.rules, issuer.issue), changed)
        control = Control(manager)
        async with Bus.system() as bus:
            await bus.own(NAME)
            bus.export(PATH, control)
            async with Mailbox(account, manager.received, link_changed) as mailbox:
                life.ready(f"connecting to {account.host}:{account.port}")
                await manager.serve(mailbox, life.stopping)


SERVICE: Final = Service(
    name="copilot-jobmanagerd",
    summary="Co-Pilot job manager: keeps the queue of jobs and hands them out to agents over XMPP.",
    spec=SPEC,
    configure=configure,
    run=run,
)
