"""The official Python SDK, unmodified: its clients and its extensions for applications, over gRPC and HTTP."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp

from tests.faults.conftest import mesh_home
from tests.sdk.harness import HERE, PYTHON, Program, needs, resources, run
from tests.support.eventually import eventually
from tests.support.gateways import MeshHome
from tests.support.mesh import GatewayProcess
from tests.support.processes import free_port

__all__ = ["mesh_home"]

WAYS = ("blocking", "asyncio")


async def test_clients(mesh_home: Path) -> None:
    """Each client has a gateway of its own, and so has the application, which is one on gRPC."""
    needs(PYTHON)
    app_port = free_port()
    keys = mesh_home / "keys"
    keys.mkdir()
    (keys / "key").write_bytes(bytes(range(32)))
    vault = {"type": "crypto.dapr.localstorage", "version": "v1", "metadata": [{"name": "path", "value": str(keys)}]}
    vault_file = {"apiVersion": "dapr.io/v1alpha1", "kind": "Component", "metadata": {"name": "vault"}, "spec": vault}
    model = {**vault_file, "metadata": {"name": "model"}, "spec": {"type": "conversation.echo", "version": "v1"}}
    arguments = ("--resources-path", str(resources(mesh_home, [vault_file, model])))
    environ = {"SHOP_SECRET": "s3cret"}
    ports = {way: free_port() for way in WAYS}
    gateways = {
        way: GatewayProcess(way, mesh_home, arguments=(*arguments, "--dapr-grpc-port", str(port)), environ=environ)
        for way, port in ports.items()
    }
    on_grpc = (*arguments, "--app-protocol", "grpc", "--enable-app-health-check")
    seen: dict[str, dict[str, Any]] = {}

    async def use(way: str) -> None:
        gateway = gateways[way]
        await gateway.until_outbound_ready()
        to = {"DAPR_HTTP_PORT": gateway.port, "DAPR_GRPC_PORT": ports[way], "DAPR_HEALTH_TIMEOUT": 60}
        seen[way] = await run(str(PYTHON), "python_client.py", way, environ=to)

    async with (
        Program(mesh_home, str(PYTHON), str(HERE / "python_app.py"), environ={"APP_PORT": app_port}),
        GatewayProcess("python", mesh_home, app=app_port, arguments=on_grpc) as application,
        gateways["blocking"],
        gateways["asyncio"],
    ):
        try:
            async with asyncio.TaskGroup() as tasks:
                for way in WAYS:
                    tasks.create_task(use(way))
            for way in WAYS:
                assert await gateways[way].wait() == 0, "ended by the SDK's call"
            recorded = await until_recorded(application, 2 * 9)
        except BaseException:
            for each in (*gateways.values(), application):
                each.show_log()
            raise
    for way in WAYS:
        check_seen(way, seen[way])
        check_recorded(way, recorded)


async def until_recorded(application: GatewayProcess, wanted: int) -> list[dict[str, Any]]:
    """Ask the application over HTTP, which becomes a call over gRPC, until it has so many events."""
    found: list[dict[str, Any]] = []

    async def check() -> None:
        async with session.post(f"{application.api}/invoke/python/method/recorded") as response:
            assert (response.status, response.content_type) == (200, "application/json")
            found[:] = await response.json()
        assert len({(each["kind"], each["id"]) for each in found}) >= wanted, found

    async with aiohttp.ClientSession() as session:
        await eventually(check, 40.0)
    return found


def check_seen(way: str, seen: dict[str, Any]) -> None:
    state = seen["state"]
    assert state["got"] == {"text": b"plain".hex(), "bytes": "00ff", "json": b'{"a": 1}'.hex(), "none": ""}
    assert state["missing_etag"] == ""
    assert json.loads(state["json_over_http"]) == {"a": 1}
    assert state["http_over_grpc"] == {"b": 2}
    assert [each[0] for each in state["conflicts"]] == ["ABORTED", "ABORTED"]
    assert state["bulk"] == [["b1", "1", True, ""], ["b2", "2", True, ""], ["none", "", False, ""]]
    assert state["transaction"][0] == "INTERNAL"
    assert state["left"] == {"b3": "3"}
    assert state["no_store"][:2] == ["INVALID_ARGUMENT", "DAPR_STATE_NOT_FOUND"]
    assert state["found"] == ["cid", "ann"]

    publish = seen["publish"]
    assert publish["failed"] == []
    for refused in ("no_pubsub", "no_pubsub_in_bulk"):
        assert publish[refused][:2] == ["INVALID_ARGUMENT", "DAPR_PUBSUB_NOT_FOUND"]
    assert publish["no_topic"][:2] == ["INVALID_ARGUMENT", "DAPR_PUBSUB_TOPIC_NAME_EMPTY"]

    streams = seen["streams"]
    topic, kind = f"streamed-{way}", "application/json"
    assert streams["got"] == [[number, topic, "pubsub", kind] for number in (0, 0, 1)]
    assert streams["letter"] == "dropped"
    assert streams["handled"] == ["one", "two"]

    assert seen["secrets"]["one"] == seen["secrets"]["of_all"] == {"SHOP_SECRET": "s3cret"}
    assert seen["secrets"]["no_store"][0] == "INVALID_ARGUMENT"
    assert seen["configuration"]["got"] == {"colour": "red"}
    if way == "blocking":
        assert seen["configuration"]["told"] == {"colour": [True, "blue"], "size": [True, "7"]}
        assert (seen["configuration"]["ended"], seen["configuration"]["ended_unknown"]) == (True, False)
    assert seen["locks"]["held"] == [True, False, True, True]
    assert seen["locks"]["unlocked"] == ["lock_belongs_to_others", "success", "lock_does_not_exist"]
    assert (seen["crypto"]["back"], seen["crypto"]["hidden"]) == (True, True)
    assert seen["crypto"]["changed"][0] == seen["crypto"]["no_key"][0] == "INTERNAL"
    assert "failed to decrypt segment" in seen["crypto"]["changed"][1]
    conversation = seen["conversation"]
    assert conversation["first"] == ["c1", "call <PHONE_NUMBER>", 4]
    assert conversation["call"] == ["0", "weather", "city"]
    assert (conversation["usage"], conversation["finish"]) == (10, "tool_calls")
    assert conversation["back"] == "Tool Response for tool ID '0' with name 'weather': yes"
    assert conversation["no_model"][0] == "INVALID_ARGUMENT"
    assert (seen["metadata"]["id"], seen["metadata"]["team"]) == (way, "shop")
    type_, capabilities = seen["metadata"]["components"]["statestore"]
    assert type_ == "state.mesh"
    assert {"ETAG", "TRANSACTIONAL"} <= set(capabilities)

    invoke = seen["invoke"]
    for protocol in ("http", "grpc"):
        assert invoke[protocol] == ["hello there", "text/x-greeting"]
        assert invoke[f"{protocol}_header"] == ["text/plain"]
    assert invoke["grpc_nobody"][0] == "INTERNAL"
    for refused in (invoke["grpc_nobody"][1], invoke["http_nobody"]):
        assert "failed to invoke, id: nobody" in refused
    assert (invoke["grpc_unknown"][0], invoke["grpc_broken"][0]) == ("UNIMPLEMENTED", "UNKNOWN")
    assert seen["proxied"] == {
        "greet": "hello world",
        "count": ["0", "1", "2"],
        "join": "ab",
        "upper": ["X", "Y"],
        "refuse": ["FAILED_PRECONDITION", "the shop is closed", "closed"],
    }


def check_recorded(way: str, recorded: list[dict[str, Any]]) -> None:
    events = [each for each in recorded if way in json.dumps(each["data"])]
    kinds = Counter(kind for kind, _ in {(each["kind"], each["id"]) for each in events})
    assert kinds == {"order": 3, "important": 1, "other kind": 1, "legacy": 1, "dead": 1, "many": 2}
    order = next(each for each in events if each["data"] == {"way": way})
    assert (order["type"], order["topic"], order["source"]) == ("com.dapr.event.sent", "orders", way)
    assert len([each for each in events if each["data"] == {"way": way, "fail": 1}]) >= 2, "delivered again"
    assert {each["data"] for each in events if each["kind"] in ("legacy", "dead")} == {f"old of {way}"}
    assert {each["data"] for each in events if each["kind"] == "many"} == {f"many {n} of {way}" for n in (1, 2)}


async def test_web_extensions(mesh_home: Path) -> None:
    """What the extensions for FastAPI and Flask subscribe to arrives."""
    needs(PYTHON)
    ports = {"fastapi": free_port(), "flask": free_port()}
    arguments = ("--resources-path", str(resources(mesh_home)))
    gateways = [GatewayProcess(name, mesh_home, app=port, arguments=arguments) for name, port in ports.items()]
    environ = {"FASTAPI_PORT": ports["fastapi"], "FLASK_PORT": ports["flask"]}
    async with asyncio.TaskGroup() as tasks:
        program = tasks.create_task(run(str(PYTHON), "python_web.py", environ=environ))
        async with gateways[0], gateways[1], aiohttp.ClientSession() as session:
            for topic in ("plain", "routed"):
                async with session.post(f"{gateways[0].api}/publish/pubsub/{topic}", json={"of": topic}) as response:
                    assert response.status == 204
            seen = await program
    assert seen["fastapi"] == seen["flask"] == {"plain": {"of": "plain"}, "routed": {"of": "routed"}}


def test_quickstart(mesh_home: Path) -> None:
    """Applications that are written for ``dapr run`` run with ``mesh`` in its place, and find their gateways."""
    needs(PYTHON)
    home = MeshHome(mesh_home)
    path = f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"
    folder, port, shared = HERE / "quickstart", str(free_port()), ("--resources-path", str(resources(mesh_home)))
    receiver = ("--app-id", "receiver", "--app-port", port, "--app-protocol", "grpc", *shared, "--")
    with home.run(*receiver, "python3", "receiver.py", environ={"PATH": path}, cwd=folder) as receiving:
        receiving.until("You're up and running!")
        environ = {"PATH": path, "DAPR_GRPC_ENDPOINT": "http://nobody.invalid:1"}
        with home.run("-f", "dapr.yaml", *shared, environ=environ, cwd=folder) as sending:
            sending.until(r"== APP - sender == sent order 7, and was told hello sender$")
            told = sending.until(r"== APP - sender == by (\d+) (\S+)$")
            assert sending.wait() == 0
        assert told[2] == f"http://127.0.0.1:{told[1]}"
        receiving.until("^== APP - receiver == got order 7$")


async def test_jobs(mesh_home: Path) -> None:
    """Both clients schedule, read and delete; the application's handlers are told, again where one failed."""
    needs(PYTHON)
    app_port, grpc_port = free_port(), free_port()
    arguments = ("--app-protocol", "grpc", "--dapr-grpc-port", str(grpc_port))
    async with (
        Program(mesh_home, str(PYTHON), str(HERE / "python_jobs_app.py"), environ={"APP_PORT": app_port}),
        GatewayProcess("python", mesh_home, app=app_port, arguments=arguments) as gateway,
    ):
        to = {"DAPR_HTTP_PORT": gateway.port, "DAPR_GRPC_PORT": grpc_port, "DAPR_HEALTH_TIMEOUT": 60}
        names = ("again", "again", "once")
        for count, (way, name) in enumerate(zip(WAYS, names[1:], strict=True), 2):
            seen = await run(str(PYTHON), "python_jobs.py", way, name, environ=to)
            assert seen["again"][0] == "ALREADY_EXISTS"
            times = {"schedule": "@every 24h", "repeats": 3, "due_time": "24h", "ttl": "240h"}
            policy = ["ConstantFailurePolicy", 2, 1]
            assert seen["got"] == {"name": f"later-{way}", **times, "data": '{"n": 1}', "policy": policy}
            assert seen["dropped"]["policy"][0] == "DropFailurePolicy"
            assert seen["gone"][0] == "INTERNAL"
            told = [(each["kind"], each["data"]) for each in await until_recorded(gateway, count)]
            assert told == [(each, '{"n": 1}') for each in names[:count]]
