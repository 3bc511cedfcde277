"""Proofs of who has published an event hold over each broker: it arrives as it was signed."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from mesh.blocks.envelope import PublishOptions, build_binary, build_structured
from mesh.blocks.proofs import Proofs
from mesh.blocks.topic_scopes import TopicScopes
from mesh.broker import Broker, Message, SubscribeOptions
from mesh.event import as_read_again
from mesh.operation import Caller
from tests.support.contract import Inbox, Place
from tests.support.guards import Guards, strict_guards

OPTIONS = PublishOptions("shop", "ps", "orders", f"00-{'a' * 32}-{'b' * 16}-01", "a=b", {"subject": 'a "b" ä\n%'})
BINARY: dict[str | None, bytes] = {
    "application/json": b'{ "n":  1.10 }\n',
    "application/json; charset=utf-8": rb'"\u00e9"',
    "application/xml": b"<a/>",
    "application/octet-stream": b"\xff\x00",
    "text/plain": b"",
    None: b"hi",
}
STRUCTURED = b'{"id":"1","source":"s","type":"t","data":{ "a": 1e3}, "more": "\\u00e9"}'
REASON = {"mesh-dead-letter-reason": "a%20b", "mesh-dead-letter-attempts": "1", "mesh-dead-letter-topic": "orders"}


def proofs(guards: Guards, app_id: str, place: Place) -> Proofs:
    guard = guards(app_id)
    assert guard is not None
    return Proofs(guard.kept, Caller("test", app_id), True, place.topic().space, "", TopicScopes())


@pytest.mark.requires("headers")
async def test_it_arrives_as_it_was_signed(broker: Broker, place: Place, inbox: Inbox) -> None:
    guards, prefix, held = strict_guards("test"), broker.features.event_prefix, {"baggage": "x=1"}
    shop, stock = proofs(guards, "shop", place), proofs(guards, "stock", place)
    orders, letters = place.topic(), place.topic("letters")
    parts = [build_binary(OPTIONS, kind, body, prefix) for kind, body in BINARY.items()]
    parts += [build_structured(OPTIONS, STRUCTURED, prefix), ({}, b"raw"), ({"mesh-not-before": "0"}, b"due")]
    if broker.features.embeds:  # As a component publishes there.
        parts = [(headers, as_read_again(headers, body, prefix)) for headers, body in parts]
    messages = [Message({**headers, **held}, body, None, f"i{n}") for n, (headers, body) in enumerate(parts)]
    proven = [shop.prove(orders, each) for each in messages]
    letter = stock.move(letters, replace(proven[0], headers={**proven[0].headers, **REASON}, id="dead"))

    group = SubscribeOptions("g")
    async with broker.subscribe(orders, group, inbox), broker.subscribe(letters, group, inbox):
        assert await broker.publish_many(orders, proven) == [None] * len(proven)
        await broker.publish(letters, letter)
        await inbox.holds(len(proven) + 1)
    by = [stock.publisher(each, lenient=False, letters=each.address == letters) for each in inbox.deliveries]
    assert by == ["spiffe://public/ns/test/shop"] * len(by)
