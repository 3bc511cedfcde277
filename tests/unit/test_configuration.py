"""Configurations and locks without a network: what differs, what is repeated, and where they can not be kept."""

from __future__ import annotations

import asyncio
import time

import pytest

from mesh.blocks.configuration import GET, SET, Get, Set, described
from mesh.blocks.configuration_store import WATCH, ConfigurationItem, Watch, differences, digest
from mesh.blocks.lock import ACQUIRE, Acquire
from mesh.errors import (
    BadArgumentError,
    BrokerUnavailableError,
    ConfigError,
    DeadlineExceededError,
    FeatureNotSupportedError,
    HostsGoneError,
    LockError,
    MeshError,
)
from mesh.operation import Caller, Context, Operation
from tests.support.nodes import ask, component, node
from tests.unit.test_records import node as plain_node

A1, A2 = ConfigurationItem("1", "v1"), ConfigurationItem("1", "v2")
B = ConfigurationItem("b", metadata={"x": "1", "y": "2"})


@pytest.mark.parametrize(
    ("found", "known", "told"),
    [
        ({}, {}, {}),
        ({"a": A1}, {}, {"a": A1}),
        ({"a": A1}, {"a": A1}, {}),
        ({"a": A2}, {"a": A1}, {"a": A2}),
        ({"a": ConfigurationItem("2", "v1")}, {"a": A1}, {"a": ConfigurationItem("2", "v1")}),
        ({}, {"a": A1}, {"a": None}),
        ({"b": ConfigurationItem("b", metadata={"y": "2", "x": "1"})}, {"b": B}, {}),
        ({"b": ConfigurationItem("b")}, {"b": B}, {"b": ConfigurationItem("b")}),
        ({"a": A1, "c": A1}, {"a": A1, "b": B}, {"c": A1, "b": None}),
    ],
)
def test_differences(
    found: dict[str, ConfigurationItem],
    known: dict[str, ConfigurationItem],
    told: dict[str, ConfigurationItem | None],
) -> None:
    """By value, version and metadata, each."""
    assert differences(found, {key: digest(item) for key, item in known.items()}) == told


@pytest.mark.parametrize(
    ("item", "told"),
    [
        (None, {}),
        (ConfigurationItem(""), {}),
        (ConfigurationItem("v"), {"value": "v"}),
        (ConfigurationItem("", "1", {"m": ""}), {"version": "1", "metadata": {"m": ""}}),
    ],
)
def test_what_an_application_is_told(item: ConfigurationItem | None, told: dict[str, object]) -> None:
    """Nothing that is empty."""
    assert described(item) == told


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (None, False),
        (LockError("the store failed"), False),
        (HostsGoneError("nobody was asked"), True),
        (DeadlineExceededError("nobody answered"), False),
        (BrokerUnavailableError("the connection broke"), False),
    ],
)
def test_a_lock_is_asked_for_again_only_when_nobody_was_asked(error: MeshError | None, again: bool) -> None:
    """It would be in its own way."""
    operation = Operation(ACQUIRE, "locks", Acquire("r", "me", 1.0), Context(Caller("ns", "app")))
    assert operation.judged(None, error).again is again


@pytest.mark.parametrize(
    ("kind", "instead"), [("lock.mesh", "lock.redis"), ("configuration.mesh", "configuration.redis")]
)
async def test_a_backbone_without_key_value(kind: str, instead: str) -> None:
    """Is refused at start, with the line that takes its place."""
    with pytest.raises(ConfigError, match=rf"{kind} needs a key/value store, and .* has none; .*type: {instead}"):
        async with plain_node(component("c", kind)):
            pass


async def test_a_node_that_leaves_lets_nobody_wait() -> None:
    """A watch is answered with nothing; one that comes while it leaves, at once."""
    async with asyncio.TaskGroup() as tasks:
        async with node("memory:", "ns", component("store", "configuration.mesh")) as runtime:
            await ask(runtime, SET, "store", Set("a", "1"))
            known = {"a": digest((await ask(runtime, GET, "store", Get(("a",))))["a"])}
            watching = tasks.create_task(ask(runtime, WATCH, "store", Watch(("a",), {}, known, 10.0)))
            assert not (await asyncio.wait([watching], timeout=0.05))[0]
            began = time.monotonic()
        assert await watching == {}
    assert time.monotonic() - began < 5


async def test_a_watch_ends_before_its_deadline() -> None:
    """However short that is: nothing is no failure."""
    async with node("memory:", "ns", component("store", "configuration.mesh")) as runtime:
        for seconds in (0.5, 2.0):
            assert await ask(runtime, WATCH, "store", Watch(("a",), {}, {}, 10.0), deadline=time.time() + seconds) == {}


async def test_too_many_values_to_watch() -> None:
    """Those that matter are to be named."""
    async with node("memory:", "ns", component("store", "configuration.mesh")) as runtime:
        for number in range(1001):
            await ask(runtime, SET, "store", Set(f"k{number}", ""))
        assert len(await ask(runtime, GET, "store", Get())) == 1001
        with pytest.raises(BadArgumentError, match="more than 1000 keys cannot be watched"):
            await ask(runtime, WATCH, "store", Watch())
        assert set(await ask(runtime, WATCH, "store", Watch(("k7", "none")))) == {"k7"}


async def test_a_store_that_cannot_be_written() -> None:
    """Says so."""
    async with node("memory:", "ns", component("store", "configuration.mesh")) as runtime:
        opened = runtime.services["configuration"].components["store"]  # type: ignore[attr-defined]
        opened.store.capabilities = ()
        with pytest.raises(FeatureNotSupportedError, match="configuration store store does not support writing"):
            await ask(runtime, SET, "store", Set("a", "1"))
