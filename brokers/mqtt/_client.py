"""One client id: a connection that is made again whenever it breaks, and publishes that survive that."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mqtt5 import (
    ConnAckPacket,
    ConnAckReasonCode,
    ConnectPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    PingRespPacket,
    PubAckPacket,
    PublishPacket,
    QoS,
    SubAckPacket,
    SubscribePacket,
    TopicFilter,
    UnsubAckPacket,
    UnsubscribePacket,
    Will,
)

from brokers.mqtt._config import MQTTConfig
from brokers.mqtt._dialect import MQTT5, MQTT311, Dialect, Unit
from brokers.mqtt._outbox import FAILED, LARGEST_ID, Outbox
from brokers.mqtt._wire import Wire
from brokers.shared.backoff import CONNECT_WAIT, waits
from brokers.shared.errors import NotAdmittedError, cause_of, map_errors, unavailable
from brokers.shared.outage import Outage
from mesh.errors import BrokerError, BrokerUnavailableError, MessageTooLargeError

__all__ = ["Client", "ConnectionLostError", "Identity"]

logger = logging.getLogger("brokers.mqtt")

MAX_IDS = 65535
STEADY = 5.0
ANSWER_WAIT = 10.0
# The library's codes are no IntEnum, whatever its stubs say: no order, no hash. Hence int().
NO_USE_TO_TRY = frozenset(
    map(
        int,
        (
            ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD,
            ConnAckReasonCode.NOT_AUTHORIZED,
            ConnAckReasonCode.BANNED,
            ConnAckReasonCode.CLIENT_ID_NOT_VALID,
            ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
            ConnAckReasonCode.BAD_AUTHENTICATION_METHOD,
        ),
    )
)
# The library has no exceptions of its own.
WRONG_LOGIN = map_errors(
    dict.fromkeys((OverflowError, ValueError), lambda error: NotAdmittedError(f"MQTT cannot say who we are: {error}"))
)


async def _first_of(*futures: asyncio.Future[Any]) -> None:
    """Wait until any of them is done."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


class ConnectionLostError(BrokerUnavailableError):
    """The connection broke before the answer came."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client is to the server.

    Attributes:
        client_id: Two with one id exclude each other: the later one takes the session over.
        expiry: Seconds that the server keeps its session without a connection; 0 = it ends with each.
        receive_max: Most messages that the server may send before one of them is acknowledged.
        will: What the server publishes when it is gone.
    """

    client_id: str
    expiry: float = 0.0
    receive_max: int = MAX_IDS
    will: Will | None = None


