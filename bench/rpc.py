"""gRPC beside the same work over HTTP, and beside bare servers of the gateway's library and of gRPC's own."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import grpc.aio
import uvloop
from httpunk.asyncio import H2ServerProtocol
from httpunk.h2.server import ServerRequest

from bench.app import ECHO_BODY
from bench.bare import idle
from bench.load import ANSWER_SECONDS, CONNECTIONS, BenchError, Client, Load, get, post
from bench.measure import Plan, Row, Variant, alternate
from bench.peer import control
from bench.processes import Stage
from gateway.grpc.messages import message
from gateway.grpc.wire import CONTENT_TYPE, framed, status_of
from gateway.http2.client import HTTP2Client

__all__ = ["EVENT", "grpc_works"]

EVENT = json.dumps({"orderId": "41", "customer": "c-1027", "note": "x" * 154}, separators=(",", ":"))
KEYS = 100
HEADERS = [("content-type", CONTENT_TYPE), ("te", "trailers")]
SERVICE = "/dapr.proto.runtime.v1.Dapr/"
ANSWER = framed(message("GetStateResponse")(data=EVENT.encode(), etag="1").SerializeToString())


class Calls:
    """The load: unary calls over one connection, as many at once as the load over HTTP has connections."""

    def __init__(
        self, http2: HTTP2Client, path: str, requests: Sequence[bytes], headers: Sequence[tuple[str, str]]
    ) -> None:
        self._http2, self._path = http2, path
        self._requests = itertools.cycle(framed(each) for each in requests)
        self._headers = [*HEADERS, *headers]

    async def saturate(self, seconds: float) -> Load:
        """Call again as soon as there is an answer; every status is looked at."""
        load, started = Load(), time.perf_counter()
        until = started + seconds

        async def worker() -> None:
            before = time.perf_counter()
            while before < until:
                await self._call()
                after = time.perf_counter()
                load.latencies.append(after - before)
                before = after

        async with asyncio.timeout(seconds + ANSWER_SECONDS), asyncio.TaskGroup() as tasks:
            for _ in range(CONNECTIONS):
                tasks.create_task(worker())
        load.seconds = time.perf_counter() - started
        return load

    async def _call(self) -> None:
        async with self._http2.call("POST", self._path, self._headers, next(self._requests)) as answer:
            async for _ in answer.parts():
                pass
            failure = status_of([*answer.headers, *answer.trailers])
            if failure is not None:
                raise BenchError(f"{self._path}: {failure.code.name}: {failure.message}")


@asynccontextmanager
async def calls(
    port: int, name: str, requests: Sequence[bytes], headers: Sequence[tuple[str, str]] = ()
) -> AsyncIterator[Calls]:
    """Connect."""
    async with HTTP2Client("127.0.0.1", port) as http2:
        yield Calls(http2, name if name.startswith("/") else SERVICE + name, requests, headers)


async def grpc_works(stage: Stage, plan: Plan) -> list[Row]:
    """Get state, publish, and call another application: over gRPC and over HTTP."""
    return [*await _get_and_publish(stage, plan), *await _invoke(stage, plan)]


async def _get_and_publish(stage: Stage, plan: Plan) -> list[Row]:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        gateway = await stage.gateway("both")
        bare, official = await stage.peer("bare", rpc=True), await stage.peer("official", rpc=True)
        stack.push_async_callback(stage.stop, gateway, bare, official)
        saves = [post("/v1.0/state/statestore", f'[{{"key":"k{n}","value":{EVENT}}}]'.encode()) for n in range(KEYS)]
        async with Client(gateway.http_port, saves, [204]).connected(1) as client:
            await client.saturate(0.3)
        kind = message("GetStateRequest")
        gets = [kind(store_name="statestore", key=f"k{number}").SerializeToString() for number in range(KEYS)]
        over_grpc = await enter(calls(gateway.grpc_port, "GetState", gets))
        over_bare = await enter(calls(bare.http_port, "GetState", gets))
        over_official = await enter(calls(official.http_port, "GetState", gets))
        requests = [get(f"/v1.0/state/statestore/k{number}") for number in range(KEYS)]
        over_http = await enter(Client(gateway.http_port, requests, [200], EVENT.encode()).connected())
        got = await alternate(
            "grpc get state",
            [
                Variant("gateway", over_grpc.saturate, [gateway]),
                Variant("gateway, over HTTP", over_http.saturate, [gateway]),
                Variant("bare: httpunk", over_bare.saturate, [bare]),
                Variant("bare: grpcio", over_official.saturate, [official]),
            ],
            plan.rounds,
            plan.seconds * 0.75,
        )
        publish = message("PublishEventRequest")(
            pubsub_name="pubsub", topic="t", data=EVENT.encode(), data_content_type="application/json"
        )
        publishing = await enter(calls(gateway.grpc_port, "PublishEvent", [publish.SerializeToString()]))
        posting = Client(gateway.http_port, [post("/v1.0/publish/pubsub/t", EVENT.encode())], [204])
        await enter(posting.connected())
        published = await alternate(
            "grpc publish",
            [
                Variant("gateway", publishing.saturate, [gateway]),
                Variant("gateway, over HTTP", posting.saturate, [gateway]),
            ],
            plan.rounds,
            plan.seconds * 0.75,
        )
        return [*got.values(), *published.values()]


async def _invoke(stage: Stage, plan: Plan) -> list[Row]:
    """Pass calls on to an application on gRPC, beside calls of one on HTTP; what answers is not counted."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        bare, app = await stage.peer("bare", rpc=True), await stage.peer("app")
        callee = await stage.gateway("grpc-callee", bare.http_port, protocol="grpc")
        http_callee = await stage.gateway("http-callee", app.http_port)
        caller = await stage.gateway("caller")
        stack.push_async_callback(stage.stop, caller, callee, http_callee, bare, app)
        passing = await enter(
            calls(caller.grpc_port, "/shop.Orders/Get", [EVENT.encode()], [("dapr-app-id", "grpc-callee")])
        )
        request = post("/v1.0/invoke/http-callee/method/echo", EVENT.encode())
        posting = await enter(Client(caller.http_port, [request], [200], ECHO_BODY).connected())
        rows = await alternate(
            "grpc invoke",
            [
                Variant("gateway", passing.saturate, [caller, callee]),
                Variant("gateway, over HTTP", posting.saturate, [caller, http_callee]),
            ],
            plan.rounds,
            plan.seconds * 0.75,
        )
        return [*rows.values()]


class _Bare(H2ServerProtocol):
    async def handle(self, request: ServerRequest) -> None:
        await request.read()
        if "AppCallback" in (request.path or ""):
            await request.respond(200, headers=[HEADERS[0], ("grpc-status", "12")])
            return
        await request.respond(200, headers=[HEADERS[0]], body=ANSWER, trailers=[("grpc-status", "0")])


async def bare() -> None:
    """Answer any call with the library that the gateway stands on, unread."""
    server = await asyncio.get_running_loop().create_server(_Bare, "127.0.0.1", 0)
    await control(server.sockets[0].getsockname()[1], idle)


class _Any(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        async def answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            return ANSWER[5:]

        return grpc.unary_unary_rpc_method_handler(answer)


async def official() -> None:
    """Answer any call with gRPC's own server for asyncio."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Any(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await control(port, idle)


ROLES = {role.__name__: role for role in (bare, official)}

if __name__ == "__main__":
    # gRPC's own knows asyncio's event loop alone.
    loop_factory = None if sys.argv[1] == "official" else uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(ROLES[sys.argv[1]]())
