"""``secretstores.aws.secretmanager``: secrets of AWS Secrets Manager.

Source: Dapr 1.18, the AWS Secrets Manager secret store; the AWS Secrets Manager API Reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bindings.secrets import json_values, read_all
from brokers.clients.aws import AWSAdapter, AWSSettings
from mesh.blocks.secrets import MULTIPLE_VALUES
from mesh.errors import SecretError, SecretStoreAwayError
from mesh.resources.settings import BOOLEAN, setting

__all__ = ["SecretManagerStore"]

PAGE = 100


@dataclass(frozen=True, slots=True)
class SecretManagerSettings(AWSSettings):
    """Settings of ``secretstores.aws.secretmanager``."""

    several: bool = setting(
        "multipleKeyValuesPerSecret",
        "Whether a secret that is a JSON object of texts has its members as values.",
        BOOLEAN,
        default=False,
    )


class SecretManagerStore(AWSAdapter):
    """Secrets by name or ARN."""

    settings = SecretManagerSettings
    service = "secretsmanager"
    failed, away = SecretError, SecretStoreAwayError
    capabilities_with: ClassVar[Mapping[str, str]] = {MULTIPLE_VALUES: "`multipleKeyValuesPerSecret`"}
    tested = "moto's server; not run against the real service"

    def __init__(self, settings: Any) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self.capabilities: Sequence[str] = (MULTIPLE_VALUES,) if settings.several else ()

    async def _enter(self) -> None:
        """Connect, and see that the credentials are some; a permission to list them all is not needed."""
        await super()._enter()
        await self.check()

    async def check(self) -> None:
        """Ask whether the service answers."""
        await self.probe("list_secrets", MaxResults=1)

    async def get(self, name: str, metadata: Mapping[str, str]) -> Mapping[str, str]:
        """Read a secret: its current version, or that of ``version_id`` or ``version_stage``.

        Raises:
            SecretError: There is none of this name, or it is no text.
        """
        version = {"VersionId": metadata.get("version_id"), "VersionStage": metadata.get("version_stage")}
        given = {key: value for key, value in version.items() if value}
        secret = self._secret(await self.call("get_secret_value", SecretId=name, **given))
        if secret is None:
            raise SecretError(f"the secret {name} is binary")
        return secret

    async def bulk(self, metadata: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
        """Read the current version of every secret; what has none, or is no text, is left out."""
        names = [
            str(each["Name"])
            async for page in self.pages("list_secrets", PaginationConfig={"PageSize": PAGE})
            for each in page["SecretList"]
        ]
        return await read_all(names, self._known)

    async def _known(self, name: str) -> Mapping[str, str] | None:
        """Read a secret that was listed, and may be gone since."""
        found = await self.read("get_secret_value", absent=("ResourceNotFoundException",), SecretId=name)
        return None if found is None else self._secret(found)

    def _secret(self, found: Mapping[str, Any]) -> Mapping[str, str] | None:
        text = found.get("SecretString")
        if text is None:
            return None
        several = json_values(text) if self._settings.several else None
        return {str(found["Name"]): str(text)} if several is None else several
