"""An application on the gRPC extension of the unmodified Python SDK."""

import json
import os

import grpc
from dapr.ext.grpc import App, InvokeMethodRequest, InvokeMethodResponse, Rule, SubscriptionMessage, TopicEventResponse

app = App()
seen = []
failed = set()


def record(kind, identity, data, **more):
    seen.append({"kind": kind, "id": identity, "data": data, **more})


@app.method("hello")
def hello(request: InvokeMethodRequest) -> InvokeMethodResponse:
    answer = InvokeMethodResponse(f"hello {request.text()}", "text/x-greeting")
    answer.headers = (("greeted", request.content_type or "nothing"),)
    return answer


@app.method("recorded")
def recorded(request: InvokeMethodRequest) -> str:
    return json.dumps(seen)


@app.method("broken")
def broken(request: InvokeMethodRequest) -> None:
    raise ValueError("this one is broken")


@app.subscribe("pubsub", "orders")
def orders(event: SubscriptionMessage):
    record("order", event.id(), event.data(), type=event.type(), topic=event.topic(), source=event.source())
    if isinstance(event.data(), dict) and event.data().get("fail") and event.id() not in failed:
        failed.add(event.id())
        return TopicEventResponse("retry")
    return None


@app.subscribe("pubsub", "kinds", disable_topic_validation=True)  # Or there would be no default route.
def others(event: SubscriptionMessage) -> None:
    record("other kind", event.id(), event.data())


@app.subscribe("pubsub", "kinds", rule=Rule('event.type == "important"', 1))
def important(event: SubscriptionMessage) -> None:
    record("important", event.id(), event.data(), type=event.type())


@app.subscribe("pubsub", "legacy", dead_letter_topic="dead")
def legacy(event):
    record("legacy", event.EventID(), event.Data().decode(), content_type=event.ContentType())
    return TopicEventResponse("drop")


@app.subscribe("pubsub", "dead")
def dead(event: SubscriptionMessage) -> None:
    record("dead", event.id(), event.data())


@app.subscribe("pubsub", "many")
def many(event: SubscriptionMessage) -> None:
    record("many", event.id(), event.data())


def stream_upper(requests, context):
    for each in requests:
        yield each.upper()


def refuse(request, context):
    context.set_trailing_metadata((("why", "closed"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the shop is closed")


SHOP = {
    "Greet": grpc.unary_unary_rpc_method_handler(lambda request, context: b"hello " + request),
    "Count": grpc.unary_stream_rpc_method_handler(lambda request, context: (b"%d" % n for n in range(int(request)))),
    "Join": grpc.stream_unary_rpc_method_handler(lambda requests, context: b"".join(requests)),
    "Upper": grpc.stream_stream_rpc_method_handler(stream_upper),
    "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
}


def add_shop(methods, server):
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Shop", methods),))


app.add_external_service(add_shop, SHOP)
app.register_health_check(lambda: None)
app.run(int(os.environ["APP_PORT"]))
