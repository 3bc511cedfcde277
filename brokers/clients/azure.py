"""As whom the adapters to Azure ask: an application of the settings, or as Azure's own tools find it.

Source: Dapr 1.18, authenticating to Azure; the documentation of Microsoft Entra ID.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from azure.identity import AzureAuthorityHosts
from azure.identity.aio import CertificateCredential, ClientSecretCredential, DefaultAzureCredential

from mesh.adapter import ComponentAdapter
from mesh.errors import ConfigError
from mesh.resources.component import Component
from mesh.resources.settings import choice, setting

__all__ = ["CONNECT_SECONDS", "READ_SECONDS", "AzureAdapter", "AzureSettings", "check_identity", "make_credential"]

CONNECT_SECONDS = 5
READ_SECONDS = 10
TOKEN_RETRIES = 2

_CLOUDS = {"AZUREPUBLICCLOUD": None, "AZURECHINACLOUD": "china", "AZUREUSGOVERNMENTCLOUD": "government"}
_AUTHORITIES = {"china": AzureAuthorityHosts.AZURE_CHINA, "government": AzureAuthorityHosts.AZURE_GOVERNMENT}
for _name in ("azure", "msal"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # Below, they write each request with its URL and headers.


@dataclass(frozen=True, slots=True)
class AzureSettings:
    """What every component of Azure has."""

    tenant: str | None = setting(
        "azureTenantId",
        "Id of the tenant.",
        aliases=("spnTenantId", "tenantId"),
        example="cd4b2887-304c-47e1-b4d5-65447fdd542b",
    )
    client: str | None = setting(
        "azureClientId",
        "Id of the application; without a secret or a certificate, of the managed identity.",
        aliases=("spnClientId", "clientId"),
        example="6d5e9a3c-2f1b-4c8e-9a70-1b2c3d4e5f60",
    )
    client_secret: str | None = setting(
        "azureClientSecret", "Secret of the application.", secret=True, aliases=("spnClientSecret", "clientSecret")
    )
    certificate: str | None = setting(
        "azureCertificate",
        "Certificate of the application with its key, in PEM, or PKCS#12 as base64.",
        secret=True,
        aliases=("spnCertificate",),
    )
    certificate_file: str | None = setting(
        "azureCertificateFile",
        "Path of a file with that certificate and key, in PEM or PKCS#12.",
        aliases=("spnCertificateFile",),
        example="client.pem",
    )
    certificate_password: str | None = setting(
        "azureCertificatePassword", "Password of the key.", secret=True, aliases=("spnCertificatePassword",)
    )
    cloud: str = setting("azureEnvironment", "Which of Azure's clouds.", choice(*_CLOUDS), default="AZUREPUBLICCLOUD")


def check_identity(settings: AzureSettings, component: Component) -> None:
    """See that an application's secret or certificate belongs to an application of a tenant.

    Raises:
        ConfigError: It does not.
    """
    proof = ("azureClientSecret", "azureCertificate", "azureCertificateFile")
    given = (settings.client_secret, settings.certificate, settings.certificate_file)
    if any(given) and not (settings.tenant and settings.client):
        name = next(name for name, value in zip(proof, given, strict=True) if value)
        raise ConfigError(component.problem(f"{name} needs azureTenantId and azureClientId as well", setting=name))


async def make_credential(settings: AzureSettings, **options: object) -> Any:
    """Make what gives tokens; it is an asynchronous context manager.

    Args:
        settings: As whom.
        options: Of its connections.

    Raises:
        ValueError: The certificate is none.
        OSError: Its file cannot be read.
    """
    authority = _AUTHORITIES.get(_CLOUDS[settings.cloud] or "")
    if authority is not None:
        options["authority"] = authority
    if settings.tenant and settings.client and settings.client_secret:
        return ClientSecretCredential(settings.tenant, settings.client, settings.client_secret, **options)
    if settings.tenant and settings.client and (settings.certificate or settings.certificate_file):
        return await asyncio.to_thread(_certificate, settings, options)
    return DefaultAzureCredential(managed_identity_client_id=settings.client, **options)


def _certificate(settings: AzureSettings, options: dict[str, Any]) -> CertificateCredential:
    if settings.certificate is None:
        data = Path(settings.certificate_file or "").read_bytes()
    elif "-----BEGIN" in settings.certificate:
        data = settings.certificate.encode()
    else:
        try:
            data = base64.b64decode(settings.certificate, validate=True)
        except binascii.Error:
            raise ValueError("azureCertificate is neither PEM nor base64") from None
    password = settings.certificate_password
    try:
        return CertificateCredential(
            str(settings.tenant), str(settings.client), certificate_data=data, password=password, **options
        )
    except ValueError:  # Its text is the library's.
        raise ValueError("the certificate with its key cannot be read, or has another password") from None


class AzureAdapter(ComponentAdapter):
    """An adapter that asks as an identity of Microsoft Entra ID, unless its settings have a key."""

    def __init__(self, settings: AzureSettings) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self._settings: Any = settings

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        made = super().from_component(component)
        check_identity(made._settings, component)
        return made

    async def _identity(self) -> Any:
        """Make what gives tokens."""
        options = {"connection_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS, "retry_total": TOKEN_RETRIES}
        try:
            credential = await make_credential(self._settings, **options)
        except (OSError, ValueError) as error:
            raise self._problem(f"there are no credentials for Azure: {error}") from None
        return await self._stack.enter_async_context(credential)
