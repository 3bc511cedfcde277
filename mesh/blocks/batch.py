"""Bulk subscriptions: deliveries of one route are posted together and settle one by one."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Self

import orjson

from mesh.application import DROP_REASON, Headers, Kind
from mesh.delivery import SUCCESS, Attempt, Outcome
from mesh.errors import AppFailedError, HandlerFailedError
from mesh.event import CLOUDEVENTS_JSON, new_id
from mesh.spans import SpanKind, Value
from mesh.telemetry import BATCHES, NOT_TRACED, UNTOLD, Observer, Tracing, nobody, who_answered

__all__ = ["Batcher", "delivery_tags", "folded"]

BULK_TYPE = "com.dapr.event.sent.bulk"
MAX_LINKS = 128  # As the SDKs of OpenTelemetry allow.
RAW_CONTENT_TYPE = "application/octet-stream"
Post = Callable[[str, Headers, bytes, Kind], Awaitable[tuple[int, bytes]]]


@dataclass(slots=True)
class _Entry:
    entry_id: str
    event: object
    content_type: str
    metadata: Mapping[str, str]
    traceparent: str
    result: asyncio.Future[Attempt]


class Batcher:
    """Collects deliveries until there are enough, or the first has waited long enough."""

    def __init__(
        self,
        pubsub: str,
        max_messages: int,
        max_wait: float,
        post: Post,
        observer: Observer = nobody,
        tracing: Tracing = NOT_TRACED,
    ) -> None:
        """Prepare.

        Args:
            pubsub: The component's name.
            max_messages: Entries at which a batch is sent.
            max_wait: Seconds after its first entry at which it is sent anyway.
            post: Calls the application.
            observer: Is told of each batch.
            tracing: Makes spans.
        """
        self._observer = observer
        self._pubsub = pubsub
        self._max_messages = max_messages
        self._max_wait = max_wait
        self._post = post
        self._tracing = tracing
        self._waiting: dict[tuple[str, str], list[_Entry]] = {}
        self._timers: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        """Begin."""
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """End; every entry has been sent, since its delivery waits for it."""
        for timer in self._timers.values():
            timer.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def call(
        self, path: str, topic: str, body: bytes, metadata: Mapping[str, str], traceparent: str = "", *, raw: bool
    ) -> Attempt:
        """Add an entry; return what became of it.

        Args:
            path: The route.
            topic: Where it came from.
            body: The event's JSON, or with ``raw`` the message's bytes.
            metadata: What a single delivery has in headers.
            traceparent: Of the event's publish; empty = there is none.
            raw: Send it as a base64 string.

        Raises:
            AppUnreachableError: Nothing reached the application.
        """
        loop = asyncio.get_running_loop()
        event: object = base64.b64encode(body).decode() if raw else orjson.Fragment(body)
        content_type = RAW_CONTENT_TYPE if raw else CLOUDEVENTS_JSON
        entry = _Entry(new_id(), event, content_type, metadata, traceparent, loop.create_future())
        key = (path, topic)
        entries = self._waiting.setdefault(key, [])
        entries.append(entry)
        if len(entries) >= self._max_messages:
            self._flush(key)
        elif len(entries) == 1:
            self._timers[key] = loop.call_later(self._max_wait, self._flush, key)
        return await entry.result

    def _flush(self, key: tuple[str, str]) -> None:
        entries = self._waiting.pop(key, [])
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        entries = [entry for entry in entries if not entry.result.done()]  # The others were released meanwhile.
        if entries:
            self._tasks.create_task(self._send(*key, entries), name="bulk-send")

    async def _send(self, path: str, topic: str, entries: list[_Entry]) -> None:
        body = {
            "entries": [
                {
                    "entryId": entry.entry_id,
                    "event": entry.event,
                    "metadata": entry.metadata,
                    "contentType": entry.content_type,
                }
                for entry in entries
            ],
            "id": new_id(),
            "metadata": {"pubsubName": self._pubsub},
            "pubsubname": self._pubsub,
            "topic": topic,
            "type": BULK_TYPE,
        }
        headers = [("Content-Type", "application/json"), ("pubsubName", self._pubsub)]
        _cancel_when_all_are_released(entries)
        results: Mapping[str, Attempt]
        started = time.perf_counter()
        try:
            with self._begun(topic, entries, headers):
                status, answer = await self._post(path, headers, orjson.dumps(body), "events")
        except HandlerFailedError as error:
            results, default = {}, Attempt(Outcome.RETRY, str(error), error.status)
        except AppFailedError as error:
            results, default = {}, Attempt(Outcome.RETRY, str(error), broken=True)
        except Exception as error:  # noqa: BLE001 - each delivery gets it, and it ends there, not the other batches
            for entry in entries:
                if not entry.result.done():
                    entry.result.set_exception(error)
            return
        else:
            results, default = judge_bulk(status, answer)
        seconds = time.perf_counter() - started
        self._observer(BATCHES, (self._pubsub, topic), len(entries), seconds)
        for entry in entries:
            if not entry.result.done():
                entry.result.set_result(results.get(entry.entry_id, default))

    def _begun(
        self, topic: str, entries: Sequence[_Entry], headers: list[tuple[str, str]]
    ) -> AbstractContextManager[object]:
        """Make the span of a batch: a child of the first publish that is recorded, with links to the others."""
        tracing = self._tracing
        told = [each.traceparent for each in entries if tracing.records(each.traceparent)]
        parent, *others = told or [entries[0].traceparent]
        span = tracing.span(parent)
        if span:
            headers.append(("traceparent", span))
        if not tracing.records(span):
            return UNTOLD
        tags = {**delivery_tags(topic), "messaging.batch.message_count": len(entries)}
        return tracing.begin(span, parent, f"pubsub/{topic}", SpanKind.CLIENT, tags, links=others[:MAX_LINKS])


def delivery_tags(topic: str) -> dict[str, Value]:
    """Give what every span of a delivery tells of it."""
    return {
        "messaging.system": "pubsub",
        "messaging.destination.name": topic,
        "messaging.operation.name": "deliver",
        "messaging.operation.type": "process",
    }


def _cancel_when_all_are_released(entries: Sequence[_Entry]) -> None:
    """End this task once nobody waits for any entry, since a policy's timeout or the shutdown has released them."""
    sending = asyncio.current_task()
    assert sending is not None
    waiting = len(entries)

    def released(_: object) -> None:
        nonlocal waiting
        waiting -= 1
        if not waiting:
            sending.cancel()

    for entry in entries:
        entry.result.add_done_callback(released)


