"""Jobs on the unmodified Python SDK: a client, and the application that they are for; prints what it saw as JSON."""

import asyncio
import json
import os
import threading

from dapr.aio.clients import DaprClient as AsyncDaprClient
from dapr.clients import DaprClient
from dapr.clients.exceptions import DaprGrpcError
from dapr.ext.grpc import App, ConstantFailurePolicy, DropFailurePolicy, Job, JobEvent
from google.protobuf.any_pb2 import Any
from google.protobuf.wrappers_pb2 import StringValue

NAMES = ("often", "once", "packed", "retried", "dropped", "by asyncio", "later")
app = App()
happened = []
change = threading.Condition()


def record(event):
    with change:
        happened.append([event.name, event.get_data_as_string()])
        change.notify_all()
        return happened.count(happened[-1])


def handle(name):
    @app.job_event(name)
    def handler(event: JobEvent):
        times = record(event)
        if name == "dropped" or (name == "retried" and times < 3):
            raise ValueError("not yet")


def told(**least):
    """Wait until jobs have come, each so often."""

    def enough():
        return all(sum(each[0] == name for each in happened) >= times for name, times in least.items())

    with change:
        assert change.wait_for(enough, 30), happened


def refused(call, *arguments):
    try:
        call(*arguments)
    except DaprGrpcError as error:
        return [error.code().name, error.error_code()]
    return []


def shown(job):
    policy = job.failure_policy
    told = {"data": job.data.value.decode()} if job.data else {}
    if isinstance(policy, ConstantFailurePolicy):
        told["constant"] = [policy.max_retries, policy.interval_seconds]
    elif isinstance(policy, DropFailurePolicy):
        told["drop"] = True
    return {"schedule": job.schedule, "due": job.due_time, "repeats": job.repeats, "ttl": job.ttl, **told}


def packed(message):
    data = Any()
    data.Pack(message)
    return data


async def by_asyncio():
    async with AsyncDaprClient() as client:
        await client.schedule_job(Job("by asyncio", due_time="0s", data=Any(value=b"a")))
        await client.schedule_job(Job("kept by asyncio", due_time="1h"))
        got = shown(await client.get_job("kept by asyncio"))
        await client.delete_job("kept by asyncio")
        return got


def use(client):
    every = Job("kept", schedule="CRON_TZ=Europe/Madrid 0 30 4 * * *", repeats=3, ttl="9999h", data=Any(value=b"kept"))
    client.schedule_job(every)
    seen = {"got": shown(client.get_job("kept")), "again": refused(client.schedule_job, every)}
    policy = ConstantFailurePolicy(max_retries=2, interval_seconds=7)
    client.schedule_job(Job("kept", schedule="@every 1h", failure_policy=policy), overwrite=True)
    seen["overwritten"] = shown(client.get_job("kept"))
    client.delete_job("kept")
    client.delete_job("kept")
    seen["missing"] = refused(client.get_job, "kept")
    seen["malformed"] = refused(client.schedule_job, Job("bad", schedule="whenever"))
    seen["by_asyncio"] = asyncio.run(by_asyncio())

    retries = ConstantFailurePolicy(max_retries=5, interval_seconds=0)
    client.schedule_job(Job("often", schedule="@every 1s", repeats=2, due_time="0s", data=Any(value=b'{"n": 1}')))
    client.schedule_job(Job("once", due_time="100ms"))
    client.schedule_job(Job("packed", due_time="0s", data=packed(StringValue(value="wrapped"))))
    client.schedule_job(Job("dropped", due_time="0s", failure_policy=DropFailurePolicy()))
    client.schedule_job(Job("retried", due_time="0s", failure_policy=retries))
    told(**{"often": 2, "once": 1, "packed": 1, "dropped": 1, "retried": 3, "by asyncio": 1})
    client.schedule_job(Job("later", schedule="@every 1s", due_time="0s"))
    told(later=3)
    client.delete_job("later")
    seen["over"] = [refused(client.get_job, name) for name in ("often", "once", "packed", "retried")]
    with change:
        seen["happened"] = list(happened)
    return seen


for each in NAMES:
    handle(each)
threading.Thread(target=app.run, args=(int(os.environ["APP_PORT"]),), daemon=True).start()
with DaprClient() as client:
    answer = use(client)
print(json.dumps(answer), flush=True)
app.stop()
