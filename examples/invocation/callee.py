"""Squares a number: ``GET /square?of=7``."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        content = b""
        if parts.path == "/square":
            content = str(int(parse_qs(parts.query)["of"][0]) ** 2).encode()
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("APP_PORT", "8000"))), Handler).serve_forever()
