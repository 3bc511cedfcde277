"""Takes events at ``/orders``; that it does is said in ``resources/subscription.yaml``, not here."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        order = event.get("data")
        if isinstance(order, dict) and "orderId" in order:
            print(f"Got order {order['orderId']} of {event['topic']}", flush=True)
            self.send_response(200)
        else:
            print("Dropped an event that is no order", flush=True)
            self.send_response(404)  # The event is dropped; a 500 would bring it again.
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("APP_PORT", "8000"))), Handler).serve_forever()
