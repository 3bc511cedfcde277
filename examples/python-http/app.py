"""Python without a framework: says what it subscribes to, takes events, answers calls."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SUBSCRIPTIONS = [{"pubsubname": "pubsub", "topic": "orders", "route": "/orders"}]
seen: dict[str, Any] = {"last": None}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        answers = {"/dapr/subscribe": SUBSCRIPTIONS, "/last": seen["last"]}
        self.answer(200 if self.path in answers else 404, answers.get(self.path))

    def do_POST(self) -> None:
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"]))).get("data")
        if not isinstance(order, dict) or "orderId" not in order:
            print("Dropped an event that is no order", flush=True)
            self.answer(200, {"status": "DROP"})
            return
        seen["last"] = order
        print(f"Got order {order['orderId']}", flush=True)
        self.answer(200, {"status": "SUCCESS"})

    def answer(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("APP_PORT", "8000"))), Handler).serve_forever()
