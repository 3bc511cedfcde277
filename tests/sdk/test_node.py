"""The official Node SDK, unmodified, against gateways, over HTTP and gRPC."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import mesh_home
from tests.sdk.harness import NODE, needs, resources, run
from tests.support.mesh import GatewayProcess
from tests.support.processes import free_port
from tests.support.redis_server import RedisServer, RedisStack

__all__ = ["mesh_home"]


# What the SDK gives for a value that is not there, among several: over gRPC it is empty bytes.
NOTHING = {"http": None, "grpc": ""}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_node(mesh_home: Path, protocol: str) -> None:
    """An application and a client: pub/sub, state, secrets, locks, invocation, health, metadata, configuration."""
    needs(NODE)
    app_port, grpc_ports = free_port(), [free_port(), free_port()]
    arguments, environ = (
        ("--resources-path", str(resources(mesh_home))),
        {"SHOP_SECRET": "s3cret", "DAPR_API_TOKEN": "t0ken"},
    )
    on_client = (*arguments, "--dapr-grpc-port", str(grpc_ports[0]))
    on_app = (*arguments, "--app-protocol", protocol, "--dapr-grpc-port", str(grpc_ports[1]))
    async with GatewayProcess("client", mesh_home, arguments=on_client, environ=environ) as client:
        application = GatewayProcess("javascript", mesh_home, app=app_port, arguments=on_app)
        await application.start(ready=False)  # The SDK's server waits for its gateway, which waits for the server.
        ports = grpc_ports if protocol == "grpc" else [client.port, application.port]
        names = {"APP_PORT": app_port, "CLIENT_HTTP_PORT": client.port, "PROTOCOL": protocol, "TOKEN": "t0ken"}
        try:
            names |= {"CLIENT_GATEWAY_PORT": ports[0], "APP_GATEWAY_PORT": ports[1]}
            seen = await run("node", "javascript.js", environ=names)
            if protocol == "grpc":
                assert await client.wait() == 0, "ended by the SDK's call"
        except BaseException:
            application.show_log()
            raise
        finally:
            await application.kill()
    assert seen["healthy"] is True
    assert seen["saved"] == {"a": 1}
    nothing = NOTHING[protocol]
    assert {each["key"]: each.get("data") for each in seen["bulk"]} == {
        "one": {"a": 1},
        "two": "text",
        "three": nothing,
    }
    assert {each["key"]: each.get("data") for each in seen["left"]} == {"one": nothing, "two": nothing, "three": 3}
    assert seen["found"] == [{"name": "Bob", "age": 40}]
    assert seen["secret"] == seen["secrets"] == {"SHOP_SECRET": "s3cret"}
    assert [each.get("success") for each in seen["locks"][:2]] == [True, False]
    assert [each["status"] for each in seen["locks"][2:]] == [2, 0, 1]
    plain, text, bulk = seen["published"]
    assert "error" not in plain
    assert "error" not in text
    assert bulk == {"failedMessages": []}
    assert "nowhere" in seen["refused"]
    assert sorted(seen["events"], key=str) == sorted([{"orderId": 7}, "plain"], key=str)
    assert sorted(seen["bulkEvents"], key=str) == sorted([{"n": 1}, "two"], key=str)
    assert (seen["routed"], seen["dead"]) == ([{"kind": "important"}], [{"kind": "usual"}])
    assert json.loads(seen["invoked"]["body"]) == {"hello": "world"}
    assert "nobody" in seen["nobody"]
    assert (seen["id"], seen["tagged"], seen["extended"]) == ("client", True, "shop")
    if protocol == "grpc":
        assert seen["configuration"]["got"] == "red"
        assert seen["configuration"]["told"][0].startswith("blue")


INDEXES = json.dumps(
    [{"name": "people", "indexes": [{"key": "name", "type": "TEXT"}, {"key": "age", "type": "NUMERIC"}]}]
)


@pytest.mark.parametrize("server", [RedisServer, RedisStack])
async def test_state_of_node_on_redis(mesh_home: Path, tmp_path: Path, server: type[RedisServer]) -> None:
    """Read, save, delete, in bulk, by etags, in transactions; queries where the server has the module."""
    needs(NODE)
    queries = server is RedisStack
    async with server(tmp_path) as redis:
        settings = {"redisHost": f"127.0.0.1:{redis.port}", **({"queryIndexes": INDEXES} if queries else {})}
        metadata = [{"name": name, "value": value} for name, value in settings.items()]
        spec = {"type": "state.redis", "version": "v1", "metadata": metadata}
        kind = {"apiVersion": "dapr.io/v1alpha1", "kind": "Component", "metadata": {"name": "redis"}}
        arguments = ("--resources-path", str(resources(mesh_home, [{**kind, "spec": spec}])))
        grpc_port = free_port()
        arguments = (*arguments, "--dapr-grpc-port", str(grpc_port))
        async with GatewayProcess("client", mesh_home, arguments=arguments) as client:
            common = {"STORE": "redis", "QUERIES": "1" if queries else ""}
            for protocol, port in (("http", client.port), ("grpc", grpc_port)):
                environ = {**common, "PROTOCOL": protocol, "CLIENT_GATEWAY_PORT": port}
                check_state(protocol, queries, await run("node", "state.js", environ=environ))


def check_state(protocol: str, queries: bool, seen: dict[str, Any]) -> None:
    nothing = NOTHING[protocol]
    assert seen["saved"] == seen["updated"] == seen["deleted"] == {}
    assert seen["got"] == [{"a": 1}, "text", [1, None, "ü"], ""]
    assert {each["key"]: each.get("data") for each in seen["bulk"]} == {"one": {"a": 1}, "two": "text", "none": nothing}
    assert all("409" in each or "etag" in each for each in seen["conflicts"]), seen["conflicts"]
    assert seen["kept"] == [{"a": 2}, "text"]
    assert "etag" in seen["refused"]
    assert seen["left"] == ["", "", 4, ""]
    if queries:
        assert seen["found"] == ["Cid", "Ann"]
        assert seen["nobody"]["results"] == []
