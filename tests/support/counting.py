"""Load on the actors and jobs of ``tests/support/apps/counters.py``, and what its records and its store say of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from mesh.store import StateStore
from tests.support.mesh import AppProcess, GatewayProcess

__all__ = ["Call", "Calling", "Doubled", "Holding", "Scheduling", "Written", "doubled", "read_written", "records_of"]

ATTEMPT_SECONDS = 5.0
AGAIN_AFTER = 0.1
PAGE = 500
SEPARATOR = "||"


@asynccontextmanager
async def _paced(rate: float, do: object) -> AsyncIterator[None]:
    """Begin one more task ``do(number)`` at a steady rate while entered; leaving waits for those that were begun."""
    async with asyncio.TaskGroup() as tasks:

        async def pace() -> None:
            loop = asyncio.get_running_loop()
            due = loop.time()
            for number in itertools.count():
                tasks.create_task(do(number))  # type: ignore[operator]
                due += 1 / rate
                await asyncio.sleep(max(0.0, due - loop.time()))

        pacing = tasks.create_task(pace())
        try:
            yield
        finally:
            pacing.cancel()


@dataclass(slots=True)
class Call:
    """A call of an actor.

    Attributes:
        actor: Its id.
        fault: What was done last before it ended.
        began: Monotonic time.
        ended: The same; None while it is under way.
        problem: What went wrong, in words; empty if it was answered 200.
    """

    actor: str
    fault: str
    began: float
    ended: float | None = None
    problem: str = ""

    @property
    def seconds(self) -> float:
        assert self.ended is not None
        return self.ended - self.began

    @property
    def answered(self) -> bool:
        return self.ended is not None and not self.problem


class Calling:
    """Calls counters at a steady rate, one after the other, each call on its own time.

    Attributes:
        calls: All of them, by number.
        actors: The ids of the counters.
        fault: What is being done to the mesh at the moment.
    """

    def __init__(self, gateway: GatewayProcess, actors: Sequence[str], rate: float, *, timeout: str = "60s") -> None:
        self.actors = actors
        self.fault = ""
        self.calls: list[Call] = []
        self._url = f"{gateway.api}/actors/counter"
        self._rate = rate
        self._headers = {"mesh-timeout": timeout}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Call while entered; leaving waits for the last answers."""
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=90.0)
            ) as session,
            _paced(self._rate, lambda number: self._call(session, number)),
        ):
            yield

    async def _call(self, session: aiohttp.ClientSession, number: int) -> None:
        call = Call(self.actors[number % len(self.actors)], self.fault, time.monotonic())
        self.calls.append(call)
        try:
            url = f"{self._url}/{call.actor}/method/add"
            async with session.post(url, data=str(number), headers=self._headers) as response:
                text = await response.text()
                call.problem = "" if response.status == 200 else f"{response.status} {text}"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            call.problem = repr(error)
        call.ended = time.monotonic()

    def happens(self, fault: str) -> None:
        """Have the calls that are under way, and those that follow, be those of what is done now."""
        self.fault = fault
        for call in self.calls:
            if call.ended is None:
                call.fault = fault

    def answered_after(self, since: float) -> float:
        """Give the time until which each actor has answered a call that began later; fails while one has not."""
        first: dict[str, float] = {}
        for call in self.calls:
            if call.answered and call.began >= since and call.ended is not None:
                first[call.actor] = min(first.get(call.actor, call.ended), call.ended)
        assert len(first) == len(self.actors), f"no answer from {sorted(set(self.actors) - first.keys())}"
        return max(first.values())

    def ended_before(self, since: float) -> None:
        """Fail while a call that began earlier is under way."""
        waiting = [call for call in self.calls if call.began < since and call.ended is None]
        assert waiting == []


