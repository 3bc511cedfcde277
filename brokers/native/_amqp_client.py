"""AMQP 1.0 under asyncio: Proton's engine, which does no input and output, and a connection that is made anew."""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import FIRST_COMPLETED
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar, cast

from proton import SASL, Collector, Connection, Data, Event, Terminus, Transport, symbol

from brokers.native._amqp_config import Config
from brokers.shared.backoff import waits
from brokers.shared.errors import NotAdmittedError, unavailable
from brokers.shared.outage import Outage
from mesh.errors import BrokerError
from mesh.tasks import task_group

__all__ = ["Client", "LinkRefusedError", "Receiver", "Wire"]

logger = logging.getLogger("brokers.amqp")

CLOSE_SECONDS = 1.0
DRAIN_SECONDS = 2.0
MAX_SENDERS = 1000  # Of one connection; beyond, the one that was used least recently is closed.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # Of what somebody else sends.
MAX_FRAME_BYTES = 64 * 1024
SHARED = ("topic", "shared", "global")  # The capabilities of a subscription that members have together.
_T = TypeVar("_T")


class LinkRefusedError(Exception):
    """The server refuses a link, or what was sent over it, or ends it."""


class Receiver:
    """One end of a link that brings messages.

    Attributes:
        ended: Why there comes no more; set once.
        opened: Done once the server has it.
        either: The first two.
        drained: Done once nothing more is on its way; after `Wire.drain`.
    """

    def __init__(self, link: Any, take: Callable[[bytes, Any], None]) -> None:
        """Note what to do with each message, and its delivery."""
        self.link, self.take, self.draining = link, take, False
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Exception] = loop.create_future()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.drained: asyncio.Future[None] = loop.create_future()
        self.either: tuple[asyncio.Future[Any], ...] = self.opened, self.ended


