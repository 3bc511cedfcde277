"""Servers that answer as the documentation of a vendor says, written by hand: the real ones cannot be had here."""

from __future__ import annotations

import base64
import itertools
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from aiohttp import web
from google.auth import jwt

from tests.support.certificates import Authority

__all__ = ["AzureVault", "GoogleSecrets", "GoogleServer", "HandServer", "KubernetesSecrets"]

Secret = Mapping[str, bytes]


class HandServer:
    """Keeps what it was given, also while it does not listen.

    Attributes:
        secrets: Versions of each secret by its name, and the values of each.
        refuses: A status that every request for secrets is answered with; 0 = none.
        port: Where it listens on 127.0.0.1.
    """

    page = 3

    def __init__(self) -> None:
        self.secrets: dict[str, dict[str, Secret]] = {}
        self.refuses = 0
        self.port = 0
        self.tls: ssl.SSLContext | None = None
        self._runner: web.ServerRunner | None = None
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.kill()

    async def start(self) -> None:
        """Listen, on the same port as before."""
        self._runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.tls, reuse_address=True).start()
        self.port = int(self._runner.addresses[0][1])

    async def kill(self) -> None:
        """Listen no more."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def restart(self, *, kill: bool = False) -> None:
        """Listen no more, and again."""
        await self.kill()
        await self.start()

    def put(self, name: str, values: Secret) -> str:
        """Add a version of a secret, and give its id."""
        version = self.version(next(self._numbers))
        self.secrets.setdefault(name, {})[version] = values
        return version

    def version(self, number: int) -> str:
        """Write the id of a version."""
        return str(number)

    def newest(self, name: str) -> str:
        """Give the id of the version that was added last."""
        return list(self.secrets[name])[-1]

    def listed(self, begin: str | None, size: int) -> tuple[list[str], str]:
        """Give a page of names, and where the next one begins."""
        first = int(begin or 0)
        names = sorted(self.secrets)
        return names[first : first + size], str(first + size) if first + size < len(names) else ""

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        raise NotImplementedError


class KubernetesSecrets(HandServer):
    """An API server, with Secrets in the namespace ``shop``."""

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/version":
            return web.json_response({"major": "1", "minor": "34"})
        path = "/api/v1/namespaces/shop/secrets"
        if request.headers.get("Authorization") != "Bearer t0ken":
            return self._status(401, "Unauthorized")
        if self.refuses:
            return self._status(self.refuses, 'secrets is forbidden: User "u" cannot get resource "secrets"')
        if request.path == path:
            names, further = self.listed(request.query.get("continue"), min(self.page, int(request.query["limit"])))
            items = [self._object(name) for name in names]
            metadata = {"resourceVersion": "7", **({"continue": further} if further else {})}
            return web.json_response({"kind": "SecretList", "metadata": metadata, "items": items})
        name = request.path.removeprefix(f"{path}/")
        if name not in self.secrets:
            return self._status(404, f'secrets "{name}" not found')
        return web.json_response(self._object(name))

    def _object(self, name: str) -> object:
        values = self.secrets[name][self.newest(name)]
        data = {key: base64.b64encode(value).decode() for key, value in values.items()}
        return {"kind": "Secret", "metadata": {"name": name, "namespace": "shop"}, "type": "Opaque", "data": data}

    def _status(self, code: int, message: str) -> web.Response:
        return web.json_response({"kind": "Status", "code": code, "message": message}, status=code)


class GoogleServer(HandServer):
    """A service of Google Cloud for the project ``shop``, and where its service account gets tokens.

    Attributes:
        private_key: Of the service account.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        key, public = directory / "account.key", directory / "account.pem"
        made = ("-newkey", "rsa:2048", "-nodes", "-subj", "/CN=shop", "-keyout", str(key), "-out", str(public))
        subprocess.run(["openssl", "req", "-x509", *made], check=True, capture_output=True, timeout=60)
        self.private_key, self._public = key.read_text(), public.read_text()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/token":
            form = await request.post()
            told = jwt.decode(str(form["assertion"]), certs=self._public)  # type: ignore[no-untyped-call]
            assert told["iss"] == "robot@shop.test"
            return web.json_response({"access_token": "t0ken", "expires_in": 3600, "token_type": "Bearer"})
        if request.headers.get("Authorization") != "Bearer t0ken":
            return self._error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
        if self.refuses:
            return self._error(self.refuses, "REFUSED", "Permission denied")
        return await self._served(request)

    async def _served(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer who may ask."""
        raise NotImplementedError

    def _error(self, code: int, status: str, message: str) -> web.Response:
        return web.json_response({"error": {"code": code, "message": message, "status": status}}, status=code)


class GoogleSecrets(GoogleServer):
    """Secret Manager."""

    async def _served(self, request: web.BaseRequest) -> web.StreamResponse:
        path = "/v1/projects/shop/secrets"
        if request.path == path:
            names, further = self.listed(request.query.get("pageToken"), min(self.page, int(request.query["pageSize"])))
            secrets = [{"name": f"projects/12345/secrets/{name}"} for name in names]
            return web.json_response({"secrets": secrets, **({"nextPageToken": further} if further else {})})
        name, _, rest = request.path.removeprefix(f"{path}/").partition("/versions/")
        version = rest.removesuffix(":access")
        if version == "latest" and name in self.secrets:
            version = self.newest(name)
        if version not in self.secrets.get(name, {}):
            return self._error(
                404, "NOT_FOUND", f"Secret [projects/12345/secrets/{name}] not found or has no versions."
            )
        [value] = self.secrets[name][version].values()
        payload = {"data": base64.b64encode(value).decode()}
        return web.json_response({"name": f"projects/12345/secrets/{name}/versions/{version}", "payload": payload})


class AzureVault(HandServer):
    """A Key Vault, and where its application gets tokens, with TLS."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.authority = Authority(directory)
        made = self.authority.issue("vault")
        self.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.tls.load_cert_chain(made.certificate, made.key)

    def version(self, number: int) -> str:
        return f"{number:032x}"

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        own = f"https://{request.host}"
        if request.path == "/tenant/oauth2/v2.0/token":
            form = await request.post()
            if form.get("client_secret") != "azure-s3cret":
                told = {
                    "error": "invalid_client",
                    "error_description": "AADSTS7000215: Invalid client secret provided.",
                }
                return web.json_response(told, status=401)
            return web.json_response({"access_token": "t0ken", "expires_in": 3599, "token_type": "Bearer"})
        if request.headers.get("Authorization") != "Bearer t0ken":
            challenge = f'Bearer authorization="{own}/tenant", resource="https://vault.azure.net"'
            response = self._error(401, "Unauthorized", "AKV10000: Request is missing a Bearer or PoP token.")
            response.headers["WWW-Authenticate"] = challenge
            return response
        if self.refuses:
            return self._error(self.refuses, "Forbidden", "The user, group or application does not have secrets get")
        return await self._found(request, own)

    async def _found(self, request: web.BaseRequest, own: str) -> web.StreamResponse:
        """Answer who may ask."""
        if request.path.rstrip("/") == "/secrets":
            size = min(self.page, int(request.query.get("maxresults", "25")))
            names, further = self.listed(request.query.get("$skiptoken"), size)
            value = [{"id": f"{own}/secrets/{name}", "attributes": {"enabled": True}} for name in names]
            next_link = f"{own}/secrets?api-version=7.6&$skiptoken={further}&maxresults={size}" if further else None
            return web.json_response({"value": value, "nextLink": next_link})
        name, _, version = request.path.removeprefix("/secrets/").strip("/").partition("/")
        found = self.secrets.get(name, {})
        version = version or (self.newest(name) if found else "")
        if version not in found:
            return self._error(
                404, "SecretNotFound", f"A secret with (name/id) {name} was not found in this key vault."
            )
        [value_] = found[version].values()
        told = {"value": value_.decode(), "id": f"{own}/secrets/{name}/{version}", "attributes": {"enabled": True}}
        return web.json_response(told)

    def _error(self, status: int, code: str, message: str) -> web.Response:
        return web.json_response({"error": {"code": code, "message": message}}, status=status)
