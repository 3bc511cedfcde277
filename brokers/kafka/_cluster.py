"""Connections to a Kafka cluster, who leads which partition, and requests that find their way."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from aiokafka import errors as kafka
from aiokafka.conn import AIOKafkaConnection, CloseReason, create_conn
from aiokafka.protocol.admin import CreateTopicsRequest, DescribeConfigsRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest

from brokers.kafka._config import KafkaConfig
from brokers.shared.backoff import waits
from brokers.shared.errors import NotAdmittedError, map_errors, unavailable
from brokers.shared.tls import refusal_of
from mesh.errors import BrokerError, BrokerUnavailableError, PublishRejectedError

__all__ = ["EARLIEST", "LATEST", "Cluster", "error_of", "errors_of"]

EARLIEST, LATEST = -2, -1
LONGEST_PAUSE = 0.5
CREATING_WAIT = 0.005
CREATED_WITHIN = 10.0
_NOT_ADMITTED = (
    kafka.AuthenticationFailedError,
    kafka.AuthenticationMethodNotSupported,
    kafka.IllegalSaslStateError,
    kafka.SaslAuthenticationFailed,
    kafka.SecurityDisabled,
    kafka.UnsupportedSaslMechanismError,
)
# UnicodeError is for what cannot be the name of a host, RuntimeError what uvloop says to a write just after a reset.
_CONNECTION = (OSError, EOFError, UnicodeError, RuntimeError)


def error_of(code: int) -> type[kafka.KafkaError] | None:
    """Give the client's error for a code of the protocol; None for success."""
    return None if code == 0 else kafka.for_code(code)


def errors_of(server: str) -> map_errors:
    """Give what becomes of what the client raises, about a server by its kind and address.

    A request's outcome is a code, which is judged by whoever asked: what is raised concerns the connection.
    """

    def lost(error: Exception) -> BrokerUnavailableError:
        refusal = refusal_of(error)
        return unavailable(server, error) if refusal is None else not_admitted(refusal)

    def not_admitted(reason: object) -> NotAdmittedError:
        return NotAdmittedError(f"{server} is not reachable: {reason}")

    return map_errors(
        {
            **dict.fromkeys((*_CONNECTION, kafka.KafkaError, kafka.ConsumerStoppedError, kafka.IllegalOperation), lost),
            **dict.fromkeys(_NOT_ADMITTED, not_admitted),
        }
    )


