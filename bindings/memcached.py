"""``state.memcached``: state in memcached servers, keys and values as the Dapr runtime writes them.

Source: Dapr 1.18, the memcached state store. It speaks the meta commands of memcached's text protocol (1.6), which
tell the time that is left to a value, and its unique number: that is the etag.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bindings.remote import RemoteStateStore, conflict, must_be_absent, parse_hosts, uncertain
from mesh.errors import InvalidEtagError, MeshError, StateError, StateLimitError
from mesh.resources.settings import COUNT, Kind, lasting, setting
from mesh.store import MAX_PARALLEL, Item, Stored

__all__ = ["MemcachedStateStore"]

DEFAULT_PORT = 11211
MAX_CONNECTIONS = 16
MAX_KEY_BYTES = 250
ITEM_BYTES = 128  # What the server keeps beside a key and a value, and a little more.
MAX_RELATIVE_SECONDS = 30 * 24 * 3600  # Beyond it the server takes a time to be an absolute one.
_ETAG = re.compile(r"[0-9]{1,19}")
_IN_KEYS = re.compile(rb"[\x00-\x20\x7f]")


def _hosts(text: str) -> tuple[tuple[str, int], ...]:
    return tuple((host, DEFAULT_PORT if port is None else port) for host, port in parse_hosts(text))


@dataclass(frozen=True, slots=True)
class MemcachedSettings:
    """Settings of ``state.memcached``."""

    hosts: tuple[tuple[str, int], ...] = setting(
        "hosts",
        "Host and port of the server; several with commas between share the keys, in this order.",
        Kind("host:port, or several with commas between", _hosts),
        required=True,
        example="localhost:11211",
    )
    idle: int = setting("maxIdleConnections", "Most idle connections to a server that are kept.", COUNT, default=2)
    timeout: float = setting(
        "timeout",
        "How long connecting, and a reply, may take.",
        lasting(bare="ms"),
        default=1.0,
    )


@dataclass(frozen=True, slots=True)
class _Reply:
    status: bytes
    flags: Mapping[str, str]
    value: bytes = b""
    refused: str = ""


class _Lost(Exception):
    """There was no answer.

    Attributes:
        sent: Whether the request may have come to the server.
    """

    def __init__(self, text: str, *, sent: bool) -> None:
        self.sent = sent
        super().__init__(text)


class _Server:
    """One server, by few connections; each serves one request at a time.

    Attributes:
        most: Most bytes of an item, with what the server keeps beside it; None = unknown.
    """

    def __init__(self, address: tuple[str, int], settings: MemcachedSettings) -> None:
        self.shown = f"memcached at {address[0]}:{address[1]}"
        self._address = address
        self._settings = settings
        self.most: int | None = None
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop()[1].close()

    async def ask(self, *commands: bytes) -> list[_Reply]:
        """Send commands, and read their replies; a connection on which something went wrong is not used again.

        Raises:
            _Lost: An answer did not come.
        """
        async with self._slots:
            reader, writer = self._kept() or await self._connect()
            whole = False
            try:
                async with asyncio.timeout(self._settings.timeout):
                    writer.writelines(commands)
                    await writer.drain()
                    replies = [await self._read(reader) for _ in commands]
                whole = not any(reply.refused for reply in replies)
            except (OSError, TimeoutError, EOFError, ValueError) as error:
                raise _Lost(f"{self.shown} did not answer{self._why(error)}", sent=True) from error
            finally:
                if whole and len(self._idle) < self._settings.idle:
                    self._idle.append((reader, writer))
                elif whole:
                    writer.close()
                else:  # A peer that reads nothing would keep it open for what is left to send.
                    writer.transport.abort()
            return replies

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(self._settings.timeout):
                return await asyncio.open_connection(*self._address)
        except (OSError, TimeoutError) as error:
            raise _Lost(f"cannot reach {self.shown}{self._why(error)}", sent=False) from error

    def _why(self, error: Exception) -> str:
        if isinstance(error, TimeoutError) and not str(error):
            return f" within {self._settings.timeout:g} s (timeout)"
        return f": {str(error) or type(error).__name__}"

    async def _read(self, reader: asyncio.StreamReader) -> _Reply:
        line = await reader.readuntil(b"\r\n")
        words = line.split()
        status = words[0] if words else b""
        if status in (b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR"):
            return _Reply(status, {}, refused=line.decode(errors="replace").strip())
        value = b""
        if status == b"STAT":
            return _Reply(status, await self._statistics(reader, line))
        if status == b"VA":
            value = (await reader.readexactly(int(words[1]) + 2))[:-2]
            words = words[1:]
        return _Reply(status, {each[:1].decode(): each[1:].decode() for each in words[1:]}, value)

    async def _statistics(self, reader: asyncio.StreamReader, line: bytes) -> Mapping[str, str]:
        found: dict[str, str] = {}
        while line.rstrip() != b"END":
            name, _, told = line.decode(errors="replace").rstrip().removeprefix("STAT ").partition(" ")
            found[name] = told
            line = await reader.readuntil(b"\r\n")
        return found


class MemcachedStateStore(RemoteStateStore):
    """State in memcached; it keeps what it has in memory, and drops the oldest when that is full."""

    settings = MemcachedSettings
    tested = "memcached 1.6, one server and two"
    capabilities: Sequence[str] = ("ETAG", "TTL")
    batch = MAX_PARALLEL

    def __init__(self, settings: MemcachedSettings) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self._servers = [_Server(address, settings) for address in settings.hosts]

    async def _enter(self) -> None:
        for server in self._servers:
            self._stack.callback(server.close)
            try:
                (reply,) = await server.ask(b"mn\r\n")
                (told,) = await server.ask(b"stats settings\r\n")
            except _Lost as error:
                raise StateError(str(error)) from error
            most = told.flags.get("item_size_max", "")
            server.most = int(most) if most.isdecimal() else None
            if reply.status != b"MN":
                raise StateError(f"{server.shown} has no meta commands: memcached 1.6 or later is needed")

    async def _ask(self, commands: Sequence[tuple[str, bytes]], items: Sequence[Item] = ()) -> list[_Reply]:
        """Send commands for keys to their servers, together; gives the replies in order."""
        by_server: dict[int, list[int]] = {}
        for index, (key, _) in enumerate(commands):
            by_server.setdefault(self._number(key), []).append(index)
        replies: dict[int, _Reply] = {}
        for number, indexes in by_server.items():
            server = self._servers[number]
            try:
                told = await server.ask(*(commands[index][1] for index in indexes))
            except _Lost as error:
                failed = StateError(str(error))
                raise (uncertain(failed, items) if error.sent else failed) from error
            replies |= zip(indexes, told, strict=True)
            refused = next((reply.refused for reply in told if reply.refused), None)
            if refused:
                kind = StateLimitError if "too large" in refused else StateError
                raise kind(f"{server.shown} refused: {refused}")
        return [replies[index] for index in range(len(commands))]

    def _number(self, key: str) -> int:
        return zlib.crc32(_encoded(key)) % len(self._servers)

    def _check_size(self, item: Item) -> None:
        """Refuse what is too large before it is sent: the server drops the value that it has, and refuses then."""
        server = self._servers[self._number(item.key)]
        if server.most is not None and len(item.key.encode()) + len(item.value or b"") + ITEM_BYTES > server.most:
            raise StateLimitError(
                f"{server.shown} takes items of {server.most} bytes; a value with its key is too large"
            )

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        """Read a key from its server."""
        (reply,) = await self._ask([(key, _asked(key))])
        return _stored(reply)

    async def get_many(
        self,
        keys: Sequence[str],
        *,
        parallelism: int = MAX_PARALLEL,
        metadata: Mapping[str, str] | None = None,
        strong: bool = False,
    ) -> Sequence[Stored | MeshError | None]:
        """Read several in few round trips."""
        results: list[Stored | MeshError | None] = [None] * len(keys)
        good: list[int] = []
        for index, key in enumerate(keys):
            try:
                _encoded(key)
                good.append(index)
            except StateLimitError as error:
                results[index] = error
        for start in range(0, len(good), MAX_PARALLEL):
            part = good[start : start + MAX_PARALLEL]
            try:
                replies = await self._ask([(keys[index], _asked(keys[index])) for index in part])
            except MeshError as error:
                results = [error if index in part else each for index, each in enumerate(results)]
                continue
            for index, reply in zip(part, replies, strict=True):
                results[index] = _stored(reply)
        return results

    async def write(self, items: Sequence[Item]) -> None:
        """Write one item; without conditions several whose keys differ."""
        for item in items:
            self._check_size(item)
        replies = await self._ask([(item.key, _command(item)) for item in items], items)
        for item, reply in zip(items, replies, strict=True):
            if reply.status != b"HD" and not (item.value is None and item.etag is None):
                raise conflict([item])


def _encoded(key: str) -> bytes:
    encoded = key.encode()
    if not encoded or len(encoded) > MAX_KEY_BYTES or _IN_KEYS.search(encoded):
        raise StateLimitError(
            f"memcached takes keys of at most {MAX_KEY_BYTES} bytes without blanks, prefix included, not {key!r}"
        )
    return encoded


def _asked(key: str) -> bytes:
    return b"mg %b v c t\r\n" % _encoded(key)


def _stored(reply: _Reply) -> Stored | None:
    if reply.status != b"VA":
        return None
    left = int(reply.flags.get("t", "-1"))
    return Stored(reply.value, reply.flags.get("c", ""), None if left < 0 else time.time() + left)


def _command(item: Item) -> bytes:
    flags = b""
    if item.etag is not None:
        if not _ETAG.fullmatch(item.etag):
            raise InvalidEtagError(f"invalid etag value: {item.etag}")
        flags += b" C%d" % int(item.etag)
    if item.value is None:
        return b"md %b%b\r\n" % (_encoded(item.key), flags)
    if must_be_absent(item):
        flags += b" ME"
    if item.ttl is not None:
        flags += b" T%d" % _seconds(item.ttl)
    return b"ms %b %d%b\r\n%b\r\n" % (_encoded(item.key), len(item.value), flags, item.value)


def _seconds(ttl: float) -> int:
    seconds = max(1, math.ceil(ttl))
    return seconds if seconds <= MAX_RELATIVE_SECONDS else int(time.time()) + seconds
