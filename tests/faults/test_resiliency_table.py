"""What each policy makes of each fault, of applications over HTTP and gRPC, and of a component in each direction.

Calls go from one gateway to others over a NATS server. Applications and components behave by script: each row has a
path of its own, whose circuit breaker is its own, or a component of its own. Where an attempt is to hang, its timeout
is short; elsewhere it is one that no busy machine reaches.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from aiohttp import web

from gateway.grpc.messages import COMMON, message
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError, BindingEvent, Handle, Invoke, Invoked, Reading
from mesh.errors import MeshError
from mesh.resources.settings import setting
from tests.grpc.app import GRPCApp
from tests.http.harness import App, Backbone, Node, component, gateway, yaml
from tests.support.eventually import eventually
from tests.support.nats import NatsServer
from tests.support.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")

OK, FAILS, LATE, OPEN, LEFT = "ok", "fails", "late", "open", "left"
HEALTHY_AFTER = 2

PARTS = {
    "timeout": ("timeout",),
    "constant": ("retry",),
    "exponential": ("retry",),
    "breaker": ("circuitBreaker",),
    "all": ("timeout", "retry", "circuitBreaker"),
}
BEHAVIOURS = ("fails", "hangs", "late", "refuses", "back", "dies")
APPS = ("http", "grpc")
WAYS = ("outbound", "inbound")
POLICIES = {
    "timeouts": {"long": "60s", "short": "250ms"},
    "retries": {
        "constant": {"policy": "constant", "duration": "5ms", "maxRetries": 2},
        "exponential": {"policy": "exponential", "maxInterval": "5ms", "maxRetries": 2},
    },
    "circuitBreakers": {"breaker": {"timeout": "300s", "trip": "consecutiveFailures >= 3"}},
}


@dataclass(frozen=True)
class Expected:
    """What comes of a row: of one operation after the other, in how many attempts in all, and the breaker then."""

    answers: tuple[str, ...]
    attempts: int
    breaker: str | None = None


def expected(policy: str, behaviour: str) -> Expected:
    """Say what a row comes to."""
    retries, breaks, times = (name in PARTS[policy] for name in ("retry", "circuitBreaker", "timeout"))
    closed, opened = ("closed", "open") if breaks else (None, None)
    match behaviour:
        case "late":
            return Expected((OK,), 1, closed)
        case "hangs" if not times:
            return Expected((LEFT,), 1, closed)
        case "back" | "dies" if retries:
            return Expected((OK,), 3, closed)
        case "back" | "dies":
            return Expected((FAILS, FAILS, OK), 3, closed)
    fails = LATE if behaviour == "hangs" else FAILS
    if retries:
        return Expected((fails, OPEN) if breaks else (fails,), 3, opened)
    return Expected((fails, fails, fails, OPEN), 3, opened) if breaks else Expected((fails,), 1)


class Script:
    """How what is called behaves in one row.

    Attributes:
        attempts: How many it has seen.
        let_go: Set when what is late may answer.
    """

    def __init__(self, behaviour: str) -> None:
        self.attempts = 0
        self.let_go = asyncio.Event()
        self.behaviour = behaviour

    async def step(self) -> str:
        """Say what the next attempt comes to: ``ok``, ``fails``, ``dies`` or ``refuses``."""
        self.attempts += 1
        match self.behaviour:
            case "hangs":
                await asyncio.Event().wait()
            case "late":
                await self.let_go.wait()
            case "fails" | "refuses":
                return self.behaviour
            case "back" | "dies" if self.attempts <= HEALTHY_AFTER:
                return {"back": "fails", "dies": "dies"}[self.behaviour]
        return OK

    async def until_attempted(self) -> None:
        def check() -> None:
            assert self.attempts

        await eventually(check)


@dataclass
class World:
    """Everything of the table.

    Attributes:
        calling: The gateway that calls, and has the components.
        backbone: Where.
        home: For files.
        closed: A port that refuses connections.
        scripts: By row.
        handles: What hands events of components to the application, by component.
    """

    calling: Node
    backbone: Backbone
    home: Path
    closed: int
    scripts: dict[str, Script] = field(default_factory=dict)
    handles: dict[str, Handle] = field(default_factory=dict)


WORLD: list[World] = []


@dataclass(frozen=True, slots=True)
class ScriptedSettings:
    """Which row it is of."""

    row: str = setting("row", "The row.", required=True, example="x")


class Scripted(ComponentAdapter):
    """A component that behaves by its row's script, and hands over the events that the row tells it to."""

    settings = ScriptedSettings
    operations = ("create",)

    async def invoke(self, asked: Invoke) -> Invoked | None:
        world = WORLD[0]
        try:
            came_to = await world.scripts[self._settings.row].step()
            if came_to == "refuses":
                await asyncio.open_connection("127.0.0.1", world.closed)
            if came_to == "dies":
                raise ConnectionResetError("broke off in the middle of the answer")
        except OSError as error:
            raise BindingError(str(error), retryable=True) from error
        if came_to == "fails":
            raise BindingError("received status code 500", retryable=True)
        return Invoked(b'"ok"')

    @asynccontextmanager
    async def reading(self, reading: Reading) -> AsyncIterator[None]:
        WORLD[0].handles[reading.component] = reading.handle
        yield


