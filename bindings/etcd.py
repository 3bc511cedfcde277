"""``state.etcd``: state in etcd, laid out as the Dapr runtime lays it out, over etcd's JSON interface.

Source: Dapr 1.18, the etcd state store; the ``version`` of the component says how values are laid out.
"""

from __future__ import annotations

import base64
import io
import math
import re
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import aiohttp
import orjson

from bindings.remote import RemoteStateStore, conflict, merged, tls_context, uncertain
from mesh.errors import ConfigError, ConflictError, InvalidEtagError, MeshError, StateError, StateLimitError
from mesh.resources.component import Component
from mesh.resources.settings import BOOLEAN, Kind, read_settings, setting, whole
from mesh.store import MAX_PARALLEL, Item, Stored

__all__ = ["EtcdStateStore"]

REQUEST_SECONDS = 5.0
MAX_CONNECTIONS = 32
_ETAG = re.compile(r"[0-9]{1,18}")
_LIMITS = ("request is too large", "too many operations", "received message larger than max")
_LENGTH = 2  # The wire type of what has a length.


def _endpoints(text: str) -> tuple[str, ...]:
    found = []
    for each in text.split(","):
        host = each.strip().rstrip("/").rpartition("://")[2]
        found_port = re.fullmatch(r"[^\s/@]+:([0-9]{1,5})", host)
        if found_port is None or not 0 < int(found_port[1]) < 65536:
            raise ValueError("is host:port, or several with commas between, without credentials")
        found.append(host)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """Settings of ``state.etcd``."""

    endpoints: tuple[str, ...] = setting(
        "endpoints",
        "Host and port of the server; several with commas between are members of a cluster.",
        Kind("host:port, or several with commas between", _endpoints),
        required=True,
        example="localhost:2379",
    )
    prefix: str = setting(
        "keyPrefixPath", "What is put before every key, with a slash after it.", default="", example="shop"
    )
    tls: bool = setting("tlsEnable", "Whether to connect over TLS.", BOOLEAN, default=False)
    ca: str | None = setting("ca", "Whom to trust over TLS, PEM; the system's where it is not set.")
    certificate: str | None = setting("cert", "Our certificate over TLS, PEM.")
    key: str | None = setting("key", "Its private key, PEM.", secret=True)
    most: int = setting(
        "maxTxnOps", "Most operations of a transaction, as the server has it.", whole(1, 100_000), default=128
    )


