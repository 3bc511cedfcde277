"""``state.azure.tablestorage``: state in a table of Azure, laid out as the Dapr runtime lays it out.

An entity has the prefix of a key as ``PartitionKey``, what is behind it as ``RowKey``, and ``Value``, a text. A value
that is no UTF-8 is kept as bytes.

Source: Dapr 1.18, the Azure Table Storage state store; the Table service's REST reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus

from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import HttpResponseError
from azure.data.tables import UpdateMode
from azure.data.tables.aio import TableClient, TableServiceClient

from bindings.azure._client import failures
from bindings.azure._storage import StorageSettings, StorageStateStore, absent, split_key
from bindings.remote import must_be_absent
from mesh.errors import StateLimitError
from mesh.resources.settings import BOOLEAN, URL, setting
from mesh.store import Item, Stored

__all__ = ["TableStorageSettings", "TableStorageStateStore"]

MAX_KEY_CHARACTERS = 512
MAX_VALUE_BYTES = 64 * 1024
_ILLEGAL = frozenset("/\\#?") | {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))}


@dataclass(frozen=True, slots=True)
class TableStorageSettings(StorageSettings):
    """Settings of ``state.azure.tablestorage``."""

    table: str = setting(
        "tableName",
        "Name of the table.",
        default="",
        required=True,
        aliases=("table", "storageAccountTable"),
        example="state",
    )
    cosmos: bool = setting(
        "cosmosDbMode",
        "Whether it is the Table API of Cosmos DB; row keys are then percent-encoded.",
        BOOLEAN,
        default=False,
    )
    url: str | None = setting(
        "serviceURL",
        "URL of the table service, if it is another than the account gives.",
        URL,
        example="http://localhost:10002/shopstate",
    )
    leave: bool = setting("skipCreateTable", "Whether the table must be there already.", BOOLEAN, default=False)


class TableStorageStateStore(StorageStateStore):
    """State in a table of Azure Storage."""

    settings = TableStorageSettings
    _table: TableClient

    async def _enter(self) -> None:
        settings: TableStorageSettings = self._settings
        self.shown = f"the Azure table {settings.table!r}"
        credential: Any = await self._identity() if settings.key is None else None
        if settings.key is not None:
            credential = AzureNamedKeyCredential(settings.account, settings.key)
        url = self._address("table", settings.url)
        if settings.cosmos and settings.url is None:
            url = f"https://{settings.account}.table.cosmos.azure.com"
        with failures(self.shown):
            service = TableServiceClient(url, credential=credential, **await self._options())
            await self._stack.enter_async_context(service)
            if not settings.leave:
                await service.create_table_if_not_exists(settings.table)
        self._table = service.get_table_client(settings.table)
        await self.check()

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        """Read an entity."""
        try:
            names = self._names(key)
        except StateLimitError:  # It cannot be there.
            return None
        with failures(self.shown):
            try:
                entity = await self._table.get_entity(*names)
            except HttpResponseError as error:
                if absent(error):
                    return None
                raise
        value = entity.get("Value", "")
        return Stored(value if isinstance(value, bytes) else str(value).encode(), str(entity.metadata["etag"]))

    async def _save(self, item: Item, match: Mapping[str, Any]) -> None:
        partition, row = self._names(item.key)
        entity = {"PartitionKey": partition, "RowKey": row, "Value": _laid_out(item)}
        if match:
            await self._table.update_entity(entity, mode=UpdateMode.REPLACE, **match)
        elif must_be_absent(item):
            await self._table.create_entity(entity)
        else:
            await self._table.upsert_entity(entity, mode=UpdateMode.REPLACE)

    async def _delete(self, item: Item, match: Mapping[str, Any]) -> None:
        await self._table.delete_entity(*self._names(item.key), **match)

    def _names(self, key: str) -> tuple[str, str]:
        partition, row = split_key(key)
        if self._settings.cosmos:
            row = quote_plus(row)
        if max(_units(partition), _units(row)) > MAX_KEY_CHARACTERS or not _ILLEGAL.isdisjoint(partition + row):
            raise StateLimitError(
                f"a key in an Azure table has at most {MAX_KEY_CHARACTERS} characters, none of / \\ # ? "
                f"and no control characters: {key!r}"
            )
        return partition, row


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _laid_out(item: Item) -> str | bytes:
    assert item.value is not None
    value: str | bytes = item.value
    try:
        value = item.value.decode()
    except UnicodeDecodeError:
        size = len(item.value)
    else:
        size = 2 * _units(value)
    if size > MAX_VALUE_BYTES:
        raise StateLimitError(
            f"the value of {item.key!r} is too large: an Azure table takes {MAX_VALUE_BYTES} bytes, two of them for "
            f"each character, not {size}"
        )
    return value
