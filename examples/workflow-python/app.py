"""A worker over HTTP: an order is paid with retries, approved by an event within a time, and packed all at once."""

import os
from functools import partial

from aiohttp import web


def order(ask, given):
    payment = yield ask(activity="charge", input=given["total"], retry={"attempts": 4, "first": "100ms"})
    try:
        if given["total"] > 1000:
            approved = yield first_of(ask(wait="approve"), ask(timer=given.get("patience", "1h")))
            if not approved:  # A timer gives None.
                raise RuntimeError("not approved")
        parcels = [ask(activity="pack", input=item) for item in given["items"]]  # All are asked for at once,
        for number, parcel in enumerate(parcels):
            parcels[number] = yield parcel  # and then each is waited for.
        return {"state": "sent", "payment": payment, "parcels": parcels}
    except RuntimeError as failure:
        yield ask(operation="publish", pubsub="pubsub", topic="refunds", data=payment)
        return {"state": "refused", "reason": str(failure)}


async def charge(total, headers):
    if headers["mesh-workflow-attempt"] == "1":
        raise ConnectionError("the bank is away")
    return f"payment of {total}"


async def pack(item, headers):
    return f"a box with a {item}"


def run(code, turn):
    """Run a workflow from its beginning over its history; give all that it has asked for, and how it ended."""
    actions, came = [], {}
    for at, event in enumerate(turn["history"]):
        if event["event"] in ("completed", "failed", "fired", "raised"):
            outcome = at, event.get("result", event.get("data")), event.get("error")
            came.setdefault(event.get("task", event.get("name")), []).append(outcome)

    def ask(**action):  # Gives what has come of it, for `yield`; None if nothing has.
        actions.append(action)
        outcomes = came.get(action.get("wait", len(actions)))
        return outcomes.pop(0) if outcomes else None

    steps = code(ask, turn["input"])
    try:
        task = next(steps)
        while task:  # What the code waits for has come, so it goes on.
            _, result, error = task
            task = steps.throw(RuntimeError(f"{error['type']}: {error['message']}")) if error else steps.send(result)
    except StopIteration as end:
        return {"actions": actions, "complete": end.value}
    except Exception as error:
        return {"actions": actions, "fail": {"type": type(error).__name__, "message": str(error)}}
    return {"actions": actions}


def first_of(*tasks):
    return min((task for task in tasks if task), default=None)


async def config(request):
    return web.json_response({"workflows": ["order"], "activities": ["charge", "pack"]})


async def turn(code, request):
    return web.json_response(run(code, await request.json()))


async def activity(function, request):
    try:
        given = await request.json() if request.can_read_body else None
        return web.json_response(await function(given, request.headers))
    except Exception as error:
        return web.json_response({"type": type(error).__name__, "message": str(error)}, status=500)


app = web.Application(client_max_size=2**30)  # A turn brings the whole history.
app.add_routes([web.get("/dapr/config", config), web.post("/workflow/run/order", partial(turn, order))])
app.add_routes(web.post(f"/workflow/activity/{each.__name__}", partial(activity, each)) for each in (charge, pack))
web.run_app(app, host="127.0.0.1", port=int(os.environ.get("APP_PORT", "3000")))
