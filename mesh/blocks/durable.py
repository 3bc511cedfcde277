"""Durable invocation: an ordinary call that the broker keeps until the callee has answered it.

The call is stored on the callee's own topic, so the callee may be offline; its gateway hands it to
the same handler as a direct call, and retries like a topic's event. What came of it is kept for a
while under the call's id, and is published if the caller asked for that.

A call runs at least once. Two calls of an application under one idempotency key are one call: the second
is answered with the first one's id, and a redelivered call that has an outcome is not run again, whatever
became of publishing it. A callee that dies between running a call and noting its outcome runs it again; see
docs/guarantees.md.

Outcomes are published with the caller's rights, not the callee's, and told to the two of them alone.

A call to another cluster is stored on the topic of that cluster's calls, which its bridges take (``mesh/bridge``). At
the callee, what comes from a bridge sends its outcome back the same way: to the topic of the caller's cluster.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast
from urllib.parse import unquote

import msgspec
import orjson

from mesh import address, telemetry
from mesh.access import Gate, naming, sender
from mesh.application import Application, AppResponse, Headers
from mesh.blocks.answering import note_status, served
from mesh.blocks.block import Block, Held, Inbound, Opened, Parts
from mesh.blocks.durable_outcome import (
    DEAD_LETTER_HEADER,
    REPLY_HEADER,
    asked_of,
    going_back,
    publish_outcome,
    queue_of,
    split_topic,
)
from mesh.blocks.durable_record import (
    ID_HEADER,
    KEEP_SECONDS,
    KEY,
    Record,
    Records,
    State,
    calls_of,
    data_of,
    id_of,
    new_id,
)
from mesh.blocks.invocation import HTTP_HEADER, OUTSIDE, forwardable
from mesh.blocks.records import RECORD_SECONDS, LazyRecords
from mesh.broker import Delivery, Message, SubscribeOptions, Topology
from mesh.clusters import CALLED_HEADER, cluster_of, target_of
from mesh.delivery import NOT_BEFORE_HEADER, SUCCESS, Attempt, Outcome, Settlement
from mesh.errors import (
    AppFailedError,
    BadArgumentError,
    ConflictError,
    EventError,
    PermissionDeniedError,
    UnprovenError,
)
from mesh.event import encode_header_value, required_headers
from mesh.operation import Caller, Method, Operation
from mesh.packing import pack
from mesh.passing import Passing
from mesh.policies import BUILT_IN_RETRIES, Policy, Retry
from mesh.store import Concurrency, Item
from mesh.telemetry import NOT_TRACED, UNTOLD, Tracing, who_answered

__all__ = [
    "ACCEPT",
    "BLOCK",
    "CALLS",
    "OUTCOME",
    "RECORDS",
    "DurableCall",
    "DurableInvocation",
]

logger = logging.getLogger(__name__)

CALLS = "mesh-calls"  # The component name under which calls are stored; users' names cannot clash with its topics.
RECORDS = "mesh:invocations"
MAX_SECONDS = 365 * 24 * 3600.0
MAX_KEY_BYTES = 512
MAX_KEPT_BODY_BYTES = 512 * 1024
RETRIED_STATUSES = frozenset({408, 425, 429})

DEFAULT_RETRY = Retry("exponential", 0.5, 60.0, 1000)
ACCEPT_SECONDS = 30.0
PublishOutcome = Callable[[Delivery, str, str, bytes], Awaitable[None]]
SendBack = Callable[[str, Message], Awaitable[None]]


class DurableCall(msgspec.Struct, frozen=True):
    """What is to be called.

    Attributes:
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

    verb: str
    target: str
    headers: Headers
    body: bytes
    key: str | None = None
    window: float = KEEP_SECONDS
    delay: float = 0.0
    reply_topic: str | None = None
    dead_letter_topic: str | None = None


ACCEPT = Method("durable", "accept", DurableCall, str, seconds=ACCEPT_SECONDS)
OUTCOME = Method("durable", "outcome", type(None), Record, seconds=ACCEPT_SECONDS)


