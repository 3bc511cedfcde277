"""The backbones that the HTTP tests run on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.http.harness import App, Backbone
from tests.support.nats import NatsServer


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def nats_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A nats-server for all tests; each has a namespace of its own."""
    async with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server.url


@pytest.fixture(params=["memory", "nats"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    """A test on both."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def memory() -> Backbone:
    """One gateway alone, in this process."""
    return Backbone("memory:")


@pytest.fixture
def nats(nats_url: str) -> Backbone:
    """Several gateways over a real broker."""
    return Backbone(nats_url)


@pytest.fixture(params=["memory", "nats"], scope="module")
def module_backbone(request: pytest.FixtureRequest) -> Backbone:
    """As ``backbone``, for the gateway that all tests of a module share."""
    return Backbone("memory:" if request.param == "memory" else request.getfixturevalue("nats_url"))


@pytest.fixture
async def app() -> AsyncIterator[App]:
    """An application without subscriptions."""
    async with App() as app:
        yield app
