"""Actors on the unmodified Python SDK.

The first argument is what hosts them: ``fastapi``, ``flask`` or ``grpc``, a stream that the application opens. Or it is
``client``; then it prints what it saw of each of the hosts that follow, as one line of JSON.
"""

import asyncio
import json
import os
import sys
import time
from datetime import timedelta

from dapr.actor import Actor, ActorId, ActorInterface, ActorProxy, ActorRuntime, Remindable, actormethod
from dapr.actor.runtime.config import ActorReentrancyConfig, ActorRuntimeConfig, ActorTypeConfig
from dapr.actor.runtime.failure_policy import ActorReminderFailurePolicy
from dapr.clients.exceptions import DaprInternalError
from dapr.serializers import DefaultJSONSerializer

HOST = sys.argv[1]
NOW, SOON, OFTEN = timedelta(0), timedelta(milliseconds=50), timedelta(milliseconds=200)
DEPTH = 4
happened = []
"""What the actors of this process were told by timers, reminders and deactivations."""


class Shop(ActorInterface):
    @actormethod(name="Echo")
    async def echo(self, data: object) -> object: ...
    @actormethod(name="Nothing")
    async def nothing(self) -> object: ...
    @actormethod(name="Fail")
    async def fail(self) -> object: ...
    @actormethod(name="Add")
    async def add(self, more: object) -> object: ...
    @actormethod(name="Keep")
    async def keep(self) -> object: ...
    @actormethod(name="Kept")
    async def kept(self) -> object: ...
    @actormethod(name="StartTimers")
    async def start_timers(self) -> object: ...
    @actormethod(name="StopTimer")
    async def stop_timer(self, name: object) -> object: ...
    @actormethod(name="StartReminders")
    async def start_reminders(self) -> object: ...
    @actormethod(name="StopReminder")
    async def stop_reminder(self, name: object) -> object: ...
    @actormethod(name="Visit")
    async def visit(self, path: object) -> object: ...
    @actormethod(name="Happened")
    async def happened(self) -> object: ...


class Brief(ActorInterface):
    @actormethod(name="Count")
    async def count(self) -> object: ...


class ShopActor(Actor, Shop, Remindable):
    async def echo(self, data):
        return data

    async def nothing(self):
        return None

    async def fail(self):
        raise DaprInternalError("the shop is closed", "SHOP_CLOSED")

    async def add(self, more):
        _, count = await self._state_manager.try_get_state("count")
        await asyncio.sleep(0.001)  # Another turn would come between.
        await self._state_manager.set_state("count", (count or 0) + more)
        return (count or 0) + more

    async def keep(self):
        states = self._state_manager
        await states.set_state("json", {"a": [1, None, "ü"]})
        await states.set_state("text", "plain")
        await states.add_state("gone", 1)
        await states.set_state_ttl("brief", "soon gone", 1)
        seen = {"added": await states.try_add_state("new", 0), "again": await states.try_add_state("text", "other")}
        await states.save_state()
        await states.remove_state("gone")
        seen["changed"] = await states.add_or_update_state("new", 0, lambda _, value: value + 5)
        await states.save_state()
        return seen

    async def kept(self):
        states = self._state_manager
        await states.clear_cache()  # So that it is read.
        return {name: await states.try_get_state(name) for name in ("json", "text", "gone", "brief", "new")}

    async def start_timers(self):
        await self.register_timer("often", self.on_timer, {"of": "often"}, SOON, OFTEN)
        await self.register_timer("once", self.on_timer, "once", NOW, NOW)
        await self.register_timer("brief", self.on_timer, None, NOW, OFTEN, timedelta(milliseconds=300))

    async def stop_timer(self, name):
        await self.unregister_timer(name)
        await self.register_timer("later", self.on_timer, "later", NOW, OFTEN)

    async def on_timer(self, state):
        happened.append(["timer", state])

    async def start_reminders(self):
        policies = ActorReminderFailurePolicy
        await self.register_reminder("often", b"\x00\xff", NOW, OFTEN)
        await self.register_reminder("once", b"", SOON)
        await self.register_reminder("brief", b"brief", NOW, OFTEN, timedelta(milliseconds=300))
        retried = policies.constant_policy(interval=SOON, max_retries=5)
        await self.register_reminder("retried", b"retried", NOW, failure_policy=retried)
        await self.register_reminder("dropped", b"dropped", NOW, failure_policy=policies.drop_policy())

    async def stop_reminder(self, name):
        await self.unregister_reminder(name)
        await self.register_reminder("later", b"later", NOW, OFTEN)

    async def receive_reminder(self, name, state, due_time, period, ttl=None):
        happened.append(["reminder", name, state.hex()])
        if name == "dropped" or (name == "retried" and happened.count(happened[-1]) < 3):
            raise ValueError("not yet")

    async def visit(self, path):
        """Call the actors of a path, one from the other, and come back."""
        if not path:
            return [self.id.id]
        client = self.runtime_ctx.dapr_client
        serializer = DefaultJSONSerializer()
        other = ActorProxy(client, type(self).__name__, ActorId(path[0]), Shop, serializer)
        return [self.id.id, *await other.Visit(path[1:])]

    async def happened(self):
        return happened


