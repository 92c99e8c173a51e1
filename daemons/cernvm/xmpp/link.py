# SPDX-License-Identifier: BSD-3-Clause
"""One XMPP account, kept connected: TLS verified against the given CA only, SCRAM only, reconnecting with jitter.

slixmpp's own reconnecting is not used: each connection gets a fresh client, so no state of a dead stream survives,
and the waiting between them is ours.  Everything runs on the asyncio loop.  What is sent while the link is down is
dropped: `cernvm.copilot.delivery` repeats it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from xml.etree import ElementTree

import slixmpp
from slixmpp.exceptions import IqError, IqTimeout
from slixmpp.xmlstream import StanzaBase
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import MatchXPath

from cernvm.copilot.errors import BadMessage
from cernvm.copilot.messages import TAG, Address, Envelope, Letter, decode, encode
from cernvm.kit.backoff import Backoff
from cernvm.kit.errors import UserMistake

log: Final = logging.getLogger(__name__)
logging.getLogger("slixmpp").setLevel(logging.WARNING)  # below that it writes whole stanzas, tokens included

RECONNECT: Final = Backoff(first=0.5, cap=30.0)
SESSION_SECONDS: Final = 30.0
PING_EVERY: Final = 30.0
PING_SECONDS: Final = 15.0
STEADY_SECONDS: Final = 20.0
"""A session that lasted this long sets the waiting time before the next try back to the start."""

MAX_BUFFERED_BYTES: Final = 16 * 1024 * 1024
"""Bytes that may wait in the socket's buffer; beyond it envelopes are dropped, and delivered by a later resend."""

