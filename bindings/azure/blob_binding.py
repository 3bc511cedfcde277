"""``bindings.azure.blobstorage``: blobs in a container of Azure Storage.

What is larger than one block is uploaded by blocks. A blob is what it was until they are committed; blocks that never
are go after a week.

Source: Dapr 1.18, the Azure Blob Storage binding; the Blob service's REST reference.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import uuid4

import orjson
from azure.storage.blob import BlobBlock, BlobProperties, BlobSasPermissions, ContentSettings, generate_blob_sas

from bindings._objects import (
    BulkBinding,
    Put,
    base64_setting,
    file_root_setting,
    flag,
    integer,
    options,
    required,
    text,
    time_to_live,
)
from bindings._parts import Budget, begun, pieces
from bindings.azure._binding import binding_failures
from bindings.azure.blobstorage import BLOB_HEADERS, BlobAdapter, BlobStorageSettings
from mesh.blocks.binding_contract import BindingError, Invoke, Invoked, Streamed
from mesh.resources.settings import Setting, ignored

__all__ = ["BlobBinding"]

MAX_BLOCKS = 50_000
MAX_LISTED = 5000
MAX_FOUND = 10_000
READ_BYTES = 4 * 1024 * 1024
ANSWER_SECONDS = 60  # A block takes a while on a slow line.
MAX_TTL = 365 * 86_400
_SNAPSHOTS = ("", "include", "only")
_INCLUDED = ("snapshots", "metadata", "uncommittedBlobs", "copy", "deleted")
_OF_CALL = frozenset({"blobname", "contentmd5", "signttl", "decodebase64", "operation", *BLOB_HEADERS})


@dataclass(frozen=True, slots=True)
class BlobBindingSettings(BlobStorageSettings):
    """What is read of a component."""

    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored("it is of each blob, in the metadata of its call", "contentMD5"),
        *ignored("the resiliency policies say how often is tried", "getBlobRetryCount"),
    )
    decode: bool = base64_setting("decodeBase64")
    file_root: str | None = file_root_setting()


class BlobBinding(BulkBinding, BlobAdapter):
    """Blobs in a container."""

    title = "Writes, reads, lists, shares and deletes blobs in a container of Azure Storage."
    settings = BlobBindingSettings
    operations = ("create", "get", "delete", "list", "presign", "bulkGet", "bulkCreate", "bulkDelete")
    named = "blobName"
    names = "blobNames"
    source = "sourcePath"

    def _further(self) -> Mapping[str, Callable[[Invoke], Awaitable[Invoked | None]]]:
        return {"list": self._list, "presign": self._presign, **super()._further()}

    async def _enter(self) -> None:
        sizes = {"max_single_get_size": READ_BYTES, "max_chunk_get_size": READ_BYTES}
        with binding_failures(getattr(self, "shown", "Azure")):
            await self._open_container(read_timeout=ANSWER_SECONDS, **sizes)

    async def _put(self, name: str, parts: AsyncIterator[bytes], metadata: Mapping[str, str]) -> Put:
        seconds = self._seconds(metadata) if metadata.get("signTTL") else None
        given: dict[str, Any] = {"content_settings": self._said(metadata), "metadata": _of_user(metadata)}
        blob = self._container.get_blob_client(name)
        async with aclosing(pieces(parts)) as cut:
            piece, last = await anext(cut)
            if last:
                with binding_failures(self.shown):
                    await blob.upload_blob(piece, overwrite=True, **given)
            else:
                await self._by_blocks(blob, given, piece, cut)
        answer = {"blobURL": blob.url}
        return answer if seconds is None else {**answer, "presignURL": self._signed(name, seconds)}

    def _said(self, metadata: Mapping[str, str]) -> ContentSettings:
        folded = {name.lower(): value for name, value in metadata.items()}
        headers: Any = {
            field: folded.get(name) or getattr(self._settings, field) for name, field in BLOB_HEADERS.items()
        }
        try:
            digest = base64.b64decode(folded.get("contentmd5", ""), validate=True)
        except binascii.Error:
            raise BindingError("contentMD5 is no base64") from None
        return ContentSettings(**headers, content_md5=bytearray(digest) if digest else None)

    async def _by_blocks(
        self, blob: Any, given: Mapping[str, Any], piece: bytes, further: AsyncIterator[tuple[bytes, bool]]
    ) -> None:
        upload = uuid4().hex  # Another upload of the same blob has other blocks.
        ids = [await self._block(blob, f"{upload}-{0:05}", piece)]
        async for each, _ in further:
            if len(ids) == MAX_BLOCKS:
                raise BindingError(f"it is larger than {MAX_BLOCKS * len(piece)} bytes")
            ids.append(await self._block(blob, f"{upload}-{len(ids):05}", each))
        with binding_failures(self.shown):
            await blob.commit_block_list([BlobBlock(block_id=each) for each in ids], **given)

    async def _block(self, blob: Any, name: str, piece: bytes) -> str:
        with binding_failures(self.shown):
            await blob.stage_block(name, piece, length=len(piece))
        return name

    async def _open(self, name: str, metadata: Mapping[str, str]) -> Streamed:
        with binding_failures(self.shown):
            found = await self._container.get_blob_client(name).download_blob()
        told = dict(found.properties.metadata or {}) if flag(metadata, "includeMetadata") else {}
        return Streamed(await begun(self._parts(found)), found.size, told)

    async def _parts(self, found: Any) -> AsyncGenerator[bytes, None]:
        yield b""
        chunks = found.chunks()
        while True:
            with binding_failures(self.shown):
                try:
                    part = await anext(chunks)
                except StopAsyncIteration:
                    return
            yield part

    async def _held(self, name: str, budget: Budget) -> str:
        return base64.b64encode(await budget.held(await self._open(name, {}))).decode()

    async def _remove(self, name: str, metadata: Mapping[str, str]) -> None:
        snapshots = metadata.get("deleteSnapshots", "")
        if snapshots not in _SNAPSHOTS:
            raise BindingError("deleteSnapshots is include or only")
        with binding_failures(self.shown):
            await self._container.get_blob_client(name).delete_blob(delete_snapshots=snapshots or None)

    async def _found(self, prefix: str) -> Sequence[str]:
        names: list[str] = []
        with binding_failures(self.shown):
            async for each in self._container.list_blob_names(name_starts_with=prefix):
                names.append(each)
                if len(names) > MAX_FOUND:
                    raise BindingError(f"there are more than {MAX_FOUND} blobs that begin so")
        return names

    async def _presign(self, asked: Invoke) -> Invoked:
        name = required(asked, self.named)
        required(asked, "signTTL")
        return Invoked(orjson.dumps({"presignURL": self._signed(name, self._seconds(asked.metadata))}))

    def _seconds(self, metadata: Mapping[str, str]) -> int:
        if self._settings.key is None:
            raise BindingError("signTTL needs the setting accountKey: only a key signs a URL")
        return time_to_live(metadata["signTTL"], "signTTL", MAX_TTL)

    def _signed(self, name: str, seconds: int) -> str:
        signature = generate_blob_sas(
            self._settings.account,
            self._settings.container,
            name,
            account_key=self._settings.key,
            permission=BlobSasPermissions(read=True),
            expiry=datetime.now(UTC) + timedelta(seconds=seconds),
        )
        return f"{self._container.get_blob_client(name).url}?{signature}"

    async def _list(self, asked: Invoke) -> Invoked:
        data = options(asked)
        included = data.get("include") or {}
        if not isinstance(included, dict):
            raise BindingError("include of the data is no object")
        pages = self._container.list_blobs(
            name_starts_with=text(data, "prefix") or None,
            include=[each.lower() for each in _INCLUDED if included.get(each) is True],
            results_per_page=min(integer(data, "maxResults") or MAX_LISTED, MAX_LISTED),
        ).by_page(continuation_token=text(data, "marker") or None)
        found: list[Any] = []
        with binding_failures(self.shown):
            async for page in pages:
                found = [_listed(each) async for each in page]
                break
        told = {"marker": str(getattr(pages, "continuation_token", None) or ""), "number": str(len(found))}
        return Invoked(orjson.dumps(found), told)


def _of_user(metadata: Mapping[str, str]) -> dict[str, str]:
    """Give what a blob is said to have besides: names and values that the service takes."""
    cleaned = {
        re.sub(r"[^A-Za-z0-9_]", "", name): "".join(each for each in value if each.isascii() and each.isprintable())
        for name, value in metadata.items()
        if name.lower() not in _OF_CALL
    }
    return {name: value for name, value in cleaned.items() if name and not name[0].isdigit()}


def _listed(blob: BlobProperties) -> Mapping[str, Any]:
    """Write a blob as Dapr does."""
    content, copied, lease = blob.content_settings, blob.copy, blob.lease
    properties = {
        "XMLName": {"Space": "", "Local": "Properties"},
        "CreationTime": _time(blob.creation_time),
        "LastModified": _time(blob.last_modified),
        "Etag": blob.etag,
        "ContentLength": blob.size,
        "ContentType": content.content_type or "",
        "ContentEncoding": content.content_encoding or "",
        "ContentLanguage": content.content_language or "",
        "ContentMD5": base64.b64encode(content.content_md5).decode() if content.content_md5 else None,
        "ContentDisposition": content.content_disposition or "",
        "CacheControl": content.cache_control or "",
        "BlobSequenceNumber": blob.page_blob_sequence_number,
        "BlobType": getattr(blob.blob_type, "value", blob.blob_type),
        "LeaseStatus": lease.status or "",
        "LeaseState": lease.state or "",
        "LeaseDuration": lease.duration or "",
        "CopyID": copied.id,
        "CopyStatus": copied.status or "",
        "CopySource": copied.source,
        "CopyProgress": copied.progress,
        "CopyCompletionTime": _time(copied.completion_time),
        "CopyStatusDescription": copied.status_description,
        "ServerEncrypted": blob.server_encrypted,
        "IncrementalCopy": copied.incremental_copy,
        "DestinationSnapshot": _time(copied.destination_snapshot),
        "DeletedTime": _time(blob.deleted_time),
        "RemainingRetentionDays": blob.remaining_retention_days,
        "AccessTier": getattr(blob.blob_tier, "value", blob.blob_tier) or "",
        "AccessTierInferred": blob.blob_tier_inferred,
        "ArchiveStatus": getattr(blob.archive_status, "value", blob.archive_status) or "",
        "CustomerProvidedKeySha256": None,
        "AccessTierChangeTime": _time(blob.blob_tier_change_time),
    }
    return {
        "XMLName": {"Space": "", "Local": "Blob"},
        "Name": blob.name,
        "Deleted": bool(blob.deleted),
        "Snapshot": blob.snapshot or "",
        "Properties": properties,
        "Metadata": dict(blob.metadata) if blob.metadata else None,
    }


def _time(given: Any) -> Any:
    return given.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(given, datetime) else given
