"""The examples on every broker: one line is all that differs."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.test_examples import copied, needs_node
from tests.support.backends import BACKENDS, MissingServerError
from tests.support.gateways import MeshHome
from tests.support.processes import free_port

pytestmark = needs_node

BROKERS = ("nats", "redis", "kafka", "rabbitmq")


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=BROKERS)
async def line(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The line of the environment that names a server which runs."""
    async with AsyncExitStack() as stack:
        try:
            server = await stack.enter_async_context(BACKENDS[request.param](tmp_path_factory.mktemp(request.param)))
        except MissingServerError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(error))
        yield f"MESH_BACKBONE={server.url}"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[MeshHome]:
    made = MeshHome(tmp_path / "home")
    yield made
    made.until_nothing_runs()


def test_the_examples_run(line: str, home: MeshHome, tmp_path: Path) -> None:
    """Calls, state and events, all on the broker that the line names."""
    environ = dict([line.split("=", 1)])
    ports = {name: free_port() for name in ("3000", "3500", "6001", "6002")}
    with home.run("-f", str(copied("hello-world", tmp_path, ports)), environ=environ) as run:
        run.until("^== APP - nodeapp == Got a new order! Order ID: 3$")
        run.until("^== APP - pythonapp == Order 3 was taken$")
        kept = home.mesh("invoke", "-a", "nodeapp", "-m", "order", "-v", "GET")
        assert json.loads(kept.stdout)["orderId"] >= 3
    with home.run("-f", str(copied("pubsub", tmp_path, ports)), environ=environ) as run:
        # Any of them: on RabbitMQ an event is not kept for a group that comes after another one has taken it.
        run.until(r"^== APP - warehouse == Order \d+: teapot goes by post$")
        run.until(r"^== APP - warehouse == Order \d+: piano goes by lorry$")
        run.until(r"^== APP - office == Order \d+: writing to the customer that there is no unicorn$")
        run.until(r"^== APP - office == Order \d+: turnover is now ")
        words = ("--publish-app-id", "publisher", "--pubsub", "pubsub", "--topic", "orders", "--data")
        assert home.mesh("stop", "warehouse").returncode == 0
        assert home.mesh("publish", *words, '{"orderId": 1001, "item": "spoon", "total": 2}').returncode == 0
        run.until("^== APP - office == Order 1001: turnover is now ")
        again = ("--app-id", "warehouse", "--app-port", str(ports["6001"]), "--resources-path", "../resources")
        directory = tmp_path / "pubsub" / "warehouse"
        with home.run(*again, "python3", "app.py", environ=environ, cwd=directory) as warehouse:
            warehouse.until("^== APP - warehouse == Order 1001: spoon goes by post$")
        assert run.stop() == 0
    assert not (home.path / "backbone").exists(), "the embedded broker was used as well"
