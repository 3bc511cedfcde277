"""``mesh doctor`` beside real servers: what is broken there, and the step that it names."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import nats
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from gateway.cli import main
from gateway.cli.check import check
from gateway.cli.examination import Check
from gateway.cli.opening import Looked
from tests.support.nats import NatsServer
from tests.support.processes import free_port
from tests.support.redis_server import RedisServer

COMPONENT = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: {name}}}
spec:
  type: {type}
  version: v1
  metadata: {settings}
---
"""
SUBSCRIPTION = """\
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: {name: orders}
spec:
  pubsubname: pubsub
  topic: orders
  routes: {default: /orders}
  deadLetterTopic: failed
"""
NATS_USERS = """
authorization { users = [
  {user: all, password: all}
  {user: few, password: few, permissions: {publish: {deny: ["$JS.API.CONSUMER.CREATE.>"]}}}
] }
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisServer]:
    async with RedisServer(tmp_path_factory.mktemp("doctor-redis")) as server:
        client = Redis(port=server.port)
        await client.execute_command("ACL", "SETUSER", "few", "on", ">few", "~*", "+@all", "-xgroup", "-xadd")
        await client.execute_command("ACL", "SETUSER", "all", "on", ">all", "~*", "+@all")
        await client.aclose()
        yield server


@pytest.fixture
async def client(redis: RedisServer) -> AsyncIterator[Redis]:
    found = Redis(port=redis.port)
    await found.flushall()
    yield found
    await found.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nats_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsServer]:
    async with NatsServer(tmp_path_factory.mktemp("doctor-nats"), config=NATS_USERS) as server:
        yield server


class Folder:
    """Resources, and what the doctor says of them."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self._capsys = path / "resources", capsys
        self.file = self.path / "all.yaml"
        self.path.mkdir()

    def write(self, settings: dict[str, str], type_: str = "pubsub.redis", more: str = "") -> None:
        listed = json.dumps([{"name": name, "value": value} for name, value in settings.items()])
        text = COMPONENT.format(name="pubsub", type=type_, settings=listed)
        self.file.write_text(text + SUBSCRIPTION + ("---\n" + more if more else ""))

    async def ask(self, *words: str, app: str = "shop") -> tuple[int, str]:
        self._capsys.readouterr()
        whose = ["-a", app] if app else []
        code = await asyncio.to_thread(main, ["doctor", "-d", str(self.path), *whose, *words])
        return code, self._capsys.readouterr().out

    async def checks(self, *words: str) -> tuple[int, list[dict[str, Any]]]:
        code, text = await self.ask("-o", "json", *words)
        found = json.loads(text)
        assert found["problems"] == sum(each["status"] == "problem" for each in found["checks"])
        assert code == int(found["problems"] > 0)
        return code, found["checks"]

    async def problem(self, *words: str) -> dict[str, Any]:
        """Give the only problem."""
        _, checks = await self.checks(*words)
        [found] = [each for each in checks if each["status"] == "problem"]
        return found


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MESH_BACKBONE", raising=False)
    yield Folder(tmp_path, capsys)


async def test_nothing_is_wrong(folder: Folder, redis: RedisServer, client: Redis) -> None:
    """Topics that are made when they are needed are no problem, and none are made by looking."""
    folder.write({"redisHost": f"127.0.0.1:{redis.port}"})
    code, checks = await folder.checks()
    assert code == 0
    assert [each["status"] for each in checks] == ["ok", "note", "note", "ok"]
    assert await client.keys("*") == []
    await client.xgroup_create("orders", "shop", mkstream=True)
    code, checks = await folder.checks()
    assert code == 0
    [group] = [each for each in checks if each["what"] == "group"]
    assert (group["name"], group["status"], group["waiting"]) == ("shop of orders", "ok", 0)
    assert all(each.keys() == {field.name for field in fields(Check)} for each in checks)
    code, text = await folder.ask()
    assert code == 0
    assert text.splitlines()[0].split() == ["STATUS", "COMPONENT", "WHAT", "NAME", "FOUND"]
    assert text.splitlines()[-1] == "nothing is wrong"
    assert "\x1b" not in text


