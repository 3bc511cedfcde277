"""Flask: says what it subscribes to, takes events, answers calls."""

import os
from typing import Any

from flask import Flask, jsonify, request

app = Flask(__name__)
seen: dict[str, Any] = {}


@app.get("/dapr/subscribe")
def subscribe() -> Any:
    return jsonify([{"pubsubname": "pubsub", "topic": "orders", "route": "/orders"}])


@app.post("/orders")
def take() -> Any:
    seen["last"] = request.get_json()["data"]
    print(f"Got order {seen['last']['orderId']}", flush=True)
    return jsonify(status="SUCCESS")


@app.get("/last")
def last() -> Any:
    return jsonify(seen.get("last"))


if __name__ == "__main__":
    app.run(port=int(os.environ.get("APP_PORT", "5000")))
