"""Senders to entities of Azure's messaging services: lent one at a time, and given several messages in one transfer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Generic, TypeVar

from brokers.shared.limits import measure
from mesh.broker import Message
from mesh.errors import BrokerError

__all__ = ["Senders", "in_transfers"]

MAX_SENDERS = 8  # At work; each has a connection.
MAX_IDLE = 16
BATCH, BATCH_BYTES = 100, 200_000  # Messages of one transfer; any tier takes so many bytes.

_Sender = TypeVar("_Sender")
_Made = TypeVar("_Made")


class Senders(Generic[_Sender]):
    """Lends senders: each serves one at a time, and one that failed or was cancelled is not used again."""

    def __init__(
        self,
        make: Callable[[str], _Sender],
        close: Callable[[_Sender], Awaitable[None]],
        failures: Callable[[str], AbstractContextManager[None]],
        harmless: tuple[type[Exception], ...] = (),
    ) -> None:
        """Begin without any.

        Args:
            make: Makes one, for an entity.
            close: Closes what may be broken; does not raise.
            failures: Turns the library's errors about an entity into ours.
            harmless: Those errors of the library after which a sender is as before.
        """
        self._make, self._close, self._failures, self._harmless = make, close, failures, harmless
        self._idle: list[tuple[str, _Sender]] = []
        self._places = asyncio.Semaphore(MAX_SENDERS)

    async def close(self) -> None:
        """Close those that are idle."""
        while self._idle:
            await self._close(self._idle.pop()[1])

    @asynccontextmanager
    async def lent(self, entity: str) -> AsyncIterator[_Sender]:
        """Lend one to an entity."""
        async with self._places:
            found = next((each for each in reversed(self._idle) if each[0] == entity), None)
            if found is not None:
                self._idle.remove(found)
            with self._failures(entity):
                sender = found[1] if found is not None else self._make(entity)
                try:
                    yield sender
                except self._harmless:
                    self._idle.append((entity, sender))
                    raise
                except BaseException:
                    await self._close(sender)
                    raise
            self._idle.append((entity, sender))
            if len(self._idle) > MAX_IDLE:
                await self._close(self._idle.pop(0)[1])


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