class Client:
    """A connection under one client id.

    Attributes:
        wire: The connection there is; None while there is none.
        outage: Knows when that is so.
        taken: Whether another one has connected with this client id, so that this one does no more.
        server: What the server said about itself when it was connected to last.
        dialect: The version of the protocol.
        up_since: When the connection there is was made, in the loop's time; infinite while there is none.
    """

    def __init__(
        self,
        config: MQTTConfig,
        identity: Identity,
        on_message: Callable[[Wire, PublishPacket], None],
        on_connected: Callable[[bool], Awaitable[None]],
        beside: Client | None = None,
    ) -> None:
        """Prepare; ``open`` connects.

        Args:
            config: Where to.
            identity: As whom.
            on_message: Takes each message; it must not block.
            on_connected: Called after each connect, with whether the server still had the session.
            beside: This node's first client, which knows what version of the protocol the server speaks.
        """
        self._may_go_back = beside is None and not config.version
        self.dialect: Dialect = MQTT311() if config.version == MQTT311.name else MQTT5()
        self.outage = Outage(logger, "MQTT", config.shown)
        if beside is not None:
            self.dialect, self.outage = beside.dialect, beside.outage
        self.config = config
        self.identity = identity
        self.wire: Wire | None = None
        self.taken = False
        self.server = ConnAckPacket()
        self._on_message = on_message
        self._on_connected = on_connected
        self._connack: asyncio.Future[ConnAckPacket] | None = None
        self._ids = 0
        self._requests: dict[int, asyncio.Future[Sequence[int]]] = {}
        self._pings: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._answered = 0
        self.outbox = Outbox()
        self._closed = False
        self._connected_at = -STEADY
        self.up_since = math.inf
        self._waits = waits()

    # Life

    async def open(self) -> None:
        """Connect for the first time, or find that nobody is there.

        Raises:
            BrokerUnavailableError: The server does not answer, or refuses; it is named without credentials.
            BrokerError: What must be done after connecting was refused.
        """
        newest = self.dialect
        try:
            async with asyncio.timeout(self.config.connect_wait):
                try:
                    await self._connect()
                except ConnectionLostError:
                    if self.dialect is newest:
                        raise
                    await self._connect()
        except (OSError, UnicodeError, ConnectionLostError) as error:  # UnicodeError: no host can be called so.
            raise self._gone(error) from error

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        config, identity = self.config, self.identity
        self._connack = loop.create_future()
        wire = Wire(self.dialect, self._unit)
        await loop.create_connection(
            lambda: wire,
            config.host,
            config.port,
            ssl=config.tls,
            server_hostname=config.host if config.tls is not None else None,
        )
        try:
            with WRONG_LOGIN:
                wire.say(
                    ConnectPacket(
                        identity.client_id,
                        username=config.username,
                        password=None if config.password is None else config.password.encode(),
                        clean_start=identity.expiry == 0,
                        will=identity.will,
                        keep_alive=max(5, math.ceil(2 * config.ping_interval)),
                        session_expiry_interval=int(identity.expiry),
                        receive_max=identity.receive_max,
                    )
                )
            async with asyncio.timeout(ANSWER_WAIT):
                await _first_of(self._connack, wire.closed)
            if not self._connack.done():
                self._go_back(wire.is_too_new)
                raise ConnectionLostError(wire.closed.result())
            connack = self._connack.result()
            if int(connack.reason_code) >= FAILED:
                if self._go_back(connack.reason_code == ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION):
                    raise ConnectionLostError("the server does not know MQTT 5")
                reason = connack.reason_code.name.replace("_", " ").lower()
                if int(connack.reason_code) in NO_USE_TO_TRY:
                    raise NotAdmittedError(f"MQTT at {config.shown} does not let us in: {reason}")
                raise ConnectionLostError(reason)
            if self._is_over():
                raise ConnectionLostError("closed meanwhile")
            self.server, self.wire = connack, wire
            async with asyncio.timeout(ANSWER_WAIT):
                await self._on_connected(connack.session_present)
        except BaseException:
            wire.abort("given up")
            self._lose(wire)
            raise
        self.up_since = loop.time()
        self.outbox.attach(wire, connack.receive_max)

    def _go_back(self, unknown: bool) -> bool:
        """Speak MQTT 3.1.1 from now on, if the server does not know MQTT 5."""
        if not (unknown and self._may_go_back and self.dialect.has_properties):
            return False
        self.dialect = MQTT311()
        return True

    async def supervise(self) -> None:
        """Keep the connection alive, and make it again whenever it breaks; return once closed, or taken over."""
        while not self._is_over():
            wire = self.wire
            if wire is not None:
                interval = self.config.ping_interval
                if self.server.server_keep_alive:
                    interval = min(interval, self.server.server_keep_alive / 2)
                await wire.keep_alive(interval)
                self._lose(wire)
                if not self._is_over():
                    self.outage.lost(wire.closed.result(), self)
                continue
            await self._reconnect()
        self.outage.forget(self)
        if self.wire is not None:  # It was closed just when it was connected again.
            self.wire.abort("closed")

    def _is_over(self) -> bool:
        return self._closed or self.taken

    async def _reconnect(self) -> None:
        """Connect again: at once if the last connection lasted, else after a growing delay."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._connected_at > STEADY:
            self._waits = waits()
        else:
            await asyncio.sleep(next(self._waits))
        while not self._is_over():
            try:
                async with asyncio.timeout(CONNECT_WAIT):
                    await self._connect()
            except (OSError, BrokerError) as error:
                logger.info("cannot connect to MQTT at %s: %s", self.config.shown, cause_of(error))
                await asyncio.sleep(next(self._waits))
            else:
                self._connected_at = loop.time()
                self.outage.back(self)
                return

    def _lose(self, wire: Wire) -> None:
        """Have what has no answer sent again by the next connection."""
        if self.wire is not wire:
            return
        self.wire = None
        self.up_since = math.inf
        self.outbox.detach()
        requests, self._requests = self._requests, {}
        pings, self._pings = self._pings, deque()
        self._answered = 0
        for request in requests.values():
            if not request.done():
                request.set_exception(ConnectionLostError("connection lost"))
        for _, ping in pings:
            if not ping.done():
                ping.set_exception(ConnectionLostError("connection lost"))

    async def leave(self, *, end: bool = False) -> None:
        """Say goodbye, with the will, or end the session; wait until the server has read all that and closes."""
        self._closed = True
        wire = self.wire
        if wire is not None and not wire.closed.done():
            goodbye = DisconnectPacket(reason_code=DisconnectReasonCode.DISCONNECT_WITH_WILL_MESSAGE)
            wire.say(DisconnectPacket(session_expiry_interval=0) if end else goodbye)
            await asyncio.wait([wire.closed])

    def close(self, reason: DisconnectReasonCode = DisconnectReasonCode.NORMAL_DISCONNECTION) -> None:
        """Say goodbye and close; what was not published fails."""
        self._closed = True
        wire = self.wire
        if wire is not None:
            if not wire.closed.done():
                expiry = None if self.identity.expiry else 0
                wire.say(DisconnectPacket(reason_code=reason, session_expiry_interval=expiry))
            wire.close()
            self._lose(wire)
        self.outbox.close(self._gone())

    def give_up(self) -> None:
        """Leave the session to another client that has connected as this one."""
        self.taken = True
        if self.wire is not None:
            self.wire.abort("taken over")
        self.close()

    def end_session(self) -> None:
        """Close, and have the server forget the session."""
        if self.wire is not None and not self.wire.closed.done():
            self.wire.say(DisconnectPacket(session_expiry_interval=0))
            self.wire.close()
        self.close()

    def _gone(self, error: Exception | None = None) -> BrokerUnavailableError:
        return unavailable(f"MQTT at {self.config.shown}", error)

    # Units

    def _unit(self, wire: Wire, unit: Unit) -> None:
        match unit:
            case PublishPacket():
                self._on_message(wire, unit)
            case PubAckPacket():
                self.outbox.confirm(unit)
            case PingRespPacket():
                self._answered += 1
                while self._pings and self._pings[0][0] <= self._answered:
                    _, ping = self._pings.popleft()
                    if not ping.done():
                        ping.set_result(None)
            case SubAckPacket() | UnsubAckPacket():
                request = self._requests.pop(unit.packet_id, None)
                if request is not None and not request.done():
                    request.set_result(unit.reason_codes)
            case ConnAckPacket():
                if self._connack is not None and not self._connack.done():
                    self._connack.set_result(unit)
            case DisconnectPacket():
                self.taken = self.taken or unit.reason_code == DisconnectReasonCode.SESSION_TAKEN_OVER
                wire.abort(f"the server said: {unit.reason_code.name.replace('_', ' ').lower()}")
            case _:
                wire.abort(f"the server sent an unexpected {type(unit).__name__}")

    # Publishing

    def post(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        content_type: str | None = None,
        user_properties: list[tuple[str, str]] | None = None,
    ) -> asyncio.Future[None]:
        """Queue a message; what is given is done once the server has it.

        Raises:
            BrokerUnavailableError: This client is closed.
            MessageTooLargeError: The server does not take so much.
            ValueError: MQTT has no such topic or property.
        """
        if self._closed:
            raise self._gone()

        def write(packet_id: int) -> bytes:
            unit = PublishPacket(
                topic,
                payload,
                qos=QoS.AT_LEAST_ONCE,
                retain=retain,
                packet_id=packet_id,
                content_type=content_type,
                user_properties=user_properties,
            )
            data = self.dialect.write(unit)
            largest = self.server.max_packet_size
            if largest is not None and len(data) > largest:
                raise MessageTooLargeError(len(data), largest)
            return data

        return self.outbox.post(write)

    # Subscribing

    def _next_id(self) -> int:
        while True:
            self._ids = self._ids % (MAX_IDS - LARGEST_ID) + 1
            if self._ids + LARGEST_ID not in self._requests:
                return self._ids + LARGEST_ID

    async def subscribe(self, filters: Sequence[TopicFilter]) -> None:
        """Subscribe over the connection there is.

        Raises:
            BrokerError: The server refused.
            ConnectionLostError: The connection broke.
        """
        packet_id = self._next_id()
        for code in await self._request(packet_id, SubscribePacket(packet_id, list(filters))):
            if int(code) >= FAILED or int(code) == 0:  # QoS 0 would be no promise.
                said = getattr(code, "name", str(code)).replace("_", " ").lower()
                raise BrokerError(f"the MQTT server refused the subscription {filters[0].pattern!r}: {said}")

    def forget(self, pattern: str) -> None:
        """Unsubscribe without waiting for an answer."""
        if self.wire is not None:
            self.wire.say(UnsubscribePacket(self._next_id(), [pattern]))

    async def unsubscribe(self, pattern: str) -> None:
        """Unsubscribe over the connection there is.

        Raises:
            ConnectionLostError: The connection broke.
        """
        packet_id = self._next_id()
        await self._request(packet_id, UnsubscribePacket(packet_id, [pattern]))

    async def _request(self, packet_id: int, unit: Unit) -> Sequence[int]:
        wire = self.wire
        if wire is None or wire.closed.done():
            raise ConnectionLostError("there is no connection")
        future: asyncio.Future[Sequence[int]] = asyncio.get_running_loop().create_future()
        self._requests[packet_id] = future
        wire.say(unit)
        try:
            await _first_of(future, wire.closed)  # While it connects, nobody else notices that it broke.
        finally:
            self._requests.pop(packet_id, None)
        if not future.done():
            raise ConnectionLostError("connection lost")
        return future.result()

    async def check(self) -> None:
        """Ask for a sign of life.

        Raises:
            BrokerUnavailableError: There is no connection, or it broke.
        """
        wire = self.wire
        if wire is None or wire.closed.done():
            raise self._gone()
        ping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pings.append((wire.ping(), ping))
        try:
            await ping
        except ConnectionLostError as error:
            raise self._gone() from error
