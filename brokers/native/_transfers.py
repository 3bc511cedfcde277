"""Several messages of a bulk publish in one transfer, as Azure's messaging services take them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from brokers.shared.limits import measure
from mesh.broker import Message
from mesh.errors import BrokerError

__all__ = ["in_transfers"]

BATCH, BATCH_BYTES = 100, 200_000  # Messages of one transfer; any tier takes so many bytes.

_Made = TypeVar("_Made")


async def in_transfers(
    messages: Sequence[Message],
    made: Callable[[Message], tuple[_Made, object]],
    send: Callable[[list[_Made]], Awaitable[None]],
) -> list[BrokerError | None]:
    """Send several, in order, many in one transfer; a refusal is one of all in it.

    Args:
        messages: All.
        made: Makes what is sent of one, and tells where it goes: what is in one transfer goes to one place.
        send: Sends one transfer.
    """
    results: list[BrokerError | None] = [None] * len(messages)
    batch: list[tuple[int, _Made]] = []
    kept: object = None
    size = 0

    async def flush() -> None:
        try:
            await send([each for _, each in batch])
        except BrokerError as error:
            for index, _ in batch:
                results[index] = error
        batch.clear()

    for index, message in enumerate(messages):
        try:
            each, place = made(message)
        except BrokerError as error:
            results[index] = error
            continue
        more = measure(message.body, {**message.metadata, **message.headers})
        if batch and (len(batch) == BATCH or size + more > BATCH_BYTES or place != kept):
            await flush()
            size = 0
        batch.append((index, each))
        size, kept = size + more, place
    if batch:
        await flush()
    return results