class BriefActor(Actor, Brief):
    async def _on_activate(self):
        happened.append(["activated", self.id.id])

    async def _on_deactivate(self):
        happened.append(["deactivated", self.id.id])

    async def count(self):
        count = await self._state_manager.get_or_add_state("count", 0) + 1
        await self._state_manager.set_state("count", count)
        return count


ACTORS = (ShopActor, BriefActor)


async def until(call, enough):
    """Ask until the answer is enough."""
    end = time.monotonic() + 60
    while True:
        try:
            answer = await call()
        except DaprInternalError as error:  # There may be no host yet.
            answer = error
        else:
            if enough(answer):
                return answer
        assert time.monotonic() < end, answer
        await asyncio.sleep(0.05)


async def refused(call):
    try:
        return ["answered", await call]
    except DaprInternalError as error:
        return str(error)


async def together(calls):
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(each) for each in calls]
    return [each.result() for each in running]


async def use(host):
    def shop(name):
        return ActorProxy.create(f"ShopActor_{host}", ActorId(name), Shop)

    one, brief = shop("one"), ActorProxy.create(f"BriefActor_{host}", ActorId("b"), Brief)
    await until(one.Nothing, lambda _: True)
    seen = {
        "echo": await one.Echo({"a": [1, None, "ü"]}),
        "nothing": await one.Nothing(),
        "raw": (await one.invoke_method("Echo", b'{ "raw": 1 }')).decode(),
        "failed": await refused(one.Fail()),
        "unknown": await refused(one.invoke_method("Unheard")),
        "added": sorted(await together(one.Add(1) for _ in range(8))),
        "count": await brief.Count(),
        "keep": await one.Keep(),
        "deep": await one.Visit(["two", "one"]),
        "too_deep": await refused(shop("three").Visit(["four", "three"] * DEPTH)),
    }
    await one.StartTimers()
    await shop("two").StartReminders()

    async def told(*wanted):
        """Wait until the host was told these, each so often."""
        return await until(one.Happened, lambda all_: all(all_.count(each) >= count for each, count in wanted))

    fired = {
        "often": ["timer", {"of": "often"}],
        "once": ["timer", "once"],
        "brief": ["timer", None],
        "reminded": ["reminder", "often", "00ff"],
        "empty": ["reminder", "once", ""],
        "retried": ["reminder", "retried", b"retried".hex()],
        "dropped": ["reminder", "dropped", b"dropped".hex()],
        "briefly": ["reminder", "brief", b"brief".hex()],
    }
    least = {"often": 3, "reminded": 3, "retried": 3}
    await told(*((each, least.get(name, 1)) for name, each in fired.items()))
    await one.StopTimer("often")
    await shop("two").StopReminder("often")
    before = await one.Happened()
    after = await told((["timer", "later"], 3), (["reminder", "later", b"later".hex()], 3))
    seen["after"] = {name: after.count(each) - before.count(each) for name, each in fired.items()}
    seen["times"] = {name: after.count(each) for name, each in fired.items()}
    await told((["deactivated", "b"], 1))
    seen["counted"] = await brief.Count()
    seen["life"] = [each for each in await one.Happened() if each[-1] == "b"][:3]
    seen["kept"] = await until(one.Kept, lambda kept: not kept["brief"][0])
    return seen


async def main(hosts):
    nobody = ActorProxy.create("Nobody", ActorId("1"), Shop)
    refusal, *seen = await together([refused(nobody.Nothing()), *map(use, hosts)])
    print(json.dumps({"nobody": refusal, **dict(zip(hosts, seen, strict=True))}), flush=True)


def serve():
    port = int(os.environ["APP_PORT"])
    for each in ACTORS:
        each.__name__ = f"{each.__name__}_{HOST}"
    brief = ActorTypeConfig(BriefActor.__name__, actor_idle_timeout=timedelta(seconds=1))
    reentrancy = ActorReentrancyConfig(enabled=True, maxStackDepth=DEPTH)
    ActorRuntime.set_actor_config(ActorRuntimeConfig(reentrancy=reentrancy, actor_type_configs=[brief]))
    {"fastapi": serve_fastapi, "flask": serve_flask, "grpc": serve_stream}[HOST](port)


def serve_fastapi(port):
    import uvicorn
    from dapr.ext.fastapi import DaprActor
    from fastapi import FastAPI

    app = FastAPI()
    actors = DaprActor(app)

    async def run():
        for each in ACTORS:
            await actors.register_actor(each)
        await uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning")).serve()

    asyncio.run(run())


def serve_flask(port):
    from dapr.ext.flask import DaprActor
    from flask import Flask
    from werkzeug.serving import make_server

    app = Flask("shop")
    actors = DaprActor(app)
    for each in ACTORS:
        actors.register_actor(each)
    make_server("127.0.0.1", port, app, threaded=True).serve_forever()


def serve_stream(port):
    from dapr.actor import ActorGrpcHost

    async def run():
        host = ActorGrpcHost(app_port=port)
        for each in ACTORS:
            await host.register_actor(each)
        await host.run_forever()

    asyncio.run(run())


if HOST == "client":
    asyncio.run(main(sys.argv[2:]))
else:
    serve()
