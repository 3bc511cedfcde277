"""One suite for all brokers: a test says what it needs, and runs wherever the broker declares that."""

from __future__ import annotations

import zoneinfo  # noqa: F401 - looks for its files once, which a node in a test would do in its event loop
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import fields
from pathlib import Path

import pytest
import pytest_asyncio
from blockbuster import BlockBuster

from mesh.broker import Broker, Features
from tests.support.backends import BACKENDS, Backend, features_of
from tests.support.contract import Inbox, Place
from tests.support.guards import Guards, no_guards, strict_guards
from tests.support.proxy import Proxy

WATCHED = (
    "bindings.pluggable",
    "brokers.kafka",
    "brokers.memory",
    "brokers.mqtt",
    "brokers.native",
    "brokers.nats",
    "brokers.rabbitmq",
    "brokers.redis",
)
# The embedded server is one of NATS, by the same adapter: what has nothing to do with how it is found, and how it comes
# and goes, is tested on that.
OF_EMBEDDED = ("backlog", "connection", "ephemeral", "faults", "key_value", "leaving", "publish", "subscribe")
# Whose servers take long to start again, or whose faults are tested in tests/native: what is of the contract alone.
OF_OTHERS = ("backlog", "letters", "publish", "subscribe")
OTHERS = {
    "amqp-native": OF_OTHERS,
    "eventhubs-native": (),  # Its client takes seconds to subscribe, and as many to leave.
    "mqtt-native": OF_OTHERS,
    "pulsar-native": OF_OTHERS,
    "servicebus-native": ("subscribe",),  # Its library takes seconds to close what receives.
}
_FEATURE_NAMES = {each.name for each in fields(Features)} | {"native"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "requires(feature, ...): run only where the broker declares these features")
    config.addinivalue_line("markers", "on(broker, ...): run on these alone, where the broker is not what is tested")
    config.addinivalue_line("markers", "lacks(feature, ...): run only where the broker declares none of these")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend_name" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("--broker") or list(BACKENDS)
    if unknown := set(chosen) - set(BACKENDS):
        raise pytest.UsageError(f"--broker {', '.join(unknown)}: use one of {', '.join(BACKENDS)}")
    on = {name for mark in metafunc.definition.iter_markers("on") for name in mark.args} or BACKENDS.keys()
    chosen = [name for name in chosen if name in on]
    if metafunc.module.__name__.rpartition(".test_")[2] not in OF_EMBEDDED:
        chosen = [name for name in chosen if name != "embedded"]
    if not metafunc.config.getoption("--broker"):
        suite = metafunc.module.__name__.rpartition(".test_")[2]
        chosen = [name for name in chosen if suite in OTHERS.get(name, (suite,))]
    names = [name for name in BACKENDS if name in chosen and _fits(metafunc.definition, features_of(name))]
    metafunc.parametrize("backend_name", names, scope="session")


def _fits(item: pytest.Item, features: Features) -> bool:
    for marker, wanted in (("requires", True), ("lacks", False)):
        for mark in item.iter_markers(marker):
            assert set(mark.args) <= _FEATURE_NAMES, mark.args
            if not all(_has(features, name) is wanted for name in mark.args):
                return False
    return True


def _has(features: Features, name: str) -> bool:
    return features.layout == "native" if name == "native" else bool(getattr(features, name))


async def _start(stack: AsyncExitStack, name: str, directory: Path) -> Backend:
    return await stack.enter_async_context(BACKENDS[name](directory))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_backend(backend_name: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Backend]:
    """A server for all tests that leave it running."""
    async with AsyncExitStack() as stack:
        yield await _start(stack, backend_name, tmp_path_factory.mktemp(backend_name))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def rough_backend(backend_name: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Backend]:
    """A server for all tests that kill and restart it."""
    async with AsyncExitStack() as stack:
        yield await _start(stack, backend_name, tmp_path_factory.mktemp(f"{backend_name}-rough"))


@pytest.fixture
async def place(shared_backend: Backend, backend_name: str) -> AsyncIterator[Place]:
    place = Place(shared_backend if backend_name != "memory" else type(shared_backend)())
    async with place.stack:
        yield place


@pytest.fixture
def guards(request: pytest.FixtureRequest, place: Place) -> Guards:
    """Guards of this place's nodes; strict ones for a test that is parametrized so."""
    strict = getattr(request, "param", False)
    return strict_guards(place.namespace) if strict else no_guards


@pytest.fixture
async def rough_place(rough_backend: Backend) -> AsyncIterator[Place]:
    """As ``place``, on a server that may be restarted."""
    place = Place(rough_backend)
    async with place.stack:
        yield place


@pytest.fixture
async def broker(place: Place) -> Broker:
    """A node."""
    return await place.connect()


@pytest.fixture
async def other(place: Place) -> Broker:
    """Another node."""
    return await place.connect()


@pytest.fixture
async def proxy(shared_backend: Backend) -> AsyncIterator[Proxy]:
    """A proxy before the server."""
    if shared_backend.port is None:
        pytest.skip("this broker's address cannot be chosen; its client is tested elsewhere in this suite")
    async with shared_backend.proxy() as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _blocking() -> Iterator[None]:
    """Fail a test whose adapter blocks the event loop."""
    detector = BlockBuster(scanned_modules=["mesh", *WATCHED])
    detector.activate()
    try:
        yield
    finally:
        detector.deactivate()


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()
