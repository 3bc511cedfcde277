"""Accounts as actors with a reminder, a job, calls and state: something of each for whoever looks at it."""

import os

import aiohttp
from aiohttp import web

GATEWAY = f"http://127.0.0.1:{os.environ['DAPR_HTTP_PORT']}/v1.0"


async def config(request: web.Request) -> web.Response:
    return web.json_response({"entities": ["account"], "actorIdleTimeout": "10m"})


async def turn(request: web.Request) -> web.Response:
    """A deposit, which is kept; or a reminder, which is taken."""
    if request.method == "DELETE":
        return web.Response()
    actor, by = request.match_info["actor"], (await request.json() if request.can_read_body else None)
    if request.match_info["method"] == "deposit":
        url = f"{GATEWAY}/actors/account/{actor}/state"
        async with request.app["session"].get(f"{url}/balance") as kept:
            balance = (await kept.json() if kept.status == 200 else 0) + by
        change = [{"operation": "upsert", "request": {"key": "balance", "value": balance}}]
        async with request.app["session"].post(url, json=change) as answer:
            answer.raise_for_status()
        return web.json_response(balance)
    return web.Response()


async def rate(request: web.Request) -> web.Response:
    """Every currency but one has a rate."""
    if request.match_info["currency"] == "dukat":
        return web.json_response({"error": "nobody pays with this any more"}, status=500)
    return web.json_response({"currency": request.match_info["currency"], "rate": 1.5})


async def job(request: web.Request) -> web.Response:
    return web.Response()


async def session(app: web.Application) -> object:
    async with aiohttp.ClientSession() as app["session"]:
        yield


app = web.Application()
app.cleanup_ctx.append(session)
app.add_routes(
    [
        web.get("/dapr/config", config),
        web.route("*", "/actors/account/{actor}/method/{method:.*}", turn),
        web.delete("/actors/account/{actor}", turn),
        web.get("/rates/{currency}", rate),
        web.post("/job/{name}", job),
    ]
)
if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(os.environ["APP_PORT"]), print=None, access_log=None)
