"""How the native layout reaches Redis: settings, and commands sent together over redis-py's own client."""

from __future__ import annotations

import asyncio
import builtins
import logging
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

from redis.asyncio import Connection, ConnectionPool, Redis, RedisCluster, Sentinel, SSLConnection
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.sentinel import SentinelManagedSSLConnection
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ClusterError,
    ConnectionError,
    NoPermissionError,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry

from brokers.native._topics import NativeSettings
from brokers.redis import RedisReader, RedisServerSettings, Sentinels
from brokers.shared.backoff import CONNECT_WAIT, waits
from brokers.shared.errors import NotAdmittedError, unavailable
from brokers.shared.outage import Outage
from brokers.shared.settings import layout_setting, shown_hosts
from mesh.resources.component import Component
from mesh.resources.settings import Setting, ignored, lasting, setting, whole
from mesh.tasks import heeding_cancellation, task_group

__all__ = ["BLOCK_SECONDS", "Client", "NativeRedisSettings"]

logger = logging.getLogger("brokers.redis")

BLOCK_SECONDS = 5.0  # A reading command waits for entries for so long.
AGAIN_SECONDS = 0.2
BATCH_BYTES = 1024 * 1024
SLOWEST = 1024 * 1024  # Bytes a second, of a line that is not taken for lost.
AT_ONCE = 500  # Commands of one write to the server.
LOST = (
    ConnectionError,
    TimeoutError,
    ClusterError,
    OSError,
    asyncio.TimeoutError,
    RuntimeError,  # What uvloop says to a write just after a reset, before anybody was told.
)
NOT_NOW = ("BUSY ", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY", "TRYAGAIN", "UNBLOCKED")
_T = TypeVar("_T")
_Waiting = tuple[tuple[Any, ...], asyncio.Future[Any] | None]  # A command, and who waits for its reply.


@dataclass(frozen=True)
class NativeRedisSettings(NativeSettings, RedisServerSettings):
    """Settings of ``pubsub.redis`` in the native layout."""

    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored(
            "commands go together over one connection, and each subscription has one to read",
            *("poolSize", "poolTimeout", "minIdleConns", "maxConnAge", "idleTimeout", "idleCheckFrequency"),
        ),
        *ignored(
            "a command is repeated until its deadline",
            *("redisMaxRetries", "redisMinRetryInterval", "redisMaxRetryInterval", "maxRetries", "maxRetryBackoff"),
        ),
        *ignored("how many events wait here, concurrency and maxInFlight of a subscription say", "queueDepth"),
        *ignored("it is readTimeout", "writeTimeout"),
    )

    layout: str = layout_setting()
    concurrency: int | None = setting(
        "concurrency",
        "Most events of a subscription at work at once at one instance; else what that says.",
        whole(),
        example="10",
    )
    processing: float | None = setting(
        "processingTimeout",
        "How long an event may be without a sign of life from whoever has it, until another takes it; 15 s at least.",
        lasting(),
        example="15s",
    )
    redeliver: float = setting(
        "redeliverInterval", "Time between two looks for events that nobody has any more.", lasting(), default=5.0
    )
    max_length: int | None = setting(
        "maxLenApprox", "How many entries a stream keeps, about; what is over is lost.", whole(1), example="100000"
    )
    ttl: float | None = setting("streamTTL", "How long an entry is kept, about.", lasting(), example="168h")
    dial: float = setting("dialTimeout", "How long an attempt to connect may take.", lasting(), default=CONNECT_WAIT)
    read: float = setting("readTimeout", "How long a reply may take.", lasting(), default=3.0)


class _Reader(RedisReader[NativeRedisSettings]):
    _several: tuple[tuple[str, int], ...] = ()

    def _hosts(self, hosts: tuple[tuple[str, int], ...]) -> dict[str, object]:
        self._several = hosts
        if len(hosts) > 1 and self.found.kind.lower() != "cluster":
            self.wrong("redisHost", "is one host without 'failover' or 'redisType: cluster'")
        return {}

    def client(self) -> Client:
        """Make a client, not connected yet."""
        found = self.found
        if (kind := found.kind.lower()) not in ("node", "cluster"):
            self.wrong("redisType", f"is node or cluster, not {kind!r}")
        if kind == "cluster" and (found.failover or found.db):
            self.wrong("redisType", "'cluster' goes without failover, and has database 0 alone")
        server = self.server()
        self.finish()
        sentinels = cast("Sentinels | None", server.get("sentinels"))
        hosts = self._several if sentinels is None else sentinels.hosts
        return Client(found, hosts, cast("ssl.SSLContext | None", server["tls"]), self.connect_wait)


