"""``secretstores.azure.keyvault``: secrets of Azure Key Vault.

Source: Dapr 1.18, the Azure Key Vault secret store; Key Vault's REST reference.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.keyvault.secrets.aio import SecretClient

from bindings.azure._identity import AzureSettings, check_identity, make_credential
from bindings.secrets import read_all
from mesh.adapter import ComponentAdapter
from mesh.errors import SecretError, SecretStoreAwayError
from mesh.resources.component import Component
from mesh.resources.settings import Kind, setting

__all__ = ["KeyVaultSecretStore"]

MAX_SECRETS = 10_000
MAX_REASON = 300
CONNECT_SECONDS = 5
READ_SECONDS = 10
RETRIES = 2
_HOSTS = {
    "AZUREPUBLICCLOUD": "vault.azure.net",
    "AZURECHINACLOUD": "vault.azure.cn",
    "AZUREUSGOVERNMENTCLOUD": "vault.usgovcloudapi.net",
}


def _https(text: str) -> str:
    if not text.startswith("https://"):
        raise ValueError("begins with https://")
    return text


@dataclass(frozen=True, slots=True)
class KeyVaultSettings(AzureSettings):
    """Settings of ``secretstores.azure.keyvault``."""

    vault: str = setting("vaultName", "Name of the vault.", default="", required=True, example="shop-vault")
    endpoint: str | None = setting(
        "endpoint",
        "URL of the vault, if it is another than its name gives.",
        Kind("URL", _https),
        example="https://shop-vault.vault.azure.net",
    )
    ca_file: str | None = setting(
        "caCert",
        "Path of a file of certificates that the vault is trusted by, in place of the system's.",
        example="ca.pem",
    )


class KeyVaultSecretStore(ComponentAdapter):
    """Secrets of one vault."""

    settings = KeyVaultSettings
    capabilities: Sequence[str] = ()
    tested = "a server written by hand from Microsoft's documentation; not run against the real service"
    _client: SecretClient

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; an application's secret or certificate belongs to an application of a tenant."""
        made = super().from_component(component)
        check_identity(made._settings, component)
        return made

    async def _enter(self) -> None:
        """Connect, and see that there are credentials; a permission to list all secrets is not needed."""
        settings = self._settings
        options: dict[str, Any] = {"connection_verify": settings.ca_file or True, "retry_total": RETRIES}
        options |= {"connection_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
        try:
            credential = await make_credential(settings, **options)
        except (OSError, ValueError) as error:
            raise SecretError(f"there are no credentials for Azure: {error}") from None
        await self._stack.enter_async_context(credential)
        url = settings.endpoint or f"https://{settings.vault}.{_HOSTS[settings.cloud]}"
        client = SecretClient(url, credential, verify_challenge_resource=settings.endpoint is None, **options)
        self._client = await self._stack.enter_async_context(client)
        await self.check()

    async def check(self) -> None:
        """Ask whether the vault answers, and takes the credentials."""
        with self._errors(denied=True):
            async for _ in self._client.list_properties_of_secrets(max_page_size=1):
                break

    async def get(self, name: str, metadata: Mapping[str, str]) -> Mapping[str, str]:
        """Read a secret: its current version, or that of ``version_id``.

        Raises:
            SecretError: There is none of this name and version.
        """
        secret = await self._read(name, metadata.get("version_id") or None)
        if secret is None:
            raise SecretError(f"secret {name} not found")
        return secret

    async def _read(self, name: str, version: str | None = None) -> Mapping[str, str] | None:
        if not name.replace("-", "").isalnum() or not (version or "0").isalnum():  # There is no such secret.
            return None
        with self._errors():
            try:
                secret = await self._client.get_secret(name, version)
            except ResourceNotFoundError:
                return None
        return {name: secret.value or ""}

    async def bulk(self, metadata: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
        """Read the current version of every enabled secret, or of at most ``maxresults``.

        Raises:
            SecretError: There are too many, or one cannot be read.
        """
        most = metadata.get("maxresults") or ""
        if most and not (most.isdecimal() and int(most)):
            raise SecretError(f"maxresults is a whole number from 1, not {most!r}")
        names: list[str] = []
        async for name in self._names():
            if most and len(names) >= int(most):
                break
            names.append(name)
            if len(names) > MAX_SECRETS:
                raise SecretError(f"there are more than {MAX_SECRETS} secrets")
        return await read_all(names, self._read)

    async def _names(self) -> AsyncIterator[str]:
        listed = self._client.list_properties_of_secrets().__aiter__()
        while True:
            with self._errors():
                try:
                    properties = await listed.__anext__()
                except StopAsyncIteration:
                    return
            if properties.enabled is not False and properties.name:
                yield properties.name

    @contextmanager
    def _errors(self, *, denied: bool = False) -> Iterator[None]:
        """Turn the library's errors into ours; their texts are the service's own message alone.

        Args:
            denied: Whether a missing permission is no error.
        """
        try:
            yield
        except ClientAuthenticationError as error:
            raise SecretError(f"Azure does not take the credentials: {_reason(error)}") from None
        except (ServiceRequestError, ServiceResponseError) as error:
            raise SecretStoreAwayError(f"Key Vault cannot be reached: {_reason(error)}") from None
        except HttpResponseError as error:
            status = error.status_code or 0
            if status == 403 and denied:
                return
            make = SecretStoreAwayError if status >= 500 or status == 429 else SecretError
            raise make(f"Key Vault answered {status}: {_reason(error)}") from None
        except AzureError as error:
            raise SecretError(f"Key Vault cannot be asked: {_reason(error)}") from None


def _reason(error: AzureError) -> str:
    return (str(error.message).partition("\n")[0] or type(error).__name__)[:MAX_REASON]
