# SPDX-License-Identifier: BSD-3-Clause
"""The messages that agents, job managers and storage adapters exchange, and their form on the wire.

On the wire a message is ONE namespaced child of an XMPP `<message/>`: `<copilot xmlns='urn:copilot:1' id='..'
command='..'>{JSON object}</copilot>`, and its receipt is `<copilot xmlns='urn:copilot:1' ack='..'/>`.  Every XMPP
server passes such a child through whole, which is not true of attributes added to `<message/>` or of foreign children
of `<body/>`.  The contract is docs/protocol-copilot.md.  Pure and thread-safe: no state, no I/O.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NewType
from xml.etree import ElementTree

from .errors import BadMessage, MessageTooLarge

Address = NewType("Address", str)
"""An XMPP address, `local@domain` (bare) or `local@domain/resource` (full)."""

MessageId = NewType("MessageId", str)

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

NAMESPACE: Final = "urn:copilot:1"
TAG: Final = f"{{{NAMESPACE}}}copilot"

MAX_MESSAGE_BYTES: Final = 192 * 1024
"""Longest JSON text sent or read; Prosody's default limit for a client's stanza is 256 KiB."""

MAX_ID_LENGTH: Final = 64


class Command:
    """The names of the commands, as on the wire."""

    WANT_JOB: Final = "want_getJob"
    HAVE_JOB: Final = "have_getJob"
    GET_JOB: Final = "getJob"
    RUN_JOB: Final = "runJob"
    HEARTBEAT: Final = "heartbeat"
    LEASE: Final = "lease"
    STOP_JOB: Final = "stopJob"
    RELEASE_JOB: Final = "releaseJob"
    GET_OUTPUT_DIR: Final = "getJobOutputDir"
    STORE_OUTPUT_DIR: Final = "storeJobOutputDir"
    JOB_DONE: Final = "jobDone"
    JOB_ACCEPTED: Final = "jobAccepted"
    JOB_REFUSED: Final = "jobRefused"
    ACCEPT_OUTPUT: Final = "acceptOutput"
    OUTPUT_ACCEPTED: Final = "outputAccepted"
    OUTPUT_REFUSED: Final = "outputRefused"
    CLEAN_JOB: Final = "cleanJob"


@dataclass(frozen=True)
class Message:
    """A command with its fields.  Readers ignore fields that they do not know."""

    command: str
    fields: Mapping[str, Json] = field(default_factory=dict)

    def text(self, name: str, *, longest: int = 4096) -> str:
        """The field `name` as text.  Raises BadMessage when it is absent, not text, or longer than `longest`."""
        value = self.fields.get(name)
        if not isinstance(value, str) or len(value) > longest:
            raise BadMessage(f"{self.command}: field {name} must be text of at most {longest} characters")
        return value

    def optional_text(self, name: str, *, longest: int = 4096) -> str:
        """Like `text`, but an absent field reads as empty, and a long one is cut."""
        value = self.fields.get(name, "")
        if not isinstance(value, str):
            raise BadMessage(f"{self.command}: field {name} must be text")
        return value[:longest]

    def number(self, name: str, *, least: int = 0, most: int = 2**53) -> int:
        """The field `name` as an integer in [least, most].  Raises BadMessage."""
        value = self.fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise BadMessage(f"{self.command}: field {name} must be a whole number from {least} to {most}")
        return value

    def table(self, name: str) -> dict[str, Json]:
        """The field `name` as an object; an absent one reads as empty.  Raises BadMessage."""
        value = self.fields.get(name, {})
        if not isinstance(value, dict):
            raise BadMessage(f"{self.command}: field {name} must be an object")
        return value

    def items(self, name: str, *, most: int = 10_000) -> list[dict[str, Json]]:
        """The field `name` as a list of objects; an absent one reads as empty.  Raises BadMessage."""
        value = self.fields.get(name, [])
        if not isinstance(value, list) or len(value) > most:
            raise BadMessage(f"{self.command}: field {name} must be a list of at most {most} objects")
        found = [item for item in value if isinstance(item, dict)]
        if len(found) != len(value):
            raise BadMessage(f"{self.command}: field {name} must hold objects only")
        return found


@dataclass(frozen=True)
class Letter:
    """A message under way; `id` names it so that its receipt can be matched and its duplicates known."""

    id: MessageId
    message: Message


@dataclass(frozen=True)
class Receipt:
    """The receiver's word that the letter `id` has arrived.  It is sent again for every duplicate."""

    id: MessageId


Envelope = Letter | Receipt


def bare(address: Address) -> Address:
    """`address` without its resource, in lower case as servers compare it."""
    return Address(address.partition("/")[0].lower())


def encode(envelope: Envelope) -> ElementTree.Element:
    """The XML child that carries `envelope`.  Raises MessageTooLarge."""
    if isinstance(envelope, Receipt):
        return ElementTree.Element(TAG, {"ack": envelope.id})
    element = ElementTree.Element(TAG, {"id": envelope.id, "command": envelope.message.command})
    if envelope.message.fields:
        # ASCII-only JSON: control characters, which XML cannot carry, travel as \\u escapes.
        element.text = json.dumps(dict(envelope.message.fields), ensure_ascii=True, separators=(",", ":"))
        if len(element.text) > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(
                f"{envelope.message.command} needs {len(element.text)} bytes, "
                f"more than the {MAX_MESSAGE_BYTES} that a message may have"
            )
    return element


def decode(element: ElementTree.Element) -> Envelope:
    """The envelope in the XML child `element`; unknown attributes are ignored.  Raises BadMessage."""
    ack = element.get("ack")
    if ack is not None:
        return Receipt(_id(ack))
    command = element.get("command", "")
    if not 0 < len(command) <= MAX_ID_LENGTH:
        raise BadMessage("a message without a command")
    return Letter(_id(element.get("id", "")), Message(command, _fields(element.text or "")))


def _id(text: str) -> MessageId:
    if not 0 < len(text) <= MAX_ID_LENGTH:
        raise BadMessage(f"a message whose id is not of 1 to {MAX_ID_LENGTH} characters")
    return MessageId(text)


def _fields(text: str) -> dict[str, Json]:
    if len(text) > MAX_MESSAGE_BYTES:
        raise BadMessage(f"a message of {len(text)} characters, over the limit of {MAX_MESSAGE_BYTES}")
    if not text.strip():
        return {}
    return parse_object(text)


def parse_object(text: str) -> dict[str, Json]:
    """The JSON object in `text`; NaN and infinities are no JSON.  Raises BadMessage."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"a message whose fields are not JSON: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise BadMessage("a message whose fields are not a JSON object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")
