# SPDX-License-Identifier: BSD-3-Clause
"""Wires the storage adapter: store, HTTP side, XMPP side, D-Bus face."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Final

from cernvm.copilot.messages import Address, Message
from cernvm.copilot.store import Store
from cernvm.copilot.tokens import TokenVerifier
from cernvm.kit.bus import Bus
from cernvm.kit.service import Life, Service
from cernvm.xmpp.mailbox import Mailbox

from .commands import Commands
from .config import SPEC, Config, configure
from .control import NAME, PATH, Control, State
from .http import Gate, Limits, listening, serving

log: Final = logging.getLogger(__name__)


async def run(config: Config, life: Life[Config]) -> None:
    """Serve until told to stop.  Raises UserMistake (a key file, the port, the directory), Problem (the bus)."""
    verifier = TokenVerifier.from_file(config.public_key)
    account = config.account.account("storage")
    limits = Limits(config.stall_seconds, config.transfer_seconds, config.transfers)

    async with AsyncExitStack() as stack:
        bound = stack.enter_context(listening(config.address, config.port))
        store = stack.enter_context(await asyncio.to_thread(Store, config.directory, reserve=config.reserve))
        bus = await stack.enter_async_context(Bus.system())
        mailbox: Mailbox | None = None

        def send(to: Address, message: Message) -> None:
            if mailbox is not None:
                mailbox.send(to, message)

        def show(up: bool, reason: str) -> None:
            life.status(f"serving {url}; " + ("XMPP connected" if up else f"no XMPP: {reason}"))
            control.changed("Connected")

        commands = await stack.enter_async_context(Commands(store, config.job_managers, send))
        app = Gate(store, verifier, limits).application()
        http = serving(app, bound, tls=config.tls, stall_seconds=config.stall_seconds)
        url = await stack.enter_async_context(http)
        control = Control(lambda: State(store.totals(), url, mailbox is not None and mailbox.connected))
        bus.export(PATH, control)
        await bus.own(NAME)
        mailbox = await stack.enter_async_context(Mailbox(account, commands.received, show))
        life.ready(f"serving {url}")
        await life.stopping.wait()


SERVICE: Final = Service(
    name="copilot-storaged",
    summary="Storage adapter of Co-Pilot: takes the files of jobs over HTTP.",
    spec=SPEC,
    configure=configure,
    run=run,
)
