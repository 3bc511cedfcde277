"""Takes orders (``POST /orders``), keeps the last one, and publishes each that can be sold."""

import json
import os
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

API = f"http://127.0.0.1:{os.environ.get('DAPR_HTTP_PORT', '3500')}/v1.0"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        sold = order["item"] != "unicorn"
        if sold:
            self.ask("/state/statestore", [{"key": "last", "value": order}])
            self.ask("/publish/pubsub/placed", order)
        print(f"Order {order['orderId']}: {order['item']} {'is sold' if sold else 'can not be had'}", flush=True)
        self.send_response(204 if sold else 500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def ask(self, path: str, content: object) -> None:
        """Ask the gateway for something; what it does belongs to the trace of the call."""
        headers = {"Content-Type": "application/json", "traceparent": self.headers.get("traceparent", "")}
        urllib.request.urlopen(urllib.request.Request(API + path, json.dumps(content).encode(), headers)).close()

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("APP_PORT", "8000"))), Handler).serve_forever()
