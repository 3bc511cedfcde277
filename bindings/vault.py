"""``secretstores.hashicorp.vault``: secrets of a key-value engine of HashiCorp Vault or OpenBao.

Source: Dapr 1.18, the HashiCorp Vault secret store; the HTTP API of Vault, KV version 1 and 2.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import quote

import orjson

from bindings.secrets import read_all
from brokers.clients.http import Answer, HTTPService
from mesh.adapter import ComponentAdapter
from mesh.blocks.secrets import MULTIPLE_VALUES
from mesh.errors import ConfigError, SecretError, SecretStoreAwayError
from mesh.resources.component import Component
from mesh.resources.settings import BOOLEAN, choice, setting

__all__ = ["VaultSecretStore"]

MAX_LISTED = 10_000
MAX_TOKEN_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class VaultSettings:
    """Settings of ``secretstores.hashicorp.vault``."""

    address: str = setting("vaultAddr", "URL of the server.", default="https://127.0.0.1:8200")
    token: str | None = setting("vaultToken", "The token to ask with.", secret=True)
    token_file: str | None = setting(
        "vaultTokenMountPath",
        "Path of a file that holds the token; it is read for every request.",
        example="/var/run/secrets/vault/token",
        suggested=True,
    )
    engine: str = setting("enginePath", "Where the key-value engine is mounted.", default="secret")
    prefix: str = setting("vaultKVPrefix", "The path below the engine that all secrets are in.", default="dapr")
    use_prefix: bool = setting("vaultKVUsePrefix", "Whether the prefix is used.", BOOLEAN, default=True)
    value_type: str = setting(
        "vaultValueType",
        "Whether a secret has its members as values, or is one JSON text.",
        choice("map", "text"),
        default="map",
    )
    ca_pem: str | None = setting("caPem", "Certificates that the server is trusted by, in PEM.")
    ca_path: str | None = setting("caPath", "Directory of such certificates.", example="certificates")
    ca_file: str | None = setting("caCert", "Path of a file of such certificates.", example="ca.pem")
    skip_verify: bool = setting("skipVerify", "Whether any certificate of the server is taken.", BOOLEAN, default=False)
    server_name: str | None = setting(
        "tlsServerName",
        "The name in the server's certificate, if that is another than its host.",
        example="vault.example.com",
    )


class VaultSecretStore(ComponentAdapter):
    """Secrets below a prefix of one engine, which may be of either version."""

    settings = VaultSettings
    capabilities_with: ClassVar[Mapping[str, str]] = {MULTIPLE_VALUES: "`vaultValueType` map, its default"}
    tested = "OpenBao 2.7, which has the same interface; not run against HashiCorp Vault itself"
    _service: HTTPService

    def __init__(self, settings: Any) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self.capabilities: Sequence[str] = (MULTIPLE_VALUES,) if settings.value_type == "map" else ()
        self._engine = quote(settings.engine.strip("/"))
        self._prefix = quote(settings.prefix.strip("/")) if settings.use_prefix else ""
        self._versioned = True

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; there is one token."""
        made = super().from_component(component)
        settings = made._settings
        if (settings.token is None) == (settings.token_file is None):
            message = "set either vaultToken or vaultTokenMountPath"
            raise ConfigError(component.problem(message, setting="vaultToken"))
        if not settings.address.startswith(("http://", "https://")):
            raise ConfigError(component.problem("begins with http:// or https://", setting="vaultAddr"))
        return made

    async def _enter(self) -> None:
        """Connect, and find of which version the engine is.

        Raises:
            SecretError: The server cannot be reached, does not take the token, or the engine is another kind.
        """
        settings = self._settings
        try:
            tls = await asyncio.to_thread(_tls, settings)
        except (OSError, ValueError) as error:  # OpenSSL's errors are of the first kind.
            raise SecretError(f"the certificates of the server cannot be read: {error}") from error
        self._service = await self._stack.enter_async_context(
            HTTPService(
                "Vault", settings.address, self._who, SecretStoreAwayError, tls=tls, server_name=settings.server_name
            )
        )
        found = await self._service.get(f"/v1/sys/internal/ui/mounts/{self._engine}")
        if found.status == 200:
            engine = _told(found, "data", of=dict)
            if engine.get("type") not in ("kv", "generic"):
                raise SecretError(f"the engine at {self._engine} has no keys and values, it is {engine.get('type')}")
            options = engine.get("options")
            self._versioned = isinstance(options, dict) and options.get("version") == "2"
        elif found.status == 403:
            await self._known()
        elif found.status != 404:
            raise _refused(found)

    async def _known(self) -> None:
        """See whether the server knows a token that may not ask for its engine.

        Raises:
            SecretError: It is of no use: one that may read any secret of the engine may ask for it, and nearly every
                one for itself.
        """
        found = await self._service.get("/v1/auth/token/lookup-self")
        if found.status == 403:
            which = "vaultToken" if self._settings.token is not None else f"in {self._settings.token_file}"
            raise SecretError(
                f"Vault does not take the token {which} ({found.reason()}): it is wrong, expired or revoked, or has "
                f"no right in the engine {self._engine}"
            )

    async def check(self) -> None:
        """Ask whether the server answers, and is not sealed."""
        await self._service.get("/v1/sys/health", {"standbyok": "true", "perfstandbyok": "true"})

    async def _who(self) -> Mapping[str, str]:
        token = self._settings.token
        if token is None:
            try:
                token = await asyncio.to_thread(_read, Path(self._settings.token_file))
            except (OSError, ValueError) as error:
                raise SecretError(f"the file of the token cannot be read: {error}") from error
        return {"X-Vault-Token": token, "X-Vault-Request": "true"}

    async def get(self, name: str, metadata: Mapping[str, str]) -> Mapping[str, str]:
        """Read a secret: its newest version, or that of ``version_id``.

        Raises:
            SecretError: There is none of this name and version.
        """
        secret = await self._read(name, metadata.get("version_id") or "0")
        if secret is None:
            raise SecretError(f"secret {name} not found")
        return secret

    async def _read(self, name: str, version: str = "0") -> Mapping[str, str] | None:
        if not self._versioned and version != "0":
            raise SecretError(f"the engine at {self._engine} keeps no versions")
        answer = await self._service.get(
            self._path("data", _safe(name)), {"version": version} if self._versioned else {}
        )
        if answer.status == 404:  # Also of a version that is deleted.
            return None
        if answer.status != 200:
            raise _refused(answer)
        members = _told(answer, *(("data", "data") if self._versioned else ("data",)), of=(dict, type(None)))
        if members is None:
            return None
        if self._settings.value_type == "text":
            return {name: orjson.dumps(members).decode()}
        return {
            key: value if isinstance(value, str) else orjson.dumps(value).decode() for key, value in members.items()
        }

    async def bulk(self, metadata: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
        """Read every secret below the prefix, by its path from there.

        Raises:
            SecretError: There are too many, or one cannot be read.
        """
        names: list[str] = []
        async for name in self._names():
            names.append(name)
            if len(names) > MAX_LISTED:
                raise SecretError(f"there are more than {MAX_LISTED} secrets")
        return await read_all(names, self._read)

    async def _names(self) -> AsyncIterator[str]:
        folders, seen = [""], 0
        while folders:
            folder = folders.pop()
            seen += 1
            if seen > MAX_LISTED:
                raise SecretError(f"there are more than {MAX_LISTED} folders of secrets")
            answer = await self._service.get(self._path("metadata", quote(folder)), {"list": "true"})
            if answer.status == 404:  # Nothing is there.
                continue
            if answer.status != 200:
                raise _refused(answer)
            for each in map(str, _told(answer, "data", "keys", of=list)):
                if each.endswith("/"):
                    folders.append(folder + each)
                else:
                    yield folder + each

    def _path(self, what: str, name: str) -> str:
        parts = ("/v1", self._engine, what if self._versioned else "", self._prefix)
        return "/".join((*filter(None, parts), name))


def _told(answer: Answer, *names: str, of: type | tuple[type, ...]) -> Any:
    """Give a member of an answer.

    Raises:
        SecretStoreAwayError: It is not there: somebody else answered, as a proxy does that has a page of its own.
    """
    found = answer.body
    for name in names:
        found = found.get(name, answer) if isinstance(found, dict) else answer
    if not isinstance(found, of):
        raise SecretStoreAwayError("Vault answered 200 without what was asked for; is it a proxy that answers?")
    return found


def _refused(answer: Answer) -> SecretError:
    return SecretError(f"Vault answered {answer.reason()}")


def _safe(name: str) -> str:
    """Write a name as a path that leads nowhere else.

    Raises:
        SecretError: It could not be a secret's.
    """
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise SecretError(f"secret {name} not found: a name has no empty parts, no . and no ..")
    return quote(name)


def _read(path: Path) -> str:
    with path.open("rb") as file:
        token = file.read(MAX_TOKEN_BYTES).decode("ascii").strip()
    if not token.isprintable() or not token:
        raise ValueError(f"{path} holds no token")
    return token


def _tls(settings: VaultSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(
        cadata=settings.ca_pem,
        capath=None if settings.ca_pem else settings.ca_path,
        cafile=None if settings.ca_pem or settings.ca_path else settings.ca_file,
    )
    if settings.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
