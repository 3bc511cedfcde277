"""What an application is told of configurations when its gateway restarts without it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.http.harness import App, Backbone, Node, component, gateway
from tests.http.test_configuration import STORES, item, put, subscribe, told, unsubscribe
from tests.support.eventually import eventually

ABOUT_A, ABOUT_B = "/configuration/conf/a", "/configuration/conf/b"
OTHER = STORES + component("later", "configuration.mesh")


def writer(backbone: Backbone, home: Path) -> Any:
    """Run a gateway that stays: it changes values."""
    return gateway(backbone, home / "writer", app_id="writer", resources=STORES)


@pytest.fixture(autouse=True)
def homes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "writer").mkdir()
    caplog.set_level(logging.INFO)


async def until_logged(caplog: pytest.LogCaptureFixture, text: str, times: int = 1) -> None:
    def check() -> None:
        assert caplog.text.count(text) == times, caplog.text

    await eventually(check)


async def ended(node: Node, subscription: str) -> int:
    return (await node.get(f"/v1.0/configuration/conf/{subscription}/unsubscribe")).status


def ids(app: App, path: str) -> Sequence[str]:
    return [got.json["id"] for got in app.at(path)]


async def test_changes_while_the_gateway_is_away(
    nats: Backbone, tmp_path: Path, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is told once, with the id of before; what is as it was is not; then it goes on."""
    async with writer(nats, tmp_path) as other:
        for key in "abc":
            await put(other, key, "1")
        async with gateway(nats, tmp_path, app=app, resources=STORES) as node:
            by_keys = await subscribe(node, "key=a&key=c&metadata.x=y")
            every = await subscribe(node, "")
            await put(node, "c", "2")
            await app.until("/configuration/conf/c", 2)
        await put(other, "a", "2")
        assert (await other.request("DELETE", "/v1.0/mesh/configuration/conf/b")).status == 204
        async with gateway(nats, tmp_path, app=app, resources=STORES) as node:
            got = await app.until(ABOUT_A, 2)
            assert {each.json["id"] for each in got} == {by_keys, every}
            assert [told(each, each.json["id"], "a") for each in got] == [item("2")] * 2
            [gone] = await app.until(ABOUT_B)
            assert told(gone, every, "b") == {}
            await until_logged(caplog, "subscriptions that go on after the gateway's restart: 2")
            await put(node, "c", "3")
            await app.until("/configuration/conf/c", 4)
            await unsubscribe(node, every)
        await put(other, "a", "3")
        async with gateway(nats, tmp_path, app=app, resources=STORES) as node:
            await app.until(ABOUT_A, 3)
            assert await ended(node, every) == 500
            await put(node, "c", "4")
            await app.until("/configuration/conf/c", 5)
            assert (ids(app, ABOUT_A)[2:], ids(app, "/configuration/conf/c")[4:]) == ([by_keys], [by_keys])
            await unsubscribe(node, by_keys)
    assert list((tmp_path / "subscriptions").iterdir()) == []


async def test_an_application_that_subscribes_again(nats: Backbone, tmp_path: Path, app: App) -> None:
    """Is told once, by the new id; the one of before may still be ended, and that ends nothing else."""
    async with writer(nats, tmp_path) as other:
        async with gateway(nats, tmp_path, app=app, resources=STORES) as node:
            first, twin = await subscribe(node), await subscribe(node)
        async with gateway(nats, tmp_path, app=app, resources=STORES) as node:
            second = await subscribe(node)
            await put(other, "a", "1")
            await app.until(ABOUT_A)
            assert await ended(node, first) == 200
        await put(other, "a", "2")
        async with gateway(nats, tmp_path, app=app, resources=STORES) as node:
            await app.until(ABOUT_A, 2)
            assert [await ended(node, each) for each in (first, twin, twin)] == [500, 200, 500]
            await put(other, "a", "3")
            await app.until(ABOUT_A, 3)
            assert ids(app, ABOUT_A) == [second] * 3
            await unsubscribe(node, second)


async def test_two_equal_subscriptions(nats: Backbone, tmp_path: Path, app: App) -> None:
    """Are two afterwards."""
    async with writer(nats, tmp_path) as other:
        async with gateway(nats, tmp_path, app=app, resources=STORES) as node:
            made = {await subscribe(node), await subscribe(node)}
        await put(other, "a", "1")
        async with gateway(nats, tmp_path, app=app, resources=STORES):
            assert {got.json["id"] for got in await app.until(ABOUT_A, 2)} == made


