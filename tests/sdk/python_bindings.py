"""Bindings, out and in, by the unmodified Python SDK; prints what it saw as one line of JSON."""

import json
import os
import threading

import grpc
from dapr.clients import DaprClient
from dapr.ext.grpc import App, BindingRequest

app = App()
times = []
ticked = threading.Event()


@app.binding("tick")
def tick(request: BindingRequest):
    times.append(request.binding_metadata["readTimeUTC"])
    if len(times) == 2:
        ticked.set()


threading.Thread(target=app.run, args=(int(os.environ["APP_PORT"]),), daemon=True).start()
with DaprClient() as client:
    client.wait(30)
    made = client.invoke_binding("files", "create", "hello", {"fileName": "a.txt"})
    client.invoke_binding("files", "create", b"\x00\xff", {"fileName": "raw"})
    seen = {
        "made": made.json(),
        "text": client.invoke_binding("files", "get", "", {"fileName": "a.txt"}).text(),
        "raw": client.invoke_binding("files", "get", binding_metadata={"fileName": "raw"}).data.hex(),
    }
    try:
        client.invoke_binding("nowhere", "create", "x")
    except grpc.RpcError as error:
        seen["refused"] = [error.code().name, error.details()]
assert ticked.wait(30)
print(json.dumps({**seen, "times": times[:2]}), flush=True)
os._exit(0)  # The SDK's server has no other end.
