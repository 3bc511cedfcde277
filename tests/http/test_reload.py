"""Resource files that are changed while a gateway runs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.http.harness import App, Backbone, Node, component, gateway, yaml
from tests.http.workflow_app import Worker
from tests.support.eventually import eventually


class Files:
    """A folder of resources; each file is replaced as an editor does it, by a rename."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def write(self, **files: str) -> None:
        for name, text in files.items():
            draft = self.directory / f"{name}.yaml.new"
            draft.write_text(text)
            draft.replace(self.directory / f"{name}.yaml")

    def remove(self, name: str) -> None:
        (self.directory / f"{name}.yaml").unlink()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "resources")


@asynccontextmanager
async def running(files: Files, backbone: Backbone, tmp_path: Path, **settings: Any) -> AsyncIterator[Node]:
    async with gateway(backbone, tmp_path, resource_paths=(files.directory,), **settings) as node:
        yield node


async def names(node: Node) -> dict[str, str]:
    reply = await node.get("/v1.0/metadata")
    return {each["name"]: each["type"] for each in reply.json.get("components", ())}


async def until_named(node: Node, **expected: str) -> None:
    async def check() -> None:
        assert await names(node) == expected

    await eventually(check)


async def save(node: Node, store: str, value: object) -> int:
    return (await node.post(f"/v1.0/state/{store}", [{"key": "k", "value": value}], "application/json")).status


async def read(node: Node, store: str) -> bytes:
    return (await node.get(f"/v1.0/state/{store}/k")).body


async def until_read(node: Node, store: str, value: bytes) -> None:
    async def check() -> None:
        assert await read(node, store) == value

    await eventually(check)


def until_logged(caplog: pytest.LogCaptureFixture, *texts: str) -> Any:
    def check() -> None:
        lines = [record.getMessage() for record in caplog.records]
        assert any(all(text in line for text in texts) for line in lines), lines

    return eventually(check)


def sqlite(name: str, file: Path, **more: Any) -> str:
    return component(name, "state.sqlite", connectionString=str(file), **more)


MEMORY = "state.in-memory"


async def test_components_come_change_and_go(files: Files, memory: Backbone, tmp_path: Path) -> None:
    """What no change concerns is the same as before: a store in memory keeps what it holds."""
    files.write(kept=component("kept", MEMORY), a=sqlite("a", tmp_path / "one.db"))
    async with running(files, memory, tmp_path) as node:
        assert await save(node, "kept", "kept") == 204
        assert await save(node, "a", "one") == 204
        assert await save(node, "b", "none") == 400
        files.write(b=component("b", MEMORY))
        await until_named(node, kept=MEMORY, a="state.sqlite", b=MEMORY)
        assert await save(node, "b", "b") == 204
        files.write(a=sqlite("a", tmp_path / "two.db"))
        await until_read(node, "a", b"")
        assert await save(node, "a", "two") == 204
        files.write(a=sqlite("a", tmp_path / "one.db"))
        await until_read(node, "a", b'"one"')
        files.remove("b")
        await until_named(node, kept=MEMORY, a="state.sqlite")
        assert await save(node, "b", "none") == 400
        # Documents that move within a file, to another one, or are touched, are no change.
        (files.directory / "kept.yaml").touch()
        files.write(kept="# moved\n\n" + component("other", MEMORY) + component("kept", MEMORY))
        await until_named(node, kept=MEMORY, a="state.sqlite", other=MEMORY)
        assert await read(node, "kept") == b'"kept"'


