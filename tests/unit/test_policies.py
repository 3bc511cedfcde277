"""Retry delays, circuit breaker states, and which policy a target gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.conditions import Condition
from mesh.expressions import compile_trip
from mesh.policies import (
    BUILT_IN_RETRIES,
    Breaker,
    CircuitBreaker,
    Permit,
    Policy,
    Retry,
    StatusCodes,
    Timeout,
    parse_status_codes,
)
from mesh.resources.loader import load_resources
from mesh.resources.resiliency import ComponentTarget, Resiliency, ResiliencyPolicies, Target

if TYPE_CHECKING:
    from pathlib import Path


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Give the time."""
        return self.now


@pytest.mark.parametrize(
    ("retry", "attempt", "elapsed", "random", "delay"),
    [
        (Retry(), 1, 0.0, 0.9, 5.0),
        (Retry(), 10**9, 10.0**9, 0.9, 5.0),
        (Retry(interval=0.0), 1, 0.0, 0.5, 0.0),
        (Retry(max_retries=0), 1, 0.0, 0.5, None),
        (Retry(max_retries=2), 2, 0.0, 0.5, 5.0),
        (Retry(max_retries=2), 3, 0.0, 0.5, None),
        (Retry.exponential(), 1, 0.0, 0.5, 0.5),
        (Retry.exponential(), 1, 0.0, 0.0, 0.25),
        (Retry.exponential(), 2, 0.0, 0.5, 0.75),
        (Retry.exponential(max_interval=0.6), 2, 0.0, 0.5, 0.6),
        (Retry.exponential(), 10**9, 0.0, 0.5, 60.0),
        (Retry.exponential(), 1, 899.5, 0.5, 0.5),
        (Retry.exponential(), 1, 899.6, 0.5, None),
    ],
)
def test_delay(retry: Retry, attempt: int, elapsed: float, random: float, delay: float | None) -> None:
    """Constant waits stay, exponential ones grow, with jitter and two limits."""
    assert retry.delay(attempt, elapsed, lambda: random) == delay


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 10**6), st.floats(0, 899), st.floats(0, 1, exclude_max=True), st.floats(0.001, 3600))
def test_exponential_delay_is_bounded(attempt: int, elapsed: float, random: float, max_interval: float) -> None:
    """A delay is at most one and a half times the longest interval, and ends in time."""
    delay = Retry.exponential(max_interval).delay(attempt, elapsed, lambda: random)
    assert delay is None or (0 <= delay <= 1.5 * max_interval and elapsed + delay <= 900)


def test_status_matching() -> None:
    """Without a list every status is retried, with one only those in it."""
    retry = Retry(http_statuses=parse_status_codes("429, 500 - 599", "http"))
    assert [retry.should_retry_status(status) for status in (404, 429, 500, 599)] == [False, True, True, True]
    assert Retry().should_retry_status(404)


def test_statuses_of_grpc_are_not_those_of_http() -> None:
    retry = Retry(http_statuses=StatusCodes(((500, 599),)), grpc_statuses=StatusCodes(((13, 14),)))
    retried = [status for status in (0, 12, 13, 14, 404, 500) if retry.should_retry_status(status)]
    assert retried == [13, 14, 500]
    assert Retry(http_statuses=StatusCodes(((500, 599),))).should_retry_status(5)


@pytest.mark.parametrize(
    "text", ["", "4", "99", "600", "500-", "-500", "599-500", "x", "500,,429", "500-600", "1" * 50]
)
def test_refused_http_codes(text: str) -> None:
    """Only codes and ranges from 100 to 599 are taken."""
    with pytest.raises(ValueError, match=r"100-599|ends before"):
        parse_status_codes(text, "http")


def test_grpc_codes() -> None:
    """GRPC codes go from 0 to 16."""
    assert parse_status_codes("0-16", "grpc").ranges == ((0, 16),)
    with pytest.raises(ValueError, match=r"'17' is no status code or range within 0-16"):
        parse_status_codes("17", "grpc")


def status(breaker: Breaker) -> str:
    """Give the state; a function, so that two looks may differ."""
    return breaker.status


def call(breaker: Breaker, success: bool) -> bool:
    """Make one call, if it is admitted."""
    permit = breaker.allow()
    if permit is None:
        return False
    breaker.record(success, permit)
    return True


def test_breaker_opens_after_six_failures_in_a_row() -> None:
    """A success in between begins the count again."""
    breaker = Breaker(CircuitBreaker(), Clock())
    for success in (*[False] * 5, True, *[False] * 5):
        assert call(breaker, success)
    assert status(breaker) == "closed"
    assert call(breaker, success=False)
    assert status(breaker) == "open"
    assert not call(breaker, success=True)