def closed_port() -> tuple[socket.socket, int]:
    """Give a port that is taken and refuses connections, as long as the socket is open."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    return taken, int(taken.getsockname()[1])


async def over_http(request: web.BaseRequest) -> web.StreamResponse:
    """Answer by the script of the path."""
    came_to = await WORLD[0].scripts[request.path.lstrip("/")].step()
    if came_to == "dies":
        broken = web.StreamResponse(headers={"Content-Length": "10"})
        await broken.prepare(request)
        await broken.write(b"begun")
        assert request.transport is not None
        request.transport.abort()
        return broken
    return web.Response(status=500 if came_to == "fails" else 200, body=b"{}")


def over_grpc(proxy: Callable[[], Proxy]) -> Any:
    """Answer by the script of the method."""

    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        came_to = await WORLD[0].scripts[request.method].step()
        if came_to == "dies":
            await context.send_initial_metadata(())
            proxy().cut()
        if came_to == "fails":
            await context.abort(grpc.StatusCode.INTERNAL, "no")
        return message("InvokeResponse", COMMON)()

    return answer


def named(policy: str, behaviour: str = "") -> dict[str, str]:
    """Name the policies of a target."""
    short = behaviour == "hangs" or (behaviour, policy) == ("away", "timeout")
    names = {"timeout": "short" if short else "long", "circuitBreaker": "breaker"}
    names["retry"] = "exponential" if policy == "exponential" else "constant"
    return {part: names[part] for part in PARTS[policy]}


def resources(namespace: str, closed: int) -> str:
    """Configure the gateway that calls: an application has a short timeout where its namespace is named."""
    apps, components, made = {}, {}, ""
    for policy in PARTS:
        for app in APPS:
            apps[f"{app}-{policy}"] = named(policy)
            apps[f"{app}-{policy}-away"] = named(policy, "away")
            apps[f"{app}-{policy}.{namespace}"] = named(policy, "hangs")
        made += yaml("HTTPEndpoint", f"http-{policy}-away", {"baseUrl": f"http://127.0.0.1:{closed}"})
        for way in WAYS:
            for behaviour in BEHAVIOURS:
                name = f"{way}-{policy}-{behaviour}"
                components[name] = {way: named(policy, behaviour)}
                if (way, behaviour) != ("inbound", "refuses"):
                    made += scripted(name, way)
    return made + resiliency(apps=apps, components=components)


def scripted(row: str, way: str) -> str:
    """Configure a row's component, whose events are for one application."""
    direction = {"outbound": "output", "inbound": "input"}[way]
    return component(row, "bindings.scripted", row=row, direction=direction, scopes=["caller"])


def resiliency(**targets: Any) -> str:
    return yaml("Resiliency", "r", {"policies": POLICIES, "targets": targets})