class Wire(asyncio.Protocol):
    """One connection, with one session.

    Attributes:
        opened: Done once the server has let us in.
        lost: Done, with the reason, once it is over.
    """

    def __init__(self, config: Config) -> None:
        """Prepare for one attempt."""
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[Exception] = loop.create_future()
        self._collector, self._connection = Collector(), Connection()
        self._connection.collect(self._collector)
        self._connection.hostname = config.host
        self._connection.container = "brokermesh"
        self._transport = Transport()
        self._transport.idle_timeout, self._transport.max_frame_size = config.idle, MAX_FRAME_BYTES
        sasl = self._transport.sasl()
        sasl.allow_insecure_mechs = True  # Of TLS the engine knows nothing.
        sasl.allowed_mechs("ANONYMOUS" if config.user is None else "PLAIN")
        if config.user is not None:
            self._connection.user, self._connection.password = config.user, config.password or ""
        self._transport.bind(self._connection)
        self._connection.open()
        self._session = self._connection.session()
        self._session.open()
        self._every = min(1.0, config.idle / 4)
        self._socket: Any = None
        self._paused = self._turning = False
        self._timer: asyncio.TimerHandle | None = None
        self._tags = 0
        self._sent: dict[str, tuple[Any, asyncio.Future[Any]]] = {}  # Over which link, and what comes of it.
        self._senders: OrderedDict[str, tuple[Any, asyncio.Future[None]]] = OrderedDict()
        self._receivers: dict[str, Receiver] = {}
        self._asked: tuple[Any, asyncio.Future[None]] | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, if this is wanted still."""
        self._socket = transport
        if self.lost.done():
            self._socket.abort()
            return
        self._tick()

    def data_received(self, data: bytes) -> None:
        """Give the engine what came."""
        while data and not self.lost.done():
            room = self._transport.capacity()
            if room <= 0:
                self.end(ConnectionError("it says what is no AMQP 1.0"))
                return
            with suppress(Exception):  # The engine notes it, and says so by an event.
                self._transport.push(data[:room])
            data = data[room:]
            self.turn()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note it, unless what came before says why."""
        self.turn()
        if self._transport.sasl().outcome == SASL.AUTH:
            self.end(PermissionError("it does not let us in"))
        self.end(exc or ConnectionError("it hangs up"))

    def pause_writing(self) -> None:
        """Wait with what is to be written."""
        self._paused = True

    def resume_writing(self) -> None:
        """Write it."""
        self._paused = False
        self.turn()

    # The engine.

    def _tick(self) -> None:
        if not self.lost.done():
            self._transport.tick(time.monotonic())
            self.turn()
            self._timer = asyncio.get_running_loop().call_later(self._every, self._tick)

    def turn(self) -> None:
        """Heed what the engine says, and write what it has for the server."""
        if self.lost.done() or self._turning or self._socket is None:
            return
        self._turning = True
        try:
            more = True
            while more:
                while (event := self._collector.peek()) is not None:
                    try:
                        self._heed(event)
                    finally:
                        self._collector.pop()
                while not self._paused and (size := self._transport.pending()) > 0:
                    self._socket.write(self._transport.peek(size))
                    self._transport.pop(size)
                more = self._collector.peek() is not None  # It finds out some things only when it is to write.
        finally:
            self._turning = False

    def _heed(self, event: Any) -> None:
        kind = event.type
        if kind == Event.DELIVERY:
            self._on_delivery(event.delivery)
        elif kind == Event.CONNECTION_REMOTE_OPEN:
            if not self.opened.done():
                self.opened.set_result(None)
        elif kind == Event.LINK_REMOTE_OPEN and event.link.is_sender:
            self._on_sender(event.link)
        elif kind == Event.LINK_REMOTE_OPEN:
            found = self._receivers.get(event.link.name)
            if found is not None and event.link.remote_source.address is not None and not found.opened.done():
                found.opened.set_result(None)
        elif kind == Event.SESSION_REMOTE_OPEN:
            if self._asked is not None and event.session == self._asked[0]:
                self._asked[1].set_result(None)
                self._asked = None
                event.session.close()
        elif kind == Event.LINK_FLOW and event.link.is_receiver:
            found = self._receivers.get(event.link.name)
            if found is not None and found.draining and not event.link.draining() and not found.drained.done():
                found.drained.set_result(None)
        elif kind in (Event.LINK_REMOTE_CLOSE, Event.LINK_REMOTE_DETACH):
            self._on_link_end(event.link)
        elif kind == Event.CONNECTION_REMOTE_CLOSE:
            self.end(_error(event.connection.remote_condition, "the server closes the connection"))
        elif kind == Event.SESSION_REMOTE_CLOSE and event.session == self._session:
            self.end(_error(event.session.remote_condition, "the server closes the session"))
        elif kind in (Event.TRANSPORT_ERROR, Event.TRANSPORT_TAIL_CLOSED):
            condition = self._transport.condition
            if condition is not None and condition.name == "amqp:unauthorized-access":
                self.end(PermissionError(condition.description or "it does not let us in"))
            else:
                self.end(_error(condition, "the connection is over"))

    def _on_delivery(self, delivery: Any) -> None:
        link = delivery.link
        if link.is_sender:
            if delivery.updated and (state := delivery.remote_state):
                condition = None if delivery.remote is None else delivery.remote.condition
                if (sent := self._sent.pop(delivery.tag, None)) is not None and not sent[1].done():
                    sent[1].set_result((state, condition))
                delivery.settle()
            return
        if delivery.pending > MAX_MESSAGE_BYTES:
            self.end(ConnectionError("a message is too large"))
        elif delivery.readable and not delivery.partial:
            body = link.recv(delivery.pending) if delivery.pending else b""
            link.advance()
            if (receiver := self._receivers.get(link.name)) is not None:
                receiver.take(bytes(body or b""), delivery)

    def _on_sender(self, link: Any) -> None:
        found = self._senders.get(link.target.address)
        if found is not None and link.remote_target.address is not None and not found[1].done():
            found[1].set_result(None)

    def _on_link_end(self, link: Any) -> None:
        error: Exception = LinkRefusedError(str(_error(link.remote_condition, "the server ends the link")))
        if link.is_receiver:
            if (receiver := self._receivers.pop(link.name, None)) is not None and not receiver.ended.done():
                receiver.ended.set_result(error)
        elif (found := self._senders.get(link.target.address)) is not None and found[0] == link:
            del self._senders[link.target.address]
            _fail(found[1], error)
        elif link.is_sender:  # We closed it: what is under way is sent again.
            error = ConnectionError("its link was closed")
        for over, future in self._sent.values():
            if over == link:
                _fail(future, error)
        link.close()

    def end(self, error: Exception) -> None:
        """Be over; whoever waits for something is told why."""
        if self.lost.done():
            return
        self.lost.set_result(error)
        if self._timer is not None:
            self._timer.cancel()
        _fail(self.opened, error)
        lost = ConnectionError(str(error))
        links = *self._senders.values(), *filter(None, [self._asked])
        for _, future in (*self._sent.values(), *links):
            _fail(future, lost)
        for receiver in self._receivers.values():
            if not receiver.ended.done():
                receiver.ended.set_result(lost)
        if self._socket is not None:
            self._socket.abort()  # Who is silent would not let it be closed.

    # What the adapter asks for.

    def _check(self) -> None:
        if self.lost.done():
            raise ConnectionError(str(self.lost.result()))

    async def send(self, address: str, body: bytes) -> tuple[Any, Any]:
        """Send an encoded message; give its outcome, and the condition of it.

        Cancelled while the server takes no more, it is not sent.

        Raises:
            ConnectionError: The connection was lost first.
            LinkRefusedError: Nothing can be sent there.
        """
        self._check()
        if address not in self._senders:
            self._tags += 1
            link = self._session.sender(f"{address}!{self._tags}")
            link.target.address = link.source.address = address
            self._senders[address] = link, asyncio.get_running_loop().create_future()
            link.open()
            if len(self._senders) > MAX_SENDERS:
                self._close_one()
            self.turn()
        link, opened = self._senders[address]
        self._senders.move_to_end(address)
        await asyncio.shield(opened)
        self._check()
        if (found := self._senders.get(address)) is None or found[0] != link:
            raise ConnectionError("its link was closed")  # Since it was there; nothing would be heard of a message.
        self._tags += 1
        tag = str(self._tags)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._sent[tag] = link, future
        delivery = link.delivery(tag)
        link.send(body)
        link.advance()
        self.turn()
        try:
            return cast("tuple[Any, Any]", await future)
        except asyncio.CancelledError:
            delivery.abort()  # If the server has given no credit for it, it is not sent.
            self.turn()
            raise
        finally:
            self._sent.pop(tag, None)

    def _close_one(self) -> None:
        """Close the link that was used least recently, of those over which nothing is under way."""
        for address, (link, opened) in self._senders.items():
            if opened.done() and not any(over == link for over, _ in self._sent.values()):
                del self._senders[address]
                link.close()
                return

    async def ask(self) -> None:
        """Have the server answer: by a session, which is closed at once.

        Raises:
            ConnectionError: The connection was lost first.
        """
        self._check()
        if self._asked is None:
            self._asked = self._connection.session(), asyncio.get_running_loop().create_future()
            self._asked[0].open()
            self.turn()
        await asyncio.shield(self._asked[1])

    def receive(self, name: str, address: str, *, shared: bool, take: Callable[[bytes, Any], None]) -> Receiver:
        """Open a link that brings messages, as soon as there is credit.

        Args:
            name: Of the link; with it goes the subscription, up to the bar.
            address: From where.
            shared: Whether the server keeps it as a subscription that others share.
            take: Called with each message, and its delivery.
        """
        link = self._session.receiver(name)
        link.source.address = link.target.address = address
        if shared:
            link.source.durability = Terminus.DELIVERIES
            link.source.expiry_policy = Terminus.EXPIRE_NEVER
            capabilities = link.source.capabilities
            capabilities.put_array(False, Data.SYMBOL)
            capabilities.enter()
            for each in SHARED:
                capabilities.put_symbol(symbol(each))
            capabilities.exit()
        made = self._receivers[name] = Receiver(link, take)
        if self.lost.done():
            made.ended.set_result(self.lost.result())
        else:
            link.open()
            self.turn()
        return made

    def settle(self, delivery: Any, outcome: Any, *, failed: bool = False, elsewhere: bool = False) -> None:
        """Say what became of a message; on a connection that is lost, it comes again. The last two go with MODIFIED."""
        if not self.lost.done():
            delivery.local.failed, delivery.local.undeliverable = failed, elsewhere
            delivery.update(outcome)
            delivery.settle()
            self.turn()

    async def drain(self, receiver: Receiver) -> None:
        """Take the credit back, and wait until nothing more is on its way: who goes earlier leaves it with nobody."""
        if self.lost.done() or not receiver.link.credit:
            return
        receiver.draining = True
        receiver.link.drain(0)
        self.turn()
        waiting: list[asyncio.Future[Any]] = [receiver.drained, receiver.ended]
        await asyncio.wait(waiting, timeout=DRAIN_SECONDS, return_when=FIRST_COMPLETED)

    def detach(self, receiver: Receiver, *, shared: bool) -> None:
        """Go, and leave a subscription there."""
        self._receivers.pop(receiver.link.name, None)
        if not self.lost.done():
            receiver.link.detach() if shared else receiver.link.close()
            self.turn()

    async def close(self) -> None:
        """Take leave."""
        if not self.lost.done():
            self._connection.close()
            self.turn()
            await asyncio.wait([self.lost], timeout=CLOSE_SECONDS)
        self.end(ConnectionError("it was closed"))


