"""Durable invocation: an ordinary call that the broker keeps until the callee has answered it.

The call is stored on the callee's own topic, so the callee may be offline; its gateway hands it to
the same handler as a direct call, and retries like a topic's event. What came of it is kept for a
while under the call's id, and is published if the caller asked for that.

A call runs at least once. Two calls under one idempotency key are one call: the second is answered
with the first one's id, and a redelivered call that has an outcome is not run again. A callee that
dies between running a call and noting its outcome runs it again; see docs/guarantees.md.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import cast
from urllib.parse import unquote

import orjson

from mesh import address
from mesh.application import AppFailedError, Application, AppResponse, Headers
from mesh.blocks.invocation import HTTP_HEADER, forwardable, pack, unpack
from mesh.broker import Broker, Delivery, KeyValue, Message, Operation, SubscribeOptions
from mesh.delivery import NOT_BEFORE_HEADER, SUCCESS, Attempt, Outcome, Settlement
from mesh.errors import ConflictError
from mesh.event import encode_header_value
from mesh.policies import BUILT_IN_RETRIES, Policy, Retry

__all__ = ["CALLS", "KEEP_SECONDS", "DurableCall", "DurableInvocation", "Record", "State"]

CALLS = "mesh-calls"  # The component name under which calls are stored; users' names cannot clash with its topics.
ID_HEADER = "mesh-call-id"
REPLY_HEADER = "mesh-reply-topic"
DEAD_LETTER_HEADER = "mesh-dead-letter-topic"
KEEP_SECONDS = 24 * 3600.0
MAX_KEPT_BODY_BYTES = 512 * 1024
RETRIED_STATUSES = frozenset({408, 425, 429})

DEFAULT_RETRY = Retry("exponential", 0.5, 60.0, 1000)
Publish = Callable[[str, str, bytes], Awaitable[None]]


class State(StrEnum):
    """Where a durable call is."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a call.

    Attributes:
        id: The call's id.
        app_id: The callee.
        method: Path and query.
        state: Where it is.
        attempts: How often it was tried.
        reason: Why it failed.
        status: The application's HTTP status.
        headers: The answer's headers.
        body: The answer's body, at most 512 KiB of it.
        truncated: Whether the body was longer.
    """

    id: str
    app_id: str
    method: str
    state: State = State.PENDING
    attempts: int = 0
    reason: str = ""
    status: int | None = None
    headers: Headers = ()
    body: bytes = b""
    truncated: bool = False

    def described(self) -> dict[str, object]:
        """Give what an application is told: JSON data as JSON, text as text, anything else as base64."""
        told: dict[str, object] = {
            "id": self.id,
            "appId": self.app_id,
            "method": self.method,
            "state": self.state,
            "attempts": self.attempts,
        }
        if self.reason:
            told["reason"] = self.reason
        if self.status is not None:
            told["status"] = self.status
            told["headers"] = dict(self.headers)
            told |= _data(self.body)
        if self.truncated:
            told["truncated"] = True
        return told

    def encode(self) -> bytes:
        """Write it for the store: one line of JSON, then the body as it is."""
        head = {
            "id": self.id,
            "app_id": self.app_id,
            "method": self.method,
            "state": self.state,
            "attempts": self.attempts,
            "reason": self.reason,
            "status": self.status,
            "headers": pack(*self.headers),
            "truncated": self.truncated,
        }
        return orjson.dumps(head) + b"\n" + self.body

    @classmethod
    def decode(cls, stored: bytes) -> Record:
        """Read it back."""
        line, _, body = stored.partition(b"\n")
        head = orjson.loads(line)
        headers = cast("Headers", [tuple(each) for each in unpack(head.pop("headers"))])  # type: ignore[arg-type]
        return cls(**{**head, "state": State(head["state"]), "headers": headers, "body": body})


def _data(body: bytes) -> dict[str, object]:
    if not body:
        return {}
    try:
        orjson.loads(body)
        return {"data": orjson.Fragment(body)}
    except orjson.JSONDecodeError:
        pass
    try:
        return {"data": body.decode()}
    except UnicodeDecodeError:
        return {"data_base64": base64.b64encode(body).decode()}


@dataclass(frozen=True, slots=True)
class DurableCall:
    """What is to be called.

    Attributes:
        app_id: The callee.
        verb: The HTTP method.
        target: Path and raw query.
        headers: Forwardable ones.
        body: The body, whole.
        key: The idempotency key; None makes every call its own.
        window: Seconds in which the key holds.
        delay: Seconds until it may run.
        reply_topic: ``topic`` or ``component/topic`` that gets the outcome; None for nowhere.
        dead_letter_topic: The same for a call that is given up; None retries for as long as it is stored.
    """

    app_id: str
    verb: str
    target: str
    headers: Headers
    body: bytes
    key: str | None = None
    window: float = KEEP_SECONDS
    delay: float = 0.0
    reply_topic: str | None = None
    dead_letter_topic: str | None = None


class DurableInvocation:
    """The building block."""

    def __init__(self, broker: Broker, records: KeyValue, publish: Publish, *, app_id: str, namespace: str) -> None:
        """Use a connected backbone.

        Args:
            broker: Where calls are stored.
            records: Where outcomes are kept.
            publish: Publishes JSON to ``topic`` or ``component/topic``, under an event id.
            app_id: The caller, and the callee whose calls this node serves.
            namespace: The mesh's namespace.
        """
        self._broker = broker
        self._records = records
        self._publish = publish
        self._app_id = app_id
        self._namespace = namespace

    def _address(self, app_id: str) -> address.Address:
        return address.topic(self._namespace, CALLS, app_id)

    async def accept(self, call: DurableCall) -> str:
        """Store a call; return its id once the broker has confirmed it.

        Raises:
            BrokerError: Not stored.
        """
        call_id = secrets.token_hex(16)
        if call.key is not None:
            call_id = hashlib.blake2s(f"{call.app_id}\0{call.key}".encode(), digest_size=16).hexdigest()
            if await self._records.get(call_id, strong=True) is not None:
                return call_id
        headers = {
            "ce-specversion": "1.0",
            "ce-id": call_id,
            "ce-source": address.encode_token(self._app_id),
            "ce-type": "mesh.invocation.durable",
            HTTP_HEADER: pack(call.verb, call.target, call.headers),
            ID_HEADER: call_id,
        }
        if call.delay > 0:
            headers[NOT_BEFORE_HEADER] = str(int((time.time() + call.delay) * 1000))
        if call.reply_topic is not None:
            headers[REPLY_HEADER] = encode_header_value(call.reply_topic)
        if call.dead_letter_topic is not None:
            headers[DEAD_LETTER_HEADER] = encode_header_value(call.dead_letter_topic)
        # First the call, then the record: a crash in between repeats a call, which the callee notices; it loses none.
        await self._broker.publish(self._address(call.app_id), Message(headers, call.body, id=call_id))
        record = Record(call_id, call.app_id, call.target)
        try:
            window = max(call.window, call.delay) if call.key is not None else KEEP_SECONDS + call.delay
            await self._records.apply([Operation(call_id, record.encode(), 0, window)])
        except ConflictError:
            pass  # The callee was quicker, or the same key came twice at once.
        return call_id

    async def outcome(self, call_id: str) -> Record | None:
        """Read what came of a call; None when its id is unknown or its time is over."""
        entry = await self._records.get(call_id, strong=True)
        return None if entry is None else Record.decode(entry.value)

    @asynccontextmanager
    async def serve(
        self, application: Application, policy: Policy, count: Callable[[str], None]
    ) -> AsyncIterator[None]:
        """Run this application's calls while entered."""
        if policy.retry is None or policy.retry.name in BUILT_IN_RETRIES:
            policy = replace(policy, retry=DEFAULT_RETRY)
        options = SubscribeOptions(self._app_id)
        callee = _Callee(self._records, self._publish, application, self._app_id)
        settlement = Settlement(
            callee.attempt,
            policy=policy,
            dead_letter=callee.give_up,
            until_reachable=application.until_reachable,
            count=count,
            ack_wait=options.ack_wait,
            label=f"durable calls of {self._app_id}",
        )
        subscribed = self._broker.subscribe(self._address(self._app_id), options, settlement)
        async with settlement.extending(), subscribed:
            yield


