"""What applications answer to events of bindings, and what is done of it.

Source: reference/dapr-surface.md 2.7.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from mesh.blocks.binding_answers import document
from mesh.blocks.binding_contract import BindingError
from tests.http.harness import App, Backbone, component, gateway, yaml
from tests.support.eventually import eventually

SAVED = {"key": "k", "value": {"n": 1}, "metadata": {"ttlInSeconds": "1000"}}
WHOLE = {"storeName": "kept", "state": [SAVED], "to": ["one", "two"], "data": {"a": 1}}
TICK = {"schedule": "@every 1s", "direction": "input"}


@pytest.fixture
async def service() -> AsyncIterator[App]:
    """What the output bindings call."""
    async with App() as service:
        yield service


def resources(service: App, **more: str) -> str:
    """A source, two bindings to call, a store; an event that was not taken is handed over twice more."""
    url = f"http://127.0.0.1:{service.port}"
    policy = {
        "policies": {"retries": {"often": {"policy": "constant", "duration": "10ms", "maxRetries": 2}}},
        "targets": {"components": {"tick": {"inbound": {"retry": "often"}}}},
    }
    return (
        component("tick", "bindings.cron", **TICK, **more)
        + component("one", "bindings.http", url=f"{url}/one")
        + component("two", "bindings.http", url=f"{url}/two")
        + component("kept", "state.in-memory")
        + yaml("Resiliency", "r", policy)
    )


DO = {"mesh.answer": "do"}


@pytest.mark.parametrize("concurrency", ["parallel", "sequential", None])
async def test_a_document_is_done(memory: Backbone, tmp_path: Path, service: App, concurrency: str | None) -> None:
    """State is saved, and every binding is called with the data."""
    async with App() as app:
        app.answer("/tick", 200, WHOLE | ({"concurrency": concurrency} if concurrency else {}))
        async with gateway(memory, tmp_path, app=app, resources=resources(service, **DO)) as node:
            await service.until("/two", 1)
            assert (await node.get("/v1.0/state/kept/k")).json == {"n": 1}
    got = service.at("/one")[0], service.at("/two")[0]
    assert [(each.method, each.json) for each in got] == [("POST", {"a": 1})] * 2


async def test_an_event_from_a_host(nats: Backbone, tmp_path: Path, service: App) -> None:
    """The component says it there; it is done by the application's own gateway, with what that has."""
    source = component("tick", "bindings.cron", scopes=["away", "host"], **TICK, **DO)
    one = component("one", "bindings.http", url=f"http://127.0.0.1:{service.port}/one")
    async with App() as app:
        app.answer("/tick", 200, {"to": ["one"], "data": "text"})
        async with (
            gateway(nats, tmp_path, app_id="host", resources=source),
            gateway(nats, tmp_path, app=app, app_id="away", resources=one),
        ):
            await service.until("/one", 1)
    assert service.at("/one")[0].body == b"text"


async def test_it_is_not_done_unless_it_is_to_be(memory: Backbone, tmp_path: Path, service: App) -> None:
    """As in Dapr."""
    async with App() as app:
        app.answer("/tick", 200, WHOLE)
        async with gateway(memory, tmp_path, app=app, resources=resources(service)) as node:
            await app.until("/tick", 3)
            assert (await node.get("/v1.0/state/kept/k")).status == 204
    assert service.got == []


FAILURES = {
    "no such binding": ({"to": ["nope", "one"]}, "bindings nope: there is no bindings component 'nope'", False),
    "of others": ({"to": ["theirs", "one"]}, "bindings theirs: there is no bindings component 'theirs'", False),
    "one of several": ({"to": ["nope", "one"], "concurrency": "parallel"}, "bindings nope: there is no", True),
    "no such store": ({**WHOLE, "storeName": "nope"}, "state nope: there is no state component 'nope'", False),
    "a store of others": ({**WHOLE, "storeName": "hidden"}, "state hidden: there is no state component", False),
    "no store": ({**WHOLE, "storeName": ""}, "cannot be read: it has state, and no store for it", False),
    "unreadable": ({"to": "one"}, "cannot be read: to must be a list of strings", False),
    "too many": ({"to": ["one"] * 101}, "cannot be read: it has more than 100 bindings to call", False),
}


