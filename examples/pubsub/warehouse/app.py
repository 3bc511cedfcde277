"""Packs orders. Which of them are big decides the rule in ``resources/subscriptions.yaml``, not this code."""

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = int(os.environ.get("APP_PORT", "6001"))
STOCK = {"teapot", "piano", "spoon"}


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")  # In one piece: handlers run side by side.
    sys.stdout.flush()


def pack(order: object, how: str) -> str:
    """Settle one delivery: SUCCESS, RETRY, or DROP, which sends it to the dead letter topic."""
    if not isinstance(order, dict) or not {"orderId", "item"} <= order.keys():
        say(f"This is no order: {order}")
        return "DROP"
    if order["item"] not in STOCK:
        say(f"Order {order['orderId']}: there is no {order['item']}")
        return "DROP"
    say(f"Order {order['orderId']}: {order['item']} goes {how}")
    return "SUCCESS"


ROUTES = {"/orders": "by post", "/big-orders": "by lorry"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        how = ROUTES.get(self.path)
        if how is None:
            self.answer(404, {})
        else:
            self.answer(200, {"status": pack(event.get("data"), how)})

    def do_GET(self) -> None:
        # The gateway asks for /dapr/config and /dapr/subscribe; the subscriptions stand in a file.
        self.answer(404, {})

    def answer(self, status: int, body: dict[str, str]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing: the orders say it all."""


for each in (signal.SIGINT, signal.SIGTERM):
    signal.signal(each, lambda *_: sys.exit(0))

ThreadingHTTPServer.request_queue_size = 128  # A gateway delivers many events at once.
server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
say(f"Warehouse listening on port {PORT}")

signal.pause()
