"""The public class: a node beside a FastStream broker."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self, cast

from faststream import BaseMiddleware, ContextRepo, PublishCommand, StreamMessage

from brokers.faststream._application import FastStreamApplication
from brokers.faststream._cloudevents import is_cloudevent
from brokers.faststream._message import (
    ATTRIBUTES,
    EVENT_PREFIX,
    Answered,
    MeshMessage,
    as_event,
    decoder_of,
    encode,
    parse,
    structured,
)
from mesh.address import decode_token, encode_token
from mesh.blocks.envelope import PublishOptions
from mesh.blocks.invocation import INVOKE, Answer, Call
from mesh.blocks.topics import PUBLISH, Publish
from mesh.errors import ComponentError, ConfigError, FeatureNotSupportedError, MeshError
from mesh.event import is_structured
from mesh.home import mesh_home, single_host
from mesh.node.runtime import NodeSettings, Runtime
from mesh.operation import Context, Operation
from mesh.registry import PUBSUB_ON_BACKBONE, Registry
from mesh.resources.component import Component
from mesh.resources.subscription import Subscription
from mesh.tasks import task_group
from mesh.telemetry import BAGGAGE

__all__ = ["Mesh"]

logger = logging.getLogger("brokers.faststream")

SCHEMES = {"nats": "nats", "rabbit": "amqp", "kafka": "kafka", "redis": "redis"}
PARTITION_KEY = EVENT_PREFIX + "partitionkey"
DEFAULT_CALL_SECONDS = 60.0


class FastStreamBroker(Protocol):
    """What we use of a FastStream broker; each of its classes has signatures of its own."""

    running: bool
    specification: Any
    context: Any
    subscriber: Callable[..., Any]
    publisher: Callable[..., Any]
    publish: Callable[..., Awaitable[Any]]
    add_middleware: Callable[..., None]


class Mesh:
    """Lets a FastStream application take part in a mesh under an app id.

    Give `lifespan` to the application, or enter it around a broker that has started.
    """

    def __init__(
        self,
        broker: Any,
        *,
        app_id: str,
        backbone: str | None = None,
        namespace: str = "default",
        pubsub: str = "pubsub",
        resources: Sequence[str | Path] = (),
        max_body_bytes: int = 4 * 1024 * 1024,
        graceful_timeout: float = 5.0,
    ) -> None:
        """Prepare; nothing connects.

        Args:
            broker: A FastStream broker of NATS, RabbitMQ, Kafka (aiokafka) or Redis.
            app_id: The application's name; its instances, and gateways of the same id, compete.
            backbone: URL of the mesh's backbone; None for the server of ``broker``, when that needs no password.
            namespace: The mesh's namespace.
            pubsub: The pub/sub component where none is named.
            resources: Files and folders of components and policies; none = ``pubsub`` on the backbone.
            max_body_bytes: Largest body of a call.
            graceful_timeout: Seconds at the end for what is in flight.

        Raises:
            ConfigError: The app id is none, or the resources have problems.
            FeatureNotSupportedError: The broker is none of these.
        """
        if not app_id or "." in app_id:
            raise ConfigError(f"app_id must not be empty or hold dots: {app_id!r}")
        self._kind = _kind(broker)
        self._broker: FastStreamBroker = broker
        self._pubsub = pubsub
        self._graceful_timeout = graceful_timeout
        self._settings = _settings(app_id, namespace, backbone or _url(broker, self._kind), pubsub, resources)
        self._application = FastStreamApplication(max_body_bytes)
        self._subscriptions: list[Subscription] = []
        self._prefix = f"mesh/{_token(namespace)}/"
        self._runtime: Runtime | None = None
        self._stopping = asyncio.Event()
        self._left = asyncio.Event()
        self._apps: list[object] = []
        self._entered: AsyncExitStack | None = None
        broker.add_middleware(partial(_Publishing, mesh=self))

    # What FastStream is given

    def address(self, topic: str, *, pubsub: str | None = None) -> str:
        """Give the name of a topic on FastStream's broker, as tests and AsyncAPI see it."""
        return f"{self._prefix}{_token(pubsub or self._pubsub)}/{'.'.join(map(_token, topic.split('.')))}"

    def method_address(self, name: str) -> str:
        """Give the name of a method on FastStream's broker."""
        tokens = ".".join(map(_token, name.strip("/").split("/")))
        return f"{self._prefix}app/{_token(self._settings.app_id)}/{tokens}"

    def subscriber(
        self,
        topic: str,
        *,
        pubsub: str | None = None,
        dead_letter: str | None = None,
        ordered: bool = False,
        max_in_flight: int = 64,
        metadata: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Any:
        """Subscribe to a topic; use it as FastStream's ``@broker.subscriber(...)``.

        A handler whose body is a class of the package ``cloudevents`` gets the event, any other its data.

        Args:
            topic: May hold wildcards where the backbone has them.
            pubsub: The component.
            dead_letter: The topic for what fails for good; None = it is retried for as long as it is stored.
            ordered: Events of equal key come one after another.
            max_in_flight: Most events handled at once by this instance.
            metadata: What else a subscription's metadata may say, as ``rawPayload``.
            **options: Passed to FastStream (``title``, ``description``, ``dependencies``…).
        """
        component = pubsub or self._pubsub
        path = self.address(topic, pubsub=component)
        if path in self._application.topics:
            raise ConfigError(f"topic {component}/{topic} is subscribed to already")
        said = {"maxInFlight": str(max_in_flight), "ordered": str(ordered).lower(), **(metadata or {})}
        self._subscriptions.append(
            Subscription(
                "",
                component,
                topic,
                default_path=path,
                metadata=said,
                dead_letter_topic=dead_letter,
                origin="PROGRAMMATIC",
            )
        )
        made = self._application.topics[path] = self._subscriber(path, options)
        return made

    def method(self, name: str, *, verb: str = "", **options: Any) -> Any:
        """Answer calls of a method; use it as FastStream's ``@broker.subscriber(...)``.

        Args:
            name: The path that callers use, as in ``/v1.0/invoke/<app id>/method/<name>``.
            verb: One HTTP method; empty for any.
            **options: Passed to FastStream.
        """
        key = (verb.upper(), name.strip("/"))
        if key in self._application.methods:
            raise ConfigError(f"method {name} is served already")
        address = self.method_address(name) + (f"/{verb.upper()}" if verb else "")
        made = self._application.methods[key] = self._subscriber(address, options)
        return made

    def _subscriber(self, address: str, options: dict[str, Any]) -> Any:
        options = {"parser": parse, "decoder": decoder_of(lambda: made), **options}
        where: dict[str, Any] = {}
        if self._kind == "kafka":  # A pattern that no topic's name can match: a name would make the topic.
            where["pattern"] = re.escape(address)
        elif self._kind == "rabbit":
            from faststream.rabbit import RabbitQueue

            where["queue"] = RabbitQueue(address, durable=True, auto_delete=True)
        made = self._broker.subscriber(*(() if where else (address,)), **where, **options)
        return made

    def publisher(
        self,
        topic: str,
        *,
        pubsub: str | None = None,
        type: str | None = None,
        **options: Any,
    ) -> Any:
        """Publish to a topic; use it as FastStream's ``@broker.publisher(...)``, or its ``publish``.

        Args:
            topic: Where to.
            pubsub: The component.
            type: The events' type.
            **options: Passed to FastStream.
        """
        headers = {} if type is None else {EVENT_PREFIX + "type": type}
        return self._broker.publisher(self.address(topic, pubsub=pubsub), headers=headers, **options)

    # What the mesh is asked

    async def publish(
        self,
        data: object,
        topic: str,
        *,
        pubsub: str | None = None,
        key: str | None = None,
        ttl: float | None = None,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        **attributes: str | None,
    ) -> None:
        """Publish an event; return once the backbone has confirmed that it is stored.

        Through a broken connection it waits for the next one, 30 s at the most.

        Args:
            data: Bytes and text go as they are, an event of the package ``cloudevents`` as the event that it is,
                models and all else as JSON.
            topic: Where to.
            pubsub: The component.
            key: Events of equal key keep their order for ordered subscriptions.
            ttl: Seconds until it is not delivered any more; None for never.
            content_type: Of ``data``; None = by its Python type.
            metadata: What else a publish says, as ``rawPayload``, and what the component's broker is told.
            **attributes: ``type``, ``id``, ``source``, ``subject`` of the event.

        Raises:
            ConfigError: There is no such component, or an attribute is unknown, or given beside an event.
            BrokerError: It was not stored.
            EventError: ``data`` is an event that is not valid.
        """
        unknown = attributes.keys() - set(ATTRIBUTES)
        if unknown:
            raise ConfigError(f"no attribute of an event can be set by {', '.join(sorted(unknown))}")
        if is_cloudevent(data) and (content_type is not None or any(attributes.values())):
            raise ConfigError("a CloudEvent has its attributes itself: give none beside it")
        if self._runtime is None:
            given = {EVENT_PREFIX + name: value for name, value in attributes.items() if value is not None}
            given |= {} if key is None else {PARTITION_KEY: key}
            given |= {} if content_type is None else {EVENT_PREFIX + "datacontenttype": content_type}
            await self._broker.publish(data, self.address(topic, pubsub=pubsub), headers=given)
            return
        said = {f"cloudevent.{name}": value for name, value in attributes.items() if value is not None}
        said |= metadata or {}
        if ttl is not None:
            said["ttlInSeconds"] = f"{ttl}s"
        if key is not None:
            said["partitionKey"] = key
        body, media = encode(data)
        context = Context(self._runtime.caller, None, *self._trace())
        asked = Publish(topic, body, content_type or media, said)
        try:
            await self._runtime.run(Operation(PUBLISH, pubsub or self._pubsub, asked, context))
        except ComponentError as error:
            raise ConfigError(f"there is no pub/sub component {pubsub or self._pubsub!r}") from error

    async def invoke(
        self,
        app_id: str,
        method: str,
        data: object = None,
        *,
        verb: str = "POST",
        headers: Mapping[str, str] | None = None,
        timeout: float = DEFAULT_CALL_SECONDS,  # noqa: ASYNC109 - it travels with the call, as its deadline
    ) -> Answered:
        """Call another application.

        Args:
            app_id: ``id``, or ``id.namespace``.
            method: Path and query below it.
            data: As for `publish`; None sends nothing.
            verb: The HTTP method.
            headers: Further ones; without a ``traceparent`` the call belongs to the trace of what is handled now.
            timeout: Seconds.

        Raises:
            NoResponderError: It is not on the mesh.
            DeadlineExceededError: No answer in time.
            MeshError: It could not be called, or this node is not entered.
        """
        if self._runtime is None:
            raise MeshError("not on the mesh: give lifespan=mesh.lifespan to FastStream, or enter it")
        sent = dict(headers or {})
        if not any(name.lower() == "traceparent" for name in sent):
            current = zip(("traceparent", "tracestate", BAGGAGE), self._trace(), strict=True)
            given = {name.lower() for name in sent}
            sent |= {name: value for name, value in current if value and name not in given}
        body = b""
        if data is not None:
            body, media = encode(data)
            sent.setdefault("Content-Type", media)
        in_parts = len(body) > self._runtime.exchange.part_bytes
        call = Call(verb, "/" + method.lstrip("/"), list(sent.items()), _once(body) if in_parts else body)
        context = Context(self._runtime.caller, time.time() + timeout)
        async with cast("Answer", await self._runtime.run(Operation(INVOKE, app_id, call, context))) as answer:
            whole = answer.body
            if whole is None:
                whole = b"".join([part async for part in answer.parts()])
            return Answered(answer.status, {name.lower(): value for name, value in answer.headers}, whole)

    def _trace(self) -> tuple[str | None, str, str]:
        """Give the trace context of what is handled now."""
        current = self._broker.context.get("message")
        fields = current.headers if isinstance(current, MeshMessage) else {}
        return fields.get("traceparent"), fields.get("tracestate", ""), fields.get(BAGGAGE, "")

    # Lifetime

    @asynccontextmanager
    async def lifespan(self, context: ContextRepo) -> AsyncIterator[None]:
        """Be the lifespan of a FastStream application."""
        app = context.get("app")
        if app not in self._apps:
            self._apps.append(app)
            app.after_startup(self._begin)
            app.on_shutdown(self._end)
        async with self._node():
            yield

    async def __aenter__(self) -> Self:
        """Take part, beside a broker that has started."""
        if not self._broker.running:
            raise ConfigError("start the broker first, or give lifespan=mesh.lifespan to FastStream")
        self._entered = AsyncExitStack()
        await self._entered.enter_async_context(self._node())
        self._begin()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Finish what is in flight, and leave."""
        if self._entered is not None:
            await self._entered.aclose()

    @asynccontextmanager
    async def _node(self) -> AsyncIterator[None]:
        self._stopping.clear()
        self._left.clear()
        self._application.started.clear()
        async with Runtime(self._settings, Registry()) as runtime, task_group() as tasks:
            self._runtime = runtime
            runtime.methods = sorted(f"{verb} {path}".strip() for verb, path in self._application.methods)
            tasks.create_task(self._take_part(runtime), name="faststream-mesh")
            try:
                yield
            finally:
                await self._end()
                self._runtime = None

    async def _take_part(self, runtime: Runtime) -> None:
        """Serve and subscribe until told to end, then let what is in flight finish in time."""
        try:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(runtime.inbound(self._application, self._wanted))
                await self._stopping.wait()
                try:
                    async with asyncio.timeout(self._graceful_timeout):
                        await stack.aclose()
                except TimeoutError:
                    logger.warning("released what had not finished within %g s", self._graceful_timeout)
        finally:
            self._left.set()

    async def _wanted(self) -> Sequence[Subscription]:
        return self._subscriptions

    def _begin(self) -> None:
        """Take deliveries: FastStream has started."""
        self._application.started.set()

    async def _end(self) -> None:
        """Take no more, and return when nothing is in flight; FastStream's broker still works."""
        self._stopping.set()
        await self._left.wait()

    # Publishing by FastStream's own means

    def _topic_of(self, destination: str) -> tuple[str, str] | None:
        """Read component and topic back from an address; None when it is none of a topic."""
        if not destination.startswith(self._prefix):
            return None
        component, slash, topic = destination[len(self._prefix) :].partition("/")
        if not slash or "/" in topic:
            return None
        return _text(component), ".".join(map(_text, topic.split(".")))

    async def _publish(self, call_next: Callable[[PublishCommand], Awaitable[Any]], command: PublishCommand) -> object:
        where = self._topic_of(command.destination)
        if where is None:
            return await call_next(command)
        component, topic = where
        given = command.headers
        if self._runtime is None:  # FastStream's TestBroker: the event goes to its subscribers.
            as_event(command, PublishOptions(self._settings.app_id, component, topic))
            return await call_next(command)
        key = given.get(PARTITION_KEY, getattr(command, "key", None))
        media = given.get("content-type")
        whole = media if is_structured(media) else None
        own = {name: given[EVENT_PREFIX + name] for name in ATTRIBUTES if EVENT_PREFIX + name in given}
        for body in (command.body, *getattr(command, "extra_bodies", ())):  # Several for publish_batch.
            await self.publish(
                body,
                topic,
                pubsub=component,
                key=key.decode() if isinstance(key, bytes) else key,
                content_type=whole,
                **({} if whole or is_cloudevent(body) else own),
            )
        return None


class _Publishing(BaseMiddleware):
    """Hands over to the mesh what is published to its topics, and writes events that handlers return."""

    def __init__(self, msg: object, /, *, context: Any, mesh: Mesh) -> None:
        super().__init__(msg, context=context)
        self._mesh = mesh

    async def consume_scope(self, call_next: Callable[[Any], Awaitable[Any]], msg: StreamMessage[Any]) -> Any:
        """Handle."""
        return structured(await call_next(msg))

    async def publish_scope(self, call_next: Callable[[PublishCommand], Awaitable[Any]], cmd: PublishCommand) -> Any:
        """Publish."""
        return await self._mesh._publish(call_next, cmd)


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _token(text: str) -> str:
    """Encode as `mesh.address` does, in characters that AMQP clients take in a queue's name."""
    return encode_token(text).replace("=", ":")


def _text(token: str) -> str:
    return decode_token(token.replace(":", "="))


def _kind(broker: object) -> str:
    for each in type(broker).__mro__:
        package, _, rest = each.__module__.partition(".")
        kind = rest.partition(".")[0]
        if package == "faststream" and kind in SCHEMES:
            return kind
    raise FeatureNotSupportedError(
        f"{type(broker).__module__}.{type(broker).__qualname__}",
        f"the mesh; use a FastStream broker of {', '.join(SCHEMES)}",
    )


def _url(broker: FastStreamBroker, kind: str) -> str:
    """Give the backbone's URL from the broker's servers, of which FastStream tells all but the credentials."""
    servers = [str(server) for server in broker.specification.url]
    return ",".join(server if "://" in server else f"{SCHEMES[kind]}://{server}" for server in servers)


def _settings(app_id: str, namespace: str, backbone: str, pubsub: str, resources: Sequence[str | Path]) -> NodeSettings:
    """Read resources; declared subscriptions name HTTP paths, so they are not for us."""
    components = (Component(pubsub, PUBSUB_ON_BACKBONE),)
    home, here = mesh_home(os.environ), single_host(os.environ)
    settings = NodeSettings(app_id, namespace, backbone, components=components, home=home, single_host=here)
    if not resources:
        return settings
    from mesh.resources.loader import load_resources

    loaded = load_resources([Path(each) for each in resources], namespace=namespace, app_id=app_id)
    for warning in loaded.warnings:
        logger.warning("%s", warning)
    return replace(settings, components=loaded.components or components, resiliencies=loaded.resiliencies)
