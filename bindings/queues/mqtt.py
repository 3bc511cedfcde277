"""``bindings.mqtt3``: messages of an MQTT server.

A reading is a persistent session with a client id of its own, so the server keeps what comes while nobody is
connected, and what was not acknowledged. Since two connections with one client id exclude each other, the hosts of an
application read in turns. A message is acknowledged once it was taken.

Source: Dapr 1.18, the MQTT3 binding.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import unquote, urlsplit

from bindings.queues._access import tls_of
from bindings.queues._mqtt import Message, Server, Wire, connect
from bindings.queues._reading import growing, handed, reading_by, stopped_within
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError, BindingEvent, Invoke, Reading
from mesh.errors import RecordsMissingError
from mesh.ownership.turns import in_turn
from mesh.resources.settings import BOOLEAN, VERBATIM, Kind, Setting, ignored, setting
from mesh.tasks import task_group
from mesh.values import parse_bool, parse_whole

if TYPE_CHECKING:
    from mesh.ownership.asking import Owners
    from mesh.store import StateStore

__all__ = ["MQTTBinding"]

logger = logging.getLogger(__name__)

CONNECT_SECONDS, LEAVE_SECONDS = 10.0, 2.0
READ_SECONDS, ENTER_SECONDS = 4.0, 5.0  # Whoever has its turn at once is connected, or failed, when it is entered.
FIRST_WAIT, LONGEST_WAIT = 1.0, 5.0
AGAIN_SECONDS = 15.0  # Until what was given up is asked for again.
AT_ONCE = 100
MAX_UNCONFIRMED = 1000
PORTS = {"mqtt": 1883, "tcp": 1883, "mqtts": 8883, "ssl": 8883, "tls": 8883, "tcps": 8883}
SECURE = frozenset({"mqtts", "ssl", "tls", "tcps"})


def _server(url: str) -> tuple[Server, bool]:
    """Read a URL, and whether it asks for TLS; its text may hold a password, so no error shows it."""
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS[parts.scheme]
        if not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError
    except (KeyError, ValueError):
        raise ValueError("is mqtt://user:password@host:port, or mqtts://…") from None
    user, password = (unquote(each) if each else None for each in (parts.username, parts.password))
    return Server(parts.hostname, port, user, password), parts.scheme in SECURE


def _retries(text: str) -> int:
    return -1 if text == "-1" else parse_whole(text)


@dataclass(frozen=True, slots=True)
class MQTTBindingSettings:
    """What is read of a component."""

    ignored: ClassVar[tuple[Setting, ...]] = ignored("messages are read and written with QoS 1", "qos", anyway=("1",))

    url: tuple[Server, bool] = setting(
        "url",
        "The server: `mqtt://user:password@host:port`, or `mqtts://…` with TLS; `tcp` and `ssl` mean the same.",
        Kind("URL of an MQTT server", _server),
        required=True,
        secret=True,
        example="mqtt://localhost:1883",
    )
    topic: str = setting(
        "topic",
        "The topic to read, with `+`, `#` or `$share/group/` as the server knows them, and to write to.",
        required=True,
        example="sensors/+/temperature",
    )
    consumer: str = setting(
        "consumerID",
        "Names the session; if not set, the app id and the component do, so that each application has a session.",
        default="",
        example="shop",
    )
    retain: bool = setting(
        "retain", "Whether the server keeps the last message of a topic for later subscribers.", BOOLEAN, default=False
    )
    clean: bool = setting(
        "cleanSession",
        "Whether the session ends with its connection; what comes meanwhile is lost.",
        BOOLEAN,
        default=False,
    )
    retries: int = setting(
        "backOffMaxRetries",
        "How often a message that was not taken is handed over again, before it waits for the next connection; "
        "-1 = until it is taken.",
        Kind("whole number, or -1", _retries),
        default=-1,
    )
    ca: str = setting("caCert", "Whom to trust, a PEM text or a path.", default="", example="ca.pem")
    certificate: str = setting(
        "clientCert", "The client's certificate, a PEM text or a path.", default="", example="client.pem"
    )
    key: str = setting("clientKey", "Its private key, a PEM text or a path.", VERBATIM, default="", secret=True)


class MQTTBinding(ComponentAdapter):
    """Topics of an MQTT server."""

    title = "Reads and writes topics of an MQTT server."
    tested = "Mosquitto 2.0"
    settings: ClassVar[type[MQTTBindingSettings]] = MQTTBindingSettings
    operations = ("create",)

    def __init__(self, settings: MQTTBindingSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._server, self._secure = settings.url
        self._opening = asyncio.Lock()
        self._places = asyncio.Semaphore(MAX_UNCONFIRMED)
        self._writer: Wire | None = None
        self._owners: Owners | None = None

    def share_by(self, owners: Owners, timers: StateStore) -> None:
        """Have the session at one host at a time."""
        self._owners = owners

    async def _enter(self) -> None:
        """Read certificates; the server is connected to when it is needed."""
        settings: MQTTBindingSettings = self._settings
        given = settings.ca, settings.certificate, settings.key
        if self._secure:
            try:
                self._server = replace(self._server, tls=await asyncio.to_thread(tls_of, *given))
            except ValueError as error:
                raise self._problem(str(error), "caCert" if settings.ca else "clientCert") from None
        elif any(given):
            raise self._problem("certificates need a url that begins with mqtts:// (or ssl://)", "url")
        self._stack.callback(self._leave)

    def _leave(self) -> None:
        if self._writer is not None:
            self._writer.leave()

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        place = f"MQTT at {self._server.shown}"
        try:
            yield
        except TimeoutError:
            raise BindingError(f"{place} does not answer in time: {what}", retryable=True) from None
        except (OSError, UnicodeError) as error:  # UnicodeError: no host can be called so.
            raise BindingError(f"{place}: {what}: {error}", retryable=True) from error

    # Out

    async def invoke(self, asked: Invoke) -> None:
        """Publish a message; with QoS 1 the server has it then."""
        settings: MQTTBindingSettings = self._settings
        metadata = asked.metadata
        topic = metadata.get("topic") or settings.topic
        if any(character in topic for character in "+#\0") or topic.startswith("$share/"):
            raise BindingError(f"the topic {topic} is one to read; metadata name one to write to as topic")
        try:
            retain = parse_bool(metadata["retain"], words=True) if "retain" in metadata else settings.retain
        except ValueError as error:
            raise BindingError(f"retain {error}") from None
        try:
            qos = parse_whole(metadata.get("qos", "1"), least=0, most=2)
        except ValueError as error:
            raise BindingError(f"qos {error}") from None
        async with self._places:
            with self._errors(f"nothing is published to {topic}"):
                wire = await self._writing()
                await wire.publish(topic, asked.data, retain=retain, confirmed=qos > 0)

    async def _writing(self) -> Wire:
        settings: MQTTBindingSettings = self._settings
        async with self._opening:
            if self._writer is None or self._writer.closed.done():
                name = f"{settings.consumer or 'mesh'}-producer-{secrets.token_hex(4)}"
                async with asyncio.timeout(CONNECT_SECONDS):
                    self._writer = await connect(self._server, name, lambda message: None, clean=True)
            return self._writer

    # In

    @asynccontextmanager
    async def reading(self, reading: Reading) -> AsyncIterator[None]:
        """Have the session while it is entered, in turn with others who read for the same application."""
        async with reading_by(lambda *events: self._read_in_turn(reading, *events), ENTER_SECONDS):
            yield

    async def _read_in_turn(self, reading: Reading, connected: asyncio.Event, stopping: asyncio.Event) -> None:
        settings: MQTTBindingSettings = self._settings
        # Of two that read for one application, each has its own: a session holds all that its client has subscribed to.
        client_id = f"{settings.consumer or f'{reading.app_id}-{reading.component}'}-consumer"

        async def work() -> None:
            while not stopping.is_set():
                await self._read(reading, client_id, connected, stopping)

        if self._owners is not None:
            try:
                await in_turn(self._owners, f"{reading.component}||{client_id}", work, stopping)
                return
            except RecordsMissingError as error:
                if connected.is_set():
                    raise
                logger.warning("binding %s: only one host may read it: %s", reading.component, error)
        await work()

    async def _read(self, reading: Reading, client_id: str, connected: asyncio.Event, stopping: asyncio.Event) -> None:
        settings: MQTTBindingSettings = self._settings
        waiting: asyncio.Queue[Message] = asyncio.Queue()  # Bounded: the connection is read no further.
        given_up = asyncio.Event()
        wires: list[Wire] = []

        def take(message: Message) -> None:
            waiting.put_nowait(message)
            if waiting.qsize() >= AT_ONCE and wires:
                wires[0].pause()

        with self._errors(f"{settings.topic} is not read"):
            try:
                async with asyncio.timeout(READ_SECONDS):
                    wire = await connect(self._server, client_id, take, clean=settings.clean)
                    wires.append(wire)
                async with task_group() as tasks:
                    pump = self._pump(reading, wire, waiting, stopping, given_up, tasks)
                    pumping = tasks.create_task(pump, name="mqtt-pump")
                    await wire.subscribe(settings.topic)  # What the session has kept may come before the answer.
                    watching = tasks.create_task(_fail_when_closed(wire), name="mqtt-watch")
                    connected.set()
                    await _ended(stopping, given_up)
                    pumping.cancel()
                    watching.cancel()
                wire.leave()
                await asyncio.wait([wire.closed], timeout=LEAVE_SECONDS)
            except BaseException:
                connected.clear()
                raise
            finally:
                for each in wires:
                    each.abort("given up")

    async def _pump(
        self,
        reading: Reading,
        wire: Wire,
        waiting: asyncio.Queue[Message],
        stopping: asyncio.Event,
        given_up: asyncio.Event,
        tasks: asyncio.TaskGroup,
    ) -> None:
        """Hand messages over, several at once."""
        places = asyncio.Semaphore(AT_ONCE)
        retries = self._settings.retries

        async def hand(message: Message) -> None:
            try:
                event = BindingEvent(message.data, {"topic": message.topic})
                waits = growing(FIRST_WAIT, LONGEST_WAIT, None if retries < 0 else retries)
                if not await handed(reading, event, stopping, waits):
                    given_up.set()
                elif message.number:
                    wire.acknowledge(message.number)
            finally:
                places.release()

        while True:
            message = await waiting.get()
            if waiting.qsize() < AT_ONCE // 2:
                wire.resume()
            await places.acquire()
            tasks.create_task(hand(message), name="mqtt-hand")


async def _ended(stopping: asyncio.Event, given_up: asyncio.Event) -> None:
    """Wait for the end, and not for much longer once a message was given up.

    The server hands it over again to the next connection only; until then it takes one of the few places there are for
    what is not acknowledged.
    """
    async with task_group() as tasks:
        ends = [tasks.create_task(each.wait(), name="mqtt-end") for each in (stopping, given_up)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for each in ends:
            each.cancel()
    await stopped_within(stopping, AGAIN_SECONDS)


async def _fail_when_closed(wire: Wire) -> None:
    await asyncio.wait([wire.closed])
    raise BindingError(f"the connection to the MQTT server was lost: {wire.closed.result()}", retryable=True)
