# SPDX-License-Identifier: BSD-3-Clause
"""At-least-once sending and process-once receiving, as a state machine without I/O.

Every letter is sent again until its receipt comes, with doubled and jittered waiting times and an end; every letter
that arrives is receipted each time and handed on once.  Both memories are bounded.  What must survive longer than the
tries given here is repeated by the machine that owns it (`agent`, `broker`), under a new letter.

Thread rule: one owner, one thread; `now` is any clock that only goes forward, in seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from cernvm.kit.backoff import Backoff

from .messages import Address, Envelope, Letter, Message, MessageId, Receipt, bare

RESEND: Final = Backoff(first=4.0, cap=60.0, tries=6)
MAX_PENDING: Final = 20_000
MAX_SEEN: Final = 20_000
SEEN_SECONDS: Final = 1800.0
"""Longer than a sender goes on trying with RESEND."""


@dataclass(frozen=True)
class Posted:
    """An envelope to put on the wire."""

    to: Address
    envelope: Envelope


@dataclass(frozen=True)
class _Pending:
    posted: Posted
    due: float
    delays: Iterator[float]


class Delivery:
    """One side's memory of what it has sent and what it has seen."""

    def __init__(self, random: Random, new_id: Callable[[], str], resend: Backoff = RESEND) -> None:
        self._random = random
        self._new_id = new_id
        self._resend = resend
        self._pending: OrderedDict[MessageId, _Pending] = OrderedDict()
        self._seen: OrderedDict[tuple[Address, MessageId], float] = OrderedDict()
        self.given_up = 0
        """Letters whose receipt never came."""
        self.duplicates = 0
        """Letters that arrived again."""

    def send(self, to: Address, message: Message, now: float, *, once: bool = False) -> Posted:
        """Put the result on the wire; unless `once`, `due` returns it again until its receipt comes."""
        posted = Posted(to, Letter(MessageId(self._new_id()), message))
        if once:
            return posted
        delays = self._resend.delays(self._random)
        self._pending[posted.envelope.id] = _Pending(posted, now + next(delays), delays)
        while len(self._pending) > MAX_PENDING:
            self._pending.popitem(last=False)
            self.given_up += 1
        return posted

    def receive(self, sender: Address, envelope: Envelope, now: float) -> tuple[Posted | None, Message | None]:
        """What an arriving envelope means: a receipt to post, and the message if it is a new one."""
        if isinstance(envelope, Receipt):
            self._receipt(sender, envelope)
            return None, None
        receipt = Posted(sender, Receipt(envelope.id))
        key = (bare(sender), envelope.id)
        if key in self._seen:
            self.duplicates += 1
            return receipt, None
        self._seen[key] = now
        self._forget(now)
        return receipt, envelope.message

    def due(self, now: float) -> list[Posted]:
        """The letters to put on the wire again at `now`."""
        again: list[Posted] = []
        for key, pending in list(self._pending.items()):
            if pending.due > now:
                continue
            delay = next(pending.delays, None)
            if delay is None:
                del self._pending[key]
                self.given_up += 1
            else:
                self._pending[key] = replace(pending, due=now + delay)
                again.append(pending.posted)
        return again

    def withdraw(self, wanted: Callable[[Message], bool]) -> None:
        """Stop repeating the letters whose message answers True: they have become pointless."""
        for key, pending in list(self._pending.items()):
            envelope = pending.posted.envelope
            if isinstance(envelope, Letter) and wanted(envelope.message):
                del self._pending[key]

    def forget(self, envelope: Envelope) -> None:
        """Give up on `envelope`: it cannot be sent at all."""
        if self._pending.pop(envelope.id, None) is not None:
            self.given_up += 1

    @property
    def pending(self) -> int:
        """How many letters wait for their receipt."""
        return len(self._pending)

    def _receipt(self, sender: Address, receipt: Receipt) -> None:
        pending = self._pending.get(receipt.id)
        if pending is not None and bare(pending.posted.to) == bare(sender):
            del self._pending[receipt.id]

    def _forget(self, now: float) -> None:
        while self._seen:
            key, when = next(iter(self._seen.items()))
            if len(self._seen) <= MAX_SEEN and now - when <= SEEN_SECONDS:
                return
            del self._seen[key]
