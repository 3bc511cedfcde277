"""What is on NATS for a topic, and the messages of its subject one after the other; and how both are named there."""

from __future__ import annotations

import base64
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import cast

from brokers.nats._client import Connection, unix_time
from brokers.nats._config import NatsConfig
from brokers.nats._consumer import consumer_name, parted, stream_of
from brokers.nats._errors import JSON, RightMissingError, check_api
from brokers.nats._kv import NatsKeyValue
from mesh.address import Address, encode_token
from mesh.broker import KeyValue, Message, SubscribeOptions, Topology
from mesh.inspection import Letter, Pile, Standing
from mesh.tasks import task_group

__all__ = [
    "NO_LANE",
    "Inspection",
    "Subject",
    "differences",
    "known",
    "lanes_of",
    "may_publish",
    "stream_config",
    "subject_of",
]

LANES = 16
NO_LANE = "_"
DEDUP_WINDOW_NS = 120 * 1_000_000_000
NOT_FOUND, GONE, NOT_DELETED = 404, 10043, (10057, "no message found")


def subject_of(address: Address, key: str | None) -> str:
    """Name the subject of a message."""
    lane = NO_LANE if key is None else str(zlib.crc32(key.encode()) % LANES)
    return f"{address.space}.{lane}.{address.name}"


def lanes_of(options: SubscribeOptions) -> list[str]:
    """Give the lanes that a group has a consumer for."""
    return [NO_LANE, *map(str, range(LANES))] if options.ordered else ["*"]


def stream_config(topology: Topology, replicas: int | None) -> JSON:
    """Give what a space's stream has to be like."""
    max_age_ns = int((topology.max_age or 0) * 1e9)
    return {
        "name": stream_of(topology.space),
        "subjects": [f"{topology.space}.>"],
        "retention": "limits",
        "discard": "new",
        "storage": "file",
        "max_age": max_age_ns,
        "max_bytes": -1 if topology.max_bytes is None else topology.max_bytes,
        "num_replicas": replicas or topology.replicas,
        "duplicate_window": min(DEDUP_WINDOW_NS, max_age_ns or DEDUP_WINDOW_NS),
    }


def differences(config: Mapping[str, object], wanted: JSON) -> str:
    """Name both sides of what is not as wanted; empty = all of it is."""
    different = [key for key, value in wanted.items() if config.get(key, False) != value]
    return ", ".join(f"{key} is {config.get(key)!r} and should be {wanted[key]!r}" for key in different)


async def may_publish(connection: Connection, subject: str) -> None:
    """Ask whether one may publish to a subject, and store nothing; raises ``RightMissingError``."""
    await connection.call(subject, b"", {"Nats-Expected-Stream": "-"}, refusable=True)


def known(answer: JSON, what: str) -> JSON | None:
    """Give what the server says of something; None if that is not there, which 404 alone says.

    Raises:
        BrokerError: It says something else.
    """
    error = cast("JSON", answer.get("error") or {})
    return None if error.get("code") == NOT_FOUND else check_api(answer, what)


