"""An application on the gRPC extension of the unmodified Python SDK that is told of jobs."""

import json
import os

from dapr.ext.grpc import App, InvokeMethodRequest, JobEvent

app = App()
seen = []


def record(event: JobEvent) -> None:
    seen.append({"kind": event.name, "id": len(seen), "data": event.get_data_as_string()})


@app.job_event("once")
def once(event: JobEvent) -> None:
    record(event)


@app.job_event("again")
def again(event: JobEvent) -> None:
    record(event)
    if len(seen) == 1:
        raise ValueError("not yet")


@app.method("recorded")
def recorded(request: InvokeMethodRequest) -> str:
    return json.dumps(seen)


app.run(int(os.environ["APP_PORT"]))
