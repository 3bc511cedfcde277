"""The stacks of compose.yaml, run for real: each works, loses nothing when it is killed, and keeps its data.

The containers are those of users, and a third pod of the same form whose application records what reaches it. All is
asserted on sets: what was acknowledged is there.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections import Counter

import pytest

from tests.compose.engine import Stack, say
from tests.compose.load import Load, Writes, post
from tests.support.eventually import eventually_sync

pytestmark = pytest.mark.timeout(240, func_only=True)  # The images may have to be made first.

WITHIN = 60.0
# What talks to databases, or to brokers that are not there.
DRIVERS = ("aiokafka", "aiormq", "asyncmy", "asyncpg", "mqtt5", "redis", "sqlalchemy")
TRY_IMPORT = """
import importlib, sys
try:
    importlib.import_module(sys.argv[1])
except ModuleNotFoundError:
    print("no")
else:
    print("yes")
"""
SAVE_FROM_THE_APPLICATION = """
fetch('http://127.0.0.1:' + process.env.DAPR_HTTP_PORT + '/v1.0/state/ledger', {
  method: 'POST',
  headers: { 'Content-Type': 'application/json' },
  body: JSON.stringify([{ key: 'from-the-application', value: { balance: 100 } }]),
}).then((saved) => console.log(saved.status));
"""


def recorded(stack: Stack, kind: str) -> Counter[str]:
    """Tell what reached the recorder, and how often."""
    return Counter(re.findall(rf"^{kind} (\S+)$", stack.log("recorder"), re.MULTILINE))


def test_hello_world_runs(stack: Stack) -> None:
    """Orders flow from one application to the other, and the last one is kept."""
    stack.until(lambda: "was taken" in stack.log("pythonapp"), "an order was taken", WITHIN)
    with urllib.request.urlopen(f"{stack.api}/invoke/nodeapp/method/order", timeout=10) as answer:
        assert json.load(answer)["orderId"] >= 1
    say(f"{stack.broker}: orders flow")


def test_the_dashboard_shows_what_runs(stack: Stack) -> None:
    """Its log has the token; who knows it sees the applications, and how often one calls the other."""
    if "dashboard" not in stack.services:
        pytest.skip("the dashboard is over another broker")
    with urllib.request.urlopen(stack.dashboard, timeout=10) as page:
        assert b"<!doctype html>" in page.read().lower()
    [token] = set(re.findall(r"^Dashboard: http://\S+#token=(\S+)$", stack.log("dashboard"), re.MULTILINE))
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{stack.dashboard}api/mesh", timeout=10)
    known = {"dashboard-token": token}
    with urllib.request.urlopen(
        urllib.request.Request(f"{stack.dashboard}api/mesh", headers=known), timeout=10
    ) as told:
        assert {"nodeapp", "pythonapp"} <= {each["id"] for each in json.load(told)["apps"]}
    with urllib.request.urlopen(
        urllib.request.Request(f"{stack.dashboard}api/live", headers=known), timeout=10
    ) as live:
        stack.until(lambda: b'"from":"pythonapp","target":"nodeapp"' in live.readline(), "calls are seen", WITHIN)
    say(f"{stack.broker}: the dashboard shows who calls whom")


def with_a_host(stack: Stack) -> None:
    if "host" not in stack.services:
        pytest.skip("the host of databases is over another broker")


def test_only_the_host_has_drivers_and_passwords(stack: Stack) -> None:
    """A gateway can not import a driver; its settings, environment and mounts have no password; the host has both."""
    with_a_host(stack)
    for service in ("host", *stack.gateway_of.values()):
        imported = {
            name for name in DRIVERS if stack.inside(service, "python", "-c", TRY_IMPORT, name).strip() == "yes"
        }
        known = stack.inspect(service) + stack.inside(service, "cat", "/proc/1/environ")
        hosts = service == "host"
        assert imported == (set(DRIVERS) if hosts else set()), service
        assert {name for name, password in stack.passwords.items() if password in known} == (
            stack.passwords.keys() if hosts else set()
        ), service
        assert (":/hosted:ro" in known) is hosts, service
    say(f"{stack.broker}: the host alone has drivers and passwords")


def in_postgresql(stack: Stack) -> dict[str, object]:
    """Ask PostgreSQL itself what nodeapp keeps there."""
    query = "SELECT json_object_agg(split_part(key, '||', 2), convert_from(value, 'UTF8')::json) FROM ledger_state"
    where = "WHERE key LIKE 'nodeapp||%'"
    found = stack.inside(
        "postgres", "psql", "-XqAt", "-h", "/var/run/postgresql", "-U", "mesh", "-c", f"{query} {where}"
    )
    kept: dict[str, object] = json.loads(found.strip() or "{}")
    return kept


def test_state_in_postgresql_survives_the_hosts_death(stack: Stack) -> None:
    """The application keeps state in PostgreSQL through its gateway; the host is killed, and nothing is lost."""
    with_a_host(stack)
    assert stack.inside("nodeapp", "node", "-e", SAVE_FROM_THE_APPLICATION).strip() == "204"
    assert in_postgresql(stack) == {"from-the-application": {"balance": 100}}
    with Writes(f"{stack.api}/state/ledger") as writes:
        writes.goes_on(20, WITHIN)
        stack.kill("host")
        writes.goes_on(20, WITHIN)
    kept = in_postgresql(stack)
    lost = {key for key, number in writes.acknowledged.items() if kept.get(key) != number}
    assert not lost, f"acknowledged, and not in PostgreSQL: {sorted(lost)}"
    say(f"{stack.broker}: {len(writes.acknowledged)} writes acknowledged, {writes.failed} refused; none lost")


def test_hosted_redis_is_used_through_a_gateway(stack: Stack) -> None:
    """State and locks of the host's Redis."""
    with_a_host(stack)
    assert post(f"{stack.api}/state/cache", [{"key": "page", "value": "here"}]) == 204
    with urllib.request.urlopen(f"{stack.api}/state/cache/page", timeout=10) as answer:
        assert json.load(answer) == "here"
    kept = stack.inside("cache", "redis-cli", "HGET", "nodeapp||page", "data")
    assert json.loads(kept) == "here"
    lock = {"resourceId": "till", "lockOwner": "one", "expiryInSeconds": 60}
    assert post(f"{stack.api}-alpha1/lock/locks", lock) == 200


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
    stores = ["statestore", *(["ledger", "cache"] if "host" in stack.services else [])]
    for store in stores:
        assert post(f"{stack.api}/state/{store}", [{"key": "kept", "value": "here"}]) == 204
    stack.down(volumes=False)
    stack.up()
    stack.until(lambda: identities <= recorded(stack, "event").keys(), "what was stored arrives", WITHIN)
    for store in stores:
        with urllib.request.urlopen(f"{stack.api}/state/{store}/kept", timeout=10) as answer:
            assert json.load(answer) == "here", store
    say(f"{stack.broker}: events and state outlived their containers")
