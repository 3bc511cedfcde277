"""Metadata, health, shutdown, tokens, CORS, allowed and denied routes, and blocks that have nothing configured.

Source: reference/dapr-surface.md 0, 0.1, 0.2, 1.16, 1.17.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from gateway.api_tokens import read_tokens
from gateway.app import Gateway
from gateway.config import GatewayConfig, HealthCheck, Tokens
from gateway.logs import OURS
from gateway.process import run
from mesh.errors import ConfigError
from tests.http.harness import (
    ANY,
    DEFAULTS,
    App,
    Backbone,
    Case,
    Node,
    Reply,
    cases,
    check,
    component,
    error,
    gateway,
    yaml,
)
from tests.support.eventually import eventually
from tests.support.processes import free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")
NO_ID = error("ERR_DIRECT_INVOKE", "failed getting app id either from the URL path or the header dapr-app-id")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    async with gateway(Backbone("memory:"), tmp_path_factory.mktemp("home")) as node:
        yield node


def no_api(name: str) -> dict[str, object]:
    hint = f"; there is no API {name!r} in this version, see docs/compatibility.md#other-blocks"
    return error("ERR_DIRECT_INVOKE", f"{NO_ID['message']}{hint}")


@cases(
    Case("healthz", ("GET", "/v1.0/healthz"), 204, b"", {"Content-Type": None}),
    Case("healthz with a slash", ("GET", "/v1.0/healthz/"), 204),
    Case("healthz with two slashes", ("GET", "//v1.0//healthz"), 204),
    Case("trap_26 outbound", ("GET", "/v1.0/healthz/outbound"), 204, b""),
    Case("healthz of this app", ("GET", "/v1.0/healthz?appid=app"), 204),
    Case("healthz of another", ("GET", "/v1.0/healthz?appid=x"), 500, error("ERR_HEALTH_APPID_NOT_MATCH")),
    Case("healthz by POST", ("POST", "/v1.0/healthz"), 404, NO_ID),
    Case("metadata of another version", ("GET", "/v1.0-alpha1/metadata"), 404, NO_ID),
    Case("set a label", ("PUT", "/v1.0/metadata/the%20label", None, "värde".encode()), 204, b""),
    Case("set no label", ("PUT", "/v1.0/metadata"), 404, NO_ID),
    Case("shutdown by GET", ("GET", "/v1.0/shutdown"), 404, NO_ID),
    Case("secrets", ("GET", "/v1.0/secrets/s/k"), 500, error("ERR_SECRET_STORES_NOT_CONFIGURED")),
    Case("an API that is not there", ("POST", "/v1.0-alpha1/frobs/j"), 404, no_api("frobs")),
    Case("the same without more", ("GET", "/v1.0/frobs"), 404, no_api("frobs")),
    Case("another version of an API", ("GET", "/v1.0-beta1/state/s/k"), 404, NO_ID),
    Case(
        "trap_29 no CORS by default",
        ("GET", "/v1.0/healthz", {"Origin": "http://x"}),
        204,
        b"",
        {"Access-Control-Allow-Origin": None},
    ),
    Case(
        "trap_29 no preflight either",
        ("OPTIONS", "/v1.0/healthz", {"Origin": "http://x", "Access-Control-Request-Method": "GET"}),
        404,
        NO_ID,
    ),
    Case("no server's name", ("GET", "/v1.0/healthz"), 204, b"", {"Server": None, "Date": None}),
)
async def test_route(node: Node, case: Case) -> None:
    await check(node, case)


async def test_labels_are_bounded(node: Node) -> None:
    """They are kept in memory, so there is a limit."""
    statuses = {
        (await node.request("PUT", f"/v1.0/metadata/label{number}", None, b"x")).status for number in range(110)
    }
    assert statuses == {204, 400}


async def test_metadata(memory: Backbone, tmp_path: Path) -> None:
    """trap_27: every member as the SDKs read it."""
    subscriptions = [
        {
            "pubsubname": "pubsub",
            "topic": "t",
            "routes": {"rules": [{"match": "event.type == 'a'", "path": "/a"}], "default": "/t"},
            "metadata": {"k": "v"},
        },
        {"pubsubname": "pubsub", "topic": "u", "route": "u", "deadLetterTopic": "d"},
    ]
    resources = (
        component("pubsub", "pubsub.mesh")
        + component("state", "state.in-memory")
        + component("not-mine", "state.in-memory", scopes=["other"])
        + yaml("Subscription", "s", {"pubsubname": "pubsub", "topic": "w", "route": "/w"})
        + yaml("HTTPEndpoint", "partner", {"baseUrl": "http://localhost:1"})
        + yaml("Resiliency", "res", {"policies": {}, "targets": {}})
    )
    health = HealthCheck(path="/hz", interval=0.05, timeout=2.0, threshold=2)
    async with App(subscriptions) as app:
        settings = {"app_max_concurrency": 4, "app_health": health, "labels": {"cliPID": "7"}}
        async with gateway(memory, tmp_path, app=app, resources=resources, **settings) as node:
            assert (await node.request("PUT", "/v1.0/metadata/color", None, b"blue")).status == 204
            reply = await node.get("/v1.0/metadata")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json == {
        "id": "app",
        "runtimeVersion": ANY,
        "enabledFeatures": ["HotReload"],
        "components": [
            {
                "name": "pubsub",
                "type": "pubsub.mesh",
                "version": "v1",
                "capabilities": ["SUBSCRIBE_WILDCARDS", "BULK_PUBSUB"],
            },
            {
                "name": "state",
                "type": "state.in-memory",
                "version": "v1",
                "capabilities": ["ETAG", "TRANSACTIONAL", "TTL", "ACTOR", "KEYS", "QUERY_API"],
            },
        ],
        "extended": {"daprRuntimeVersion": ANY, "cliPID": "7", "color": "blue"},
        "componentStatus": [
            {"name": "pubsub", "type": "pubsub.mesh", "health": "ok", "placement": "local"},
            {"name": "state", "type": "state.in-memory", "health": "ok", "placement": "local"},
        ],
        "backlogs": [
            {
                "pubsubname": "pubsub",
                "topic": topic,
                "waiting": 0,
                "taken": 0,
                "oldestSeconds": 0.0,
                "attempts": {"success": 0, "retry": 0, "drop": 0},
                "deadLetters": 0,
            }
            for topic in ("t", "u", "w")
        ],
        "subscriptions": [
            {
                "pubsubname": "pubsub",
                "topic": "t",
                "metadata": {"k": "v"},
                "rules": [{"match": "event.type == 'a'", "path": "/a"}, {"path": "/t"}],
                "deadLetterTopic": "",
                "type": "PROGRAMMATIC",
            },
            {
                "pubsubname": "pubsub",
                "topic": "u",
                "rules": [{"path": "u"}],
                "deadLetterTopic": "d",
                "type": "PROGRAMMATIC",
            },
            {
                "pubsubname": "pubsub",
                "topic": "w",
                "rules": [{"path": "/w"}],
                "deadLetterTopic": "",
                "type": "DECLARATIVE",
            },
        ],
        "httpEndpoints": [{"name": "partner"}],
        "resiliencies": [{"name": "res"}],
        "appConnectionProperties": {
            "port": app.port,
            "protocol": "http",
            "channelAddress": "127.0.0.1",
            "maxConcurrency": 4,
            "health": {
                "healthCheckPath": "/hz",
                "healthProbeInterval": "0.05s",
                "healthProbeTimeout": "2000ms",
                "healthThreshold": 2,
            },
        },
        "actorRuntime": ANY,
        "scheduler": {"connected_addresses": []},
        "workflows": {"connectedWorkers": 0},
    }


async def test_trap_26_health_before_the_application(memory: Backbone, tmp_path: Path) -> None:
    """Outbound is ready before the application listens; the whole is not, and says what is missing."""
    app = App()
    app.port = free_port()
    async with gateway(memory, tmp_path, app=app, ready=False) as node:
        assert (await node.get("/v1.0/healthz/outbound")).status == 204
        reply = await node.get("/v1.0/healthz")
        assert (reply.status, reply.json) == (500, error("ERR_HEALTH_NOT_READY", "dapr is not ready: [app]"))
        await node.publish("t", "x")
        async with app:
            await node.until_ready()
            assert (await node.get("/v1.0/healthz")).status == 204


# Token


TOKENS = {"dapr-api-token": "secret"}


@pytest.mark.parametrize(
    ("method", "target", "headers", "status"),
    [
        pytest.param("GET", "/v1.0/metadata", {}, 401, id="trap_7-missing"),
        pytest.param("GET", "/v1.0/metadata", {"dapr-api-token": "wrong"}, 401, id="trap_7-wrong"),
        ("GET", "/v1.0/metadata", {"dapr-api-token": "secre"}, 401),
        ("GET", "/v1.0/metadata", {"dapr-api-token": "s\u00e9cret"}, 401),
        ("GET", "/v1.0/metadata", TOKENS, 200),
        ("GET", "/v1.0/healthz", {}, 204),
        ("GET", "/v1.0/healthz?appid=app", {}, 204),
        ("GET", "/v1.0/healthz/outbound", {}, 204),
        ("POST", "/v1.0/healthz", {}, 401),
        ("POST", "/v1.0/publish/pubsub/t", {}, 401),
        ("POST", "/v1.0/shutdown", {}, 401),
        ("GET", "/unknown", {}, 401),
        ("GET", "/v1.0/healthz/../metadata", {}, 401),
    ],
)
async def test_token(
    memory: Backbone, tmp_path: Path, method: str, target: str, headers: dict[str, str], status: int
) -> None:
    """Without it nothing but the health probes answers; the refusal is plain text."""
    async with gateway(memory, tmp_path, tokens=Tokens(api="secret")) as node:
        reply = await node.request(method, target, headers)
    assert reply.status == status
    if status == 401:
        assert reply.body == b"invalid api token"
        assert reply.headers["content-type"].startswith("text/plain")


async def test_tokens_of_a_file(memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each line is one; a change counts soon, without a restart, and a bad one changes nothing."""
    file = tmp_path / "tokens"

    def write(text: str) -> None:
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").replace(file)

    async def good(*tokens: str) -> None:
        found = [await node.get("/v1.0/metadata", **{"dapr-api-token": each}) for each in ("one", "two", "three", "")]
        assert [reply.status == 200 for reply in found] == [each in tokens for each in ("one", "two", "three", "")]

    write("one\n\n two \n")
    async with gateway(memory, tmp_path, tokens=Tokens(api_file=file)) as node:
        await good("one", "two")
        write("two\nthree\n")
        await eventually(lambda: good("two", "three"))
        write("\n")

        async def kept() -> None:
            await good("two", "three")
            assert "API tokens are kept as they were" in caplog.text

        await eventually(kept)
    with pytest.raises(ConfigError, match="has no token in it"):
        async with gateway(memory, tmp_path, tokens=Tokens(api_file=file)):
            pytest.fail("started")