class DurableInvocation:
    """The building block."""

    def __init__(self, block: Block, parts: Parts, components: Mapping[str, Opened]) -> None:
        """Use a connected backbone."""
        from mesh.large import carrying  # Who only names a block needs none of it.

        self._parts = parts
        self._broker = carrying(parts.broker)
        guard = parts.exchange.guard
        self._kept = None if guard is None else guard.kept
        self._store_of_records = LazyRecords(RECORDS, parts.records)
        self._records = Records(self._store_of_records, parts.caller, self._kept)
        self._app_id = parts.caller.app_id
        self._namespace = parts.caller.namespace
        self._declared = False

    async def run(self, operation: Operation) -> object:
        """Store a call for an app id, or tell what came of a call by its id."""
        if operation.method is ACCEPT:
            return await self._accept(operation)
        return await self._outcome(operation)

    def described(self) -> Mapping[str, object]:
        """Add nothing to the node's description."""
        return {}

    async def _address(self, app_id: str) -> address.Address:
        where = address.topic(self._namespace, CALLS, app_id)
        if not self._declared:
            await self._broker.declare(Topology(space=where.space))
            self._declared = True
        return where

    async def _accept(self, operation: Operation) -> str:
        """Store a call; give its id once the broker has confirmed it.

        Raises:
            BadArgumentError: The callee, or a topic for the outcome, makes no sense.
            RecordsMissingError: The mesh has no place for outcomes.
            BrokerError: Not stored.
        """
        call, app_id, caller = cast("DurableCall", operation.arguments), operation.target, operation.context.caller
        target = target_of(app_id)
        if app_id.startswith(OUTSIDE) or (target.namespace and not target.cluster):
            raise BadArgumentError("a durable call goes to an application of this namespace, or of another cluster")
        if call.key is not None and len(call.key.encode()) > MAX_KEY_BYTES:
            raise BadArgumentError(f"an idempotency key is longer than {MAX_KEY_BYTES} bytes")
        for topic in (call.reply_topic, call.dead_letter_topic):
            if topic is not None:
                split_topic(topic)
        if max(call.delay, call.window) > MAX_SECONDS:
            raise BadArgumentError(f"a delay or a window is {MAX_SECONDS / 86400:g} days at most")
        await self._store_of_records.opened()  # Without a place for the outcome nothing is accepted.
        if call.key is None:
            return await self._store(operation, new_id(app_id))
        window = max(call.window, call.delay)
        identity = f"{caller.namespace}\0{caller.app_id}\0{app_id}\0{call.key}"
        key = f"{KEY}{hashlib.blake2s(identity.encode(), digest_size=16).hexdigest()}"
        call_id, accepted = await self._reserve(key, app_id, window)
        if not accepted:  # A crash before this is noted has the next one with this key store the same call again.
            await self._store(operation, call_id)
            await self._store_of_records.write([Item(key, orjson.dumps([call_id, True]), ttl=window)])
        return call_id

    async def _reserve(self, key: str, app_id: str, window: float) -> tuple[str, bool]:
        """Give the id of the call that a key stands for, and whether that was accepted already."""
        known = await self._store_of_records.get(key)
        if known is None:
            call_id = new_id(app_id)
            try:
                reserved = Item(key, orjson.dumps([call_id, False]), None, Concurrency.FIRST_WRITE, window)
                await self._store_of_records.write([reserved])
                return call_id, False
            except ConflictError:  # The same key came twice at once: both are one call.
                known = await self._store_of_records.get(key)
        if known is None:
            raise BadArgumentError("the window of the idempotency key is over before the call is stored")
        call_id, accepted = orjson.loads(known.value)
        return call_id, accepted

    async def _store(self, operation: Operation, call_id: str) -> str:
        call, app_id, caller = cast("DurableCall", operation.arguments), operation.target, operation.context.caller
        headers = required_headers(call_id, caller.app_id, "mesh.invocation.durable")
        headers[HTTP_HEADER] = pack(call.verb, call.target, call.headers)
        headers[ID_HEADER] = call_id
        if call.delay > 0:
            headers[NOT_BEFORE_HEADER] = str(int((time.time() + call.delay) * 1000))
        if call.reply_topic is not None:
            headers[REPLY_HEADER] = encode_header_value(call.reply_topic)
        if call.dead_letter_topic is not None:
            headers[DEAD_LETTER_HEADER] = encode_header_value(call.dead_letter_topic)
        # First the call, then the record: a crash in between repeats a call, which the callee notices; it loses none.
        if cluster := cluster_of(app_id):
            headers[CALLED_HEADER] = encode_header_value(app_id)
        await self._put(queue_of(cluster) if cluster else app_id, Message(headers, call.body, id=call_id))
        record = Record(call_id, app_id, call.target, caller=caller.app_id)
        try:
            due = headers.get(NOT_BEFORE_HEADER)
            await self._records.write(record, KEEP_SECONDS + call.delay, first=True, due=due)
        except ConflictError:
            pass  # The callee was quicker, or the same call was stored before.
        return call_id

    async def _put(self, queue: str, message: Message) -> None:
        """Store a message on a topic of calls; raises ``BrokerError``."""
        where = await self._address(queue)
        if self._kept is not None:
            message = self._kept.prove(calls_of(where), message)
        await self._broker.publish(where, message)

    async def _outcome(self, operation: Operation) -> Record | None:
        """Read what came of a call; None when its id is unknown, its time is over, or it is none of the asker's.

        Raises:
            UnprovenError: What is kept of it is by nobody who may say it.
        """
        stored = await self._store_of_records.get(operation.target)
        asker, record = operation.context.caller.app_id, None if stored is None else Record.decode(stored.value)
        if stored is None or record is None or asker not in (record.caller, record.app_id):
            return None
        return self._records.proven(operation.target, stored.value)

    async def inbound(self, inbound: Inbound) -> Sequence[Held]:
        """Run this application's calls."""
        policy = self._parts.policies.for_app(self._app_id)
        return [Held("durable calls", policy, self._served(inbound.application, policy))]

    @asynccontextmanager
    async def _served(self, application: Application, policy: Policy) -> AsyncIterator[None]:
        if policy.retry is None or policy.retry.name in BUILT_IN_RETRIES:
            policy = replace(policy, retry=DEFAULT_RETRY)
        options = SubscribeOptions(self._app_id)
        store = LazyRecords(RECORDS, self._parts.records, RECORD_SECONDS)
        records = Records(store, self._parts.caller, self._kept)
        parts = self._parts
        callee = _Callee(records, self._publish, self._put, application, parts.caller, parts.access, parts.tracing)
        observer = self._parts.observer
        deliver = self._parts.inbound.towards(
            lambda arrival: callee.attempt(arrival.what, arrival.passing),
            "durable",
            self._app_id,
            policy=policy,
            until_reachable=application.until_reachable,
        )
        settlement = Settlement(
            deliver,
            retry=policy.retry,
            dead_letter=callee.give_up,
            count=lambda outcome: observer(telemetry.DURABLE_CALLS, (self._app_id, outcome)),
            ack_wait=options.ack_wait,
            condition=self._parts.inbound.conditions.of("durable", self._app_id),
            taps=self._parts.taps,
        )
        where = await self._address(self._app_id)
        async with settlement.extending(), self._broker.subscribe(where, options, settlement):
            yield

    async def _publish(self, delivery: Delivery, topic: str, event_id: str, body: bytes) -> None:
        caller = sender(delivery.message.headers, self._namespace)
        await publish_outcome(self._parts.run, caller, delivery, topic, event_id, body)