@pytest.mark.parametrize(
    ("status", "ends"), [(404, True), (405, True), (501, True), (500, False), (503, False), (204, False)]
)
@pytest.mark.costly
async def test_an_application_that_does_not_know_of_it(
    nats: Backbone, tmp_path: Path, app: App, caplog: pytest.LogCaptureFixture, status: int, ends: bool
) -> None:
    """It is another program, and is not told again; one that fails is the same program."""
    async with writer(nats, tmp_path) as other:
        async with gateway(nats, tmp_path, app=app, resources=STORES) as node:
            subscription = await subscribe(node, "key=a&key=b")
        app.answer(ABOUT_A, status)
        await put(other, "a", "1")
        async with gateway(nats, tmp_path, app=app, resources=STORES) as node:
            text = "a subscription of before the gateway's restart ends" if ends else "the change of 'a' was not taken"
            await until_logged(caplog, f"{text}: the application answered {status}")
            assert caplog.text.count("the application answered") == 1
            await put(other, "b", "1")
            if not ends:
                await app.until(ABOUT_B)
            assert await ended(node, subscription) == (500 if ends else 200)
        assert len(app.at(ABOUT_B)) == int(not ends)


async def test_one_that_took_something_may_answer_404(
    nats: Backbone, tmp_path: Path, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    """It knows of the subscription, and it stays."""
    async with writer(nats, tmp_path) as other:
        async with gateway(nats, tmp_path, app=app, resources=STORES) as node:
            subscription = await subscribe(node, "key=a&key=b")
        app.answer(ABOUT_B, 404)
        await put(other, "a", "1")
        async with gateway(nats, tmp_path, app=app, resources=STORES) as node:
            await app.until(ABOUT_A)
            await put(other, "b", "1")
            await until_logged(caplog, "the change of 'b' was not taken: the application answered 404")
            await unsubscribe(node, subscription)


async def test_an_application_that_ends_with_its_gateway(memory: Backbone, tmp_path: Path, app: App) -> None:
    """Begins anew: nothing is kept for it."""
    labels = {"appCommand": "node app.js", "cliPID": "1"}
    async with gateway(memory, tmp_path, app=app, resources=STORES, labels=labels) as node:
        subscription = await subscribe(node)
    assert not (tmp_path / "subscriptions").exists()
    async with gateway(memory, tmp_path, app=app, resources=STORES, labels=labels) as node:
        assert await ended(node, subscription) == 500


async def test_another_instance(nats: Backbone, tmp_path: Path, app: App) -> None:
    """Has its own subscriptions, wherever it shares the directory."""
    async with writer(nats, tmp_path) as other, App() as second:
        async with gateway(nats, tmp_path, app=app, resources=STORES) as node:
            of_first = await subscribe(node)
            async with gateway(nats, tmp_path, app=second, resources=STORES) as node:
                of_second = await subscribe(node)
        await put(other, "a", "1")
        async with gateway(nats, tmp_path, app=second, resources=STORES) as node:
            [got] = await second.until(ABOUT_A)
            assert told(got, of_second, "a") == item("1")
            assert await ended(node, of_first) == 500
        assert app.got == []


@pytest.mark.costly
async def test_a_gateway_beside_the_one_of_before(
    nats: Backbone, tmp_path: Path, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    """Takes over when that ends, and nothing is told twice."""
    async with writer(nats, tmp_path) as other:
        async with gateway(nats, tmp_path, app=app, resources=STORES) as former:
            both, ends = await subscribe(former, "key=a"), await subscribe(former, "key=b")
            running = gateway(nats, tmp_path, app=app, resources=STORES)
            node = await running.__aenter__()
            try:
                again = await subscribe(node, "key=a")
                await until_logged(caplog, "another gateway of this application has its file")
                assert await ended(node, ends) == 500
                await put(other, "a", "1")
                await app.until(ABOUT_A, 2)
                assert set(ids(app, ABOUT_A)) == {both, again}
            except BaseException:
                await running.__aexit__(None, None, None)
                raise
        try:
            await put(other, "b", "1")
            await until_logged(caplog, "subscriptions that go on after the gateway's restart: 1")
            [got] = await app.until(ABOUT_B)
            assert told(got, ends, "b") == item("1")
            await put(other, "a", "2")
            await app.until(ABOUT_A, 3)
            assert ids(app, ABOUT_A)[2:] == [again]
            assert await ended(node, both) == 200
        finally:
            await running.__aexit__(None, None, None)
        await put(other, "a", "3")
        async with gateway(nats, tmp_path, app=app, resources=STORES):
            await app.until(ABOUT_A, 4)
            assert ids(app, ABOUT_A)[3:] == [again]


async def test_a_store_that_was_removed(
    nats: Backbone, tmp_path: Path, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    """Is said, and the rest goes on; when it is back, what has changed is told."""
    async with writer(nats, tmp_path) as other:
        async with gateway(nats, tmp_path, app=app, resources=OTHER) as node:
            later, by_conf = await subscribe(node, store="later"), await subscribe(node)
            ends = await subscribe(node, "key=b", store="later")
        async with gateway(nats, tmp_path / "writer", app_id="another", resources=OTHER) as another:
            assert (await another.request("PUT", "/v1.0/mesh/configuration/later/a", None, "1")).status == 204
        async with gateway(nats, tmp_path, app=app, resources=STORES) as node:
            await until_logged(caplog, "configuration later: changes are not followed now, trying again", 2)
            await put(other, "a", "1")
            [got] = await app.until(ABOUT_A)
            assert told(got, by_conf, "a") == item("1")
            await unsubscribe(node, ends, "later")
        async with gateway(nats, tmp_path, app=app, resources=OTHER):
            [got] = await app.until("/configuration/later/a")
            assert told(got, later, "a") == item("1")


async def test_before_the_application_listens(nats: Backbone, tmp_path: Path) -> None:
    """A gateway knows what it is to tell, and may be told that it is not."""
    app = App()
    async with writer(nats, tmp_path) as other:
        async with app, gateway(nats, tmp_path, app=app, resources=STORES) as node:
            stays, ends = await subscribe(node), await subscribe(node)
        async with gateway(nats, tmp_path, app=app, resources=STORES, ready=False) as node:
            await unsubscribe(node, ends)
            await put(other, "a", "1")
            async with app:
                [got] = await app.until(ABOUT_A)
                assert told(got, stays, "a") == item("1")


async def test_a_directory_that_cannot_be_written(
    memory: Backbone, tmp_path: Path, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    """Hinders no subscription, and is said once."""
    (tmp_path / "subscriptions").write_text("")
    async with gateway(memory, tmp_path, app=app, resources=STORES) as node:
        await subscribe(node)
        subscription = await subscribe(node, "key=b")
        await put(node, "b", "1")
        [got] = await app.until(ABOUT_B)
        assert told(got, subscription, "b") == item("1")
    assert caplog.text.count("may not outlive this gateway") == 1


async def test_keys_of_any_text(nats: Backbone, tmp_path: Path, app: App) -> None:
    """Also of bytes that are none."""
    async with writer(nats, tmp_path) as other:
        async with gateway(nats, tmp_path, app=app, resources=STORES) as node:
            subscription = await subscribe(node, "key=%FF&key=b%20%2F%22%C3%A4&key=&metadata.%FF=%FE")
        await put(other, "b%20%2F%22%C3%A4", "1")
        async with gateway(nats, tmp_path, app=app, resources=STORES):
            [got] = await app.until("/configuration/conf/b%20/%22%C3%A4")
            assert told(got, subscription, 'b /"ä') == item("1")


@pytest.mark.costly
async def test_many_restarts_under_changes(nats: Backbone, tmp_path: Path, app: App) -> None:
    """The last value is told each time, and none twice."""
    async with writer(nats, tmp_path) as other:
        async with gateway(nats, tmp_path, app=app, resources=STORES) as node:
            await subscribe(node)
        for number in range(1, 6):
            await put(other, "a", f"away {number}")
            async with gateway(nats, tmp_path, app=app, resources=STORES):
                await app.until(ABOUT_A, number)
    assert [got.json["items"]["a"]["value"] for got in app.at(ABOUT_A)] == [f"away {each}" for each in range(1, 6)]


async def test_values_that_ended_with_the_gateway(memory: Backbone, tmp_path: Path, app: App) -> None:
    """Are told as what they are: gone. A backbone of one gateway keeps nothing."""
    async with gateway(memory, tmp_path, app=app, resources=STORES) as node:
        await put(node, "a", "1")
        subscription = await subscribe(node)
    async with gateway(memory, tmp_path, app=app, resources=STORES) as node:
        [got] = await app.until(ABOUT_A)
        assert told(got, subscription, "a") == {}
        await put(node, "a", "2")
        got = (await app.until(ABOUT_A, 2))[1]
        assert told(got, subscription, "a") == item("2")


async def test_as_many_as_there_may_be(memory: Backbone, tmp_path: Path, app: App) -> None:
    """Those of before make room, the oldest first, where nobody is known to have them; others do not."""
    async with gateway(memory, tmp_path, app=app, resources=STORES) as node:
        made = [await subscribe(node, f"key={number}") for number in range(100)]
    async with gateway(memory, tmp_path, app=app, resources=STORES) as node:
        new = [await subscribe(node, f"key=new{number}") for number in range(2)]
        assert [await ended(node, each) for each in (*made[:3], *new)] == [500, 500, 200, 200, 200]
