"""Activities that run at another node than the owner of their instance, while one of both is killed."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import aiohttp
import orjson
import pytest
from aiohttp import web

from tests.http.harness import App, Got
from tests.support.eventually import eventually
from tests.support.mesh import GatewayProcess
from tests.support.nats import NatsServer

COUNT = 24
CHARGE = "/workflow/activity/charge"
WITHIN = 60.0  # A session is over after ten seconds, and both processors are busy.


class Worker(App):
    """Runs ``order``, which charges once; ``charge`` takes until it is let go, and has no end before that."""

    def __init__(self, *activities: str) -> None:
        super().__init__()
        self.config = {"workflows": ["order"], "activities": activities}
        self.let_go = asyncio.Event()
        self.answers["/workflow/run/order"] = lambda got, _: web.Response(body=orjson.dumps(_turn(got.json)))
        self.answers[CHARGE] = self._charge

    async def _charge(self, got: Got, _: web.BaseRequest) -> web.StreamResponse:
        await self.let_go.wait()
        return web.Response(body=orjson.dumps(got.json + 1))

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/dapr/config":
            return web.Response(body=orjson.dumps(self.config))
        return await super()._handle(request)

    @property
    def charged(self) -> Mapping[str, list[str]]:
        """The keys of what was begun, by instance."""
        found: dict[str, list[str]] = defaultdict(list)
        for got in self.at(CHARGE):
            found[got.headers["mesh-workflow-instance"]].append(got.headers["mesh-idempotency-key"])
        return found


def _turn(turn: dict[str, Any]) -> dict[str, object]:
    results = [each["result"] for each in turn["history"] if each["event"] == "completed"]
    actions = [{"activity": "charge", "input": turn["input"]}]
    return {"actions": actions, "complete": results[0]} if results else {"actions": actions}


class Shop:
    """Gateways of one application: the first one's part of it runs no activities."""

    def __init__(self, home: Path, url: str, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.workers = [Worker(), Worker("charge"), Worker("charge")]
        self.gateways: list[GatewayProcess] = []
        self._home, self._url = home, url

    async def add(self, stack: AsyncExitStack) -> None:
        worker = await stack.enter_async_context(self.workers[len(self.gateways)])
        gateway = GatewayProcess("shop", self._home, app=worker.port, backbone=self._url)
        self.gateways.append(await stack.enter_async_context(gateway))

    async def ask(self, gateway: GatewayProcess, method: str, path: str, body: object = None) -> Any:
        async with self.session.request(method, f"{gateway.api}/mesh/workflows{path}", json=body) as response:
            told = await response.json()
            assert response.status in (200, 202), told
            return told

    async def all(self, gateway: GatewayProcess) -> dict[str, dict[str, Any]]:
        return {each: await self.ask(gateway, "GET", f"/{each}") for each in IDS}


IDS = [f"o-{each}" for each in range(COUNT)]


@asynccontextmanager
async def running(home: Path, server: NatsServer) -> AsyncIterator[tuple[Shop, str, dict[str, dict[str, Any]]]]:
    """Have each instance charge at the second or third node; gives the first one's id, and how all of them are."""
    async with AsyncExitStack() as stack:
        timeout = aiohttp.ClientTimeout(total=WITHIN)
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        shop = Shop(home, server.url, session)
        await shop.add(stack)
        first = shop.gateways[0]
        for number, each in enumerate(IDS):
            await shop.ask(first, "POST", "", {"name": "order", "instanceID": each, "input": number})
        owner = (await shop.ask(first, "GET", f"/{IDS[0]}"))["owner"]
        await shop.add(stack)
        await shop.add(stack)
        states: dict[str, dict[str, Any]] = {}

        async def all_run() -> None:
            nonlocal states
            states = await shop.all(first)
            assert len({each["owner"] for each in states.values()}) == 3
            assert all(each["tasks"][0]["running"] for each in states.values())
            assert owner not in {each["tasks"][0]["node"] for each in states.values()}  # None waits for a place there.

        await eventually(all_run, WITHIN)
        yield shop, owner, states


@pytest.mark.parametrize("victim", ["runner", "owner"])
@pytest.mark.timeout(WITHIN * 4)
async def test_an_activity_elsewhere_survives_either_node(
    mesh_home: Path, nats_server: NatsServer, victim: Literal["runner", "owner"]
) -> None:
    """It is begun again at a node that is left, with its key; each instance ends with one result."""
    async with running(mesh_home, nats_server) as (shop, owner, states):
        places = {each: told["tasks"][0]["node"] for each, told in states.items()}
        apart = [each for each, told in states.items() if told["owner"] == owner]
        assert apart
        second, third = shop.workers[1:]
        if victim == "runner":
            killed, left, hit = shop.gateways[1], [third], [each for each in apart if each in second.charged]
            assert len({places[each] for each in hit}) == 1
        else:
            killed, left, hit = shop.gateways[0], [second, third], apart
        begun = Counter[str]()
        for worker in left:
            begun.update({each: len(keys) for each, keys in worker.charged.items()})
        assert hit
        await killed.kill()

        async def begun_again() -> None:
            again = [each for each in hit if sum(len(worker.charged[each]) for worker in left) > begun[each]]
            if victim == "runner":
                assert again == hit
            else:  # One may have had another owner by then, who has no reason to.
                assert again
                shown = await shop.all(shop.gateways[2])
                assert owner not in {shown[each]["owner"] for each in hit}

        await eventually(begun_again, WITHIN)
        for worker in shop.workers:
            worker.let_go.set()
        for number, each in enumerate(IDS):
            told = await shop.ask(shop.gateways[2], "GET", f"/{each}?wait=50s")
            assert (told["runtimeStatus"], told["output"]) == ("COMPLETED", number + 1), told
            history = await shop.ask(shop.gateways[2], "GET", f"/{each}/history")
            kinds = Counter(event["event"] for event in history["events"])
            assert (kinds["scheduled"], kinds["completed"], kinds["ended"]) == (1, 1, 1)
            assert len({*second.charged[each], *third.charged[each]}) == 1, "the key is the same each time"
        assert shop.workers[0].at(CHARGE) == []
