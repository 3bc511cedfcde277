"""An application that records what reaches it; what it does is told by the events and calls themselves.

Event data (``POST /events/<kind>``): ``{"id": …}`` is recorded under the kind of its path. Further members:

* ``hold``: record ``begin`` first, and go on after ``POST /release``; cancelled meanwhile, record ``cancelled``
* ``seconds``: the same, for so long
* ``publish``: before answering, publish the id to this topic through the gateway, and record ``published``
* ``call``: before answering, invoke ``/echo`` of this application, and record ``called``
* ``status``: answer this HTTP status
* ``crash``: end the process at once, so many times; each is recorded as ``crash``

Jobs are recorded as ``job``, under their names.

Calls: any other path is echoed; ``/calls/hold`` holds like above (id in ``?id=``); ``/calls/stream`` streams a
line after every one that ``POST /tick`` asks for, and ``/calls/flow`` streams without end.
"""

from __future__ import annotations

import asyncio
import json
import os

import aiohttp
import uvloop
from aiohttp import web

GATEWAY = f"http://127.0.0.1:{os.environ.get('DAPR_HTTP_PORT', '0')}/v1.0"
RECORDS = os.open(os.environ["APP_RECORDS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
SUBSCRIPTIONS = os.environ.get("APP_SUBSCRIPTIONS", "[]")


def record(kind: str, identity: object) -> None:
    os.write(RECORDS, f"{kind} {identity} {os.getpid()}\n".encode())


def times_recorded(kind: str, identity: object) -> int:
    with open(os.environ["APP_RECORDS"]) as records:
        return sum(line.startswith(f"{kind} {identity} ") for line in records)


class Recorder:
    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.ticks = asyncio.Semaphore(0)

    async def hold(self, identity: object) -> None:
        record("begin", identity)
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            record("cancelled", identity)
            raise

    async def event(self, request: web.Request) -> web.Response:
        data = json.loads(await request.read())["data"]
        identity = data["id"]
        if data.get("crash") and times_recorded("crash", identity) < data["crash"]:
            record("crash", identity)
            os._exit(1)
        if data.get("hold"):
            await self.hold(identity)
        if data.get("seconds"):
            record("begin", identity)
            await asyncio.sleep(data["seconds"])
        await self.call_out(data)
        record(request.match_info["kind"], identity)
        return web.Response(status=data.get("status", 200))

    async def call_out(self, data: dict[str, object]) -> None:
        identity = data["id"]
        if "publish" not in data and "call" not in data:
            return
        async with aiohttp.ClientSession(raise_for_status=True) as session:
            if "publish" in data:
                url = f"{GATEWAY}/publish/pubsub/{data['publish']}"
                async with session.post(url, json={"id": f"{identity}-out"}):
                    record("published", identity)
            if "call" in data:
                async with session.get(f"{GATEWAY}/invoke/{data['call']}/method/echo"):
                    record("called", identity)

    async def release(self, request: web.Request) -> web.Response:
        released, self.released = self.released, asyncio.Event()
        released.set()
        return web.Response()

    async def tick(self, request: web.Request) -> web.Response:
        self.ticks.release()
        return web.Response()

    async def held(self, request: web.Request) -> web.Response:
        identity = request.query.get("id", "call")
        await self.hold(identity)
        record("call", identity)
        return web.json_response({"pid": os.getpid()})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        record("begin", "stream")
        try:
            while True:
                await self.ticks.acquire()
                await response.write(b"tick\n")
        except (asyncio.CancelledError, ConnectionError):
            record("cancelled", "stream")
            raise

    async def flow(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        record("begin", "flow")
        try:
            while True:
                await response.write(b"x" * 65536)
        except (asyncio.CancelledError, ConnectionError):
            record("cancelled", "flow")
            raise

    async def job(self, request: web.Request) -> web.Response:
        record("job", request.match_info["name"])
        return web.Response()

    async def echo(self, request: web.Request) -> web.Response:
        body = await request.read()
        identity = request.query.get("id")
        if identity is not None:
            record("call", identity)
        return web.json_response(
            {
                "pid": os.getpid(),
                "method": request.method,
                "path": request.path_qs,
                "headers": dict(request.headers),
                "body": body.decode(errors="replace"),
            }
        )


async def _subscribe(request: web.Request) -> web.Response:
    return web.Response(text=SUBSCRIPTIONS, content_type="application/json")


async def _ready(request: web.Request) -> web.Response:
    return web.Response()


def application() -> web.Application:
    recorder = Recorder()
    app = web.Application(client_max_size=128 * 1024 * 1024)
    app.router.add_get("/ready", _ready)
    app.router.add_get("/dapr/subscribe", _subscribe)
    app.router.add_post("/events/{kind}", recorder.event)
    app.router.add_post("/job/{name}", recorder.job)
    app.router.add_post("/release", recorder.release)
    app.router.add_post("/tick", recorder.tick)
    app.router.add_route("*", "/calls/hold", recorder.held)
    app.router.add_get("/calls/stream", recorder.stream)
    app.router.add_get("/calls/flow", recorder.flow)
    app.router.add_route("*", "/{path:.*}", recorder.echo)
    return app


if __name__ == "__main__":
    uvloop.install()
    web.run_app(
        application(),
        host="127.0.0.1",
        port=int(os.environ["APP_PORT"]),
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=5.0,
        print=None,
    )