def opened(config: CircuitBreaker) -> tuple[Breaker, Clock]:
    """Give a breaker that is open."""
    clock = Clock()
    breaker = Breaker(config, clock)
    while breaker.status == "closed":
        call(breaker, success=False)
    return breaker, clock


def test_half_open_admits_few_and_closes_when_they_work() -> None:
    """As many successes as admitted calls close it."""
    breaker, clock = opened(CircuitBreaker(max_requests=2, timeout=10))
    clock.now += 9.9
    assert breaker.allow() is None
    clock.now += 0.1
    first, second = breaker.allow(), breaker.allow()
    assert status(breaker) == "half-open"
    assert breaker.allow() is None
    breaker.record(True, first)
    assert status(breaker) == "half-open"
    breaker.record(True, second)
    assert status(breaker) == "closed"


def test_half_open_opens_again_on_a_failure() -> None:
    """The open period begins again."""
    breaker, clock = opened(CircuitBreaker(timeout=10))
    clock.now += 10
    assert call(breaker, success=False)
    assert status(breaker) == "open"
    clock.now += 9
    assert not call(breaker, success=True)
    clock.now += 1
    assert call(breaker, success=True)
    assert status(breaker) == "closed"


def test_results_of_an_earlier_state_are_ignored() -> None:
    """A slow call that began before the breaker opened says nothing about now."""
    clock = Clock()
    breaker = Breaker(CircuitBreaker(timeout=10), clock)
    slow = breaker.allow()
    for _ in range(6):
        call(breaker, success=False)
    breaker.record(False, slow)
    clock.now += 10
    breaker.record(True, slow)
    assert status(breaker) == "half-open"


def test_a_cancelled_call_gives_its_place_back() -> None:
    """A half-open breaker does not stay blocked by a call that never ended."""
    breaker, clock = opened(CircuitBreaker(timeout=10))
    clock.now += 10
    permit = breaker.allow()
    assert permit is not None
    assert breaker.allow() is None
    breaker.release(Permit(permit - 1))
    assert breaker.allow() is None
    breaker.release(permit)
    assert call(breaker, success=True)


def test_interval_forgets_counts_while_closed() -> None:
    """Failures that are far apart do not add up."""
    clock = Clock()
    breaker = Breaker(CircuitBreaker(interval=8), clock)
    for _ in range(5):
        call(breaker, success=False)
    clock.now += 8
    for _ in range(5):
        call(breaker, success=False)
    assert status(breaker) == "closed"


def test_record_without_a_permit_counts_now() -> None:
    """The permit may be left away by callers that never overlap."""
    breaker = Breaker(CircuitBreaker(trip=compile_trip("totalFailures > 0")), Clock())
    assert breaker.allow()
    breaker.record(False)
    assert status(breaker) == "open"


def test_a_condition_that_cannot_be_evaluated_leaves_the_default(caplog: pytest.LogCaptureFixture) -> None:
    """Dividing by zero is what comes of a target that never works, or did not of late; the log says so once."""
    clock, trip = Clock(), compile_trip("consecutiveFailures > 1 && totalFailures / totalSuccesses > 1")
    breaker = Breaker(CircuitBreaker("cb", timeout=10, trip=trip), clock, Condition("app", "pay"))
    for _ in range(2):
        for _ in range(6):
            assert status(breaker) == "closed"
            assert call(breaker, success=False)
        assert status(breaker) == "open"
        clock.now += 10
        assert call(breaker, success=True)
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1 and told[0].startswith(
        "app pay: circuit breaker cb cannot tell by its trip, so more than 5 failures in a row open it: expression "
    )


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["ok", "fail", "cancel", "wait"]), st.integers(1, 20)), max_size=60))
def test_breaker_never_blocks_for_ever(steps: list[tuple[str, int]]) -> None:
    """After its open period a breaker without open calls always admits one."""
    clock = Clock()
    breaker = Breaker(CircuitBreaker(max_requests=2, timeout=10), clock)
    for step, count in steps:
        for _ in range(count):
            clock.now += step == "wait"
            permit = breaker.allow()
            if permit is not None and step in ("ok", "fail"):
                breaker.record(step == "ok", permit)
            elif permit is not None:
                breaker.release(permit)
    clock.now += 10
    assert breaker.allow() is not None


def named(*names: str, **more: Retry) -> dict[str, Retry]:
    """Give retries that carry their own name."""
    return {name: Retry(name=name) for name in names} | more


def test_no_resource_gives_no_policies() -> None:
    """Nothing is repeated by a policy unless one is written."""
    policies = ResiliencyPolicies()
    assert policies.for_app("a") == Policy()
    assert policies.for_component("c", "pubsub", "inbound") == Policy()


