"""A token endpoint of a test's own, with the grant of client credentials, and its keys (JWKS)."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, unquote

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

__all__ = ["TokenServer"]


class TokenServer:
    """It works in a thread of its own, hence for a server and for several event loops.

    Attributes:
        port: Where it listens on 127.0.0.1.
        forms: What it was asked for, without the secret.
        max_age: Seconds that its tokens hold.
    """

    CLIENT, SECRET, AUDIENCE = "mesh", "client-s3cret", "kafka"

    def __init__(self, max_age: int = 3600) -> None:
        """Prepare; entering starts it.

        Args:
            max_age: Seconds that its tokens hold.
        """
        self.max_age = max_age
        self.forms: list[dict[str, str]] = []
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self.port = int(self._http.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def url(self) -> str:
        """Its token endpoint."""
        return f"http://127.0.0.1:{self.port}/token"

    @property
    def keys_url(self) -> str:
        """Where its keys are."""
        return f"http://127.0.0.1:{self.port}/keys"

    def keys(self) -> dict[str, Any]:
        """Give them."""
        return {"keys": [{**RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True), "kid": "1", "use": "sig"}]}

    def token(self, **claims: object) -> str:
        """Sign a token of the client's.

        Args:
            claims: Besides, or instead of, the usual ones.
        """
        now = int(time.time())
        usual = {"sub": self.CLIENT, "aud": self.AUDIENCE, "iat": now, "exp": now + self.max_age}
        return jwt.encode({**usual, **claims}, self._key, "RS256", {"kid": "1"})

    def answer(self, form: dict[str, str], login: str) -> tuple[int, dict[str, Any]]:
        """Answer a request for a token.

        Args:
            form: What was sent.
            login: Its Authorization header, or nothing.

        Returns:
            Status and body.
        """
        client, secret = form.get("client_id"), form.pop("client_secret", None)
        if login.startswith("Basic "):
            client, secret = map(unquote, base64.b64decode(login.removeprefix("Basic ")).decode().split(":", 1))
        self.forms.append(form)
        if form.get("grant_type") != "client_credentials":
            return 400, {"error": "unsupported_grant_type"}
        if (client, secret) != (self.CLIENT, self.SECRET):
            return 401, {"error": "invalid_client"}
        token = self.token(**{"scope": form["scope"]} if "scope" in form else {})
        return 200, {"access_token": token, "token_type": "Bearer", "expires_in": self.max_age}


def _handler(server: TokenServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/keys"
            self._reply(*((200, server.keys()) if found else (404, {})))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self._reply(*server.answer(dict(parse_qsl(body)), self.headers.get("Authorization", "")))

        def _reply(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
