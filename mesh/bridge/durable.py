"""Durable calls to the other side, and outcomes of those that came from there.

Both wait on one topic of their side, which names the other (``queue_of``). A call is stored on the callee's topic of
the other side, under an id that follows from its own; an outcome is noted where the caller asks for it, and published
where it wants that. Each is acknowledged afterwards, and repeated after a crash: the callee runs a call once by its id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import unquote

import msgspec
import orjson

from mesh import address
from mesh.blocks.durable import CALLS, RECORDS
from mesh.blocks.durable_outcome import (
    DEAD_LETTER_HEADER,
    OUTCOME_HEADER,
    REPLY_HEADER,
    Sent,
    asked_of,
    of_call,
    publish_outcome,
    queue_of,
)
from mesh.blocks.durable_record import (
    ID_HEADER,
    KEEP_SECONDS,
    Record,
    Records,
    State,
    calls_of,
    data_of,
    id_of,
    id_towards,
)
from mesh.blocks.invocation import HTTP_HEADER
from mesh.blocks.records import RECORD_SECONDS, LazyRecords
from mesh.bridge.carried import check_called, passing_on
from mesh.bridge.routes import Routes
from mesh.bridge.side import HOLD_SECONDS, Side
from mesh.broker import Broker, Delivery, Message, Topology
from mesh.clusters import CALLED_HEADER, Target, at_cluster, target_of
from mesh.delivery import NOT_BEFORE_HEADER, SUCCESS, Attempt, Outcome, Settlement
from mesh.errors import (
    BadArgumentError,
    BrokerUnavailableError,
    EventError,
    MeshError,
    PermissionDeniedError,
    UnprovenError,
)
from mesh.event import required_headers
from mesh.large import carrying
from mesh.operation import Arrival, Caller
from mesh.packing import pack
from mesh.trust.identity import Identity

__all__ = ["Queue"]

STORE_SECONDS = 10.0
_sent = msgspec.msgpack.Decoder(Sent)


class Queue:
    """Carries what waits on one side for the other."""

    def __init__(self, here: Side, there: Side, routes: Callable[[], Routes], stopping: asyncio.Event) -> None:
        """Prepare; see ``Carried`` and ``Forwarding``."""
        self._here, self._there, self._routes, self._stopping = here, there, routes, stopping
        self._brokers = carrying(here.parts.broker), carrying(there.parts.broker)
        kept = [None if (guard := each.parts.exchange.guard) is None else guard.kept for each in (here, there)]
        self._kept, self._kept_there = kept
        stores = [LazyRecords(RECORDS, each.parts.records, RECORD_SECONDS) for each in (here, there)]
        self._records, self._records_there = (
            Records(store, side.parts.caller, proves)
            for store, side, proves in zip(stores, (here, there), kept, strict=True)
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Carry what waits while entered; raises ``BrokerError``."""
        here, queue = self._here, queue_of(self._there.cluster)
        where, options = await self._declared(self._brokers[0], here, queue), here.options()
        await self._declared(self._brokers[1], self._there, queue)
        inbound = here.parts.inbound

        async def deliver(arrival: Arrival) -> Attempt:
            return await self._carry(arrival.what)

        settlement = Settlement(
            inbound.towards(deliver, "durable", queue),
            retry=None,
            dead_letter=None,
            count=lambda outcome: None,
            ack_wait=options.ack_wait,
            condition=inbound.conditions.of("durable", queue),
            scheduled=False,  # The callee's side holds a call until its time.
        )
        async with settlement.extending(), self._brokers[0].subscribe(where, options, settlement):
            yield

    @staticmethod
    async def _declared(broker: Broker, side: Side, queue: str) -> address.Address:
        where = address.topic(side.namespace, CALLS, queue)
        await broker.declare(Topology(space=where.space))
        return where

    async def _carry(self, delivery: Delivery) -> Attempt:
        """Carry a call or an outcome; while the other side is away, wait for it."""
        is_outcome = OUTCOME_HEADER in delivery.message.headers
        carry, until = self._outcome if is_outcome else self._call, time.time() + HOLD_SECONDS
        what, of = "outcome" if is_outcome else "durable", unquote(delivery.message.headers.get(CALLED_HEADER, ""))
        while True:
            try:
                async with asyncio.timeout(STORE_SECONDS):
                    attempt = await carry(delivery)
            except (BrokerUnavailableError, TimeoutError) as error:
                if await self._there.until_back(until, self._stopping):
                    continue
                attempt = Attempt(Outcome.RETRY, str(error) or f"not stored within {STORE_SECONDS:g} s", broken=True)
            except UnprovenError as error:
                attempt = Attempt(Outcome.DROP, str(error))
            except (EventError, KeyError, ValueError, msgspec.DecodeError):
                attempt = Attempt(Outcome.DROP, f"not a durable {'outcome' if is_outcome else 'call'}")
            except MeshError as error:
                attempt = Attempt(Outcome.RETRY, str(error), broken=True)
            outcome = {Outcome.SUCCESS: "carried", Outcome.RETRY: "failed"}.get(attempt.outcome, "dropped")
            self._here.count(what, self._there.cluster, of, outcome)
            return attempt

    async def _call(self, delivery: Delivery) -> Attempt:
        """Store a call on the other side; one that cannot go there has failed."""
        here, there, headers = self._here, self._there, delivery.message.headers
        called, call_id = unquote(headers.get(CALLED_HEADER, "")), id_of(headers)
        verb, path, given = asked_of(headers)
        caller = self._records.caller(delivery, again=delivery.attempt > 1)
        try:
            target = check_called(called, caller.app_id, here, there, self._routes())
            if target.namespace not in ("", there.namespace):
                raise BadArgumentError(f"a durable call goes to the namespace {there.namespace} of {there.cluster}")
        except (BadArgumentError, PermissionDeniedError) as error:
            reason, to = str(error), Target(called, "", "")
            record = Record(call_id, to.app_id, path, State.FAILED, 0, reason, caller=caller.app_id)
            await self._finish(self._here, self._records, delivery, record, delivery.message.body)
            return SUCCESS
        named = Caller(here.namespace, at_cluster(caller.app_id, here.cluster))
        identity = id_towards(call_id, target.app_id)
        made = required_headers(identity, named.app_id, "mesh.invocation.durable") | of_call(headers)
        made |= {HTTP_HEADER: pack(verb, path, passing_on(given, named, target)), ID_HEADER: identity}
        if (due := headers.get(NOT_BEFORE_HEADER)) is not None:
            made[NOT_BEFORE_HEADER] = due
        where = address.topic(there.namespace, CALLS, target.app_id)
        message = Message(made, delivery.message.body, id=identity)
        if self._kept_there is not None:
            message = self._kept_there.prove(calls_of(where), message)
        await self._brokers[1].publish(where, message)
        return SUCCESS

    async def _outcome(self, delivery: Delivery) -> Attempt:
        """Tell the other side what came of a call of one of its applications."""
        here, there, headers = self._here, self._there, delivery.message.headers
        sent = _sent.decode(delivery.message.body)
        record = Record.decode(sent.record)
        self._check(delivery, record)
        target = target_of(unquote(headers.get(CALLED_HEADER, "")))
        caller, _, cluster = record.caller.partition("@")
        if (target.app_id, target.cluster, cluster) != (record.app_id, here.cluster, there.cluster):
            raise UnprovenError("it is no outcome of a call from the other side")
        called = unquote(headers[CALLED_HEADER])
        record = msgspec.structs.replace(
            record, id=id_towards(record.id, called), app_id=called, caller=caller, told=True
        )
        await self._finish(there, self._records_there, delivery, record, sent.body)
        return SUCCESS

    def _check(self, delivery: Delivery, record: Record) -> None:
        """Refuse what another one says than the application that was called; raises ``UnprovenError``."""
        if self._kept is None:
            return

        def may(identity: Identity) -> bool:
            return (identity.namespace, identity.app_id) == (self._here.namespace, record.app_id)

        where = calls_of(delivery.address)
        self._kept.checked("outcome", where, delivery.message, may, counts=delivery.attempt == 1)

    @staticmethod
    async def _finish(side: Side, records: Records, delivery: Delivery, record: Record, body: bytes) -> None:
        """Note an outcome where the caller asks for it, and publish it where the caller wants it."""
        await records.write(record, KEEP_SECONDS)
        caller, headers = Caller(side.namespace, record.caller), delivery.message.headers
        described = record.described()
        if (topic := headers.get(REPLY_HEADER)) is not None:
            told = orjson.dumps(described)
            await publish_outcome(side.runtime.run, caller, delivery, unquote(topic), record.id, told)
        if record.state is State.FAILED and (topic := headers.get(DEAD_LETTER_HEADER)) is not None:
            told = orjson.dumps(described | data_of(body))
            await publish_outcome(side.runtime.run, caller, delivery, unquote(topic), f"{record.id}-dead", told)