def test_a_resource_file_becomes_policies(tmp_path: Path) -> None:
    """Everything in a Resiliency file reaches the policies of its targets."""
    (tmp_path / "r.yaml").write_text(
        """
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: r}
spec:
  policies:
    timeouts: {general: 5s, fast: 250}
    retries:
      r1: {duration: 2s, maxRetries: 10, matching: {httpStatusCodes: "429,500-599", gRPCStatusCodes: "4,8"}}
      r2: {policy: exponential, maxInterval: 30s, maxRetries: -1}
    circuitBreakers:
      c1: {maxRequests: 2, interval: 8s, timeout: 45s, trip: consecutiveFailures > 8}
      c2: {}
  targets:
    apps: {b: {timeout: general, retry: r1, circuitBreaker: c1, circuitBreakerCacheSize: 7}}
    actors: {t: {timeout: fast, circuitBreaker: c2, circuitBreakerScope: both}}
    components: {p: {inbound: {retry: r2}, outbound: {circuitBreaker: c2}}}
scopes: [me]
"""
    )
    policies = ResiliencyPolicies(load_resources([tmp_path]).resiliencies, "me")
    assert policies.for_app("b") == Policy(
        Timeout(5.0),
        Retry(
            interval=2.0,
            max_retries=10,
            http_statuses=StatusCodes(((429, 429), (500, 599))),
            grpc_statuses=StatusCodes(((4, 4), (8, 8))),
            name="r1",
        ),
        CircuitBreaker("c1", 2, 8.0, 45.0, compile_trip("consecutiveFailures > 8")),
        endpoints=7,
    )
    assert policies.for_component("p", "pubsub", "inbound").retry == Retry.exponential(30.0, name="r2")
    assert policies.for_component("p", "pubsub", "outbound").breaker == CircuitBreaker("c2")
    assert policies.for_actor("t") == Policy(Timeout(0.25), None, CircuitBreaker("c2"), endpoints=5000, both=True)


@pytest.mark.parametrize(
    ("scope", "size", "endpoints", "both"),
    [
        ("type", 7, 0, False),
        ("id", None, 5000, False),
        ("id", 0, 5000, False),
        ("id", 7, 7, False),
        ("both", 7, 7, True),
    ],
)
def test_breakers_of_actors(scope: Literal["type", "id", "both"], size: int | None, endpoints: int, both: bool) -> None:
    """One for the type, one for each id, or both; of ids as many as the target says."""
    target = Target(circuit_breaker="b", circuit_breaker_scope=scope, circuit_breaker_cache_size=size)
    policies = ResiliencyPolicies([Resiliency("r", breakers={"b": CircuitBreaker("b")}, actors={"cart": target})])
    assert policies.for_actor("cart") == Policy(breaker=CircuitBreaker("b"), endpoints=endpoints, both=both)
    assert policies.for_actor("other") == Policy()


def test_defaults_of_actors() -> None:
    """Those of actors, then those of everything; a default breaker is for a whole type."""
    breakers = {"DefaultActorCircuitBreakerPolicy": CircuitBreaker("d")}
    retries = named("DefaultActorRetryPolicy", "DefaultAppRetryPolicy", "DefaultRetryPolicy")
    timeouts: dict[str, Timeout | None] = {"DefaultTimeoutPolicy": Timeout(2.0)}
    resiliency = Resiliency("r", timeouts=timeouts, retries=retries, breakers=breakers, actors={"named": Target()})
    policies = ResiliencyPolicies([resiliency])
    assert policies.for_actor("cart") == Policy(
        Timeout(2.0), Retry(name="DefaultActorRetryPolicy"), CircuitBreaker("d")
    )
    assert policies.for_actor("named") == Policy()


LEVELS = ["PubsubComponentInbound", "ComponentInbound", "Component", ""]


@pytest.mark.parametrize("depth", range(len(LEVELS)))
def test_the_most_specific_default_counts(depth: int) -> None:
    """Defaults go from block and direction to the plain name."""
    names = [f"Default{level}RetryPolicy" for level in LEVELS[depth:]]
    policies = ResiliencyPolicies([Resiliency("r", retries=named(*names, "DefaultAppRetryPolicy"))])
    retry = policies.for_component("c", "pubsub", "inbound").retry
    assert retry is not None
    assert retry.name == names[0]


def test_defaults_per_part() -> None:
    """Timeout, retry and breaker are looked up each on its own."""
    resiliency = Resiliency(
        "r",
        timeouts={"DefaultAppTimeoutPolicy": None, "DefaultTimeoutPolicy": Timeout(1.0)},
        retries=named("DefaultRetryPolicy"),
        breakers={"DefaultCircuitBreakerPolicy": CircuitBreaker("d")},
    )
    policies = ResiliencyPolicies([resiliency])
    retry, breaker = Retry(name="DefaultRetryPolicy"), CircuitBreaker("d")
    assert policies.for_component("c", "pubsub", "inbound") == Policy(Timeout(1.0), retry, breaker)
    assert policies.for_app("a") == Policy(None, retry, breaker, 100), "a timeout of zero is one that was named"


