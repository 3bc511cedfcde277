"""Every backbone by the same works: its adapter beside the native client, and gateways over it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.app import ECHO_BODY
from bench.load import BenchError, Client, get, percentile, post
from bench.measure import Measured, Plan, Row, Sample, Variant, alternate, note
from bench.native import ADAPTER, CLIENTS, client_of
from bench.processes import Gateway, Peer, Process, Stage
from bench.works import DRAIN_SECONDS, EVENT, RATE, paced

__all__ = ["EVENT_WORKS", "NATIVE_LAYOUT", "PLAN", "QUICK_PLAN", "Measured", "measure"]

PLAN = Plan(rounds=4, seconds=0.8, rate_seconds=1.0, events=12_000)
QUICK_PLAN = Plan(rounds=2, seconds=0.3, rate_seconds=0.4, events=2_000)
LAST_EVENTS = 1
CLIENT_SECONDS = 12.0  # Rounds go on until then: those of a fast client are short, and differ more.
SETTLE_SECONDS = 5.0
PUBLISH = "/v1.0/publish/pubsub/d"
CALL = "/v1.0/invoke/callee/method/echo"
LARGE = {"1 MiB": (1024 * 1024, 8), "16 MiB": (16 * 1024 * 1024, 4)}  # And how many clients publish at once.
LARGE_PATH = "/events/large"
NATIVE_LAYOUT = "native layout"
EVENT_WORKS = ("HTTP publish", "HTTP deliver", "HTTP publish to deliver at 500/s")


async def measure(name: str, stage: Stage, plan: Plan) -> Measured:
    """Measure one backbone; a server of its own runs for that time."""
    before = os.getloadavg()[0]
    async with stage.server(name) as url:
        note(f"{name} …")
        rows = [
            *await _clients(name, url, stage, plan),
            *await _events(name, url, stage, plan),
            *await _large(name, url, stage, plan),
            *await _calls(name, url, stage, plan),
        ]
    return Measured(name, rows, (before, os.getloadavg()[0]))


class _Use:
    """What processes use from now on."""

    def __init__(self, *processes: Process) -> None:
        self._before = [(process, process.cpu()) for process in processes]

    def of(self, count: int) -> dict[str, float]:
        """Give their CPU in ms per 1,000 of so many."""
        return {process.name: (process.cpu() - before) * 1e6 / count for process, before in self._before}


def _sample(count: int, seconds: float, latencies: Sequence[float], cpu: dict[str, float]) -> Sample:
    ms = [value * 1e3 for value in latencies]
    return Sample(count, count / seconds, tuple(percentile(ms, share) for share in (50, 90, 99)) if ms else (), cpu)


async def _clients(name: str, url: str, stage: Stage, plan: Plan) -> list[Row]:
    """Publish and consume the same messages with the adapter, and with each native client."""
    works = ("publish", "consume")
    async with AsyncExitStack() as stack:
        peers: dict[str, Peer] = {}
        for number, path in enumerate((ADAPTER, *CLIENTS[name])):
            peer = await stage.peer("both", client=path, url=url, topic=f"clients{number}")
            stack.push_async_callback(stage.stop, peer)
            peers[client_of(path).title] = peer
        rows = {(work, title): Row(f"{name} {work}", title) for work in works for title in peers}
        for peer in peers.values():
            await peer.ask(count=plan.events // 4)
        started = time.monotonic()
        for number in range(3 * plan.rounds):
            if number >= plan.rounds and time.monotonic() - started > CLIENT_SECONDS:
                break
            for title in list(peers) if number % 2 == 0 else reversed(peers):
                told: dict[str, Any] = await peers[title].ask(count=plan.events)
                for work in works:
                    said = told[work]
                    cpu = {title: said["cpu"] * 1e6 / plan.events}
                    rows[work, title].samples.append(_sample(plan.events, said["seconds"], said["latencies"], cpu))
        for title, peer in peers.items():
            await peer.ask(count=LAST_EVENTS)  # What was not acked would come with them.
            for work in works:
                rows[work, title].rss = {title: peer.rss()}
        note("  " + _rates(rows.values()))
    bare = [client_of(path).title for path in CLIENTS[name][1:]]
    return [row for (work, title), row in rows.items() if (work, title) not in [("publish", each) for each in bare]]


def _rates(rows: Iterable[Row]) -> str:
    return "; ".join(f"{row.work}, {row.variant}: {row.per_second:,.0f}/s" for row in rows)


def _stamped() -> Iterator[bytes]:
    """Make requests whose events say when they were sent."""
    while True:
        yield post(PUBLISH, EVENT.replace("{", f'{{"sent":{int(time.perf_counter() * 1e9)},', 1).encode())


def _native_layout(name: str, url: str, folder: Path) -> Path:
    """Write a component on a broker's own topics, for gateways whose backbone is this stage's."""
    host = url.partition("://")[2].rpartition("@")[2].partition("?")[0]
    kind, settings = {
        "kafka": ("pubsub.kafka", {"brokers": host, "authType": "none", "initialOffset": "oldest"}),
        "nats": ("pubsub.jetstream", {"natsURL": url, "createStream": "true"}),
        "rabbitmq": ("pubsub.rabbitmq", {"connectionString": url}),
        "redis": ("pubsub.redis", {"redisHost": host}),
    }[name]
    entries = "".join(f"  - {{name: {key}, value: {value!r}}}\n" for key, value in settings.items())
    folder.mkdir()
    (folder / "pubsub.yaml").write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: pubsub}\n"
        f"spec:\n  type: {kind}\n  version: v1\n  metadata:\n{entries}"
    )
    return folder


@dataclass(frozen=True)
class _Line:
    """Two processes: one publishes what it gets by HTTP, the other delivers it by HTTP."""

    publisher: Gateway | Peer
    consumer: Gateway | Peer
    path: str
    clients: list[Client] = field(default_factory=list)


async def _events(name: str, url: str, stage: Stage, plan: Plan) -> list[Row]:
    """Publish by HTTP and deliver the same events by HTTP: in both layouts, and with aiohttp and the native client."""
    native = CLIENTS[name][0]
    resources = _native_layout(name, url, stage.directory / f"native-{name}")
    route, bare_route = "/events/gateway", "/events/bare"
    options = {"client": native, "url": url, "topic": "line"}
    async with AsyncExitStack() as stack:
        # Else records without a key follow each other in Kafka's native layout, and in no other line.
        subscription = {"pubsubname": "pubsub", "topic": "d", "route": route, "metadata": {"ordered": "false"}}
        app = await stage.peer("app", subscriptions=[subscription])
        lines = {
            "gateway": _Line(
                await stage.gateway("publisher", backbone=url),
                await stage.gateway("subscriber", app.http_port, backbone=url),
                route,
            ),
            NATIVE_LAYOUT: _Line(
                await stage.gateway("native-publisher", resources=resources),
                await stage.gateway("native-subscriber", app.http_port, resources=resources),
                route,
            ),
            f"bare: aiohttp + {client_of(native).title}": _Line(
                await stage.peer("publisher", **options),
                await stage.peer("consumer", app_port=app.http_port, path=bare_route, **options),
                bare_route,
            ),
        }
        for line in lines.values():
            stack.push_async_callback(stage.stop, line.publisher, line.consumer)
            for requests in ([post(PUBLISH, EVENT.encode())], _stamped()):
                client = Client(line.publisher.http_port, requests, [204])
                line.clients.append(await stack.enter_async_context(client.connected()))
        stack.push_async_callback(stage.stop, app)
        rows = {title: [Row(f"{name} {work}", title) for work in EVENT_WORKS] for title in lines}
        for title, line in lines.items():
            await _event_round(app, line, plan.seconds / 2, plan.rate_seconds / 2)
            for row, processes in zip(rows[title], _processes(line), strict=True):
                row.rss = {process.name: process.rss() for process in processes}
        for number in range(plan.rounds):
            for title in list(lines) if number % 2 == 0 else reversed(lines):
                samples = await _event_round(app, lines[title], plan.seconds, plan.rate_seconds)
                for row, sample in zip(rows[title], samples, strict=True):
                    row.samples.append(sample)
        note("  " + _rates(found := [row for three in zip(*rows.values(), strict=True) for row in three]))
        return found


def _processes(line: _Line) -> list[list[Process]]:
    """Give those that do each of the three works."""
    return [[line.publisher], [line.consumer], [line.publisher, line.consumer]]


async def _event_round(app: Peer, line: _Line, seconds: float, rate_seconds: float) -> list[Sample]:
    """Publish while the application holds what comes first; let it go; then both at a fixed rate."""
    saturating, stamped = line.clients
    await app.ask(do="hold")
    publishing, delivering = _Use(line.publisher), _Use(line.consumer)
    load = await saturating.saturate(seconds)
    count = load.count
    samples = [_sample(count, load.seconds, load.latencies, publishing.of(count))]
    started = time.perf_counter()
    told = await app.ask(do="release", path=line.path, count=count, seconds=DRAIN_SECONDS)
    taken = time.perf_counter() - started
    if told["counts"] != {line.path: count}:
        raise BenchError(f"the application counted {told['counts']}, {count} were published")
    samples.append(_sample(count, taken, (), delivering.of(count)))
    await app.ask(do="time", on=True)
    both = _Use(line.publisher, line.consumer)
    load = await stamped.at_rate(RATE, rate_seconds)
    latencies = await _latencies(app, load.count)
    samples.append(_sample(load.count, load.seconds, latencies, both.of(load.count)))
    await app.ask(do="time", on=False)
    return samples


async def _latencies(app: Peer, count: int) -> list[float]:
    """Wait until so many were delivered; give how long each took."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        latencies: list[float] = (await app.ask(do="latencies"))["latencies"]  # type: ignore[assignment]
        if len(latencies) == count:
            return latencies
        if len(latencies) > count or time.monotonic() > deadline:
            raise BenchError(f"{count} events were published, {len(latencies)} delivered")
        await asyncio.sleep(0.02)


