"""Reminders of actors, where they are asked for and at their owner: durable timers (`mesh/timers`) that fire."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

from mesh.actors.errors import ActorError, ActorTypeNotHostedError, ReminderExistsError, ReminderMissingError
from mesh.actors.hosted import HostedType
from mesh.actors.names import check_name, check_names
from mesh.actors.reminders import MAX_DATA_BYTES, Written, remind, written
from mesh.blocks.actor_questions import DeleteReminder, SetReminder
from mesh.blocks.actor_views import told_reminder
from mesh.blocks.actors import KIND, Named, OfActor, Reminder
from mesh.blocks.actors import SetReminder as Wanted
from mesh.blocks.block import Parts
from mesh.blocks.job_record import check_policy
from mesh.broker import Message
from mesh.errors import EventError
from mesh.operation import Operation
from mesh.ownership.asking import Asked
from mesh.ownership.errors import NotOwnerError
from mesh.ownership.repeating import repeated
from mesh.ownership.table import partition_of
from mesh.packing import pack
from mesh.schedules import Timing, reminder_timing
from mesh.store import StateStore
from mesh.timers import FailurePolicy, Outcome, Timer, TimerExistsError, Timers, record_key

__all__ = ["ActorReminders"]

MAX_LISTED, MAX_LISTED_BYTES, PAGE = 10_000, 16 * 1024 * 1024, 200
DONE = Message({}, b"")

Ask = Callable[[Operation, str, str, bytes], Awaitable[Message]]


class ActorReminders:
    """The reminders of the types that this node's application hosts."""

    def __init__(self, parts: Parts, records: StateStore, ask: Ask) -> None:
        """Keep none yet.

        Args:
            parts: The node's.
            records: Has their records.
            ask: Asks the owner of an actor: the operation, the actor's id, the question, and its body.
        """
        self._parts = parts
        self._app_id = parts.caller.app_id
        self._records = records
        self._ask = ask
        self._timers: dict[str, Timers] = {}

    def of(self, type_: str) -> Timers:
        """Give what keeps those of a type; raises ``ActorTypeNotHostedError``."""
        if (timers := self._timers.get(type_)) is None:
            raise ActorTypeNotHostedError
        return timers

    async def timers(self, hosted: HostedType) -> Timers:
        """Make what fires those of a type; raises ``MeshError`` where the mesh's records cannot be reached."""
        partitions = len((await self._parts.owners.table(KIND + hosted.name)).owners)

        async def fire(timer: Timer) -> Outcome:
            partition = partition_of(timer.key, partitions)
            return await remind(hosted, partition, timer, partial(timers.fires, partition, timer))

        timers = Timers(KIND + hosted.name, self._records, fire, hosted.owns)
        return timers

    @contextmanager
    def kept(self, type_: str, timers: Timers) -> Iterator[None]:
        """Take what is asked of reminders of a type, while its application is there."""
        self._timers[type_] = timers
        try:
            yield
        finally:
            del self._timers[type_]

    # Where they are asked for

    async def set(self, operation: Operation) -> None:
        """Have a reminder.

        Raises:
            ActorTypeNotHostedError: This node's application does not host the type.
            ReminderExistsError: There is one of its name, which is not to be replaced.
            ActorError: A text is no time, or the data are too large.
        """
        asked = cast("Wanted", operation.arguments)
        check_names(operation.target, asked.id, reminder=asked.name)
        self.of(operation.target)
        if len(asked.data) > MAX_DATA_BYTES:
            raise ActorError(f"the data of a reminder have at most {MAX_DATA_BYTES} bytes")
        try:
            timing = reminder_timing(asked.due_time, asked.period, asked.ttl, time.time())
        except ValueError as error:
            raise ActorError(str(error)) from None
        check_policy(asked.policy)
        policy = asked.policy.interval, asked.policy.retries, asked.policy.drop
        body = Written(asked.data, asked.due_time, asked.period, asked.ttl).encode()
        action = pack("set_reminder", asked.name, timing.encode(), policy, asked.overwrite)
        if asked.overwrite:
            await self._repeated(operation, asked.id, action, body)
        else:  # What was done would be in the way.
            await self._ask(operation, asked.id, action, body)

    async def delete(self, operation: Operation) -> None:
        """Have a reminder no more."""
        asked = cast("Named", operation.arguments)
        check_names(operation.target, asked.id, reminder=asked.name)
        self.of(operation.target)
        await self._repeated(operation, asked.id, pack("delete_reminder", asked.name))

    async def get(self, operation: Operation) -> Reminder:
        """Tell of a reminder; raises ``ReminderMissingError``."""
        asked = cast("Named", operation.arguments)
        check_names(operation.target, asked.id, reminder=asked.name)
        timers = self.of(operation.target)
        found = await timers.get(await self._partition(operation.target, asked.id), asked.id, asked.name)
        if found is None:
            raise ReminderMissingError(asked.name)
        return told_reminder(found.key, found.name, found.data)

    async def list(self, operation: Operation) -> tuple[Reminder, ...]:
        """Tell of all reminders of an actor, or of a type.

        Raises:
            ActorError: There are too many for one answer.
        """
        found: list[Reminder] = []
        size = 0
        async for timer in self._listed(operation):
            found.append(told_reminder(timer.key, timer.name, timer.data))
            size += len(timer.data)
            if len(found) > MAX_LISTED or size > MAX_LISTED_BYTES:
                raise ActorError("there are more reminders than one answer tells of; ask for those of one actor")
        return tuple(found)

    async def delete_all(self, operation: Operation) -> None:
        """Have the reminders of an actor, or of a type, no more."""
        async for timer in self._listed(operation):
            await self._repeated(operation, timer.key, pack("delete_reminder", timer.name))

    async def _listed(self, operation: Operation) -> AsyncIterator[Timer]:
        """Iterate over reminders, page by page."""
        asked, type_ = cast("OfActor", operation.arguments), operation.target
        check_names(type_, asked.id or "-")
        timers = self.of(type_)
        partition, after = await self._partition(type_, asked.id) if asked.id else None, ""
        while True:
            page = await timers.listed(partition, asked.id or None, after, PAGE)
            for timer in page:
                yield timer
            if len(page) < PAGE:
                return
            last = page[-1]
            after = record_key(KIND + type_, await self._partition(type_, last.key), last.key, last.name)

    async def _partition(self, type_: str, id_: str) -> int:
        return partition_of(id_, len((await self._parts.owners.table(KIND + type_)).owners))

    async def _repeated(self, operation: Operation, id_: str, action: str, body: bytes = b"") -> None:
        """Ask for what does no harm when it is done twice."""
        await repeated(partial(self._ask, operation, id_, action, body), operation.deadline)

    # At their owner

    async def run_set(self, type_: str, asked: Asked, question: SetReminder) -> Message:
        """Keep one."""
        timers = await self._asked_for(type_, asked, question.name)
        try:
            written(asked.body)
            timing, policy = Timing.decode(question.timing), FailurePolicy(*question.policy)
        except ValueError as error:
            raise EventError("malformed question to an actor") from error
        try:
            timer = Timer(asked.key, question.name, timing, policy, asked.body)
            await timers.put(asked.partition, timer, overwrite=question.overwrite)
        except TimerExistsError:
            raise ReminderExistsError(question.name) from None
        return DONE

    async def run_delete(self, type_: str, asked: Asked, question: DeleteReminder) -> Message:
        """Keep one no more."""
        await (await self._asked_for(type_, asked, question.name)).delete(asked.partition, asked.key, question.name)
        return DONE

    async def _asked_for(self, type_: str, asked: Asked, name: str) -> Timers:
        """Give what keeps a reminder; who asks hosts the type, as its own gateway has checked unless it lies."""
        check_name("reminder", name)
        caller = asked.caller.app_id
        if caller != self._app_id:
            hosts = await self._parts.owners.table(asked.kind, fresh=True)  # It may just have come.
            if caller not in {each.app_id for each in hosts.members.values()}:
                raise ActorTypeNotHostedError
        if (timers := self._timers.get(type_)) is None:
            raise NotOwnerError("its application is away")
        return timers
