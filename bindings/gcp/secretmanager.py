"""``secretstores.gcp.secretmanager``: secrets of Google Cloud Secret Manager.

Source: Dapr 1.18, the GCP Secret Manager secret store; Secret Manager's REST reference, v1.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bindings.secrets import read_all
from brokers.clients.gcp import Access, GCPAdapter, GCPSettings
from brokers.clients.http import Answer, HTTPService
from mesh.errors import SecretError, SecretStoreAwayError
from mesh.resources.settings import setting

__all__ = ["GCPSecretStore"]

URL = "https://secretmanager.googleapis.com"
PAGE = 250
MAX_SECRETS = 10_000
_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}")


@dataclass(frozen=True, slots=True)
class GCPSecretSettings(GCPSettings):
    """Settings of ``secretstores.gcp.secretmanager``."""

    endpoint: str = setting("endpoint", "URL of the service: a regional one, or one of an own network.", default=URL)


class GCPSecretStore(GCPAdapter):
    """Secrets of one project."""

    settings = GCPSecretSettings
    capabilities: Sequence[str] = ()
    tested = "a server written by hand from Google's documentation; not run against the real service"
    _service: HTTPService

    def __init__(self, settings: Any) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self._access = Access(settings, SecretError, SecretStoreAwayError)

    async def _enter(self) -> None:
        """Connect, and see that the credentials are some; a permission to list all secrets is not needed."""
        await self._access.open()
        if self._access.project is None:
            raise SecretError("no project is known: set project_id")
        service = HTTPService("Secret Manager", self._settings.endpoint, self._access.headers, SecretStoreAwayError)
        self._service = await self._stack.enter_async_context(service)
        self._path = f"/v1/projects/{self._access.project}/secrets"
        await self.check()

    async def check(self) -> None:
        """Ask whether the service answers, and takes the credentials."""
        answer = await self._service.get(self._path, {"pageSize": "1"})
        if answer.status not in (200, 403):
            raise _refused(answer)

    async def get(self, name: str, metadata: Mapping[str, str]) -> Mapping[str, str]:
        """Read a secret: its latest version, or that of ``version_id``.

        Raises:
            SecretError: There is none of this name and version, or it is no text.
        """
        version = metadata.get("version_id") or "latest"
        answer = await self._ask(name, version)
        if answer is None or answer.status == 404:
            raise SecretError(f"secret {name} (version {version}) not found")
        if answer.status != 200:
            raise _refused(answer)
        value = _text(answer)
        if value is None:
            raise SecretError(f"the secret {name} is binary")
        return {name: value}

    async def _ask(self, name: str, version: str) -> Answer | None:
        if not (_NAME.fullmatch(name) and _NAME.fullmatch(version)):  # There is no such secret.
            return None
        return await self._service.get(f"{self._path}/{name}/versions/{version}:access")

    async def bulk(self, metadata: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
        """Read the latest version of every secret; what has none, or is no text, is left out.

        Raises:
            SecretError: There are too many, or one cannot be read.
        """
        names: list[str] = []
        further = ""
        while True:
            query = {"pageSize": str(PAGE), **({"pageToken": further} if further else {})}
            answer = await self._service.get(self._path, query)
            if answer.status != 200:
                raise _refused(answer)
            names += [str(each["name"]).rpartition("/")[2] for each in answer.body.get("secrets") or ()]
            further = str(answer.body.get("nextPageToken") or "")
            if not further:
                return await read_all(names, self._latest)
            if len(names) > MAX_SECRETS:
                raise SecretError(f"there are more than {MAX_SECRETS} secrets")

    async def _latest(self, name: str) -> Mapping[str, str] | None:
        answer = await self._ask(name, "latest")
        # Without a version, or with one that is disabled.
        if answer is None or answer.status in (400, 404):
            return None
        if answer.status != 200:
            raise _refused(answer)
        value = _text(answer)
        return None if value is None else {name: value}


def _refused(answer: Answer) -> SecretError:
    return SecretError(f"Secret Manager answered {answer.reason()}")


def _text(answer: Answer) -> str | None:
    try:
        return base64.b64decode(answer.body["payload"].get("data", ""), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