@pytest.mark.parametrize(
    "content", [b"one\n\xff\xfe\n", "one\n".encode("utf-16"), b"one\nt\x00wo\n", b"\xef\xbb\xbfone\n"]
)
async def test_a_file_of_tokens_that_is_no_text(tmp_path: Path, content: bytes) -> None:
    """It is as one without tokens."""
    (tmp_path / "tokens").write_bytes(content)
    with pytest.raises(ConfigError, match="no printable text"):
        read_tokens(tmp_path / "tokens")


async def test_tokens_may_be_in_any_language(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("schlüssel one\r\ntwo", "utf-8")
    assert read_tokens(tmp_path / "tokens") == ("schlüssel one".encode(), b"two")


async def test_the_token_does_not_reach_the_application(memory: Backbone, tmp_path: Path) -> None:
    """It is the gateway's; the application's own is sent instead, but not with health probes."""
    health = HealthCheck(path="/hz", interval=0.05, timeout=2.0)
    async with App() as app:
        async with gateway(memory, tmp_path, app=app, app_health=health, tokens=Tokens(api="secret")) as node:
            assert (await node.get("/v1.0/invoke/app/method/x", **TOKENS)).status == 200
            assert "dapr-api-token" not in app.at("/x")[0].headers
        async with gateway(
            memory, tmp_path, app=app, app_health=health, tokens=Tokens(api="secret", app="own")
        ) as node:
            assert (await node.get("/v1.0/invoke/app/method/y", **TOKENS)).status == 200
            assert app.at("/y")[0].all("dapr-api-token") == ["own"]
        assert all("dapr-api-token" not in probe.headers for probe in app.at("/hz"))
        assert app.at("/hz")


# CORS


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        (("*",), "http://any", "*"),
        (("http://a", "http://b"), "http://b", "http://b"),
        (("http://a",), "http://c", None),
    ],
)
async def test_trap_29_cors(
    memory: Backbone, tmp_path: Path, origins: tuple[str, ...], origin: str, allowed: str | None
) -> None:
    """Answers name the origin if it is allowed, failures and refused tokens included; preflight needs no token."""
    async with gateway(memory, tmp_path, allowed_origins=origins, tokens=Tokens(api="secret")) as node:
        for target, status in (("/v1.0/healthz", 204), ("/v1.0/metadata", 401)):
            reply = await node.get(target, Origin=origin)
            assert reply.status == status
            assert _of_cors(reply) == ([allowed, "Origin"] if allowed else [])
        ask = {"Origin": origin, "Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "x-odd"}
        reply = await node.request("OPTIONS", "/v1.0/publish/pubsub/t", ask)
        if allowed:
            assert reply.status == 204
            assert reply.headers["access-control-allow-methods"] == "HEAD, GET, POST, PUT, PATCH, DELETE"
            assert reply.headers["access-control-allow-headers"] == "x-odd"
            assert reply.headers["vary"] == "Origin"
        else:
            assert reply.status == 401


def _of_cors(reply: Reply) -> list[str]:
    return [value for name, value in reply.fields if name.lower() in ("access-control-allow-origin", "vary")]


async def test_cors_is_told_once(memory: Backbone, tmp_path: Path) -> None:
    """On failures, too; and an application that knows of it has the last word."""

    async def stream(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Access-Control-Allow-Origin": "http://own"})
        await response.prepare(request)
        await response.write(b"x")
        return response

    async with App() as app, gateway(memory, tmp_path, app=app, allowed_origins=("http://a",)) as node:
        app.answer("/own", Access_Control_Allow_Origin="http://own", Vary="Accept")
        app.streams["/stream"] = stream
        ours = ["http://a", "Origin"]
        for method, path, expected in (
            ("GET", "/v1.0/metadata", ours),
            ("GET", "/v1.0/state/nobody/k", ours),
            ("GET", "/v1.0/no/such", ours),
            ("POST", "/v1.0/state/statestore", ours),
            ("GET", "/v1.0/invoke/app/method/x", ours),
            ("GET", "/v1.0/invoke/app/method/own", ["http://own", "Accept", "Origin"]),
            ("GET", "/v1.0/invoke/app/method/stream", ["http://own", "Origin"]),
        ):
            reply = await node.request(method, path, {"Origin": "http://a"}, b"{" if method == "POST" else None)
            assert _of_cors(reply) == expected, path


# Allowed and denied


@pytest.mark.parametrize(
    ("api", "open_", "closed"),
    [
        (
            {"allowed": [{"name": "state", "version": "v1"}]},
            ["state", "keys"],
            ["publish", "metadata", "shutdown", "query", "invoke"],
        ),
        ({"denied": [{"name": "state", "version": "v1.0"}]}, ["publish", "metadata", "query"], ["state", "keys"]),
        ({"denied": [{"name": "state", "version": "v1.0-alpha1"}]}, ["state"], ["query"]),
        ({"denied": [{"name": "state", "version": "v1alpha1"}]}, ["state"], ["query"]),
        ({"denied": [{"name": "publish", "version": "v1", "protocol": "grpc"}]}, ["publish"], []),
        (
            {
                "allowed": [{"name": "state", "version": "v1"}, {"name": "publish", "version": "v1"}],
                "denied": [{"name": "state", "version": "v1"}],
            },
            ["publish"],
            ["state", "metadata"],
        ),
    ],
)
async def test_spec_api(memory: Backbone, tmp_path: Path, api: object, open_: list[str], closed: list[str]) -> None:
    """A blocked route is an unknown path; health always answers, deny beats allow."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml("Configuration", "c", {"api": api}))
    requests = {
        "state": ("GET", "/v1.0/state/statestore/k"),
        "publish": ("POST", "/v1.0/publish/pubsub/t", None, b"x"),
        "metadata": ("GET", "/v1.0/metadata"),
        "keys": ("GET", "/v1.0/mesh/state/statestore"),
        "query": ("POST", "/v1.0-alpha1/state/statestore/query", None, b"{}"),
        "shutdown": ("POST", "/v1.0/shutdown"),
        "invoke": ("GET", "/v1.0/invoke/x/method/y"),
    }
    async with gateway(memory, tmp_path, resources=DEFAULTS, configuration_files=(file,)) as node:
        for name in open_:
            reply = await node.request(*requests[name])
            assert (
                reply.headers.get("content-type") != "application/json"
                or reply.json.get("errorCode") != "ERR_DIRECT_INVOKE"
            ), name
        for name in closed:
            reply = await node.request(*requests[name])
            assert (reply.status, reply.json) == (404, NO_ID), name
        assert (await node.get("/v1.0/healthz")).status == 204


# Shutdown

# What `run` leaves in its loop, handlers of signals and a timer that ends the process, must not outlive a test of it.
own_loop = pytest.mark.asyncio(loop_scope="function")


def config(tmp_path: Path, **settings: object) -> GatewayConfig:
    return GatewayConfig(
        app_id="app", home=tmp_path, backbone="memory:", registered=False, http_port=free_port(), **settings
    )  # type: ignore[arg-type]


async def _is_up(port: int) -> None:
    try:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/v1.0/healthz") as response:
            assert response.status == 204
    except OSError as error:
        raise AssertionError from error


@own_loop
@pytest.mark.parametrize(
    ("headers", "code"), [({}, 0), ({"dapr-force-shutdown": "true"}, 1), ({"dapr-force-shutdown": "no"}, 0)]
)
async def test_shutdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], code: int) -> None:
    """It answers first and ends then; an idle client does not hold it up."""
    monkeypatch.setattr("gateway.process.configure_logging", lambda config: None)
    settings = config(tmp_path, drain=30.0)
    url = f"http://127.0.0.1:{settings.http_port}"
    async with asyncio.TaskGroup() as tasks, aiohttp.ClientSession() as session:
        running = tasks.create_task(run(settings))

        await eventually(lambda: _is_up(settings.http_port))
        async with session.post(f"{url}/v1.0/shutdown", headers=headers) as response:
            assert (response.status, await response.read()) == (204, b"")
        async with asyncio.timeout(30):
            assert await running == code


@own_loop
async def test_a_signal_switches_the_level_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To debug, and back to what was asked for; each is told, even where such lines are not asked for."""
    monkeypatch.setattr("gateway.process.configure_logging", lambda config: None)
    settings = config(tmp_path, log_level="error")
    for name in ("", *OURS):  # It sets them all back in the end.
        caplog.set_level(logging.ERROR, name)
    caplog.handler.setLevel(logging.NOTSET)

    def says(*levels: str) -> None:
        said = [each.getMessage() for each in caplog.records if each.name == "gateway.logs"]
        assert said == [f"the log has lines from {level} on" for level in levels]
        level = getattr(logging, levels[-1].upper())
        assert {logging.getLogger(name).level for name in OURS} == {level}
        assert logging.getLogger().level == max(level, logging.INFO)

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run(settings))
        await eventually(lambda: _is_up(settings.http_port))
        os.kill(os.getpid(), signal.SIGUSR1)
        await eventually(lambda: says("debug"))
        os.kill(os.getpid(), signal.SIGUSR1)
        await eventually(lambda: says("debug", "error"))
        async with aiohttp.ClientSession() as session:
            await session.post(f"http://127.0.0.1:{settings.http_port}/v1.0/shutdown")
        async with asyncio.timeout(30):
            assert await running == 0


async def test_unix_socket(tmp_path: Path) -> None:
    """A gateway that listens on a file instead of a port."""
    started = Gateway(config(tmp_path, unix_socket_dir=tmp_path))
    async with started.running():
        connector = aiohttp.UnixConnector(str(tmp_path / "dapr-app-http.socket"))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://x/v1.0/healthz") as response,
        ):
            assert response.status == 204


