"""What the applications of the tutorials share: an HTTP server of a few routes, and calls to their gateway."""

import json
import os
import signal
import sys
import urllib.request
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GATEWAY = f"http://localhost:{os.environ.get('DAPR_HTTP_PORT', '3500')}"


def call(path: str, data: object = None, **headers: str) -> object:
    """POST data as JSON, or GET without any; give what was answered."""
    body = None if data is None else json.dumps(data).encode()
    given = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    request = urllib.request.Request(GATEWAY + path, body, given)
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def say(text: str) -> None:
    """Write a line in one piece: requests are answered side by side."""
    sys.stdout.write(f"{text}\n")


def serve(routes: Mapping[str, Callable[[object], object]]) -> None:
    """Answer ``VERB /path`` with what a function makes of the body, until told to end."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            route = routes.get(f"{self.command} {self.path}")
            found = json.dumps(route(json.loads(body) if body else None)).encode() if route else b""
            self.send_response(200 if route else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            self.wfile.write(found)

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["APP_PORT"])), Handler).serve_forever()
