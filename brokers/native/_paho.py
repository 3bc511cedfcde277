"""paho-mqtt on the event loop: one client id, whose connection is made again whenever it breaks.

The library keeps what was published until the server has confirmed it, and sends it again by the next connection.
It has no task and no thread of its own here, but for the moment in which it connects.

Sources: OASIS, MQTT 3.1.1 (3.1.4: a second connection with a client id ends the first); paho-mqtt 2, `Client`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from brokers.native._paho_socket import WAITS, BufferedClient, BufferedSocket
from brokers.shared.backoff import waits
from brokers.shared.errors import NotAdmittedError, map_errors, unavailable
from brokers.shared.mqtt import MQTTServer
from brokers.shared.outage import Outage
from mesh.errors import BrokerError, BrokerUnavailableError, PublishRejectedError

__all__ = ["FAILURES", "Link"]

logger = logging.getLogger("brokers.native.mqtt")

AT_ONCE = 500  # Publishes without their confirmation; far fewer than MQTT can number.
READS = 100
ANSWER_WAIT = 10.0
GOODBYE_WAIT = 2.0
NOWHERE = "brokermesh/check"  # Unsubscribing is answered also where there is nothing to unsubscribe from.
GONE = "the server has closed it"
OURS = ConnectionError("we have closed it")
# A connection that ends so soon, so often, although the server lets us in each time, is thrown out by another one.
SHORT, FOUGHT, STEADY = 10.0, 5, 60.0
LONGEST_TRUCE = 30.0
NO_USE_TO_TRY = frozenset(
    {"Unsupported protocol version", "Client identifier not valid", "Bad user name or password", "Not authorized"}
)
NO_SUCH_MESSAGE = map_errors({ValueError: lambda error: PublishRejectedError(f"MQTT has no such message: {error}")})
# The library raises what Python has: UnicodeError is a host that nobody can be called.
FAILURES = (OSError, UnicodeError)


class Link:
    """A connection under one client id.

    Attributes:
        up: Set while the server has let us in.
        outage: Knows since when it is not so.
        on_message: Takes each message, which `ack` settles; it must not block.
        on_connected: Called before the first message of each connection, with whether the server has the session.
    """

    def __init__(
        self,
        server: MQTTServer,
        client_id: str,
        tls: ssl.SSLContext | None,
        *,
        clean: bool,
        keep_alive: int,
        wait: float,
    ) -> None:
        """Prepare; `open` connects.

        Args:
            server: Where to.
            client_id: As whom.
            tls: None for plain TCP.
            clean: Whether the session ends with each connection.
            keep_alive: Seconds of silence until the server is asked for a sign of life; it has as long to give it.
            wait: Seconds that an attempt to connect may take.
        """
        self._server, self._client_id, self._wait = server, client_id, wait
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.on_message: Callable[[mqtt.MQTTMessage], None] = lambda message: None
        self.on_connected: Callable[[bool], None] = lambda present: None
        self._tick = min(1.0, keep_alive / 4)
        self.up, self._down = asyncio.Event(), asyncio.Event()
        self.outage = Outage(logger, "MQTT", server.shown)
        self._room = asyncio.Semaphore(AT_ONCE)
        self._confirmed: dict[int, asyncio.Future[None]] = {}
        self._asked: dict[int, asyncio.Future[bool]] = {}
        self._admitted: asyncio.Future[None] | None = None
        self._connecting: asyncio.Future[Any] | None = None
        self._socket: Any = None
        self._writing = self._closed = False
        self._since, self._shorts, self._pauses = 0.0, 0, waits()
        self._client = self._made(tls, clean, keep_alive)

    def _made(self, tls: ssl.SSLContext | None, clean: bool, keep_alive: int) -> mqtt.Client:
        server = self._server
        client = BufferedClient(
            CallbackAPIVersion.VERSION2,
            self._client_id,
            clean_session=clean,
            transport="websockets" if server.path else "tcp",
            reconnect_on_failure=False,
            manual_ack=True,
        )
        if server.path:
            client.ws_set_options(server.path)
        if tls is not None:
            client.tls_set_context(tls)
        if server.username is not None:
            client.username_pw_set(server.username, server.password)
        client.max_inflight_messages_set(0)  # The bound is ours; the library looks at all of them for its own.
        client.on_socket_open, client.on_socket_close = self._opened, self._left
        client.on_socket_register_write = self._want_write
        client.on_connect, client.on_disconnect = self._let_in, self._lost
        client.on_message = lambda _, __, message: self.on_message(message)
        client.on_publish = self._published
        client.on_subscribe = lambda _, __, mid, codes, ___: self._answer(
            mid, all(each.value in (1, 2) for each in codes)
        )
        client.on_unsubscribe = lambda _, __, mid, ___, ____: self._answer(mid, True)
        client.connect_timeout = self._wait
        client.connect_async(server.host, server.port, keep_alive)
        return client

    # Life

    async def open(self) -> None:
        """Connect for the first time, or find that nobody is there.

        Raises:
            BrokerUnavailableError: The server does not answer, or does not let us in; it is named without credentials.
        """
        try:
            async with asyncio.timeout(self._wait):
                if self._connecting is not None:  # Looking up a name cannot be cut short.
                    await asyncio.wait([self._connecting])
                self._admitted = self._loop.create_future()
                self._connecting = self._loop.run_in_executor(None, self._client.reconnect)
                try:
                    await asyncio.shield(self._connecting)
                except asyncio.CancelledError:  # What the thread still opens is closed as soon as it has.
                    self._connecting.add_done_callback(lambda done: self._drop(done.exception()))
                    raise
                await self._admitted
        except FAILURES as error:
            self._drop(error)
            raise unavailable(f"MQTT at {self._server.shown}", error) from error
        except BaseException as error:
            self._drop(error)
            raise
        finally:
            self._admitted = None

    async def supervise(self, on_restored: Callable[[], None]) -> None:
        """Keep the connection alive, and make it again whenever it breaks, which is told then."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._tick):
                    await self._down.wait()
            if self._down.is_set():
                await self._come_back()
                on_restored()
            else:
                self._guarded(self._client.loop_misc)

    async def _come_back(self) -> None:
        if self._loop.time() - self._since >= (STEADY if self._is_fought else SHORT):
            self._shorts, self._pauses = 0, waits()
        else:
            self._shorts += 1
            if self._shorts == FOUGHT:
                self._tell_of_fight()
                self._pauses = waits(LONGEST_TRUCE)
            if self._is_fought:
                self._forget_abandoned()
            await asyncio.sleep(next(self._pauses))
        self._down.clear()
        while True:
            try:
                await self.open()
            except BrokerUnavailableError as error:
                logger.info("%s", error)
                if self._is_fought:
                    self._pauses = waits()
                self._shorts = 0  # The server is away, and nobody throws us out.
                await asyncio.sleep(next(self._pauses))
            else:
                self.outage.back()
                return

    @property
    def _is_fought(self) -> bool:
        return self._shorts >= FOUGHT

    def _forget_abandoned(self) -> None:
        """Do not send again what nobody waits for any more: it may be what the server ends the connection for."""
        for message in self._client.drop_out_messages():
            future = self._confirmed.pop(message.mid, None)
            if future is None or future.done():
                self._room.release()
            else:  # It is kept for the next connection, under another number.
                info = self._client.publish(message.topic, message.payload, message.qos, message.retain)
                self._confirmed[info.mid] = future

    def _tell_of_fight(self) -> None:
        text = (
            "MQTT at %s ends our connection again and again: another client connects as %r as well, so that they throw "
            "each other out, or it refuses what is sent. Give each instance a consumerID of its own, as with "
            "{podName}, and have them share topics by the name $share/<group>/<topic>"
        )
        logger.warning(text, self._server.shown, self._client_id)

    async def close(self) -> None:
        """Say goodbye, once the server has had what was said before; what it has not confirmed fails."""
        try:
            with suppress(TimeoutError, BrokerUnavailableError):
                async with asyncio.timeout(GOODBYE_WAIT):
                    # The library closes at once, perhaps with something unread: then the server may not read the rest.
                    await self.check()
                    self._closed = True
                    self._client.disconnect()
                    await self._down.wait()
        finally:
            self._closed = True
            self._end()

    def _end(self) -> None:
        self._drop(None)
        for future in self._confirmed.values():
            self._room.release()
            if not future.done():
                future.set_exception(self._gone("it is closed"))
                future.exception()  # Whoever asked may have gone.
        self.up.set()  # Whoever waits for it learns that it is over.

    def again(self) -> None:
        """End the connection, and make another one: the server sends what is not acknowledged once more."""
        logger.info("MQTT at %s: connects again, to have what there was no room for", self._server.shown)
        self._since = -STEADY
        self._drop(OURS)

    def _drop(self, error: BaseException | None) -> None:
        """End the connection without a word."""
        found = self._socket
        if found is not None:
            self._left()
            found.close()
        self._lost(None, None, None, error or "closed", None)

    # What the library calls; while it connects, from another thread

    def _soon(self, work: Callable[..., None], *arguments: object) -> None:
        if threading.get_ident() == self._thread:
            work(*arguments)
        else:
            self._loop.call_soon_threadsafe(work, *arguments)

    def _opened(self, _: object, __: object, found: Any) -> None:
        with suppress(AttributeError, OSError):  # That of a WebSocket has no such options.
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._soon(self._attend, found)

    def _attend(self, found: Any) -> None:
        self._socket = found
        self._loop.add_reader(found.fileno(), self._read)

    def _left(self, *_: object) -> None:
        found, self._socket = self._socket, None
        if found is not None:
            self._loop.remove_reader(found.fileno())
            self._loop.remove_writer(found.fileno())
            self._writing = False

    def _want_write(self, *_: object) -> None:
        ours = threading.get_ident() == self._thread
        (self._loop.call_soon if ours else self._loop.call_soon_threadsafe)(self._write)

    def _write(self) -> None:
        """Write what the library has, all of it together, and go on when the socket takes more."""
        if self._socket is not None:
            self._guarded(self._client.loop_write)
        if isinstance(self._socket, BufferedSocket):
            try:
                self._socket.flush()
            except WAITS:
                pass
            except OSError as error:
                self._drop(error)
        found = self._socket
        if found is None:
            return
        wants = self._client.want_write() or (isinstance(found, BufferedSocket) and found.waits)
        if wants and not self._writing:
            self._loop.add_writer(found.fileno(), self._write)
        elif self._writing and not wants:
            self._loop.remove_writer(found.fileno())
        self._writing = wants

    def _read(self) -> None:
        for _ in range(READS):
            self._guarded(self._client.loop_read)
            found = self._socket
            if found is None or not getattr(found, "pending", int)():  # TLS may hold what the socket does not show.
                return
        self._loop.call_soon(self._read)

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - the server sent what is not MQTT, of which anything may be wrong
            logger.warning("MQTT at %s: %r", self._server.shown, error)
            self._drop(error)

    def _let_in(self, _: object, __: object, flags: mqtt.ConnectFlags, reason: Any, ___: object) -> None:
        admitted = self._admitted
        if admitted is None or admitted.done():
            return
        if reason.is_failure:
            kind = NotAdmittedError if str(reason) in NO_USE_TO_TRY else BrokerUnavailableError
            admitted.set_exception(kind(f"MQTT at {self._server.shown} does not let us in: {str(reason).lower()}"))
            admitted.exception()  # Whoever waits for it may have gone.
            return
        self._since = self._loop.time()
        self._down.clear()
        self.up.set()
        self.on_connected(flags.session_present)
        admitted.set_result(None)

    def _lost(self, _: object, __: object, ___: object, cause: object, ____: object) -> None:
        if self._admitted is not None and not self._admitted.done():
            self._admitted.set_exception(ConnectionError(f"the connection was closed: {cause}"))
            self._admitted.exception()
        asked, self._asked = self._asked, {}
        for future in asked.values():
            if not future.done():
                future.set_exception(self._gone(cause))
                future.exception()
        if self.up.is_set():
            self.up.clear()
            if cause is not OURS and not self._closed and not self._is_fought:  # The latter is told already, and lasts.
                self.outage.lost(GONE if str(cause) == "Unspecified error" else cause)
            self._down.set()

    def _gone(self, cause: object) -> BrokerUnavailableError:
        return BrokerUnavailableError(f"MQTT at {self._server.shown}: there is no connection: {cause}")

    def _published(self, _: object, __: object, mid: int, ___: object, ____: object) -> None:
        future = self._confirmed.pop(mid, None)
        if future is not None:
            self._room.release()
            if not future.done():
                future.set_result(None)

    def _answer(self, mid: int, granted: bool) -> None:
        future = self._asked.pop(mid, None)
        if future is not None and not future.done():
            future.set_result(granted)

    # What is asked

    async def until_up(self) -> None:
        """Wait for the connection.

        Raises:
            BrokerUnavailableError: There will be none any more.
        """
        await self.up.wait()
        if self._closed:
            raise self._gone("it is closed")

    async def publish(self, topic: str, body: bytes, qos: int, *, retain: bool) -> None:
        """Publish; return once the server has confirmed it, by the connection of then or a later one.

        Raises:
            PublishRejectedError: MQTT has no such message.
        """
        await self._room.acquire()
        try:
            await self.until_up()
            with NO_SUCH_MESSAGE:
                info = self._client.publish(topic, body, qos, retain)
            while info.rc == mqtt.MQTT_ERR_QUEUE_SIZE:  # Its number is that of one which has waited for very long.
                info = self._client.publish(topic, body, qos, retain)
        except BaseException:
            self._room.release()
            raise
        future = self._confirmed[info.mid] = self._loop.create_future()
        await future  # Cancelled here, it may still arrive; its place is free once it has.

    async def subscribe(self, wanted: str) -> None:
        """Subscribe with QoS 1, so that nothing is done with before it is acknowledged.

        Raises:
            BrokerUnavailableError: The connection broke, or there is none; one without an answer is ended for it.
            BrokerError: The server does not let us.
        """
        _, mid = self._client.subscribe(wanted, 1)
        if not await self._reply(mid, must=True):
            raise BrokerError(f"MQTT at {self._server.shown} does not let us subscribe to {wanted} with QoS 1")

    async def unsubscribe(self, wanted: str) -> None:
        """Unsubscribe.

        Raises:
            BrokerUnavailableError: The connection broke, or there is none.
        """
        _, mid = self._client.unsubscribe(wanted)
        await self._reply(mid)

    async def _reply(self, mid: int | None, *, must: bool = False) -> bool:
        if mid is None or self._closed or not self.up.is_set():
            raise self._gone("it is not there now")
        answer: asyncio.Future[bool] = self._loop.create_future()
        self._asked[mid] = answer
        try:
            async with asyncio.timeout(ANSWER_WAIT):
                return await answer
        except TimeoutError as error:
            if must:
                self._drop(error)
            raise unavailable(f"MQTT at {self._server.shown}", TimeoutError()) from None
        finally:
            self._asked.pop(mid, None)

    async def check(self) -> None:
        """Have the server answer; raises as `unsubscribe` does."""
        await self.unsubscribe(NOWHERE)

    def ack(self, mid: int, qos: int) -> None:
        """Say that a message of this connection is done with."""
        self._client.ack(mid, qos)
