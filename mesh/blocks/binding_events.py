"""Events of input bindings, from whoever reads the source to an application, here or elsewhere on the mesh.

A source is read where its component is open, once for each application that wants its events. The node's own
application is called directly. For others a host asks who is there, and asks each that the component's scopes admit
whether it wants the events. Then it hands them over by a request that is answered once the application has taken
them. An application whose gateway has the component itself is read for there.

==================== ===============================================================================================
``triggered``        broadcast by hosts: which applications are there that would be triggered?
``readers``          broadcast by gateways: this application is there
``bindings.<app>``   served by its gateways while it is there: whether it wants a binding's events, and the events
==================== ===============================================================================================
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import msgspec
import orjson

from mesh import address
from mesh.blocks.binding_answers import carry_out, document
from mesh.blocks.binding_contract import BindingError, BindingEvent, InputBinding, Reading
from mesh.broker import Frame, Message
from mesh.calls.context import counts, tell
from mesh.calls.exchange import Reply, Request
from mesh.delivery import SUCCESS, Attempt, Outcome
from mesh.error_wire import read_error, to_wire
from mesh.errors import CircuitOpenError, MeshError, NoResponderError
from mesh.guard import Guard
from mesh.host import ERROR_HEADER, decoded, joined
from mesh.operation import Arrival, Context
from mesh.pipeline import InboundHandler
from mesh.policies import Policy, Verdict
from mesh.scopes import in_scope
from mesh.spans import SpanKind
from mesh.tasks import task_group
from mesh.telemetry import BAGGAGE, UNTOLD, who_answered

if TYPE_CHECKING:
    from mesh.application import Application
    from mesh.blocks.block import Parts

__all__ = ["Here", "Source", "Towards", "announced", "read", "read_for_others"]

logger = logging.getLogger(__name__)

ASK_SECONDS = 5.0
LATEST_SECONDS = 600.0
EVENT_SECONDS = 3600.0
AGAIN_SECONDS, LONGEST_WAIT = 1.0, 15.0
LOOK_SECONDS = 30.0
LEAVE_SECONDS = 10.0
QUIET_SECONDS = 30.0  # Between two lines of the log on what an application does not take.
MAX_READINGS = 1000
MAX_FIELD_BYTES, MAX_FIELDS_BYTES = 8000, 12_000  # Servers read as little as 8 KiB of a line, and 16 KiB of all.
_OURS = ("dapr-", "dapr_", "mesh-", "mesh_")  # Many servers read both as one.
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*\Z")
# The gateway's own, or the connection's.
_NOT_PASSED = frozenset(
    ("connection", "content-length", "content-type", "expect", "host", "te", "trailer", "transfer-encoding", "upgrade")
)


class Source(msgspec.Struct, frozen=True):
    """An input binding, as an application is told of it.

    Attributes:
        name: The component's.
        route: Where its events are posted.
        declared: Whether the component says that it is an input: then the application is not asked.
        answers: Whether what it answers is done.
    """

    name: str
    route: str
    declared: bool
    answers: bool = False


class _Asked(msgspec.Struct):
    """What a host asks a gateway; without data, whether the application wants the events."""

    source: Source
    data: bytes | None = None
    metadata: dict[str, str] = {}


class Towards(Protocol):
    """A way to an application."""

    app_id: str

    async def wants(self, source: Source) -> bool:
        """Ask whether it wants the events; raises ``MeshError`` where that is not known."""

    async def handle(self, source: Source, event: BindingEvent) -> bytes:
        """Hand over an event; raises ``MeshError`` unless the application has taken it."""

    async def until_unwanted(self, source: Source, ending: asyncio.Event) -> None:
        """Wait until it wants no more, or it ends."""


class Here:
    """The way to this node's application, as long as that is there."""

    def __init__(self, parts: Parts, application: Application) -> None:
        """Ask it nothing yet."""
        self.app_id = parts.caller.app_id
        self._parts = parts
        self._application = application
        self._wanted: dict[Source, bool] = {}
        self._ways: dict[str, tuple[Policy, Guard, InboundHandler]] = {}

    async def wants(self, source: Source) -> bool:
        """Ask, once while it is there."""
        if source.declared:
            return True
        if source not in self._wanted:
            seconds = self._parts.binding_seconds
            try:
                async with asyncio.timeout(seconds):
                    wanted = await self._application.wants(source.name, _path(source))
            except TimeoutError:
                raise BindingError(f"the application does not say within {seconds:g} s whether it wants it") from None
            self._wanted[source] = wanted
        return self._wanted[source]

    async def until_unwanted(self, source: Source, ending: asyncio.Event) -> None:
        """Wait for the end: what an application wants does not change while it is there."""
        await ending.wait()

    async def handle(self, source: Source, event: BindingEvent) -> bytes:
        """Hand it over, by the inbound policy."""
        name = source.name
        policy = self._parts.policies.for_component(name, "binding", "inbound")
        if name not in self._ways or self._ways[name][0] != policy:
            self._ways[name] = policy, *self._way(name, policy)
        _, guard, deliver = self._ways[name]
        headers = _fields(event.metadata)
        span = self._parts.tracing.span(event.metadata.get("traceparent"))
        if span:
            headers = [*((each, value) for each, value in headers if each != "traceparent"), ("traceparent", span)]
        answer: list[bytes] = []
        arrival = Arrival(event.metadata, None, (source, headers, event.data, answer))
        with self._begun(name, span, event.metadata):
            attempt = await guard.run(lambda: deliver(arrival), _judge)
            assert isinstance(attempt, Attempt)
            if attempt.outcome is not Outcome.SUCCESS:
                raise BindingError(attempt.reason)
        return answer[-1]

    def _begun(self, name: str, span: str, metadata: Mapping[str, str]) -> AbstractContextManager[object]:
        tracing = self._parts.tracing
        if not tracing.records(span):
            return UNTOLD
        parent, tags = metadata.get("traceparent"), {"db.system": "bindings", "db.name": name}
        return tracing.begin(span, parent, f"bindings/{name}", SpanKind.CLIENT, tags)

    def _context(self, headers: Sequence[tuple[str, str]]) -> Context:
        found = {name.lower(): value for name, value in headers}
        return Context(
            self._parts.caller, None, found.get("traceparent"), found.get("tracestate", ""), found.get(BAGGAGE, "")
        )

    def _way(self, name: str, policy: Policy) -> tuple[Guard, InboundHandler]:
        inbound, application = self._parts.inbound, self._application

        async def call(arrival: Arrival) -> Attempt:
            source, headers, data, answer = arrival.what
            fields = [("Content-Type", "application/json"), *headers, ("mesh-binding", source.name)]
            passing = arrival.passing
            if passing is not None:
                passing.asked("POST", _path(source), fields, data)
            status, said = await application.trigger(source.name, _path(source), fields, data)
            if passing is not None:
                passing.answered(status, body=said.data)
            if 200 <= status < 300:
                if source.answers and not said.message:
                    said = document(said.data)
                await carry_out(said, self._parts.run, self._context(headers), states=source.answers)
                answer.append(said.data or b"")
                return SUCCESS
            return Attempt(Outcome.RETRY, who_answered(status), status)

        labels = "binding", name
        # Made first: the condition's breaker is that of the second.
        guard = Guard(Policy(retry=policy.retry), inbound.conditions.of(*labels))
        return guard, inbound.towards(call, *labels, policy=replace(policy, retry=None))