@pytest.fixture(scope="module")
def scripted_type(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Have a package installed that brings ``bindings.scripted``."""
    folder = tmp_path_factory.mktemp("site")
    information = folder / "scripted-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: scripted\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[mesh.components]\nbindings.scripted = {__name__}:Scripted\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(scripted_type: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Run an application for each protocol and policy, and the gateway that calls them."""
    home = tmp_path_factory.mktemp("resiliency")
    taken, closed = closed_port()
    async with AsyncExitStack() as stack:
        stack.callback(taken.close)
        enter = stack.enter_async_context
        server = await enter(NatsServer(home / "nats"))
        backbone = Backbone(server.url)
        app = await enter(App())
        app.streams = _Everything(over_http)
        world = World(None, backbone, home, closed)  # type: ignore[arg-type]  # it is made below
        WORLD.append(world)
        stack.callback(WORLD.clear)
        for policy in PARTS:
            await enter(gateway(backbone, home, app=app, app_id=f"http-{policy}"))
            spoken = await enter(GRPCApp())
            proxy = await enter(Proxy(spoken.port))
            spoken.answers["OnInvoke"] = over_grpc(lambda proxy=proxy: proxy)  # type: ignore[misc]
            await enter(gateway(backbone, home, app=proxy.port, app_protocol="grpc", app_id=f"grpc-{policy}"))
        calls = gateway(backbone, home, app=app, app_id="caller", resources=resources(backbone.namespace, closed))
        world.calling = await enter(calls)
        yield world


class _Everything(dict[str, Any]):
    """One answer for all paths, but for those that the gateway itself asks."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self._answer = answer

    def __contains__(self, path: object) -> bool:
        return not str(path).startswith("/dapr/")

    def __getitem__(self, path: str) -> Any:
        return self._answer


def came_to(status: int, said: str) -> str:
    """Say in the table's words what an operation came to."""
    if status == 200:
        return OK
    if "circuit breaker is open" in said:
        return OPEN
    return LATE if "no answer within" in said else FAILS


async def called(world: World, target: str, path: str) -> str:
    reply = await world.calling.post(f"/v1.0/invoke/{target}/method/{path}", b"x")
    return came_to(reply.status, reply.body.decode())


async def invoked(world: World, row: str) -> str:
    reply = await world.calling.post(f"/v1.0/bindings/{row}", {"operation": "create", "data": 1})
    return came_to(reply.status, reply.body.decode())


async def handed(world: World, row: str, waiting: list[BindingEvent]) -> str:
    """Hand over the event that is first; what the application has not taken is still there."""
    try:
        await world.handles[row](waiting[0])
    except MeshError as error:
        return came_to(500, str(error))
    del waiting[0]
    return OK


async def outcomes(script: Script, operation: Callable[[], Coroutine[Any, Any, str]], wanted: Expected) -> list[str]:
    """Do one operation after the other; who waits for what hangs leaves, and what is late is let go."""
    found = []
    for answer in wanted.answers:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(operation())
            if answer == LEFT:
                await script.until_attempted()
                task.cancel()
            if script.behaviour == "late":
                await script.until_attempted()
                script.let_go.set()
        found.append(LEFT if task.cancelled() else task.result())
    return found


def assert_attempts(script: Script, wanted: Expected, attempts: int) -> None:
    """Hold what arrived against how many attempts were made: a short one may be over before it is there."""
    if wanted.answers[0] == LATE:
        assert script.attempts <= attempts
    else:
        assert script.attempts == attempts


async def breaker_of(node: Node, target: str, endpoint: str = "") -> str | None:
    """Read a breaker's state in metadata."""
    told = (await node.get("/v1.0/metadata")).json.get("circuitBreakers", ())
    found = [each["state"] for each in told if each["target"] == target and each.get("endpoint", "") == endpoint]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("policy", PARTS)
@pytest.mark.parametrize("app", APPS)
async def test_applications(world: World, app: str, policy: str, behaviour: str) -> None:
    """Attempts, answers and the breaker of the path."""
    wanted, path = expected(policy, behaviour), f"{policy}-{behaviour}"
    script = world.scripts[path] = Script(behaviour)
    target = f"{app}-{policy}"
    if behaviour == "hangs":
        target += f".{world.backbone.namespace}"
    async with AsyncExitStack() as stack:
        if behaviour == "refuses":
            target += "-away"  # Over HTTP an HTTPEndpoint, over gRPC an application that does not listen.
            if app == "grpc":
                away = {"app": world.closed, "app_id": target, "app_protocol": app, "ready": False}
                await stack.enter_async_context(gateway(world.backbone, world.home, **away))
        found = await outcomes(script, lambda: called(world, target, path), wanted)
    if behaviour == "refuses":  # One that does not listen is waited for until the attempt is over.
        found = [FAILS if each == LATE else each for each in found]
    assert found == list(wanted.answers)
    assert_attempts(script, wanted, 0 if behaviour == "refuses" else wanted.attempts)
    assert await breaker_of(world.calling, f"invocation {target}", f"/{path}") == wanted.breaker


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("policy", PARTS)
async def test_components_outbound(world: World, policy: str, behaviour: str) -> None:
    """Attempts, answers and the breaker of the component."""
    wanted, row = expected(policy, behaviour), f"outbound-{policy}-{behaviour}"
    script = world.scripts[row] = Script(behaviour)
    assert await outcomes(script, lambda: invoked(world, row), wanted) == list(wanted.answers)
    assert_attempts(script, wanted, wanted.attempts)
    assert await breaker_of(world.calling, f"bindings {row}") == wanted.breaker


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("policy", PARTS)
async def test_components_inbound(world: World, policy: str, behaviour: str) -> None:
    """The same of its events, none of which is lost: the source has it until the application has taken it."""
    wanted, row = expected(policy, behaviour), f"inbound-{policy}-{behaviour}"
    script, waiting = Script(behaviour), [BindingEvent(b"event")]
    world.scripts[row] = script
    async with AsyncExitStack() as stack:
        node, attempts = world.calling, wanted.attempts
        if behaviour == "refuses":
            app, attempts = await stack.enter_async_context(App()), 0
            made = scripted(row, "inbound") + resiliency(components={row: {"inbound": named(policy)}})
            alone = gateway(Backbone("memory:"), world.home, app=app, app_id="caller", resources=made)
            node = await stack.enter_async_context(alone)
        await until_read(world, row)
        if behaviour == "refuses":
            await app.stop()
        assert await outcomes(script, lambda: handed(world, row, waiting), wanted) == list(wanted.answers)
        assert_attempts(script, wanted, attempts)
        assert bool(waiting) is (wanted.answers[-1] != OK)
        assert await breaker_of(node, f"binding {row}") == wanted.breaker


async def until_read(world: World, row: str) -> None:
    def check() -> None:
        assert row in world.handles

    await eventually(check)
