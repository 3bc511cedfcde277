"""The receiving application of a quickstart, as it is written for `dapr run --app-protocol grpc`."""

import os

from dapr.ext.grpc import App, InvokeMethodRequest, InvokeMethodResponse, SubscriptionMessage

app = App()


@app.subscribe(pubsub_name="pubsub", topic="orders")
def on_order(event: SubscriptionMessage) -> None:
    print(f"got order {event.data()['id']}", flush=True)


@app.method(name="greet")
def greet(request: InvokeMethodRequest) -> InvokeMethodResponse:
    return InvokeMethodResponse(f"hello {request.text()}", "text/plain; charset=UTF-8")


app.run(int(os.environ["APP_PORT"]))