def _judge(result: object, error: MeshError | None) -> Verdict:
    worked = isinstance(result, Attempt) and result.outcome is Outcome.SUCCESS
    again = not worked and not isinstance(error, CircuitOpenError)
    return Verdict(worked, again, result.status if isinstance(result, Attempt) else None)


def _path(source: Source) -> str:
    return source.route if source.route.startswith("/") else f"/{source.route}"


def _fields(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    """Write metadata as header fields; what no request can hold, and what only a gateway says, is left out.

    Whoever can write to the source chooses them. Were they more than an application's server reads, it would refuse
    each attempt, and hold back what is behind the event.
    """
    kept, left = [], MAX_FIELDS_BYTES
    for name, value in metadata.items():
        size = len(name) + len(value.encode())
        if name.lower() in _NOT_PASSED or name.lower().startswith(_OURS) or size > min(MAX_FIELD_BYTES, left):
            continue
        if _NAME.match(name) and _VALUE.match(value):
            kept.append((name, value))
            left -= size
    return kept


class _Elsewhere:
    """The way to an application that other gateways have."""

    def __init__(self, parts: Parts, app_id: str) -> None:
        self.app_id = app_id
        self._exchange = parts.exchange
        self._where = address.bindings(parts.caller.namespace, app_id)
        self._has_said = False
        self._given_up = asyncio.Event()

    async def wants(self, source: Source) -> bool:
        # Until it has said so once, its gateway may have to ask it, and knows how long that may take.
        seconds = ASK_SECONDS if self._has_said else LATEST_SECONDS
        said = await _read_reply(await self._ask(_Asked(source), seconds, watched=not self._has_said))
        self._has_said = True
        return said == b"yes"

    async def handle(self, source: Source, event: BindingEvent) -> bytes:
        """Hand it over; while nobody is there to take it, it is held until they are back, or given up.

        Many sources count how often an event was not taken, and in the end keep it from whoever reads them. A gateway
        that starts again would cost each event at hand several of these times, and the application has not seen one.
        """
        asked = _Asked(source, event.data, dict(event.metadata))
        while True:
            try:
                reply = await self._ask(asked, EVENT_SECONDS, watched=True)
            except NoResponderError:
                if await _first_of(self._given_up, AGAIN_SECONDS):
                    raise
            else:
                return await _read_reply(reply)

    async def until_unwanted(self, source: Source, ending: asyncio.Event) -> None:
        failures = 0
        self._given_up.clear()
        try:
            while not await _first_of(ending, ASK_SECONDS):
                try:
                    if not await self.wants(source):
                        return
                    failures = 0
                except NoResponderError:
                    failures += 1
                    if failures > 1:
                        return
                except MeshError as error:
                    logger.debug("binding %s: %s", source.name, error)
        finally:
            self._given_up.set()

    async def _ask(self, asked: _Asked, seconds: float, *, watched: bool) -> Reply:
        body = msgspec.msgpack.encode(asked)
        whole = len(body) <= self._exchange.part_bytes
        message = Message({}, body if whole else b"")
        stream = None if whole else _once(body)
        return await self._exchange.request(self._where, message, time.time() + seconds, stream, watched=watched)


async def _read_reply(reply: Reply) -> bytes:
    try:
        problem = reply.headers.get(ERROR_HEADER)
        if problem is not None:
            raise read_error(problem)
        return reply.body if not reply.streamed else await joined(reply.parts())
    finally:
        await reply.aclose()


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _first_of(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


async def read(binding: InputBinding, source: Source, towards: Towards, ending: asyncio.Event) -> None:
    """Read a source for an application, until that ends or wants no more; what fails is tried again."""
    told, wait, quiet_until = "", AGAIN_SECONDS, 0.0

    async def handle(event: BindingEvent) -> bytes:
        nonlocal quiet_until
        try:
            return await towards.handle(source, event)
        except MeshError as error:
            if time.monotonic() >= quiet_until:
                quiet_until = time.monotonic() + QUIET_SECONDS
                logger.warning("binding %s: %s has not taken an event: %s", source.name, towards.app_id, error)
            raise

    while not ending.is_set():
        entered: float | None = None
        try:
            if not await towards.wants(source):
                logger.debug("binding %s: %s does not want its events", source.name, towards.app_id)
                return
            async with binding.reading(Reading(source.name, towards.app_id, handle)):
                logger.info("binding %s is read for %s", source.name, towards.app_id)
                entered = time.monotonic()
                await towards.until_unwanted(source, ending)
            return
        except NoResponderError:
            return  # The application went; it says when it is back.
        except MeshError as error:
            if entered is not None and time.monotonic() > entered + LONGEST_WAIT:  # It was well for a while.
                told, wait = "", AGAIN_SECONDS
            if str(error) != told:
                logger.warning("binding %s is not read for %s, trying again: %s", source.name, towards.app_id, error)
            told = str(error)
        except Exception:  # An adapter's own failure may pass like any other.
            logger.exception("binding %s is not read for %s, trying again", source.name, towards.app_id)
        await _first_of(ending, wait)
        wait = min(wait * 2, LONGEST_WAIT)


@asynccontextmanager
async def announced(parts: Parts, here: Here, own: Mapping[str, object]) -> AsyncIterator[None]:
    """Take events from hosts elsewhere, and say that the application is there.

    Args:
        parts: Of the node.
        here: The way to the application.
        own: Names of the components that are read on this node.
    """
    space, app_id = parts.caller.namespace, here.app_id

    async def answer(request: Request) -> None:
        try:
            body = request.body if not request.streamed else await joined(request.parts())
            asked = decoded(body, _Asked)
            assert isinstance(asked, _Asked)
            if asked.data is not None:
                event = BindingEvent(asked.data, asked.metadata)
                said = await here.handle(asked.source, event)
            else:
                mine = asked.source.name in own
                said = b"yes" if not mine and await here.wants(asked.source) else b"no"
        except MeshError as error:
            await request.reply({ERROR_HEADER: json.dumps(to_wire(error))})
            return
        await request.reply({}, said)

    async def say() -> None:
        with suppress(MeshError):  # Hosts ask from time to time.
            await tell(parts.exchange, address.readers(space), orjson.dumps({"app": app_id}))

    asking, question = asyncio.Event(), address.triggered(space)

    def asked(frame: Frame) -> None:
        apps = _read(frame).get("apps")
        mine = not apps or (isinstance(apps, list) and app_id in apps)
        if mine and counts(parts.exchange, question, frame, space):
            asking.set()

    async def say_when_asked() -> None:
        while True:
            await asking.wait()
            asking.clear()
            await say()

    serving = parts.exchange.serve(address.bindings(space, app_id), "bindings", answer, recoverable=False)
    async with serving, parts.broker.listen(question, asked), task_group() as tasks:
        await say()
        saying = tasks.create_task(say_when_asked(), name="bindings-say")
        try:
            yield
        finally:
            saying.cancel()


def _read(frame: Frame) -> Mapping[str, object]:
    try:
        said = orjson.loads(frame.message.body if frame.message else b"")
    except orjson.JSONDecodeError:
        return {}
    return said if isinstance(said, dict) else {}


@asynccontextmanager
async def read_for_others(
    parts: Parts, binding: InputBinding, source: Source, scopes: tuple[str, ...], own: str | None, ending: asyncio.Event
) -> AsyncIterator[None]:
    """Read a source for applications of other nodes.

    Args:
        parts: Of the node.
        binding: What reads it.
        source: What applications are told of it.
        scopes: The applications that may have the events; empty = all.
        own: The application that this node reads for itself; None = there is none.
        ending: Set when it is to be left soon.
    """
    reading: dict[str, asyncio.Task[None]] = {}
    back: set[str] = set()
    space, told = parts.caller.namespace, address.readers(parts.caller.namespace)
    async with task_group() as tasks:

        def begin(app_id: str) -> None:
            work = read(binding, source, _Elsewhere(parts, app_id), ending)
            reading[app_id] = task = tasks.create_task(work, name="bindings-read")
            task.add_done_callback(lambda _: ended(app_id))

        def ended(app_id: str) -> None:
            del reading[app_id]
            if app_id in back and not ending.is_set():
                back.discard(app_id)
                begin(app_id)

        def heard(frame: Frame) -> None:
            app_id = _read(frame).get("app")
            if not isinstance(app_id, str) or app_id == own or not in_scope(scopes, app_id) or ending.is_set():
                return
            if not counts(parts.exchange, told, frame, space, app_id):
                return
            if app_id in reading:
                back.add(app_id)  # It may have been given up a moment ago, and be back.
            elif len(reading) < MAX_READINGS:
                begin(app_id)

        looking = tasks.create_task(_look(parts, source.name, scopes, heard, ending), name="bindings-look")
        try:
            yield
        finally:
            ending.set()
            looking.cancel()
            waiting = [*reading.values()]
            if waiting:
                _, late = await asyncio.wait(waiting, timeout=LEAVE_SECONDS)
                for task in late:
                    task.cancel()


async def _look(
    parts: Parts, name: str, scopes: tuple[str, ...], heard: Callable[[Frame], None], ending: asyncio.Event
) -> None:
    """Ask which applications are there, now and then."""
    space, question = parts.caller.namespace, orjson.dumps({"apps": scopes})
    while not ending.is_set():
        try:
            async with parts.broker.listen(address.readers(space), heard):
                while True:
                    await tell(parts.exchange, address.triggered(space), question)
                    if await _first_of(ending, LOOK_SECONDS):
                        return
        except MeshError as error:
            logger.debug("binding %s: cannot look for applications: %s", name, error)
            await _first_of(ending, AGAIN_SECONDS)