class Inspection:
    """The part of the adapter that looks on."""

    _connection: Connection
    _config: NatsConfig

    async def inspect(self, address: Address, options: SubscribeOptions | None) -> Standing:
        """Look at a space's stream, and at the consumers of a group; see ``Inspectable``.

        Whether one may publish is asked by a message for a stream of another name, and whether one may make a consumer
        by a request that says nothing of it: the server refuses both, who may not send them at another place.
        """
        stream, refused = stream_of(address.space), list[str]()
        place, config = f"stream {stream}", None
        try:
            found = known(await self._connection.api(f"STREAM.INFO.{stream}", refusable=True), place)
            config = None if found is None else found["config"]
        except RightMissingError as error:
            refused.append(str(error))
        if config is None:
            return Standing(place, exists=False, refused=tuple(refused))
        differs = differences(cast("JSON", config), stream_config(Topology(address.space), self._config.replicas))
        there: bool | None = None
        try:
            if options is None:
                await may_publish(self._connection, subject_of(address, None))
            else:
                there, other = await self._group(stream, address, options)
                differs = "; ".join(filter(None, (differs, other)))
        except RightMissingError as error:
            refused.append(str(error))
        return Standing(place, exists=True, group=there, differs=differs, refused=tuple(refused))

    async def _group(self, stream: str, address: Address, options: SubscribeOptions) -> tuple[bool, str]:
        found: dict[bool, bool] = {}
        for ordered, lane in ((False, "*"), (True, NO_LANE)):
            subject = f"{address.space}.{lane}.{address.name}"
            name = consumer_name(options.group, subject)
            answer = await self._connection.api(f"CONSUMER.INFO.{stream}.{name}", refusable=True)
            found[ordered] = known(answer, f"consumer {name} of stream {stream}") is not None
            if ordered == options.ordered:
                await self._connection.api(f"CONSUMER.CREATE.{stream}.{name}.{subject}", {}, refusable=True)
        other = not options.ordered
        sides = f"group {options.group!r} exists with ordered={other}, wanted {options.ordered}"
        return found[options.ordered], sides if found[other] and not found[options.ordered] else ""

    async def shelf(self, name: str, *, dotted: bool = False) -> KeyValue | None:
        """Open a bucket that is there; see ``Shelving``."""
        bucket = encode_token(name)
        answer = await self._connection.api(f"STREAM.INFO.KV_{bucket}", refusable=True)
        return (
            None if known(answer, f"bucket {bucket}") is None else NatsKeyValue(self._connection, bucket, dotted=dotted)
        )

    @asynccontextmanager
    async def letters(self, address: Address) -> AsyncIterator[Pile]:
        """Go through a topic's messages; what is removed is deleted from the stream, for every group."""
        yield Subject(self._connection, stream_of(address.space), f"{address.space}.*.{address.name}")


class Subject:
    """The messages of a subject."""

    def __init__(self, connection: Connection, stream: str, subject: str) -> None:
        self._connection, self._stream, self._subject = connection, stream, subject

    async def _ask(self, what: str, request: JSON) -> JSON:
        return await self._connection.api(f"{what}.{self._stream}", request, refusable=True)

    async def _state(self) -> JSON:
        answer = await self._ask("STREAM.INFO", {"subjects_filter": self._subject})
        return cast("JSON", check_api(answer, f"stream {self._stream}")["state"])

    async def count(self) -> int:
        return sum(cast("dict[str, int]", (await self._state()).get("subjects") or {}).values())

    async def __aiter__(self) -> AsyncIterator[Letter]:
        state = await self._state()
        number, last = cast("int", state["first_seq"]), cast("int", state["last_seq"])
        while number <= last:
            answer = await self._ask("STREAM.MSG.GET", {"seq": number, "next_by_subj": self._subject})
            if "message" not in answer:
                if cast("JSON", answer["error"]).get("code") == NOT_FOUND:
                    return
                check_api(answer, f"stream {self._stream}")
            found = cast("dict[str, str]", answer["message"])
            number = cast("int", cast("JSON", answer["message"])["seq"])
            if number > last:
                return
            headers, identity = parted(_headers(base64.b64decode(found.get("hdrs", ""))))
            message = Message(headers, base64.b64decode(found.get("data", "")), id=identity)
            yield Letter(str(number), message, unix_time(found["time"]))
            number += 1

    async def remove(self, letters: Sequence[Letter]) -> None:
        async with task_group() as tasks:
            for each in letters:
                tasks.create_task(self._remove(each), name="nats-remove")

    async def _remove(self, letter: Letter) -> None:
        answer = await self._ask("STREAM.MSG.DELETE", {"seq": int(letter.id), "no_erase": True})
        error = cast("JSON", answer.get("error") or {})
        told = error.get("err_code"), error.get("description")
        if told[0] != GONE and told != NOT_DELETED:  # Else somebody else has taken it away.
            check_api(answer, f"message {letter.id} of stream {self._stream}")


def _headers(block: bytes) -> dict[str, str]:
    lines = block.decode("utf-8", "replace").split("\r\n")[1:]
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}