async def test_nobody_is_there(folder: Folder) -> None:
    folder.write({"redisHost": f"127.0.0.1:{free_port()}"})
    found = await folder.problem()
    assert "is not reachable" in found["told"]
    assert found["next"] == f"see that it runs, and that its address in {folder.file}:1 is right"


async def test_a_subscription_by_nothing(folder: Folder, redis: RedisServer) -> None:
    """Names the component that is meant, and where the subscription stands; so does ``mesh check``."""
    stray = SUBSCRIPTION.replace("pubsubname: pubsub", "pubsubname: pubsup").replace("name: orders", "name: stray")
    folder.write({"redisHost": f"127.0.0.1:{redis.port}"}, more=stray)
    found = await folder.problem()
    told = "there is no pub/sub component 'pubsup' here; did you mean 'pubsub'?"
    assert (found["what"], found["component"], found["told"]) == ("subscription", "pubsup", told)
    line = next(n for n, text in enumerate(folder.file.read_text().splitlines(), 1) if "stray" in text) - 2
    assert found["next"] == f"correct {folder.file}:{line}"
    [warning] = check([folder.path]).warnings
    assert (warning.message, warning.path) == (told, "spec.pubsubname")


async def test_a_file_that_cannot_be_read(folder: Folder) -> None:
    """A script gets a document, whatever is wrong."""
    folder.file.write_text("apiVersion: dapr.io/v1alpha1\nkind: Component\nspec: [\n")
    found = await folder.problem()
    assert (found["what"], found["name"]) == ("resources", str(folder.file))
    assert found["told"].startswith(f"{folder.file}:")


async def test_nothing_is_configured(folder: Folder) -> None:
    """The next step is one that helps."""
    code, text = await folder.ask(app="")
    assert code == 1
    assert "next, backbone backbone embedded:  start a gateway with mesh run" in text


async def test_the_password_is_wrong(folder: Folder, redis: RedisServer) -> None:
    folder.write({"redisHost": f"127.0.0.1:{redis.port}", "redisUsername": "all", "redisPassword": "wr0ng"})
    found = await folder.problem()
    assert found["next"] == f"correct user, password or certificate in {folder.file}:1"
    assert "wr0ng" not in found["told"]


async def test_rights_are_missing(folder: Folder, redis: RedisServer, client: Redis) -> None:
    """Of the group, and of the dead letter topic; nothing is made by asking."""
    folder.write({"redisHost": f"127.0.0.1:{redis.port}", "redisUsername": "few", "redisPassword": "few"})
    _, checks = await folder.checks()
    problems = [each for each in checks if each["status"] == "problem"]
    assert [(each["name"], each["told"].partition(":")[0]) for each in problems] == [
        ("orders", "XGROUP on orders"),
        ("failed", "XADD on failed"),
    ]
    assert {each["next"] for each in problems} == {
        f"give that right to the user of {folder.file}:1 on the broker",
    }
    assert await client.keys("*") == []


async def test_what_has_the_name_is_something_else(folder: Folder, redis: RedisServer, client: Redis) -> None:
    await client.set("orders", "of another program")
    folder.write({"redisHost": f"127.0.0.1:{redis.port}"})
    found = await folder.problem()
    assert found["told"] == "stream orders: the key orders is no stream, as the topic has to be"
    assert found["next"] == f"change it on the broker, or the settings in {folder.file}:1"


async def test_a_group_is_behind_and_letters_wait(folder: Folder, redis: RedisServer, client: Redis) -> None:
    folder.write({"redisHost": f"127.0.0.1:{redis.port}"})
    await client.xgroup_create("orders", "shop", mkstream=True)
    for number in range(3):
        await client.xadd("orders", {"data": str(number)})
    code, checks = await folder.checks()
    [group] = [each for each in checks if each["what"] == "group"]
    assert (code, group["status"], group["waiting"], group["taken"]) == (0, "ok", 3, 0)
    assert group["oldest"] >= 0
    found = await folder.problem("--max-lag", "2")
    assert (found["what"], found["waiting"]) == ("group", 3)
    step = "start more instances of shop, or see in their logs why they are slow; --max-lag is 2"
    assert found["next"] == step
    await client.xadd("failed", {"data": "{}"})
    found = await folder.problem()
    assert (found["what"], found["name"], found["letters"]) == ("letters", "failed", 1)
    assert (found["told"], found["next"]) == ("1 dead letter", f"mesh dlq show pubsub failed -d {folder.path} -a shop")
    code, text = await folder.ask()
    assert code == 1
    assert text.splitlines()[-2:] == [
        f"next, pubsub letters failed:  mesh dlq show pubsub failed -d {folder.path} -a shop",
        "1 problem",
    ]


