"""One connection of redis-py, shared: commands are pipelined, and each has a future for its reply.

redis-py lends a connection to one caller at a time, and reconnects below the caller, where an outcome that is unknown
cannot be told from one that is known. Here a writer sends what gathered in one turn of the event loop, a reader hands
out the replies in order, and a loss is the affair of ``Connection``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import TypeAlias, cast

from redis import exceptions
from redis.asyncio import Connection as Socket
from redis.asyncio import SSLConnection
from redis.connection import HiredisRespSerializer
from redis.utils import HIREDIS_AVAILABLE

from brokers.redis._config import RedisConfig, Sentinels
from brokers.shared.errors import cause_of, map_errors
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = [
    "ERRORS",
    "Argument",
    "Command",
    "ConnectionLostError",
    "Reply",
    "ReplyError",
    "Wire",
    "ask",
    "connect",
]

Argument: TypeAlias = "str | bytes | int"
Command: TypeAlias = "tuple[Argument, ...]"
Reply: TypeAlias = "int | bytes | list[Reply] | None"
OnMessage = Callable[[bytes, bytes], None]

MISSED_PINGS = 2
SENTINEL_WAIT = 2.0
# A connection of redis.asyncio writes commands in Python, which takes five times as long.
_serializer = HiredisRespSerializer()


class ConnectionLostError(BrokerUnavailableError):
    """The connection is gone; what became of unanswered commands is unknown."""


class ReplyError(BrokerError):
    """The server answered with an error.

    Attributes:
        reply_code: Its first word (``NOGROUP``, ``OOM``…).
    """

    def __init__(self, text: str, reply_code: str) -> None:
        self.reply_code = reply_code
        super().__init__(text)


def _ours(error: Exception) -> BrokerError:
    """Tell a reply from a loss; redis-py takes the code off the text of those replies that it knows."""
    known = getattr(error, "status_code", None)
    if known is None and not isinstance(error, exceptions.ResponseError):
        return ConnectionLostError(cause_of(error))
    if isinstance(error, exceptions.NoPermissionError) or str(error).startswith(SCRIPT_REFUSED):
        known = "NOPERM"
    return ReplyError(str(error), str(known or str(error).partition(" ")[0]))


# What Redis 7.0 says, as a mere ERR, where a command of a script is not allowed.
SCRIPT_REFUSED = "The user executing the script can't "
_FOREIGN = (
    exceptions.RedisError,
    exceptions.RedisClusterException,
    exceptions.ChildDeadlockedError,
    exceptions.IncorrectPolicyType,
    OSError,
    RuntimeError,  # What uvloop says to a write just after a reset, before anybody was told.
)
ERRORS = map_errors(dict.fromkeys(_FOREIGN, _ours))


class Wire:
    """A connected socket. What waits to be sent is bounded by its callers: each waits for its reply.

    Attributes:
        client_id: The server's number for it.
    """

    def __init__(
        self, socket: Socket, client_id: int, on_message: OnMessage | None, on_lost: Callable[[str | None], None]
    ) -> None:
        """Use a connection; ``run`` makes it work.

        Args:
            socket: Connected and logged in.
            client_id: The server's number for it.
            on_message: Takes channel and payload of what is published to subscribed channels.
            on_lost: Is told first when it is gone, and why; None = we have closed it.
        """
        self.client_id = client_id
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._on_lost = on_lost
        self._outgoing: list[Command] = []
        self._wake = asyncio.Event()
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._heard_at = self._loop.time()
        self._lost = False

    def send(self, command: Command) -> asyncio.Future[Reply]:
        """Have a command sent in the loop's next turn."""
        future: asyncio.Future[Reply] = self._loop.create_future()
        if self._lost:
            future.set_exception(ConnectionLostError("the connection is closed"))
            future.exception()  # Nobody may be waiting; that is no news for the log.
            return future
        self._waiting.append(future)
        self._outgoing.append(command)
        self._wake.set()
        return future

    async def run(self, ping_interval: float) -> None:
        """Work until the connection is lost.

        Args:
            ping_interval: Seconds between signs of life; after two that the server missed, it is taken for lost.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                works = (self._read(), self._write(), self._watch(ping_interval))
                working = [tasks.create_task(self._until_lost(work), name="redis-wire") for work in works]
                await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
                for task in working:
                    task.cancel()
        finally:
            self.abort()

    async def _until_lost(self, work: Coroutine[None, None, None]) -> None:
        """End without an error: a TaskGroup that has one to raise loses a cancellation that comes at that time."""
        try:
            with ERRORS:
                await work
        except BrokerError as error:
            self.abort(str(error))

    def abort(self, reason: str | None = None) -> None:
        """Close at once; idempotent.

        Args:
            reason: Why it is lost; None = it is closed on purpose.
        """
        if self._lost:
            return
        self._lost = True
        self._on_lost("the server closed it" if reason == "" else reason)
        drop(self._socket)
        error = ConnectionLostError("closed" if reason is None else reason)
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(error)
                waiting.exception()
        self._waiting.clear()
        self._outgoing.clear()

    async def _write(self) -> None:
        socket = self._socket
        pack = cast("Callable[..., list[bytes]]", _serializer.pack if HIREDIS_AVAILABLE else socket.pack_command)
        while True:
            await self._wake.wait()
            self._wake.clear()
            commands, self._outgoing = self._outgoing, []
            packed = [part for command in commands for part in pack(*command)]
            await socket.send_packed_command(packed, check_health=False)

    async def _read(self) -> None:
        read = self._socket.read_response
        while True:
            try:
                reply: Reply = await read(disconnect_on_error=False)
            except exceptions.RedisError as error:
                ours = _ours(error)
                if not isinstance(ours, ReplyError):
                    raise
                self._answer(error=ours)
                continue
            self._heard_at = self._loop.time()
            if self._on_message is not None and type(reply) is list and reply[0] == b"message":
                self._on_message(cast("bytes", reply[1]), cast("bytes", reply[2]))
            else:
                self._answer(reply)

    def _answer(self, reply: Reply = None, error: Exception | None = None) -> None:
        if not self._waiting:
            raise ConnectionLostError("the server answered what nobody asked")
        future = self._waiting.popleft()
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(reply)

    async def _watch(self, interval: float) -> None:
        """A server that says nothing is as good as gone."""
        while True:
            await asyncio.sleep(interval)
            if not self._waiting:
                _ = self.send(("PING",))
                self._heard_at = self._loop.time()
            elif self._loop.time() - self._heard_at > interval * MISSED_PINGS:
                raise ConnectionLostError("it does not answer")


def drop(socket: Socket) -> None:
    """Close at once: redis-py's own way leaves a socket open whose peer does not read any more."""
    writer = socket._writer
    if writer is not None:
        writer.transport.abort()
    socket._writer = socket._reader = None


