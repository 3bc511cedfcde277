"""An application that hosts actors over a stream, and does what it is told to for each turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc.aio
from google.protobuf.wrappers_pb2 import BytesValue

from tests.grpc.harness import Client
from tests.support.eventually import PATIENCE, eventually

__all__ = ["Host", "Turn", "hosting", "unpacked"]

METHOD = "SubscribeActorEventsAlpha1"
OPEN_SECONDS = 60.0
RESPONSES = {
    "invoke_request": "invoke_response",
    "reminder_request": "reminder_response",
    "timer_request": "timer_response",
    "deactivate_request": "deactivate_response",
}


@dataclass(frozen=True)
class Turn:
    """A turn as it came: which kind of message, and that."""

    kind: str
    message: Any


Do = Callable[[Turn], Awaitable[dict[str, Any]]]
"""Gives the fields of the response; with ``code`` it is a failure."""


async def echo(turn: Turn) -> dict[str, Any]:
    return {"data": turn.message.data} if turn.kind == "invoke_request" else {}


class Host:
    """One stream; turns are taken at once, each in a task of its own.

    Attributes:
        got: What came.
        do: What is done for each.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self.call = client.open(METHOD, timeout=OPEN_SECONDS)
        self.got: list[Turn] = []
        self.do: Do = echo
        self._writing = asyncio.Lock()

    async def send(self, **fields: Any) -> None:
        async with self._writing:  # The library takes one message at a time.
            await self.call.write(self._client.request(METHOD, **fields))

    async def begin(self, entities: Sequence[str], **settings: Any) -> None:
        """Register types, and wait until they are hosted."""
        await self.send(initial_request={"entities": entities, **settings})
        async with asyncio.timeout(PATIENCE):
            message = await self.call.read()
        assert message.WhichOneof("response_type") == "initial_response"

    async def run(self) -> None:
        """Answer until the stream ends."""
        async with asyncio.TaskGroup() as tasks:
            with suppress(grpc.aio.AioRpcError):
                while (message := await self.call.read()) is not grpc.aio.EOF:
                    kind = message.WhichOneof("response_type")
                    turn = Turn(kind, getattr(message, kind))
                    self.got.append(turn)
                    tasks.create_task(self._take(turn))

    async def _take(self, turn: Turn) -> None:
        fields = await self.do(turn)
        field = "request_failed" if "code" in fields else RESPONSES[turn.kind]
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # It has ended.
            await self.send(**{field: {"id": turn.message.id, **fields}})

    async def ends(self) -> tuple[str, str]:
        """Read to the end; give status and text."""
        try:
            async with asyncio.timeout(PATIENCE):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
                code, text = await self.call.code(), await self.call.details()
        except grpc.aio.AioRpcError as error:
            code, text = error.code(), error.details()
        return code.name, text or ""

    async def until(self, kind: str, id_: str, times: int = 1) -> Any:
        """Wait for turns of an actor; give the last of so many."""

        def come() -> Any:
            found = self.of(kind, id_)
            assert len(found) >= times
            return found[times - 1]

        return await eventually(come)

    def of(self, kind: str, id_: str) -> list[Any]:
        """Give the turns of an actor of one kind."""
        return [turn.message for turn in self.got if turn.kind == f"{kind}_request" and turn.message.actor_id == id_]


@asynccontextmanager
async def hosting(client: Client, *entities: str, **settings: Any) -> AsyncIterator[Host]:
    """Hold a stream open; it is given up at the end."""
    host = Host(client)
    try:
        await host.begin(entities, **settings)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(host.run())
            yield host
            running.cancel()
    finally:
        host.call.cancel()


def unpacked(data: Any) -> bytes:
    """Give the JSON of a reminder's or timer's data."""
    found = BytesValue()
    assert data.Unpack(found)
    return found.value
