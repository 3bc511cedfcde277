"""Packs orders, and prints the price of a piece on each slip. It has a mistake, which ``MENDED=true`` takes out."""

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = int(os.environ.get("APP_PORT", "6001"))
MENDED = os.environ.get("MENDED") == "true"


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")  # In one piece: handlers run side by side.
    sys.stdout.flush()


def pack(order: dict[str, int]) -> str:
    if MENDED and not order["quantity"]:
        return "nothing to pack"
    each = order["total"] / order["quantity"]
    return f"{order['quantity']} × {order['item']}, {each:g} each"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        if self.path != "/pack":
            self.answer(404, {})
            return
        order = event["data"]
        try:
            slip = pack(order)
        except Exception as error:
            say(f"Order {order.get('orderId')} failed: {type(error).__name__}: {error}")
            self.answer(500, {"error": f"{type(error).__name__}: {error}"})
        else:
            say(f"Order {order.get('orderId')}: {slip}")
            self.answer(200, {"status": "SUCCESS", "slip": slip})

    def do_GET(self) -> None:
        # The gateway asks for /dapr/config and /dapr/subscribe; the subscription stands in a file.
        self.answer(404, {})

    def answer(self, status: int, body: dict[str, str]) -> None:
        content = json.dumps(body, ensure_ascii=False).encode()
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
say(f"Packing listens on port {PORT}")

signal.pause()