@pytest.mark.costly
async def test_a_bad_file_keeps_what_it_held(
    files: Files, memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Why is said once, with file and line; other files count meanwhile."""
    caplog.set_level(logging.INFO)
    files.write(a=component("a", MEMORY))
    async with running(files, memory, tmp_path) as node:
        assert await save(node, "a", 1) == 204
        files.write(a=component("a", MEMORY) + "\nspec: {")
        await until_logged(caplog, "resources are kept as they were: ", "a.yaml:")
        files.write(b=component("b", MEMORY))
        await until_named(node, a=MEMORY, b=MEMORY)
        assert await read(node, "a") == b"1"
        files.write(a=component("a", MEMORY))
        await until_logged(caplog, "all resources are as their files say")
        assert await read(node, "a") == b"1"
        told = [record.getMessage() for record in caplog.records if "kept as they were" in record.getMessage()]
        assert len(told) == 1


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (component("a", "state.nothing"), "there is no component type 'state.nothing'"),
        (component("a", "nameresolution.mdns"), "no components of the kind 'nameresolution'"),
        (component("a", "state.sqlite"), "the setting connectionString is missing"),
        (component("a", "state.sqlite", connectionString="/dev/null/x.db"), "component a: "),
        (component("a", MEMORY, keyPrfix="x"), "did you mean 'keyPrefix'"),
        (component("a", MEMORY) + component("a", MEMORY), "a Component named 'a' stands already in"),
    ],
)
@pytest.mark.costly
async def test_a_bad_component_keeps_the_one_before(
    bad: str, why: str, files: Files, memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files.write(a=component("a", MEMORY))
    async with running(files, memory, tmp_path) as node:
        assert await save(node, "a", 1) == 204
        files.write(a=bad)
        await until_logged(caplog, "resources are kept as they were: ", f"{files.directory}/a.yaml:", why)
        assert await read(node, "a") == b"1"
        assert await names(node) == {"a": MEMORY}


async def test_scopes(files: Files, memory: Backbone, tmp_path: Path) -> None:
    files.write(a=component("a", MEMORY, scopes=["other"]), b=component("b", MEMORY))
    async with running(files, memory, tmp_path) as node:
        assert await names(node) == {"b": MEMORY}
        files.write(a=component("a", MEMORY, scopes=["other", "app"]))
        await until_named(node, a=MEMORY, b=MEMORY)
        files.write(a=component("a", MEMORY, scopes=["other"]))
        await until_named(node, b=MEMORY)


async def test_what_is_withheld_is_no_other_nodes(
    files: Files, nats: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From the change on until the name stands in no file, also while it cannot be opened."""

    async def until_saved(status: int) -> None:
        async def check() -> None:
            assert await save(node, "a", 1) == status

        await eventually(check)

    files.write(b=component("b", MEMORY))
    hosted = component("a", "state.mesh")
    async with (
        gateway(nats, tmp_path, app_id="host", resources=hosted),
        running(files, nats, tmp_path) as node,
    ):
        assert await save(node, "a", 1) == 204
        files.write(a=component("a", MEMORY, scopes=["other"]))
        await until_saved(400)
        files.write(a=sqlite("a", Path("/dev/null/x.db"), scopes=["app"]))
        await until_logged(caplog, "resources are kept as they were: ", "component a: ")
        assert await save(node, "a", 1) == 400
        files.remove("a")
        await until_saved(204)


@pytest.mark.costly
async def test_without_any_component_the_built_in_ones_are_there(
    files: Files, memory: Backbone, tmp_path: Path
) -> None:
    """As at start."""
    async with running(files, memory, tmp_path) as node:
        built_in = await names(node)
        assert set(built_in) == {"pubsub", "statestore"}
        files.write(a=component("a", MEMORY))
        await until_named(node, a=MEMORY)
        files.remove("a")
        await until_named(node, **built_in)


async def test_a_secret_is_read_when_the_component_is_opened(files: Files, memory: Backbone, tmp_path: Path) -> None:
    """One that changes in its store is no change of the component; the next change of its file reads it."""
    secrets = tmp_path / "secrets.json"
    secrets.write_text(json.dumps({"file": str(tmp_path / "one.db")}))
    vault = component("vault", "secretstores.local.file", secretsFile=str(secrets))

    def store(**more: str) -> str:
        metadata = [
            {"name": "connectionString", "secretKeyRef": {"name": "file"}},
            *({"name": name, "value": value} for name, value in more.items()),
        ]
        document = {
            "apiVersion": "dapr.io/v1alpha1",
            "kind": "Component",
            "metadata": {"name": "a"},
            "spec": {"type": "state.sqlite", "version": "v1", "metadata": metadata},
            "auth": {"secretStore": "vault"},
        }
        return json.dumps(document)

    files.write(vault=vault, a=store())
    async with running(files, memory, tmp_path) as node:
        assert await save(node, "a", "one") == 204
        secrets.write_text(json.dumps({"file": str(tmp_path / "two.db")}))
        files.write(b=component("b", MEMORY))
        await until_named(node, vault="secretstores.local.file", a="state.sqlite", b=MEMORY)
        assert await read(node, "a") == b'"one"'
        # The secret store is another one, and the component as well: it is resolved with the new store.
        third = tmp_path / "third.json"
        third.write_text(json.dumps({"file": str(tmp_path / "three.db")}))
        vault = component("vault", "secretstores.local.file", secretsFile=str(third))
        files.write(all=vault + "---\n" + store(keyPrefix="none"), a="", vault="")
        await until_read(node, "a", b"")
        assert await save(node, "a", "three") == 204
        assert (tmp_path / "three.db").exists()


@pytest.mark.costly
async def test_folders_as_a_cluster_mounts_them(memory: Backbone, tmp_path: Path) -> None:
    """Links to files below a link that is swapped; a folder that goes and comes back."""
    mount = tmp_path / "mount"

    def publish(number: int, **contents: str) -> None:
        version = mount / f"..{number}"
        version.mkdir(parents=True)
        for name, text in contents.items():
            (version / f"{name}.yaml").write_text(text)
        draft = mount / "..data_tmp"
        draft.symlink_to(version.name)
        draft.replace(mount / "..data")
        for name in contents:
            link = mount / f"{name}.yaml"
            if not link.is_symlink():
                link.symlink_to(Path("..data") / f"{name}.yaml")

    publish(1, a=component("a", MEMORY))
    async with gateway(memory, tmp_path, resource_paths=(mount,)) as node:
        assert await names(node) == {"a": MEMORY}
        publish(2, a=sqlite("a", tmp_path / "one.db"))
        await until_named(node, a="state.sqlite")
        publish(3, a=component("a", MEMORY), b=component("b", MEMORY))
        await until_named(node, a=MEMORY, b=MEMORY)
        assert await save(node, "a", 1) == 204
        shutil.rmtree(mount)
        publish(4, a=component("a", MEMORY), c=component("c", MEMORY))
        await until_named(node, a=MEMORY, c=MEMORY)
        assert await read(node, "a") == b"1"


async def test_a_folder_that_is_gone_changes_nothing(
    files: Files, memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files.write(a=component("a", MEMORY))
    async with running(files, memory, tmp_path) as node:
        shutil.rmtree(files.directory)
        await until_logged(caplog, "kept as they were", f"{files.directory}: there is no such file or directory")
        assert await names(node) == {"a": MEMORY}


async def test_it_can_be_switched_off(files: Files, memory: Backbone, tmp_path: Path) -> None:
    """By the feature ``HotReload``, which is on without a word."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml("Configuration", "c", {"features": [{"name": "HotReload", "enabled": False}]}))
    files.write(a=component("a", MEMORY))
    async with (
        running(files, memory, tmp_path) as on,
        running(files, memory, tmp_path, app_id="off", configuration_files=(config,)) as off,
    ):
        assert (await on.get("/v1.0/metadata")).json["enabledFeatures"] == ["HotReload"]
        assert "enabledFeatures" not in (await off.get("/v1.0/metadata")).json
        files.write(b=component("b", MEMORY))
        await until_named(on, a=MEMORY, b=MEMORY)
        assert await names(off) == {"a": MEMORY}


async def test_configuration(files: Files, memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Scopes of secrets count at once; what needs a restart is said."""
    secrets = tmp_path / "secrets.json"
    secrets.write_text('{"a": "1"}')
    files.write(vault=component("vault", "secretstores.local.file", secretsFile=str(secrets)))
    config = tmp_path / "config.yaml"
    config.write_text(yaml("Configuration", "c", {}))

    async def until(status: int) -> None:
        async def check() -> None:
            assert (await node.get("/v1.0/secrets/vault/a")).status == status

        await eventually(check)

    async with running(files, memory, tmp_path, configuration_files=(config,)) as node:
        await until(200)
        denied = {"secrets": {"scopes": [{"storeName": "vault", "defaultAccess": "deny"}]}}
        config.write_text(yaml("Configuration", "c", denied))
        await until(403)
        config.write_text("kind: [")
        await until_logged(caplog, "resources are kept as they were", "config.yaml:1")
        await until(403)
        config.write_text(yaml("Configuration", "c", {"api": {"denied": [{"name": "secrets", "version": "v1"}]}}))
        await until_logged(caplog, f"{config}:2", "spec.api needs a restart to change")
        await until(200)


async def test_a_configuration_among_the_resources_is_told_once(
    files: Files, memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files.write(config=yaml("Configuration", "c", {}))
    config = files.directory / "config.yaml"
    async with running(files, memory, tmp_path, configuration_files=(config,)):
        files.write(config="kind: [")
        await until_logged(caplog, "resources are kept as they were", "config.yaml:1")
    [told] = [line for line in map(logging.LogRecord.getMessage, caplog.records) if "kept as they were" in line]
    assert told.count("config.yaml:1") == 1


SUBSCRIPTION = {"pubsubname": "pubsub", "topic": "orders", "routes": {"default": "/one"}}


def subscription(name: str = "s", **changed: Any) -> str:
    return yaml("Subscription", name, SUBSCRIPTION | changed, version="v2alpha1")


@pytest.mark.costly
async def test_subscriptions_come_change_and_go(files: Files, backbone: Backbone, tmp_path: Path) -> None:
    """No event is lost meanwhile, and those of other topics are not disturbed."""
    async with App() as app, running(files, backbone, tmp_path, app=app) as node:
        published = 0
        stopping = asyncio.Event()

        async def publish() -> None:
            nonlocal published
            while not stopping.is_set():
                await node.publish("orders", str(published), "text/plain")
                published += 1

        def bodies(*paths: str) -> set[str]:
            return {got.json["data"] for path in paths for got in app.at(path)}

        files.write(s=subscription())
        await eventually(lambda: _subscribed(node, "orders", "/one"))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publish())
            await app.until("/one", 5)
            files.write(s=subscription(routes={"default": "/two"}))
            await app.until("/two", 5)
            files.write(s=subscription(routes={"default": "/two"}), more=subscription("t", topic="more"))
            await eventually(lambda: _subscribed(node, "more", "/one"))
            files.write(s=subscription(routes={"default": "/three"}, deadLetterTopic="dead"))
            await app.until("/three", 5)
            stopping.set()

        def all_there() -> None:
            assert bodies("/one", "/two", "/three") == {str(each) for each in range(published)}

        await eventually(all_there)
        files.remove("s")
        await eventually(lambda: _subscribed(node, "more", "/one", alone=True))


async def _subscribed(node: Node, topic: str, path: str, *, alone: bool = False) -> None:
    told = (await node.get("/v1.0/metadata")).json.get("subscriptions", [])
    found = [each for each in told if each["topic"] == topic]
    assert found, told
    assert found[0]["rules"] == [{"path": path}]
    assert not alone or len(told) == 1


@pytest.mark.costly
async def test_a_broadcast_subscription_misses_nothing(files: Files, nats: Backbone, tmp_path: Path) -> None:
    """Nothing keeps its events: the new one begins before the old one ends, and some may come twice."""
    wide = {"metadata": {"delivery": "broadcast"}}
    files.write(s=subscription(**wide))
    async with App() as app, running(files, nats, tmp_path, app=app) as node:
        published = 0
        for path in ("/two", "/three"):
            files.write(s=subscription(routes={"default": path}, **wide))
            while not app.at(path):
                await node.publish("orders", str(published), "text/plain")
                published += 1

        def all_there() -> None:
            assert {got.json["data"] for got in app.got} == {str(each) for each in range(published)}

        await eventually(all_there)


async def test_a_pubsub_component_is_replaced(files: Files, nats: Backbone, tmp_path: Path) -> None:
    """Its subscriptions go over to the new one: nothing that was published is lost."""
    files.write(p=component("pubsub", "pubsub.mesh"), s=subscription())
    async with App() as app, running(files, nats, tmp_path, app=app) as node:
        published: list[str] = []
        for number in range(3):
            files.write(p=component("pubsub", "pubsub.mesh", allowedTopics=f"orders,t{number}"))

            async def allowed(number: int = number) -> None:
                published.append(str(len(published)))
                await node.publish("orders", published[-1], "text/plain")
                reply = await node.post(f"/v1.0/publish/pubsub/t{number}", b"", "text/plain")
                assert reply.status == 204

            await eventually(allowed)

        def all_there() -> None:
            assert {got.json["data"] for got in app.at("/one")} == set(published)

        await eventually(all_there)
        files.remove("p")
        files.write(other=component("other", MEMORY))
        await until_named(node, other=MEMORY)
        await eventually(lambda: _none_subscribed(node))


async def test_the_pubsub_component_of_an_outbox_is_replaced(
    files: Files, nats: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What transactions wrote meanwhile is published, and nobody holds on to the old one."""
    settings = {"outboxPublishPubsub": "pubsub", "outboxPublishTopic": "orders"}
    files.write(p=component("pubsub", "pubsub.mesh"), s=subscription(), t=component("store", "state.mesh", **settings))
    async with App() as app, running(files, nats, tmp_path, app=app) as node:
        written: list[int] = []
        for number in range(3):
            topics = f"orders,{nats.namespace}appordersoutbox,t{number}"
            files.write(p=component("pubsub", "pubsub.mesh", allowedTopics=topics))

            async def allowed(number: int = number) -> None:
                value = len(written)
                request = {"key": f"k{value}", "value": value}
                body = {"operations": [{"operation": "upsert", "request": request}]}
                assert (await node.post("/v1.0/state/store/transaction", body)).status == 204
                written.append(value)
                assert (await node.post(f"/v1.0/publish/pubsub/t{number}", b"", "text/plain")).status == 204

            await eventually(allowed)

        def all_there() -> None:
            assert {got.json["data"] for got in app.at("/one")} == set(written)

        await eventually(all_there)
    assert not [record for record in caplog.records if "still use it" in record.getMessage()]


async def _none_subscribed(node: Node) -> None:
    assert "subscriptions" not in (await node.get("/v1.0/metadata")).json


def resiliency(retries: int = 0, **targets: Any) -> str:
    spec = {
        "policies": {
            "retries": {"some": {"policy": "constant", "duration": "1ms", "maxRetries": retries}},
            "circuitBreakers": {"b": {"maxRequests": 1, "timeout": "60s", "trip": "consecutiveFailures >= 2"}},
        },
        "targets": {"apps": targets},
    }
    return yaml("Resiliency", "r", spec)


@pytest.mark.costly
async def test_policies_apply_to_what_is_asked_from_then_on(files: Files, memory: Backbone, tmp_path: Path) -> None:
    """A circuit breaker whose policy is the same stays open, also when another policy of its target changes."""
    files.write(
        r=resiliency(app={"circuitBreaker": "b"}), e=yaml("HTTPEndpoint", "svc", {"baseUrl": "http://127.0.0.1:9"})
    )
    async with App() as app, running(files, memory, tmp_path) as node:
        files.write(e=yaml("HTTPEndpoint", "svc", {"baseUrl": f"http://127.0.0.1:{app.port}"}))
        app.answer("/x", 500)

        async def asked() -> int:
            before = len(app.at("/x"))
            await node.get("/v1.0/invoke/svc/method/x")
            return len(app.at("/x")) - before

        async def attempts(count: int) -> None:
            async def check() -> None:
                assert await asked() == count

            await eventually(check)

        await attempts(1)
        files.write(r=resiliency(3, svc={"retry": "some"}))
        await attempts(4)
        files.write(r=resiliency(3, svc={"circuitBreaker": "b"}))
        await attempts(0)  # Two failures opened it.
        files.write(r=resiliency(1, svc={"circuitBreaker": "b", "retry": "some"}))
        files.write(a=component("a", MEMORY))
        await until_named(node, a=MEMORY)
        assert await asked() == 0
        files.remove("r")
        await attempts(1)


async def test_who_may_use_workflows_is_another_one_from_then_on(
    files: Files, memory: Backbone, tmp_path: Path
) -> None:
    """A policy that comes, changes or goes is told of, and rules from then on."""
    asked = "till", memory.namespace, "app", memory.namespace, "workflow", "schedule"
    async with running(files, memory, tmp_path) as node:
        rules = node.gateway._runtime.parts.workflow_access

        async def until(*names: str, order: bool, other: bool) -> None:
            async def check() -> None:
                told = (await node.get("/v1.0/metadata")).json.get("workflowAccessPolicies", [])
                assert [each["name"] for each in told] == list(names)
                assert rules.allows(*asked, "order") is order
                assert rules.allows(*asked, "other") is other

            await eventually(check)

        await until(order=True, other=True)
        workflows = [{"name": "ord*", "operations": ["schedule"]}]
        files.write(
            w=yaml("WorkflowAccessPolicy", "w", {"rules": [{"callers": [{"appID": "till"}], "workflows": workflows}]})
        )
        await until("w", order=True, other=False)
        files.write(w=yaml("WorkflowAccessPolicy", "w", {"rules": []}))
        await until("w", order=False, other=False)
        files.remove("w")
        await until(order=True, other=True)


async def test_what_an_application_says_wrongly_of_its_workflows_is_told_once(
    files: Files, memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Worker(workflowSettings={"turnTimeout": 5}) as app, running(files, memory, tmp_path, app=app) as node:
        await until_logged(caplog, "workflowSettings.turnTimeout must be a duration")
        files.write(s=subscription())
        await eventually(lambda: _subscribed(node, "orders", "/one"))
        files.write(s=subscription(routes={"default": "/two"}))
        await eventually(lambda: _subscribed(node, "orders", "/two"))
    told = [record for record in caplog.records if "turnTimeout" in record.getMessage()]
    assert len(told) == 1


async def test_the_breaker_of_a_subscription_that_changes_is_kept(
    files: Files, memory: Backbone, tmp_path: Path
) -> None:
    """Unless its own policy is another one."""

    def policy(failures: int) -> str:
        trips = {"b": {"maxRequests": 1, "timeout": "1h", "trip": f"consecutiveFailures >= {failures}"}}
        targets = {"components": {"pubsub": {"inbound": {"circuitBreaker": "b"}}}}
        return yaml("Resiliency", "r", {"policies": {"circuitBreakers": trips}, "targets": targets})

    async def breaker() -> str | None:
        told = (await node.get("/v1.0/metadata")).json.get("conditions", [])
        return next((each.get("breaker") for each in told if each["target"] == "event pubsub/orders"), None)

    async def opened() -> None:
        assert await breaker() == "open"

    files.write(r=policy(1), s=subscription())
    async with App() as app, running(files, memory, tmp_path, app=app) as node:
        app.answer("/one", 500)
        await eventually(lambda: _subscribed(node, "orders", "/one"))
        await node.publish("orders", "1", "text/plain")
        await eventually(opened)
        files.write(s=subscription(routes={"default": "/two"}))
        await eventually(lambda: _subscribed(node, "orders", "/two"))
        files.write(s=subscription(routes={"default": "/two"}), more=subscription("t", topic="more"))
        await eventually(lambda: _subscribed(node, "more", "/one"))
        await opened()
        assert app.at("/two") == []
        files.write(r=policy(2))
        await app.until("/two", 1)
        assert await breaker() is None


async def test_endpoints_come_change_and_go(files: Files, memory: Backbone, tmp_path: Path) -> None:
    """A call in flight gets its answer from the one that it went to."""
    async with App() as one, App() as two, running(files, memory, tmp_path) as node:
        one.answer("/who", body=b"one")
        two.answer("/who", body=b"two")
        held, reached = asyncio.Event(), asyncio.Event()

        async def slow(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"begun,")
            reached.set()
            await held.wait()
            await response.write(b"ended")
            return response

        one.streams["/slow"] = slow

        async def until(status: int, body: bytes) -> None:
            async def check() -> None:
                reply = await node.get("/v1.0/invoke/svc/method/who")
                assert (reply.status, body in reply.body) == (status, True)

            await eventually(check)

        def to(app: App) -> str:
            return yaml("HTTPEndpoint", "svc", {"baseUrl": f"http://127.0.0.1:{app.port}"})

        files.write(e=to(one))
        await until(200, b"one")
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(node.get("/v1.0/invoke/svc/method/slow"))
            await reached.wait()
            files.write(e=to(two))
            await until(200, b"two")
            held.set()
        assert asking.result().body == b"begun,ended"
        files.remove("e")
        await until(500, b"ERR_DIRECT_INVOKE")
        assert (await node.get("/v1.0/metadata")).json.get("httpEndpoints") is None


@pytest.mark.costly
async def test_a_half_written_file_is_waited_for(
    files: Files, memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is read when it is the same for two looks."""
    files.write(a=component("a", MEMORY))
    async with running(files, memory, tmp_path) as node:
        assert await save(node, "a", 1) == 204
        text = component("a", MEMORY) + "---\n" + component("b", MEMORY)
        with (files.directory / "a.yaml").open("w") as out:
            for character in text:
                out.write(character)
                out.flush()
                os.fsync(out.fileno())
                await asyncio.sleep(0.01)  # A slow writer; nothing is waited for.
        await until_named(node, a=MEMORY, b=MEMORY)
        assert await read(node, "a") == b"1"
        assert not [record for record in caplog.records if "kept as they were" in record.getMessage()]


@pytest.mark.costly
async def test_a_client_may_stay_connected(files: Files, memory: Backbone, tmp_path: Path) -> None:
    """Requests under way when a component is replaced, one after the other on one connection: none fails."""
    files.write(a=sqlite("a", tmp_path / "one.db"))
    async with running(files, memory, tmp_path) as node:
        failed: list[int] = []
        replaced = 0
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{node.gateway.port}/v1.0/state/a"
            while replaced < 3:
                for _ in range(20):
                    async with session.post(url, json=[{"key": "k", "value": replaced}]) as response:
                        failed += [response.status] if response.status != 204 else []
                database = tmp_path / f"{replaced}.db"
                if replaced == 0 or (tmp_path / f"{replaced - 1}.db").exists():
                    files.write(a=sqlite("a", database))
                    replaced += 1
        assert not failed


async def test_a_configuration_that_is_followed(
    files: Files, memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A subscription goes on at what takes the component's place, and when it is back."""
    caplog.set_level(logging.INFO)
    conf = "configuration.mesh"
    files.write(conf=component("conf", conf))
    async with App() as app, running(files, memory, tmp_path, app=app) as node:

        async def change(value: str) -> None:
            reply = await node.request("PUT", "/v1.0/mesh/configuration/conf/a", None, value)
            assert reply.status == 204, reply

        assert (await node.get("/v1.0/configuration/conf/subscribe?key=a")).status == 200
        await change("1")
        await app.until("/configuration/conf/a", 1)
        files.write(conf=component("conf", conf, scopes=["app"]))
        await until_logged(caplog, "Component conf changed")
        await change("2")
        await app.until("/configuration/conf/a", 2)
        files.remove("conf")
        await until_logged(caplog, "configuration conf: changes are not followed now")
        files.write(conf=component("conf", conf), other=component("other", conf))
        await until_named(node, conf=conf, other=conf)
        await change("3")
        got = await app.until("/configuration/conf/a", 3)
        assert [each.json["items"]["a"]["value"] for each in got] == ["1", "2", "3"]
        assert "still use it" not in caplog.text


async def test_what_editors_leave_beside_a_file_is_nothing(
    files: Files, memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A lock that is a link to nowhere, swap files, backups."""
    files.write(a=component("a", MEMORY))
    async with running(files, memory, tmp_path) as node:
        (files.directory / ".#a.yaml").symlink_to("somebody@somewhere.1234:5678")
        for name in (".a.yaml.swp", "a.yaml~", "#a.yaml#", "4913", "a.yaml.bak"):
            (files.directory / name).write_bytes(b"\x00\xff")
        files.write(b=component("b", MEMORY))
        await until_named(node, a=MEMORY, b=MEMORY)
        assert not [record for record in caplog.records if "kept as they were" in record.getMessage()]


async def test_a_name_may_become_anothers(files: Files, memory: Backbone, tmp_path: Path) -> None:
    """A state store, then a secret store, then a service outside of the mesh."""
    files.write(a=component("a", MEMORY), b=component("b", MEMORY))
    async with App() as app, running(files, memory, tmp_path) as node:
        assert await save(node, "a", 1) == 204
        files.write(a=component("a", "secretstores.local.env"))
        await until_named(node, a="secretstores.local.env", b=MEMORY)
        assert await save(node, "a", 1) == 400
        assert (await node.get("/v1.0/secrets/a/PATH")).status == 200
        files.write(a=yaml("HTTPEndpoint", "a", {"baseUrl": f"http://127.0.0.1:{app.port}"}))
        await until_named(node, b=MEMORY)
        assert (await node.get("/v1.0/secrets/a/PATH")).status != 200
        assert (await node.get("/v1.0/invoke/a/method/x")).status == 200


async def test_what_was_left_out_is_opened_once_it_is_mended(files: Files, memory: Backbone, tmp_path: Path) -> None:
    """Until then metadata and ``conditions`` say why it is absent."""

    def spared(file: str) -> str:
        metadata = [{"name": "connectionString", "value": file}]
        return yaml(
            "Component", "a", {"type": "state.sqlite", "version": "v1", "ignoreErrors": True, "metadata": metadata}
        )

    files.write(a=spared("/dev/null/x.db"), b=component("b", MEMORY))
    async with running(files, memory, tmp_path) as node:
        told = (await node.get("/v1.0/metadata")).json
        [absent] = [each for each in told["componentStatus"] if each["name"] == "a"]
        assert absent["health"] == "absent"
        assert told["conditions"] == [{"target": "component a", "state": f"absent: {absent['reason']}"}]
        files.write(a=spared(str(tmp_path / "x.db")))
        await until_named(node, a="state.sqlite", b=MEMORY)
        assert await save(node, "a", 1) == 204
        told = (await node.get("/v1.0/metadata")).json
        assert {each["name"]: each["health"] for each in told["componentStatus"]} == {"a": "ok", "b": "ok"}
        assert "conditions" not in told


async def test_healthz_is_ready_whatever_changes(files: Files, memory: Backbone, tmp_path: Path) -> None:
    files.write(a=component("a", MEMORY))
    async with running(files, memory, tmp_path) as node:
        for text in ("kind: [", component("a", "state.nothing"), component("b", MEMORY), ""):
            files.write(a=text)
            for path in ("/v1.0/healthz", "/v1.0/healthz/outbound") * 20:
                assert (await node.get(path)).status == 204
        await eventually(lambda: _built_in(node))


async def _built_in(node: Node) -> None:
    assert set(await names(node)) == {"pubsub", "statestore"}


@pytest.mark.costly
async def test_what_was_away_is_tried_again(files: Files, memory: Backbone, tmp_path: Path) -> None:
    """Without another change of a file; here a folder takes the time of a server to come."""
    folder = tmp_path / "data"
    folder.write_text("in the way")
    files.write(b=component("b", MEMORY))
    async with running(files, memory, tmp_path) as node:
        files.write(a=sqlite("a", folder / "x.db"))

        async def is_absent() -> None:
            told = (await node.get("/v1.0/metadata")).json["componentStatus"]
            assert {each["name"]: each["health"] for each in told} == {"a": "absent", "b": "ok"}

        await eventually(is_absent)
        folder.unlink()
        await until_named(node, a="state.sqlite", b=MEMORY)
        assert await save(node, "a", 1) == 204
