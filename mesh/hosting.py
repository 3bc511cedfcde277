"""The host's side of `mesh/host.py`: answers for components of this node, which may be replaced meanwhile."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field

import msgspec

from mesh import address
from mesh.broker import Broker, Frame, Message
from mesh.calls.exchange import Exchange, Request
from mesh.error_wire import to_wire
from mesh.errors import (
    ComponentError,
    DeadlineExceededError,
    MeshError,
    PermissionDeniedError,
    RemoteError,
    StreamBrokenError,
)
from mesh.flow import Body, Flow, parted, prefixed
from mesh.host import (
    CALLER_HEADER,
    ERROR_HEADER,
    EVENT_TYPE,
    FOLLOWED_HEADER,
    HOSTS_GROUP,
    Answer,
    Question,
    decoded,
    joined,
)
from mesh.operation import Caller, Context, Method, Operation
from mesh.pipeline import Handler
from mesh.resources.component import Component
from mesh.scopes import in_scope
from mesh.spans import Begun
from mesh.telemetry import BAGGAGE, NOT_TRACED, UNTOLD, Tracing

__all__ = ["Hosted", "Hosting"]

logger = logging.getLogger(__name__)

MAX_TELLING = 1000
FRESH_SECONDS = 10.0

_question = msgspec.msgpack.Decoder(Question)


@dataclass(frozen=True, slots=True)
class Hosted:
    """A component that this node answers for.

    Attributes:
        block: Its block's name.
        component: As it was loaded, for its name and scopes.
        fingerprint: Of its settings.
        capabilities: What metadata tells of it.
        recoverable: Whether an operation is asked about that got lost with a connection, as between few hosts.
        methods: What it can be asked, by name.
        run: The host's pipeline.
        tracing: Makes spans.
    """

    block: str
    component: Component
    fingerprint: str
    capabilities: Sequence[str]
    recoverable: bool
    methods: Mapping[str, Method] = field(repr=False)
    run: Handler = field(repr=False)
    tracing: Tracing = field(default=NOT_TRACED, repr=False)

    async def answer(self, namespace: str, request: Request) -> None:
        """Do what a caller elsewhere asks, and send what came of it."""
        body: bytes | None = None
        try:
            with self._begun(request) as begun:
                traceparent = request.headers.get("ce-traceparent") if begun is None else begun.traceparent
                result = await self.run(await self._operation(namespace, request, traceparent))
                if isinstance(result, Flow):
                    await _pass_on(request, result)
                else:
                    body = msgspec.msgpack.encode(result)
        except MeshError as error:
            if request.answered:
                raise StreamBrokenError(str(error)) from error
            if isinstance(error, DeadlineExceededError) and request.deadline <= time.time():
                return  # Nobody waits any more.
            await request.reply({ERROR_HEADER: json.dumps(to_wire(error))})
            return
        except Exception as error:  # An adapter's own failure: its caller is told, as its own application would be.
            if request.answered:
                raise
            logger.exception("an operation of component %s failed", self.component.name)
            failed = RemoteError(f"internal error: {type(error).__name__}")
            await request.reply({ERROR_HEADER: json.dumps(to_wire(failed))})
            return
        if body is not None:
            await request.reply({}, body)

    def _begun(self, request: Request) -> AbstractContextManager[Begun | None]:
        """Begin the span of this side, if it is recorded."""
        parent, tracing = request.headers.get("ce-traceparent"), self.tracing
        if not tracing.records(parent):
            return UNTOLD
        method = request.headers.get("ce-type", "").removeprefix(EVENT_TYPE)
        name = self.component.name
        tags = {"rpc.service": "Component", "rpc.method": method, "db.system": self.block, "db.name": name}
        return tracing.served(parent, f"component/{name}/{method}", tags) or UNTOLD

    async def _operation(self, namespace: str, request: Request, traceparent: str | None) -> Operation:
        headers = request.headers
        name = headers.get("ce-type", "").removeprefix(f"{EVENT_TYPE}{self.block}.")
        method = self.methods.get(name)
        if method is None:
            raise ComponentError(self.component.name, f"component {self.component.name} is not asked {name!r}")
        app_id = address.decode_token(headers.get(CALLER_HEADER, "="))
        request.check_caller(app_id)
        who = request.caller
        if who is not None and who.namespace != namespace:
            raise PermissionDeniedError(f"component {self.component.name} is for the namespace {namespace} alone")
        if not in_scope(self.component.scopes, app_id):
            raise PermissionDeniedError(f"component {self.component.name} is not in the scope of app id {app_id}")
        followed: Body | None = None
        if method.streamed:
            body, rest = await parted(request.parts())
            followed = Body(rest) if FOLLOWED_HEADER in headers else None
        else:
            body = request.body if not request.streamed else await joined(request.parts())
        trace = traceparent, headers.get("ce-tracestate", ""), headers.get(BAGGAGE, "")
        caller = Caller(namespace, app_id) if who is None else Caller.proven_by(who)
        context = Context(caller, request.deadline, *trace)
        return Operation(method, self.component.name, decoded(body, method.arguments), context, body=followed)


async def _pass_on(request: Request, flow: Flow) -> None:
    async with aclosing(flow):
        value = prefixed(msgspec.msgpack.encode(flow.result))
        if flow.source is None:
            await request.reply({}, value)
            return
        await request.begin({FOLLOWED_HEADER: "1"})
        await request.write(value)
        async for part in flow.source:
            await request.write(part)
        await request.end()


@dataclass(slots=True)
class _Served:
    """A component as it is answered for now; ``gone`` ends that."""

    hosted: Hosted
    changed_at: float
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class Hosting:
    """Answers for components while ``answering`` is entered; leaving that waits for operations in flight."""

    def __init__(self, broker: Broker, exchange: Exchange, namespace: str, app_id: str) -> None:
        """Answer for nothing yet."""
        self._broker = broker
        self._exchange = exchange
        self._namespace = namespace
        self._app_id = app_id
        self._served: dict[str, _Served] = {}
        self._present: dict[str, tuple[asyncio.Event, asyncio.Task[None]]] = {}
        self._listening: asyncio.Event | None = None
        self._telling = 0
        self._tasks: asyncio.TaskGroup

    @asynccontextmanager
    async def answering(self, hosted: Sequence[Hosted]) -> AsyncIterator[None]:
        """Answer for these from the start."""
        async with asyncio.TaskGroup() as self._tasks:
            try:
                for each in hosted:
                    await self.put(each, changed=False)
                yield
            finally:
                # They stay known: what still arrives until the broker has unsubscribed is answered, not lost.
                for served in self._served.values():
                    served.gone.set()
                for gone, _ in self._present.values():
                    gone.set()
                if self._listening is not None:
                    self._listening.set()

    async def put(self, hosted: Hosted, *, changed: bool = True) -> None:
        """Answer for a component from here on, in place of the one of its name.

        With another fingerprint it is served at another address: who asks at the old one finds nobody there, and looks
        for it again. What fails changes nothing.

        Args:
            hosted: The component.
            changed: Whether other hosts may change after us; who asks meanwhile comes to us.
        """
        name = hosted.component.name
        former = self._served.get(name)
        served = _Served(hosted, time.monotonic() if changed else -FRESH_SECONDS)
        if former is not None and former.hosted.fingerprint == hosted.fingerprint:
            served.gone = former.gone  # Its address is served already, by name.
            self._served[name] = served
            return
        where = address.component(self._namespace, name, hosted.fingerprint)
        handle = self._handler(name)
        serving = self._exchange.serve(where, hosted.fingerprint, handle, recoverable=hosted.recoverable)
        _ = await self._hold(serving, served.gone)
        self._served[name] = served
        if former is not None:
            former.gone.set()
            return
        where, gone = address.component(self._namespace, name), asyncio.Event()
        try:
            serving = self._exchange.serve(where, HOSTS_GROUP, _present, recoverable=False)
            self._present[name] = gone, await self._hold(serving, gone)
            if self._listening is None:
                listening = asyncio.Event()
                _ = await self._hold(self._broker.listen(address.hosts(self._namespace), self._receive), listening)
                self._listening = listening
        except BaseException:
            await self.take(name)
            raise

    async def take(self, name: str) -> None:
        """Answer for a component no longer; what is in flight finishes, and nobody who asks now is told of it."""
        present = self._end(name)
        if present is not None:
            await asyncio.wait([present])

    def _end(self, name: str) -> asyncio.Task[None] | None:
        served = self._served.pop(name, None)
        if served is not None:
            served.gone.set()
        gone, present = self._present.pop(name, (None, None))
        if gone is not None:
            gone.set()
        return present

    async def _hold(self, context: AbstractAsyncContextManager[None], gone: asyncio.Event) -> asyncio.Task[None]:
        """Enter it in a task of its own, which leaves it once it is told to; gives the task."""
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def hold() -> None:
            try:
                async with context:
                    entered.set_result(None)
                    await gone.wait()
            except Exception as error:
                if entered.done():
                    raise
                entered.set_exception(error)

        task = self._tasks.create_task(hold(), name="hosting-hold")
        try:
            await entered
        except BaseException:
            task.cancel()
            raise
        return task

    def _handler(self, name: str) -> Callable[[Request], Awaitable[None]]:
        async def handle(request: Request) -> None:
            served = self._served.get(name)
            if served is None:  # It was just taken; who asks looks for another host.
                await request.busy()
                return
            await served.hosted.answer(self._namespace, request)

        return handle

    def _receive(self, frame: Frame) -> None:
        try:
            question = _question.decode(frame.message.body if frame.message else b"")
        except msgspec.DecodeError:
            logger.warning("ignored a malformed question about components")
            return
        mine = self._served.get(question.name)
        if mine is None or mine.gone.is_set() or self._telling >= MAX_TELLING:
            return
        self._telling += 1
        self._tasks.create_task(self._tell(question, mine), name="host-tell")

    async def _tell(self, question: Question, mine: _Served) -> None:
        hosted = mine.hosted
        admitted = hosted.block == question.block and in_scope(hosted.component.scopes, question.app_id)
        told, can = hosted.fingerprint if admitted else "", list(hosted.capabilities)
        fresh = time.monotonic() - mine.changed_at < FRESH_SECONDS
        try:
            answer = Message({}, msgspec.msgpack.encode(Answer(question.number, told, can, self._app_id, fresh)))
            asker, guard = address.asker(self._namespace, question.node), self._exchange.guard
            await self._broker.broadcast(asker, answer if guard is None else guard.tell(asker.text, answer))
        except MeshError as error:
            logger.debug("cannot answer a question about %s: %s", question.name, error)
        finally:
            self._telling -= 1


async def _present(request: Request) -> None:
    await request.reply({})
