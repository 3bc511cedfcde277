"""``bindings.gcp.bucket``: objects in a bucket of Google Cloud Storage.

What is larger than one piece is uploaded in a session of its own, piece by piece; an object is there once the session
ends well. Google has no client of asyncio for it, so this asks its JSON interface.

Source: Dapr 1.18, the GCP Storage Bucket binding; Cloud Storage's JSON reference, v1, and its V4 signing process.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import orjson
from yarl import URL as Target

from bindings._objects import (
    ObjectBinding,
    Put,
    base64_setting,
    each_at_once,
    file_root_setting,
    integer,
    options,
    required,
    text,
    time_to_live,
)
from bindings._parts import FILE_BYTES, Budget, encoded, pieces
from brokers.clients.gcp import Access, GCPAdapter, GCPSettings
from mesh.blocks.binding_contract import BindingError, Invoke, Invoked, Streamed
from mesh.resources.settings import LIMIT, URL, setting

__all__ = ["BucketBinding"]

SERVICE = "https://storage.googleapis.com"
MAX_CONNECTIONS = 32
MAX_LISTED = 1000
MAX_FOUND = 10_000
MAX_ANSWER_BYTES = 32 * 1024 * 1024
MAX_TTL = 7 * 86_400
ABORT_SECONDS = 10.0
CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0
STALLED = 10
AT_ONCE = 10
_ZERO = "0001-01-01T00:00:00Z"
Answered = tuple[aiohttp.ClientResponse, Any]


@dataclass(frozen=True, slots=True)
class BucketSettings(GCPSettings):
    """What is read of a component."""

    bucket: str = setting("bucket", "Name of the bucket.", default="", required=True, example="uploads")
    endpoint: str = setting("endpoint", "URL of the service; nobody logs in at one on http://.", URL, default=SERVICE)
    ttl: float | None = setting("signTTL", "How long a signed URL is valid, unless a call says.", LIMIT, example="15m")
    decode: bool = base64_setting("decodeBase64")
    encode: bool = base64_setting("encodeBase64")
    file_root: str | None = file_root_setting()


class BucketBinding(ObjectBinding, GCPAdapter):
    """Objects in a bucket."""

    title = "Writes, reads, lists, copies, moves, signs and deletes objects in a bucket of Google Cloud Storage."
    tested = "gcp-storage-emulator, an emulator of a third party; not run against the real service"
    settings = BucketSettings
    operations = ("create", "get", "delete", "list", "sign", "bulkGet", "copy", "move", "rename")
    _session: aiohttp.ClientSession

    def __init__(self, settings: Any) -> None:
        """Prepare; entering finds the credentials."""
        super().__init__(settings)
        self._access = Access(settings, BindingError, partial(BindingError, retryable=True))
        self._open_to_all = settings.client_email is None and settings.endpoint.startswith("http://")

    def _further(self) -> Mapping[str, Callable[[Invoke], Awaitable[Invoked | None]]]:
        return {
            "list": self._list,
            "sign": self._sign,
            "bulkGet": self._bulk_get,
            "copy": self._copy,
            "move": self._copy,
            "rename": self._rename,
        }

    async def _enter(self) -> None:
        if not self._open_to_all:
            await self._access.open()
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_read=READ_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        self._session = await self._stack.enter_async_context(session)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise BindingError("Cloud Storage does not answer in time", retryable=True) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise BindingError(f"Cloud Storage cannot be reached: {error}", retryable=True) from None

    @asynccontextmanager
    async def _asked(self, method: str, url: str, **further: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        own = url.startswith("/")  # The URL of an upload is a permission itself.
        headers = dict(await self._access.headers()) if own and not self._open_to_all else {}
        headers |= further.pop("headers", {})
        target = Target(self._settings.endpoint + url if own else url, encoded=True)
        # Redirections are not followed: who asks is told to no other server, and 308 asks for more of an upload.
        async with self._session.request(method, target, headers=headers, allow_redirects=False, **further) as response:
            yield response

    async def _ask(self, method: str, url: str, what: str, **further: Any) -> Answered:
        """Ask for something that answers JSON, or nothing."""
        with self._failures():
            async with self._asked(method, url, **further) as response:
                body = bytearray()
                async for part in response.content.iter_any():
                    body += part
                    if len(body) > MAX_ANSWER_BYTES:
                        raise BindingError(f"Cloud Storage answers more than {MAX_ANSWER_BYTES} bytes")
        if response.status >= 400:
            raise _refused(response.status, bytes(body), what)
        with suppress(orjson.JSONDecodeError):
            return response, orjson.loads(bytes(body))
        return response, {}

    def _object(self, name: str, bucket: str = "") -> str:
        return f"/b/{quote(bucket or self._settings.bucket, safe='')}/o/{quote(name, safe='')}"

    async def _put(self, name: str, parts: AsyncIterator[bytes], metadata: Mapping[str, str]) -> Put:
        of_type = metadata.get("contentType") or "application/octet-stream"
        target = (
            f"/upload/storage/v1/b/{quote(self._settings.bucket, safe='')}/o?name={quote(name, safe='')}&uploadType="
        )
        async with aclosing(pieces(parts)) as cut:
            piece, last = await anext(cut)
            if last and piece:  # Of nothing, an emulator takes a session alone.
                await self._ask("POST", f"{target}media", name, data=_body(piece), headers={"Content-Type": of_type})
            else:
                begin = {"X-Upload-Content-Type": of_type}
                response, _ = await self._ask("POST", f"{target}resumable", name, headers=begin, data=b"")
                await self._by_pieces(response.headers.get("Location", ""), (piece, last), cut, name)
        return {"objectURL": f"{self._settings.endpoint}/{self._settings.bucket}/{quote(name)}"}

    async def _by_pieces(
        self, session: str, first: tuple[bytes, bool], further: AsyncIterator[tuple[bytes, bool]], name: str
    ) -> None:
        if not session:
            raise BindingError("Cloud Storage begins no upload")
        try:
            start = await self._piece(session, 0, *first, name)
            async for each, last in further:
                start = await self._piece(session, start, each, last, name)
        except BaseException:
            with suppress(BindingError, TimeoutError):
                async with asyncio.timeout(ABORT_SECONDS):
                    await self._ask("DELETE", session, name)
            raise

    async def _piece(self, session: str, start: int, piece: bytes, last: bool, name: str) -> int:
        """Send a piece, and again what of it was not taken; gives where the next one begins."""
        end, stalled = start + len(piece), 0
        while True:
            sent = f"{start}-{end - 1}" if end > start else "*"
            told = {"Content-Range": f"bytes {sent}/{end if last else '*'}"}
            response, _ = await self._ask("PUT", session, name, data=_body(piece), headers=told)
            if response.status != 308:
                if not last:
                    raise BindingError(f"Cloud Storage answered {response.status} before the upload's end")
                return end
            through = response.headers.get("Range", "").rpartition("-")[2]
            taken = max(start, min(int(through) + 1, end)) if through.isdecimal() else start
            if taken == end and not last:
                return end
            stalled = 0 if taken > start else stalled + 1
            if stalled > STALLED:
                raise BindingError("Cloud Storage takes no more of the upload", retryable=True)
            piece, start = piece[taken - start :], taken

    async def _open(self, name: str, metadata: Mapping[str, str]) -> Streamed:
        parts = self._parts(name)
        length = int.from_bytes(await anext(parts))
        return Streamed(parts, length or None)

    async def _parts(self, name: str) -> AsyncGenerator[bytes, None]:
        """Read an object; the first part is its length, 0 = not known."""
        url = f"/storage/v1{self._object(name)}?alt=media"
        with self._failures():
            # Without the header, what is stored as gzip would be unpacked on the way, and its length not be known.
            async with self._asked("GET", url, headers={"Accept-Encoding": "gzip"}) as response:
                if response.status != 200:
                    raise _refused(response.status, await response.content.read(FILE_BYTES), name)
                yield (response.content_length or 0).to_bytes(8)
                async for part in response.content.iter_any():
                    yield part

    async def _remove(self, name: str, metadata: Mapping[str, str]) -> None:
        await self._ask("DELETE", f"/storage/v1{self._object(name)}", name)

    async def _pages(self, data: Mapping[str, Any], most: int) -> list[dict[str, Any]]:
        given = {"prefix": text(data, "prefix"), "delimiter": text(data, "delimiter"), "pageToken": ""}
        found: list[dict[str, Any]] = []
        while len(found) < most:
            query = {name: value for name, value in given.items() if value}
            query["maxResults"] = str(min(most - len(found), MAX_LISTED))
            url = f"/storage/v1/b/{quote(self._settings.bucket, safe='')}/o?{urlencode(query, quote_via=quote)}"
            _, answer = await self._ask("GET", url, "the bucket")
            found += answer.get("items") or ()
            given["pageToken"] = str(answer.get("nextPageToken") or "")
            if not given["pageToken"]:
                break
        return found[:most]

    async def _list(self, asked: Invoke) -> Invoked:
        data = options(asked)
        most = min(integer(data, "maxResults") or MAX_LISTED, MAX_LISTED)
        return Invoked(orjson.dumps([_listed(each) for each in await self._pages(data, most)]))

    async def _bulk_get(self, asked: Invoke) -> Invoked:
        found = await self._pages(options(asked), MAX_FOUND + 1)
        if len(found) > MAX_FOUND:
            raise BindingError(f"there are more than {MAX_FOUND} objects in the bucket")
        budget, as_base64 = Budget(), self._flag("encodeBase64", "encode", asked.metadata)

        async def read(each: dict[str, Any]) -> Put:
            opened = await self._open(each["name"], {})
            body = await budget.held(await encoded(opened) if as_base64 else opened)
            try:
                return {"name": each["name"], "data": body.decode(), "attrs": _listed(each)}
            except UnicodeDecodeError:
                raise BindingError("it is no text: set encodeBase64") from None

        return await each_at_once(found, AT_ONCE, read, lambda each: {"name": each["name"], "attrs": _listed(each)})

    async def _copy(self, asked: Invoke) -> None:
        """Copy an object, and remove it here where it is moved."""
        name, data = required(asked, self.named), options(asked)
        bucket = text(data, "destinationBucket") or asked.metadata.get("destinationBucket", "")
        target = text(data, "destinationKey") or asked.metadata.get("destinationKey", "")
        if not bucket and not target:
            raise BindingError("destinationBucket is missing")
        await self._rewrite(name, target or name, bucket, remove=asked.operation == "move")

    async def _rename(self, asked: Invoke) -> None:
        name, data = required(asked, self.named), options(asked)
        target = text(data, "newName") or asked.metadata.get("newName", "")
        if not target:
            raise BindingError("newName is missing")
        await self._rewrite(name, target, "", remove=True)

    async def _rewrite(self, name: str, target: str, bucket: str, *, remove: bool) -> None:
        if (target, bucket or self._settings.bucket) == (name, self._settings.bucket):
            raise BindingError(f"{name} would be copied onto itself")
        token = ""
        while True:  # Each answer has copied more of a large one; the call's deadline ends it.
            further = f"?rewriteToken={quote(token, safe='')}" if token else ""
            url = f"/storage/v1{self._object(name)}/rewriteTo{self._object(target, bucket)}{further}"
            _, answer = await self._ask("POST", url, name)
            token = str(answer.get("rewriteToken") or "")
            if answer.get("done") or not token:
                break
        if remove:
            await self._remove(name, {})

    async def _sign(self, asked: Invoke) -> Invoked:
        name, settings = required(asked, self.named), self._settings
        given = asked.metadata.get("signTTL")
        if given is None and settings.ttl is None:
            raise BindingError("the metadata signTTL are missing")
        seconds = time_to_live(given or f"{settings.ttl}s", "signTTL", MAX_TTL)
        url = await asyncio.to_thread(self._signed, name, seconds, datetime.now(UTC))
        return Invoked(orjson.dumps({"signURL": url}))

    def _signed(self, name: str, seconds: int, now: datetime) -> str:
        """Make a URL that may be read for a while, by whoever has it."""
        settings, credentials = self._settings, self._access.credentials
        email = getattr(credentials, "signer_email", None)
        if email is None:
            raise BindingError("a URL is signed by a service account: set client_email and private_key")
        day, at = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
        scope = f"{day}/auto/storage/goog4_request"
        path = f"/{settings.bucket}/{quote(name)}"
        query = urlencode(
            {
                "X-Goog-Algorithm": "GOOG4-RSA-SHA256",
                "X-Goog-Credential": f"{email}/{scope}",
                "X-Goog-Date": at,
                "X-Goog-Expires": str(seconds),
                "X-Goog-SignedHeaders": "host",
            },
            quote_via=quote,
            safe="",
        )
        request = "\n".join(
            ("GET", path, query, f"host:{urlsplit(settings.endpoint).netloc}", "", "host", "UNSIGNED-PAYLOAD")
        )
        text_of_it = "\n".join(("GOOG4-RSA-SHA256", at, scope, hashlib.sha256(request.encode()).hexdigest()))
        signature = cast("bytes", credentials.sign_bytes(text_of_it.encode())).hex()
        return f"{settings.endpoint}{path}?{query}&X-Goog-Signature={signature}"


def _body(piece: bytes) -> io.BytesIO:
    return io.BytesIO(piece)  # Bytes would be sent at once.


def _refused(status: int, body: bytes, what: str) -> BindingError:
    if status == 404:
        return BindingError(f"{what} not found")
    reason = ""
    with suppress(orjson.JSONDecodeError, AttributeError, TypeError):
        reason = str(orjson.loads(body)["error"]["message"])[:300]
    return BindingError(f"Cloud Storage answered {status}: {reason}", retryable=status >= 500 or status in (408, 429))


def _listed(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write an object's attributes as Dapr does."""
    checksum = found.get("crc32c")
    return {
        "Bucket": found.get("bucket", ""),
        "Name": found.get("name", ""),
        "ContentType": found.get("contentType") or "",
        "ContentLanguage": found.get("contentLanguage") or "",
        "CacheControl": found.get("cacheControl") or "",
        "EventBasedHold": bool(found.get("eventBasedHold")),
        "TemporaryHold": bool(found.get("temporaryHold")),
        "RetentionExpirationTime": found.get("retentionExpirationTime") or _ZERO,
        "ACL": found.get("acl") or None,
        "PredefinedACL": "",
        "Owner": (found.get("owner") or {}).get("entity", ""),
        "Size": int(found.get("size") or 0),
        "ContentEncoding": found.get("contentEncoding") or "",
        "ContentDisposition": found.get("contentDisposition") or "",
        "MD5": found.get("md5Hash"),
        "CRC32C": int.from_bytes(base64.b64decode(checksum)) if checksum else 0,
        "MediaLink": found.get("mediaLink") or "",
        "Metadata": found.get("metadata") or None,
        "Generation": int(found.get("generation") or 0),
        "Metageneration": int(found.get("metageneration") or 0),
        "StorageClass": found.get("storageClass") or "",
        "Created": found.get("timeCreated") or _ZERO,
        "Deleted": found.get("timeDeleted") or _ZERO,
        "Updated": found.get("updated") or _ZERO,
        "CustomerKeySHA256": (found.get("customerEncryption") or {}).get("keySha256", ""),
        "KMSKeyName": found.get("kmsKeyName") or "",
        "Prefix": "",
        "Etag": found.get("etag") or "",
    }
