"""A client on the unmodified Python SDK that schedules jobs, blocking or with asyncio; prints what it saw as JSON."""

import asyncio
import json
import sys
from inspect import isawaitable

import grpc
from dapr.clients.exceptions import DaprInternalError
from dapr.clients.grpc._jobs import ConstantFailurePolicy, DropFailurePolicy, Job
from google.protobuf.any_pb2 import Any as AnyMessage

WAY = sys.argv[1]
if WAY == "blocking":
    from dapr.clients import DaprClient
else:
    from dapr.aio.clients import DaprClient


async def of(value):
    """Give what a call of either client gives."""
    return await value if isawaitable(value) else value


async def refused(call):
    try:
        await of(call())
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    except DaprInternalError as error:  # What the client with asyncio makes of some of them.
        return [error.__cause__.code().name, error.__cause__.details()]
    return []


def described(job):
    policy = job.failure_policy
    return {
        "name": job.name,
        "schedule": job.schedule,
        "repeats": job.repeats,
        "due_time": job.due_time,
        "ttl": job.ttl,
        "data": job.data and job.data.value.decode(),
        "policy": [type(policy).__name__, *vars(policy).values()],
    }


async def main():
    client, data = DaprClient(), AnyMessage(value=b'{"n": 1}')
    patient = ConstantFailurePolicy(max_retries=2, interval_seconds=1)
    later = Job(f"later-{WAY}", "@every 24h", 3, "24h", "240h", data, patient)
    seen = {}
    await of(client.schedule_job(later))
    seen["again"] = await refused(lambda: client.schedule_job(later))
    await of(client.schedule_job(later, overwrite=True))
    seen["got"] = described(await of(client.get_job(later.name)))
    await of(client.schedule_job_alpha1(Job("dropped", due_time="24h", failure_policy=DropFailurePolicy())))
    seen["dropped"] = described(await of(client.get_job_alpha1("dropped")))
    await of(client.delete_job(later.name))
    await of(client.delete_job_alpha1("dropped"))
    seen["gone"] = await refused(lambda: client.get_job(later.name))
    await of(client.schedule_job(Job(sys.argv[2], due_time="0s", data=data, failure_policy=patient)))
    await of(client.close())
    print(json.dumps(seen))


asyncio.run(main())
