# SPDX-License-Identifier: BSD-3-Clause
"""The mailbox over a real Prosody on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cernvm.copilot.messages import Address, Json, Message
from cernvm.kit.errors import UserMistake
from cernvm.xmpp.link import Account, read_account
from cernvm.xmpp.mailbox import Mailbox
from tests.support.prosody import Prosody

pytestmark = pytest.mark.real

ACCOUNTS = {"manager": "manager-secret", "agent": "agent-secret"}


@pytest.fixture(scope="module")
def prosody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prosody]:
    with Prosody(tmp_path_factory.mktemp("prosody"), accounts=ACCOUNTS) as server:
        yield server


@dataclass
class Box:
    """What arrived at one mailbox, awaitable."""

    messages: list[tuple[Address, Message]] = field(default_factory=list)
    states: list[tuple[bool, str]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def received(self, sender: Address, message: Message) -> None:
        self.messages.append((sender, message))
        self.news.set()

    def changed(self, up: bool, reason: str) -> None:
        self.states.append((up, reason))
        self.news.set()

    async def until(self, messages: int = 0, states: int = 0) -> None:
        async with asyncio.timeout(40):
            while len(self.messages) < messages or len(self.states) < states:
                self.news.clear()
                await self.news.wait()


def account(server: Prosody, name: str, resource: str) -> Account:
    return read_account(
        server.jid(name), server.password_file(name), server.address, server.port, server.ca_file, resource
    )


def test_a_message_arrives_whole_and_is_receipted(prosody: Prosody) -> None:
    async def scene() -> None:
        manager, agent = Box(), Box()
        async with (
            Mailbox(account(prosody, "manager", "m"), manager.received, manager.changed),
            Mailbox(account(prosody, "agent", "a"), agent.received, agent.changed) as sender,
        ):
            await manager.until(states=1)
            await agent.until(states=1)
            fields: dict[str, Json] = {
                "text": "<&>'\" \u00fc \u0000 \U0001f600",
                "list": [1, 2.5, None, True, {"a": "b"}],
            }
            sender.send(Address("manager@copilot.test"), Message("want_getJob", fields))
            assert await sender.flush(10)
            await manager.until(messages=1)
            assert manager.messages == [
                (Address("agent@copilot.test/a"), Message("want_getJob", fields)),
            ]

    asyncio.run(scene())


def test_every_instance_of_the_job_manager_gets_what_is_sent_to_the_bare_address(prosody: Prosody) -> None:
    async def scene() -> None:
        first, second, agent = Box(), Box(), Box()
        async with (
            Mailbox(account(prosody, "manager", "first"), first.received, first.changed),
            Mailbox(account(prosody, "manager", "second"), second.received, second.changed),
            Mailbox(account(prosody, "agent", "a"), agent.received, agent.changed) as sender,
        ):
            for box in (first, second, agent):
                await box.until(states=1)
            sender.send(Address("manager@copilot.test"), Message("want_getJob"))
            await first.until(messages=1)
            await second.until(messages=1)

    asyncio.run(scene())


def test_a_message_sent_while_the_server_is_away_arrives_after_the_reconnect(prosody: Prosody) -> None:
    async def scene() -> None:
        manager, agent = Box(), Box()
        async with (
            Mailbox(account(prosody, "manager", "m"), manager.received, manager.changed),
            Mailbox(account(prosody, "agent", "a"), agent.received, agent.changed) as sender,
        ):
            await manager.until(states=1)
            await agent.until(states=1)
            await asyncio.to_thread(prosody.stop)
            await agent.until(states=2)
            sender.send(Address("manager@copilot.test"), Message("jobDone"))
            prosody.start()  # in this thread: the server dies with the thread that started it
            await manager.until(messages=1)
            assert [message.command for _, message in manager.messages] == ["jobDone"]

    asyncio.run(scene())


def test_a_wrong_password_is_told_and_no_session_begins(prosody: Prosody) -> None:
    async def scene() -> None:
        box = Box()
        wrong = replace(account(prosody, "agent", "a"), password="not-it")
        async with Mailbox(wrong, box.received, box.changed) as mailbox:
            await box.until(states=1)
            assert not mailbox.connected
        assert box.states[0] == (False, f"127.0.0.1:{prosody.port}: the server refused the password")

    asyncio.run(scene())


def test_a_server_whose_certificate_another_authority_signed_gets_no_password(prosody: Prosody, tmp_path: Path) -> None:
    other = Prosody(tmp_path / "other", accounts={})
    with other:
        foreign = replace(account(prosody, "agent", "a"), ca_file=other.ca_file)

    async def scene() -> None:
        box = Box()
        async with Mailbox(foreign, box.received, box.changed):
            await box.until(states=1)
        up, reason = box.states[0]
        assert not up
        assert str(other.ca_file) in reason

    asyncio.run(scene())


def test_a_server_without_tls_gets_neither_password_nor_name(prosody: Prosody) -> None:
    """As somebody between client and server would do it who takes STARTTLS away from the offer."""
    heard: list[bytes] = []

    async def strip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"version='1.0'>"))
        writer.write(
            b"<?xml version='1.0'?><stream:stream from='copilot.test' id='1' version='1.0' xmlns='jabber:client' "
            b"xmlns:stream='http://etherx.jabber.org/streams'><stream:features>"
            b"<mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>PLAIN</mechanism>"
            b"<mechanism>SCRAM-SHA-1</mechanism></mechanisms></stream:features>"
        )
        while data := await reader.read(4096):
            heard.append(data)
        writer.close()

    async def scene() -> None:
        box = Box()
        async with await asyncio.start_server(strip, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with Mailbox(replace(account(prosody, "agent", "a"), port=port), box.received, box.changed):
                await box.until(states=1)
        assert box.states[0][0] is False

    asyncio.run(scene())
    assert heard
    assert b"<auth" not in b"".join(heard)


def test_a_missing_password_or_authority_file_is_one_sentence_with_its_path(prosody: Prosody, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(UserMistake, match=f"{gone}: cannot read the XMPP password"):
        read_account("a@b", gone, "127.0.0.1", 1, prosody.ca_file, "r")
    with pytest.raises(UserMistake, match=f"{gone}: cannot read the CA's certificate"):
        read_account("a@b", prosody.password_file("agent"), "127.0.0.1", 1, gone, "r")
