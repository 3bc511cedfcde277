"""The works: each through gateways, and bare, with the same load in turn."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from bench.app import ECHO_BODY
from bench.broker import Broker
from bench.load import BenchError, Client, Load, get, post
from bench.measure import Plan, Row, Variant, alternate, note, peer_load
from bench.processes import Peer, Stage
from bench.rpc import EVENT, grpc_works

__all__ = ["EVENT", "WORKS"]

RATE = 500.0
KEYS = 100
DRAIN_SECONDS = 60.0


def paced(client: Client, rate: float = RATE) -> Callable[[float], Awaitable[Load]]:
    """Make the run of a fixed rate."""

    async def run(seconds: float) -> Load:
        return await client.at_rate(rate, seconds)

    return run


async def publish(stage: Stage, plan: Plan) -> list[Row]:
    """Publish events over HTTP."""
    async with AsyncExitStack() as stack:
        broker = await Broker.connect(stage.nats_url)
        stack.push_async_callback(broker.client.close)
        await broker.create("benchpub")
        gateway = await stage.gateway("publisher")
        stack.push_async_callback(stage.stop, gateway)
        event = EVENT.encode()
        request = post("/v1.0/publish/pubsub/t", event)
        ours = await stack.enter_async_context(Client(gateway.http_port, [request], [204]).connected())
        await ours.saturate(0.05)
        stream = await broker.jetstream.find_stream_name_by_subject("mesh.default.topic.pubsub._.t")
        _, headers = await broker.last(stream)
        shared = {"subject": "benchpub.t", "headers": headers, "body": EVENT}
        bare = await stage.peer("publisher", **shared)
        handler = await stage.peer("handler")
        publishing = await stage.peer("publish", **shared)
        stack.push_async_callback(stage.stop, bare, handler, publishing)
        theirs = await stack.enter_async_context(Client(bare.http_port, [request], [204]).connected())
        only = await stack.enter_async_context(Client(handler.http_port, [request], [204]).connected())
        variants = [
            Variant("gateway", ours.saturate, [gateway], broker.stored(stream)),
            Variant("bare: handler + publish", theirs.saturate, [bare], broker.stored("benchpub")),
            Variant("part: aiohttp handler", only.saturate, [handler]),
            Variant("part: nats-py publish", peer_load(publishing), [publishing], broker.stored("benchpub")),
        ]
        return [*(await alternate("publish", variants, plan.rounds, plan.seconds)).values()]


async def deliver(stage: Stage, plan: Plan) -> list[Row]:
    """Deliver stored events to the application by HTTP."""
    async with AsyncExitStack() as stack:
        broker = await Broker.connect(stage.nats_url)
        stack.push_async_callback(broker.client.close)
        await broker.create("benchsub")
        subscription = {"pubsubname": "pubsub", "topic": "d", "route": "/events/mesh"}
        app = await stage.peer("app", subscriptions=[subscription])
        gateway = await stage.gateway("subscriber", app.http_port)
        stack.push_async_callback(stage.stop, gateway, app)
        async with Client(gateway.http_port, [post("/v1.0/publish/pubsub/d", EVENT.encode())], [204]).connected(
            1
        ) as client:
            await client.saturate(0.01)
        stream = await broker.jetstream.find_stream_name_by_subject("mesh.default.topic.pubsub._.d")
        subject, headers = await broker.last(stream)
        [consumer] = await broker.consumers(stream)
        posted = {"path": "/events/bare", "app_port": app.http_port}
        bare = await stage.peer("consumer", stream="benchsub", subject="benchsub.d", durable="post", **posted)
        consuming = await stage.peer("consume", stream="benchsub", subject="benchsub.c", durable="ack")
        fields = {"Content-Type": "application/cloudevents+json", "pubsubName": "pubsub", "mesh-attempt": "1"}
        posting = await stage.peer("poster", calls=[("POST", EVENT)], headers=fields, **posted)
        stack.push_async_callback(stage.stop, bare, consuming, posting)

        def draining(stream: str, subject: str, consumer: str, path: str) -> Callable[[float], Awaitable[Load]]:
            async def run(seconds: float) -> Load:
                await broker.settled(stream, consumer)
                await app.ask(do="hold")
                await broker.store(stream, subject, headers, EVENT.encode(), plan.events)
                await asyncio.sleep(0.2)  # What goes out at once is held by the application then.
                started = time.perf_counter()
                told = await app.ask(do="release", path=path, count=plan.events, seconds=DRAIN_SECONDS)
                taken = time.perf_counter() - started
                await broker.settled(stream, consumer)
                if told["counts"] != {path: plan.events}:
                    raise BenchError(f"the application counted {told['counts']}, {plan.events} were stored")
                return _uncounted(plan.events, taken)

            return run

        async def acking(seconds: float) -> Load:
            await broker.store("benchsub", "benchsub.c", headers, EVENT.encode(), plan.events)
            await asyncio.sleep(0.1)
            told = await consuming.ask(count=plan.events)
            await broker.settled("benchsub", "ack")
            return _uncounted(plan.events, float(str(told["seconds"])))

        def timed(stream: str, subject: str, consumer: str) -> Callable[[float], Awaitable[Load]]:
            async def run(seconds: float) -> Load:
                await app.ask(do="time", on=True)
                count = await broker.store_at_rate(stream, subject, headers, EVENT, RATE, seconds)
                await broker.settled(stream, consumer)
                told = await app.ask(do="latencies")
                latencies = told["latencies"]
                await app.ask(do="time", on=False)
                if not isinstance(latencies, list) or len(latencies) != count:
                    raise BenchError(f"{count} events were stored, but other than that delivered")
                load = Load(seconds)
                load.latencies.extend(latencies)
                return load

            return run

        ours, theirs = (stream, subject, consumer), ("benchsub", "benchsub.d", "post")
        variants = [
            Variant("gateway", draining(*ours, "/events/mesh"), [gateway]),
            Variant("bare: consume + post", draining(*theirs, "/events/bare"), [bare]),
            Variant("part: nats-py consume", acking, [consuming]),
            Variant("part: aiohttp post", peer_load(posting), [posting]),
        ]
        rows = await alternate("deliver", variants, plan.rounds, plan.seconds)
        rated = [
            Variant("gateway", timed(*ours), [gateway]),
            Variant("bare: consume + post", timed(*theirs), [bare]),
        ]
        slow = await alternate("deliver at 500/s", rated, plan.rounds, plan.rate_seconds)
        return [*rows.values(), *slow.values()]


def _uncounted(count: int, seconds: float) -> Load:
    """Make a load whose calls have no latency of their own: they all waited in the store."""
    load = Load(seconds)
    load.latencies.extend([-1.0] * count)
    return load


async def invoke(stage: Stage, plan: Plan) -> list[Row]:
    """Call an application through two gateways: GET and POST in turn."""
    async with AsyncExitStack() as stack:
        broker = await Broker.connect(stage.nats_url)
        stack.push_async_callback(broker.client.close)
        app = await stage.peer("app")
        callee = await stage.gateway("callee", app.http_port)
        caller = await stage.gateway("caller")
        stack.push_async_callback(stage.stop, caller, callee, app)

        def requests(path: str) -> list[bytes]:
            return [get(path), post(path, EVENT.encode())]

        async def client(port: int, path: str) -> Client:
            made = Client(port, requests(path), [200, 200], ECHO_BODY)
            return await stack.enter_async_context(made.connected())

        ours = await client(caller.http_port, "/v1.0/invoke/callee/method/echo")
        frames = await broker.overheard(lambda: ours.at_rate(RATE, 0.01), "mesh-http")
        asked = next(headers for headers in frames if "ce-id" in headers)
        replied = next(headers for headers in frames if "ce-id" not in headers)
        _, _, fields = json.loads(asked["mesh-http"])
        kept = {name: value for name, value in fields if name.lower() != "host"}

        bare_callee = await stage.peer("callee", app_port=app.http_port)
        bare_caller = await stage.peer("caller", headers=asked)
        handler = await stage.peer("handler")
        requester = await stage.peer("requester", headers=asked, body=EVENT)
        responder = await stage.peer("responder", headers=replied)
        poster = await stage.peer(
            "poster", calls=[("GET", ""), ("POST", EVENT)], path="/echo", headers=kept, app_port=app.http_port
        )
        stack.push_async_callback(stage.stop, bare_caller, bare_callee, handler, requester, responder, poster)
        chained = await client(bare_caller.http_port, "/echo")
        direct = await client(app.http_port, "/echo")
        handled = await client(handler.http_port, "/echo")
        variants = [
            Variant("gateway", ours.saturate, [caller, callee]),
            Variant("bare: chain of the parts", chained.saturate, [bare_caller, bare_callee]),
            Variant("part: aiohttp handler", handled.saturate, [handler]),
            Variant("part: nats-py request", peer_load(requester), [requester, responder]),
            Variant("part: aiohttp call", peer_load(poster), [poster]),
            Variant("direct call", direct.saturate, [app]),
        ]
        rows = await alternate("invoke", variants, plan.rounds, plan.seconds)
        rated = [
            Variant("gateway", paced(ours), [caller, callee]),
            Variant("bare: chain of the parts", paced(chained), [bare_caller, bare_callee]),
            Variant("direct call", paced(direct), [app]),
        ]
        slow = await alternate("invoke at 500/s", rated, plan.rounds, plan.rate_seconds)
        return [*rows.values(), *slow.values()]


async def state(stage: Stage, plan: Plan) -> list[Row]:
    """Save and get state."""
    async with AsyncExitStack() as stack:
        broker = await Broker.connect(stage.nats_url)
        stack.push_async_callback(broker.client.close)
        gateway = await stage.gateway("stateful")
        stack.push_async_callback(stage.stop, gateway)
        bare = await stage.peer("kv")
        stack.push_async_callback(stage.stop, bare)
        saves = [
            post("/v1.0/state/statestore", f'[{{"key":"order-{number}","value":{EVENT}}}]'.encode())
            for number in range(KEYS)
        ]
        gets = [get(f"/v1.0/state/statestore/order-{number}") for number in range(KEYS)]

        async def client(peer: Peer | object, requests: list[bytes], status: int) -> Client:
            port = peer.http_port  # type: ignore[attr-defined]
            made = Client(port, requests, [status] * KEYS, EVENT.encode())
            return await stack.enter_async_context(made.connected())

        our_saves, their_saves = await client(gateway, saves, 204), await client(bare, saves, 204)
        our_gets, their_gets = await client(gateway, gets, 200), await client(bare, gets, 200)
        before = {info.config.name for info in await broker.jetstream.streams_info()}
        [ours] = [name for name in before if name.startswith("KV_") and name.endswith("=2Estatestore")]
        saved = await alternate(
            "state save",
            [
                Variant("gateway", our_saves.saturate, [gateway], broker.stored(ours)),
                Variant("bare: handler + KV put", their_saves.saturate, [bare], broker.stored("KV_bench")),
            ],
            plan.rounds,
            plan.seconds * 0.75,
        )
        got = await alternate(
            "state get",
            [
                Variant("gateway", our_gets.saturate, [gateway]),
                Variant("bare: handler + KV get", their_gets.saturate, [bare]),
            ],
            plan.rounds,
            plan.seconds * 0.75,
        )
        return [*saved.values(), *got.values()]


Work = Callable[[Stage, Plan], Awaitable[list[Row]]]
WORKS: dict[str, Work] = {
    "publish": publish,
    "deliver": deliver,
    "invoke": invoke,
    "state": state,
    "grpc": grpc_works,
}


async def measured(name: str, stage: Stage, plan: Plan) -> list[Row]:
    """Do one work, and say so."""
    note(f"{name} …")
    return await WORKS[name](stage, plan)
