"""Events up to what the body limit admits: through gateways, over a broker that takes a mebibyte."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from mesh.large import MAX_EVENT_BYTES
from tests.http.harness import ANY, App, Backbone, Got, Node, component, error, gateway
from tests.http.test_publish import info, resource
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
MEBIBYTE = 1024 * 1024
RESOURCES = component("open", "pubsub.mesh")
SUBSCRIPTIONS = [
    {"pubsubname": "open", "topic": "t", "route": "/events"},
    {"pubsubname": "open", "topic": "dropped", "route": "/dropped", "deadLetterTopic": "letters"},
    {"pubsubname": "open", "topic": "letters", "route": "/letters"},
    {"pubsubname": "open", "topic": "bulk", "route": "/bulk", "bulkSubscribe": {"enabled": True}},
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(module_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    app = App(SUBSCRIPTIONS)
    app.answer("/dropped", body={"status": "DROP"})
    app.answers["/bulk"] = _taken
    home, most = tmp_path_factory.mktemp("home"), 80 * MEBIBYTE
    async with app, gateway(module_backbone, home, app=app, resources=RESOURCES, max_body_bytes=most) as node:
        node.app = app  # type: ignore[attr-defined]
        yield node


def _taken(got: Got, request: web.BaseRequest) -> web.Response:
    statuses = [{"entryId": entry["entryId"], "status": "SUCCESS"} for entry in got.json["entries"]]
    return web.json_response({"statuses": statuses})


async def got(node: Node, path: str) -> Any:
    app: App = node.app  # type: ignore[attr-defined]

    def check() -> Any:
        assert app.at(path), app.got
        return app.at(path)[0]

    found = await eventually(check, 30)
    app.got.clear()
    return found


@pytest.mark.parametrize("size", [1, 64])
async def test_an_event_of_many_mebibytes(node: Node, size: int) -> None:
    """It comes as any other does, with its attributes."""
    data = os.urandom(MEBIBYTE) * size
    media = {"Content-Type": "application/octet-stream"}
    path = "/v1.0/publish/open/t?metadata.cloudevent.type=large"
    assert (await node.request("POST", path, media, data)).status == 204
    event = (await got(node, "/events")).json
    assert (event["type"], event["topic"]) == ("large", "t")
    assert base64.b64decode(event["data_base64"]) == data


async def test_a_dead_letter_has_its_body(node: Node) -> None:
    """It is kept with the letter, for as long as that is."""
    text = "x" * (3 * MEBIBYTE)
    assert (await node.request("POST", "/v1.0/publish/open/dropped", {}, text.encode())).status == 204
    letter = await got(node, "/letters")
    assert letter.json["data"] == text
    assert letter.headers["mesh-dead-letter-topic"] == "dropped"


async def test_a_bulk_with_large_entries(node: Node) -> None:
    """Those that fit into a message and those that do not are stored, and come in a batch again."""
    sizes = {"1": 10, "2": 3 * MEBIBYTE, "3": 10, "4": 2 * MEBIBYTE}
    entries = [{"entryId": each, "event": each * size, "contentType": "text/plain"} for each, size in sizes.items()]
    assert (await node.post("/v1.0/publish/bulk/open/bulk", entries)).status == 204
    app: App = node.app  # type: ignore[attr-defined]

    def check() -> None:
        found = [entry["event"]["data"] for batch in app.at("/bulk") for entry in batch.json["entries"]]
        assert {each[0]: len(each) for each in found} == sizes

    await eventually(check, 30)
    app.got.clear()


async def test_what_is_larger_than_any_event(node: Node) -> None:
    """A body that the gateway takes and the mesh does not is a failed publish, with both sizes."""
    reply = await node.request("POST", "/v1.0/publish/open/t", {}, bytes(MAX_EVENT_BYTES + 1))
    assert reply.status == 500
    message = reply.json["message"]
    both = rf"message of 68157\d\d\d bytes is over the limit of {MAX_EVENT_BYTES} bytes; send less$"
    assert re.match("error when publishing to topic t in pubsub open: " + both, message)
    context = {"appID": "app", "topic": "t", "error": ANY}
    assert reply.json == error(
        "ERR_PUBSUB_PUBLISH_MESSAGE",
        message,
        [resource("open", message), info("DAPR_PUBSUB_PUBLISH_MESSAGE", **context)],
    )