class _Callee:
    """Runs calls and notes what came of them."""

    def __init__(
        self,
        records: Records,
        publish: PublishOutcome,
        send_back: SendBack,
        application: Application,
        own: Caller,
        access: Gate,
        tracing: Tracing = NOT_TRACED,
    ) -> None:
        self._records = records
        self._publish = publish
        self._send_back = send_back
        self._application = application
        self._namespace = own.namespace
        self._app_id = own.app_id
        self._access = access
        self._tracing = tracing

    async def attempt(self, delivery: Delivery, passing: Passing | None = None) -> Attempt:
        """Run a call once, unless it has an outcome; ``passing`` collects what is told of it."""
        message = delivery.message
        try:
            verb, target, given = asked_of(message.headers)
            call_id = id_of(message.headers)
        except (EventError, KeyError, ValueError):
            return Attempt(Outcome.DROP, "not a durable call")
        try:
            caller = self._records.caller(delivery)
            record, done = await self._records.known(call_id, caller)
        except UnprovenError as error:
            return Attempt(Outcome.DROP, str(error))
        if done:
            if record is not None:
                await self._tell(delivery, record)
            return SUCCESS
        try:
            target = self._access.admit(caller, verb, target, grpc=self._application.is_grpc)
        except (PermissionDeniedError, BadArgumentError) as error:
            return Attempt(Outcome.DROP, str(error))  # As its outcome: who calls again is refused again.
        given = naming(given, caller if caller.proven else None)
        headers = [*given, ("mesh-call-id", call_id), ("mesh-attempt", str(delivery.attempt))]
        record = Record(
            call_id,
            self._app_id,
            target,
            attempts=delivery.attempt,
            caller=caller.app_id,
            told=not (REPLY_HEADER in message.headers or cluster_of(caller.app_id)),
        )
        passed, begun = served(self._tracing, self._app_id, verb, target, headers, later=True)
        if passing is not None:
            passing.source, passing.details["id"] = caller.app_id, call_id
            passing.asked(verb, target, passed, message.body)
        try:
            with begun or UNTOLD:
                async with self._application.call(verb, target, passed, message.body) as response:
                    body, truncated = await _read(response)
                    status, answered = response.status, forwardable(response.headers)
                    if passing is not None:
                        passing.answered(status, answered, body)
                if begun is not None:
                    note_status(begun, status)
        except BadArgumentError as error:
            return Attempt(Outcome.DROP, str(error))
        except AppFailedError as error:
            return Attempt(Outcome.RETRY, str(error), broken=True)
        if status >= 500 or status in RETRIED_STATUSES:
            return Attempt(Outcome.RETRY, who_answered(status), status)
        await self._finish(
            delivery,
            msgspec.structs.replace(
                record, state=State.SUCCEEDED, status=status, headers=answered, body=body, truncated=truncated
            ),
        )
        return SUCCESS

    async def give_up(self, delivery: Delivery, reason: str, attempts: int) -> None:
        """Note that a call failed for good, and publish it to its dead letter topic."""
        headers = delivery.message.headers
        try:
            _, target, _ = asked_of(headers)
            call_id = id_of(headers)
            caller = self._records.caller(delivery, again=True)
            known, done = await self._records.known(call_id, caller)
        except (EventError, KeyError, ValueError, UnprovenError):
            return  # It is no call, or by nobody who may say anything of this one.
        if done and (known is None or known.state is State.SUCCEEDED):
            logger.warning("the outcome of call %s could not be published: %s", call_id, reason)
            return
        record = Record(
            call_id,
            self._app_id,
            target,
            State.FAILED,
            attempts,
            reason,
            caller=caller.app_id,
            told=not (REPLY_HEADER in headers or cluster_of(caller.app_id)),
        )
        if (topic := headers.get(DEAD_LETTER_HEADER)) is not None and not cluster_of(caller.app_id):
            told = record.described() | data_of(delivery.message.body)
            await self._publish(delivery, unquote(topic), f"{record.id}-dead", orjson.dumps(told))
        await self._finish(delivery, record)

    async def _finish(self, delivery: Delivery, record: Record) -> None:
        """Note the outcome, then publish it: whatever happens in between, the application is not asked again."""
        await self._records.note(record)
        await self._records.mark(record.id, record.caller)
        await self._tell(delivery, record)

    async def _tell(self, delivery: Delivery, record: Record) -> None:
        """Publish the outcome where the caller wants it; a crash before this is noted publishes it again."""
        topic, cluster = delivery.message.headers.get(REPLY_HEADER), cluster_of(record.caller)
        if record.told or (topic is None and not cluster):
            return
        if cluster:
            await self._send_back(queue_of(cluster), going_back(delivery.message, record))
        elif topic is not None:
            await self._publish(delivery, unquote(topic), record.id, orjson.dumps(record.described()))
        await self._records.note(msgspec.structs.replace(record, told=True))


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


BLOCK = Block("durable", (ACCEPT, OUTCOME), DurableInvocation)