def test_a_named_target_gets_what_it_names_and_no_defaults() -> None:
    """A target that leaves retries away has none."""
    resiliency = Resiliency(
        "r",
        timeouts={"t": Timeout(2.0)},
        retries=named("r", "DefaultRetryPolicy"),
        breakers={"b": CircuitBreaker("b")},
        apps={"a": Target(timeout="t", circuit_breaker="b")},
        components={"c": ComponentTarget(inbound=Target(retry="r"))},
    )
    policies = ResiliencyPolicies([resiliency])
    assert policies.for_app("a") == Policy(Timeout(2.0), None, CircuitBreaker("b"), 100)
    assert policies.for_component("c", "state", "inbound").retry == Retry(name="r")
    assert policies.for_component("c", "state", "outbound").retry == Retry(name="DefaultRetryPolicy")


@pytest.mark.parametrize(("given_", "used"), [(0, 3), (2, 3), (3, 3), (7, 7), (None, 3)])
def test_redefined_built_ins_are_raised(given_: int | None, used: int | None) -> None:
    """Fewer than three retries become three, -1 as well, as in the reference; an answer is not repeated."""
    name = "DaprBuiltInServiceRetries"
    policies = ResiliencyPolicies([Resiliency("r", retries={name: Retry(max_retries=given_, name=name)})])
    unanswered = StatusCodes(((14, 14), (16, 16)))
    expected = Retry(max_retries=used, http_statuses=StatusCodes(()), grpc_statuses=unanswered, name=name)
    assert policies.for_app("a").retry == expected


def test_a_redefined_built_in_may_say_what_it_matches() -> None:
    """Its own matching counts then."""
    name, matching = "DaprBuiltInServiceRetries", StatusCodes(((503, 503),))
    retry = Retry(max_retries=4, http_statuses=matching, name=name)
    assert ResiliencyPolicies([Resiliency("r", retries={name: retry})]).for_app("a").retry == retry


def test_a_target_may_name_a_built_in() -> None:
    """Then it is a policy as any other, for every failure."""
    name = "DaprBuiltInServiceRetries"
    policies = ResiliencyPolicies([Resiliency("r", apps={"a": Target(retry=name)})])
    assert policies.for_app("a") == Policy(retry=BUILT_IN_RETRIES[name])


KINDS = ["binding", "configuration", "conversation", "crypto", "lock", "pubsub", "secretstore", "statestore"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", ["inbound", "outbound"])
def test_every_block_has_default_names(kind: str, direction: Literal["inbound", "outbound"]) -> None:
    """Of each direction, and no other block's."""
    middle = f"{kind.capitalize()}Component{direction.capitalize()}"
    others = [f"Default{each.capitalize()}ComponentOutboundRetryPolicy" for each in KINDS if each != kind]
    policies = ResiliencyPolicies([Resiliency("r", retries=named(f"Default{middle}RetryPolicy", *others))])
    assert policies.for_component("c", kind, direction).retry == Retry(name=f"Default{middle}RetryPolicy")


@pytest.mark.parametrize("target", ["orders.shop", "http://127.0.0.1:80", "weather"])
def test_apps_are_named_as_they_are_called(target: str) -> None:
    """With the namespace, by URL, or by the endpoint's name; nothing is made of it."""
    policies = ResiliencyPolicies([Resiliency("r", retries=named("r"), apps={target: Target(retry="r")})])
    assert policies.for_app(target).retry == Retry(name="r")
    assert policies.for_app("orders").retry is None


def test_the_not_found_retries_cannot_be_redefined() -> None:
    """One built-in keeps its meaning."""
    name = "DaprBuiltInActorNotFoundRetries"
    policies = ResiliencyPolicies(
        [Resiliency("r", retries={name: Retry(max_retries=50, name=name)}, apps={"a": Target(retry=name)})]
    )
    assert policies.for_app("a").retry == Retry(interval=1.0, max_retries=5, name=name)


def test_resources_of_other_apps_are_left_out_and_later_ones_win() -> None:
    """Scopes choose resources; the last one that names a thing counts."""
    resources = [
        Resiliency("1", retries={"r": Retry(interval=1.0)}, apps={"a": Target(retry="r")}),
        Resiliency("2", retries={"r": Retry(interval=2.0)}, scopes=("me",)),
        Resiliency("3", retries={"r": Retry(interval=3.0)}, scopes=("other",)),
    ]
    assert ResiliencyPolicies(resources, "me").for_app("a").retry == Retry(interval=2.0)
