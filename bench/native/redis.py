"""redis-py: a stream and a consumer group."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Self

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from bench.native import IN_FLIGHT, Handle, Native, Take

WAIT_MS = 200
GROUP = "bench"


class RedisPy(Native):
    """XADD; XREADGROUP of 64, a task for each entry, XACK for each."""

    title = "redis-py"

    async def __aenter__(self) -> Self:
        self._redis = Redis.from_url(self.url)
        try:
            await self._redis.xgroup_create(self.topic, GROUP, "0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._redis.aclose()

    async def publish(self, headers: Mapping[str, str], body: bytes) -> None:
        await self._redis.xadd(self.topic, {**headers, "data": body})

    async def _fetch(self) -> list[tuple[bytes, dict[bytes, bytes]]]:
        streams = {self.topic: ">"}
        found = await self._redis.xreadgroup(GROUP, "me", streams, count=IN_FLIGHT, block=WAIT_MS)
        return found[0][1] if found else []

    async def read(self, take: Take, handle: Handle) -> None:
        self.begun.set()
        while not self.over.is_set():
            for name, fields in await self._fetch():
                body = fields.pop(b"data")
                headers = {key.decode(): value.decode() for key, value in fields.items()}
                await take(headers, body, partial(self._redis.xack, self.topic, GROUP, name))


class RedisPyBare(RedisPy):
    """One entry after the other, headers not looked at; one XACK for all that were read together."""

    title = "redis-py, bare loop"

    async def read(self, take: Take, handle: Handle) -> None:
        self.begun.set()
        while not self.over.is_set():
            entries = await self._fetch()
            for _, fields in entries:
                await handle({}, fields[b"data"])
            if entries:
                await self._redis.xack(self.topic, GROUP, *(name for name, _ in entries))
