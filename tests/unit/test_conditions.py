"""What the log says of a target: each change once, with counts, and nothing more under load."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Callable
from contextlib import nullcontext

import pytest

import mesh.conditions
from mesh.conditions import MAX_ENDPOINTS, MAX_TARGETS, Condition, Conditions
from mesh.errors import CircuitOpenError, DeadlineExceededError, MeshError, StateError
from mesh.expressions import compile_trip
from mesh.guard import Guard
from mesh.policies import CircuitBreaker, Policy, Retry
from mesh.recent import Recent
from tests.support.eventually import eventually

LOGGER = "mesh.conditions"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Give the lines so far. Nothing is held back for longer than a test takes, and then told only when it is over."""
    caplog.set_level("INFO", LOGGER)
    monkeypatch.setattr(mesh.conditions, "QUIET_SECONDS", 60.0)
    return lambda: [f"{each.levelname} {each.getMessage()}" for each in caplog.records if each.name == LOGGER]


class Target:
    """Fails so often, and then works."""

    def __init__(self, *failures: MeshError) -> None:
        self.failures = list(failures)

    async def __call__(self) -> str:
        if self.failures:
            raise self.failures.pop(0)
        return "done"


def guard(condition: Condition, max_retries: int | None = None, *, breaker: CircuitBreaker | None = None) -> Guard:
    return Guard(Policy(None, Retry(interval=0.0, max_retries=max_retries), breaker), condition)


WHY = StateError("no connection")
FIRST = "INFO state statestore: attempt 1 failed: no connection; the next in 0 s"


@pytest.mark.parametrize(
    ("failures", "max_retries", "lines"),
    [
        (0, 3, []),
        (1, 3, [FIRST, "1 attempts failed and were made again, 0 operations given up"]),
        (3, 3, [FIRST, "3 attempts failed and were made again, 0 operations given up"]),
        (4, 3, [FIRST, "INFO state statestore: given up after 4 attempts: no connection"]),
        (1, 0, []),
        (200, None, [FIRST, "200 attempts failed and were made again, 0 operations given up"]),
    ],
)
async def test_one_line_for_each_change(
    said: Callable[[], list[str]], failures: int, max_retries: int | None, lines: list[str]
) -> None:
    """First retry, given up, works again; however many attempts lie between."""
    target = Target(*[WHY] * failures)
    try:
        await guard(Condition("state statestore"), max_retries).run(target)
    except StateError:
        assert failures > (max_retries or 0)
    assert len(said()) == len(lines)
    for got, wanted in zip(said(), lines, strict=True):
        assert wanted in got


async def test_what_was_given_up_works_again_with_the_first_success(said: Callable[[], list[str]]) -> None:
    condition = Condition("state statestore")
    for _ in range(3):
        with pytest.raises(StateError):
            await guard(condition, 1).run(Target(WHY, WHY))
    (described,) = condition.described()
    assert (described["state"], described["givenUp"], described["trying"]) == ("given up", 3, 0)
    await guard(condition, 1).run(Target())
    assert len(said()) == 3
    assert "3 attempts failed and were made again, 3 operations given up" in said()[2]
    assert condition.described() == []


async def test_the_one_attempt_that_was_given_up_began_then(said: Callable[[], list[str]]) -> None:
    now = [5000.0]
    condition = Condition("event", "pubsub/orders", clock=lambda: now[0])
    condition.gives_up(1, "RETRY")
    now[0] += 3
    condition.works(repeated=False)
    assert said() == [
        "INFO event pubsub/orders: given up after 1 attempts: RETRY",
        "INFO event pubsub/orders: works again after 3 s: 0 attempts failed and were made again, 1 operations given up",
    ]


async def test_a_client_that_leaves_ends_the_retries(said: Callable[[], list[str]]) -> None:
    """Then nobody tries any more, and that is said."""
    condition = Condition("invocation away")
    running = asyncio.ensure_future(guard(condition).run(Target(*[DeadlineExceededError("no answer")] * 1_000_000)))

    def retrying() -> None:
        assert condition.described()
        (described,) = condition.described()
        assert (described["state"], described["trying"]) == ("retrying", 1)

    await eventually(retrying)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert said()[1:] == ["INFO invocation away: given up, nobody waits any more: no answer"]


async def test_others_that_work_meanwhile_change_nothing(said: Callable[[], list[str]]) -> None:
    """An operation at its first attempt says nothing of the one that is repeated."""
    condition = Condition("x")
    condition.repeats(1, 5.0, "no")
    condition.works(repeated=False)
    assert len(said()) == 1
    condition.works(repeated=True)
    assert len(said()) == 2


