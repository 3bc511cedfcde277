"""A server that answers as Kinesis does where moto does not: shards end, and iterators expire.

Written by hand from the Amazon Kinesis Data Streams API Reference; what it knows of the real service is that page.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from tests.support.moto_server import CREDENTIALS

__all__ = ["KinesisServer"]

STREAM = "clicks"


@dataclass
class _Shard:
    """A shard; its records have a number, a time and their bytes."""

    parents: tuple[str, ...] = ()
    closed: bool = False
    records: list[tuple[int, float, bytes]] = field(default_factory=list)


class KinesisServer:
    """One stream, with one shard at first.

    Attributes:
        shards: By their ids.
    """

    def __init__(self) -> None:
        """Prepare; entering listens."""
        self.shards: dict[str, _Shard] = {"shardId-0": _Shard()}
        self._number = 1000
        self._valid = 0
        self._url = ""
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._runner.cleanup()

    @property
    def settings(self) -> dict[str, str]:
        """Of a component."""
        return {**CREDENTIALS, "endpoint": self._url, "streamName": STREAM}

    def put(self, data: bytes, shard: str = "shardId-0", *, ago: float = 0.0) -> None:
        """Add a record."""
        self._number += 1
        self.shards[shard].records.append((self._number, time.time() - ago, data))

    def split(self, shard: str, *into: str) -> None:
        """Close a shard, and open others that came of it."""
        self.shards[shard].closed = True
        self.shards |= {name: _Shard((shard,)) for name in into}

    def merge(self, one: str, other: str, into: str) -> None:
        """Close two shards, and open one that came of them."""
        self.shards[one].closed = self.shards[other].closed = True
        self.shards[into] = _Shard((one, other))

    def expire(self) -> None:
        """Refuse the iterators that were given out."""
        self._valid += 1

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        asked = await request.json()
        operation = request.headers["X-Amz-Target"].partition(".")[2]
        try:
            return web.json_response(getattr(self, f"_{operation}")(asked))
        except PermissionError:
            said = {"__type": "ExpiredIteratorException", "message": "Iterator expired."}
            return web.json_response(said, status=400)

    def _DescribeStreamSummary(self, asked: Mapping[str, Any]) -> object:
        return {"StreamDescriptionSummary": {"StreamName": STREAM, "StreamCreationTimestamp": 1_700_000_000}}

    def _ListShards(self, asked: Mapping[str, Any]) -> object:
        names = ("ParentShardId", "AdjacentParentShardId")
        return {
            "Shards": [
                {"ShardId": name, **dict(zip(names, shard.parents, strict=False))}
                for name, shard in self.shards.items()
            ]
        }

    def _GetShardIterator(self, asked: Mapping[str, Any]) -> object:
        shard = self.shards[asked["ShardId"]]
        after = int(asked.get("StartingSequenceNumber", 0))
        if asked["ShardIteratorType"] == "AT_TIMESTAMP":
            after = max([number for number, at, _ in shard.records if at < asked["Timestamp"]], default=0)
        return {"ShardIterator": f"{asked['ShardId']}/{after}/{self._valid}"}

    def _GetRecords(self, asked: Mapping[str, Any]) -> object:
        name, after, valid = asked["ShardIterator"].split("/")
        if int(valid) != self._valid:
            raise PermissionError
        shard = self.shards[name]
        found = [each for each in shard.records if each[0] > int(after)]
        given = found[: asked["Limit"]]
        last = given[-1][0] if given else after
        ended = shard.closed and len(given) == len(found)
        records = [
            {"SequenceNumber": str(number), "PartitionKey": "key", "Data": base64.b64encode(data).decode()}
            for number, _, data in given
        ]
        return {"Records": records, "NextShardIterator": None if ended else f"{name}/{last}/{self._valid}"}