class _Callee:
    """Runs calls and notes what came of them."""

    def __init__(self, records: KeyValue, publish: Publish, application: Application, app_id: str) -> None:
        self._records = records
        self._publish = publish
        self._application = application
        self._app_id = app_id

    async def attempt(self, delivery: Delivery) -> Attempt:
        """Run a call once, unless it has an outcome."""
        message = delivery.message
        try:
            verb, target, given = unpack(message.headers[HTTP_HEADER])
            call_id = message.headers[ID_HEADER]
        except (KeyError, ValueError):
            return Attempt(Outcome.DROP, "not a durable call")
        known = await self._records.get(call_id, strong=True)
        if known is not None and Record.decode(known.value).state is not State.PENDING:
            return SUCCESS
        headers = [*cast("Headers", given), ("mesh-call-id", call_id), ("mesh-attempt", str(delivery.attempt))]
        record = Record(call_id, self._app_id, cast("str", target), attempts=delivery.attempt)
        try:
            async with self._application.call(cast("str", verb), record.method, headers, message.body) as response:
                body, truncated = await _read(response)
                status, answered = response.status, forwardable(response.headers)
        except AppFailedError as error:
            return Attempt(Outcome.RETRY, str(error), broken=True)
        if status >= 500 or status in RETRIED_STATUSES:
            return Attempt(Outcome.RETRY, f"the application answered {status}", status)
        await self._finish(
            delivery,
            replace(record, state=State.SUCCEEDED, status=status, headers=answered, body=body, truncated=truncated),
        )
        return SUCCESS

    async def give_up(self, delivery: Delivery, reason: str, attempts: int) -> None:
        """Note that a call failed for good, and publish it to its dead letter topic."""
        headers = delivery.message.headers
        if HTTP_HEADER not in headers or ID_HEADER not in headers:
            return
        _, target, _ = unpack(headers[HTTP_HEADER])
        record = Record(headers[ID_HEADER], self._app_id, cast("str", target), State.FAILED, attempts, reason)
        if (topic := headers.get(DEAD_LETTER_HEADER)) is not None:
            told = record.described() | _data(delivery.message.body)
            await self._publish(unquote(topic), f"{record.id}-dead", orjson.dumps(told))
        await self._finish(delivery, record)

    async def _finish(self, delivery: Delivery, record: Record) -> None:
        """Publish the outcome, then note it: a crash in between repeats both, and loses neither."""
        topic = delivery.message.headers.get(REPLY_HEADER)
        if topic is not None:
            await self._publish(unquote(topic), record.id, orjson.dumps(record.described()))
        await self._records.apply([Operation(record.id, record.encode(), None, KEEP_SECONDS)])


async def _read(response: AppResponse) -> tuple[bytes, bool]:
    """Read an answer, at most as much of it as is kept."""
    whole = await response.read_up_to(MAX_KEPT_BODY_BYTES)
    if whole is not None:
        return whole, False
    body = b""
    async for part in response.parts():
        body += part
        if len(body) > MAX_KEPT_BODY_BYTES:
            return body[:MAX_KEPT_BODY_BYTES], True
    return body, False
