"""A gateway's routes as other nodes ask for them: what is answered, to whom, and what never is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import pytest_asyncio
from aiohttp import web

from gateway.remote import as_api_error, for_management, for_sights
from gateway.routes import ROUTES
from mesh import address
from mesh.broker import Message
from mesh.error_wire import read_error
from mesh.errors import (
    BadArgumentError,
    BrokerUnavailableError,
    DeadlineExceededError,
    EventError,
    MeshError,
    NoResponderError,
    StreamBrokenError,
)
from mesh.host import ERROR_HEADER
from tests.http.harness import App, Backbone, Node, gateway, yaml

pytestmark = pytest.mark.asyncio(loop_scope="module")
SECONDS = 20.0


class Pair:
    """A node that is asked, and one that asks."""

    def __init__(self, asked: Node, asker: Node, app: App, namespace: str) -> None:
        self.asked, self.asker, self.app, self.namespace = asked, asker, app, namespace

    async def ask(self, verb: str, path: str, **given: object) -> tuple[int, dict[str, str], bytes]:
        """Ask; gives status, header fields by their names in lower case, body."""
        node = self.asked.gateway
        status, headers, body = await self.asker.gateway.ask_node(
            node.node_id, verb, path, deadline=time.time() + SECONDS, app_id=node.app_id, **given
        )
        return status, {name.lower(): value for name, value in headers}, body


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """Two nodes that say that all nodes are on this machine, so that each may manage the other."""
    backbone, home = Backbone(nats_url), tmp_path_factory.mktemp("home")
    async with (
        App() as app,
        gateway(backbone, home, app=app, app_id="shop", single_host=True) as asked,
        gateway(backbone, home, app_id="desk", single_host=True) as asker,
    ):
        yield Pair(asked, asker, app, backbone.namespace)


async def test_metadata_of_another_node(pair: Pair) -> None:
    status, headers, body = await pair.ask("GET", "/v1.0/metadata")
    assert (status, headers["content-type"], orjson.loads(body)["id"]) == (200, "application/json", "shop")


async def test_whose_node_it_is_is_found_out(pair: Pair) -> None:
    status, _, body = await pair.asker.gateway.ask_node(pair.asked.gateway.node_id, "GET", "/v1.0/metadata")
    assert (status, orjson.loads(body)["id"]) == (200, "shop")


async def test_a_call_goes_as_the_application_of_the_node(pair: Pair) -> None:
    pair.app.answer("/hello", 201, b"hi", X_Told="1")
    headers = (("Content-Type", "text/plain"), ("dapr-app-id", "desk"), ("mesh-key", "k"), ("X-Mine", "2"))
    status, told, body = await pair.ask("POST", "/v1.0/invoke/shop/method/hello", headers=headers, body=b"there")
    assert (status, told["x-told"], body) == (201, "1", b"hi")
    got = pair.app.got.pop()
    assert (got.body, got.headers["x-mine"], got.headers["dapr-caller-app-id"]) == (b"there", "2", "shop")
    assert not {"mesh-key", "dapr-app-id"} & got.headers.keys()


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("POST", "/v1.0/shutdown"),
        ("POST", "/v1.0//shutdown"),
        ("POST", "//v1.0/shutdown/"),
        ("POST", "/v1.0/./shutdown"),
        ("POST", "/v1.0/metadata/../shutdown"),
        ("POST", "/v1.0/metadata/%2e%2e/shutdown"),
        ("POST", "/v1.0/metadata/%2E./shutdown"),
        ("POST", "/v1.0/%73hutdown"),
        ("POST", "/v1.0/Shutdown"),
        ("POST", "/V1.0/shutdown"),
        ("POST", "/v1.0/shutdown%2f"),
        ("POST", "http://localhost/v1.0/shutdown"),
        ("GET", "/v1.0/secrets/store/key"),
        ("GET", "/v1.0/state/../secrets/store/key"),
        ("GET", "/v1.0/state/%2e%2e/secrets/store/key"),
        ("GET", "/v1.0/invoke/x/../../secrets/store/key"),
        ("GET", "/v1.0/secrets/store/bulk"),
        ("PUT", "/v1.0-alpha1/crypto/vault/encrypt"),
        ("POST", "/v1.0-alpha1/subtlecrypto/vault/getkey"),
        ("GET", "/v1.0/mesh/tap"),
        ("GET", "/v1.0/mesh//tap"),
        ("GET", "/v1.0/mesh/jobs/../tap"),
        ("GET", "/v1.0/configuration/store"),
        ("PUT", "/v1.0/mesh/configuration/store/key"),
        ("POST", "/v1.0-alpha1/lock/store"),
        ("POST", "/v1.0-alpha2/conversation/model/converse"),
        ("GET", "/"),
        ("GET", "/dashboard/"),
        ("POST", "/hello"),
    ],
)
async def test_what_is_never_answered(pair: Pair, verb: str, path: str) -> None:
    """Whatever way the path is written, and whatever header names an application."""
    basic = ("Authorization", "Basic ZGFwci1hcHAtaWQ6c2hvcA==")  # The login dapr-app-id of application shop.
    status, _, body = await pair.ask(verb, path, headers=(("dapr-app-id", "shop"), basic))
    assert status in (400, 404), body
    assert not pair.asked.gateway.stopping.is_set()
    assert not pair.app.got


async def test_no_url_is_called_for_another_node(pair: Pair) -> None:
    own = f"http://127.0.0.1:{pair.asked.gateway.port}"
    for target in (own, own.replace("/", "%2F"), own.replace("http", "HTTP"), own.replace("//", "/")):
        status, _, body = await pair.ask("POST", f"/v1.0/invoke/{target}/method/v1.0/shutdown")
        assert (status, orjson.loads(body)["errorCode"]) == (403, "ERR_PERMISSION_DENIED"), target
    assert not pair.asked.gateway.stopping.is_set()


@pytest.mark.parametrize(
    ("verb", "path", "query", "headers"),
    [
        ("get", "/v1.0/metadata", "", ()),
        ("CONNECT", "/v1.0/metadata", "", ()),
        ("GET ", "/v1.0/metadata", "", ()),
        ("GET", "v1.0/metadata", "", ()),
        ("GET", "/v1.0/metadata#x", "", ()),
        ("GET", "/v1.0/meta data", "", ()),
        ("GET", "/v1.0/metadata?x=1", "", ()),
        ("GET", "/v1.0/metadata", "x=1\r\ny", ()),
        ("GET", "/v1.0/metadata", "", (("X\r\nY", "1"),)),
        ("GET", "/v1.0/metadata", "", (("X", "1\n"),)),
        ("GET", "/v1.0/metadata", "", (("", "1"),)),
    ],
)
async def test_what_is_no_request(
    pair: Pair, verb: str, path: str, query: str, headers: tuple[tuple[str, str], ...]
) -> None:
    status, _, _ = await pair.ask(verb, path, query=query, headers=headers)
    assert status == 400


async def test_bodies_of_both_directions_are_bounded(pair: Pair) -> None:
    at_most = 4 * 2**20
    pair.app.answer("/size", 200, b"x" * at_most)
    status, _, body = await pair.ask("POST", "/v1.0/invoke/shop/method/size", body=b"y" * at_most)
    assert (status, len(body)) == (200, at_most)
    assert len(pair.app.got.pop().body) == at_most
    with pytest.raises(BadArgumentError, match="takes 4194304"):
        await pair.ask("POST", "/v1.0/invoke/shop/method/size", body=b"y" * (at_most + 1))
    pair.app.answer("/size", 200, b"x" * (at_most + 1))
    status, _, body = await pair.ask("GET", "/v1.0/invoke/shop/method/size")
    assert (status, orjson.loads(body)["errorCode"]) == (413, "ERR_NODE_ANSWER")
    pair.app.got.clear()


async def test_which_routes_are_answered_to_whom() -> None:
    """A route that is added is answered to nobody, until somebody decides that."""
    never = {each.path for each in ROUTES if not for_management(each)}
    assert never == {
        "configuration/{store}",
        "configuration/{store}/subscribe",
        "configuration/{store}/{id}/unsubscribe",
        "conversation/{name}/converse",
        "crypto/{name}/decrypt",
        "crypto/{name}/encrypt",
        "lock/{store}",
        "mesh/configuration/{store}/{key}",
        "secrets/{store}/bulk",
        "secrets/{store}/{name}",
        "shutdown",
        "unlock/{store}",
    } | {each.path for each in ROUTES if each.name == "subtlecrypto" or each.path == "mesh/tap"}
    assert all(for_management(each) for each in ROUTES if for_sights(each))
    assert {each.path for each in ROUTES if for_sights(each)} == {
        "healthz",
        "healthz/outbound",
        "mesh/actors",
        "mesh/actors/{type}/{id}",
        "mesh/components",
        "mesh/jobs",
        "mesh/jobs/{name}",
        "mesh/node",
        "mesh/reminders/{type}",
        "mesh/topics",
        "mesh/topics/{component}/{topic}",
        "mesh/workflows",
        "mesh/workflows/{id}",
        "metadata",
    }


async def test_what_a_configuration_takes_away_is_not_answered(nats_url: str, tmp_path: Path) -> None:
    backbone = Backbone(nats_url)
    file = tmp_path / "config.yaml"
    denied = [{"name": "state", "version": "v1", "protocol": "http"}]
    file.write_text(yaml("Configuration", "config", {"api": {"denied": denied}}))
    async with (
        gateway(backbone, tmp_path, app_id="shop", single_host=True, configuration_files=(file,)) as asked,
        gateway(backbone, tmp_path, app_id="desk", single_host=True) as asker,
    ):
        for path, expected in (
            ("state/statestore/k", 404),
            ("mesh/components/statestore/keys", 404),
            ("mesh/node", 200),
        ):
            told = await asker.gateway.ask_node(asked.gateway.node_id, "GET", f"/v1.0/{path}", app_id="shop")
            assert told[0] == expected, path


async def test_what_takes_too_long_ends(pair: Pair) -> None:
    """At who asks, and at the node; what clients are told of it."""
    let_go = asyncio.Event()

    async def hang(got: object, request: object) -> web.Response:
        await let_go.wait()
        return web.Response()

    pair.app.answers["/slow"] = hang  # type: ignore[assignment]
    node = pair.asked.gateway
    try:
        with pytest.raises(DeadlineExceededError, match="in time") as caught:
            await pair.asker.gateway.ask_node(
                node.node_id, "GET", "/v1.0/invoke/shop/method/slow", deadline=time.time() + 0.5, app_id="shop"
            )
    finally:
        let_go.set()
    pair.app.got.clear()
    told = as_api_error(caught.value)
    assert (told.status, told.code) == (504, "ERR_NODE_SILENT")
    told = as_api_error(NoResponderError("gone"))
    assert (told.status, told.code) == (404, "ERR_NODE_AWAY")
    assert as_api_error(BrokerUnavailableError("away")).status == 503


async def test_what_is_no_question_is_refused(pair: Pair) -> None:
    """As another version of it may send."""
    node = pair.asked.gateway
    where = address.node(pair.namespace, "shop", node.node_id)
    exchange = pair.asker.gateway._runtime.exchange
    for body in (b"", b"\x81", b"\x81\xa4verb\x01", b"\xc1"):
        reply = await exchange.request(where, Message({"ce-source": "desk"}, body), time.time() + SECONDS)
        assert isinstance(read_error(reply.headers[ERROR_HEADER]), EventError)


async def test_a_node_that_has_gone(nats_url: str, tmp_path: Path) -> None:
    backbone = Backbone(nats_url)
    async with gateway(backbone, tmp_path, app_id="desk", single_host=True) as asker:
        async with gateway(backbone, tmp_path, app_id="shop", single_host=True) as asked:
            node_id = asked.gateway.node_id
            assert (await asker.gateway.ask_node(node_id, "GET", "/v1.0/healthz"))[0] == 204
        for app_id in ("shop", ""):  # By its name, and by what was known of it.
            with pytest.raises(NoResponderError, match=node_id):
                await asker.gateway.ask_node(node_id, "GET", "/v1.0/healthz", app_id=app_id)
        with pytest.raises(NoResponderError, match="nobody says"):
            await asker.gateway.ask_node(node_id, "GET", "/v1.0/healthz")


async def test_a_node_that_ends_while_it_is_asked(nats_url: str, tmp_path: Path) -> None:
    """What is in flight has the time to drain; then who asked learns that nobody knows what became of it."""
    backbone = Backbone(nats_url)
    never = asyncio.Event()

    async def hang(got: object, request: object) -> web.Response:
        await never.wait()
        return web.Response()

    async with App() as app, gateway(backbone, tmp_path, app_id="desk", single_host=True) as asker:
        app.answers["/slow"] = hang  # type: ignore[assignment]
        until = time.time() + SECONDS

        async def ask(node_id: str) -> MeshError | None:
            try:
                path = "/v1.0/invoke/shop/method/slow"
                await asker.gateway.ask_node(node_id, "GET", path, deadline=until, app_id="shop")
            except MeshError as error:
                return error
            return None

        async with asyncio.TaskGroup() as tasks:
            async with gateway(backbone, tmp_path, app=app, app_id="shop", single_host=True, drain=0.3) as asked:
                asking = tasks.create_task(ask(asked.gateway.node_id))
                await app.until("/slow")
            assert isinstance(await asking, StreamBrokenError)
            assert time.time() < until
            never.set()