async def test_unix_socket_that_is_taken(tmp_path: Path) -> None:
    """A second gateway of the same app id is told, and the first one goes on; both files are gone at the end."""
    taken = config(tmp_path, unix_socket_dir=tmp_path)
    http, grpc = (tmp_path / f"dapr-app-{each}.socket" for each in ("http", "grpc"))
    async with Gateway(taken).running():
        with pytest.raises(ConfigError, match=rf"cannot listen at {http}: somebody listens there"):
            async with Gateway(taken).running():
                pass
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(http))) as session,
            session.get("http://x/v1.0/healthz") as response,
        ):
            assert response.status == 204
        _, writer = await asyncio.open_unix_connection(grpc)
        writer.close()
        http.unlink()  # Then it is the other one that is taken.
        with pytest.raises(ConfigError, match=rf"cannot listen at {grpc}: somebody listens there"):
            async with Gateway(taken).running():
                pass
        assert (http.exists(), grpc.exists()) == (False, True)
    assert (http.exists(), grpc.exists()) == (False, False)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, []),
        ({"http_port": 3500, "grpc_port": None}, []),
        ({"grpc_port": 50005}, ["--dapr-grpc-port 50005 without effect"]),
        ({"http_port": 3501}, ["--dapr-http-port 3501 without effect"]),
        ({"http_port": 3501, "grpc_port": 50005}, ["--dapr-http-port 3501 and --dapr-grpc-port 50005 without effect"]),
    ],
)
async def test_ports_beside_a_unix_socket(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, given: dict[str, int | None], told: list[str]
) -> None:
    """That they have no effect is said once."""
    ports = {"http_port": 0, "grpc_port": 0, **given}
    settings = replace(config(tmp_path, unix_socket_dir=tmp_path), **ports)  # type: ignore[arg-type]
    async with Gateway(settings).running():
        said = [record.getMessage() for record in caplog.records if "port" in record.getMessage()]
    assert [each.partition(":")[0] for each in said if "without effect" in each] == told


