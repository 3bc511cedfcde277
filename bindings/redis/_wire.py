"""Connections of redis-py: opened, asked while nobody shares them, and closed at once.

Why a connection and not redis-py's client is told in ``docs/adr/0020-redis-client.md``.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from redis import exceptions
from redis.asyncio import Connection as Socket
from redis.asyncio import SSLConnection

from bindings.redis._settings import Address, RedisSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Dial",
    "LostError",
    "RefusedError",
    "Reply",
    "Socket",
    "Word",
    "Words",
    "ask",
    "at_end",
    "drop",
    "foreign_errors",
    "pack",
    "read_reply",
    "send",
]

Word: TypeAlias = "str | bytes | int"
Words: TypeAlias = "tuple[Word, ...]"
Reply: TypeAlias = "int | bytes | list[Reply] | None"
NAME = "brokermesh"
SENTINEL_WAIT = 2.0


class RefusedError(Exception):
    """The server answered with an error: it did not do it.

    Attributes:
        reply_code: Its first word (``WRONGTYPE``, ``MOVED``…).
    """

    def __init__(self, text: str, reply_code: str) -> None:
        self.reply_code = reply_code
        super().__init__(text)


class LostError(Exception):
    """There is no connection, or it broke.

    Attributes:
        sent: Whether the command may have been done.
    """

    def __init__(self, reason: str, *, sent: bool) -> None:
        self.sent = sent
        super().__init__(reason)


def _ours(error: Exception) -> RefusedError | LostError:
    """Tell a reply from a loss; redis-py takes the code off the text of those replies that it knows."""
    known = getattr(error, "status_code", None)
    if known is None and not isinstance(error, exceptions.ResponseError):
        return LostError(str(error) or type(error).__name__, sent=True)
    code, text = str(known or str(error).partition(" ")[0]), str(error)
    return RefusedError(text if text.startswith(code) else f"{code} {text}", code)


_FOREIGN = (
    exceptions.RedisError,
    exceptions.RedisClusterException,
    exceptions.ChildDeadlockedError,
    exceptions.IncorrectPolicyType,
    OSError,
    RuntimeError,  # What uvloop says to a write just after a reset.
    UnicodeError,  # A name of a host that cannot be looked up.
)


@contextmanager
def foreign_errors() -> Iterator[None]:
    """Raise errors of ours instead of redis-py's and the socket's."""
    try:
        yield
    except _FOREIGN as error:
        raise _ours(error) from error


def _packer() -> Callable[..., list[bytes]]:
    """Give what packs commands; a connection of redis.asyncio does so in Python, which takes five times as long."""
    try:
        from hiredis import pack_command
    except ImportError:  # redis-py goes without.
        return Socket().pack_command
    fast = cast("Callable[[Words], bytes]", pack_command)
    return lambda *words: [fast(words)]


pack = _packer()


async def read_reply(socket: Socket) -> Reply:
    """Read the next reply."""
    try:
        return cast("Reply", await socket.read_response(disconnect_on_error=False))
    except _FOREIGN as error:
        raise _ours(error) from error


async def send(socket: Socket, packed: list[bytes]) -> None:
    """Send packed commands."""
    try:
        await socket.send_packed_command(packed, check_health=False)
    except _FOREIGN as error:
        raise _ours(error) from error


async def ask(socket: Socket, *words: Word) -> Reply:
    """Send a command on a connection that nobody shares yet, and return its reply."""
    await send(socket, pack(*words))
    return await read_reply(socket)


def drop(socket: Socket) -> None:
    """Close at once: redis-py's own way leaves a socket open whose peer does not read any more."""
    writer = socket._writer
    if writer is not None:
        writer.transport.abort()
    socket._writer = socket._reader = None


def at_end(socket: Socket) -> bool:
    """Tell whether the peer closed it while nobody used it."""
    reader, writer = socket._reader, socket._writer
    return reader is None or writer is None or writer.is_closing() or reader.at_eof() or reader.exception() is not None


class Dial:
    """Opens connections."""

    def __init__(self, settings: RedisSettings, tls: ssl.SSLContext | None) -> None:
        """Open nothing yet."""
        self.settings = settings
        self._tls = tls

    async def open(self, address: Address | None = None) -> Socket:
        """Connect, log in and select the database.

        Args:
            address: Where to; None for where the settings say, asking Sentinels each time.

        Raises:
            LostError: Nobody answers in time.
            RefusedError: It refuses.
        """
        settings = self.settings
        try:
            async with asyncio.timeout(settings.dial_timeout or None):
                if address is None and settings.failover:
                    return await self._primary()
                return await self._open(address or settings.addresses[0])
        except TimeoutError:
            raise LostError(f"no connection within {settings.dial_timeout:g} s", sent=False) from None
        except LostError as error:
            raise LostError(str(error), sent=False) from error

    async def _open(self, address: Address, *, sentinel: bool = False) -> Socket:
        given = self.settings
        login = (given.username, given.password, given.db)
        username, password, db = (given.sentinel_username, given.sentinel_password, 0) if sentinel else login
        arguments: dict[str, Any] = {
            "host": address[0],
            "port": address[1],
            "username": username,
            "password": password,
            "db": db,
            "client_name": NAME,
            "protocol": 2,
            "driver_info": None,  # It is looked up on disk, for each connection.
            "socket_timeout": None,  # A limit around several replies is cheaper than one for each.
            "socket_connect_timeout": None,
        }
        socket: Socket
        if self._tls is None:
            socket = Socket(**arguments)
        else:
            socket = SSLConnection(**arguments)
            socket.ssl_context.context = self._tls
        try:
            with foreign_errors():
                await socket.connect()  # type: ignore[no-untyped-call]  # redis-py has no types there
        except BaseException:
            drop(socket)
            raise
        return socket

    async def _primary(self) -> Socket:
        address = await self._find_primary()
        socket = await self._open(address)
        try:
            role = await ask(socket, "ROLE")
            if not isinstance(role, list) or role[0] != b"master":
                raise LostError("the Sentinels name a primary that is a replica by now", sent=False)
        except BaseException:
            drop(socket)
            raise
        return socket

    async def _find_primary(self) -> Address:
        """Ask one Sentinel after the other."""
        master = self.settings.master or ""
        reason = f"no Sentinel knows of a primary {master!r}"
        for host, port in self.settings.addresses:
            socket = None
            try:
                async with asyncio.timeout(SENTINEL_WAIT):
                    socket = await self._open((host, port), sentinel=True)
                    found = await ask(socket, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", master)
                if isinstance(found, list):
                    return cast("bytes", found[0]).decode(), int(cast("bytes", found[1]))
            except (TimeoutError, LostError) as error:
                reason = f"Sentinel {host}:{port}: {str(error) or 'it does not answer'}"
            finally:
                if socket is not None:
                    drop(socket)
        raise LostError(reason, sent=False)
