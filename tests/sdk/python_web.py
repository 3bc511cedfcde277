"""Applications on the FastAPI and Flask extensions of the unmodified Python SDK; prints what they got as JSON."""

import json
import os
import threading
from typing import Annotated

import uvicorn
from dapr.ext.fastapi import DaprApp as FastAPIDapr
from dapr.ext.flask import DaprApp as FlaskDapr
from fastapi import Body, FastAPI
from flask import Flask, jsonify, request
from werkzeug.serving import make_server

seen = {"fastapi": {}, "flask": {}}
all_there = threading.Event()


def record(where, topic, event):
    seen[where][topic] = event["data"]
    if all(len(each) == 2 for each in seen.values()):
        all_there.set()


fast = FastAPI()
fast_dapr = FastAPIDapr(fast)


@fast_dapr.subscribe(pubsub="pubsub", topic="plain")
def fast_plain(event: Annotated[dict, Body()]):
    record("fastapi", "plain", event)


@fast_dapr.subscribe(pubsub="pubsub", topic="routed", route="/taken", metadata={"maxInFlight": "5"})
def fast_routed(event: Annotated[dict, Body()]):
    record("fastapi", "routed", event)
    return {"status": "SUCCESS"}


flask = Flask("shop")
flask_dapr = FlaskDapr(flask)


@flask_dapr.subscribe(pubsub="pubsub", topic="plain")
def flask_plain():
    record("flask", "plain", json.loads(request.data))
    return jsonify(success=True)


@flask_dapr.subscribe(pubsub="pubsub", topic="routed", route="/taken", dead_letter_topic="dead")
def flask_routed():
    record("flask", "routed", json.loads(request.data))
    return jsonify(status="SUCCESS")


def serve_fastapi():
    uvicorn.run(fast, host="127.0.0.1", port=int(os.environ["FASTAPI_PORT"]), log_level="warning")


threading.Thread(target=serve_fastapi, daemon=True).start()
server = make_server("127.0.0.1", int(os.environ["FLASK_PORT"]), flask, threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
assert all_there.wait(45), seen
server.shutdown()
print(json.dumps(seen), flush=True)