def judge_bulk(status: int, answer: bytes) -> tuple[Mapping[str, Attempt], Attempt]:
    """Read an application's answer to a batch: results by entry id, and that of all others."""
    if status == 404:
        return {}, Attempt(Outcome.DROP, who_answered(404), status)
    if not 200 <= status < 300:
        return {}, Attempt(Outcome.RETRY, who_answered(status), status)
    missing = Attempt(Outcome.RETRY, "the application's answer has no status for this entry")
    try:
        statuses = folded(orjson.loads(answer)).get("statuses")
    except orjson.JSONDecodeError:
        return {}, missing
    items = [folded(item) for item in statuses] if isinstance(statuses, list) else []
    said = {str(item["entryid"]): item.get("status") for item in items if "entryid" in item}
    why = {str(item["entryid"]): str(item[DROP_REASON]) for item in items if {"entryid", DROP_REASON} <= item.keys()}
    results: dict[str, Attempt] = {}
    for entry_id, value in said.items():
        if value == "SUCCESS":
            results[entry_id] = SUCCESS
        elif value == "DROP":
            results[entry_id] = Attempt(Outcome.DROP, why.get(entry_id, who_answered("DROP")))
        else:
            results[entry_id] = Attempt(Outcome.RETRY, who_answered(repr(value)))
    return results, missing


def folded(value: object) -> Mapping[str, object]:
    """Give a JSON object's members with lower-case names; nothing for any other value."""
    return {str(name).lower(): member for name, member in value.items()} if isinstance(value, dict) else {}
