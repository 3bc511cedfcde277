"""What is on Redis for a topic in the native layout, and the entries of its stream one after the other."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson
from redis.exceptions import NoPermissionError, ResponseError

from brokers.native._redis_client import Client
from mesh.address import Address
from mesh.broker import Message, SubscribeOptions
from mesh.errors import BrokerError, PublishRejectedError, TopologyMismatchError
from mesh.inspection import Letter, Pile, Standing
from mesh.tasks import task_group

__all__ = ["Inspection", "message_of", "pairs"]

PAGE = 16  # An entry may have 256 MiB.
NOBODY = "mesh-doctor"
# Begins the key that says who sends a topic's letters back, for so long unless it goes on: it may have been killed.
MARK, TURN_MS, LOOK_SECONDS = "mesh-dlq", 10_000, 0.2
CLOSE_SECONDS = 2.0


class Inspection:
    """The part of the adapter that looks on."""

    _client: Client

    async def inspect(self, address: Address, options: SubscribeOptions | None) -> Standing:
        """Look at a stream, and at a group on it; see ``Inspectable``.

        Rights are asked for by commands whose ids are none: the server refuses who may not give a command before it
        reads what the command says, and nothing is done.
        """
        key, refused = address.label, []
        probes: list[tuple[Any, ...]] = [("XADD", key, "0-0", "", "")]
        if options is not None:
            group = options.group
            probes = [
                ("XGROUP", "CREATE", key, group, "-", "MKSTREAM"),
                ("XREADGROUP", "GROUP", group, NOBODY, "STREAMS", key, "-"),
                ("XACK", key, group, "0-0"),
                ("XPENDING", key, group),
                ("XCLAIM", key, group, NOBODY, 0, "-"),
            ]
        for probe in probes:
            try:
                await self._client.read(*probe)  # One by one: acknowledgements of the other connection go together.
            except NoPermissionError as error:
                refused.append(f"{probe[0]} on {key}: {error}")
            except ResponseError as error:
                if str(error).startswith("WRONGTYPE"):
                    return Standing(f"stream {key}", exists=True, differs=_no_stream(key))
        try:
            groups = await self._client.call("XINFO", "GROUPS", key)
        except NoPermissionError as error:
            return Standing(f"stream {key}", exists=True, refused=(*refused, f"XINFO on {key}: {error}"))
        except ResponseError:  # There is no such key.
            return Standing(f"stream {key}", exists=False, refused=tuple(refused))
        names = [pairs(each)["name"].decode(errors="replace") for each in groups]
        there = None if options is None else options.group in names
        return Standing(f"stream {key}", exists=True, group=there, refused=tuple(refused))

    @asynccontextmanager
    async def letters(self, address: Address) -> AsyncIterator[Pile]:
        """Go through a stream; what is removed is deleted from it, for every group."""
        async with task_group() as tasks:
            stream = _Stream(self._client, address.label, tasks)
            try:
                yield stream
            finally:
                await stream.let_go()


class _Stream:
    """The entries of a stream."""

    def __init__(self, client: Client, key: str, tasks: asyncio.TaskGroup) -> None:
        self._client, self._key, self._tasks = client, key, tasks
        self._turn = f"{MARK}:{key}"
        self._mine = secrets.token_hex(8).encode()
        self._keeping: asyncio.Task[None] | None = None  # While it is this one's turn.

    async def _ask(self, *command: Any) -> Any:
        try:
            return await self._client.call(*command)
        except ResponseError as error:
            if str(error).startswith("WRONGTYPE"):
                raise TopologyMismatchError(_no_stream(self._key)) from error
            raise PublishRejectedError(f"Redis refuses {command[0]} on {self._key}: {error}") from error

    async def count(self) -> int:
        return int(await self._ask("XLEN", self._key))

    async def __aiter__(self) -> AsyncIterator[Letter]:
        newest = await self._ask("XREVRANGE", self._key, "+", "-", "COUNT", 1)
        if not newest:
            return
        last, after = _id(newest[0]), "-"
        while entries := await self._ask("XRANGE", self._key, after, last, "COUNT", PAGE):
            for entry in entries:
                found = _id(entry)
                yield Letter(found, message_of(entry[1]), int(found.partition("-")[0]) / 1000)
                after = f"({found}"

    async def check(self, letters: Sequence[Letter]) -> Sequence[Letter]:
        """See ``Remembering``: it is one's turn alone, as two at the same letters would send each of them twice."""
        if self._keeping is not None:
            if await self._ask("GET", self._turn) != self._mine:
                raise BrokerError(f"somebody else sends letters of {self._key} back now: this was away for too long")
            return letters
        deadline = asyncio.get_running_loop().time() + 2 * TURN_MS / 1000
        while await self._ask("SET", self._turn, self._mine, "NX", "PX", TURN_MS) is None:
            if asyncio.get_running_loop().time() > deadline:
                raise BrokerError(f"somebody else sends letters of {self._key} back; try again when that has ended")
            await asyncio.sleep(LOOK_SECONDS)
        self._keeping = self._tasks.create_task(self._keep(), name="redis-turn")
        return [each for each in letters if await self._ask("XRANGE", self._key, each.id, each.id)]

    async def remove(self, letters: Sequence[Letter]) -> None:
        await self._ask("XDEL", self._key, *(each.id for each in letters))

    async def _keep(self) -> None:
        """Have the turn hold on, however long a batch takes."""
        while True:
            await asyncio.sleep(TURN_MS / 3000)
            with suppress(BrokerError):  # `check` finds out whether it was lost meanwhile.
                if await self._ask("GET", self._turn) == self._mine:
                    await self._ask("PEXPIRE", self._turn, TURN_MS)

    async def let_go(self) -> None:
        """Let the next one send letters back."""
        if self._keeping is None:
            return
        self._keeping.cancel()
        with suppress(BrokerError, TimeoutError):  # It ends by itself.
            async with asyncio.timeout(CLOSE_SECONDS):
                if await self._ask("GET", self._turn) == self._mine:
                    await self._ask("DEL", self._turn)


def _id(entry: Any) -> str:
    found: bytes = entry[0]
    return found.decode()


def _no_stream(key: str) -> str:
    return f"the key {key} is no stream, as the topic has to be"


def message_of(fields: Sequence[bytes]) -> Message:
    """Read an entry; what somebody else has put there is read as well as it can be."""
    found = dict(zip(fields[::2], fields[1::2], strict=True))
    body = found.get(b"data")
    if body is None:
        texts = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in found.items()}
        return Message({}, orjson.dumps(texts))
    beside: object = None
    with suppress(orjson.JSONDecodeError):
        beside = orjson.loads(found.get(b"metadata", b"null"))
    metadata = {name: str(value) for name, value in beside.items()} if isinstance(beside, dict) else {}
    return Message(metadata, body, metadata.get("partitionKey"), metadata=metadata)


def pairs(flat: Any) -> dict[str, Any]:
    """Read names and values that the server gives in turn."""
    items = list(flat.items()) if isinstance(flat, dict) else list(zip(flat[::2], flat[1::2], strict=True))
    return {(name.decode() if isinstance(name, bytes) else name): value for name, value in items}
