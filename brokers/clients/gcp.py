"""As whom the adapters to Google Cloud ask: a service account of the settings, or as Google's own tools find it.

Source: Dapr 1.18, the GCP authentication profiles; Google Cloud, Application Default Credentials.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import google.auth
from google.auth.exceptions import GoogleAuthError, TransportError
from google.auth.transport.requests import Request
from google.oauth2.service_account import Credentials

from mesh.adapter import ComponentAdapter
from mesh.errors import ConfigError, MeshError
from mesh.resources.component import Component
from mesh.resources.settings import Setting, ignored, setting

__all__ = ["Access", "GCPAdapter", "GCPSettings"]

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
TOKEN_URL = "https://oauth2.googleapis.com/token"
TOKEN_SECONDS = 10.0


@dataclass(frozen=True)  # Without slots, so that a model may inherit from another one as well.
class GCPSettings:
    """What every component of Google Cloud has: the members of a service account's key file.

    Their names are spelled in two other ways by Dapr's components; here case does not matter, in an editor it does.
    """

    project: str | None = setting(
        "project_id",
        "The project; without it that of the credentials.",
        aliases=("projectID", "projectId"),
        example="shop-1234",
    )
    client_email: str | None = setting(
        "client_email",
        "Address of a service account; without it the credentials are found as Google's tools do.",
        aliases=("clientEmail",),
        example="shop@shop-1234.iam.gserviceaccount.com",
    )
    private_key: str | None = setting(
        "private_key", "Key of the service account, in PEM.", secret=True, aliases=("privateKey",)
    )
    private_key_id: str | None = setting(
        "private_key_id", "Id of that key.", secret=True, aliases=("privateKeyID", "privateKeyId")
    )
    token_url: str = setting(
        "token_uri",
        "Where tokens for the service account are given.",
        default=TOKEN_URL,
        aliases=("tokenURI", "tokenUri"),
    )

    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored("a service account is meant", "type", anyway=("service_account",)),
        *ignored(
            "nothing needs it to ask for a token",
            *("client_id", "clientID", "clientId", "auth_uri", "authURI", "authUri"),
            *("auth_provider_x509_cert_url", "authProviderX509CertURL", "authProviderX509CertUrl"),
            *("client_x509_cert_url", "clientX509CertURL", "clientX509CertUrl"),
            anyway=(),
        ),
    )


class GCPAdapter(ComponentAdapter):
    """An adapter whose settings name a service account, or nobody."""

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; a service account has two parts."""
        made = super().from_component(component)
        settings = made._settings
        if (settings.client_email is None) != (settings.private_key is None):
            given, lacking = ("client_email", "private_key")[:: 1 if settings.client_email else -1]
            raise ConfigError(component.problem(f"needs {lacking} as well", setting=given))
        return made


class Access:
    """Gives the headers of requests; a token is asked for again before its time is over."""

    def __init__(
        self, settings: GCPSettings, failed: Callable[[str], MeshError], away: Callable[[str], MeshError]
    ) -> None:
        """Prepare; `open` finds the credentials.

        Args:
            settings: As whom.
            failed: Makes the errors.
            away: Makes those after which the same request may succeed.
        """
        self._settings = settings
        self._failed = failed
        self._away = away
        self._one = asyncio.Lock()
        self._credentials: Any = None
        self.project = settings.project

    async def open(self) -> None:
        """Find the credentials, and with them the project."""
        logging.getLogger("google.auth").setLevel(logging.INFO)  # Below, it writes requests.
        try:
            self._credentials, project = await asyncio.to_thread(self._find)
        except (GoogleAuthError, ValueError, OSError) as error:
            raise self._failed(f"there are no credentials for Google Cloud: {_short(error)}") from None
        self.project = self.project or project

    def _find(self) -> tuple[Any, str | None]:
        settings = self._settings
        if settings.client_email is None or settings.private_key is None:
            return google.auth.default(scopes=SCOPES)
        members = {
            "type": "service_account",
            "client_email": settings.client_email,
            "private_key": settings.private_key.replace("\\n", "\n"),  # As it stands in a key file.
            "private_key_id": settings.private_key_id,
            "token_uri": settings.token_url,
        }
        try:
            make: Any = Credentials.from_service_account_info  # It is not typed.
            return make(members, scopes=SCOPES), None
        except Exception:  # noqa: BLE001  # Whatever it is, its text may quote the key.
            raise ValueError("private_key is no key in PEM") from None

    @property
    def credentials(self) -> Any:
        """What was found; some sign as well."""
        return self._credentials

    async def headers(self) -> Mapping[str, str]:
        """Give who asks."""
        async with self._one:
            if not self._credentials.valid:
                try:
                    await asyncio.to_thread(self._credentials.refresh, partial(Request(), timeout=TOKEN_SECONDS))
                except TransportError as error:
                    raise self._away(f"no token can be had from Google Cloud: {_short(error)}") from None
                except GoogleAuthError as error:
                    make = self._away if error.retryable else self._failed
                    raise make(f"Google Cloud gives no token: {_short(error)}") from None
            return {"Authorization": f"Bearer {self._credentials.token}"}


def _short(error: Exception) -> str:
    text = error.args[0] if error.args and isinstance(error.args[0], str) else type(error).__name__
    return text.partition("\n")[0][:300]