async def test_letters_that_cannot_be_counted(folder: Folder, redis: RedisServer, client: Redis) -> None:
    """Their number is unknown then, which is not none."""
    await client.xadd("failed", {"data": "{}"})
    await client.execute_command("ACL", "SETUSER", "blind", "on", ">blind", "~*", "+@all", "-xinfo", "-xlen", "-type")
    folder.write({"redisHost": f"127.0.0.1:{redis.port}", "redisUsername": "blind", "redisPassword": "blind"})
    code, checks = await folder.checks()
    assert code == 1
    assert [each["letters"] for each in checks if each["what"] == "letters"] == [None]


async def test_whose_application_scopes_name(folder: Folder, redis: RedisServer, client: Redis) -> None:
    """``{appID}`` in a setting is that one, as in its gateway; and the next step names it."""
    folder.write({"redisHost": f"127.0.0.1:{redis.port}", "consumerID": "of-{appID}"})
    folder.file.write_text(folder.file.read_text() + "scopes: [payments]\n")
    await client.xgroup_create("orders", "of-payments", mkstream=True)
    await client.xadd("failed", {"data": "{}"})
    checks = json.loads((await folder.ask("-o", "json", app=""))[1])["checks"]
    assert [each["name"] for each in checks if each["what"] == "group"] == ["of-payments of orders"]
    assert [each["next"] for each in checks if each["what"] == "letters"] == [
        f"mesh dlq show pubsub failed -d {folder.path} -a payments"
    ]


def test_a_url_with_a_password_is_not_printed(tmp_path: Path) -> None:
    """A next step has the backbone's URL where that says nothing secret."""
    for url, told in (("nats://host:1", ["-b", "nats://host:1"]), ("nats://a:b@host:1", [])):
        looked = Looked("", "default", url, (), (), (str(tmp_path),), url)
        assert looked.words("shop") == ["-d", str(tmp_path), "-a", "shop", *told]


async def test_a_store_and_a_secret_that_are_not_there(folder: Folder, redis: RedisServer, client: Redis) -> None:
    """What needs the secret says which store is to blame; the rest is looked at all the same."""
    store = COMPONENT.format(name="vault", type="secretstores.local.file", settings="[{name: secretsFile, value: no}]")
    secret = "[{name: redisHost, secretKeyRef: {name: host, key: host}}]"
    state = COMPONENT.format(name="state", type="state.redis", settings=secret).rstrip("-\n")
    folder.write({"redisHost": f"127.0.0.1:{redis.port}"}, more=f"{store}{state}\nauth: {{secretStore: vault}}\n")
    _, checks = await folder.checks()
    found = {each["component"]: each for each in checks if each["what"] == "component"}
    assert found["pubsub"]["status"] == "ok"
    assert found["vault"]["status"] == found["state"]["status"] == "problem"
    assert "its secret store vault could not be read" in found["state"]["told"]
    assert found["state"]["next"].endswith("mesh check reads it as a gateway does")