MECHANISMS: Final = frozenset({"SCRAM-SHA-1", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"})


@dataclass(frozen=True)
class Account:
    """Who logs in, where, and whom it trusts.  `host` and `port` are the address to connect to."""

    jid: Address
    password: str = field(repr=False)
    host: str
    port: int
    ca_file: Path
    resource: str


def read_account(jid: str, password_file: Path, host: str, port: int, ca_file: Path, resource: str) -> Account:
    """The account of a configuration section.  Raises UserMistake naming the file that is missing or empty."""
    try:
        password = password_file.read_text("utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserMistake(f"{password_file}: cannot read the XMPP password: {reason}") from None
    if not password:
        raise UserMistake(f"{password_file}: the XMPP password is empty; write it there")
    _trust(ca_file)
    return Account(Address(jid), password, host, port, ca_file, resource)


@dataclass
class Counters:
    """What the link has seen; for status lines and D-Bus properties."""

    connections: int = 0
    sent: int = 0
    received: int = 0
    malformed: int = 0
    dropped: int = 0
    bounced: int = 0


class Link:
    """`async with Link(account, receive) as link`: connected as long as the block lasts.

    `receive(sender, envelope)` is called on the loop for every well-formed envelope.  `changed(up, reason)` is called
    whenever the session begins or ends, or cannot begin.
    """

    def __init__(
        self,
        account: Account,
        receive: Callable[[Address, Envelope], None],
        changed: Callable[[bool, str], None] = lambda up, reason: None,
    ) -> None:
        self.account = account
        self.counters = Counters()
        self._receive = receive
        self._changed = changed
        self._trusted = _trust(account.ca_file)
        self._client: slixmpp.ClientXMPP | None = None
        self._up = False
        self._keeper: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """True while a session is there: what is sent now goes out."""
        return self._up

    async def __aenter__(self) -> Self:
        self._keeper = asyncio.create_task(self._keep(), name="xmpp-link")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper

    def send(self, to: Address, envelope: Envelope) -> bool:
        """Put `envelope` on the stream; False when it could not be (no session, or too much waits already)."""
        client = self._client
        if client is None or not self._up or client.transport is None:
            self.counters.dropped += 1
            return False
        if client.transport.get_write_buffer_size() > MAX_BUFFERED_BYTES:
            self.counters.dropped += 1
            log.warning("too much waits to be sent to %s; a message was dropped", self.account.host)
            return False
        stanza = client.make_message(mto=slixmpp.JID(to), mtype="normal")
        if isinstance(envelope, Letter):
            stanza["id"] = envelope.id
        stanza.append(encode(envelope))
        stanza.send()
        self.counters.sent += 1
        return True

    async def _keep(self) -> None:
        delays = RECONNECT.delays(random.Random())
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            reason = await self._session()
            self._changed(False, reason)
            if loop.time() - began > STEADY_SECONDS:
                delays = RECONNECT.delays(random.Random())
            delay = next(delays)
            log.info("XMPP: %s; trying again in %.1f s", reason, delay)
            await asyncio.sleep(delay)

    async def _session(self) -> str:
        """Connect, stay, and return why it ended."""
        session = _Session(self.account, self._trusted)
        client = session.client
        client.register_handler(
            Callback("copilot", MatchXPath("{jabber:client}message"), lambda stanza: self._arrived(client, stanza))
        )
        self._client = client
        try:
            reason = await session.begin()
            if reason is not None:
                return reason
            self._up = True
            self.counters.connections += 1
            log.info("XMPP: connected to %s as %s", self.account.host, client.boundjid.full)
            self._changed(True, "")
            return await session.last()
        finally:
            self._up = False
            self._client = None
            await session.close()

    def _arrived(self, client: slixmpp.ClientXMPP, stanza: StanzaBase) -> None:
        if client is not self._client:
            return
        sender = Address(str(stanza["from"].full))
        if stanza["type"] == "error":
            self.counters.bounced += 1
            log.debug("XMPP: a message to %s came back", sender)
            return
        element: ElementTree.Element | None = stanza.xml.find(TAG)
        if element is None:
            return
        try:
            envelope = decode(element)
        except BadMessage as error:
            self.counters.malformed += 1
            log.warning("XMPP: %s sent %s", sender, error)
            return
        self.counters.received += 1
        self._receive(sender, envelope)


class _Session:
    """One client and one stream: from connecting to its end."""

    def __init__(self, account: Account, trusted: ssl.SSLContext) -> None:
        self._account = account
        self.client = slixmpp.ClientXMPP(
            f"{account.jid}/{account.resource}",
            account.password,
            plugin_config={"feature_mechanisms": {"use_mechs": set(MECHANISMS)}},
            ssl_context=trusted,
        )
        loop = asyncio.get_running_loop()
        self._started: asyncio.Future[str | None] = loop.create_future()
        self._ended: asyncio.Future[str] = loop.create_future()
        self._refusal = ""
        client = self.client
        client.enable_direct_tls = False
        client.auto_authorize = False
        client.auto_subscribe = False
        client.whitespace_keepalive = False
        client.register_plugin("xep_0199")
        client.add_event_handler("session_start", lambda _: self._start(None))
        client.add_event_handler("connection_failed", self._unreachable)
        client.add_event_handler("failed_all_auth", lambda _: self._refuse("the server refused the password"))
        client.add_event_handler("disconnected", self._disconnected)

    async def begin(self) -> str | None:
        """Connect and log in; None when the session is there, else why not."""
        account = self._account
        self.client.connect(account.host, account.port)
        try:
            reason = await asyncio.wait_for(asyncio.shield(self._started), SESSION_SECONDS)
        except TimeoutError:
            return f"{account.host}:{account.port} did not begin a session within {SESSION_SECONDS:.0f} s"
        if reason is None:
            self.client.send_presence()
        return reason

    async def last(self) -> str:
        """Wait for the end of the stream, asking the server now and then whether it is there; return the reason."""
        ping: Any = self.client.plugin["xep_0199"]
        while True:
            done, _ = await asyncio.wait({self._ended}, timeout=PING_EVERY)
            if done:
                return self._ended.result()
            try:
                await ping.ping(jid=slixmpp.JID(self.client.boundjid.host), timeout=PING_SECONDS)
            except (IqTimeout, IqError):
                return f"{self._account.host} does not answer pings"

    async def close(self) -> None:
        """Leave politely when possible, and in any case end whatever the client has started."""
        client = self.client
        client.cancel_connection_attempt()
        if client.transport is not None:
            client.disconnect(wait=1.0)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._ended), 2.0)
        client.abort()
        filters = client._run_out_filters  # slixmpp has no public way to end its sending task
        if filters is not None:
            filters.cancel()
        if not self._started.done():
            self._started.cancel()

    def _start(self, reason: str | None) -> None:
        if not self._started.done():
            self._started.set_result(reason)

    def _refuse(self, reason: str) -> None:
        self._refusal = self._refusal or f"{self._account.host}:{self._account.port}: {reason}"

    def _unreachable(self, error: object) -> None:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self._start(f"cannot connect to {self._account.host}:{self._account.port}: {why}")
        self.client.cancel_connection_attempt()

    def _disconnected(self, reason: object) -> None:
        if isinstance(reason, ssl.SSLError):
            why = getattr(reason, "verify_message", "") or str(reason)
            self._refuse(f"its certificate does not hold against {self._account.ca_file}: {why}")
        text = self._refusal or f"{self._account.host} ended the connection ({reason or 'no reason given'})"
        self._start(text)
        if not self._ended.done():
            self._ended.set_result(text)


def _trust(ca_file: Path) -> ssl.SSLContext:
    """A client context that trusts the CA in `ca_file` and no other.  Raises UserMistake."""
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except ssl.SSLError:
        raise UserMistake(f"{ca_file}: no certificate of a CA is in this file") from None
    except OSError as error:
        raise UserMistake(f"{ca_file}: cannot read the CA's certificate: {error.strerror}") from None
