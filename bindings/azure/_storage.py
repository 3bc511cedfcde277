"""What the adapters to a storage account of Azure have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError

from bindings.azure._client import (
    CONNECT_SECONDS,
    READ_SECONDS,
    RETRIES,
    AzureAdapter,
    AzureStateStore,
    Transport,
    failures,
)
from bindings.remote import conditional, conflict
from brokers.clients.azure import AzureSettings
from brokers.clients.azure_storage import key_kind
from mesh.resources.settings import setting
from mesh.store import Item

__all__ = [
    "StorageAdapter",
    "StorageSettings",
    "StorageStateStore",
    "absent",
    "split_key",
]

SEPARATOR = "||"
TESTED = "Azurite 3.35, Microsoft's emulator; not run against the real service"
_DOMAINS = {
    "AZUREPUBLICCLOUD": "core.windows.net",
    "AZURECHINACLOUD": "core.chinacloudapi.cn",
    "AZUREUSGOVERNMENTCLOUD": "core.usgovcloudapi.net",
}
_ETAG = re.compile(r'(W/)?"[\x21\x23-\x7e]*"')


@dataclass(frozen=True, slots=True)
class StorageSettings(AzureSettings):
    """What every store in a storage account has."""

    account: str = setting(
        "accountName",
        "Name of the storage account.",
        default="",
        required=True,
        aliases=("storageAccount", "storageAccountName"),
        example="shopstate",
    )
    key: str | None = setting(
        "accountKey",
        "Key of the account; without it, it is asked as an identity of Microsoft Entra ID.",
        key_kind,
        secret=True,
        aliases=("accessKey", "storageAccessKey", "storageAccountKey"),
    )


class StorageAdapter(AzureAdapter):
    """What asks a service of a storage account."""

    tested = TESTED

    def _address(self, service: str, given: str | None) -> str:
        """Give the URL of one of the account's services."""
        settings: StorageSettings = self._settings
        return given or f"https://{settings.account}.{service}.{_DOMAINS[settings.cloud]}"

    async def _options(self) -> Mapping[str, Any]:
        """Make what the client of a service is made of, but for its credentials."""
        transport = await self._stack.enter_async_context(Transport())
        seconds = {"connection_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
        return {"transport": transport, "retry_total": RETRIES, **seconds}


class StorageStateStore(StorageAdapter, AzureStateStore):
    """A store whose etags are the service's own."""

    capabilities: Sequence[str] = ("ETAG",)
    shown: str

    async def write(self, items: Sequence[Item]) -> None:
        """Write one item."""
        for item in items:  # Without TRANSACTIONAL there is one at most.
            if item.etag is not None and not _ETAG.fullmatch(item.etag):
                raise conflict(items)  # The service takes no other form, and so gave none.
            match = {} if item.etag is None else {"etag": item.etag, "match_condition": MatchConditions.IfNotModified}
            with failures(self.shown, items):
                try:
                    await (self._delete(item, match) if item.value is None else self._save(item, match))
                except HttpResponseError as error:
                    if absent(error) and item.value is None and not conditional(item):
                        return
                    unmet = error.status_code == 412 or absent(error) or _exists(error)
                    if unmet and conditional(item):
                        raise conflict(items) from None
                    raise

    async def _save(self, item: Item, match: Mapping[str, Any]) -> None:
        raise NotImplementedError

    async def _delete(self, item: Item, match: Mapping[str, Any]) -> None:
        raise NotImplementedError


def split_key(key: str) -> tuple[str, str]:
    """Split a key behind its prefix; one without a prefix is all prefix."""
    prefix, _, rest = key.partition(SEPARATOR)
    return prefix, rest


def absent(error: HttpResponseError) -> bool:
    """Tell whether what is asked for is missing, and not that which it would be in."""
    code = getattr(error, "error_code", None)
    return error.status_code == 404 and getattr(code, "value", code) not in ("TableNotFound", "ContainerNotFound")


def _exists(error: HttpResponseError) -> bool:
    return error.status_code == 409 and "BeingDeleted" not in str(error)  # It is not always decoded.
