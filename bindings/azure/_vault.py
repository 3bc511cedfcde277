"""A Key Vault of Azure: how it is reached, and what goes wrong there.

Source: Dapr 1.18, the Azure Key Vault components; Key Vault's REST reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.keyvault.secrets.aio import SecretClient

from brokers.clients.azure import AzureSettings, check_identity, make_credential
from mesh.adapter import ComponentAdapter
from mesh.errors import MeshError
from mesh.resources.component import Component
from mesh.resources.settings import Kind, setting

__all__ = ["KeyVaultSettings", "VaultAdapter"]

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
    """What every component on a vault has."""

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


class VaultAdapter(ComponentAdapter):
    """A client of one vault; what goes wrong is an error of its block.

    Attributes:
        settings: A model that inherits from `KeyVaultSettings`.
        failed: The class of errors.
        away: The class of those errors after which the same call may succeed.
    """

    tested = "a server written by hand from Microsoft's documentation; never ran against the real service"
    failed: ClassVar[type[MeshError]]
    away: ClassVar[type[MeshError]]
    _client: SecretClient
    _url: str

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; an application's secret or certificate belongs to an application of a tenant."""
        made = super().from_component(component)
        check_identity(made._settings, component)
        return made

    async def _enter(self) -> None:
        """Connect; it asks nothing yet."""
        settings = self._settings
        options: dict[str, Any] = {"connection_verify": settings.ca_file or True, "retry_total": RETRIES}
        options |= {"connection_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
        try:
            credential = await make_credential(settings, **options)
        except (OSError, ValueError) as error:
            raise self.failed(f"there are no credentials for Azure: {error}") from None
        await self._stack.enter_async_context(credential)
        self._url = (settings.endpoint or f"https://{settings.vault}.{_HOSTS[settings.cloud]}").rstrip("/")
        client = SecretClient(self._url, credential, verify_challenge_resource=settings.endpoint is None, **options)
        self._client = await self._stack.enter_async_context(client)

    @contextmanager
    def _errors(self, *, denied: bool = False) -> Iterator[None]:
        """Turn the library's errors into ours; their texts are the service's own message alone.

        Args:
            denied: Whether a missing permission is no error.
        """
        try:
            yield
        except ClientAuthenticationError as error:
            raise self.failed(f"Azure does not take the credentials: {_reason(error)}") from None
        except (ServiceRequestError, ServiceResponseError) as error:
            raise self.away(f"Key Vault cannot be reached: {_reason(error)}") from None
        except HttpResponseError as error:
            status = error.status_code or 0
            if status == 403 and denied:
                return
            make = self.away if status >= 500 or status == 429 else self.failed
            raise make(f"Key Vault answered {status}: {_reason(error)}") from None
        except AzureError as error:
            raise self.failed(f"Key Vault cannot be asked: {_reason(error)}") from None


def _reason(error: AzureError) -> str:
    return (str(error.message).partition("\n")[0] or type(error).__name__)[:MAX_REASON]
