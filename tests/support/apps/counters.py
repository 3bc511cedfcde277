"""An application that hosts actors which count, takes jobs, and records what it is asked to do.

A turn reads the count of its actor, waits a moment, and writes the next one. Beside the count it writes, in the same
transaction, a key that no other turn has: ``w<count>-<turn id>``, with what the count was made from. So the store holds
each write that it ever accepted, and a write that did not follow the one before it cannot hide.

Another method holds its turn for a moment, and keeps nothing.

A turn goes on when the gateway breaks off, as in most applications. Records are lines ``<kind> <JSON> <pid>``:

* ``begin``, ``end``: a turn: its actor, turn id, what asked for it, and Unix time
* ``try``: before a transaction: actor and key; ``done``: the same, after it was answered 204
* ``job``: its name and Unix time
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator

import aiohttp
import uvloop
from aiohttp import web

GATEWAY = f"http://127.0.0.1:{os.environ['DAPR_HTTP_PORT']}/v1.0/actors"
RECORDS = os.open(os.environ["APP_RECORDS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
LONGEST_PAUSE = 0.03
HELD = 0.3
CONFIG = {"entities": ["counter"], "drainOngoingCallTimeout": "10s"}


def record(kind: str, **values: object) -> None:
    os.write(RECORDS, f"{kind} {json.dumps(values, separators=(',', ':'))} {os.getpid()}\n".encode())


class Counters:
    session: aiohttp.ClientSession

    async def connected(self, app: web.Application) -> AsyncIterator[None]:
        """Have a session while the application runs."""
        timeout = aiohttp.ClientTimeout(total=60.0)
        async with aiohttp.ClientSession(timeout=timeout, raise_for_status=True) as self.session:
            yield

    async def turn(self, request: web.Request) -> web.Response:
        """Count one more; what asked for it is told by the call's body, or the reminder's name."""
        actor, turn = request.match_info["id"], request.headers["mesh-turn-id"]
        body = await request.text()
        asked_by = f"reminder {request.match_info['name']}" if "name" in request.match_info else f"call {body}"
        asked_by = asked_by.replace(" ", ":")
        record("begin", actor=actor, turn=turn, by=asked_by, at=time.time())
        try:
            return web.json_response(await self._count(actor, turn, asked_by))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return web.Response(status=500, text=repr(error))
        finally:
            record("end", actor=actor, turn=turn, by=asked_by, at=time.time())

    async def _count(self, actor: str, turn: str, asked_by: str) -> int:
        async with self.session.get(f"{GATEWAY}/counter/{actor}/state/count") as response:
            before = await response.json() if response.status == 200 else {"count": 0, "turn": ""}
        await asyncio.sleep(random.uniform(0.0, LONGEST_PAUSE))
        count = before["count"] + 1
        values = {
            "count": {"count": count, "turn": turn},
            f"w{count}-{turn}": {"after": before["turn"], "by": asked_by},
        }
        record("try", actor=actor, key=f"w{count}-{turn}")
        upserts = [{"operation": "upsert", "request": {"key": key, "value": value}} for key, value in values.items()]
        async with self.session.post(f"{GATEWAY}/counter/{actor}/state", json=upserts):
            record("done", actor=actor, key=f"w{count}-{turn}")
        return count


async def _hold(request: web.Request) -> web.Response:
    """Have a turn that takes a moment, and no state."""
    turn = {"actor": request.match_info["id"], "turn": request.headers["mesh-turn-id"]}
    turn["by"] = f"call:{await request.text()}"
    record("begin", **turn, at=time.time())
    await asyncio.sleep(HELD)
    record("end", **turn, at=time.time())
    return web.Response()


async def _job(request: web.Request) -> web.Response:
    record("job", by=request.match_info["name"], at=time.time())
    return web.Response()


async def _ready(request: web.Request) -> web.Response:
    return web.Response()


async def _config(request: web.Request) -> web.Response:
    return web.json_response(CONFIG)


def application() -> web.Application:
    counters = Counters()
    app = web.Application()
    app.cleanup_ctx.append(counters.connected)
    app.router.add_get("/ready", _ready)
    app.router.add_get("/dapr/config", _config)
    app.router.add_put("/actors/counter/{id}/method/add", counters.turn)
    app.router.add_put("/actors/counter/{id}/method/remind/{name}", counters.turn)
    app.router.add_put("/actors/counter/{id}/method/hold", _hold)
    app.router.add_delete("/actors/counter/{id}", _ready)
    app.router.add_post("/job/{name}", _job)
    return app


if __name__ == "__main__":
    uvloop.install()
    web.run_app(application(), host="127.0.0.1", port=int(os.environ["APP_PORT"]), access_log=None, print=None)
