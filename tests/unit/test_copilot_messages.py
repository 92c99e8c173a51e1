# SPDX-License-Identifier: BSD-3-Clause
"""Messages on the wire, and delivery with receipts."""

from __future__ import annotations

from itertools import count
from random import Random
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cernvm.copilot import delivery as delivery_module
from cernvm.copilot.delivery import Delivery
from cernvm.copilot.errors import BadMessage, MessageTooLarge
from cernvm.copilot.messages import (
    MAX_MESSAGE_BYTES,
    TAG,
    Address,
    Json,
    Letter,
    Message,
    MessageId,
    Receipt,
    bare,
    decode,
    encode,
)

JM = Address("jm@copilot.test/main")
AGENT = Address("agent@copilot.test/one")

plain_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), plain_json, max_size=5))
def test_any_fields_survive_the_way_through_xml(fields: dict[str, Json]) -> None:
    letter = Letter(MessageId("id-1"), Message("runJob", fields))
    text = ElementTree.tostring(encode(letter))
    assert decode(ElementTree.fromstring(text)) == letter


def test_a_receipt_survives_the_way_through_xml() -> None:
    receipt = Receipt(MessageId("id-1"))
    assert decode(ElementTree.fromstring(ElementTree.tostring(encode(receipt)))) == receipt


def test_unknown_attributes_are_ignored() -> None:
    element = ElementTree.Element(TAG, {"id": "1", "command": "getJob", "since": "2.0"})
    assert decode(element) == Letter(MessageId("1"), Message("getJob", {}))


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"command": "getJob"}, ""),
        ({"id": "", "command": "getJob"}, ""),
        ({"id": "1"}, ""),
        ({"id": "x" * 65, "command": "getJob"}, ""),
        ({"id": "1", "command": "c" * 65}, ""),
        ({"ack": ""}, ""),
        ({"id": "1", "command": "getJob"}, "{"),
        ({"id": "1", "command": "getJob"}, "[1]"),
        ({"id": "1", "command": "getJob"}, '{"a": NaN}'),
        ({"id": "1", "command": "getJob"}, '{"a":' + "[" * 100_000),
        ({"id": "1", "command": "getJob"}, '{"a": "' + "x" * MAX_MESSAGE_BYTES + '"}'),
    ],
)
def test_a_malformed_message_is_refused(attributes: dict[str, str], text: str) -> None:
    element = ElementTree.Element(TAG, attributes)
    element.text = text
    with pytest.raises(BadMessage):
        decode(element)


def test_a_message_too_long_for_servers_is_not_sent() -> None:
    with pytest.raises(MessageTooLarge, match="runJob needs"):
        encode(Letter(MessageId("1"), Message("runJob", {"a": "x" * MAX_MESSAGE_BYTES})))


def test_fields_are_read_with_their_types() -> None:
    message = Message("jobDone", {"jobID": "j", "attempt": 2, "usage": {"a": 1}, "outputs": [{"name": "n"}]})
    assert message.text("jobID") == "j"
    assert message.number("attempt", least=1) == 2
    assert message.table("usage") == {"a": 1}
    assert message.items("outputs") == [{"name": "n"}]
    assert message.table("absent") == {}
    assert message.items("absent") == []
    assert message.optional_text("absent") == ""


@pytest.mark.parametrize("value", [None, True, "2", 2.0, -1, 2**60])
def test_a_number_of_the_wrong_kind_or_size_is_refused(value: Json) -> None:
    with pytest.raises(BadMessage, match="attempt"):
        Message("jobDone", {"attempt": value}).number("attempt")


def test_addresses_are_compared_without_resource_and_case() -> None:
    assert bare(Address("JM@Copilot.Test/Main")) == "jm@copilot.test"


def delivery(seed: int = 1) -> Delivery:
    ids = count()
    return Delivery(Random(seed), lambda: f"id-{next(ids)}")


def test_a_letter_is_sent_again_until_its_receipt_comes() -> None:
    sender = delivery()
    posted = sender.send(JM, Message("getJob"), now=0.0)
    assert sender.due(1.0) == []
    assert sender.due(5.0) == [posted]
    sender.receive(JM, Receipt(posted.envelope.id), now=6.0)
    assert sender.pending == 0
    assert sender.due(1e6) == []


def test_resending_has_an_end() -> None:
    sender = delivery()
    sender.send(JM, Message("getJob"), now=0.0)
    times = [now for now in range(2000) if sender.due(float(now))]
    assert 4 <= len(times) <= 6
    assert (sender.pending, sender.given_up) == (0, 1)
    assert times[-1] < delivery_module.SEEN_SECONDS


def test_a_letter_sent_once_is_not_repeated() -> None:
    sender = delivery()
    sender.send(JM, Message("heartbeat"), now=0.0, once=True)
    assert sender.due(1e6) == []


def test_somebody_elses_receipt_does_not_count() -> None:
    sender = delivery()
    posted = sender.send(JM, Message("getJob"), now=0.0)
    sender.receive(AGENT, Receipt(posted.envelope.id), now=1.0)
    assert sender.pending == 1


def test_the_receipt_of_any_instance_counts() -> None:
    sender = delivery()
    posted = sender.send(bare(JM), Message("want_getJob"), now=0.0)
    sender.receive(JM, Receipt(posted.envelope.id), now=1.0)
    assert sender.pending == 0


def test_a_duplicate_is_receipted_again_but_handed_on_once() -> None:
    receiver = delivery()
    letter = Letter(MessageId("x"), Message("runJob"))
    first, second = receiver.receive(JM, letter, now=0.0), receiver.receive(JM, letter, now=1.0)
    assert first[0] == second[0]
    assert first[0] is not None
    assert first[0].envelope == Receipt(MessageId("x"))
    assert (first[1], second[1]) == (letter.message, None)
    assert receiver.duplicates == 1


def test_two_senders_may_use_the_same_id() -> None:
    receiver = delivery()
    letter = Letter(MessageId("x"), Message("runJob"))
    assert receiver.receive(JM, letter, now=0.0)[1] == letter.message
    assert receiver.receive(AGENT, letter, now=0.0)[1] == letter.message


def test_the_memory_of_what_was_seen_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "MAX_SEEN", 3)
    receiver = delivery()
    letters = [Letter(MessageId(f"x{n}"), Message("getJob")) for n in range(5)]
    for letter in letters:
        receiver.receive(JM, letter, now=0.0)
    assert receiver.receive(JM, letters[-1], now=0.0)[1] is None
    assert receiver.receive(JM, letters[0], now=0.0)[1] is not None


def test_what_waits_for_receipts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "MAX_PENDING", 3)
    sender = delivery()
    for _ in range(5):
        sender.send(JM, Message("getJob"), now=0.0)
    assert (sender.pending, sender.given_up) == (3, 2)