class EtcdStateStore(RemoteStateStore):
    """State in etcd, in the layout of version v1 or v2; etags are the revisions in which keys changed."""

    settings = EtcdSettings
    tested = "etcd 3.4, one server"
    versions: ClassVar[tuple[str, ...]] = ("v1", "v2")
    capabilities: Sequence[str] = ("ETAG", "TRANSACTIONAL", "TTL", "ACTOR", "KEYS")

    def __init__(self, settings: EtcdSettings, tls: ssl.SSLContext | None = None, *, envelope: bool = False) -> None:
        """Prepare; entering connects.

        Args:
            settings: Its settings.
            tls: The context that goes with them.
            envelope: Whether values are laid out as version v2 has it.
        """
        super().__init__(settings)
        self._endpoints = list(settings.endpoints)
        self._prefix = f"{settings.prefix}/"
        self._tls = tls
        self._envelope = envelope
        self._session: aiohttp.ClientSession
        self.max_transaction = self.batch = settings.most
        self._shown = f"etcd at {','.join(settings.endpoints)}"

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        settings = read_settings(component, EtcdSettings)
        given = {"ca": settings.ca, "cert": settings.certificate, "key": settings.key}
        problems = [
            component.problem("needs tlsEnable: without it nothing is encrypted", setting=name)
            for name in given
            if given[name] and not settings.tls
        ]
        for name, other in (("cert", "key"), ("key", "cert")):
            if given[name] and not given[other]:
                problems.append(component.problem(f"goes with {other}", setting=name))
        if problem := component.version_problem(cls.versions):
            problems.append(problem)
        if problems:
            raise ConfigError(problems)
        try:
            known = settings.tls and not component.assumes(*given)
            tls = tls_context(settings.ca, settings.certificate, settings.key) if known else None
        except ValueError as error:
            raise ConfigError(component.problem(str(error))) from error
        return cls(settings, tls, envelope=component.version != "v1")

    async def _enter(self) -> None:
        connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS, ssl=self._tls or True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_SECONDS, sock_read=REQUEST_SECONDS)
        session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        self._session = await self._stack.enter_async_context(session)
        await self._ask("kv/range", {"key": self._key("health")})

    def _key(self, key: str) -> str:
        return base64.b64encode((self._prefix + key).encode()).decode()

    async def _ask(self, path: str, body: Mapping[str, object], items: Sequence[Item] = ()) -> dict[str, Any]:
        """Ask the servers in turn, until one is there; what may have been done is not asked again."""
        data = orjson.dumps(body)
        scheme = "https" if self._tls else "http"
        failed = StateError("")
        for _ in range(len(self._endpoints)):
            server, sent, status = self._endpoints[0], True, 0
            try:
                # From a file in memory: aiohttp warns of large bytes.
                async with self._session.post(f"{scheme}://{server}/v3/{path}", data=io.BytesIO(data)) as response:
                    answer, status = await response.read(), response.status
                    return self._read(status, answer)
            except StateError as error:
                if status < 500 or isinstance(error, StateLimitError):
                    raise
                failed = error  # It may have told the other members before it gave up.
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                failed, sent = StateError(f"cannot reach {self._shown}: {error}"), False
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failed = StateError(f"{self._shown} did not answer: {str(error) or type(error).__name__}")
            if self._endpoints[0] == server:  # Nobody else has gone on yet.
                self._endpoints.append(self._endpoints.pop(0))
            if items and sent:
                raise uncertain(failed, items)
        raise failed

    def _read(self, status: int, answer: bytes) -> dict[str, Any]:
        try:
            told = orjson.loads(answer)
        except orjson.JSONDecodeError:
            told = {"error": f"HTTP {status} without JSON"}
        if status == 200 and isinstance(told, dict):
            return cast("dict[str, Any]", told)
        reason = str(told.get("error") or told.get("message") if isinstance(told, dict) else "")[:200]
        kind = StateLimitError if any(each in reason for each in _LIMITS) else StateError
        raise kind(f"{self._shown} refused: {reason or f'HTTP {status}'}")

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        """Read a key; without ``strong`` from any member."""
        answer = await self._ask("kv/range", {"key": self._key(key), "serializable": not strong})
        return await self._stored(answer)

    async def get_many(
        self,
        keys: Sequence[str],
        *,
        parallelism: int = MAX_PARALLEL,
        metadata: Mapping[str, str] | None = None,
        strong: bool = False,
    ) -> Sequence[Stored | MeshError | None]:
        """Read several in few round trips."""
        results: list[Stored | MeshError | None] = []
        for start in range(0, len(keys), self.batch):
            part = keys[start : start + self.batch]
            asked = [{"request_range": {"key": self._key(key), "serializable": not strong}} for key in part]
            try:
                answer = await self._ask("kv/txn", {"success": asked})
                results += [await self._stored(each["response_range"]) for each in answer["responses"]]
            except MeshError as error:
                results[start:] = [error] * len(part)
        return results

    async def _stored(self, answer: Mapping[str, Any]) -> Stored | None:
        entries = answer.get("kvs")
        if not entries:
            return None
        entry = entries[0]
        value = base64.b64decode(entry.get("value", ""))
        expires_at = None
        if int(entry.get("lease", 0)):
            lease = await self._ask("lease/timetolive", {"ID": entry["lease"]})
            left = int(lease.get("TTL", 0))
            if left < 0:  # It has ended since.
                return None
            expires_at = time.time() + left
        return Stored(_opened(value) if self._envelope else value, str(entry["mod_revision"]), expires_at)

    async def keys(self, prefix: str, after: str, limit: int) -> Sequence[str]:
        """List keys; etcd has them in order, so a page costs what it has."""
        first = (self._prefix + prefix).encode()
        start = max(first, f"{self._prefix}{after}\0".encode())
        end = first[:-1] + bytes((first[-1] + 1,))  # No UTF-8 has the byte 255.
        found: list[str] = []
        more = start < end
        while more and len(found) < limit:
            asked = {"limit": str(limit - len(found)), "keys_only": True}
            bounds = {"key": base64.b64encode(start).decode(), "range_end": base64.b64encode(end).decode()}
            answer = await self._ask("kv/range", {**asked, **bounds})
            keys = [base64.b64decode(each["key"]) for each in answer.get("kvs", ())]
            # What is no text is another program's.
            found += [text for key in keys if (text := key.decode(errors="ignore")).encode() == key]
            more = bool(keys) and answer.get("more", False)
            start = keys[-1] + b"\0" if keys else end
        return [key[len(self._prefix) :] for key in found]

    async def write(self, items: Sequence[Item]) -> None:
        """Write all, or nothing, in one transaction."""
        if not items:
            return
        if len(items) > self.batch:
            raise StateLimitError(f"a transaction has at most {self.batch} operations (maxTxnOps), not {len(items)}")
        operations = []
        leases: dict[int, str] = {}
        by_key = merged(items)
        compare = [_compare(self._key(key), item) for key, (conditions, _) in by_key.items() for item in conditions]
        for key, (_, written) in by_key.items():
            if written is None:
                continue
            if written.value is None:
                operations.append({"request_delete_range": {"key": self._key(key)}})
                continue
            put = {"key": self._key(key), "value": base64.b64encode(self._laid_out(written)).decode()}
            if written.ttl is not None:
                seconds = max(1, math.ceil(written.ttl))
                if seconds not in leases:
                    leases[seconds] = (await self._ask("lease/grant", {"TTL": str(seconds)}))["ID"]
                put["lease"] = leases[seconds]
            operations.append({"request_put": put})
        answer = await self._ask("kv/txn", {"compare": compare, "success": operations}, items)
        if not answer.get("succeeded"):
            with suppress(StateError):  # They end by themselves, later.
                for lease in leases.values():
                    await self._ask("lease/revoke", {"ID": lease})
            raise conflict(items)

    def _laid_out(self, item: Item) -> bytes:
        value = item.value or b""
        if not self._envelope:
            return value
        now = time.time_ns()
        written = _field(1, _LENGTH, value) if value else b""
        moment = _number(1, now // 1_000_000_000) + _number(2, now % 1_000_000_000)
        ttl = b"" if item.ttl is None else _number(1, max(1, math.ceil(item.ttl)))
        return written + _field(2, _LENGTH, moment) + _field(3, _LENGTH, ttl)


def _compare(key: str, item: Item) -> dict[str, str]:
    if item.etag is None:
        return {"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0"}
    if not _ETAG.fullmatch(item.etag):
        raise InvalidEtagError(f"invalid etag value: {item.etag}")
    if int(item.etag) == 0:  # To the server it would mean "must not exist".
        raise ConflictError("etag 0 matches nothing")
    return {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": str(int(item.etag))}


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*written, number))


def _field(number: int, kind: int, content: bytes) -> bytes:
    return bytes((number << 3 | kind,)) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return bytes((number << 3,)) + _varint(value) if value else b""


def _opened(envelope: bytes) -> bytes:
    """Give the value out of an envelope of version v2, a protocol buffer: 1 = value, 2 = when, 3 = how long."""
    value = b""
    try:
        for number, content in _fields(envelope):
            if number == 1:
                value = content
    except (IndexError, ValueError):
        raise StateError("the value is not laid out as version v2 of state.etcd has it; is it v1?") from None
    return value


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        if tag & 7 != _LENGTH:
            raise ValueError("unknown field")
        length, at = _read_varint(data, at)
        if at + length > len(data):
            raise ValueError("cut off")
        yield tag >> 3, data[at : at + length]
        at += length


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
        if shift > 63:
            raise ValueError("too long")
