"""A type of actors on one node, in virtual time: activation, idling, moving, losing, and an application that dies."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from mesh.actors.activation import Activation
from mesh.actors.errors import ActorMovedError, ActorNotActiveError, ActorTypeTakenError
from mesh.actors.host import Turn, TurnAnswer, TurnKind
from mesh.actors.hosted import HostedType
from mesh.actors.reminders import Written, remind
from mesh.actors.settings import HostSettings, TypeSettings
from mesh.actors.timers import ActorTimer
from mesh.actors.turns import Room
from mesh.errors import AppUnreachableError, StateError
from mesh.ownership.errors import NotOwnerError
from mesh.schedules import reminder_timing, timer_timing
from mesh.timers import FailurePolicy, Outcome, Timer
from tests.support.virtual_time import run

PARTITION, EPOCH = 3, 5


def _now() -> float:
    return asyncio.get_running_loop().time()


class _App:
    """A host that takes its time, and notes what it is asked."""

    def __init__(self, settings: TypeSettings) -> None:
        self.settings = HostSettings({"thing": settings})
        self.seconds = 0.0
        self.answer = TurnAnswer()
        self.away = False
        self.told: list[str] = []
        self.ended: list[str] = []
        self.inside = 0
        self.cut = False

    async def turn(self, turn: Turn) -> TurnAnswer:
        if self.away:
            raise AppUnreachableError("gone")
        self.told.append(f"{turn.kind}:{turn.id}:{turn.name}")
        assert self.inside == 0, "two turns of one actor at once"
        self.inside += 1
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cut = True
            raise
        finally:
            self.inside -= 1
        self.ended.append(turn.name)
        return self.answer


class _Node:
    """A node that owns a partition, until it does not."""

    def __init__(self, settings: TypeSettings | None = None) -> None:
        self.app = _App(settings or TypeSettings(idle_seconds=60.0, drain_seconds=5.0))
        self.epochs: dict[int, int] = {}
        self.room = Room(100)
        self.hosted = HostedType("thing", self.room, self._no_state, self.epochs.get, _now)

    def _no_state(self, *_: object) -> None:
        raise AssertionError

    def take(self, epoch: int = EPOCH) -> None:
        self.epochs[PARTITION] = epoch
        self.hosted.take(PARTITION, epoch)

    async def call(self, name: str = "x", id_: str = "1") -> TurnAnswer:
        return await self.hosted.turn(Turn(TurnKind.METHOD, "thing", id_, name), PARTITION)


def _played(play: Callable[[_Node], Awaitable[None]], settings: TypeSettings | None = None) -> _Node:
    node = _Node(settings)

    async def main() -> None:
        async with node.hosted.serve(node.app):
            node.take()
            await play(node)

    run(main())
    assert node.room.taken == 0
    assert node.hosted.active == 0
    return node


def test_idle_actors_are_put_away() -> None:
    """What is used stays; the idle time counts from the end of the last turn."""

    async def play(node: _Node) -> None:
        node.app.seconds = 50.0
        await node.call("a")
        await asyncio.sleep(50)
        await node.call("b")
        node.app.seconds = 0.0
        await asyncio.sleep(59.9)
        assert node.hosted.active == 1
        await asyncio.sleep(0.2)
        assert node.hosted.active == 0
        await node.call("c")

    node = _played(play)
    assert node.app.told == ["method:1:a", "method:1:b", "deactivation:1:", "method:1:c", "deactivation:1:"]


def test_a_timer_keeps_its_actor_and_ends_with_it() -> None:
    """It counts as use; what is put away has none."""

    async def play(node: _Node) -> None:
        await node.call("a")
        timer = ActorTimer("tick", timer_timing("40s", "40s", "70s", _now()))
        node.hosted.set_timer("1", timer)
        await asyncio.sleep(139)
        assert node.app.told.count("timer:1:tick") == 2
        assert node.hosted.active == 1
        await asyncio.sleep(10)
        assert node.hosted.active == 0
        with pytest.raises(ActorNotActiveError):
            node.hosted.set_timer("1", timer)

    _played(play)


def test_moving_lets_a_turn_end_and_begins_no_other() -> None:
    """Who waits has run nothing, and asks the next owner."""

    async def play(node: _Node) -> None:
        node.app.seconds = 3.0
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(node.call("running"))
            await asyncio.sleep(1)
            waiting = tasks.create_task(_refused(node.call("waiting")))
            await asyncio.sleep(0.1)
            await node.hosted.leave(PARTITION)
            assert asyncio.get_running_loop().time() == pytest.approx(1006.0)  # Its own 3 s, and 3 s to be put away.
        assert running.result().status == 200
        assert waiting.result() is NotOwnerError
        assert await _refused(node.call("late")) is NotOwnerError

    assert _played(play).app.told == ["method:1:running", "deactivation:1:"]


async def _refused(call: Awaitable[object]) -> type[Exception] | None:
    try:
        await call
    except (NotOwnerError, ActorMovedError) as error:
        return type(error)
    return None


@pytest.mark.parametrize(("drains", "after"), [(True, 5.0), (False, 0.0)])
def test_a_turn_that_does_not_end(drains: bool, after: float) -> None:
    """It is ended when its time to move is over, or at once where it may not end."""

    async def play(node: _Node) -> None:
        node.app.seconds = 1000.0
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(_refused(node.call("long")))
            await asyncio.sleep(1)
            node.app.seconds = 0.0
            before = asyncio.get_running_loop().time()
            await node.hosted.leave(PARTITION)
            assert asyncio.get_running_loop().time() - before == pytest.approx(after)
        assert running.result() is ActorMovedError

    assert _played(play, TypeSettings(drain_seconds=5.0, drains=drains)).app.told[-1] == "deactivation:1:"


@pytest.mark.parametrize(
    ("lost", "why"), [(False, "the actor moves, or its gateway stops"), (True, "the gateway owns the actor no more")]
)
def test_a_turn_that_was_ended_says_why(lost: bool, why: str) -> None:
    async def play(node: _Node) -> None:
        node.app.seconds = 1000.0

        async def called() -> None:
            with pytest.raises(ActorMovedError, match=f"^{why}.*: the turn of its actor was ended, and may have been"):
                await node.call("long")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(called())
            await asyncio.sleep(1)
            if lost:
                node.hosted.drop(PARTITION)
            else:
                await node.hosted.leave(PARTITION)

    _played(play, TypeSettings(drain_seconds=5.0))


def test_what_is_lost_is_put_away_before_it_comes_back() -> None:
    """The application forgets what it knew of the actor, before a call of the next epoch reaches it."""

    async def play(node: _Node) -> None:
        await node.call("a")
        node.app.seconds = 2.0
        node.hosted.drop(PARTITION)
        assert await _refused(node.call("refused")) is NotOwnerError
        node.take(EPOCH + 1)
        await node.call("b")

    assert _played(play).app.told[:3] == ["method:1:a", "deactivation:1:", "method:1:b"]


@pytest.mark.parametrize("cancelled", [False, True])
def test_what_is_lost_while_it_is_left(cancelled: bool) -> None:
    """Its turn is ended, and its application told, before the actor is back: no two turns run at once."""

    async def play(node: _Node) -> None:
        node.app.seconds = 4.0
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(_refused(node.call("running")))
            await asyncio.sleep(1)
            leaving = tasks.create_task(node.hosted.leave(PARTITION))
            await asyncio.sleep(1)
            if cancelled:
                leaving.cancel()
            else:
                node.hosted.drop(PARTITION)
            node.app.seconds = 0.0
            node.take(EPOCH + 1)
            await node.call("next")
        assert running.result() is ActorMovedError

    assert _played(play).app.told[:3] == ["method:1:running", "deactivation:1:", "method:1:next"]


def test_an_owner_that_is_not_sure_begins_nothing() -> None:
    """Also not what has waited until it no longer was."""

    async def play(node: _Node) -> None:
        node.app.seconds = 3.0
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(node.call("running"))
            await asyncio.sleep(1)
            waiting = tasks.create_task(_refused(node.call("waiting")))
            await asyncio.sleep(1)
            node.epochs.clear()
        assert waiting.result() is NotOwnerError
        assert await _refused(node.call("late")) is NotOwnerError
        node.app.seconds = 0.0

    assert _played(play).app.ended == ["running", ""]


def test_a_caller_that_gives_up_leaves_the_turn_running() -> None:
    """The next one waits for it, for a minute at the longest."""

    async def play(node: _Node) -> None:
        loop = asyncio.get_running_loop()
        node.app.seconds = 30.0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await node.call("short")
        await node.call("next")
        assert loop.time() == pytest.approx(1060.0)
        node.app.seconds = 1000.0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await node.call("hangs")
        node.app.seconds = 0.0
        await node.call("after")
        assert loop.time() == pytest.approx(1130.0)

    _played(play)


def test_a_reminder_that_the_application_hangs_in() -> None:
    """It has failed after a minute, has another to end, and then the actor goes on; who waited for it has not."""

    async def play(node: _Node) -> None:
        async def reminded(name: str) -> tuple[Outcome, float]:
            timer = Timer("1", name, reminder_timing("0s", "", "", _now()), FailurePolicy(), Written().encode())
            outcome = await remind(node.hosted, PARTITION, timer)
            return outcome, _now() - 1000.0

        node.app.seconds = 1e6
        async with asyncio.TaskGroup() as tasks:
            hanging = tasks.create_task(reminded("hangs"))
            await asyncio.sleep(1)
            waiting = tasks.create_task(reminded("waits"))
        assert hanging.result() == (Outcome.FAILED, pytest.approx(60.0))
        assert waiting.result() == (Outcome.BUSY, pytest.approx(61.0))
        node.app.seconds = 0.0
        assert await reminded("next") == (Outcome.DONE, pytest.approx(120.0))

    assert _played(play).app.told[:2] == ["reminder:1:hangs", "reminder:1:next"]


def test_a_timer_that_the_application_hangs_in() -> None:
    """The actor goes on, and idles at last."""

    async def play(node: _Node) -> None:
        await node.call("a")
        node.hosted.set_timer("1", ActorTimer("hangs", timer_timing("1s", "", "", _now())))
        node.app.seconds = 1e6
        await asyncio.sleep(2)
        node.app.seconds = 0.0
        await node.call("b")
        assert _now() == pytest.approx(1121.0)
        await asyncio.sleep(61)
        assert node.hosted.active == 0

    assert _played(play).app.told[:3] == ["method:1:a", "timer:1:hangs", "method:1:b"]


def test_an_application_that_hangs_is_left_all_the_same() -> None:
    """However many actors are active: it is not asked about each of them."""

    async def play(node: _Node) -> None:
        for number in range(1000):
            await node.call("a", str(number))

        async def hangs(turn: Turn) -> TurnAnswer:
            node.app.told.append(turn.kind)
            await asyncio.sleep(1e6)
            return TurnAnswer()

        node.app.turn = hangs  # type: ignore[method-assign]
        before = _now()
        await node.hosted.leave(PARTITION)
        assert _now() - before == pytest.approx(10.0)
        assert node.hosted.active == 0
        del node.app.turn  # type: ignore[method-assign]
        node.take()
        await node.call("a")
        await asyncio.sleep(130)
        assert node.app.told[-1] == "deactivation:1:", "a minute later it is asked again"

    assert _played(play, TypeSettings(idle_seconds=65.0)).app.told.count("deactivation") == 100


@pytest.mark.parametrize("why", ["no room", "not sure"])
def test_a_timer_that_cannot_have_its_turn(why: str) -> None:
    """It fires as soon as it can, also where it is the only time."""

    async def play(node: _Node) -> None:
        await node.call("a")
        node.hosted.set_timer("1", ActorTimer("once", timer_timing("1s", "", "", _now())))
        if why == "no room":
            for _ in range(node.room.most):
                node.room.take()
        else:
            node.epochs.clear()
        await asyncio.sleep(5)
        assert node.app.told == ["method:1:a"]
        if why == "no room":
            for _ in range(node.room.most):
                node.room.give_back()
        else:
            node.epochs[PARTITION] = EPOCH
        await asyncio.sleep(0.6)
        assert node.hosted.timers == 0

    assert _played(play).app.told[1] == "timer:1:once"


def test_who_is_cancelled_while_its_turn_is_cut() -> None:
    """In the same moment: it ends as cancelled."""

    async def play(node: _Node) -> None:
        node.app.seconds = 1000.0
        running = asyncio.ensure_future(node.call("x"))
        await asyncio.sleep(1)
        node.hosted.drop(PARTITION)
        while not node.app.cut:
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()

    _played(play)


def test_what_was_put_away_is_forgotten() -> None:
    """Long before it would have idled."""

    async def play(node: _Node) -> None:
        await node.call("a", "stays")
        for number in range(1000):
            await node.call("a", str(number))
            await node.hosted.deactivate(str(number))
        gc.collect()
        # By type: to ask a weak reference what it is fails when that is gone.
        assert sum(issubclass(type(each), Activation) for each in gc.get_objects()) < 10

    _played(play)


def test_what_is_left_while_its_application_goes() -> None:
    """Its next owner gets it once its reminders are left: else one that has fired would fire there again."""

    class Reminders:
        def take(self, partition: int, epoch: int) -> None: ...

        def drop(self, partition: int) -> None: ...

        async def leave(self, partition: int) -> None:
            await asyncio.sleep(5)

    async def main() -> None:
        node, gone = _Node(), asyncio.Event()

        async def serve() -> None:
            async with node.hosted.serve(node.app, Reminders()):
                await gone.wait()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve())
            await asyncio.sleep(1)
            node.take()
            gone.set()
            await asyncio.sleep(1)
            began = _now()
            await node.hosted.leave(PARTITION)
            assert _now() - began >= 4

    run(main())


def test_what_fails_while_it_is_left() -> None:
    """The failure is told as it is, and the actors are put away."""

    class Reminders:
        """They fail."""

        def take(self, partition: int, epoch: int) -> None: ...

        async def leave(self, partition: int) -> None:
            raise StateError("broken")

        def drop(self, partition: int) -> None: ...

    node = _Node()

    async def main() -> None:
        async with node.hosted.serve(node.app, Reminders()):
            node.take()
            await node.call("a")
            with pytest.raises(StateError, match="broken"):
                await node.hosted.leave(PARTITION)

    run(main())
    assert node.hosted.active == 0


def test_an_answer_that_nobody_waits_for_is_let_go() -> None:
    """It is not kept for the minute that its turn might have had."""

    class Weak(TurnAnswer, weakref=True):
        """One that a test can see go."""

    async def play(node: _Node) -> None:
        node.app.seconds, node.app.answer = 2.0, Weak(200, (), b"large")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await node.call("x")
        answer = weakref.ref(node.app.answer)
        await asyncio.sleep(2)
        node.app.answer = TurnAnswer()
        gc.collect()
        assert answer() is None

    _played(play)


def test_an_application_that_is_away_ran_nothing() -> None:
    """The call is made again, where the actor is by then."""

    async def play(node: _Node) -> None:
        node.app.away = True
        assert await _refused(node.call("x")) is NotOwnerError

    assert not _played(play).app.told


def test_an_application_that_died_is_told_nothing() -> None:
    """Its turns end, and what was active is gone with it; a new one begins with nothing."""
    node = _Node()

    async def main() -> None:
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(asyncio.TaskGroup())

            async def session() -> None:
                async with node.hosted.serve(node.app):
                    await asyncio.Event().wait()

            serving = tasks.create_task(session())
            await asyncio.sleep(0)
            node.take()
            await node.call("a", "2")
            node.app.seconds = 100.0
            running = tasks.create_task(_refused(node.call("b")))
            await asyncio.sleep(1)
            serving.cancel()
            await asyncio.wait([serving])
            assert await running is ActorMovedError
            assert node.hosted.active == 0
            assert await _refused(node.call("c")) is NotOwnerError
            node.app.seconds = 0.0
            async with node.hosted.serve(node.app):
                await node.call("d")

    run(main())
    assert node.app.told == ["method:2:a", "method:1:b", "method:1:d", "deactivation:1:"]
    assert node.room.taken == 0


def test_a_type_has_one_host() -> None:
    """Another one waits a little until all of the first is gone, else it is refused and changes nothing of it."""
    node, other = _Node(), _App(TypeSettings())

    async def refused() -> None:
        with pytest.raises(ActorTypeTakenError):
            await node.hosted.serve(other).__aenter__()

    async def main() -> None:
        ended = asyncio.Event()

        async def session() -> None:
            async with node.hosted.serve(node.app):
                await ended.wait()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(session())
            await asyncio.sleep(0)
            node.take()
            await refused()
            node.app.seconds = 5.5
            running = tasks.create_task(node.call("running"))
            await asyncio.sleep(1)
            node.app.seconds = 1.0
            ended.set()
            await asyncio.sleep(1)
            await refused()
            await running
            async with node.hosted.serve(other):  # The first is just being told to deactivate, and is gone soon.
                await node.call("next")
        assert running.result().status == 200

    run(main())
    assert node.app.told == ["method:1:running", "deactivation:1:"]
    assert other.told == ["method:1:next", "deactivation:1:"]


def test_a_chain_ends_at_a_gateway_that_stops() -> None:
    """A turn that waits for its own actor does not wait for it to move; who waits behind it does not begin."""
    node = _Node(TypeSettings(drain_seconds=50.0, max_depth=4))
    chain = [("Dapr-Reentrancy-Id", "c")]
    outcomes: list[object] = []

    async def main() -> None:
        stop = asyncio.Event()

        async def turn(asked: Turn) -> TurnAnswer:
            node.app.told.append(f"{asked.kind}:{asked.name}")
            if asked.name == "outer":
                stop.set()
                await asyncio.sleep(1)
                return await node.hosted.turn(Turn(TurnKind.METHOD, "thing", "1", "inner", chain), PARTITION)
            return TurnAnswer(200, (), b"inner")

        node.app.turn = turn  # type: ignore[method-assign]
        async with asyncio.TaskGroup() as tasks:
            async with node.hosted.serve(node.app):
                node.take()
                outer = tasks.create_task(
                    node.hosted.turn(Turn(TurnKind.METHOD, "thing", "1", "outer", chain), PARTITION)
                )
                await stop.wait()
                other = [("Dapr-Reentrancy-Id", "other")]
                waiting = tasks.create_task(
                    _refused(node.hosted.turn(Turn(TurnKind.METHOD, "thing", "1", "behind", other), PARTITION))
                )
                await asyncio.sleep(0)
                node.epochs.clear()
            assert _now() == pytest.approx(1001.0)
        outcomes.extend((outer.result().body, waiting.result()))

    run(main())
    assert outcomes == [b"inner", NotOwnerError]
    assert node.app.told == ["method:outer", "method:inner", "deactivation:"]
    assert node.room.taken == 0
