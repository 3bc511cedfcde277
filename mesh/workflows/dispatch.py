"""Engine turns and activities to workers, as they have room; see `mesh.workflows.contracts.Dispatch`.

What waits is names and numbers: an instance is read, and what it is to do is made, once somebody has room for that. A
worker that does not take something is left alone with what is so called for a while. What no worker of this node has
room for, or runs, goes to other nodes of the application; what is another application's goes to its nodes
(``remote.py``). In the other direction, what another application wants waits here like what is wanted here, within
bounds; what comes from another node of this one is refused unless there is room at once, as it can wait where it was.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from mesh.errors import AppFailedError, AppUnreachableError, MeshError
from mesh.ownership.errors import NotOwnerError
from mesh.tasks import task_group
from mesh.workflows.actions import Answer
from mesh.workflows.capacity import MAX_AWAY, PAUSE, Attached, Away, Lane, Level, Pause, Room, now
from mesh.workflows.contracts import Engine
from mesh.workflows.fair_queue import FairQueue
from mesh.workflows.operations import PREFIX
from mesh.workflows.peers import Peer, Peers
from mesh.workflows.settings import Limits
from mesh.workflows.waiting import Place
from mesh.workflows.worker import Ref, TaskResult, TaskWork, TurnWork, Worker, WorkTooLargeError

__all__ = ["DRAIN_SECONDS", "GROW_SECONDS", "Dispatch"]

logger = logging.getLogger(__name__)

BUSY_SECONDS = 0.5  # Until nodes that have no room are asked again.
GROW_SECONDS = 0.1  # In which nobody refuses, then they are asked for twice as much.
AGAIN_SECONDS = 1.0  # Until it is asked again what the store failed to say.
DRAIN_SECONDS = 60.0
_Work = TypeVar("_Work", TurnWork, TaskWork)
_Result = TypeVar("_Result", Answer, TaskResult)
GUEST = -1  # In place of the partition of what another node has asked for.


@dataclass(slots=True, eq=False)
class _Guest:
    """An activity that another node has asked for."""

    work: TaskWork
    result: asyncio.Future[TaskResult]
    begun: bool = False


class Dispatch:
    """What one node gives to workers of one application."""

    def __init__(self, app: str, peers: Peers, changed: Callable[[], None] = lambda: None) -> None:
        """Have no worker yet.

        Args:
            app: The application.
            peers: Other nodes.
            changed: Is called when a worker was attached, or has gone.
        """
        self._app, self._peers, self._changed = app, peers, changed
        self._turns = Lane(0, Room(Limits()))
        self._tasks = Lane(1, Room(Limits()))
        self._attached: list[Attached] = []
        self._away: dict[str, Away] = {app: Away(app)}
        self._guests: dict[int, _Guest] = {}
        self._numbers = itertools.count(1)
        self._places: dict[tuple[Ref, int], Place] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._running: dict[asyncio.Task[None], set[asyncio.Task[None]] | None] = {}  # With those of its worker.
        self._engine: Engine
        self._group: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def run(self, engine: Engine) -> AsyncIterator[None]:
        """Give out what an engine has, while entered."""
        self._engine = engine
        async with task_group() as self._group:
            try:
                yield
            finally:
                self._group = None
                for timer in self._timers:
                    timer.cancel()
                for task in self._running:
                    task.cancel()

    def limit(self, turns: Limits, tasks: Limits, gateways: int = 1) -> None:
        """Have no more out than that from here on, on one of so many gateways; at first there are no limits."""
        self._turns.room.limit(turns, gateways)
        self._tasks.room.limit(tasks, gateways)
        self._pump()

    # Workers

    @property
    def has_worker(self) -> bool:
        """Tell whether a worker of the application is attached."""
        return any(each.level is not Level.OPERATIONS and not each.worker.ended.is_set() for each in self._attached)

    @property
    def workers(self) -> Mapping[str, int]:
        """Count the application's workers by their titles."""
        return Counter(each.worker.title for each in self._attached if each.level is not Level.OPERATIONS)

    @asynccontextmanager
    async def attach(self, worker: Worker, level: Level = Level.ANY) -> AsyncIterator[None]:
        """Give work to a worker while entered; leaving waits for what it has been given, not for ever."""
        attached = Attached(worker, level)
        self._attached = sorted([*self._attached, attached], key=lambda each: each.level)
        try:
            self._changed()
            if level is not Level.OPERATIONS:
                self._engine.worker_attached()
            self._pump()
            yield
        finally:
            self._attached.remove(attached)
            self._changed()
            self._pump()  # It may go to other nodes now.
            if not self.has_worker:
                self._refuse_guests()
            try:
                if attached.running:
                    await asyncio.wait(attached.running, timeout=DRAIN_SECONDS)
            finally:
                for each in attached.running:
                    each.cancel()

    # What is wanted

    def turn(self, ref: Ref, name: str) -> None:
        """Have ``Engine.open_turn`` called once a worker that runs a workflow of this name has room; once at a time."""
        self._turns.queue.add(name, ref, 0)
        self._place(self._turns, name)

    def task(self, ref: Ref, task: int, name: str, app: str | None) -> None:
        """Have ``Engine.open_task`` called once a worker has room for an activity of this name."""
        if app in (None, self._app):
            self._tasks.queue.add(name, ref, task)
            self._place(self._tasks, name)
            return
        assert app is not None
        away = self._away.get(app)
        if away is None:
            away = self._away[app] = Away(app)
        away.queue.add(name, ref, task)
        self._send(away)

    def forget(self, ref: Ref) -> None:
        """Want nothing more for an instance; what is out stays out, and its outcome may still come."""
        self._turns.queue.forget(ref)
        self._tasks.queue.forget(ref)
        for away in self._away.values():
            away.queue.forget(ref)

    def place(self, ref: Ref, task: int) -> Place | None:
        """Tell where an activity is out; None = it is not, or not known."""
        return self._places.get((ref, task))

    async def run_for(self, work: TaskWork) -> TaskResult:
        """Run an activity that another node asks for; raises as ``Worker.task`` does."""
        name, tasks = work.name, self._tasks
        if name.startswith(PREFIX) or not any(each.runs(tasks.index, name) for each in self._attached):
            raise AppUnreachableError(f"no worker of this node runs the activity {name!r}")
        ref, number = Ref(GUEST, f"{work.owner}/{work.instance}"), next(self._numbers)
        if self._find(tasks, name, ref.id) is None and (
            work.owner == self._app or len(self._guests) >= MAX_AWAY  # The former can wait where they come from.
        ):
            raise AppUnreachableError(f"the workers of this node have no room for the activity {name!r}")
        guest = self._guests[number] = _Guest(work, asyncio.get_running_loop().create_future())
        tasks.queue.add(name, ref, number)
        self._place(tasks, name)
        try:
            return await guest.result
        finally:
            self._guests.pop(number, None)

    def _refuse_guests(self) -> None:
        for guest in self._guests.values():
            if not guest.begun and not guest.result.done():
                guest.result.set_exception(AppUnreachableError("this node has no worker now"))

    # Who gets it

    def _pump(self) -> None:
        for lane in (self._turns, self._tasks):
            for name in lane.queue:
                self._place(lane, name)

    def _place(self, lane: Lane, name: str) -> None:
        """Give out what waits under a name, as far as there is room."""
        if self._group is None:
            return
        queue = lane.queue
        while (ref := queue.first(name)) is not None:
            attached = self._find(lane, name, ref.id)
            if attached is None:
                break
            ref, number = queue.take(name)
            lane.room.enter(name)
            attached.out[lane.index] += 1
            attached.given = next(self._numbers)
            if lane is self._turns:
                work = self._run_turn(attached, ref, name)
            elif ref.partition == GUEST:
                work = self._run_guest(attached, number, name)
            else:
                work = self._run_task(attached, ref, number, name)
            self._start(work, attached.running)
        if ref is not None and lane is self._tasks and not name.startswith(PREFIX):
            self._spread(name)

    def _find(self, lane: Lane, name: str, instance: str) -> Attached | None:
        """Give the worker that is to have the next one: who knows the instance, else who has the least."""
        if not lane.room.has(name):
            return None
        index, level, best = lane.index, None, None
        for each in self._attached:
            if level is not None and each.level is not level:
                break
            if not each.runs(index, name):
                continue
            level = each.level
            if not each.has_room(index, name):
                continue
            if not index and each.worker.knows(instance):
                return each
            if best is None or (each.out[index], each.given) < (best.out[index], best.given):
                best = each
        return best

    def _spread(self, name: str) -> None:
        """Send to other nodes what there is no room for here."""
        queue, away = self._tasks.queue, self._away[self._app]
        while (ref := queue.first(name)) is not None and ref.partition != GUEST:
            if not away.open:
                self._grow(away)
                return
            self._send_one(away, queue, name)

    def _send(self, away: Away) -> None:
        """Send what waits for another application."""
        if self._group is None:
            return
        for name in away.queue:
            while away.queue.first(name) is not None:
                if not away.open:
                    self._grow(away)
                    return
                self._send_one(away, away.queue, name)
        if away.app != self._app and not away.out and not away.queue and away.pause.until <= now():
            self._away.pop(away.app, None)

    def _grow(self, away: Away) -> None:
        """Look whether somebody is there, or ask for more before long."""

        def grow() -> None:
            away.grow()
            self._look_away(away)

        if not away.found:
            if not away.seeking and away.pause.until <= now():
                away.seeking = True
                self._start(self._seek(away))
        elif away.may_grow:
            away.growing = True
            self._later(GROW_SECONDS, grow)

    def _send_one(self, away: Away, queue: FairQueue, name: str) -> None:
        away.out += 1
        ref, number = queue.take(name)
        self._start(self._run_away(away, queue, ref, number, name))

    def _start(self, work: Coroutine[Any, Any, None], others: set[asyncio.Task[None]] | None = None) -> None:
        assert self._group is not None
        task = self._group.create_task(work, name="workflow-work")
        self._running[task] = others
        if others is not None:
            others.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if (others := self._running.pop(task)) is not None:
            others.discard(task)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        def do() -> None:
            self._timers.discard(timer)
            call()

        if self._group is not None:
            timer = asyncio.get_running_loop().call_later(seconds, do)
            self._timers.add(timer)

    # What comes of it

    async def _run_turn(self, attached: Attached, ref: Ref, name: str) -> None:
        engine, run = self._engine, attached.worker.turn
        work, came = await self._outcome(attached, self._turns, name, engine.open_turn(ref), run)
        if work is None:
            self._not_opened(came, lambda: self.turn(ref, name))
        elif isinstance(came, Answer):
            await _told(engine.turned(work, came))
        elif isinstance(came, WorkTooLargeError):
            await _told(engine.turn_impossible(work, str(came)))
        else:
            engine.turn_lost(work, begun=not isinstance(came, AppUnreachableError))

    async def _run_task(self, attached: Attached, ref: Ref, number: int, name: str) -> None:
        engine, run = self._engine, attached.worker.task
        self._places[ref, number] = "", attached.worker.title
        work, came = await self._outcome(attached, self._tasks, name, engine.open_task(ref, number), run)
        self._places.pop((ref, number), None)
        if work is None:
            self._not_opened(came, lambda: self.task(ref, number, name, None))
        else:
            self._tell_of_task(ref, work, came)

    def _tell_of_task(self, ref: Ref, work: TaskWork, came: object) -> None:
        if isinstance(came, TaskResult):
            self._engine.resolved(ref, work, came)
        else:
            self._engine.task_lost(ref, work, begun=not isinstance(came, AppUnreachableError))

    async def _run_guest(self, attached: Attached, number: int, name: str) -> None:
        if (guest := self._guests.get(number)) is not None:
            guest.begun = True
        work, came = await self._outcome(attached, self._tasks, name, _wanted(guest), attached.worker.task)
        if work is None or guest is None or guest.result.done():
            return
        if isinstance(came, TaskResult):
            guest.result.set_result(came)
        else:
            guest.result.set_exception(came if isinstance(came, MeshError) else AppFailedError(repr(came)))

    async def _outcome(
        self,
        attached: Attached,
        lane: Lane,
        name: str,
        opened: Awaitable[_Work | None],
        run: Callable[[_Work], Awaitable[_Result]],
    ) -> tuple[_Work | None, _Result | BaseException | None]:
        """Have a worker do something, and free its place; gives what it was, and what came of it.

        A failure is given, and so is a cancellation: what is cancelled here has only to tell the engine, and then ends.
        """
        work: _Work | None = None
        try:
            work = await opened
            if work is None:
                return None, None
            result = await run(work)
            attached.pauses.pop((lane.index, name), None)
            return work, result
        except WorkTooLargeError as error:
            return work, error
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - one failure must not end the others
            if work is not None and isinstance(error, Exception):
                self._pause(attached, lane, name, error)
            return work, error
        finally:
            attached.out[lane.index] -= 1
            lane.room.leave(name)
            if lane.queue:
                self._place(lane, name)  # Whatever waits under that name has its turn first.
                for other in lane.queue:
                    self._place(lane, other)

    def _pause(self, attached: Attached, lane: Lane, name: str, error: Exception) -> None:
        what = "activity" if lane.index else "workflow"
        if not isinstance(error, MeshError):
            logger.error("a worker failed at the %s %r", what, name, exc_info=error)
        if attached.worker.ended.is_set():
            return
        pause = attached.pauses.setdefault((lane.index, name), Pause(PAUSE))
        if pause.until > now():
            return  # Of several that it had at once, one is enough.
        away = isinstance(error, AppUnreachableError)
        seconds = pause.longer() if away else pause.shortest()  # One instance may be at fault, which is the engine's.
        logger.log(
            logging.DEBUG if away else logging.WARNING,
            "the %s %r is to be run again in %.1f s: %s",
            what,
            name,
            seconds,
            error,
        )
        until = pause.until

        def over() -> None:
            pause.end(until)
            self._place(lane, name)

        self._later(seconds, over)

    def _not_opened(self, error: object, again: Callable[[], None]) -> None:
        """Ask again for what could not be made, unless there is nothing to do, or another node does it."""
        if error is None or isinstance(error, NotOwnerError):
            return
        if not isinstance(error, (MeshError, asyncio.CancelledError)):
            logger.error("cannot go on with an instance", exc_info=cast("Exception", error))
        self._later(AGAIN_SECONDS, again)

    async def _run_away(self, away: Away, queue: FairQueue, ref: Ref, number: int, name: str) -> None:
        """Have other nodes run an activity."""
        engine, work = self._engine, None
        came: object = None
        try:
            peer = await self._away_peer(away)
            if peer is None:
                queue.add(name, ref, number)
                return
            self._places[ref, number] = peer.node, ""
            work = await engine.open_task(ref, number)
            came = None if work is None else await self._peers.task(peer, work)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - as above
            came = error
        finally:
            away.out -= 1
            self._places.pop((ref, number), None)
        if work is None:
            self._not_opened(came, lambda: self.task(ref, number, name, away.app))
        else:
            if isinstance(came, TaskResult):
                away.pause.over()
            elif isinstance(came, AppUnreachableError):
                away.refused()
            else:  # It would be asked for again at once.
                self._rest_longer(away)
            self._tell_of_task(ref, work, came)
        self._look_away(away)

    async def _seek(self, away: Away) -> None:
        try:
            await self._away_peer(away)
        finally:
            away.seeking = False
        self._look_away(away)

    async def _away_peer(self, away: Away) -> Peer | None:
        try:
            peer = await self._peers.peer(away.app)
        except AppUnreachableError:  # There are some, and they are busy.
            away.found = True
            self._rest(away, BUSY_SECONDS)
            return None
        except MeshError as error:
            logger.debug("nobody can tell who runs activities of %s: %s", away.app, error)
            peer = None
        away.found = peer is not None
        if peer is None:
            self._rest_longer(away)
        return peer

    def _rest_longer(self, away: Away) -> None:
        if away.pause.until <= now():
            self._rest(away, away.pause.longer())

    def _rest(self, away: Away, seconds: float) -> None:
        away.pause.until = until = now() + seconds

        def over() -> None:
            away.pause.end(until)
            self._look_away(away)

        self._later(seconds, over)

    def _look_away(self, away: Away) -> None:
        self._send(away)
        if away.app == self._app and away.pause.until <= now():
            for name in self._tasks.queue:
                self._place(self._tasks, name)


async def _wanted(guest: _Guest | None) -> TaskWork | None:
    return None if guest is None or guest.result.done() else guest.work


async def _told(telling: Awaitable[None]) -> None:
    """Tell the engine, which looks itself after what fails there."""
    try:
        await telling
    except MeshError as error:
        logger.debug("the engine did not take what came of a turn: %s", error)
