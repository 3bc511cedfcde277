"""``bindings.aws.s3``: objects in a bucket of S3, or of what speaks like it.

What is larger than one part is uploaded by parts, one after the other; an upload that fails is aborted, so that nobody
sees a piece of it, and its parts cost nothing.

Source: Dapr 1.18, the S3 binding; the S3 API reference.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import orjson
from aiobotocore.config import AioConfig

from bindings._objects import (
    BulkBinding,
    Put,
    base64_setting,
    file_root_setting,
    integer,
    options,
    required,
    text,
    time_to_live,
)
from bindings._parts import FILE_BYTES, Budget, begun, encoded, pieces
from brokers.clients.aws import AWSAdapter, AWSSettings
from mesh.blocks.binding_contract import BindingError, Invoke, Invoked, Streamed
from mesh.errors import MeshError
from mesh.resources.settings import BOOLEAN, Kind, check_port, setting

__all__ = ["S3Binding"]

MAX_PARTS = 10_000
MAX_KEYS = 1000
MAX_LISTED = 10_000
ABORT_SECONDS = 10.0
ANSWER_SECONDS = 60.0  # A part takes a while on a slow line.
MAX_TTL = 7 * 86_400


def _endpoint(given: str) -> str:
    """Read a URL, or a name of a host alone."""
    scheme, _, rest = given.rpartition("://")
    if "@" in rest or not rest or scheme not in ("", "http", "https"):
        raise ValueError("is a host, or an http:// or https:// URL, without credentials")
    check_port(f"{scheme or 'http'}://{rest}")
    return given.rstrip("/")


@dataclass(frozen=True, slots=True)
class S3Settings(AWSSettings):
    """What is read of a component."""

    bucket: str = setting("bucket", "Name of the bucket.", default="", required=True, example="uploads")
    endpoint: str | None = setting(
        "endpoint",
        "URL or host of the service, in place of the region's own.",
        Kind("URL", _endpoint),
        example="http://localhost:9000",
    )
    path_style: bool = setting(
        "forcePathStyle", "Whether the bucket is named in the path, not in the host.", BOOLEAN, default=False
    )
    plain: bool = setting(
        "disableSSL", "Whether an endpoint without a scheme, or none, is reached without TLS.", BOOLEAN, default=False
    )
    insecure: bool = setting(
        "insecureSSL", "Whether any certificate of the endpoint is accepted.", BOOLEAN, default=False
    )
    storage_class: str = setting("storageClass", "Storage class of new objects.", default="", example="STANDARD_IA")
    decode: bool = base64_setting("decodeBase64")
    encode: bool = base64_setting("encodeBase64")
    file_root: str | None = file_root_setting()


class S3Binding(BulkBinding, AWSAdapter):
    """Objects in a bucket."""

    title = "Writes, reads, lists, shares and deletes objects in a bucket of S3."
    tested = "moto's server; not run against the real service"
    settings = S3Settings
    service = "s3"
    operations = ("create", "get", "delete", "list", "presign", "bulkGet", "bulkCreate", "bulkDelete")
    failed = away = BindingError

    def _further(self) -> Mapping[str, Callable[[Invoke], Awaitable[Invoked | None]]]:
        return {"list": self._list, "presign": self._presign, **super()._further()}

    def _away(self, reason: str) -> BindingError:
        return BindingError(reason, retryable=True)

    def _options(self, config: AioConfig) -> dict[str, Any]:
        settings: S3Settings = self._settings
        endpoint = settings.endpoint
        if endpoint and "://" not in endpoint:
            endpoint = f"http{'' if settings.plain else 's'}://{endpoint}"
        own = AioConfig(
            signature_version="s3v4",
            read_timeout=ANSWER_SECONDS,
            request_checksum_calculation="when_required",  # Others that speak like S3 know no further ones.
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if settings.path_style else "virtual"},
        )
        found = {"endpoint_url": endpoint, "config": config.merge(own), "use_ssl": not settings.plain}
        return {**found, "verify": False} if settings.insecure else found

    def _where(self, name: str) -> dict[str, Any]:
        return {"Bucket": self._settings.bucket, "Key": name}

    async def _put(self, name: str, parts: AsyncIterator[bytes], metadata: Mapping[str, str]) -> Put:
        seconds = _seconds(metadata) if metadata.get("presignTTL") else None
        target = {**self._where(name), **self._said(metadata)}
        async with aclosing(pieces(parts)) as cut:
            piece, last = await anext(cut)
            done = await (self.call("put_object", Body=piece, **target) if last else self._by_parts(target, piece, cut))
        answer = {"location": (await self._signed(name, 60)).partition("?")[0], "versionID": done.get("VersionId")}
        return answer if seconds is None else {**answer, "presignURL": await self._signed(name, seconds)}

    def _said(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """Give what is said of an object."""
        said = {
            "ContentType": metadata.get("contentType") or metadata.get("Content-Type"),
            "StorageClass": metadata.get("storageClass") or self._settings.storage_class,
            "Tagging": _tags(metadata.get("tags", "")),
        }
        return {name: value for name, value in said.items() if value}

    async def _by_parts(
        self, target: dict[str, Any], piece: bytes, further: AsyncIterator[tuple[bytes, bool]]
    ) -> dict[str, Any]:
        upload = (await self.call("create_multipart_upload", **target))["UploadId"]
        where = {**self._where(target["Key"]), "UploadId": upload}
        try:
            done = [await self._part(where, 1, piece)]
            async for each, _ in further:
                if len(done) == MAX_PARTS:
                    raise BindingError(f"it is larger than {MAX_PARTS * len(piece)} bytes")
                done.append(await self._part(where, len(done) + 1, each))
            return await self.call("complete_multipart_upload", MultipartUpload={"Parts": done}, **where)
        except BaseException:
            with suppress(MeshError, TimeoutError):
                async with asyncio.timeout(ABORT_SECONDS):
                    await self.call("abort_multipart_upload", **where)
            raise

    async def _part(self, where: dict[str, Any], number: int, piece: bytes) -> dict[str, Any]:
        done = await self.call("upload_part", PartNumber=number, Body=piece, **where)
        return {"PartNumber": number, "ETag": done["ETag"]}

    async def _open(self, name: str, metadata: Mapping[str, str]) -> Streamed:
        found = await self.read("get_object", absent=("NoSuchKey", "404"), **self._where(name))
        if found is None:
            raise BindingError(f"object {name} not found")
        return Streamed(await begun(self._parts(found["Body"])), found.get("ContentLength"))

    async def _parts(self, body: Any) -> AsyncGenerator[bytes, None]:
        try:
            yield b""
            while True:
                with self._errors("get object"):
                    part = await body.read(FILE_BYTES)
                if not part:
                    return
                yield part
        finally:
            body.close()

    async def _remove(self, name: str, metadata: Mapping[str, str]) -> None:
        await self.call("delete_object", **self._where(name))

    async def _held(self, name: str, budget: Budget) -> str:
        found = await self._open(name, {})
        try:
            return (await budget.held(await encoded(found) if self._settings.encode else found)).decode()
        except UnicodeDecodeError:
            raise BindingError("it is no text: set encodeBase64") from None

    async def _delete_many(self, names: Sequence[str], data: Mapping[str, Any], at_once: int) -> Invoked:
        failed: dict[str, str] = {}
        for start in range(0, len(names), MAX_KEYS):
            keys = [{"Key": name} for name in names[start : start + MAX_KEYS]]
            done = await self.call("delete_objects", Bucket=self._settings.bucket, Delete={"Objects": keys})
            for each in done.get("Errors") or ():
                failed[each["Key"]] = f"{each.get('Code')}: {each.get('Message')}"
        results = [{"key": name, "error": failed[name]} if name in failed else {"key": name} for name in names]
        return Invoked(orjson.dumps(results))

    async def _found(self, prefix: str) -> Sequence[str]:
        names: list[str] = []
        async for page in self.pages("list_objects_v2", Bucket=self._settings.bucket, Prefix=prefix):
            names += [each["Key"] for each in page.get("Contents") or ()]
            if len(names) > MAX_LISTED:
                raise BindingError(f"there are more than {MAX_LISTED} objects that begin so")
        return names

    async def _presign(self, asked: Invoke) -> Invoked:
        name = required(asked, self.named)
        required(asked, "presignTTL")
        return Invoked(orjson.dumps({"presignURL": await self._signed(name, _seconds(asked.metadata))}))

    async def _signed(self, name: str, seconds: int) -> str:
        with self._errors("presign"):
            url = await self._client.generate_presigned_url(
                "get_object", Params=self._where(name), ExpiresIn=seconds, HttpMethod="GET"
            )
        return str(url)

    async def _list(self, asked: Invoke) -> Invoked:
        data = options(asked)
        most = integer(data, "maxResults")
        given = {"Prefix": text(data, "prefix"), "Marker": text(data, "marker"), "Delimiter": text(data, "delimiter")}
        wanted: dict[str, Any] = {name: value for name, value in given.items() if value}
        if most:
            wanted["MaxKeys"] = min(most, MAX_KEYS)
        page = await self.call("list_objects", Bucket=self._settings.bucket, **wanted)
        return Invoked(orjson.dumps(_listed(page, given)))


def _listed(page: Mapping[str, Any], given: Mapping[str, str]) -> Mapping[str, Any]:
    """Write a page as Dapr does."""
    contents = [
        {
            "ETag": each.get("ETag"),
            "Key": each["Key"],
            "LastModified": each["LastModified"].strftime("%Y-%m-%dT%H:%M:%SZ"),
            "Owner": {"DisplayName": each.get("Owner", {}).get("DisplayName"), "ID": each.get("Owner", {}).get("ID")},
            "Size": each["Size"],
            "StorageClass": each.get("StorageClass"),
        }
        for each in page.get("Contents") or ()
    ]
    prefixes = [{"Prefix": each["Prefix"]} for each in page.get("CommonPrefixes") or ()]
    cut = bool(page.get("IsTruncated"))
    ends = [*(each["Key"] for each in contents), *(each["Prefix"] for each in prefixes)]
    return {
        "CommonPrefixes": prefixes or None,
        "Contents": contents or None,
        "Delimiter": given["Delimiter"],
        "EncodingType": None,
        "IsTruncated": cut,
        "Marker": given["Marker"],
        "MaxKeys": page.get("MaxKeys", MAX_KEYS),
        "Name": page.get("Name"),
        "NextMarker": page.get("NextMarker") or (max(ends) if cut and ends else None),
        "Prefix": given["Prefix"],
    }


def _seconds(metadata: Mapping[str, str]) -> int:
    return time_to_live(metadata["presignTTL"], "presignTTL", MAX_TTL)


def _tags(given: str) -> str:
    """Read ``name=value,…``."""
    pairs = [each.partition("=") for each in given.split(",") if each.strip()]
    if any(not name.strip() or not equals for name, equals, _ in pairs):
        raise BindingError("tags are name=value, with commas between")
    return urlencode({name.strip(): value.strip() for name, _, value in pairs})
