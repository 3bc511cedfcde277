"""Bindings and cryptography by the official SDKs, unmodified: what they send, and what comes to their applications."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.faults.conftest import mesh_home
from tests.sdk.harness import HERE, NODE, PYTHON, needs, resources, run
from tests.support.eventually import eventually
from tests.support.gateways import MeshHome
from tests.support.mesh import GatewayProcess
from tests.support.postgresql_server import PASSWORD, PostgreSQLServer
from tests.support.processes import free_port

__all__ = ["mesh_home"]


def bound(name: str, kind: str, namespace: str | None = None, **settings: str) -> dict[str, object]:
    metadata = [{"name": key, "value": value} for key, value in settings.items()]
    named = {"name": name, **({"namespace": namespace} if namespace else {})}
    spec = {"type": kind, "version": "v1", "metadata": metadata}
    return {"apiVersion": "dapr.io/v1alpha1", "kind": "Component", "metadata": named, "spec": spec}


async def used(home: Path, protocol: str, *command: str) -> tuple[dict[str, Any], Path]:
    """Run a program, an application as well, beside its gateway; gives what it saw, and the folder of files."""
    keys, files = home / "keys", home / "files"
    keys.mkdir()
    (keys / "key").write_bytes(bytes(range(32)))
    made = (
        bound("tick", "bindings.cron", schedule="@every 1s"),
        bound("files", "bindings.localstorage", rootPath=str(files)),
        bound("vault", "crypto.dapr.localstorage", path=str(keys)),
    )
    app_port, grpc_port = free_port(), free_port()
    arguments = ("--resources-path", str(resources(home, made)), "--dapr-grpc-port", str(grpc_port))
    gateway = GatewayProcess("shop", home, app=app_port, arguments=(*arguments, "--app-protocol", protocol))
    await gateway.start(ready=False)  # It waits for the application, which waits for it.
    ports = {"DAPR_HTTP_PORT": gateway.port, "DAPR_GRPC_PORT": grpc_port, "PROTOCOL": protocol}
    ports |= {"APP_PORT": app_port, "GATEWAY_PORT": grpc_port if protocol == "grpc" else gateway.port}
    try:
        return await run(*command, environ=ports), files
    except BaseException:
        gateway.show_log()
        raise
    finally:
        await gateway.kill()


async def test_python(mesh_home: Path) -> None:
    """The client, and the extension for applications on gRPC."""
    needs(PYTHON)
    seen, _ = await used(mesh_home, "grpc", str(PYTHON), str(HERE / "python_bindings.py"))
    assert seen["made"] == {"fileName": "a.txt"}
    assert (seen["text"], seen["raw"]) == ("hello", "00ff")
    assert seen["refused"][1] == "error invoking output binding nowhere: couldn't find output binding nowhere"
    first, second = seen["times"]
    assert first.endswith(" +0000 UTC")
    assert first != second


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_node(mesh_home: Path, protocol: str) -> None:
    """The same over both protocols; its documents are encrypted over gRPC."""
    needs(NODE)
    seen, files = await used(mesh_home, protocol, "node", "bindings.js")
    assert seen["ticks"] >= 2
    assert (files / "a.txt").read_text() == "hello"
    assert (files / "a.json").read_text() == '{"a":1}'
    assert "nowhere" in seen["refused"]
    if protocol == "grpc":
        assert (seen["hidden"], seen["back"]) == (True, "a secret")


@pytest.mark.parametrize("way", ["sdk", "http"])
async def test_quickstart(mesh_home: Path, tmp_path: Path, way: str) -> None:
    """A clock triggers an application that writes to PostgreSQL; it is started as for Dapr, with ``mesh run``."""
    needs(PYTHON)
    async with PostgreSQLServer(tmp_path / "postgresql") as server:
        # As the quickstart's files say it: a namespace, no direction, an older name of the type and of the setting.
        pairs = server.connection_string.replace(" sslmode=disable", " pool_min_conns=1 pool_max_conns=10")
        made = (
            bound("cron", "bindings.cron", "quickstarts", schedule="@every 1s"),
            bound("sqldb", "bindings.postgres", "quickstarts", url=pairs),
        )
        connection = await asyncpg.connect(server.url, password=PASSWORD)
        try:
            await connection.execute("create table orders (orderid int primary key, customer varchar, price float)")

            async def there() -> None:
                rows = await connection.fetch("select orderid, customer, price from orders order by orderid")
                assert [tuple(row) for row in rows] == [(1, "Ann", 10.5), (2, "Bob", 20.25)]

            environ = {"PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}", "WAY": way}
            words = ("--app-id", "batch", "--app-port", str(free_port()), "--resources-path")
            command = (*words, str(resources(mesh_home, made)), "--", "python3", "batch.py")
            with MeshHome(mesh_home).run(*command, environ=environ, cwd=HERE / "quickstart") as running:
                await eventually(there, 60.0)
                assert running.stop() == 0
        finally:
            await connection.close()
