"""``state.azure.blobstorage``: state in blobs of a container, laid out as the Dapr runtime lays it out.

A blob has the value as it is. Version ``v1`` names it by what is behind the prefix of the key, so that all applications
share their keys; version ``v2`` names it by the whole key.

Source: Dapr 1.18, the Azure Blob Storage state stores; the Blob service's REST reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from azure.core.exceptions import HttpResponseError
from azure.storage.blob import ContentSettings
from azure.storage.blob.aio import BlobServiceClient, ContainerClient

from bindings.azure._client import failures
from bindings.azure._storage import StorageAdapter, StorageSettings, StorageStateStore, absent, split_key
from bindings.remote import must_be_absent
from mesh.errors import StateLimitError
from mesh.resources.component import Component
from mesh.resources.settings import BOOLEAN, URL, Setting, choice, ignored, setting
from mesh.store import Item, Stored

__all__ = ["BLOB_HEADERS", "BlobAdapter", "BlobStorageSettings", "BlobStorageStateStore"]

MAX_NAME_CHARACTERS = 1024
MAX_VALUE_BYTES = 64 * 1024 * 1024  # In one request.
BLOB_HEADERS = {
    "contenttype": "content_type",
    "contentencoding": "content_encoding",
    "contentlanguage": "content_language",
    "contentdisposition": "content_disposition",
    "cachecontrol": "cache_control",
}


@dataclass(frozen=True, slots=True)
class BlobStorageSettings(StorageSettings):
    """Settings of ``state.azure.blobstorage``."""

    container: str = setting(
        "containerName",
        "Name of the container.",
        default="",
        required=True,
        aliases=("container", "storageAccountContainer"),
        example="state",
    )
    endpoint: str | None = setting(
        "endpoint",
        "URL of the blob service, if it is another than the account gives.",
        URL,
        aliases=("storageEndpoint", "storageAccountEndpoint"),
        example="http://localhost:10000/shopstate",
    )
    leave: bool = setting(
        "disableEntityManagement", "Whether the container must be there already.", BOOLEAN, default=False
    )
    public: str = setting(
        "publicAccessLevel",
        "Who may read a container that is made: blob or container lets anybody read blobs.",
        choice("none", "blob", "container"),
        default="none",
    )
    content_type: str | None = setting(
        "contentType", "Content type of the blobs, unless a request has its own.", example="application/json"
    )
    content_encoding: str | None = setting(
        "contentEncoding", "Content encoding of the blobs, likewise.", example="identity"
    )
    content_language: str | None = setting("contentLanguage", "Content language of the blobs, likewise.", example="en")
    content_disposition: str | None = setting(
        "contentDisposition", "Content disposition of the blobs, likewise.", example="attachment"
    )
    cache_control: str | None = setting("cacheControl", "Cache control of the blobs, likewise.", example="no-cache")
    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored("it is of each blob, and the service computes it", "contentMD5"),
        *ignored("the resiliency policies say how often is tried", "getBlobRetryCount"),
        *ignored("a value is stored as it is", "decodeBase64", anyway=("false",)),
    )


class BlobAdapter(StorageAdapter):
    """What asks for blobs of one container, which is made if it is not there."""

    shown: str
    _container: ContainerClient

    async def _open_container(self, **further: Any) -> None:
        """Connect.

        Args:
            further: Options of the client, besides the usual ones.
        """
        settings: BlobStorageSettings = self._settings
        self.shown = f"the Azure container {settings.container!r}"
        credential: Any = await self._identity() if settings.key is None else None
        if settings.key is not None:
            credential = {"account_name": settings.account, "account_key": settings.key}
        with failures(self.shown):
            options = {**await self._options(), **further}
            service = BlobServiceClient(self._address("blob", settings.endpoint), credential=credential, **options)
            await self._stack.enter_async_context(service)
            self._container = service.get_container_client(settings.container)
            if not settings.leave:
                try:
                    await self._container.create_container(public_access=_public(settings.public))
                except HttpResponseError as error:
                    if error.status_code != 409:
                        raise


class BlobStorageStateStore(BlobAdapter, StorageStateStore):
    """State in blobs of an Azure Storage container."""

    versions = ("v2", "v1")
    settings = BlobStorageSettings
    _whole = True

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; the version says how blobs are named."""
        made = super().from_component(component)
        made._whole = component.version == "v2"
        return made

    async def _enter(self) -> None:
        await self._open_container(max_single_put_size=MAX_VALUE_BYTES)
        await self.check()

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        """Read a blob."""
        try:
            name = self._name(key)
        except StateLimitError:  # It cannot be there.
            return None
        with failures(self.shown):
            try:
                found = await self._container.get_blob_client(name).download_blob()
                return Stored(await found.readall(), str(found.properties.etag))
            except HttpResponseError as error:
                if absent(error):
                    return None
                raise

    async def _save(self, item: Item, match: Mapping[str, Any]) -> None:
        assert item.value is not None
        if len(item.value) > MAX_VALUE_BYTES:
            raise StateLimitError(f"the value of {item.key!r} is too large: more than {MAX_VALUE_BYTES} bytes")
        given = {
            BLOB_HEADERS[name.lower()]: text for name, text in item.metadata.items() if name.lower() in BLOB_HEADERS
        }
        headers: Any = {name: given.get(name) or getattr(self._settings, name) for name in BLOB_HEADERS.values()}
        await self._container.get_blob_client(self._name(item.key)).upload_blob(
            item.value,
            overwrite=not must_be_absent(item),
            content_settings=ContentSettings(**headers),
            **match,
        )

    async def _delete(self, item: Item, match: Mapping[str, Any]) -> None:
        await self._container.get_blob_client(self._name(item.key)).delete_blob(delete_snapshots="include", **match)

    def _name(self, key: str) -> str:
        prefix, rest = split_key(key)
        name = key if self._whole else rest or prefix
        if len(name) > MAX_NAME_CHARACTERS or name.endswith((".", "/", "\\")):
            raise StateLimitError(
                f"a key in Azure Blob Storage has at most {MAX_NAME_CHARACTERS} characters, "
                f"and no dot or slash at its end: {key!r}"
            )
        return name


def _public(level: str) -> Any:
    return None if level == "none" else level