async def test_a_failure_that_is_repeated_elsewhere_is_over_after_a_while(said: Callable[[], list[str]]) -> None:
    """As that of an event which another instance handled."""
    now = 0.0
    condition = Condition("event", "pubsub/orders", clock=lambda: now)
    condition.repeats(1, 5.0, "no")
    now = 61.0
    condition.works(repeated=False)
    assert condition.described() == []
    assert "works again after 61 s" in said()[1]


async def test_under_load_there_is_a_line_in_a_while(
    said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target that fails now and then fills no log; what is held back is told with counts."""
    monkeypatch.setattr(mesh.conditions, "QUIET_SECONDS", 0.2)
    condition = Condition("state statestore")
    began = time.monotonic()
    for _ in range(500):
        await guard(condition, 3).run(Target(WHY))

    def told() -> None:
        assert any("in the last 0.2 s" in each for each in said())

    await eventually(told)
    lines = said()
    assert lines[0] == FIRST
    assert "works again" in lines[1]
    # At most what was held back, and then once that it fails and that it works again.
    assert len(lines) <= 2 + 3 * ((time.monotonic() - began) / 0.2 + 1)


async def test_a_breaker_says_each_of_its_states(said: Callable[[], list[str]]) -> None:
    """Open with what opened it, half open with what it refused meanwhile, closed."""
    condition = Condition("invocation app")
    breaker = CircuitBreaker("cb", timeout=1.0)  # Longer than what is refused takes.
    guarded = Guard(Policy(None, None, breaker), condition)
    for _ in range(6):
        with pytest.raises(StateError):
            await guarded.run(Target(WHY))
    for _ in range(3):
        with pytest.raises(CircuitOpenError):
            await guarded.run(Target())
    told = {"target": "invocation app", "circuitBreaker": "cb", "breaker": "open", "refused": 3}
    assert condition.described() == [told]
    assert condition.described_breakers() == [{"name": "cb", "target": "invocation app", "state": "open"}]

    async def closed() -> None:
        try:
            assert await guarded.run(Target()) == "done"
        except CircuitOpenError as error:
            raise AssertionError from error

    await eventually(closed)
    lines = said()
    assert lines[0] == "INFO invocation app: circuit breaker cb is open for 1 s: 6 failures in a row, 6 in all"
    assert lines[1].startswith("INFO invocation app: circuit breaker cb is half open: it refused ")
    assert lines[2:] == ["INFO invocation app: circuit breaker cb is closed"]
    assert condition.described() == []


async def test_an_open_breaker_ends_retries_and_says_so(said: Callable[[], list[str]]) -> None:
    condition = Condition("invocation app")
    with pytest.raises(CircuitOpenError):
        await guard(condition, breaker=CircuitBreaker("cb")).run(Target(*[WHY] * 99))
    assert said()[-1] == "INFO invocation app: given up after 6 attempts: circuit breaker is open"


async def test_endpoints_have_breakers_of_their_own(said: Callable[[], list[str]]) -> None:
    """One that fails cuts off no other; as many as the policy says are kept, those that were asked for last."""
    conditions = Conditions()
    condition = conditions.of("invocation", "app")
    guarded = Guard(Policy(breaker=CircuitBreaker("cb"), endpoints=2), condition)
    for _ in range(6):
        with pytest.raises(StateError):
            await guarded.run(Target(WHY), endpoint="/a")
    with pytest.raises(CircuitOpenError):
        await guarded.run(Target(), endpoint="/a")
    assert await guarded.run(Target(), endpoint="/b") == "done"
    assert "circuit breaker cb of /a is open for 60 s" in said()[0]
    refusing = {"target": "invocation app", "circuitBreaker": "cb", "endpoint": "/a", "breaker": "open", "refused": 1}
    assert conditions.described() == [refusing]
    assert [(each["endpoint"], each["state"]) for each in conditions.described_breakers()] == [
        ("/a", "open"),
        ("/b", "closed"),
    ]
    again = Guard(Policy(breaker=CircuitBreaker("cb"), endpoints=2), condition, guarded)
    with pytest.raises(CircuitOpenError):
        await again.run(Target(), endpoint="/a")
    for endpoint in ("/b", "/c", "/a"):
        assert await again.run(Target(), endpoint=endpoint) == "done"
    assert [each["endpoint"] for each in conditions.described_breakers()] == ["/c", "/a"]


async def test_a_whole_target_may_have_a_breaker_besides(said: Callable[[], list[str]]) -> None:
    """Failures of many endpoints open it, and it is never the one that is forgotten."""
    condition = Condition("actors cart")
    guarded = Guard(Policy(breaker=CircuitBreaker("cb"), endpoints=2, both=True), condition)
    for endpoint in "123456":
        with pytest.raises(StateError):
            await guarded.run(Target(WHY), endpoint=endpoint)
    with pytest.raises(CircuitOpenError):
        await guarded.run(Target(), endpoint="7")
    described = {each.get("endpoint", ""): each["state"] for each in condition.described_breakers()}
    assert described == {"": "open", "6": "closed", "7": "closed"}


async def test_what_one_breaker_refuses_counts_in_no_other(said: Callable[[], list[str]]) -> None:
    """The second failure in a row of an endpoint opens its own; six calls that passed would open the whole's."""
    condition = Condition("actors cart")
    trip = compile_trip("consecutiveFailures >= 2 || requests >= 6")
    guarded = Guard(Policy(breaker=CircuitBreaker("cb", trip=trip), endpoints=9, both=True), condition)
    for endpoint, failures in (("1", [WHY]), ("2", []), ("1", [WHY]), ("2", [])):
        with nullcontext() if not failures else pytest.raises(StateError):
            await guarded.run(Target(*failures), endpoint=endpoint)
    for _ in range(3):
        with pytest.raises(CircuitOpenError):
            await guarded.run(Target(), endpoint="1")
    with pytest.raises(StateError):
        await guarded.run(Target(WHY), endpoint="2")
    described = {each.get("endpoint", ""): each["state"] for each in condition.described_breakers()}
    assert described == {"": "closed", "1": "open", "2": "closed"}


async def test_endpoints_of_all_targets_are_bounded(said: Callable[[], list[str]]) -> None:
    """Callers choose both; those that refuse and those that were asked for last are kept."""
    conditions = Conditions()
    policy, times = Policy(breaker=CircuitBreaker("cb"), endpoints=100), MAX_ENDPOINTS // 100 + 50
    guards = [Guard(policy, conditions.of("invocation", str(number))) for number in range(times)]
    for _ in range(6):
        with pytest.raises(StateError):
            await guards[0].run(Target(WHY), endpoint="/broken")
    for number, guarded in enumerate(guards):
        for path in range(99):
            await guarded.run(_works, endpoint=f"/{number}/{path}")
    kept = [name for each in conditions.breakers() for name in each.breakers]
    assert MAX_ENDPOINTS / 2 <= len(kept) <= MAX_ENDPOINTS
    assert {"/broken", f"/{times - 1}/98"} <= set(kept)
    assert "/0/0" not in kept
    assert [each["endpoint"] for each in conditions.described()] == ["/broken"]
    told = conditions.described_breakers()
    assert len(told) == MAX_TARGETS
    assert told[0]["state"] == "open"


async def test_long_endpoints_are_kept_by_their_beginnings_and_told_apart(said: Callable[[], list[str]]) -> None:
    condition, long = Condition("invocation", "app"), "/" + 4000 * "x"
    guarded = Guard(Policy(breaker=CircuitBreaker("cb"), endpoints=2), condition)
    for _ in range(6):
        with pytest.raises(StateError):
            await guarded.run(Target(WHY), endpoint=long + "a")
    assert await guarded.run(Target(), endpoint=long + "b") == "done"
    with pytest.raises(CircuitOpenError):
        await guarded.run(Target(), endpoint=long + "a")
    assert [(each["endpoint"], each["state"]) for each in condition.described_breakers()] == [
        (long[:200], "closed"),
        (long[:200], "open"),
    ]
    assert all(len(name) < 300 for name in condition.breakers)


async def _works() -> str:
    return "done"


async def test_targets_are_bounded_and_the_quiet_ones_are_forgotten_first() -> None:
    """They are the callers' words; the last is known whatever else was asked for."""
    conditions = Conditions()
    held = conditions.of("event", "orders")
    conditions.of("invocation", "away").waits("no instance")
    made = [weakref.ref(conditions.of("invocation", str(number))) for number in range(5 * MAX_TARGETS)]
    gc.collect()
    last = str(5 * MAX_TARGETS - 1)
    assert conditions.of("invocation", last) is conditions.of("invocation", last)
    assert conditions.of("event", "orders") is held
    assert [each["target"] for each in conditions.described()] == ["invocation away"]
    assert sum(each() is not None for each in made) <= MAX_TARGETS


def test_a_map_forgets_what_has_been_quiet_longest() -> None:
    known: Recent[str, str] = Recent(100, lambda value: value == "in use")
    known.keep("busy", "in use")
    known.keep("often", "quiet")
    for number in range(1000):
        known.keep(str(number), "quiet")
        assert known["often"] == known.get("often") == "quiet"
    assert known["busy"] == "in use"
    assert known.get("999") == known.get("940") == "quiet"  # The later half, and the older one.
    assert known.get("0") is None
    with pytest.raises(KeyError):
        known["0"]
    for number in range(1000):
        known.keep(f"busy {number}", "in use")
    with pytest.raises(KeyError):  # All are in use, and there are too many.
        known["busy"]
    assert known["busy 999"] == "in use"


def test_labels_are_bounded() -> None:
    assert len(Condition("x" * 10_000).label) < 1000
