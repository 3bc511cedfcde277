"""The workers of the examples replay any code over any history as docs/workflow-http.md says."""

from __future__ import annotations

import io
import json
import random
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.test_example_shapes import EXAMPLES, needs
from tests.support.eventually import eventually
from tests.support.mesh import ManagedProcess
from tests.support.processes import free_port

PYTHON, NODE = EXAMPLES / "workflow-python/app.py", EXAMPLES / "workflow-node/app.mjs"
MAX_LINES = 60
NO_CODE = re.compile(r'^\s*(#|//|""".*"""$|$)')
ORDER = {
    PYTHON: re.compile(r"^def order\(.*?(?=\n\n\n)", re.DOTALL | re.MULTILINE),
    NODE: re.compile(r"^function\* order\(.*?^}", re.DOTALL | re.MULTILINE),
}
# A workflow that does what its input says, one step after the other, and gives what came of each.
STEPS = {
    PYTHON: """
def order(ask, given):
    out = []
    for kind, value in given:
        try:
            if kind == "tasks":
                for task in [ask(activity="pack", input=number) for number in range(value)]:
                    out.append((yield task))
            elif kind == "wait":
                out.append((yield ask(wait=value)))
            elif kind == "race":
                out.append((yield first_of(ask(timer="1m"), ask(wait=value), ask(activity="pack"))))
            elif kind == "send":
                ask(send=value, to="other")
            else:
                raise ValueError(value)
        except RuntimeError as failure:
            out.append("caught " + str(failure).removeprefix("Refused: "))
    return out
""",
    NODE: """
function* order(ask, given) {
  const out = [];
  for (const [kind, value] of given) {
    try {
      if (kind === 'tasks') {
        const tasks = [...Array(value).keys()].map((input) => ask({ activity: 'pack', input }));
        for (const task of tasks) out.push(yield task);
      } else if (kind === 'wait') out.push(yield ask({ wait: value }));
      else if (kind === 'race') {
        const first = yield firstOf(ask({ timer: '1m' }), ask({ wait: value }), ask({ activity: 'pack' }));
        out.push(first ?? null);
      } else if (kind === 'send') ask({ send: value, to: 'other' });
      else throw Object.assign(new Error(value), { name: 'ValueError' });
    } catch (failure) {
      if (failure.type !== 'Refused') throw failure;
      out.push(`caught ${failure.message}`);
    }
  }
  return out;
}
""",
}

JSON = dict[str, Any]
Program = list[tuple[str, Any]]


class Worker(ManagedProcess):
    """One of the examples, also with other code in place of its own."""

    def __init__(self, source: Path, directory: Path, session: aiohttp.ClientSession) -> None:
        port, program = free_port(), sys.executable if source.suffix == ".py" else "node"
        super().__init__("worker", [program, str(source)], {"APP_PORT": str(port)}, directory)
        self.port = port
        self._session = session

    async def until_ready(self) -> None:
        async def check() -> None:
            try:
                assert (await self.ask("/dapr/config", method="GET"))[0] == 200
            except aiohttp.ClientError as error:
                raise AssertionError(str(error)) from None

        await eventually(check)

    async def ask(self, path: str, value: object = None, method: str = "POST", attempt: int = 1) -> tuple[int, Any]:
        """Give status and JSON of an answer; ``None`` is no body."""
        body = None if value is None else io.BytesIO(json.dumps(value).encode())
        headers = {"mesh-workflow-attempt": str(attempt)}
        async with self._session.request(method, self.url + path, headers=headers, data=body) as answer:
            return answer.status, await answer.json(content_type=None) if answer.status in (200, 500) else None

    async def run(self, given: object, history: list[JSON]) -> JSON:
        """Run a turn."""
        status, told = await self.ask("/workflow/run/order", {"input": given, "history": history})
        assert status == 200
        return dict(told)


@pytest.fixture(params=[PYTHON, NODE], ids=["python", "node"])
def source(request: pytest.FixtureRequest) -> Path:
    if request.param == NODE:
        needs("node")
    return Path(request.param)


@pytest.fixture
async def worker(source: Path, tmp_path: Path) -> AsyncIterator[Worker]:
    """The example itself."""
    async with aiohttp.ClientSession() as session, Worker(source, tmp_path, session) as running:
        yield running


@pytest.fixture
async def stepping(source: Path, tmp_path: Path) -> AsyncIterator[Worker]:
    """The example with a workflow that does what its input says."""
    text, count = ORDER[source].subn(lambda _: STEPS[source].strip(), source.read_text(encoding="utf-8"))
    assert count == 1
    (copy := tmp_path / source.name).write_text(text, encoding="utf-8")
    async with aiohttp.ClientSession() as session, Worker(copy, tmp_path, session) as running:
        yield running