@pytest.mark.parametrize("sockets", [False, True])
async def test_where_it_listens_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture, sockets: bool) -> None:
    """Both ports, which may be free ones, or both files."""
    caplog.set_level(logging.INFO, "gateway")
    started = Gateway(config(tmp_path, unix_socket_dir=tmp_path if sockets else None))
    async with started.running():
        ports = [started.port, started.grpc_port]
    http, grpc = [tmp_path / f"dapr-app-{each}.socket" for each in ("http", "grpc")] if sockets else ports
    line = next(each.getMessage() for each in caplog.records if "listens on" in each.getMessage())
    assert line.startswith(f"app listens on {http}, for gRPC on {grpc}, backbone ")


@pytest.mark.parametrize("folder", ["missing", "file", "x" * 120], ids=["missing", "a file", "too long"])
async def test_unix_socket_nowhere(tmp_path: Path, folder: str) -> None:
    """A folder where no socket can be made is said in one line."""
    (tmp_path / "file").touch()
    started = Gateway(config(tmp_path, unix_socket_dir=tmp_path / folder))
    with pytest.raises(ConfigError, match=r"cannot listen at .*--unix-domain-socket names a folder"):
        async with started.running():
            pass


async def test_port_that_is_taken(tmp_path: Path) -> None:
    """Is told as that; no other failure of the system is."""
    taken = config(tmp_path)
    async with Gateway(taken).running():
        with pytest.raises(ConfigError, match=rf"cannot listen on 127.0.0.1, port {taken.http_port}: Address"):
            async with Gateway(taken).running():
                pass


