"""An application that ends at once when it is told to, whatever it is doing: ``rude.py NAME WHERE-TO-TELL``.

It answers calls and takes events of the topic ``t`` after a moment, and tells each event before it answers.
"""

import os
import signal
import sys
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from json import dumps, loads

NAME, TOLD = sys.argv[1:]
TAKES = 0.03


def tell(line: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(TOLD, line.encode()), timeout=10):
        pass


class Application(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        subscribed = [{"pubsubname": "pubsub", "topic": "t", "route": "/t"}]
        self.answer(200 if self.path == "/dapr/subscribe" else 404, subscribed)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(TAKES)
        if self.path == "/t":
            tell(loads(body)["data"])
        self.answer(200, {"by": NAME})

    def answer(self, status: int, said: object) -> None:
        body = dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
Server(("127.0.0.1", int(os.environ.get("APP_PORT", "3000"))), Application).serve_forever()
