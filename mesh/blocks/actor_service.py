"""The block of actors at work: what asks owners, what is for this node's application, what an owner answers."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from mesh.access import naming
from mesh.actors.application import HTTPHost, settings_of
from mesh.actors.errors import (
    ActorError,
    ActorFailedError,
    ActorMethodMissingError,
    ActorTypeNotHostedError,
    NoActorHostError,
)
from mesh.actors.host import ActorHost, Turn, TurnAnswer, TurnKind
from mesh.actors.hosted import MAX_TURNS, HostedType
from mesh.actors.names import check_name, check_names
from mesh.actors.observed import ObservedHost
from mesh.actors.settings import HostSettings
from mesh.actors.state import ActorState, StateCache, partition_key, state_key
from mesh.actors.timers import ActorTimer
from mesh.actors.turns import Room
from mesh.application import Headers
from mesh.blocks import actor_questions as questions
from mesh.blocks.actor_store import ActorStore
from mesh.blocks.actor_stream import host_stream
from mesh.blocks.actor_views import shown, types_of
from mesh.blocks.actors import (
    KIND,
    Deactivate,
    GetState,
    Invoke,
    Look,
    Named,
    Reminder,
    SetTimer,
    Shown,
    Transact,
    TypeView,
)
from mesh.blocks.block import Block, Held, Inbound, Opened, Parts
from mesh.blocks.invocation import Answered, forwardable
from mesh.blocks.records import LazyRecords
from mesh.broker import Message
from mesh.deadlines import Deadlines
from mesh.errors import BadArgumentError, EventError, RecordsMissingError
from mesh.fields import check_fields
from mesh.operation import Operation
from mesh.ownership.asking import Asked
from mesh.ownership.errors import NobodyHostsError
from mesh.packing import Packed, pack
from mesh.store import Stored
from mesh.telemetry import BAGGAGE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mesh.actors.activation import Activation
    from mesh.actors.stream import StreamHost
    from mesh.blocks.actor_beside import Beside
    from mesh.blocks.actor_reminders import ActorReminders

__all__ = ["ActorService"]

logger = logging.getLogger(__name__)

TIMERS = "mesh:timers"
ACTION_HEADER = "actor"
CACHED_BYTES = 64 * 1024 * 1024
MAX_LISTED, MAX_LISTED_BYTES, PAGE = 10_000, 16 * 1024 * 1024, 200
MAX_ERROR_BYTES = 4096
OK, NOT_FOUND = 200, 404
_QUESTION = Packed(questions.Question, "question to an actor")
_ANSWERED = Packed(Answered, "answer of an actor's host")
_DEACTIVATED = Packed(tuple[bool], "answer of an actor's host")


class ActorService:
    """The building block."""

    def __init__(self, block: Block, parts: Parts, components: Mapping[str, Opened]) -> None:
        """Host nothing yet."""
        self._parts = parts
        self._app_id = parts.caller.app_id
        self._types: dict[str, HostedType] = {}
        self._made: ActorReminders | None = None
        self._room = Room(MAX_TURNS)
        self._cache = StateCache(CACHED_BYTES)
        self._store = ActorStore(parts.marked)
        self._records = LazyRecords(TIMERS, partial(parts.records, dotted=True))
        self._deadlines = Deadlines()
        part = parts.directory.part
        self._beside = None if part is None else _beside(part, parts.caller, self._run_here, self._is_here)
        self._actions: Mapping[type, Callable[..., Awaitable[Message]]] = {
            questions.Invoke: self._run_method,
            questions.Deactivate: self._run_deactivate,
            questions.SetReminder: self._run_set_reminder,
            questions.DeleteReminder: self._run_delete_reminder,
        }
        self._asked: tuple[Inbound, HostSettings] | None = None
        self._refused = False

    @property
    def types(self) -> Mapping[str, HostedType]:
        """What this node's application hosts, or has hosted."""
        return self._types

    async def run(self, operation: Operation) -> object:
        """Do what is asked of an actor, or of what belongs to it.

        Raises:
            BadArgumentError: A name cannot be one.
            ActorError: What the method says.
            MeshError: The mesh, or a store, failed.
        """
        if self._beside is not None and await self._beside.did(operation):
            return None
        return await self._run_here(operation)

    async def _run_here(self, operation: Operation) -> object:
        return await getattr(self, operation.method.name)(operation)

    def _is_here(self, type_: str, id_: str) -> bool:
        hosted = self._types.get(type_)
        return hosted is not None and hosted.activation(id_) is not None

    # Anywhere on the mesh

    async def invoke(self, operation: Operation) -> TurnAnswer:
        """Call a method, wherever the actor is.

        Raises:
            NoActorHostError: Nobody hosts the type.
            ActorFailedError: The application answered an error.
        """
        asked = cast("Invoke", operation.arguments)
        check_names(operation.target, asked.id, **{"actor method": asked.method})
        action = pack("invoke", asked.method, asked.query, self._traced(operation, asked.headers))
        answer = await self._ask(operation, asked.id, action, asked.body)
        status, headers = _ANSWERED.read(answer.headers.get(ACTION_HEADER))
        if status == NOT_FOUND:
            raise ActorMethodMissingError
        if status != OK:
            raise ActorFailedError(status, answer.body)
        return TurnAnswer(OK, headers, answer.body)

    async def deactivate(self, operation: Operation) -> bool:
        """End an activation, wherever it is; gives whether there was one. A node that just starts has none yet."""
        asked = cast("Deactivate", operation.arguments)
        check_names(operation.target, asked.id)
        if not (await self._parts.owners.table(KIND + operation.target, fresh=True)).members:
            raise NoActorHostError(operation.target, asked.id)
        answer = await self._ask(operation, asked.id, pack("deactivate"))
        return bool(_DEACTIVATED.read(answer.headers.get(ACTION_HEADER))[0])

    async def host(self, operation: Operation) -> None:
        """Host the types of an application that holds a stream open, for as long as that lasts.

        Raises:
            ActorTypeTakenError: One of them is hosted on this node already.
            RecordsMissingError: The mesh has no records.
            StreamEndedError: The node drains.
        """
        host = cast("StreamHost", operation.arguments)
        try:
            await self._records.opened()
            await host_stream(host, self.serve, self._parts.streams)
        finally:
            host.end()

    async def set_reminder(self, operation: Operation) -> None:
        """Have a reminder."""
        await self._reminders.set(operation)

    async def delete_reminder(self, operation: Operation) -> None:
        """Have a reminder no more."""
        await self._reminders.delete(operation)

    async def get_reminder(self, operation: Operation) -> Reminder:
        """Tell of a reminder."""
        return await self._reminders.get(operation)

    async def list_reminders(self, operation: Operation) -> tuple[Reminder, ...]:
        """Tell of all reminders of an actor, or of a type."""
        return await self._reminders.list(operation)

    async def delete_reminders(self, operation: Operation) -> None:
        """Have the reminders of an actor, or of a type, no more."""
        await self._reminders.delete_all(operation)

    @property
    def _reminders(self) -> ActorReminders:
        if self._made is None:
            from mesh.blocks.actor_reminders import ActorReminders

            self._made = ActorReminders(self._parts, self._records, self._ask)
        return self._made

    # For who looks after them

    async def list_types(self, _: Operation) -> tuple[TypeView, ...]:
        """Tell of the types that nodes of the mesh say they host."""
        return await types_of(self._parts)

    async def show(self, operation: Operation) -> Shown:
        """Tell of an actor of this node's application.

        Raises:
            ActorTypeNotHostedError: This node's application does not host the type.
        """
        asked = cast("Look", operation.arguments)
        check_names(operation.target, asked.id)
        timers = self._reminders.of(operation.target)
        return await shown(self._parts, self._store, timers, operation.target, asked)

    async def _ask(self, operation: Operation, id_: str, action: str, body: bytes = b"") -> Message:
        type_ = operation.target
        try:
            return await self._parts.owners.ask(KIND + type_, id_, {ACTION_HEADER: action}, body, operation.deadline)
        except NobodyHostsError:
            raise NoActorHostError(type_, id_) from None

    def _traced(self, operation: Operation, headers: Headers) -> Headers:
        """Put the call's own trace in place of what the caller wrote."""
        context = operation.context
        trace = {"traceparent": context.traceparent, "tracestate": context.tracestate, BAGGAGE: context.baggage}
        kept = [(name, value) for name, value in headers if name.lower() not in trace]
        return [*kept, *((name, value) for name, value in trace.items() if value), ("Dapr-Api-Call", "true")]

    # This node's actors

    async def get_state(self, operation: Operation) -> Stored | None:
        """Read a key of an actor; one that is not active here is read as it is stored."""
        asked = cast("GetState", operation.arguments)
        check_names(operation.target, asked.id)
        _check_key(asked.key)
        hosted = self._types.get(operation.target)
        if hosted is not None and hosted.activation(asked.id) is not None:
            return await hosted.state(asked.id).get(asked.key)
        partition = partition_key(self._app_id, operation.target, asked.id)
        return await self._store.get(state_key(partition, asked.key), strong=True, metadata={"partitionKey": partition})

    async def transact(self, operation: Operation) -> None:
        """Write keys of an active actor, all or none.

        Raises:
            ActorNotActiveError: It is not active here.
            ActorMovedError: Another activation keeps its state now; nothing was written.
        """
        asked = cast("Transact", operation.arguments)
        check_names(operation.target, asked.id)
        for item in asked.items:
            _check_key(item.key)
        if (hosted := self._types.get(operation.target)) is None:
            raise ActorTypeNotHostedError
        state = hosted.state(asked.id)
        if any(item.ttl is not None for item in asked.items) and not self._store.lets_expire:
            raise BadArgumentError("the state store of actors cannot let values expire (ttlInSeconds)")
        if asked.items:
            await state.write(asked.items)

    async def set_timer(self, operation: Operation) -> None:
        """Have a timer of an active actor.

        Raises:
            ActorNotActiveError: It is not active here.
            ActorError: A text is no time, or it has too many.
        """
        from mesh.schedules import timer_timing

        asked = cast("SetTimer", operation.arguments)
        check_names(operation.target, asked.id, timer=asked.name)
        try:
            timing = timer_timing(asked.due_time, asked.period, asked.ttl, time.time())
        except ValueError as error:
            raise ActorError(str(error)) from None
        if (hosted := self._types.get(operation.target)) is None:
            raise ActorTypeNotHostedError
        timer = ActorTimer(asked.name, timing, asked.due_time, asked.period, asked.callback, asked.data)
        hosted.set_timer(asked.id, timer)

    async def delete_timer(self, operation: Operation) -> None:
        """Have a timer no more."""
        asked = cast("Named", operation.arguments)
        check_names(operation.target, asked.id, timer=asked.name)
        if (hosted := self._types.get(operation.target)) is not None:
            hosted.delete_timer(asked.id, asked.name)

    def _make_state(self, type_: str, activation: Activation, replaced: Callable[[], None]) -> ActorState:
        partition = partition_key(self._app_id, type_, activation.id)
        return ActorState(self._store, partition, activation.epoch, self._cache, replaced)

    # The owner's side

    async def answer(self, asked: Asked) -> Message:
        """Do what is asked of an actor whose partition is this node's.

        Raises:
            NotOwnerError: It is not, now; nothing ran.
            ActorError: What it came to.
        """
        hosted = self._types.get(asked.kind.removeprefix(KIND))
        question = _QUESTION.read(asked.headers.get(ACTION_HEADER))
        if hosted is None:
            raise EventError("malformed question to an actor")
        check_names(hosted.name, asked.key)
        return await self._deadlines.within(
            asked.deadline - time.time(), self._actions[type(question)], hosted, asked, question
        )

    async def _run_method(self, hosted: HostedType, asked: Asked, question: questions.Invoke) -> Message:
        check_name("actor method", question.method)
        check_fields(question.headers)  # Before the application is asked.
        headers = naming(forwardable(question.headers), asked.caller)
        chained = hosted.chained(headers)
        turn = Turn(TurnKind.METHOD, hosted.name, asked.key, question.method, chained, asked.body, question.query)
        answer = await hosted.turn(turn, asked.partition)
        body = answer.body if answer.status == OK else answer.body[:MAX_ERROR_BYTES]
        return Message({ACTION_HEADER: pack(answer.status, answer.headers)}, body)

    async def _run_deactivate(self, hosted: HostedType, asked: Asked, _: questions.Deactivate) -> Message:
        return Message({ACTION_HEADER: pack(await hosted.deactivate(asked.key))}, b"")

    async def _run_set_reminder(self, hosted: HostedType, asked: Asked, question: questions.SetReminder) -> Message:
        return await self._reminders.run_set(hosted.name, asked, question)

    async def _run_delete_reminder(
        self, hosted: HostedType, asked: Asked, question: questions.DeleteReminder
    ) -> Message:
        return await self._reminders.run_delete(hosted.name, asked, question)

    # The application

    async def inbound(self, inbound: Inbound) -> Sequence[Held]:
        """Host what this node's application says it does."""
        if self._asked is None or self._asked[0] is not inbound:
            self._asked = inbound, settings_of(await self._parts.config.of(inbound))
        host = HTTPHost(inbound.application, self._asked[1])
        marked = self._parts.marked() if self._refused else None
        return [
            Held(f"actors {type_}", (settings, marked), self.serve(host, type_))
            for type_, settings in host.settings.types.items()
        ]

    @asynccontextmanager
    async def serve(self, host: ActorHost, type_: str) -> AsyncIterator[None]:
        """Host a type while its application is there; cancelled, that is gone already, and is told nothing more.

        Raises:
            ActorTypeTakenError: The type is hosted on this node already.
            MeshError: The mesh has no records, or cannot reach them.
        """
        kind = KIND + type_
        hosted = self._types.get(type_)
        if hosted is None:
            sure = partial(self._parts.owners.epoch, kind)
            hosted = self._types[type_] = HostedType(type_, self._room, self._make_state, sure)
        try:
            await self._records.opened()
        except RecordsMissingError as error:
            logger.warning("actors of type %s are not hosted: %s", type_, error)
            self._refused = True  # Until another store is marked.
            yield
            return
        self._store.warn_of_none()
        timers = await self._reminders.timers(hosted)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(timers.run())
            await stack.enter_async_context(
                hosted.serve(ObservedHost(host, self._parts.observer, self._parts.taps), timers)
            )
            stack.enter_context(self._reminders.kept(type_, timers))
            self._parts.owners.host(kind, hosted, self.answer, ready=True)
            try:
                yield
                # While others take them, some at a time, the rest of its actors go on.
                self._parts.owners.host(kind, hosted, self.answer, ready=False)
                await self._parts.owners.moved(kind)
            finally:
                self._parts.owners.host(kind, hosted, self.answer, ready=False)

    def described(self) -> Mapping[str, object]:
        """Tell of the types that are hosted, and how many actors are active."""
        hosted = tuple((name, each.active) for name, each in self._types.items() if each.hosted)
        return {"actors": hosted, "actors_enabled": bool(hosted) or self._parts.marked() is not None}


def _beside(*given: Any) -> Beside:
    from mesh.blocks.actor_beside import Beside  # Of a gateway of several processes alone.

    return Beside(*given)


def _check_key(key: str) -> None:
    if not key:
        raise BadArgumentError("the key of an actor's state is empty")
