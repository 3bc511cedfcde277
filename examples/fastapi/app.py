"""FastAPI: says what it subscribes to, takes events, answers calls."""

import os
from typing import Any

import uvicorn
from fastapi import FastAPI

app = FastAPI()
seen: dict[str, Any] = {}


@app.get("/dapr/subscribe")
def subscribe() -> list[dict[str, str]]:
    return [{"pubsubname": "pubsub", "topic": "orders", "route": "/orders"}]


@app.post("/orders")
def take(event: dict[str, Any]) -> dict[str, str]:
    order = event.get("data")
    if not isinstance(order, dict) or "orderId" not in order:
        print("Dropped an event that is no order", flush=True)
        return {"status": "DROP"}
    seen["last"] = order
    print(f"Got order {order['orderId']}", flush=True)
    return {"status": "SUCCESS"}


@app.get("/last")
def last() -> Any:
    return seen.get("last")


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("APP_PORT", "8000")), log_level="warning")
