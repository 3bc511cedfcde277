"""The gateway about itself over gRPC, and what a Configuration leaves of the API."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.json_format import MessageToDict

from gateway.config import GatewayConfig, HealthCheck
from gateway.process import run
from tests.grpc.harness import Client, client, refused
from tests.http.harness import ANY, DEFAULTS, App, Backbone, component, gateway, yaml
from tests.support.eventually import eventually
from tests.support.processes import free_port


async def test_metadata(memory: Backbone, tmp_path: Path) -> None:
    """Every member is that of HTTP; rules stand in a message of their own, and what is ours alone is not there."""
    rules = {"rules": [{"match": "event.type == 'a'", "path": "/a"}], "default": "/t"}
    subscriptions = [
        {"pubsubname": "pubsub", "topic": "t", "routes": rules, "metadata": {"k": "v"}, "deadLetterTopic": "d"}
    ]
    resources = (
        DEFAULTS
        + yaml("Subscription", "s", {"pubsubname": "pubsub", "topic": "w", "route": "/w"})
        + yaml("HTTPEndpoint", "partner", {"baseUrl": "http://localhost:1"})
        + yaml("Resiliency", "res", {"policies": {}, "targets": {}})
    )
    health = HealthCheck(path="/hz", interval=0.05, timeout=2.0, threshold=2)
    settings = {"app_max_concurrency": 4, "app_health": health, "labels": {"cliPID": "7"}}
    async with (
        App(subscriptions) as app,
        gateway(memory, tmp_path, app=app, resources=resources, **settings) as node,
        client(node) as called,
    ):
        assert await called.call("SetMetadata", key="färbe", value="blau") == {}
        found = await called.message("GetMetadata")
        expected = (await node.get("/v1.0/metadata")).json
    del expected["componentStatus"]
    del expected["backlogs"]
    expected.pop("conditions", None)
    for each in expected["subscriptions"]:
        each["rules"] = {"rules": each["rules"]}
    assert expected["extended"]["färbe"] == "blau"
    # Proto-JSON leaves out what is empty, and names this member as other members are named.
    assert without_empty(MessageToDict(found)) == without_empty(expected)
    assert found.HasField("scheduler")
    assert found.HasField("workflows")
    assert {each.type for each in found.subscriptions} == {1, 2}


def without_empty(value: Any) -> Any:
    """Leave out whatever says nothing, wherever it is."""
    if isinstance(value, dict):
        members = {name: without_empty(each) for name, each in value.items()}
        return {name: each for name, each in members.items() if each not in (None, "", 0, False, [], {})}
    return [without_empty(each) for each in value] if isinstance(value, list) else value


async def test_too_many_labels(memory: Backbone, tmp_path: Path) -> None:
    async with gateway(memory, tmp_path) as node, client(node) as called:
        for number in range(100):
            await called.call("SetMetadata", key=f"label{number}", value="x")
        await called.call("SetMetadata", key="label0", value="y")
        told = await refused(called, "SetMetadata", key="one more", value="x")
        assert told == ("INVALID_ARGUMENT", "invalid request: more than 100 labels")
        extended = (await node.get("/v1.0/metadata")).json["extended"]
        assert (extended["label0"], "one more" in extended) == ("y", False)


STATE = ("GetState", {"store_name": "statestore", "key": "k"})
QUERY = ("QueryStateAlpha1", {"store_name": "local", "query": "{}"})
PUBLISH = ("PublishEvent", {"pubsub_name": "pubsub", "topic": "t"})
BULK = ("BulkPublishEvent", {"pubsub_name": "pubsub", "topic": "t"})
BULK_ALPHA = ("BulkPublishEventAlpha1", {"pubsub_name": "pubsub", "topic": "t"})
METADATA = ("GetMetadata", {})
LOCK = ("TryLockAlpha1", {"store_name": "l", "resource_id": "r", "lock_owner": "o", "expiry_in_seconds": 1})
UNLOCK = ("UnlockAlpha1", {"store_name": "l", "resource_id": "r", "lock_owner": "o"})
ALL = (STATE, QUERY, PUBLISH, BULK, BULK_ALPHA, METADATA, LOCK, UNLOCK)


def only(name: str, version: str = "v1", protocol: str = "") -> list[dict[str, str]]:
    return [{"name": name, "version": version, **({"protocol": protocol} if protocol else {})}]


@pytest.mark.parametrize(
    ("api", "closed"),
    [
        ({"allowed": only("state")}, (QUERY, PUBLISH, BULK, BULK_ALPHA, METADATA, LOCK, UNLOCK)),
        ({"allowed": only("state", "v1alpha1")}, (STATE, PUBLISH, BULK, BULK_ALPHA, METADATA, LOCK, UNLOCK)),
        ({"denied": only("state", "v1.0")}, (STATE,)),
        ({"denied": only("state", "v1.0-alpha1")}, (QUERY,)),
        ({"denied": only("publish", "v1alpha1")}, (BULK_ALPHA,)),
        ({"denied": only("publish", "v1", "grpc")}, (PUBLISH, BULK)),
        ({"denied": only("publish", "v1", "http")}, ()),
        ({"denied": only("lock", "v1alpha1")}, (LOCK,)),
        ({"denied": only("unlock", "v1alpha1") + only("metadata")}, (UNLOCK, METADATA)),
        ({"allowed": only("metadata", "v1", "http")}, ALL),
        ({"allowed": only("state") + only("publish"), "denied": only("state")},
         (STATE, QUERY, BULK_ALPHA, METADATA, LOCK, UNLOCK)),
    ],
)  # fmt: skip
async def test_spec_api(memory: Backbone, tmp_path: Path, api: object, closed: tuple[tuple[str, Any], ...]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml("Configuration", "c", {"api": api}))
    resources = DEFAULTS + component("local", "state.in-memory") + component("l", "lock.mesh")
    settings = {"resources": resources, "configuration_files": (file,)}
    async with gateway(memory, tmp_path, **settings) as node, client(node) as called:
        for method in ALL:
            name, fields = method
            if method in closed:
                code, text = await refused(called, name, **fields)
                assert (code, text.startswith("requested endpoint is not available")) == ("UNIMPLEMENTED", True), name
            else:
                await called.call(name, **fields)


QUICKLY = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.min_reconnect_backoff_ms", 50))


@pytest.mark.parametrize(("told", "code"), [("", 0), ("true", 1), ("no", 0)])
async def test_shutdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, code: int) -> None:
    """It answers first and ends then; a client that stays connected does not hold it up."""
    monkeypatch.setattr("gateway.process.configure_logging", lambda config: None)
    config = GatewayConfig(
        app_id="app", home=tmp_path, backbone="memory:", registered=False, drain=30.0, http_port=0,
        grpc_port=free_port(),
    )  # fmt: skip
    metadata = (("dapr-force-shutdown", told),) if told else ()
    async with (
        asyncio.TaskGroup() as tasks,
        grpc.aio.insecure_channel(f"127.0.0.1:{config.grpc_port}", options=QUICKLY) as channel,
    ):
        running = tasks.create_task(run(config))
        called = Client(channel)
        await channel.channel_ready()
        assert await called.call("Shutdown", metadata) == {}
        async with asyncio.timeout(30):
            assert await running == code


async def test_api_logging(memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line a call, without its message."""
    caplog.set_level(logging.INFO, "gateway.api")
    async with gateway(memory, tmp_path, api_logging=True) as node, client(node) as called:
        await called.call("GetState", store_name="statestore", key="k")
        await refused(called, "GetState", store_name="nope", key="k")

        def logged() -> list[Any]:
            found = [record.fields for record in caplog.records if record.name == "gateway.api"]  # type: ignore[attr-defined]
            assert len(found) == 2
            return found

        path = "/dapr.proto.runtime.v1.Dapr/GetState"
        for fields, code in zip(await eventually(logged), ("OK", "INVALID_ARGUMENT"), strict=True):
            assert fields == {"method": path, "code": code, "duration": ANY, "useragent": ANY}