def expected(program: Program, history: list[JSON]) -> list[Any]:
    """Give what came of each step until the first for which something is missing, going from event to event."""
    tasks: list[JSON] = []
    kept: list[JSON] = []
    out: list[Any] = []

    def ask(wait: str = "") -> JSON:
        tasks.append({"wait": wait, "event": None})
        deliver()
        return tasks[-1]

    def deliver() -> None:
        for event in [*kept]:
            for task in tasks:
                if task["wait"] == event["name"] and task["event"] is None:
                    task["event"] = event
                    kept.remove(event)
                    break

    def code() -> Iterator[Callable[[], bool]]:
        for kind, value in program:
            asked = [ask() for _ in range(value)] if kind == "tasks" else []
            if kind == "wait":
                asked = [ask(value)]
            elif kind == "race":
                racing = [ask(), ask(value), ask()]
                yield lambda: any(each["event"] for each in racing)  # noqa: B023
                asked = [next(each for each in racing if each["event"])]
            elif kind == "send":
                ask()
            for each in asked:
                yield lambda: bool(each["event"])  # noqa: B023
                event = each["event"]
                if event["event"] == "failed":
                    out.append(f"caught {event['error']['message']}")
                    break
                out.append(event.get("result", event.get("data")))

    steps = code()
    waits = next(steps, None)
    for event in history:
        if event["event"] in ("completed", "failed", "fired"):
            tasks[event["task"] - 1]["event"] = event
        elif event["event"] == "raised":
            kept.append(event)
            deliver()
        while waits is not None and waits():
            waits = next(steps, None)
    return out


def happens(rng: random.Random, actions: list[JSON], open_tasks: list[int], number: int) -> JSON:
    """Let something happen to an instance that waits: to one of its tasks, or an event of any name."""
    waited = [each["wait"] for each in actions if "wait" in each]
    if not open_tasks or rng.random() < 0.4:
        return {"event": "raised", "name": rng.choice([*waited, "a", "b"]), "data": f"event {number}"}
    task = open_tasks.pop(rng.randrange(len(open_tasks)))
    if "timer" in actions[task - 1]:
        return {"event": "fired", "task": task}
    if rng.random() < 0.2:
        return {"event": "failed", "task": task, "error": {"type": "Refused", "message": f"no {task}", "final": True}}
    return {"event": "completed", "task": task, "result": f"result {task}"}


async def played(worker: Worker, program: Program, rng: random.Random) -> tuple[JSON, list[JSON]]:
    """Be the mesh for an instance until it ends: what it has asked for never changes."""
    history: list[JSON] = [{"event": "turn", "now": "2030-01-01T00:00:00Z"}, {"event": "started", "workflow": "order"}]
    known: list[JSON] = []
    open_tasks: list[int] = []
    while True:
        told = await worker.run(program, history)
        actions = told["actions"]
        assert actions[: len(known)] == known, (program, history)
        for task, action in enumerate(actions[len(known) :], len(known) + 1):
            if "activity" in action or "timer" in action:
                open_tasks.append(task)
            if "wait" not in action:
                history.append({"event": next(iter(action)).replace("activity", "scheduled"), "task": task})
        known = actions
        if "complete" in told or "fail" in told:
            return told, history
        history.append({"event": "turn", "now": "2030-01-01T00:00:00Z"})
        for _ in range(rng.randint(1, 3)):
            history.append(happens(rng, actions, open_tasks, len(history)))


async def test_what_it_gives_depends_on_the_order_in_which_things_happened_alone(stepping: Worker) -> None:
    """Of random programs over random histories, each ends as one does that is told of each event when it happens."""
    kinds: list[tuple[str, list[Any]]] = [
        ("tasks", [0, 1, 3]),
        ("wait", ["a", "b"]),
        ("race", ["a", "b"]),
        ("send", ["a"]),
    ]
    races = 0
    for seed in range(120):
        rng = random.Random(seed)
        picked = [rng.choice(kinds) for _ in range(rng.randint(1, 6))]
        program: Program = [(kind, rng.choice(values)) for kind, values in picked]
        told, history = await played(stepping, program, rng)
        assert told["complete"] == expected(program, history), (seed, program, history)
        races += sum(kind == "race" for kind, _ in program)
    assert races > 50