class Holding:
    """Has each actor hold a call, and the next one once that is answered: so whenever it moves, a call waits for that.

    Attributes:
        asked_at: Unix time at which each call was made, by what asks.
        problems: Of those that failed, in words.
    """

    def __init__(self, gateway: GatewayProcess, actors: Sequence[str]) -> None:
        self.asked_at: dict[str, float] = {}
        self.problems: list[str] = []
        self._actors = frozenset(actors)
        self._url = f"{gateway.api}/actors/counter"
        self._over = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Call while entered; leaving waits for the last answers."""
        timeout, connector = aiohttp.ClientTimeout(total=90.0), aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            asyncio.TaskGroup() as tasks,
        ):
            for actor in self._actors:
                tasks.create_task(self._hold(session, actor))
            try:
                yield
            finally:
                self._over.set()

    async def _hold(self, session: aiohttp.ClientSession, actor: str) -> None:
        for number in itertools.count():
            if self._over.is_set():
                return
            body = f"{actor}-{number}"
            self.asked_at[f"call:{body}"] = time.time()
            try:
                async with session.post(f"{self._url}/{actor}/method/hold", data=body) as response:
                    text = await response.text()
                    if response.status != 200:
                        self.problems.append(f"{body}: {response.status} {text}")
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self.problems.append(f"{body}: {error!r}")

    def waits(self, begins: Iterable[Mapping[str, object]]) -> list[float]:
        """Give the seconds until the first turn behind each move began, since it was asked for; the shortest first."""
        turns: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
        for each in begins:
            if (actor := str(each["actor"])) in self._actors:
                epoch, number = map(int, str(each["turn"]).split("-"))
                turns[actor].append((epoch, number, float(str(each["at"])) - self.asked_at[str(each["by"])]))
        return sorted(
            wait
            for each in turns.values()
            for (before, _, _), (epoch, _, wait) in itertools.pairwise(sorted(each))
            if epoch != before
        )


class Scheduling:
    """Registers what is to come once, at a steady rate, each with a name of its own, and again until that was answered.

    Attributes:
        asked_at: Unix time at which each was asked for first.
        kept_at: Unix time at which each was answered 204.
    """

    def __init__(self, path: str, gateways: Sequence[GatewayProcess], rate: float, due: float) -> None:
        """Prepare.

        Args:
            path: Of the API, with ``{name}`` and ``{actor}`` in it.
            gateways: To ask, in turn.
            rate: How many a second.
            due: Seconds until each is to come.
        """
        self.asked_at: dict[str, float] = {}
        self.kept_at: dict[str, float] = {}
        self.due = due
        self._path, self._rate = path, rate
        self._gateways = itertools.cycle(gateways)
        self._body = {
            "dueTime": f"{round(due * 1000)}ms",
            "overwrite": True,
            "failurePolicy": {"constant": {"interval": "500ms"}},  # Without an end.
        }

    @asynccontextmanager
    async def running(self, actors: Sequence[str] = ("",)) -> AsyncIterator[None]:
        """Register while entered; leaving waits until all are."""
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ATTEMPT_SECONDS)) as session,
            _paced(self._rate, lambda number: self._register(session, number, actors[number % len(actors)])),
        ):
            yield

    async def _register(self, session: aiohttp.ClientSession, number: int, actor: str) -> None:
        name = f"n{number}"
        self.asked_at[name] = time.time()
        while True:
            url = next(self._gateways).api + self._path.format(name=name, actor=actor)
            try:
                async with session.post(url, json=self._body) as response:
                    if response.status == 204:
                        self.kept_at[name] = time.time()
                        return
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass
            await asyncio.sleep(AGAIN_AFTER)

    def latest(self, came_at: Mapping[str, float], since: float, until: float) -> float:
        """Give by how many seconds the latest one came too late, of those that were due in a span of Unix time."""
        due = {name: self.kept_at[name] + self.due for name in came_at}
        return max((at - due[name] for name, at in came_at.items() if since <= due[name] < until), default=0.0)

    def lost(self, came_at: Mapping[str, float]) -> list[str]:
        """Name what never came."""
        return sorted(self.kept_at.keys() - came_at.keys())

    def early(self, came_at: Mapping[str, float]) -> list[str]:
        """Name what came before its time."""
        return sorted(name for name, at in came_at.items() if at < self.asked_at[name] + self.due)

    def told(self, came_at: Mapping[str, float]) -> dict[str, int]:
        """Give what came of it in figures."""
        return {"kept": len(self.kept_at), "lost": len(self.lost(came_at)), "early": len(self.early(came_at))}


def records_of(app: AppProcess, kind: str) -> list[dict[str, object]]:
    """Give what applications recorded of a kind, in that order."""
    return [json.loads(text) for text in app.recorded(kind)]


@dataclass(frozen=True, slots=True)
class Doubled:
    """Turns of one actor that were under way at once, in two activations.

    Attributes:
        actor: Its id.
        turns: Both ids.
        seconds: For how long.
    """

    actor: str
    turns: tuple[str, str]
    seconds: float


def doubled(begins: Iterable[Mapping[str, object]], ends: Iterable[Mapping[str, object]]) -> list[Doubled]:
    """Find turns of one actor that overlap; what never ended is left out, since its application died."""
    ended = {(each["actor"], each["turn"]): float(str(each["at"])) for each in ends}
    turns: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for each in begins:
        actor, turn = str(each["actor"]), str(each["turn"])
        if (actor, turn) in ended:
            turns[actor].append((float(str(each["at"])), ended[actor, turn], turn))
    found = []
    for actor, spans in turns.items():
        latest = (0.0, 0.0, "")
        for span in sorted(spans):
            if span[0] < latest[1]:
                found.append(Doubled(actor, (latest[2], span[2]), min(span[1], latest[1]) - span[0]))
            latest = max(latest, span, key=lambda each: each[1])
    return found


@dataclass(slots=True)
class Written:
    """What the store holds of an actor.

    Attributes:
        count: Its count.
        turn: The turn that wrote it.
        writes: Each write that the store ever accepted: its number, epoch and turn, and what that says.
    """

    count: int = 0
    turn: str = ""
    writes: dict[tuple[int, int, int], Mapping[str, str]] = field(default_factory=dict)

    @property
    def keys(self) -> set[str]:
        return {f"w{count}-{epoch}-{number}" for count, epoch, number in self.writes}

    @property
    def by(self) -> Counter[str]:
        """How often each asker's turn was written."""
        return Counter(each["by"] for each in self.writes.values())

    def stale(self) -> list[str]:
        """Name the writes that do not follow the one before: one number twice or left out, or an owner of before."""
        found = []
        before = (0, 0, 0)
        turn = ""
        for write in sorted(self.writes):
            count, *turn_id = write
            if count != before[0] + 1 or tuple(turn_id) <= before[1:] or self.writes[write]["after"] != turn:
                found.append(f"w{'-'.join(map(str, write))} after {before}")
            before = write
            turn = "-".join(map(str, turn_id))
        if (self.count, self.turn) != (before[0], turn):
            found.append(f"count {self.count} by {self.turn} after {before}")
        return found


async def read_written(store: StateStore, app_id: str, actors: Sequence[str]) -> dict[str, Written]:
    """Read what the store holds of counters, all of it."""
    found = {actor: Written() for actor in actors}
    prefix = SEPARATOR.join((app_id, "counter", ""))
    after = ""
    while page := await store.scan(prefix, after, PAGE):
        for name, stored in page:
            actor, key = name.removeprefix(prefix).split(SEPARATOR)
            value, written = json.loads(stored.value), found[actor]
            if key == "count":
                written.count, written.turn = value["count"], value["turn"]
            else:
                count, epoch, number = map(int, key.removeprefix("w").split("-"))
                written.writes[count, epoch, number] = value
        after = page[-1][0]
    return found
