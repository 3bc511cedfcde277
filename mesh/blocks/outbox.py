"""The transactional outbox: what a transaction writes is published, and nothing else is.

A transaction begins by storing an event for each upsert on an internal topic, with a *marker* each: a key that the
transaction writes together with its items, on condition that it does not exist. Whoever takes the event from the
internal topic, here or in another instance, looks for its marker:

=======================  =======================================================================================
the marker               what follows
=======================  =======================================================================================
was written              the event is published, then the marker is deleted
says "given up"          the transaction failed; the marker is deleted with the event
says "fenced"            nothing: the transaction was found not to have happened, and no longer can
is not there             the transaction may still happen: wait, until its deadline is over
is not there any longer  write "fenced" in its place, where it still does not exist: whatever comes late fails on it
=======================  =======================================================================================

So whenever a process dies, either the marker is written, and with it the items, and the event is published until the
broker has confirmed it; or it never will be. An event may be published twice, with the same id: after the broker
confirmed it and before the marker was deleted.

Source: Dapr 1.18, the outbox, as it was seen on the wire; docs/compatibility.md lists the deviations.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Self, cast
from uuid import uuid4

import msgspec
import orjson

from mesh.blocks.block import Parts
from mesh.blocks.topics import BULK_PUBLISH, PUBLISH, BulkEntry, BulkPublish, Publish
from mesh.broker import Delivery
from mesh.delivery import SUCCESS, Attempt, Outcome
from mesh.errors import (
    BadArgumentError,
    CircuitOpenError,
    ComponentNotFoundError,
    ConfigError,
    ConflictError,
    EventError,
    InvalidEtagError,
    MeshError,
    OutboxError,
    PermissionDeniedError,
    StateLimitError,
    TooManyOperationsError,
)
from mesh.event import CLOUDEVENTS_JSON, SPECVERSION, is_json, media_type, members_of
from mesh.operation import Caller, Context, Operation
from mesh.resources.component import Component
from mesh.store import Concurrency, Item, StateStore
from mesh.tasks import until_any
from mesh.values import parse_bool

__all__ = [
    "OUTBOX_SETTINGS",
    "PREFIX",
    "PROJECTION",
    "Outbox",
    "OutboxSettings",
    "Verdict",
    "event_of",
    "judge",
    "named",
    "outbox_settings",
    "split",
]

logger = logging.getLogger(__name__)

OUTBOX_SETTINGS = ("outboxPublishPubsub", "outboxPublishTopic", "outboxPubsub", "outboxDiscardWhenMissingState")
PREFIX = "outbox-"
_IS_MARKER = re.compile(rf"{PREFIX}[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}(\{{.+\}})?", re.DOTALL).fullmatch
WRITTEN, GIVEN_UP, FENCED = b'"0"', b'"given up"', b'"fenced"'
REFUSALS = (ConflictError, InvalidEtagError, StateLimitError, BadArgumentError)  # Of others the outcome may be unknown.
UNSTORED = (PermissionDeniedError, CircuitOpenError, ComponentNotFoundError, EventError)  # Then there is no event.
FENCE_SECONDS = 24 * 3600.0
MARGIN_SECONDS = 5.0  # Between clocks.
LONGEST_WAIT = 30.0
WAITS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
RETRY_SECONDS = 1.0
STOP_SECONDS = 5.0
MAX_TAG = 100
EVENT_TYPE = "com.dapr.event.sent"
PROJECTION = "outbox.projection"
_OVERRIDE = "cloudevent."
_STORE, _MARKER, _UNTIL, _CALLER, _KEY = "outboxstore", "outboxmarker", "outboxuntil", "outboxcaller", "outboxkey"
_BAGGAGE = "outboxbaggage"
_MARKER_ITEM = Item(
    "", WRITTEN, None, Concurrency.FIRST_WRITE, metadata={"ttlInSeconds": "-1"}
)  # Whatever the default.
_OURS = frozenset({_STORE, _MARKER, _UNTIL, _CALLER, _KEY, _BAGGAGE})
_FIXED = frozenset({"specversion", "data", "data_base64", "topic", "pubsubname", *_OURS})


@dataclass(frozen=True, slots=True)
class OutboxSettings:
    """Where the events of a store's transactions go.

    Attributes:
        publish_pubsub: Name of the pub/sub component.
        publish_topic: Its topic.
        pubsub: Name of the pub/sub component of the internal topic.
    """

    publish_pubsub: str
    publish_topic: str
    pubsub: str


def outbox_settings(component: Component) -> OutboxSettings | None:
    """Read the settings; None when there is no outbox.

    Raises:
        ConfigError: Some are missing or wrong, located.
    """
    given = {name: (component.setting(name) or "").strip() for name in OUTBOX_SETTINGS if component.entry(name)}
    if not given:
        return None
    problems = [
        component.problem(f"needs {name} beside it", setting=next(iter(given)))
        if name not in given
        else component.problem("must not be empty", setting=name)
        for name in OUTBOX_SETTINGS[:2]
        if not given.get(name)
    ]
    discard = given.get(OUTBOX_SETTINGS[3])
    try:
        if discard:
            parse_bool(discard, words=True)
    except ValueError as error:
        problems.append(component.problem(str(error), setting=OUTBOX_SETTINGS[3]))
    if problems:
        raise ConfigError(problems)
    pubsub, topic = given[OUTBOX_SETTINGS[0]], given[OUTBOX_SETTINGS[1]]
    return OutboxSettings(pubsub, topic, given.get(OUTBOX_SETTINGS[2]) or pubsub)


def named(component: Component) -> dict[str, tuple[str, str]]:
    """Give the pub/sub components that the settings name, as far as they are known before the start."""
    entries = {name: component.entry(name) for name in (OUTBOX_SETTINGS[0], OUTBOX_SETTINGS[2])}
    texts = {name: (entry.text() or "").strip() for name, entry in entries.items() if entry is not None}
    return {name: ("pubsub", text) for name, text in texts.items() if text and "{" not in text}


def split(items: Sequence[Item]) -> tuple[list[bool], list[Item]]:
    """Part what is stored from what is published.

    A projection is published and not stored; with one, the item of the same key is stored and not published.

    Returns:
        Whether each item is stored, and those that are published.

    Raises:
        BadArgumentError: A projection is none.
    """
    projected = [_is_projection(item) for item in items]
    keys = {item.key for item, is_one in zip(items, projected, strict=True) if is_one}
    published = [
        item
        for item, is_one in zip(items, projected, strict=True)
        if is_one or (item.value is not None and item.key not in keys)
    ]
    return [not is_one for is_one in projected], published


def _is_projection(item: Item) -> bool:
    text = item.metadata.get(PROJECTION)
    try:
        return text is not None and item.value is not None and parse_bool(text, words=True)
    except ValueError as error:
        raise BadArgumentError(f"{PROJECTION} of key {item.key} {error}") from None


def _tag(items: Sequence[Item]) -> str:
    """Give what a marker ends with to be where the items are: on a Redis cluster, what stands in braces decides."""
    key = items[0].key if items else ""
    begin = key.find("{")
    end = key.find("}", begin)
    return key[begin : end + 1] if 0 <= begin < end - 1 <= begin + MAX_TAG else ""


def event_of(item: Item, event_id: str, context: Context) -> dict[str, object]:
    """Make the event of an item: its attributes are what its metadata say."""
    members: dict[str, object] = {"id": event_id, "source": context.caller.app_id, "type": EVENT_TYPE}
    if context.traceparent:
        members |= {"traceparent": context.traceparent, "tracestate": context.tracestate}
    for name, value in item.metadata.items():
        lowered = name.lower()
        own = lowered.startswith(_OVERRIDE)
        name = lowered.removeprefix(_OVERRIDE) if own else name
        if lowered != PROJECTION and name.lower() not in _FIXED and (own or name != "id"):
            members[name] = value
    members["specversion"] = SPECVERSION
    told = [value for name, value in item.metadata.items() if name.lower() in ("contenttype", "datacontenttype")]
    return members | _data(item.value or b"", told[-1] if told else "")


def _data(value: bytes, content_type: str) -> dict[str, object]:
    """Give the data as it stands in the event: JSON stays JSON, a text is one."""
    text: str | None = None
    is_value = True
    try:
        read = orjson.loads(value)
        text = read if isinstance(read, str) else None
    except orjson.JSONDecodeError:
        is_value = False
        with suppress(UnicodeDecodeError):
            text = value.decode()
    if not content_type:
        content_type = "text/plain" if text is not None else "application/json"
        if text is None and not is_value:
            content_type = "application/octet-stream"
    media = media_type(content_type)
    told: dict[str, object] = {"datacontenttype": content_type}
    if is_json(media) and is_value:
        return told | {"data": orjson.Fragment(value)}
    if media == "application/octet-stream" or (text is None and not is_value):
        return told | {"data_base64": base64.b64encode(value if text is None else text.encode()).decode()}
    return told | {"data": value.decode() if text is None else text}


class Verdict(Enum):
    """What follows from a marker."""

    PUBLISH = "publish"
    FORGET = "forget"
    DONE = "done"
    WAIT = "wait"
    FENCE = "fence"


def judge(marker: bytes | None, left: float) -> Verdict:
    """Decide what becomes of an event.

    Args:
        marker: What stands there; None = nothing.
        left: Seconds until its transaction is over.
    """
    if marker is None:
        return Verdict.WAIT if left > 0 else Verdict.FENCE
    told = marker.strip()
    if told == FENCED:
        return Verdict.DONE
    return Verdict.FORGET if told == GIVEN_UP else Verdict.PUBLISH


@dataclass(slots=True)
class _Prepared:
    event: dict[str, object]
    marker: str
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Outbox:
    """The outbox of one state store; entered, it takes events from the internal topic."""

    def __init__(self, name: str, store: StateStore, settings: OutboxSettings, parts: Parts) -> None:
        """Prepare.

        Args:
            name: Of the component.
            store: The open store; its keys have no prefix here.
            settings: Where events go.
            parts: Of the node.
        """
        self._name = name
        self._store = store
        self._settings = settings
        self._parts = parts
        caller = parts.caller
        self._topic = f"{caller.namespace}{caller.app_id}{settings.publish_topic}outbox"
        # Of each store its own: stores that publish to one topic share the internal one, and each must see its events.
        self._group = f"{caller.app_id}-{name}"
        self._ttl = FENCE_SECONDS if "TTL" in store.capabilities else None
        self._open: dict[str, asyncio.Event] = {}
        self._ready = asyncio.Event()
        self._problem = ""
        self._stopping = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._taking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to take events, once the node can."""
        await self._tasks.__aenter__()
        self._taking = self._tasks.create_task(self._take(), name="outbox-take")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop; what is in the middle goes on elsewhere, or here after the next start."""
        self._stopping.set()
        if self._taking is not None:
            if not self._ready.is_set():
                self._taking.cancel()  # Nothing is in the middle.
            try:
                await asyncio.wait([self._taking], timeout=STOP_SECONDS)
            finally:
                self._taking.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def _take(self) -> None:
        taking = await self._parts.topics.taking()
        while not self._stopping.is_set():
            try:
                async with taking(self._settings.pubsub, self._topic, self._group, self.attempt) as leaving:
                    self._problem = ""
                    self._ready.set()
                    if leaving.is_set():  # The node drains: there is no other one to go over to.
                        await self._stopping.wait()
                    else:
                        await until_any(self._stopping, leaving)
            except* MeshError as group:
                if self._problem != (text := str(group.exceptions[0])):
                    self._problem = text
                    logger.warning("outbox of %s: cannot take its events, trying again: %s", self._name, text)
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_SECONDS):
                        await self._stopping.wait()

    # A transaction

    async def transact(self, operation: Operation, given: Sequence[Item], prefixed: Sequence[Item]) -> None:
        """Write all items or none, and have what they say published if they are written.

        Args:
            operation: The transaction.
            given: Its items, with the application's keys.
            prefixed: The same with the keys as stored.

        Raises:
            OutboxError: The events could not be stored first; nothing was written.
            StateError: As of any transaction.
        """
        stored, published = split(given)
        items = [item for item, is_stored in zip(prefixed, stored, strict=True) if is_stored]
        until = (operation.deadline or time.time() + operation.method.seconds) + MARGIN_SECONDS
        tag = _tag(prefixed)
        # Another attempt has the same events, since the one before may have been done.
        before = cast("Sequence[_Prepared]", operation.kept or ())
        prepared = [replace(each, event=each.event | {_UNTIL: int(until)}, done=asyncio.Event()) for each in before]
        prepared = prepared or [self._prepared(item, operation.context, until, tag) for item in published]
        markers = [msgspec.structs.replace(_MARKER_ITEM, key=each.marker) for each in prepared]
        most = self._store.max_transaction
        if most is not None and len(items) + len(markers) > most:
            raise TooManyOperationsError(len(items) + len(markers), most)
        if not prepared:
            if items:
                await self._store.write(items)
            return
        await self._until_ready()
        self._open |= {each.marker: each.done for each in prepared}
        try:
            await self._store_events(prepared, () if before else markers, operation.deadline or None, until)
            operation.kept = prepared
            try:
                await self._store.write([*items, *markers])
            except REFUSALS as error:
                if before and isinstance(error, ConflictError) and await self._is_done(operation, markers):
                    return
                await self._give_up(markers)
                raise
        finally:
            for each in prepared:
                self._open.pop(each.marker, None)
                each.done.set()

    async def _is_done(self, operation: Operation, markers: Sequence[Item]) -> bool:
        """Tell whether an attempt before was done: a marker of its own was in the way of this one.

        Raises:
            OutboxError: It can not happen any more with these events; another attempt has others.
        """
        found = [await self._store.get(each.key, strong=True) for each in markers]
        verdicts = {judge(each.value, 0.0) for each in found if each is not None}
        if Verdict.DONE in verdicts:
            operation.kept = None
            raise OutboxError("the events were dropped before it was written; nothing was")
        return Verdict.PUBLISH in verdicts

    def _prepared(self, item: Item, context: Context, until: float, tag: str) -> _Prepared:
        event_id = f"{PREFIX}{uuid4()}"
        marker = event_id + tag
        event = event_of(item, event_id, context)
        event |= {_STORE: self._name, _MARKER: marker, _UNTIL: int(until), _CALLER: context.caller.app_id}
        if context.baggage:
            event[_BAGGAGE] = context.baggage
        key = next((value for name, value in item.metadata.items() if name.lower() == "partitionkey"), None)
        return _Prepared(event if key is None else event | {_KEY: key}, marker)

    async def _until_ready(self) -> None:
        """Wait until the internal topic is subscribed to: before, some brokers keep nothing for us."""
        if not self._ready.is_set() and self._problem:
            raise OutboxError(f"cannot subscribe to {self._settings.pubsub}/{self._topic}: {self._problem}")
        await self._ready.wait()

    async def _store_events(
        self, prepared: Sequence[_Prepared], markers: Sequence[Item], deadline: float | None, until: float
    ) -> None:
        entries = [BulkEntry(each.marker, CLOUDEVENTS_JSON, orjson.dumps(each.event), {}) for each in prepared]
        context = Context(self._parts.caller, deadline)
        try:
            asked = BulkPublish(self._topic, entries)
            await self._parts.run(Operation(BULK_PUBLISH, self._settings.pubsub, asked, context))
        except MeshError as error:
            failed = cast("Mapping[str, MeshError]", getattr(error, "failed", {}))
            stored = [each for each in markers if not isinstance(failed.get(each.key, error), UNSTORED)]
            # Nothing may have been stored; then nobody deletes them, and after the deadline none is needed.
            await self._give_up(stored, max(1.0, until - time.time()))
            raise OutboxError(str(next(iter(failed.values()), error)), retryable=error.retryable) from error

    async def _give_up(self, markers: Sequence[Item], seconds: float = FENCE_SECONDS) -> None:
        """Tell who takes the events that there will be no transaction; else it waits for the deadline."""
        ttl = None if self._ttl is None else seconds
        if not markers:
            return
        try:
            await self._store.save_each([msgspec.structs.replace(each, value=GIVEN_UP, ttl=ttl) for each in markers])
        except MeshError as error:
            logger.debug("outbox of %s: cannot give up an event, it is given up later: %s", self._name, error)

    # Its events

    async def attempt(self, delivery: Delivery) -> Attempt:
        """Find out whether an event's transaction happened, and publish it if so."""
        try:
            event = members_of(delivery.message.body)
            marker, until = event[_MARKER], event[_UNTIL]
            # Whoever may publish to the topic must not have other keys deleted.
            if not isinstance(marker, str) or not _IS_MARKER(marker) or not isinstance(until, int):
                raise EventError(f"{_MARKER} or {_UNTIL} is none")
        except (EventError, KeyError) as error:
            return Attempt(Outcome.DROP, f"this is no event of an outbox: {error}")
        if event.get(_STORE) != self._name:
            return SUCCESS  # Another store's; its outbox takes it as well.
        verdict = await self._verdict(marker, until)
        if verdict is Verdict.WAIT:
            return Attempt(Outcome.RETRY, "its transaction may still be under way", broken=True)
        if verdict is Verdict.PUBLISH:
            await self._publish(event)
        if verdict is not Verdict.DONE:
            await self._store.write([Item(marker, None)])
        return SUCCESS

    async def _verdict(self, marker: str, until: float) -> Verdict:
        """Look for a marker until it decides; ``WAIT`` when that takes too long for one attempt."""
        running = self._open.get(marker)
        if running is not None:
            await running.wait()
        started = time.monotonic()
        waits = iter(WAITS)
        while not self._stopping.is_set() and time.monotonic() - started < LONGEST_WAIT:
            found = await self._store.get(marker, strong=True)
            verdict = judge(None if found is None else found.value, until - time.time())
            if verdict is Verdict.WAIT:
                await asyncio.sleep(next(waits, WAITS[-1]))
            elif verdict is not Verdict.FENCE:
                return verdict
            else:
                fence = msgspec.structs.replace(_MARKER_ITEM, key=marker, value=FENCED, ttl=self._ttl)
                with suppress(ConflictError):  # It was written just now.
                    await self._store.write([fence])
                    logger.info("outbox of %s: dropped an event whose transaction did not happen", self._name)
                    return Verdict.DONE
        return Verdict.WAIT

    async def _publish(self, event: Mapping[str, object]) -> None:
        body = orjson.dumps({name: value for name, value in event.items() if name not in _OURS})
        key = event.get(_KEY)
        metadata = {"partitionKey": key} if isinstance(key, str) else {}
        caller = Caller(self._parts.caller.namespace, str(event.get(_CALLER, self._parts.caller.app_id)))
        traceparent = event.get("traceparent")
        baggage = event.get(_BAGGAGE)
        context = Context(
            caller,
            None,
            traceparent if isinstance(traceparent, str) else None,
            baggage=baggage if isinstance(baggage, str) else "",
        )
        publish = Publish(self._settings.publish_topic, body, CLOUDEVENTS_JSON, metadata)
        await self._parts.run(Operation(PUBLISH, self._settings.publish_pubsub, publish, context))
