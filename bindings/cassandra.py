"""``state.cassandra``: state in a table of Apache Cassandra, laid out as the Dapr runtime lays it out.

The table has ``key``, a text, and ``value``, a blob; expiry is Cassandra's own. The driver of Cassandra has a thread
for its connections: a request is handed to it, and its answer comes back to the event loop.

Source: Dapr 1.18, the Cassandra state store.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from cassandra import (
    AlreadyExists,
    ConsistencyLevel,
    DriverException,
    InvalidRequest,
    UnresolvableContactPoints,
)
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.connection import ConnectionBusy, ConnectionException, ConnectionShutdown
from cassandra.io.libevreactor import LibevConnection
from cassandra.policies import ConstantReconnectionPolicy, DCAwareRoundRobinPolicy, TokenAwarePolicy

from bindings.remote import RemoteStateStore, conditional, parse_hosts
from mesh.errors import ConfigError, Problem, StateError, StateLimitError
from mesh.resources.component import Component
from mesh.resources.settings import BOOLEAN, COUNT, VERBATIM, Kind, choice, setting, whole
from mesh.store import Item, Stored

__all__ = ["CassandraStateStore"]

DEFAULT_PORT = 9042
CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 10.0
RECONNECT_SECONDS = 0.5
IDLE_SECONDS = 10.0
MAX_REQUESTS = 128
MAX_KEY_BYTES = 65_535
MAX_TTL_SECONDS = 20 * 365 * 24 * 3600
MAX_REASON = 300
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,47}")
_LEVELS: Mapping[str, int] = {
    "All": ConsistencyLevel.ALL,
    "Any": ConsistencyLevel.ANY,
    "EachQuorum": ConsistencyLevel.EACH_QUORUM,
    "LocalOne": ConsistencyLevel.LOCAL_ONE,
    "LocalQuorum": ConsistencyLevel.LOCAL_QUORUM,
    "One": ConsistencyLevel.ONE,
    "Quorum": ConsistencyLevel.QUORUM,
    "Three": ConsistencyLevel.THREE,
    "Two": ConsistencyLevel.TWO,
}
_ERRORS = (DriverException, NoHostAvailable, ConnectionException, ConnectionBusy, OSError)


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("is letters, digits and underscores, a letter first, at most 48")
    return text


_IDENTIFIER = Kind("name", _name)


@dataclass(frozen=True, slots=True)
class CassandraSettings:
    """Settings of ``state.cassandra``."""

    hosts: tuple[tuple[str, int | None], ...] = setting(
        "hosts",
        "Some hosts of the cluster, with commas between; the driver finds the others.",
        Kind("host, or several with commas between", parse_hosts),
        required=True,
        example="localhost",
    )
    port: int = setting("port", "Port of the hosts that are given without one.", whole(1, 65535), default=DEFAULT_PORT)
    username: str | None = setting("username", "Whom to log in as.", suggested=True, example="shop")
    password: str | None = setting("password", "Password of that user.", VERBATIM, secret=True, suggested=True)
    tls: bool = setting(
        "enableHostVerification",
        "Whether to connect with TLS, to hosts whose certificates the system trusts.",
        BOOLEAN,
        default=False,
    )
    protocol: int = setting("protoVersion", "Version of Cassandra's native protocol.", whole(3, 5), default=4)
    replicas: int = setting(
        "replicationFactor", "How many nodes keep each value; read when the keyspace is made.", COUNT, default=1
    )
    consistency: str = setting(
        "consistency",
        "How many of them answer a request that does not ask for `strong`.",
        choice(*_LEVELS),
        default="All",
    )
    table: str = setting("table", "The table; it is made where it is missing.", _IDENTIFIER, default="items")
    keyspace: str = setting("keyspace", "Its keyspace; it is made where it is missing.", _IDENTIFIER, default="dapr")


class _Connection(LibevConnection):  # type: ignore[misc]  # It is not typed.
    """A connection that sees its end within a reply as well; else it would spin until a request is written."""

    def handle_read(self, watcher: Any, revents: int, errno: int | None = None) -> None:
        """Read what has come."""
        if self._iobuf.tell():  # There is a part of a reply.
            with suppress(OSError):
                if not socket.socket.recv(self._socket, 1, socket.MSG_PEEK):
                    self.defunct(ConnectionShutdown("the host closed the connection"))
                    return
        super().handle_read(watcher, revents, errno)


class CassandraStateStore(RemoteStateStore):
    """State in a table of Cassandra; of two writes of a key the one with the later time of a clock is kept."""

    settings = CassandraSettings
    tested = "Apache Cassandra 5.0, one node"
    capabilities: Sequence[str] = ("TTL",)
    _session: Any
    _statements: Mapping[tuple[str, int], Any]

    def __init__(self, settings: CassandraSettings) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self._level = _LEVELS[settings.consistency]
        self._slots = asyncio.Semaphore(MAX_REQUESTS)

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; a user has a password."""
        made = super().from_component(component)
        problems = list(_wrong(component, made._settings))
        if problems:
            raise ConfigError(problems)
        return made

    @property
    def _shown(self) -> str:
        return f"the Cassandra table {self._settings.keyspace}.{self._settings.table}"

    async def _enter(self) -> None:
        # It tells of each connection, and of a table that is not there yet; what matters of it is in our errors.
        logging.getLogger("cassandra").setLevel(logging.CRITICAL)
        cluster = await asyncio.to_thread(self._cluster)
        self._stack.push_async_callback(asyncio.to_thread, cluster.shutdown)
        try:
            self._session, self._statements = await asyncio.to_thread(self._open, cluster)
        except _ERRORS as error:
            hosts = ", ".join(host for host, _ in self._settings.hosts)
            raise StateError(f"cannot use Cassandra at {hosts}: {_reason(error)}") from None

    def _cluster(self) -> Any:
        settings = self._settings
        user = settings.username and PlainTextAuthProvider(settings.username, settings.password)
        profile = ExecutionProfile(
            TokenAwarePolicy(DCAwareRoundRobinPolicy()), request_timeout=REQUEST_SECONDS, consistency_level=self._level
        )
        try:
            return Cluster(
                [(host, settings.port if port is None else port) for host, port in settings.hosts],
                port=settings.port,
                connection_class=_Connection,
                auth_provider=user or None,
                ssl_context=ssl.create_default_context() if settings.tls else None,
                protocol_version=settings.protocol,
                execution_profiles={EXEC_PROFILE_DEFAULT: profile},
                reconnection_policy=ConstantReconnectionPolicy(RECONNECT_SECONDS, max_attempts=None),
                connect_timeout=CONNECT_SECONDS,
                control_connection_timeout=CONNECT_SECONDS,
                idle_heartbeat_interval=IDLE_SECONDS,
                idle_heartbeat_timeout=REQUEST_SECONDS,
            )
        except UnresolvableContactPoints:
            raise StateError("cannot reach Cassandra: none of the hosts has an address") from None

    def _open(self, cluster: Any) -> tuple[Any, Mapping[tuple[str, int], Any]]:
        """Connect, and make what is missing; who may not make anything can use what is there."""
        session = cluster.connect()
        try:
            return session, self._prepare(session)
        except InvalidRequest:
            settings = self._settings
            replication = f"{{'class': 'SimpleStrategy', 'replication_factor': {settings.replicas}}}"
            with suppress(AlreadyExists):
                session.execute(f"CREATE KEYSPACE IF NOT EXISTS {settings.keyspace} WITH REPLICATION = {replication}")
            with suppress(AlreadyExists):
                table = f"{settings.keyspace}.{settings.table}"
                session.execute(f"CREATE TABLE IF NOT EXISTS {table} (key text PRIMARY KEY, value blob)")
            return session, self._prepare(session)

    def _prepare(self, session: Any) -> Mapping[tuple[str, int], Any]:
        """Prepare each statement for each level that it is asked with."""
        table = f"{self._settings.keyspace}.{self._settings.table}"
        reading = ConsistencyLevel.ONE if self._level == ConsistencyLevel.ANY else self._level
        texts = {
            "get": (f"SELECT value, TTL(value) AS ttl FROM {table} WHERE key = ?", reading, ConsistencyLevel.ALL),
            "set": (
                f"INSERT INTO {table} (key, value) VALUES (?, ?) USING TTL ?",
                self._level,
                ConsistencyLevel.QUORUM,
            ),
            "delete": (f"DELETE FROM {table} WHERE key = ?", self._level, ConsistencyLevel.QUORUM),
        }
        made = {}
        for name, (text, *levels) in texts.items():
            for strong, level in enumerate(levels):
                made[name, strong] = statement = session.prepare(text)
                statement.consistency_level = level
        return made

    async def _ask(self, name: str, *arguments: object, strong: bool) -> Sequence[Any]:
        """Send a request; its place is free again when it has ended, also when nobody waits for it any more."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[Any]] = loop.create_future()

        def settle(rows: Sequence[Any] | None, error: Exception | None) -> None:
            self._slots.release()
            if answer.done():
                return
            if error is None:
                answer.set_result(rows or ())
            else:
                answer.set_exception(error)

        def told(rows: Sequence[Any] | None = None, error: Exception | None = None) -> None:
            with suppress(RuntimeError):  # The loop may have ended.
                loop.call_soon_threadsafe(settle, rows, error)

        def failed(error: Exception) -> None:
            told(error=error)

        await self._slots.acquire()
        try:
            asked = self._session.execute_async(self._statements[name, int(strong)], arguments)
        except BaseException:
            self._slots.release()
            raise
        asked.add_callbacks(told, failed)
        return await answer

    async def _run(self, name: str, *arguments: object, strong: bool) -> Sequence[Any]:
        try:
            return await self._ask(name, *arguments, strong=strong)
        except InvalidRequest as error:
            if name != "get":
                await self.check()  # If the table can be read, it is the item that is not taken.
                raise StateLimitError(f"{self._shown} refused: {_reason(error)}") from None
            raise StateError(f"{self._shown} refused: {_reason(error)}") from None
        except _ERRORS as error:
            raise StateError(f"{self._shown} could not be used: {_reason(error)}") from None

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        """Read a key; ``strong`` asks all nodes that have it."""
        rows = await self._run("get", _checked(key), strong=strong)
        if not rows:
            return None
        value, ttl = rows[0]
        return Stored(value or b"", "", None if ttl is None else time.time() + ttl)

    async def write(self, items: Sequence[Item]) -> None:
        """Write one item."""
        (item,) = items
        assert not conditional(item)  # The block refuses what needs an ability that is not declared.
        key = _checked(item.key)
        if item.value is None:
            await self._run("delete", key, strong=item.strong)
            return
        ttl = 0 if item.ttl is None else max(1, math.ceil(item.ttl))
        if ttl > MAX_TTL_SECONDS:
            raise StateLimitError(f"Cassandra lets values expire within {MAX_TTL_SECONDS} seconds, not in {ttl}")
        await self._run("set", key, item.value, ttl, strong=item.strong)


def _wrong(component: Component, settings: CassandraSettings) -> Iterator[Problem]:
    if (settings.username is None) != (settings.password is None):
        given, lacking = ("username", "password")[:: 1 if settings.username else -1]
        yield component.problem(f"needs {lacking} as well", setting=given)


def _checked(key: str) -> str:
    if not 0 < len(key.encode()) <= MAX_KEY_BYTES:
        raise StateLimitError(f"Cassandra takes keys of 1 to {MAX_KEY_BYTES} bytes, prefix included")
    return key


def _reason(error: Exception) -> str:
    """Tell an error in few words; of those of several hosts the first."""
    told = next(iter(error.errors.values()), error) if isinstance(error, NoHostAvailable) and error.errors else error
    return (str(told) or type(told).__name__).partition("\n")[0][:MAX_REASON]