async def _large(name: str, url: str, stage: Stage, plan: Plan) -> list[Row]:
    """Publish large events by HTTP until all of them were delivered by HTTP."""
    async with AsyncExitStack() as stack:
        app = await stage.peer("app", subscriptions=[{"pubsubname": "pubsub", "topic": "l", "route": LARGE_PATH}])
        more = ("--max-body-size", "32Mi")
        gateways = [
            await stage.gateway("publisher", backbone=url, further=more),
            await stage.gateway("subscriber", app.http_port, backbone=url, further=more),
        ]
        stack.push_async_callback(stage.stop, *gateways, app)
        rows = {title: Row(f"{name} large events", title) for title in LARGE}
        for title, (size, clients) in LARGE.items():
            event = b'{"data":"%b"}' % (b"x" * (size - len(b'{"data":""}')))
            client = Client(gateways[0].http_port, [post("/v1.0/publish/pubsub/l", event)], [204])
            await stack.enter_async_context(client.connected(clients))
            await _large_round(app, client, gateways, plan.seconds / 2)
            for _ in range(plan.rounds):
                rows[title].samples.append(await _large_round(app, client, gateways, plan.seconds))
            rows[title].rss = {gateway.name: gateway.rss() for gateway in gateways}
        note("  " + _rates(rows.values()))
        return [*rows.values()]


