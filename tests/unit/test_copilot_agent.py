# SPDX-License-Identifier: BSD-3-Clause
"""The agent's machine, message by message."""

from __future__ import annotations

from random import Random

from cernvm.copilot.agent import Agent, Deed, Habits, Send
from cernvm.copilot.messages import Address, Command, Message

MANAGER = Address("manager@copilot.test")
ONE, OTHER = Address(f"{MANAGER}/one"), Address(f"{MANAGER}/other")


def commands(deeds: list[Deed]) -> list[tuple[Address, str]]:
    return [(deed.to, str(deed.message.command)) for deed in deeds if isinstance(deed, Send)]


def test_an_offer_that_came_to_nothing_does_not_close_the_ear_for_the_next() -> None:
    agent = Agent(Habits(manager=MANAGER, name="a"), Random(1), {})
    assert commands(agent.connected(0.0)) == [(MANAGER, Command.WANT_JOB)]
    offer = Message(Command.HAVE_JOB)
    assert commands(agent.received(ONE, offer, 1.0)) == [(ONE, Command.GET_JOB)]
    assert commands(agent.received(OTHER, offer, 1.1)) == [], "one job is asked for at a time"
    assert commands(agent.received(ONE, offer, 1.2)) == [(ONE, Command.GET_JOB)], "that manager has another job now"
    assert commands(agent.tick(60.0)) == [(MANAGER, Command.WANT_JOB)]
    assert commands(agent.received(OTHER, offer, 61.0)) == [(OTHER, Command.GET_JOB)]
