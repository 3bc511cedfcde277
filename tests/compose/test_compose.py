"""The stacks of compose.yaml, run for real: each works, loses nothing when it is killed, and keeps its data.

The containers are those of users, and a third pod of the same form whose application records what reaches it. All is
asserted on sets: what was acknowledged is there.
"""

from __future__ import annotations

import json
import re
import urllib.request
from collections import Counter

import pytest

from tests.compose.engine import Stack, say
from tests.compose.load import Load, post
from tests.support.eventually import eventually_sync

pytestmark = pytest.mark.timeout(240, func_only=True)  # The images may have to be made first.

WITHIN = 60.0


def recorded(stack: Stack, kind: str) -> Counter[str]:
    """Tell what reached the recorder, and how often."""
    return Counter(re.findall(rf"^{kind} (\S+)$", stack.log("recorder"), re.MULTILINE))


def test_hello_world_runs(stack: Stack) -> None:
    """Orders flow from one application to the other, and the last one is kept."""
    stack.until(lambda: "was taken" in stack.log("pythonapp"), "an order was taken", WITHIN)
    with urllib.request.urlopen(f"{stack.api}/invoke/nodeapp/method/order", timeout=10) as answer:
        assert json.load(answer)["orderId"] >= 1
    say(f"{stack.broker}: orders flow")


def test_a_hosted_store_is_used_through_a_gateway(stack: Stack) -> None:
    """The gateway has no component of this name; the one that has it may come back after a kill."""
    if "host" not in stack.services:
        pytest.skip("the example of a host is over another broker")
    assert post(f"{stack.api}/state/ledger", [{"key": "balance", "value": 100}]) == 204
    stack.kill("host")

    def is_there() -> None:
        with urllib.request.urlopen(f"{stack.api}/state/ledger/balance", timeout=20) as answer:
            assert json.load(answer) == 100

    eventually_sync(is_there, WITHIN)


def test_what_was_acknowledged_survives_kills(stack: Stack) -> None:
    """A gateway, the broker and an application are killed under load; each comes back, and nothing is lost."""
    with Load(stack.api) as load:
        load.goes_on(20, WITHIN)
        for killed in (stack.gateway_of["recorder"], stack.broker, "recorder"):
            stack.kill(killed)
            load.goes_on(20, WITHIN)
            say(f"{stack.broker}: {killed} was killed, came back, and work goes on")

    def nothing_is_missing() -> None:
        missing = (load.events - recorded(stack, "event").keys()) | (load.calls - recorded(stack, "call").keys())
        assert not missing, f"acknowledged, and not arrived: {sorted(missing)}"

    eventually_sync(nothing_is_missing, WITHIN)
    events, calls = recorded(stack, "event"), recorded(stack, "call")
    say(
        f"{stack.broker}: {len(load.events)} events and {len(load.calls)} calls acknowledged, {load.failed} refused; "
        f"none lost, {events.total() - len(events)} events delivered again"
    )
    assert calls.total() == len(calls), "a call that may not be repeated ran twice"


def test_volumes_outlive_containers(stack: Stack) -> None:
    """Events and state that are stored are still there when all containers were removed and made again."""
    identities = {f"kept-{number}" for number in range(20)}
    stack.stop(stack.gateway_of["recorder"])
    for identity in identities:
        assert post(f"{stack.api}/publish/pubsub/recorded", {"id": identity}) == 204
    assert post(f"{stack.api}/state/statestore", [{"key": "kept", "value": "here"}]) == 204
    stack.down(volumes=False)
    stack.up()
    stack.until(lambda: identities <= recorded(stack, "event").keys(), "what was stored arrives", WITHIN)
    with urllib.request.urlopen(f"{stack.api}/state/statestore/kept", timeout=10) as answer:
        assert json.load(answer) == "here"
    say(f"{stack.broker}: events and state outlived their containers")
