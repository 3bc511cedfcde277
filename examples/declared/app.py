"""Takes events at ``/orders``; that it does is said in ``resources/subscription.yaml``, not here."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        print(f"Got order {event['data']['orderId']} of {event['topic']}", flush=True)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("APP_PORT", "8000"))), Handler).serve_forever()