async def test_an_event_is_for_the_first_task_that_waits_for_it(stepping: Worker) -> None:
    """Also one that came before, and only for one."""
    came = [{"event": "raised", "name": "a", "data": number} for number in (1, 2)]
    program = [("wait", "a"), ("wait", "b"), ("wait", "a")]
    told = await stepping.run(program, came)
    assert told == {"actions": [{"wait": "a"}, {"wait": "b"}]}
    told = await stepping.run(program, [*came, {"event": "raised", "name": "b", "data": None}])
    assert told == {"actions": [{"wait": "a"}, {"wait": "b"}, {"wait": "a"}], "complete": [1, None, 2]}


async def test_an_exception_of_the_code_is_how_it_ended(stepping: Worker) -> None:
    told = await stepping.run([("send", "a"), ("nonsense", "what is this?")], [])
    assert told == {
        "actions": [{"send": "a", "to": "other"}],
        "fail": {"type": "ValueError", "message": "what is this?"},
    }


async def test_a_history_without_end_is_taken(stepping: Worker) -> None:
    """One of more bytes than servers take by themselves."""
    history = [{"event": "completed", "task": 1, "result": "x" * 3_000_000}]
    told = await stepping.run([("tasks", 1)], history)
    assert told["complete"] == ["x" * 3_000_000]


async def test_an_order(worker: Worker) -> None:
    """It is asked for in steps; a failure that it does not expect ends it, and one in the shop gives the money back."""
    given = {"total": 7, "items": ["cup", "pan"]}
    charge = {"activity": "charge", "input": 7, "retry": {"attempts": 4, "first": "100ms"}}
    assert await worker.run(given, []) == {"actions": [charge]}
    away = {"event": "failed", "task": 1, "error": {"type": "Away", "message": "no bank", "final": False}}
    told = await worker.run(given, [away])
    assert told["fail"]["message"].removeprefix("Away: ") == "no bank"
    paid = {"event": "completed", "task": 1, "result": "a payment"}
    packed = {"event": "completed", "task": 3, "result": "a pan"}
    packs = [{"activity": "pack", "input": item} for item in given["items"]]  # type: ignore[attr-defined]
    assert await worker.run(given, [paid, packed]) == {"actions": [charge, *packs]}
    told = await worker.run(given, [paid, packed, {"event": "completed", "task": 2, "result": "a cup"}])
    assert told["complete"] == {"state": "sent", "payment": "a payment", "parcels": ["a cup", "a pan"]}
    broken = {"event": "failed", "task": 2, "error": {"type": "Broken", "message": "no cup", "final": True}}
    told = await worker.run(given, [paid, packed, broken])
    refund = {"operation": "publish", "pubsub": "pubsub", "topic": "refunds", "data": "a payment"}
    assert told == {"actions": [charge, *packs, refund]}
    told = await worker.run(given, [paid, packed, broken, {"event": "completed", "task": 4, "result": None}])
    assert told["complete"]["state"] == "refused"
    assert told["complete"]["reason"].removeprefix("Broken: ") == "no cup"


@pytest.mark.parametrize(("first", "state"), [("approve", "sent"), ("timer", "refused"), ("no", "refused")])
async def test_an_approval_within_a_time(worker: Worker, first: str, state: str) -> None:
    """What came first counts, whatever came of the other one after it."""
    given = {"total": 2000, "items": []}
    paid = {"event": "completed", "task": 1, "result": "a payment"}
    approved = {"event": "raised", "name": "approve", "data": first != "no"}
    race = [approved, {"event": "fired", "task": 3}]
    history = [paid, *(race[::-1] if first == "timer" else race), {"event": "completed", "task": 4, "result": None}]
    told = await worker.run(given, history)
    assert told["actions"][1:3] == [{"wait": "approve"}, {"timer": "1h"}]
    assert told["complete"]["state"] == state


async def test_what_it_answers_over_http(worker: Worker) -> None:
    """An activity's result or what it failed with, and that something is not there."""
    config = {"workflows": ["order"], "activities": ["charge", "pack"]}
    assert await worker.ask("/dapr/config", method="GET") == (200, config)
    status, failure = await worker.ask("/workflow/activity/charge", 7)
    assert (status, failure["message"]) == (500, "the bank is away")
    assert failure["type"] in ("ConnectionError", "Error")
    assert await worker.ask("/workflow/activity/charge", 7, attempt=2) == (200, "payment of 7")
    assert (await worker.ask("/workflow/activity/pack"))[0] == 200
    for path in ("/workflow/activity/other", "/workflow/run/other", "/workflow/run/order/more"):
        assert (await worker.ask(path, {}))[0] == 404


def test_it_is_small(source: Path) -> None:
    """It has 60 lines, beside those that are empty or say something to people."""
    lines = source.read_text(encoding="utf-8").splitlines()
    assert sum(NO_CODE.match(line) is None for line in lines) <= MAX_LINES
