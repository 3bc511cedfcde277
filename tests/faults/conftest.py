"""What the fault tests share: a MESH_HOME in which nothing is left running, brokers, and the report of figures."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from mesh.resources.component import Component
from tests.http.harness import component as component_text
from tests.support.backends import BACKENDS, Backend, NativeBackend
from tests.support.eventually import eventually, eventually_sync
from tests.support.load import Publishing
from tests.support.mesh import AppProcess, GatewayProcess, running_below
from tests.support.nats import NatsServer
from tests.support.nodes import component
from tests.support.redis_server import RedisServer

SERVERS = ("nats", "redis", "rabbitmq", "kafka")
REPORTING = "MESH_FAULT_REPORT" in os.environ
STORE = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: statestore}
spec:
  type: state.redis
  version: v1
  metadata:
    - {name: redisHost, value: "%s"}
    - {name: actorStateStore, value: "true"}
"""
_numbers = itertools.count()


def portion(count: int) -> int:
    """Give how many events a test takes: all for the report, a third of them to see that it works."""
    return count if REPORTING else count // 3


class Figures:
    """Notes what a test measured, for the summary and for the file that MESH_FAULT_REPORT names.

    Notes travel with the test's report, so that they arrive from wherever it was run.
    """

    def __init__(self, item: pytest.Item) -> None:
        self._item = item

    def note(self, **values: object) -> None:
        """Note something about this test."""
        self._item.user_properties.append(("figures", values))

    def fault(self, what: str, broker: str, **values: object) -> None:
        """Note a line of the table in docs/guarantees.md.

        Args:
            what: The fault.
            broker: On which broker.
            values: What came of it.
        """
        self._item.user_properties.append(("fault", {"fault": what, "broker": broker, **values}))
        self.note(**values)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server_name" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("--broker") or BACKENDS
    if unknown := set(chosen) - set(BACKENDS):
        raise pytest.UsageError(f"--broker {', '.join(unknown)}: use one of {', '.join(BACKENDS)}")
    usual = getattr(metafunc.module, "EVERYWHERE" if REPORTING else "ORDINARY", SERVERS)
    left_out = getattr(metafunc.module, "LEFT_OUT", {}).get(metafunc.function.__name__, ())
    names = [name for name in usual if name in chosen and name not in left_out]
    metafunc.parametrize("server_name", names, scope="session")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        report
        for kind in ("passed", "failed")
        for report in terminalreporter.stats.get(kind, ())
        if getattr(report, "when", "") == "call"
    ]
    lines = [
        f"{report.nodeid.rpartition('::')[2]}: " + ", ".join(f"{name} {value}" for name, value in values.items())
        for report in reports
        for kind, values in report.user_properties
        if kind == "figures"
    ]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)
    path = os.environ.get("MESH_FAULT_REPORT")
    rows = [values for report in reports for kind, values in report.user_properties if kind == "fault"]
    if path and rows:
        _write_report(Path(path), rows)


def _write_report(path: Path, rows: list[dict[str, object]]) -> None:
    """Write what was measured; what was measured before on other brokers stays."""
    before = json.loads(path.read_text()) if path.exists() else []
    found = {(row["fault"], row["broker"]): row for row in [*before, *rows]}
    lines = (f"  {json.dumps(found[key])}" for key in sorted(found))
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    return Figures(request.node)


async def everything_arrives(
    publishing: Publishing,
    app: AppProcess,
    figures: Figures,
    *,
    fault: str = "",
    broker: str = "embedded",
    within: float = 60.0,
) -> None:
    """Wait until each confirmed event is recorded; note duplicates.

    Args:
        publishing: Tells what was confirmed.
        app: Tells what was recorded.
        figures: Get the numbers.
        fault: What happened meanwhile, for the table; empty if it is no part of that.
        broker: On which broker.
        within: Seconds to wait.
    """

    def check() -> None:
        missing = publishing.confirmed - set(app.recorded(publishing.topic))
        assert not missing, f"{len(missing)} confirmed events are missing: {sorted(missing)[:5]}"

    try:
        await eventually(check, within)
    finally:
        recorded = app.recorded(publishing.topic)
        counted = Counter(recorded)
        values: dict[str, object] = {
            "confirmed": len(publishing.confirmed),
            "missing": len(publishing.confirmed - counted.keys()),
            "duplicates": len(recorded) - len(counted),
        }
        if fault:
            figures.fault(fault, broker, **values)
        else:
            figures.note(**values)
        figures.note(unconfirmed=len(publishing.failed), delivered=len(counted))
    unexpected = counted.keys() - publishing.confirmed - publishing.failed
    assert not unexpected