async def test_api_logging(memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line a call, without query or body."""
    caplog.set_level(logging.INFO, "gateway.api")
    async with gateway(memory, tmp_path, api_logging=True) as node:
        await node.get("/v1.0/state/statestore/k?metadata.secret=1", **{"User-Agent": "me"})
    fields = next(record.fields for record in caplog.records if record.name == "gateway.api")  # type: ignore[attr-defined]
    assert fields == {
        "method": "GET /v1.0/state/statestore/k",
        "code": 204,
        "duration": ANY,
        "size": 0,
        "useragent": "me",
    }


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        (component("s", "state.nope"), "there is no component type 'state.nope' here"),
        (component("s", "state.mesh", keyPrefix="a||b"), "keyPrefix can't contain '||'"),
        (component("p", "pubsub.mesh", publishingScopes="oops"), "must be app=topic1,topic2"),
    ],
)
async def test_wrong_resources_are_refused_at_start(
    memory: Backbone, tmp_path: Path, resources: str, said: str
) -> None:
    """With the file and the line."""
    from mesh.errors import ConfigError

    with pytest.raises(ConfigError) as raised:
        async with gateway(memory, tmp_path, resources=resources):
            pass
    assert said in str(raised.value)
    assert f"all.yaml:{2}" in str(raised.value)


async def test_ignored_components_are_left_out(memory: Backbone, tmp_path: Path) -> None:
    """`ignoreErrors` starts without them."""
    spec = {"type": "state.nope", "version": "v1", "ignoreErrors": True}
    async with gateway(memory, tmp_path, resources=yaml("Component", "s", spec) + DEFAULTS) as node:
        assert [each["name"] for each in (await node.get("/v1.0/metadata")).json["components"]] == [
            "pubsub",
            "statestore",
        ]