class Client:
    """A client of redis-py, whose commands go to the server together, and are repeated once it is back.

    Attributes:
        settings: What the component says.
        shown: Where it points, without credentials.
    """

    def __init__(
        self,
        settings: NativeRedisSettings,
        hosts: Sequence[tuple[str, int]],
        tls: ssl.SSLContext | None = None,
        connect_wait: float = CONNECT_WAIT,
    ) -> None:
        """Prepare.

        Args:
            settings: Of the component.
            hosts: Of the server, of nodes of the cluster, or of Sentinels.
            tls: None for plain TCP.
            connect_wait: Seconds that the first attempt to connect may take.
        """
        self.settings, self._hosts, self._tls, self._connect_wait = settings, hosts, tls, connect_wait
        self.shown = f"{'redis' if tls is None else 'rediss'}://{shown_hosts(hosts)}"
        self.outage = Outage(logger, "Redis", self.shown)
        self._waiting: deque[_Waiting] = deque()
        self._some = asyncio.Event()
        self._told: set[str] = set()
        self._open = False
        self._redis: Any = None
        self._reader: Any = None

    @classmethod
    def from_component(cls, component: Component) -> Client:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        return _Reader(component, NativeRedisSettings).client()

    def _made(self, reply_seconds: float | None) -> Any:
        """Make a client of redis-py."""
        settings = self.settings
        options: dict[str, Any] = {
            "username": settings.username or None,
            "password": settings.password or None,
            "socket_timeout": reply_seconds,
            "socket_connect_timeout": settings.dial,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            "client_name": "brokermesh",
            "driver_info": None,  # It would be looked up on disk, for each connection.
        }
        if settings.kind.lower() == "cluster":
            nodes = [ClusterNode(host, port) for host, port in self._hosts]
            made = RedisCluster(startup_nodes=nodes, ssl=self._tls is not None, **options)
            if self._tls is not None:
                made.connection_kwargs["connection_class"] = _secured(SSLConnection, self._tls)
                for node in made.nodes_manager.startup_nodes.values():
                    node.connection_class = made.connection_kwargs["connection_class"]
            return made
        options["db"] = settings.db
        if settings.failover:
            login = {"username": settings.sentinel_username, "password": settings.sentinel_password}
            timing = {name: value for name, value in options.items() if name.startswith(("socket", "retry", "driver"))}
            asking = {**login, **timing}
            if self._tls is not None:
                asking |= {"ssl": True}
            make: Any = Sentinel
            sentinel = make(list(self._hosts), sentinel_kwargs=asking, ssl=self._tls is not None, **options)
            if self._tls is None:
                return sentinel.master_for(settings.master)
            for each in sentinel.sentinels:
                each.connection_pool.connection_class = _secured(SSLConnection, self._tls)
            return sentinel.master_for(
                settings.master, connection_class=_secured(SentinelManagedSSLConnection, self._tls)
            )
        [(host, port)] = self._hosts
        kind: Any = Connection if self._tls is None else _secured(SSLConnection, self._tls)
        return Redis.from_pool(ConnectionPool(connection_class=kind, host=host, port=port, **options))

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Connect, and stay so.

        Raises:
            BrokerUnavailableError: There is nobody, or it does not let this node in.
        """
        self._redis = _plain(self._made(None))
        self._reader = _plain(self._made(self.settings.read + BLOCK_SECONDS))
        try:
            try:
                async with asyncio.timeout(min(self._connect_wait, self.settings.dial + self.settings.read)):
                    with heeding_cancellation():  # The library swallows one that comes while it connects.
                        await self._redis.initialize()
                        await self._redis.ping()
            except (*LOST, RedisError) as error:
                silent = isinstance(error, TimeoutError | asyncio.TimeoutError)
                made = unavailable(f"Redis at {self.shown}", builtins.TimeoutError() if silent else error)
                refused = isinstance(error, AuthenticationError | NoPermissionError)
                raise (NotAdmittedError(str(made)) if refused else made) from error
            async with task_group() as tasks:
                working = tasks.create_task(self._work(), name="redis-commands")
                self._open = True
                try:
                    yield
                finally:
                    self._open = False
                    working.cancel()
        finally:
            while self._waiting:
                _refuse(self._waiting.popleft()[1], ConnectionError("the connection is closed"))
            for each in (self._redis, self._reader):
                with suppress(*LOST, RedisError):
                    await each.aclose()

    async def _work(self) -> None:
        """Send what waits, all of it together."""
        while True:
            await self._some.wait()
            self._some.clear()
            while self._waiting:
                commands, size = self._next()
                pipeline = self._redis.pipeline(transaction=False)
                for command, _ in commands:
                    pipeline.execute_command(*command)
                try:
                    # The library's own limit is for all of it, however large.
                    async with asyncio.timeout(self.settings.read + size / SLOWEST):
                        with heeding_cancellation():
                            results: list[Any] = await pipeline.execute(raise_on_error=False)
                except (*LOST, RedisError) as error:
                    results = [error] * len(commands)
                except BaseException:
                    for _, future in commands:
                        _refuse(future, ConnectionError("the connection is closed"))
                    raise
                for (command, future), result in zip(commands, results, strict=True):
                    if not isinstance(result, Exception):
                        if future is not None and not future.done():
                            future.set_result(result)
                    elif future is not None:
                        _refuse(future, result)
                    elif isinstance(result, LOST) or str(result).startswith(NOT_NOW):
                        await asyncio.sleep(AGAIN_SECONDS)
                        self._waiting.append((command, None))
                    elif str(result) not in self._told:
                        self._told.add(str(result))
                        text = "Redis at %s refuses XACK on %s, so what is handled comes again: %s"
                        logger.warning(text, self.shown, command[1], result)

    def _next(self) -> tuple[list[_Waiting], int]:
        """Take what is sent together, and give its bytes: some, or one large command."""
        batch: list[_Waiting] = []
        size = 0
        while self._waiting and len(batch) < AT_ONCE:
            command, future = self._waiting[0]
            bytes_ = sum(len(word) for word in command if isinstance(word, bytes))
            if batch and size + bytes_ > BATCH_BYTES:
                break
            self._waiting.popleft()
            if future is None or not future.done():
                batch.append((command, future))
                size += bytes_
        return _together(batch), size

    def ack(self, key: str, group: str, entry: str) -> None:
        """Acknowledge an entry soon, as soon as the server is there."""
        self._waiting.append((("XACK", key, group, entry), None))
        self._some.set()

    async def once(self, *command: Any) -> Any:
        """Send a command and return its reply; raises what redis-py raises."""
        if not self._open:
            raise ConnectionError("the connection is closed")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, future))
        self._some.set()
        return await future

    async def call(self, *command: Any) -> Any:
        """Send a command until it is answered; the caller bounds it in time.

        Raises:
            BrokerUnavailableError: The connection was closed for good.
            ResponseError: The server refuses it.
        """
        return await self._until_answered(lambda: self.once(*command))

    async def read(self, *command: Any) -> Any:
        """Send a command that the server answers late, on a connection of its own; else as `call`."""
        return await self._until_answered(lambda: self._reader.execute_command(*command))

    async def _until_answered(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        lost = object()
        try:
            for wait in waits():
                try:
                    with heeding_cancellation():
                        result = await ask()
                except ResponseError as error:
                    if not str(error).startswith(NOT_NOW) and not isinstance(error, LOST):
                        raise
                    self.outage.lost(error, lost)
                except LOST as error:
                    self.outage.lost(error, lost)
                else:
                    self.outage.back(lost)
                    return result
                if not self._open:
                    break
                await asyncio.sleep(wait)
        finally:
            self.outage.forget(lost)
        raise unavailable(f"Redis at {self.shown}")


def _together(batch: Sequence[_Waiting]) -> list[_Waiting]:
    """Make one command of what acknowledges several entries of a group, before all others."""
    acks: dict[tuple[Any, ...], list[Any]] = {}
    for command, _ in batch:
        if command[0] == "XACK":
            acks.setdefault(command[:3], []).extend(command[3:])
    others = [each for each in batch if each[0][0] != "XACK"]
    return [*(((*begin, *entries), None) for begin, entries in acks.items()), *others]


def _refuse(future: asyncio.Future[Any] | None, error: Exception) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
        future.exception()  # Perhaps nobody waits for it any more.


def _plain(client: Any) -> Any:
    """Have replies as the server gives them: what redis-py makes of these depends on how it was called."""
    for name in ("XCLAIM", "XPENDING", "XRANGE", "XREADGROUP"):
        client.response_callbacks.pop(name, None)
    return client


def _secured(kind: Any, tls: ssl.SSLContext) -> Any:
    """Make a class of connections with a context of ours: redis-py makes its own from files."""

    class Secured(kind):  # type: ignore[misc]  # the library's classes
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.ssl_context.context = tls

    return Secured