@pytest.fixture
def mesh_home(tmp_path: Path) -> Iterator[Path]:
    """An own MESH_HOME; when the test is over nothing runs there any more."""
    directory = tmp_path / "home"
    directory.mkdir()

    def check() -> None:
        assert running_below(directory) == []

    yield directory
    try:
        eventually_sync(check, 40.0)
    finally:
        for line in running_below(directory):
            with suppress(ProcessLookupError):
                os.kill(int(line.partition(":")[0]), signal.SIGKILL)


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """An external nats-server."""
    async with NatsServer(tmp_path / "nats") as server:
        yield server


@dataclass(frozen=True, slots=True)
class Site:
    """A broker's server, and a mesh on it that no other test sees.

    Attributes:
        name: The broker's.
        backend: The server; it is back when a test is over, whatever that did to it.
        home: For logs and records.
        namespace: The mesh's.
    """

    name: str
    backend: Backend
    home: Path
    namespace: str

    @property
    def topic(self) -> str:
        """Name a topic that no other test has."""
        return "orders"

    def gateway(
        self,
        app_id: str,
        app: AppProcess | None = None,
        url: str | None = None,
        arguments: Sequence[str] = (),
        http_port: int | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> GatewayProcess:
        """Prepare a gateway on the server, or on another URL of it."""
        environ = {**self.backend.environ, "NAMESPACE": self.namespace, **(environ or {})}
        backbone = url or self.backend.url
        return GatewayProcess(
            app_id,
            self.home,
            app=app,
            http_port=http_port,
            backbone=backbone,
            arguments=arguments,
            environ=environ,
        )


class NativeSite(Site):
    """A broker's server beside an embedded backbone: the component ``pubsub`` has topics on it."""

    @property
    def topic(self) -> str:
        """Name a topic that no other test has: on the server, topics are without a namespace."""
        return f"orders-{self.namespace}"

    def gateway(
        self,
        app_id: str,
        app: AppProcess | None = None,
        url: str | None = None,
        arguments: Sequence[str] = (),
        http_port: int | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> GatewayProcess:
        """Prepare a gateway with the component on the server, or on the port of another URL of it."""
        backend = cast("NativeBackend", self.backend)
        port = urlsplit(url or backend.url).port
        assert port is not None
        folder = self.home / f"resources-{port}"
        folder.mkdir(exist_ok=True)
        (folder / "pubsub.yaml").write_text(component_text("pubsub", backend.type, **backend.settings(port)))
        return GatewayProcess(
            app_id,
            self.home,
            app=app,
            http_port=http_port,
            arguments=[*arguments, "--resources-path", str(folder)],
            environ={"NAMESPACE": self.namespace, **(environ or {})},
        )


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(server_name: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Backend]:
    """A broker's server, for all tests here."""
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(BACKENDS[server_name](tmp_path_factory.mktemp(server_name)))


@pytest.fixture
def site(server_name: str, server: Backend, mesh_home: Path) -> Site:
    """A mesh of its own on each broker."""
    kind = NativeSite if server.native else Site
    return kind(server_name, server, mesh_home, f"faults{os.getpid()}-{next(_numbers)}")


@pytest.fixture
async def store(site: Site, tmp_path: Path) -> AsyncIterator[Component | None]:
    """The store that is marked for actors, where the backbone does not keep records itself."""
    if site.name in ("embedded", "nats", "redis"):
        yield None
        return
    async with RedisServer(tmp_path / "store") as server:
        yield component("statestore", "state.redis", redisHost=f"127.0.0.1:{server.port}", actorStateStore="true")


def arguments_for(site: Site, store: Component | None) -> list[str]:
    """Give the arguments of gateways that have a marked store."""
    if store is None:
        return []
    resources = site.home / "resources"
    resources.mkdir()
    (resources / "store.yaml").write_text(STORE % store.setting("redisHost"))
    return ["--resources-path", str(resources)]
