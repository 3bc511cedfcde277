"""Deduplication of events whose publishers are proven, or not."""

from __future__ import annotations

import pytest

from mesh.blocks.inbox import Inbox
from mesh.blocks.records import LazyRecords
from mesh.broker import Message
from mesh.delivery import SUCCESS, Attempt
from mesh.key_value import MemoryKeyValue
from mesh.store import KeyValueStateStore, StateStore

SHOP, EVIL = "spiffe://public/ns/ns/shop", "spiffe://public/ns/ns/evil"


@pytest.mark.parametrize(
    ("publishers", "handled"),
    [
        ((EVIL, SHOP, SHOP), [EVIL, SHOP]),  # Nobody has an event of another left out.
        (("", SHOP), ["", SHOP]),
        (("", ""), [""]),
    ],
)
async def test_an_event_is_known_by_who_has_published_it(publishers: tuple[str, ...], handled: list[str]) -> None:
    store, duplicates, seen = KeyValueStateStore(MemoryKeyValue()), 0, []

    async def opened(name: str) -> StateStore:
        return store

    def count() -> None:
        nonlocal duplicates
        duplicates += 1

    async def handle(by: str) -> Attempt:
        seen.append(by)
        return SUCCESS

    inbox = Inbox(LazyRecords("d", opened), "pubsub/orders/stock", 60.0, "ce-", count)
    for by in publishers:
        message = Message({"ce-source": "shop", "ce-id": "order-1"}, b"")
        assert await inbox.attempt(message, by, lambda by=by: handle(by)) is SUCCESS  # type: ignore[misc]
    assert seen == handled
    assert duplicates == len(publishers) - len(handled)