class Cluster:
    """The brokers of a cluster.

    A connection carries one request after the other, so whatever may wait at the broker (a fetch,
    a group's join) has a connection of its own, told apart by ``purpose``.
    """

    def __init__(self, config: KafkaConfig) -> None:
        """Prepare; `open` connects."""
        self.config = config
        self.shown = config.shown
        self.closed = False
        self.errors = errors_of(f"Kafka at {self.shown}")
        self._waits: Iterator[float] = waits(LONGEST_PAUSE)
        self._answered = False
        self._brokers: dict[int, tuple[str, int]] = {}
        self._leaders: dict[str, dict[int, int]] = {}
        self._replicas: dict[str, int] = {}
        self._connections: dict[tuple[object, str], AIOKafkaConnection] = {}
        self._locks: dict[tuple[object, str], asyncio.Lock] = {}
        self._purposes = itertools.count(1)
        self._watched: set[str] = set()
        self._refreshing = asyncio.Lock()
        self._creating: dict[str, asyncio.Lock] = {}
        self._refreshed = 0

    def purpose(self, what: str) -> str:
        """Make a name for connections that nobody else uses."""
        return f"{what}-{next(self._purposes)}"

    def unavailable(self, reason: str) -> BrokerUnavailableError:
        """Say that there is no connection, and why."""
        if self.closed:
            return BrokerUnavailableError(f"the connection to Kafka at {self.shown} is closed")
        error = ConnectionError(reason)
        found = unavailable(f"Kafka at {self.shown}", error)
        found.__cause__ = error
        return found

    async def pause(self) -> None:
        """Wait before something is tried again: longer while no broker answers."""
        if self._answered:
            self._answered, self._waits = False, waits(LONGEST_PAUSE)
        await asyncio.sleep(next(self._waits))

    async def open(self) -> None:
        """Find the cluster's brokers, or that none is there; each is asked once.

        Raises:
            BrokerUnavailableError: None lets us in.
        """
        with self.errors:
            async with asyncio.timeout(self.config.connect_wait):
                await self.refresh()

    async def close(self) -> None:
        """Close every connection."""
        self.closed = True
        connections, self._connections = list(self._connections.values()), {}
        for connection in connections:
            await _close(connection)

    # Connections

    async def connection(self, node: int | tuple[str, int], purpose: str = "") -> AIOKafkaConnection:
        """Give an open connection to a broker, or to an address."""
        key = (node, purpose)
        found = self._connections.get(key)
        if found is not None and found.connected():
            return found
        if self.closed:
            raise self.unavailable("closed")
        async with self._locks.setdefault(key, asyncio.Lock()):
            found = self._connections.get(key)
            if found is not None:
                if found.connected():
                    return found
                del self._connections[key]
                found.close()
            address = node if isinstance(node, tuple) else self._brokers.get(node)
            if address is None:
                raise self.unavailable(f"broker {node} is gone")
            with self.errors:
                async with asyncio.timeout(self.config.request_timeout):
                    made: AIOKafkaConnection = await create_conn(*address, **self.config.connection_options())
            if self.closed:
                await _close(made)
                raise self.unavailable("closed")
            self._connections[key] = made
            return made

    def connected(self, node: int, purpose: str) -> AIOKafkaConnection | None:
        """Give a connection that is open already."""
        found = self._connections.get((node, purpose))
        return found if found is not None and found.connected() else None

    async def drop(self, purpose: str) -> None:
        """Close the connections of a purpose."""
        for key in [key for key in self._connections if key[1] == purpose]:
            connection = self._connections.pop(key)
            self._locks.pop(key, None)
            await _close(connection)

    async def call(self, node: int | tuple[str, int], request: object, purpose: str = "", *, wait: float = 0.0) -> Any:
        """Send a request and give its response.

        Args:
            node: The broker.
            request: What to ask.
            purpose: Which connection to use.
            wait: Seconds that the broker may take on purpose, beside the usual time.

        Raises:
            BrokerUnavailableError: The connection broke or is silent; the outcome is unknown.
        """
        connection = await self.connection(node, purpose)
        try:
            with self.errors:
                async with asyncio.timeout(self.config.request_timeout + wait):
                    response = await connection.send(request)
        except BrokerUnavailableError:
            connection.close(reason=CloseReason.CONNECTION_BROKEN)
            raise
        self._answered = True
        return response

    async def ask(self, request: object) -> Any:
        """Send a request to any broker."""
        nodes: list[int | tuple[str, int]] = list(self._brokers)
        random.shuffle(nodes)
        failure: BrokerUnavailableError | None = None
        for node in nodes or self.config.brokers:
            try:
                return await self.call(node, request)
            except BrokerUnavailableError as error:
                failure = error
        raise failure or self.unavailable("no broker is known")

    # Metadata

    async def refresh(self, topic: str | None = None) -> None:
        """Read anew who leads what."""
        if topic is not None:
            self._watched.add(topic)
        asked = self._refreshed
        async with self._refreshing:
            if self._refreshed > asked + 1:
                return  # One that began after this call has come back.
            try:
                response = await self._metadata()
            finally:
                self._refreshed += 1
        self._brokers = {node: (host, port) for node, host, port, *_ in response.brokers} or self._brokers
        for code, name, _, partitions in response.topics:
            leaders = {partition: leader for _, partition, leader, *_ in partitions}
            if code == 0 and leaders:
                self._leaders[name] = leaders
                self._replicas[name] = len(partitions[0][3])
            elif name in self._leaders:  # A broker that has just started does not know every topic yet.
                self._leaders[name] = dict.fromkeys(self._leaders[name], -1)
            elif error_of(code) is kafka.UnknownTopicOrPartitionError:
                self._watched.discard(name)

    async def _metadata(self) -> Any:
        request = MetadataRequest(sorted(self._watched), allow_auto_topic_creation=False)
        failure: BrokerUnavailableError | None = None
        known = list(self._brokers)
        random.shuffle(known)
        nodes: list[int | tuple[str, int]] = [*known, *self.config.brokers]
        for node in nodes:
            try:
                return await self.call(node, request, "" if isinstance(node, int) else "bootstrap")
            except BrokerUnavailableError as error:
                failure = error
            finally:
                if not isinstance(node, int):
                    await self.drop("bootstrap")
        raise failure or self.unavailable("no broker is known")

    def leader(self, topic: str, partition: int) -> int | None:
        """Tell who leads a partition, if it is known."""
        found = self._leaders.get(topic, {}).get(partition, -1)
        return None if found < 0 or found not in self._brokers else found

    def partitions(self, topic: str) -> int:
        """Count a topic's partitions; 0 when it is not known."""
        return len(self._leaders.get(topic, ()))

    def replicas(self, topic: str) -> int:
        """Count the copies of a topic."""
        return self._replicas.get(topic, 1)

    def nodes(self) -> list[int]:
        """List the brokers."""
        return list(self._brokers)

    def _complete(self, topic: str) -> bool:
        leaders = self._leaders.get(topic)
        return bool(leaders) and all(leader >= 0 for leader in (leaders or {}).values())

    async def find(self, topic: str) -> bool:
        """Tell whether a topic exists."""
        if topic not in self._leaders:
            await self.refresh(topic)
        return topic in self._leaders

    async def create(self, topic: str, partitions: int, settings: dict[str, str], replicas: int = 1) -> bool:
        """Create a topic unless it exists; tell whether it was created."""
        if self._complete(topic):
            return False
        async with self._creating.setdefault(topic, asyncio.Lock()):
            try:
                return await self._create(topic, partitions, settings, replicas)
            finally:
                self._creating.pop(topic, None)

    async def _create(self, topic: str, partitions: int, settings: dict[str, str], replicas: int) -> bool:
        if self._complete(topic):
            return False
        wanted: tuple[Any, ...] = (topic, partitions, replicas, [], list(settings.items()))
        response = await self.ask(CreateTopicsRequest([wanted], int(self.config.request_timeout * 1000), False))
        [(_, code, *rest)] = response.topic_errors
        failure = error_of(code)
        if failure is not None and failure is not kafka.TopicAlreadyExistsError:
            raise PublishRejectedError(f"Kafka refused to create topic {topic}: {failure.__name__} {rest}")
        try:
            async with asyncio.timeout(CREATED_WITHIN):
                wait = 0.002
                while True:
                    await self.refresh(topic)
                    if self._complete(topic):
                        return failure is None
                    await asyncio.sleep(wait)
                    wait = min(2 * wait, 0.1)
        except TimeoutError:
            raise self.unavailable(f"topic {topic} has no leaders") from None

    async def settings(self, topic: str, names: list[str]) -> dict[str, str]:
        """Read some of a topic's settings."""
        response = await self.ask(DescribeConfigsRequest([(2, topic, names)]))
        [(code, message, _, _, entries, *_)] = response.resources
        if (failure := error_of(code)) is not None:
            raise BrokerError(f"cannot read the settings of {topic}: {failure.__name__} {message}")
        return {entry[0]: entry[1] for entry in entries}

    async def offsets(self, topic: str, wanted: dict[int, int], purpose: str = "") -> dict[int, int]:
        """Look up one offset for each partition: `EARLIEST`, `LATEST`, or the first at a Unix time in ms."""
        result: dict[int, int] = {}
        deadline = asyncio.get_running_loop().time() + CREATED_WITHIN
        while wanted.keys() - result.keys():
            by_leader: dict[int, list[tuple[int, int]]] = {}
            for partition in wanted.keys() - result.keys():
                leader = self.leader(topic, partition)
                if leader is not None:
                    by_leader.setdefault(leader, []).append((partition, wanted[partition]))
            failure: type[kafka.KafkaError] | None = None if by_leader else kafka.LeaderNotAvailableError
            for leader, parts in by_leader.items():
                response = await self.call(leader, OffsetRequest(-1, 0, [(topic, parts)]), purpose)
                for _, found in response.topics:
                    for partition, code, _, offset in found:
                        if code == 0:
                            result[partition] = offset
                        else:
                            failure = error_of(code)
            if failure is not None:  # A new leader needs a moment to know that it is one.
                if not failure.retriable or asyncio.get_running_loop().time() > deadline:
                    raise self.unavailable(str(failure()))
                await asyncio.sleep(CREATING_WAIT)
                await self.refresh(topic)
        return result


async def _close(connection: AIOKafkaConnection) -> None:
    closed = connection.close(reason=CloseReason.SHUTDOWN)
    if closed is not None:
        with suppress(*_CONNECTION):
            async with asyncio.timeout(0.5):
                await asyncio.shield(closed)
