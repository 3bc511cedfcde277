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
    order = request.get_json().get("data")
    if not isinstance(order, dict) or "orderId" not in order:
        print("Dropped an event that is no order", flush=True)
        return jsonify(status="DROP")
    seen["last"] = order
    print(f"Got order {order['orderId']}", flush=True)
    return jsonify(status="SUCCESS")


@app.get("/last")
def last() -> Any:
    return jsonify(seen.get("last"))


if __name__ == "__main__":
    app.run(port=int(os.environ.get("APP_PORT", "5000")))
