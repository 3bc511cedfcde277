"""The application of the third pod: writes each event and each call that reaches it to its output.

Docker keeps that output however the process ends. Only the standard library is used, for it runs in a plain image.
"""

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = int(os.environ["APP_PORT"])
SUBSCRIPTIONS = [{"pubsubname": "pubsub", "topic": "recorded", "route": "/events"}]


class Server(ThreadingHTTPServer):
    # Its default of 5 is less than one gateway's deliveries in flight: the kernel would drop connections unseen.
    request_queue_size = 128
    daemon_threads = True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/dapr/subscribe":
            self.answer(200, SUBSCRIPTIONS)
        else:
            self.answer(404, {})

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        # One write, so that lines of several threads do not mix.
        if self.path == "/events":
            os.write(1, f"event {sent['data']['id']}\n".encode())
        else:
            os.write(1, f"call {sent['id']}\n".encode())
        self.answer(200, {})

    def answer(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing else."""


if __name__ == "__main__":
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: sys.exit(0))
    server = Server(("127.0.0.1", PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    signal.pause()
