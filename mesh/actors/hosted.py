"""A type of actors that this node's application hosts: its active actors, and the partitions that are this node's."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from mesh.actors.activation import Activation, Idling
from mesh.actors.deactivating import Deactivating
from mesh.actors.errors import (
    ActorBusyError,
    ActorMovedError,
    ActorNotActiveError,
    ActorTypeTakenError,
    TurnNotWantedError,
)
from mesh.actors.host import CANCEL_HEADER, REENTRANCY_HEADER, TURN_HEADER, ActorHost, Turn, TurnAnswer, TurnKind
from mesh.actors.settings import TypeSettings
from mesh.actors.state import REPLACED, ActorState
from mesh.actors.timers import ActorTimer, ActorTimers
from mesh.actors.turns import Room
from mesh.deadlines import Deadlines
from mesh.errors import AppFailedError, AppUnreachableError, DeadlineExceededError, MeshError
from mesh.ownership.errors import NotOwnerError
from mesh.tasks import task_group

if TYPE_CHECKING:
    from mesh.ownership.kind import Keeper

__all__ = ["MAX_TURNS", "HostedType"]

logger = logging.getLogger(__name__)

MAX_TURNS = 32_768  # That run or wait, of all actors of a node.
TURN_SECONDS = 60.0  # For a turn of a reminder or timer, and as many to wait for it: nobody's deadline ends these.
ABANDONED_SECONDS = 60.0
TAKEN_SECONDS = 2.0  # For a host to end that another one follows: its broken stream may not have been noticed yet.
WAITED = f"other turns of the actor took {TURN_SECONDS:g} s"
HUNG = f"the application did not answer within {TURN_SECONDS:g} s"
CUT = "{}: the turn of its actor was ended, and may have been done"
MOVES = "the actor moves, or its gateway stops"
LOST = "the gateway owns the actor no more, since the broker or the mesh's records were away, or it stood still"
GONE = "the application is gone"
PUT_AWAY = "the actor is put away"

MakeState = Callable[[str, Activation, Callable[[], None]], ActorState]
"""Of the type, the activation, and what is told once it has been replaced."""


@dataclass(slots=True)
class _Held:
    """A partition of this node."""

    epoch: int
    active: dict[str, Activation] = field(default_factory=dict)


class HostedType:
    """The actors of a type on this node, while it owns their partitions: a `Keeper`.

    Attributes:
        name: The type.
        settings: What the application says of it.
    """

    def __init__(
        self,
        name: str,
        room: Room,
        make_state: MakeState,
        sure: Callable[[int], int | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Own nothing yet.

        Args:
            name: The type.
            room: For the turns of all types.
            make_state: Makes the state of an activation, when it first asks for any.
            sure: Gives the epoch of a partition, if this node owns it now for sure.
            clock: Unix time.
        """
        self.name = name
        self.settings = TypeSettings()
        self._room = room
        self._make_state = make_state
        self._sure = sure
        self._clock = clock
        self._host: ActorHost | None = None
        self._served = False  # Until all of it is gone.
        self._free = asyncio.Event()  # Set when that was.
        self._open = False  # Else what runs may end there, and nothing begins.
        self._reminders: Keeper | None = None
        self._held: dict[int, _Held] = {}
        self._left: dict[int, _Held] = {}  # Until nothing of them runs any more.
        self._active: dict[str, Activation] = {}
        self._idling = Idling(self._idle)
        self._ending: set[asyncio.Task[None]] = set()
        self._deactivating = Deactivating(name)
        self._deadlines = Deadlines()
        self._numbers = itertools.count(1)

    @property
    def active(self) -> int:
        """How many actors are active."""
        return len(self._active)

    @property
    def timers(self) -> int:
        """How many timers they have."""
        return sum(len(each.timers) for each in self._active.values() if each.timers is not None)

    @property
    def calls(self) -> int:
        """How many turns run or wait."""
        return sum(each.turns.running + each.turns.waiting for each in self._active.values())

    @property
    def hosted(self) -> bool:
        """Whether the application is there."""
        return self._host is not None

    def owns(self, partition: int) -> bool:
        """Tell whether this node owns a partition now, for sure."""
        held = self._held.get(partition)
        return held is not None and self._sure(partition) == held.epoch

    def ids(self) -> Iterable[str]:
        """Give the ids of the active actors."""
        return self._active.keys()

    # The application

    @asynccontextmanager
    async def serve(self, host: ActorHost, reminders: Keeper | None = None) -> AsyncIterator[None]:
        """Run actors on an application while it is there; cancelled, it is gone already, and is told nothing more.

        Args:
            host: The application.
            reminders: What fires reminders, working already; it is given the partitions that this node has.

        Raises:
            ActorTypeTakenError: Another one is served, and does not end soon.
        """
        try:
            async with asyncio.timeout(TAKEN_SECONDS):
                while self._served:
                    self._free.clear()
                    await self._free.wait()
        except TimeoutError:
            raise ActorTypeTakenError(self.name) from None
        self._served = True
        self.settings = host.settings.types[self.name]
        self._host, self._open, self._reminders = host, True, reminders
        self._deactivating.hears()
        if reminders is not None:
            for partition, held in self._held.items():
                reminders.take(partition, held.epoch)
        there = True
        try:
            yield
        except asyncio.CancelledError:
            there = False
            raise
        finally:
            self._open = False
            if not there:
                self._host = None
            self._idling.stop()
            try:
                async with task_group() as tasks:
                    if reminders is not None:
                        for partition in self._held:
                            if there:
                                tasks.create_task(reminders.leave(partition), name="actor-reminders")
                            else:
                                reminders.drop(partition)
                    why = MOVES if there else GONE
                    ending = self._end_all(list(self._active.values()), why, drains=there)
                    tasks.create_task(ending, name="actor-ends")
            finally:
                self._reminders = None  # Not before: what is left meanwhile waits for its reminders as well.
                self._host, self._served = None, False
                self._free.set()

    # A keeper's part

    def take(self, partition: int, epoch: int) -> None:
        """Begin: this node owns it from now on."""
        self._held[partition] = _Held(epoch)
        if self._reminders is not None and self._open:
            self._reminders.take(partition, epoch)

    async def leave(self, partition: int) -> None:
        """Begin nothing more, let what runs end, and have the application let go of what is active."""
        held = self._held.pop(partition, None)
        if held is None:
            return
        self._left[partition] = held
        try:
            async with task_group() as tasks:
                if self._reminders is not None:
                    tasks.create_task(self._reminders.leave(partition), name="actor-reminders")
                ending = self._end_all(list(held.active.values()), MOVES, drains=True)
                tasks.create_task(ending, name="actor-ends")
        finally:
            if self._left.get(partition) is held:
                del self._left[partition]

    def drop(self, partition: int) -> None:
        """End at once, also what is left; the application is told, so that it forgets before the actor comes back."""
        held = self._held.pop(partition, None) or self._left.pop(partition, None)
        if held is None:
            return
        if self._reminders is not None:
            self._reminders.drop(partition)
        for activation in list(held.active.values()):
            self._end_soon(activation, 0.0, LOST)

    # What actors do

    async def turn(self, turn: Turn, partition: int) -> TurnAnswer:
        """Have an actor take a turn, activating it if it is not.

        Raises:
            NotOwnerError: It is not this node's to run now; nothing ran.
            ActorBusyError, StackTooDeepError: Nothing ran.
            DeadlineExceededError: A reminder or timer waited for its turn for too long; nothing ran.
            TurnNotWantedError: It was not any more; nothing ran.
            ActorMovedError: It was ended in the middle.
            AppFailedError: The application broke off, or is too long at a reminder or timer.
        """
        while True:
            chain = self._chain(turn)
            activation = self._find(turn.id, partition, chain)
            if activation.ended and not activation.turns.is_of(chain):
                await activation.until_gone()
                continue
            answer = await self._turn_in(activation, turn, chain)
            if answer is not None:
                return answer

    def activation(self, id_: str) -> Activation | None:
        """Give the activation of an actor that is active here."""
        return self._active.get(id_)

    def state(self, id_: str) -> ActorState:
        """Give the state of an active actor.

        Raises:
            ActorNotActiveError: It is not active here.
        """
        activation = self._active.get(id_)
        if activation is None:
            raise ActorNotActiveError
        if activation.state is None:
            activation.state = self._make_state(self.name, activation, partial(self._replaced, activation))
        return activation.state

    def set_timer(self, id_: str, timer: ActorTimer) -> None:
        """Have a timer of an active actor.

        Raises:
            ActorNotActiveError: It is not active here.
            ActorError: It has too many.
        """
        activation = self._active.get(id_)
        if activation is None or activation.ended:
            raise ActorNotActiveError
        if activation.timers is None:
            activation.timers = ActorTimers(partial(self._fire, activation), self._clock)
        activation.timers.set(timer)

    def delete_timer(self, id_: str, name: str) -> None:
        """Have it no more."""
        activation = self._active.get(id_)
        if activation is not None and activation.timers is not None:
            activation.timers.delete(name)

    async def deactivate(self, id_: str) -> bool:
        """End an activation, once its turn has ended; gives whether there was one."""
        activation = self._active.get(id_)
        if activation is None:
            return False
        self._end_soon(activation, activation.settings.drain_seconds, PUT_AWAY)
        await activation.until_gone()
        return True

    # Inside

    def _chain(self, turn: Turn) -> str | None:
        if self.settings.max_depth is None:
            return None
        return next((value for name, value in turn.headers if name.lower() == REENTRANCY_HEADER), None)

    def _find(self, id_: str, partition: int, chain: str | None) -> Activation:
        """Find or make the activation of an actor; raises NotOwnerError."""
        activation = self._active.get(id_)
        if activation is not None and activation.turns.is_of(chain):
            return activation  # Also while it moves: its turn does not end before this one.
        held = self._held.get(partition)
        if held is None or not self._open or self._sure(partition) != held.epoch:
            raise NotOwnerError(f"actor {self.name}/{id_} is not run here now")
        if activation is None:
            activation = Activation(id_, partition, held.epoch, self.settings, self._room)
            activation.used_at = asyncio.get_running_loop().time()
            self._active[id_] = held.active[id_] = activation
            self._idling.watch(activation)
        return activation

    async def _turn_in(self, activation: Activation, turn: Turn, chain: str | None) -> TurnAnswer | None:
        """Take a turn in an activation; None = it takes none any more, and nothing ran."""
        nested = activation.turns.is_of(chain)
        bounded = turn.kind is not TurnKind.METHOD  # Else by its caller's deadline.
        if bounded and activation.turns.running:
            entered = await self._deadlines.within(TURN_SECONDS, activation.turns.enter, chain, text=WAITED)
        else:
            entered = await activation.turns.enter(chain)
        if not entered:
            return None
        host = self._host
        allowed = nested or (self._open and self._sure(activation.partition) == activation.epoch)
        if activation.cut or host is None or not allowed:
            activation.turns.leave()
            if activation.ended and not nested:
                return None
            raise NotOwnerError(f"actor {self.name}/{activation.id} is not run here now")
        if turn.wanted is not None and not turn.wanted():
            activation.turns.leave()
            raise TurnNotWantedError
        loop = asyncio.get_running_loop()
        # In a task of its own, which outlives a caller that gives up; `_end` waits for it.
        task: asyncio.Task[TurnAnswer] = loop.create_task(host.turn(self._headed(activation, turn)), name="actor-turn")
        activation.running.add(task)
        task.add_done_callback(partial(self._done, activation))
        try:
            answering = partial(_answer, task, activation)
            answer = await (self._deadlines.within(TURN_SECONDS, answering) if bounded else answering())
        except DeadlineExceededError as error:
            if bounded and not task.done():
                raise AppFailedError(HUNG) from error
            raise
        except AppUnreachableError as error:
            raise NotOwnerError(f"the application of actor {self.name}/{activation.id} is away") from error
        if activation.replaced and answer.status != 200:
            raise ActorMovedError(REPLACED)
        return answer

    def _headed(self, activation: Activation, turn: Turn) -> Turn:
        headers = [*turn.headers, (TURN_HEADER, f"{activation.epoch}-{next(self._numbers)}")]
        return msgspec.structs.replace(turn, headers=headers)

    def _done(self, activation: Activation, task: asyncio.Task[TurnAnswer]) -> None:
        activation.running.discard(task)
        if not task.cancelled():
            task.exception()  # Perhaps nobody waits for it any more.
        activation.used_at = asyncio.get_running_loop().time()
        activation.turns.leave()

    async def _fire(self, activation: Activation, timer: ActorTimer) -> bool | None:
        """Have a timer's turn; gives whether the timer is over, None = nothing ran, and it is to be tried again."""
        turn = Turn(
            TurnKind.TIMER,
            self.name,
            activation.id,
            timer.name,
            self.chained(()),
            timer.data,
            callback=timer.callback,
            due_time=timer.due_time,
            period=timer.period,
            wanted=partial(activation.has_timer, timer),
        )
        try:
            answer = await self._turn_in(activation, turn, self._chain(turn))
        except (ActorBusyError, DeadlineExceededError, NotOwnerError, TurnNotWantedError):
            return None
        except MeshError as error:
            logger.warning("timer %s of actor %s/%s: %s", timer.name, self.name, activation.id, error)
            return False
        if answer is None:
            return True
        if answer.status != 200:
            logger.warning(
                "timer %s of actor %s/%s: the application answered %d",
                timer.name,
                self.name,
                activation.id,
                answer.status,
            )
        return (answer.header(CANCEL_HEADER) or "").lower() == "true"

    def chained(self, headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Give headers that name a chain of calls, where the type has reentrancy: a new one unless they do already."""
        headers = list(headers)
        if self.settings.max_depth is not None and not any(name.lower() == REENTRANCY_HEADER for name, _ in headers):
            headers.append(("Dapr-Reentrancy-Id", os.urandom(16).hex()))
        return headers

    def _idle(self, activation: Activation) -> None:
        self._end_soon(activation, 0.0, PUT_AWAY)

    def _replaced(self, activation: Activation) -> None:
        """End what has been replaced elsewhere; its turn goes on to its end, which is bounded."""
        activation.replaced = True
        self._end_soon(activation, activation.settings.drain_seconds, REPLACED)

    def _end_soon(self, activation: Activation, patience: float, why: str) -> None:
        if activation.ended:
            if patience == 0.0:
                activation.why = activation.why if activation.cut else why
                self._cut(activation)
            return
        activation.why = why
        activation.close()
        ending = self._end(activation, patience)
        task = asyncio.get_running_loop().create_task(ending, name="actor-end")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end_all(self, activations: list[Activation], why: str, *, drains: bool) -> None:
        """End activations at once, and wait until all are gone; cancelled, it lets none of their turns go on."""
        for activation in activations:
            settings = activation.settings
            self._end_soon(activation, settings.drain_seconds if drains and settings.drains else 0.0, why)
        try:
            for activation in activations:
                await activation.until_gone()
        except asyncio.CancelledError:
            for activation in activations:
                self._end_soon(activation, 0.0, why)
            raise

    async def _end(self, activation: Activation, patience: float) -> None:
        """End an activation that is closed."""
        try:
            if activation.turns.running and patience:
                try:
                    async with asyncio.timeout(patience):
                        await activation.turns.until_idle()
                except TimeoutError:
                    logger.warning(
                        "a turn of actor %s/%s was ended after %g s: %s",
                        self.name,
                        activation.id,
                        patience,
                        activation.why,
                    )
            self._cut(activation)
            if activation.running:
                await asyncio.wait(activation.running)
            if self._host is not None:
                await self._deactivating.ask(self._host, activation.id)
        finally:
            self._forget(activation)

    def _cut(self, activation: Activation) -> None:
        activation.cut = True
        for task in activation.running:
            task.cancel()

    def _forget(self, activation: Activation) -> None:
        if activation.state is not None:
            activation.state.close()
        if self._active.get(activation.id) is activation:
            del self._active[activation.id]
        for held in (self._held.get(activation.partition), self._left.get(activation.partition)):
            if held is not None and held.active.get(activation.id) is activation:
                del held.active[activation.id]
        activation.gone()
        self._idling.trim(len(self._active))


async def _answer(task: asyncio.Task[TurnAnswer], activation: Activation) -> TurnAnswer:
    """Wait for a turn that runs; cancelled, leave it to itself for a while."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        waiter = asyncio.current_task()
        if task.cancelled() and not (waiter and waiter.cancelling()):
            raise ActorMovedError(CUT.format(activation.why)) from None
        # Nobody waits any more, but the application may be at it: until it is not, nobody else has a turn.
        cutting = task.get_loop().call_later(ABANDONED_SECONDS, task.cancel)
        task.add_done_callback(lambda _: cutting.cancel())  # Else it holds the answer for as long.
        raise