async def test_what_fails(memory: Backbone, tmp_path: Path, service: App, caplog: pytest.LogCaptureFixture) -> None:
    """The event was not taken, so the policy hands it over again; bindings behind one that failed are not called."""
    names = [f"tick{number}" for number in range(len(FAILURES))]
    policy = {
        "policies": {"retries": {"often": {"policy": "constant", "duration": "10ms", "maxRetries": 2}}},
        "targets": {"components": {name: {"inbound": {"retry": "often"}} for name in names}},
    }
    files = "".join(component(name, "bindings.cron", **TICK, **DO) for name in names)
    # Each calls one of its own, so that it shows who did.
    url = f"http://127.0.0.1:{service.port}"
    files += "".join(component(f"one-{name}", "bindings.http", url=f"{url}/{name}") for name in names)
    files += component("theirs", "bindings.http", url=url, scopes=["others"]) + component("kept", "state.in-memory")
    files += component("hidden", "state.in-memory", scopes=["others"]) + yaml("Resiliency", "r", policy)
    async with App() as app:
        for name, (said, _, _) in zip(names, FAILURES.values(), strict=True):
            app.answer(f"/{name}", 200, orjson.dumps(said).replace(b'"one"', f'"one-{name}"'.encode()))
        async with gateway(memory, tmp_path, app=app, resources=files):
            for name in names:
                await app.until(f"/{name}", 3)

            def check() -> None:
                for _, told, _ in FAILURES.values():
                    assert told in caplog.text

            await eventually(check)
    for name, (_, _, called) in zip(names, FAILURES.values(), strict=True):
        times = [got.headers["readtimeutc"] for got in app.at(f"/{name}")]
        assert times[:3] == [times[0]] * 3
        assert bool(service.at(f"/{name}")) is called


async def test_an_answer_that_is_too_large(
    memory: Backbone, tmp_path: Path, service: App, caplog: pytest.LogCaptureFixture
) -> None:
    """It might be a document, so the event was not taken."""
    async with App() as app:
        app.answer("/tick", 200, b" " * 2**21)
        async with gateway(memory, tmp_path, app=app, resources=resources(service, **DO)):
            await app.until("/tick", 3)

            def check() -> None:
                assert "the application's answer is too large" in caplog.text

            await eventually(check)


async def test_the_setting_is_checked(memory: Backbone, tmp_path: Path, service: App) -> None:
    """When the file is read."""
    with pytest.raises(Exception, match=r"is `do`, or not there"):
        async with gateway(memory, tmp_path, resources=resources(service, **{"mesh.answer": "perhaps"})):
            raise AssertionError


PLAIN = [b"", b"text", b"[1]", b"null", b'"to"', b'{"data":1}', b"{}", b"\xff"]


@pytest.mark.parametrize("data", PLAIN)
def test_what_is_no_document(data: bytes) -> None:
    """Asks for nothing, and is what the source is told."""
    answer = document(data)
    assert (answer.data, answer.to, answer.states) == (data, (), ())


@pytest.mark.parametrize(
    "said",
    [
        {"storeName": 1},
        {"to": [1]},
        {"to": {}, "data": 1, "concurrency": "both"},
        {"to": ["a"], "concurrency": "both"},
        {"to": ["a"], "concurrency": 1},
        {"storeName": "s", "state": {"key": "k"}},
        {"storeName": "s", "state": ["k"]},
    ],
)
def test_a_document_that_cannot_be_read(said: object) -> None:
    """Is refused whole."""
    with pytest.raises(BindingError, match="cannot be read"):
        document(orjson.dumps(said))