async def ask(socket: Socket, *command: Argument) -> Reply:
    """Send a command on a connection that nobody shares yet, and return its reply."""
    with ERRORS:
        await socket.send_command(*command, check_health=False)
        return cast("Reply", await socket.read_response())


async def connect(config: RedisConfig, name: str) -> Socket:
    """Connect, log in and select the database.

    Raises:
        ConnectionLostError: Nobody answers.
        ReplyError: It refuses.
    """
    login = {"username": config.username, "password": config.password, "db": config.db, "client_name": name}
    if config.sentinels is None:
        return await _open(config, config.host, config.port, login)
    socket = await _open(config, *await _find_primary(config, config.sentinels), login)
    try:
        if b"role:master" not in cast("bytes", await ask(socket, "INFO", "replication")):
            raise ConnectionLostError("the Sentinels name a primary that is a replica by now")
    except BaseException:
        drop(socket)
        raise
    return socket


async def _open(config: RedisConfig, host: str, port: int, login: Mapping[str, object]) -> Socket:
    settings = {
        "host": host,
        "port": port,
        "protocol": 2,
        "driver_info": None,  # It is looked up on disk, for each connection.
        "socket_timeout": None,  # ``_watch`` has the say.
        "socket_connect_timeout": None,
        **login,
    }
    socket: Socket
    if config.tls is None:
        socket = Socket(**settings)  # type: ignore[arg-type]  # its settings, by name
    else:
        socket = SSLConnection(**settings)  # type: ignore[arg-type]  # the same
        socket.ssl_context.context = config.tls
    try:
        with ERRORS:
            await socket.connect()  # type: ignore[no-untyped-call]  # redis-py has no types there
    except BaseException:
        drop(socket)
        raise
    return socket


async def _find_primary(config: RedisConfig, sentinels: Sentinels) -> tuple[str, int]:
    """Ask one Sentinel after the other.

    Raises:
        ReplyError: One refuses our credentials.
        ConnectionLostError: None knows.
    """
    login = {"username": sentinels.username, "password": sentinels.password}
    reason = f"no Sentinel knows of a primary {sentinels.master!r}"
    for host, port in sentinels.hosts:
        socket = None
        try:
            async with asyncio.timeout(SENTINEL_WAIT):
                socket = await _open(config, host, port, login)
                found = await ask(socket, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", sentinels.master)
            if isinstance(found, list):
                return cast("bytes", found[0]).decode(), int(cast("bytes", found[1]))
        except (TimeoutError, ConnectionLostError) as error:
            reason = f"Sentinel {host}:{port}: {cause_of(error)}"
        finally:
            if socket is not None:
                drop(socket)
    raise ConnectionLostError(reason)