class Client:
    """Has one connection, or makes it anew.

    Attributes:
        config: How.
        outage: Tells of it.
    """

    def __init__(self, config: Config) -> None:
        """Prepare."""
        self.config = config
        self.outage = Outage(logger, "AMQP", config.shown)
        self._wire: Wire | None = None
        self._there = asyncio.Event()
        self._open = False

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Connect, and stay so.

        Raises:
            BrokerUnavailableError: There is nobody, or it does not let this node in.
        """
        wire = await self._connect()
        async with task_group() as tasks:
            self._open = True
            staying = tasks.create_task(self._stay(wire), name="amqp-stay")
            try:
                yield
            finally:
                self._open = False
                self._there.set()
                staying.cancel()
                await asyncio.wait([staying])
                wire.end(ConnectionError("it was closed"))  # The task may not have begun.

    async def _connect(self) -> Wire:
        config = self.config
        wire = Wire(config)
        try:
            async with asyncio.timeout(config.connect_wait):
                server = config.host if config.tls is not None else None
                loop = asyncio.get_running_loop()
                await loop.create_connection(
                    lambda: wire, config.host, config.port, ssl=config.tls, server_hostname=server
                )
                await wire.opened
        except (OSError, TimeoutError) as error:
            wire.end(error)
            made = unavailable(f"AMQP at {config.shown}", error)
            raise (NotAdmittedError(str(made)) if isinstance(error, PermissionError) else made) from error
        except BaseException:
            wire.end(ConnectionError("it was given up"))
            raise
        return wire

    async def _stay(self, wire: Wire) -> None:
        try:
            while True:
                self._wire = wire
                self._there.set()
                self.outage.back()
                await asyncio.wait([wire.lost])
                self._there.clear()
                self.outage.lost(wire.lost.result())
                for wait in waits():
                    with suppress(BrokerError):
                        wire = await self._connect()
                        break
                    await asyncio.sleep(wait)
        finally:
            self.outage.forget()
            await wire.close()

    async def wire(self) -> Wire:
        """Wait for a connection.

        Raises:
            BrokerUnavailableError: It was closed.
        """
        while True:
            if self._open and self._wire is not None and not self._wire.lost.done():
                return self._wire
            if not self._open:
                raise unavailable(f"AMQP at {self.config.shown}")
            self._there.clear()
            await self._there.wait()

    async def check(self) -> None:
        """Have the server answer, but not wait for it for long; raises ``BrokerUnavailableError``."""
        try:
            async with asyncio.timeout(self.config.connect_wait):
                while True:
                    with suppress(ConnectionError):
                        return await (await self.wire()).ask()
        except TimeoutError as error:
            raise unavailable(f"AMQP at {self.config.shown}", error) from error

    async def until_sent(self, address: str, body: bytes) -> tuple[Any, Any]:
        """Send a message until the server says what became of it; else as `Wire.send`."""
        while True:
            wire = await self.wire()
            with suppress(ConnectionError):
                return await wire.send(address, body)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # Perhaps nobody waits for it.


def _error(condition: Any, otherwise: str) -> Exception:
    if condition is None:
        return ConnectionError(otherwise)
    return ConnectionError(f"{condition.name}: {condition.description}" if condition.description else condition.name)
