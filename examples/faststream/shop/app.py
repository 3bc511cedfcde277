"""Sells things, by plain HTTP to its gateway; it does not know that the other application is no HTTP one."""

import json
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = int(os.environ.get("APP_PORT", "6003"))
GATEWAY = f"http://127.0.0.1:{os.environ.get('DAPR_HTTP_PORT', '3500')}/v1.0"
ITEMS = ("teapot", "piano", "spoon")


def post(path: str, body: dict[str, object]) -> bytes:
    request = urllib.request.Request(GATEWAY + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


def sell() -> None:
    """Ask for the price of an item every second, and order it."""
    number = 0
    while True:
        number += 1
        order = {"orderId": number, "item": ITEMS[number % len(ITEMS)]}
        try:
            price = json.loads(post("/invoke/pricing/method/price", order))["price"]
            print(f"Order {number}: one {order['item']} is {price:g}", flush=True)
            post("/publish/pubsub/orders", order)
        except (urllib.error.HTTPError, OSError) as error:
            print(f"Order {number} failed: {error}", flush=True)
        time.sleep(1)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/dapr/subscribe":
            self.answer(200, [{"pubsubname": "pubsub", "topic": "priced", "route": "/priced"}])
        else:
            self.answer(404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        if self.path == "/stock":
            self.answer(200, {"pack": 6 if body["item"] == "spoon" else 1})
        elif self.path == "/priced":
            order = body["data"]
            print(f"Order {order['orderId']}: {order['total']:g} to pay ({body['type']})", flush=True)
            self.answer(200, {})
        else:
            self.answer(404, {})

    def answer(self, status: int, body: object) -> None:
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
threading.Thread(target=sell, daemon=True).start()
print(f"Shop listening on port {PORT}", flush=True)

signal.pause()
