"""One of the services of a small shop, by plain HTTP and Python alone: ``python3 app.py ROLE``."""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ROLE = sys.argv[1]
GATEWAY = f"http://127.0.0.1:{os.environ.get('DAPR_HTTP_PORT', '3500')}/v1.0"
PRICES = {"mug": 8.0, "shirt": 20.0}
RATES = {"EUR": 1.0, "CHF": 0.95}


def ask(path: str, body: Any = None) -> Any:
    """Ask this service's own gateway."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(GATEWAY + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        answer = response.read()
    return json.loads(answer) if answer else None


def call(app_id: str, method: str, body: Any) -> Any:
    """Call another service."""
    return ask(f"/invoke/{app_id}/method/{method}", body)


def frontend(body: Any) -> Any:
    """Put things into the cart of somebody, buy them, and suggest more."""
    for item in body["items"]:
        call("cart", "add", {"user": body["user"], "item": item})
    order = call("checkout", "order", {"user": body["user"], "currency": body["currency"]})
    return {**order, "suggested": call("recommendation", "suggest", {"items": body["items"]})}


def cart(body: Any) -> Any:
    """Keep the cart of somebody in the state store."""
    key = f"cart-{body['user']}"
    items = ask(f"/state/statestore/{key}") or []
    if "item" in body:
        items.append(body["item"])
        ask("/state/statestore", [{"key": key, "value": items}])
    return items


def checkout(body: Any) -> Any:
    """Buy what is in a cart, and tell everybody."""
    items = call("cart", "items", {"user": body["user"]})
    total = sum(PRICES[item] for item in items)
    price = call("currency", "convert", {"amount": total, "to": body["currency"]})
    order = {"orderId": f"{body['user']}-1", "price": price, **call("shipping", "ship", {"items": items})}
    ask("/publish/messagebus/checkout", order)
    return order


def currency(body: Any) -> Any:
    """Convert an amount."""
    return round(body["amount"] * RATES[body["to"]], 2)


def shipping(body: Any) -> Any:
    """Promise a parcel."""
    return {"parcels": 1 + len(body["items"]) // 10}


def recommendation(body: Any) -> Any:
    """Suggest what is not there yet."""
    return sorted(set(PRICES) - set(body["items"]))


def email(body: Any) -> Any:
    """Take an event of checkout, by the subscription of a file."""
    print(f"Confirmed by mail: order {body['data']['orderId']}")
    return {"status": "SUCCESS"}


ROLES = {each.__name__: each for each in (frontend, cart, checkout, currency, shipping, recommendation, email)}


class Service(BaseHTTPRequestHandler):
    """Answers every POST by the role's function."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps(ROLES[ROLE](body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Log no requests."""


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print(f"{ROLE} listens on port 8000")
ThreadingHTTPServer(("127.0.0.1", 8000), Service).serve_forever()