async def test_a_store_that_fails_in_its_own_way(
    folder: Folder, redis: RedisServer, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever an adapter raises is a problem of its component alone, and the document is written."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("bindings.local.FileSecretStore.from_component", fail)
    store = COMPONENT.format(name="vault", type="secretstores.local.file", settings="[{name: secretsFile, value: no}]")
    secret = "[{name: redisHost, secretKeyRef: {name: host, key: host}}]"
    state = COMPONENT.format(name="state", type="state.redis", settings=secret).rstrip("-\n")
    folder.write({"redisHost": f"127.0.0.1:{redis.port}"}, more=f"{store}{state}\nauth: {{secretStore: vault}}\n")
    code, checks = await folder.checks()
    found = {each["component"]: each for each in checks if each["what"] == "component"}
    assert (code, found["pubsub"]["status"]) == (1, "ok")
    assert "its adapter failed: ZeroDivisionError: a bug" in found["vault"]["told"]
    assert found["state"]["status"] == "problem"


async def test_it_takes_too_long(folder: Folder) -> None:
    """A server that takes connections, and says nothing, costs as much time as it is given."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        folder.write({"redisHost": f"127.0.0.1:{port}", "dialTimeout": "60s", "readTimeout": "60s"})
        found = await folder.problem("--timeout", "0.3")
    assert found["told"] == "it did not answer within 0.3 s"
    assert found["next"] == "see whether it is busy or away; --timeout gives it longer than 0.3 s"


async def test_a_stream_of_nats_that_differs(
    folder: Folder, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backbone: one that is there in another form, and a user who may not make a consumer."""
    folder.write({}, type_="pubsub.mesh")
    address = nats_server.address
    monkeypatch.setenv("MESH_BACKBONE", f"nats://all:all@{address}")
    _, checks = await folder.checks()
    assert [each["status"] for each in checks][:2] == ["ok", "ok"]
    assert checks[0]["name"] == f"nats://***@{address}"
    monkeypatch.setenv("MESH_BACKBONE", f"nats://all:wrong@{address}")
    _, checks = await folder.checks()
    assert {each["next"] for each in checks if each["component"] == "backbone"} == {
        "correct user, password or certificate in MESH_BACKBONE (or --backbone)"
    }
    client = await nats.connect(nats_server.url, user="all", password="all")
    await client.jetstream().add_stream(
        name="mesh_default_topic_pubsub", subjects=["mesh.default.topic.pubsub.>"], max_age=60
    )
    await client.close()
    monkeypatch.setenv("MESH_BACKBONE", f"nats://few:few@{address}")
    _, checks = await folder.checks()
    problems = [each["told"] for each in checks if each["status"] == "problem"]
    assert any("may not send to $JS.API.CONSUMER.CREATE.mesh_default_topic_pubsub" in each for each in problems)
    assert any("max_age is 60000000000 and should be 604800000000000" in each for each in problems)


async def test_jetstream_without_a_stream(folder: Folder, nats_server: NatsServer) -> None:
    """Nothing makes a stream for a topic unless the component says so; a consumer that is there may differ."""
    address = nats_server.address
    settings = {"natsURL": f"nats://all:all@{address}", "durableName": "shop"}
    folder.write(settings, type_="pubsub.jetstream")
    _, checks = await folder.checks()
    problems = [(each["name"], each["told"], each["next"]) for each in checks if each["status"] == "problem"]
    assert problems == [
        (topic, f"{place} is not there", f"make it on the broker: nothing makes {place} by itself")
        for topic in ("orders", "failed")
        for place in [f"a stream with the subject {topic}"]
    ]
    client = await nats.connect(nats_server.url, user="all", password="all")
    jetstream = client.jetstream()
    await jetstream.add_stream(name="shop", subjects=["orders", "failed", "other"])
    listening = [await client.subscribe(subject) for subject in ("orders", "failed")]
    await client.flush()
    code, checks = await folder.checks()
    assert code == 0
    assert any("whether this user may publish there is not known" in each["told"] for each in checks)
    await client.flush()
    assert [each.pending_msgs for each in listening] == [0, 0], "whoever listens to a subject must not get the question"
    await jetstream.add_consumer("shop", durable_name="shop", filter_subject="other", ack_policy="explicit")
    found = await folder.problem()
    assert "filter_subject is 'other' and should be 'orders'" in found["told"]
    await jetstream.publish("failed", b"{}")
    await client.close()
    _, checks = await folder.checks()
    assert [each["letters"] for each in checks if each["what"] == "letters"] == [1]


async def test_nothing_runs(folder: Folder) -> None:
    """The embedded backbone is not started for being looked at."""
    folder.write({}, type_="pubsub.mesh")
    _, checks = await folder.checks()
    assert {each["told"] for each in checks} == {"nothing runs on the embedded backbone: no gateway has started it"}
    assert not (Path(folder.path.parent) / "home" / "backbone").exists()


@pytest.mark.parametrize("words", [["--timeout", "0"], ["--max-lag", "-1"], ["-o", "yaml"], ["--nonsense"], ["word"]])
def test_wrong_command_lines(words: list[str]) -> None:
    assert main(["doctor", *words]) == 2
