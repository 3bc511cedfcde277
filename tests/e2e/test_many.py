"""Several applications in one gateway process, as ``mesh gateway`` runs them."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.eventually import eventually
from tests.support.gateways import MESH, MeshHome, MeshRun
from tests.support.mesh import AppProcess
from tests.support.processes import free_port

TOPIC = "orders"
SUBSCRIPTIONS = [{"pubsubname": "pubsub", "topic": TOPIC, "route": f"/events/{TOPIC}"}]


async def asked(
    port: int, path: str, token: str = "", method: str = "GET", body: object = None
) -> tuple[int, Any, Mapping[str, str]]:
    """Ask a gateway; give status, body and header fields."""
    headers = {"dapr-api-token": token} if token else {}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session,
        session.request(method, f"http://127.0.0.1:{port}/v1.0/{path}", headers=headers, json=body) as response,
    ):
        text = await response.text()
        return response.status, json.loads(text) if text[:1] in "[{" and text else text, response.headers


async def is_ready(port: int, wanted: int = 204, path: str = "healthz") -> None:
    try:
        assert (await asked(port, path))[0] == wanted
    except aiohttp.ClientError as error:
        raise AssertionError(repr(error)) from error


@asynccontextmanager
async def two_applications(directory: Path) -> AsyncIterator[tuple[AppProcess, AppProcess]]:
    async with AsyncExitStack() as stack:
        made = [AppProcess(directory, subscriptions=SUBSCRIPTIONS) for _ in range(2)]
        for each in made:
            await stack.enter_async_context(each)
        yield made[0], made[1]


def gateway(home: MeshHome, *words: str) -> Any:
    more = ("--metrics-port", str(free_port()), "--backbone-timeout", "30s")
    return home.started([*MESH, "gateway", *words, *more], home.environ(), None)


async def test_each_is_a_gateway_of_its_own(home: MeshHome, tmp_path: Path) -> None:
    """They call each other, each has its own events, metadata and log lines; one ends by its API, the process later."""
    one, other = free_port(), free_port()
    async with two_applications(tmp_path) as apps:
        words = [
            word
            for name, app, port in zip("ab", apps, (one, other), strict=True)
            for word in ("--app", f"{name}={app.port},http-port={port},grpc-port={free_port()}")
        ]
        with gateway(home, *words) as running:
            for port in (one, other):
                await eventually(partial(is_ready, port), 60)
            assert (await asked(one, "invoke/b/method/echo", method="POST"))[0] == 200
            assert (await asked(other, f"publish/pubsub/{TOPIC}", method="POST", body={"id": "e1"}))[0] == 204
            for app in apps:
                await eventually(partial(_recorded, app, ["e1"]))
            assert [(await asked(port, "metadata"))[1]["id"] for port in (one, other)] == ["a", "b"]
            lines = (await asked(one, "mesh/logs?limit=1000"))[1]["lines"]
            assert any("a listens on" in each["message"] for each in lines)
            assert not any("b listens on" in each["message"] for each in lines)
            assert {"app_id=a", "app_id=b"} <= set(running.text.split())
            await _one_ends(home, running, one, other)


async def _one_ends(home: MeshHome, running: MeshRun, one: int, other: int) -> None:
    assert home.mesh("stop", "a").returncode == 0
    assert (await asked(other, "healthz"))[0] == 204
    with pytest.raises(aiohttp.ClientError):
        await asked(one, "healthz")
    running.send(signal.SIGTERM)
    assert running.wait() == 0


async def test_one_port_for_several(home: MeshHome, tmp_path: Path) -> None:
    """The API token tells which; without one there is nothing but health."""
    port, grpc_port = free_port(), free_port()
    words = []
    for name in "ab":
        (tmp_path / name).write_text(f"token-{name}\n")
        words += ["--app", f"{name},http-port={port},grpc-port={grpc_port},api-token-file={tmp_path / name}"]
    with gateway(home, *words) as running:
        await eventually(lambda: is_ready(port), 60)
        for name in "ab":
            status, told, _ = await asked(port, "metadata", f"token-{name}")
            assert (status, told["id"]) == (200, name)
        for token in ("", "token-c"):
            assert (await asked(port, "metadata", token))[:2] == (401, "invalid api token")
        listed = json.loads(home.mesh("status", "-o", "json").stdout)
        assert [each["conditions"] for each in listed["apps"]] == [[], []]
        assert (await asked(port, "shutdown", "token-a", "POST"))[0] == 204
        await eventually(lambda: is_ready(port, 503), 60)
        status, told, _ = await asked(port, "metadata", "token-a")
        assert (status, told["errorCode"]) == (503, "ERR_GATEWAY_AWAY")
        assert (await asked(port, "healthz?appid=b"))[0] == 204
        assert (await asked(port, "metadata", "token-b"))[0] == 200
        assert (await asked(port, "shutdown", "token-b", "POST"))[0] == 204
        assert running.wait() == 0  # With the last one.


async def test_one_that_fails_does_not_end_the_others(home: MeshHome, tmp_path: Path) -> None:
    """It is started again, and works once what was wrong is mended."""
    one, other = free_port(), free_port()
    file = tmp_path / "bad.yaml"
    file.write_text("apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: s}\nspec: {type: state.none}\n")
    bad = f"b,http-port={other},grpc-port={free_port()},resources-path={file}"
    with gateway(home, "--app", f"a,http-port={one},grpc-port={free_port()}", "--app", bad) as running:
        await eventually(lambda: is_ready(one), 60)
        running.until(r"the application is without its gateway.* app_id=b")
        assert (await asked(one, "healthz"))[0] == 204
        file.unlink()
        file.write_text("")
        await eventually(lambda: is_ready(other), 60)


@asynccontextmanager
async def asking(port: int, tokens: Sequence[str], probed: str) -> AsyncIterator[list[str]]:
    """Ask by each token, over a connection that stays, and whether one is well, over new ones; gives what was wrong."""
    over, wrong = asyncio.Event(), list[str]()

    async def ask(token: str) -> None:
        headers, timeout = {"dapr-api-token": token}, aiohttp.ClientTimeout(total=20)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            while not over.is_set():
                try:
                    async with session.get(f"http://127.0.0.1:{port}/v1.0/metadata") as response:
                        wrong.extend([await response.text()] * (response.status != 200))
                except (aiohttp.ClientError, TimeoutError) as error:
                    wrong.append(repr(error))
                await asyncio.sleep(0.01)

    async def probe() -> None:
        while not over.is_set():
            try:
                status, told, _ = await asked(port, f"healthz?appid={probed}")
                wrong.extend([f"healthz: {told}"] * (status != 204))
            except (aiohttp.ClientError, TimeoutError) as error:
                wrong.append(f"healthz: {error!r}")
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(probe())
        for token in tokens:
            tasks.create_task(ask(token))
        try:
            yield wrong
        finally:
            over.set()


@pytest.mark.slow
async def test_workers_of_several_on_one_port_are_replaced(home: MeshHome, tmp_path: Path) -> None:
    """No client sees it; one that cannot start holds nothing up, and what is over leaves its ports to the others."""
    port, grpc_port, file = free_port(), free_port(), tmp_path / "bad.yaml"
    file.write_text("apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: s}\nspec: {type: state.none}\n")
    words = ["--workers", "2", "--app", f"c,http-port={free_port()},grpc-port={free_port()},resources-path={file}"]
    async with AppProcess(tmp_path, subscriptions=SUBSCRIPTIONS) as app:
        for name, of in (("a", f"a={app.port}"), ("b", "b")):
            (tmp_path / name).write_text(f"token-{name}\n")
            words += ["--app", f"{of},http-port={port},grpc-port={grpc_port},api-token-file={tmp_path / name}"]
        with gateway(home, *words) as running:
            await eventually(lambda: is_ready(port), 60)
            slow = {"id": "slow", "seconds": 3}  # What an old worker finishes while health is asked.
            assert (await asked(port, f"publish/pubsub/{TOPIC}", "token-b", "POST", slow))[0] == 204
            await eventually(lambda: _recorded(app, ["slow"], "begin"))
            async with asking(port, ["token-a", "token-b"] * 3, "a") as wrong:
                running.send(signal.SIGHUP)
                await asyncio.to_thread(running.until, "takes the place of", 60)
                running.send(signal.SIGHUP)  # Those that come after this are others than those before it.
                await asyncio.to_thread(running.until, r"(?s)(all workers are new ones.*){2}", 90)
            assert wrong == []
            _recorded(app, ["slow"])
            assert (await asked(port, "shutdown", "token-a", "POST"))[0] == 204
            await eventually(lambda: is_ready(port, 503, "healthz?appid=a"), 60)
            async with asking(port, ["token-b"] * 3, "b") as wrong:
                running.send(signal.SIGHUP)
                await asyncio.to_thread(running.until, r"(?s)(all workers are new ones.*){3}", 90)
            assert wrong == []
            assert not {"killed:", "Traceback"} & set(running.text.split())


def test_when_none_can_start_the_process_ends(home: MeshHome, tmp_path: Path) -> None:
    found = home.mesh("gateway", "--app", f"a,resources-path={tmp_path}/x", "--app", f"b,resources-path={tmp_path}/y")
    assert found.returncode == 1
    assert "there is no such" in found.stdout


def _recorded(app: AppProcess, wanted: list[str], kind: str = TOPIC) -> None:
    assert app.recorded(kind) == wanted
