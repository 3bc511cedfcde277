"""``secretstores.azure.keyvault``: secrets of Azure Key Vault.

Source: Dapr 1.18, the Azure Key Vault secret store; Key Vault's REST reference.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from azure.core.exceptions import ResourceNotFoundError

from bindings.azure._vault import KeyVaultSettings, VaultAdapter
from bindings.secrets import read_all
from mesh.errors import SecretError, SecretStoreAwayError

__all__ = ["KeyVaultSecretStore"]

MAX_SECRETS = 10_000


class KeyVaultSecretStore(VaultAdapter):
    """Secrets of one vault."""

    settings = KeyVaultSettings
    failed, away = SecretError, SecretStoreAwayError
    capabilities: Sequence[str] = ()
    tested = "a server written by hand from Microsoft's documentation; not run against the real service"

    async def _enter(self) -> None:
        """Connect, and see that there are credentials; a permission to list all secrets is not needed."""
        await super()._enter()
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
