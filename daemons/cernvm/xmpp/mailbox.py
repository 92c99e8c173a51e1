# SPDX-License-Identifier: BSD-3-Clause
"""A link with receipts, resends and duplicates taken care of: what a process sends and receives messages with.

    async with Mailbox(account, received) as mailbox:
        mailbox.send(address, Message("want_getJob"))

`received(sender, message)` is called on the asyncio loop, once per message.  A BadMessage that it raises is counted
and logged, another Problem logged: whoever sent the message will ask again.  All on the loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Final, Self

from cernvm.copilot.delivery import Delivery
from cernvm.copilot.errors import BadMessage, MessageTooLarge
from cernvm.copilot.messages import Address, Envelope, Message
from cernvm.kit.errors import Problem

from .link import Account, Counters, Link

log: Final = logging.getLogger(__name__)

LOOK_EVERY: Final = 1.0


class Mailbox:
    """`changed(up, reason)` is called when the link comes and goes."""

    def __init__(
        self,
        account: Account,
        received: Callable[[Address, Message], None],
        changed: Callable[[bool, str], None] = lambda up, reason: None,
    ) -> None:
        self._received = received
        self._changed = changed
        self._delivery = Delivery(random.Random(), lambda: uuid.uuid4().hex)
        self._link = Link(account, self._arrived, changed)
        self._stack = AsyncExitStack()
        self._empty = asyncio.Event()

    @property
    def connected(self) -> bool:
        """True while messages go out at once."""
        return self._link.connected

    @property
    def counters(self) -> Counters:
        """What the link has seen."""
        return self._link.counters

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._link)
            repeater = asyncio.create_task(self._repeat(), name="xmpp-resend")
            stack.callback(repeater.cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    def send(self, to: Address, message: Message, *, once: bool = False) -> None:
        """Send `message`, and unless `once` again until it is receipted.  Too large a one is logged and dropped."""
        posted = self._delivery.send(to, message, _now(), once=once)
        self._post(posted.to, posted.envelope)

    def withdraw(self, wanted: Callable[[Message], bool]) -> None:
        """Stop repeating the messages for which `wanted` answers True."""
        self._delivery.withdraw(wanted)

    async def flush(self, seconds: float) -> bool:
        """Wait until everything sent is receipted, at most `seconds`; True when it is."""
        self._empty.clear()
        if self._delivery.pending:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), seconds)
        return not self._delivery.pending

    def _arrived(self, sender: Address, envelope: Envelope) -> None:
        receipt, message = self._delivery.receive(sender, envelope, _now())
        if not self._delivery.pending:
            self._empty.set()
        if receipt is not None:
            self._post(receipt.to, receipt.envelope)
        if message is None:
            return
        try:
            self._received(sender, message)
        except BadMessage as error:
            self.counters.malformed += 1
            log.warning("XMPP: %s sent a wrong message: %s", sender, error)
        except Problem as error:
            log.error("XMPP: %s of %s came to nothing: %s", message.command, sender, error)  # noqa: TRY400 - a sentence

    def _post(self, to: Address, envelope: Envelope) -> None:
        try:
            self._link.send(to, envelope)
        except MessageTooLarge as error:
            log.warning("XMPP: not sent to %s: %s", to, error)
            self._delivery.forget(envelope)

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            if self._link.connected:
                for posted in self._delivery.due(_now()):
                    self._post(posted.to, posted.envelope)


def _now() -> float:
    return asyncio.get_running_loop().time()