async def _large_round(app: Peer, client: Client, gateways: Sequence[Process], seconds: float) -> Sample:
    await app.ask(do="time", on=False)  # It counts anew.
    use, started = _Use(*gateways), time.perf_counter()
    count = (await client.saturate(seconds)).count
    while (told := await app.ask(do="counts"))["counts"] != {LARGE_PATH: count}:
        if time.perf_counter() - started > DRAIN_SECONDS:
            raise BenchError(f"the application counted {told['counts']}, {count} were published")
        await asyncio.sleep(0.02)
    return _sample(count, time.perf_counter() - started, (), use.of(count))


async def _calls(name: str, url: str, stage: Stage, plan: Plan) -> list[Row]:
    """Call an application through two gateways: over this backbone, over NATS, and directly."""
    async with AsyncExitStack() as stack:
        app = await stage.peer("app")
        requests = [get(CALL), post(CALL, EVENT.encode())]
        clients: dict[str, tuple[Client, list[Process]]] = {}

        async def add(title: str, port: int, target: list[bytes], processes: list[Process]) -> None:
            made = Client(port, target, [200, 200], ECHO_BODY)
            clients[title] = await stack.enter_async_context(made.connected()), processes

        for over, where in {name: url, "nats": stage.nats_url}.items():
            callee = await stage.gateway("callee", app.http_port, backbone=where)
            caller = await stage.gateway("caller", backbone=where)
            stack.push_async_callback(stage.stop, caller, callee)
            await add(f"gateways over {over}", caller.http_port, requests, [caller, callee])
        await add("direct call", app.http_port, [get("/echo"), post("/echo", EVENT.encode())], [app])
        stack.push_async_callback(stage.stop, app)
        full = [Variant(title, client.saturate, used) for title, (client, used) in clients.items()]
        rated = [Variant(title, paced(client), used) for title, (client, used) in clients.items()]
        return [
            *(await alternate(f"{name} invoke", full, plan.rounds, plan.seconds)).values(),
            *(await alternate(f"{name} invoke at 500/s", rated, plan.rounds, plan.rate_seconds)).values(),
        ]
