"""The official SDKs, unmodified, against gateways: what they expect of the API is there."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import mesh_home
from tests.support.mesh import AppProcess, GatewayProcess
from tests.support.processes import free_port
from tests.support.redis_server import RedisServer, RedisStack
from tests.support.security import missing

__all__ = ["mesh_home"]

HERE = Path(__file__).parent
PYTHON = HERE / ".python" / "bin" / "python"


COMPONENT = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: {name}}}
spec: {{type: {type}, version: v1}}
"""
COMPONENTS = (
    ("pubsub", "pubsub.mesh"),
    ("statestore", "state.mesh"),
    ("secrets", "secretstores.local.env"),
    ("locks", "lock.mesh"),
)


async def run(*command: str, environ: Mapping[str, object]) -> dict[str, Any]:
    """Run an SDK's program to its end, and give what it saw."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=HERE,
        env={**os.environ, **{name: str(value) for name, value in environ.items()}},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            output, errors = await process.communicate()
    except BaseException:
        process.kill()
        raise
    assert process.returncode == 0, (output + errors).decode()
    seen: dict[str, Any] = json.loads(output.splitlines()[-1])
    return seen


def needs(path: Path) -> None:
    if not path.exists():
        assert "CI" not in os.environ, f"{path.name} is missing: tests/provision/sdks.sh"
        pytest.skip("not installed: tests/provision/sdks.sh")


async def test_node(mesh_home: Path) -> None:
    """Publish, subscribe, in bulk as well, state, secrets, locks, invocation, health and metadata."""
    needs(HERE / "node_modules" / "@dapr" / "dapr")
    app_port = free_port()
    resources = mesh_home / "resources"
    resources.mkdir()
    (resources / "all.yaml").write_text("---".join(COMPONENT.format(name=name, type=kind) for name, kind in COMPONENTS))
    arguments, environ = ("--resources-path", str(resources)), {"SHOP_SECRET": "s3cret"}
    async with GatewayProcess("client", mesh_home, arguments=arguments, environ=environ) as client:
        application = GatewayProcess("javascript", mesh_home, app=app_port)
        await application.start(ready=False)  # The SDK's server waits for its gateway, which waits for the server.
        try:
            seen = await run(
                "node",
                "javascript.js",
                environ={
                    "APP_PORT": app_port,
                    "APP_GATEWAY_PORT": application.port,
                    "CLIENT_GATEWAY_PORT": client.port,
                },
            )
        except BaseException:
            application.show_log()
            raise
        finally:
            await application.kill()
    assert seen["healthy"] is True
    assert seen["saved"] == {"a": 1}
    assert {each["key"]: each.get("data") for each in seen["bulk"]} == {"one": {"a": 1}, "two": "text", "three": None}
    assert {each["key"]: each.get("data") for each in seen["left"]} == {"one": None, "two": None, "three": 3}
    assert seen["secret"] == {"SHOP_SECRET": "s3cret"}
    assert [each.get("success") for each in seen["locks"][:2]] == [True, False]
    assert [each["status"] for each in seen["locks"][2:]] == [2, 0, 1]
    plain, text, bulk = seen["published"]
    assert "error" not in plain
    assert "error" not in text
    assert bulk == {"failedMessages": []}
    assert "nowhere" in seen["refused"]
    assert sorted(seen["events"], key=str) == sorted([{"orderId": 7}, "plain"], key=str)
    assert len(seen["bulkEvents"]) == 2
    assert json.loads(seen["invoked"]["body"]) == {"hello": "world"}
    assert (seen["id"], seen["tagged"]) == ("client", True)


INDEXES = json.dumps(
    [{"name": "people", "indexes": [{"key": "name", "type": "TEXT"}, {"key": "age", "type": "NUMERIC"}]}]
)


@pytest.mark.parametrize("server", [RedisServer, RedisStack])
async def test_state_of_node_on_redis(mesh_home: Path, tmp_path: Path, server: type[RedisServer]) -> None:
    """Read, save, delete, in bulk, by etags, in transactions; queries where the server has the module."""
    needs(HERE / "node_modules" / "@dapr" / "dapr")
    queries = server is RedisStack
    try:
        made = server(tmp_path)
    except FileNotFoundError as error:
        missing(str(error))
    async with made as redis:
        settings = {"redisHost": f"127.0.0.1:{redis.port}", **({"queryIndexes": INDEXES} if queries else {})}
        metadata = [{"name": name, "value": value} for name, value in settings.items()]
        resources = mesh_home / "resources"
        resources.mkdir()
        spec = {"type": "state.redis", "version": "v1", "metadata": metadata}
        kind = {"apiVersion": "dapr.io/v1alpha1", "kind": "Component", "metadata": {"name": "redis"}}
        (resources / "redis.yaml").write_text(json.dumps({**kind, "spec": spec}))
        async with GatewayProcess("client", mesh_home, arguments=("--resources-path", str(resources))) as client:
            environ = {"CLIENT_GATEWAY_PORT": client.port, "STORE": "redis", "QUERIES": "1" if queries else ""}
            seen = await run("node", "state.js", environ=environ)
    assert seen["saved"] == seen["updated"] == seen["deleted"] == {}
    assert seen["got"] == [{"a": 1}, "text", [1, None, "ü"], ""]
    assert {each["key"]: each.get("data") for each in seen["bulk"]} == {"one": {"a": 1}, "two": "text", "none": None}
    assert all("409" in each or "etag" in each for each in seen["conflicts"]), seen["conflicts"]
    assert seen["kept"] == [{"a": 2}, "text"]
    assert "etag" in seen["refused"]
    assert seen["left"] == ["", "", 4, ""]
    if queries:
        assert [each["data"]["name"] for each in seen["found"]["results"]] == ["Cid", "Ann"]
        assert seen["nobody"]["results"] == []


async def test_python(mesh_home: Path) -> None:
    """Invocation over HTTP, the only part of it that is not gRPC; the others are told so."""
    needs(PYTHON)
    grpc_port = free_port()
    async with (
        AppProcess(mesh_home) as app,
        GatewayProcess("callee", mesh_home, app=app),
        GatewayProcess("caller", mesh_home, arguments=("--dapr-grpc-port", str(grpc_port))) as caller,
    ):
        seen = await run(
            str(PYTHON),
            "python.py",
            environ={
                "DAPR_HTTP_PORT": caller.port,
                "DAPR_GRPC_PORT": grpc_port,
                "DAPR_API_METHOD_INVOCATION_PROTOCOL": "http",
                "DAPR_HEALTH_TIMEOUT": 10,
            },
        )
    assert json.loads(seen["answer"])["pid"] == app.pid
    assert "nobody" in seen["refused"]
    assert seen["told"].startswith("UNIMPLEMENTED: there is no gRPC API in this version; use the HTTP API at http://")
