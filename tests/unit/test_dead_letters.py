"""What goes back of a dead letter, and which records of Kafka were taken."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from brokers.kafka._inspection import Taken
from gateway.dead_letters import Chosen, replay, sent_back
from mesh.address import Address, topic
from mesh.blocks.wire import letter_of
from mesh.broker import LETTER_TOPIC, Delivery, Features, Message
from mesh.errors import PublishRejectedError, UnprovenError
from mesh.inspection import Letter
from tests.trust.test_kept import EVENT, LETTERS, ORDERS, REFUNDS, Nodes


def _delivered(message: Message, where: Address) -> Delivery:
    return Delivery(message, where, 1, None)  # type: ignore[arg-type]  # It is not settled.


def test_the_proof_of_a_publisher_holds_again(tmp_path: Path) -> None:
    """In the topic that the letter is from; in another one nobody believes it."""
    nodes = Nodes(tmp_path)
    shop, payments = nodes.proofs("shop"), nodes.proofs("payments")
    event = shop.prove(ORDERS, EVENT)
    moved = payments.move(LETTERS, letter_of(event, "it failed", 3, "orders", "payments"))
    back = sent_back(moved, "letters", Letter("7", moved, 1.0), "ce-")
    assert (back.headers, back.body) == (event.headers, event.body)
    assert back.id == sent_back(moved, "letters", Letter("7", moved, 1.0), "ce-").id != event.id
    assert payments.publisher(_delivered(back, ORDERS), lenient=False, letters=False).endswith("/shop")
    with pytest.raises(UnprovenError):
        payments.publisher(_delivered(back, REFUNDS), lenient=False, letters=False)


def test_what_a_broker_told_is_not_published() -> None:
    """The place that a letter was read at is not the event's; a key is."""
    told = {"__offset": "3", "__partition": "1", "__timestamp": "5", "__topic": "letters", "pubsubName": "pubsub"}
    own = {"__key": "k", "__TypeId__": "com.shop.Order", "trace": "t"}
    message = Message(
        {"ce_partitionkey": "a%20b", **own, **told}, b"", metadata={**told, **own, LETTER_TOPIC: "orders"}
    )
    back = sent_back(message, "letters", Letter("0:3", message), "ce_")
    assert (back.headers, back.metadata, back.key) == ({"ce_partitionkey": "a%20b", **own}, own, "a b")


async def test_nothing_is_sent_back_that_could_not_be_taken_away() -> None:
    """It would be there twice, and again with each attempt."""
    published: list[Message] = []

    class Pile:
        async def __aiter__(self) -> AsyncIterator[Letter]:
            yield Letter("0:1", Message({}, b"{}"))

        async def check(self, letters: Sequence[Letter]) -> None:
            raise PublishRejectedError("no room")

    class Broker:
        features = Features(name="few", max_message_bytes=1024)

        @asynccontextmanager
        async def letters(self, address: Address) -> AsyncIterator[Pile]:
            yield Pile()

        async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[None]:
            published.extend(messages)
            return [None for _ in messages]

    component: Any = SimpleNamespace(name="few", broker=Broker(), topic_prefix="", address=partial(topic, "ns", "few"))
    with pytest.raises(PublishRejectedError, match="no room"):
        await replay(component, "failed", Chosen(), "orders", [], lambda count: None)
    assert published == []


def test_taken_records_are_known_again() -> None:
    """Whatever the order, and read back from its note at any moment; one number at the end."""
    for seed in range(20):
        numbers = list(range(10, 60))
        random.Random(seed).shuffle(numbers)
        taken, added = Taken(10), set[int]()
        for number in numbers:
            taken.add(number)
            added.add(number)
            taken = Taken(taken.before, taken.note)
            assert {each for each in range(10, 61) if each in taken} == added
            assert taken.before - 10 + len(taken) == len(added)
        assert (taken.before, taken.note) == (60, "")


@pytest.mark.parametrize("note", ["x", "3-", "-3", "1-2-3", "5-4x", " 7", "9-5"])
def test_a_note_of_somebody_else_counts_as_none(note: str) -> None:
    assert Taken(2, note).note == ""
