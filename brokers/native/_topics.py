"""What adapters of the native layout have in common: they take, and hand over; and keep nothing in their own words."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

from brokers.shared.handling import run_handler
from brokers.shared.limits import publish_each
from mesh.adapter import ComponentAdapter
from mesh.address import Address
from mesh.broker import Delivery, Handler, Message, SubscribeOptions, Topology
from mesh.errors import BrokerError
from mesh.features import not_in_layout
from mesh.frameless import Frameless
from mesh.resources.settings import choice, setting
from mesh.tasks import only_error, task_group

__all__ = ["Delays", "NativeSettings", "NativeTopics", "Source", "Taken"]

STOP_SECONDS = 5.0
MAX_DELAYED = 1000


@dataclass(frozen=True)  # Without slots, so that a model may also have another parent, with its own.
class NativeSettings:
    """What every component of this layout is told; one whose type has others as well declares ``layout`` anew."""

    layout: str = setting(
        "layout", "`native`: topics as every other program on the broker has them.", choice("native"), default="native"
    )
    cloudevents: str = setting(
        "cloudevents",
        "How events are written if their publisher says nothing of it: `structured`, as one JSON object; `binary`, "
        "their attributes in headers; `raw`, nothing but their data.",
        choice("structured", "binary", "raw"),
        default="structured",
    )


@dataclass(slots=True)  # One is made for each delivery: a frozen one takes twice as long.
class Taken:
    """One delivery.

    Attributes:
        delivery: What the handler gets.
        release: Hands it back as one that was never tried, as far as the broker can; cheap, and does not raise.
    """

    delivery: Delivery
    release: Callable[[], Awaitable[None]]


class Source(Protocol):
    """What one member of a group takes from."""

    async def take(self, room: int) -> Sequence[Taken]:
        """Wait for deliveries, at most so many; nothing only after `stop`.

        Raises:
            BrokerError: It cannot go on. What passes, such as a lost connection, is waited out here.
        """

    async def stop(self) -> None:
        """Ask for no more, and have ``take`` return soon; what it has is settled afterwards."""


class NativeTopics(Frameless, ComponentAdapter):
    """A component on a user's broker.

    Attributes:
        layouts: The adapters of the same type's other layouts, ``module:Class`` by their names.
        told_group: Whether ``consumerID`` is given where it is not set.
        group_settings: Those that name the consumer group; the first that is set counts.
    """

    layouts: ClassVar[Mapping[str, str]] = {}
    group_settings: ClassVar[tuple[str, ...]] = ("consumerID",)
    settings: ClassVar[type[Any]] = NativeSettings

    def __init__(self, settings: Any) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self.features = replace(self.features, both_layouts=bool(self.layouts))
        self.inbox = ""

    async def declare(self, topology: Topology) -> None:
        """Nothing: what is there is left as it is, and what is not is made when it is needed first."""

    async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
        """Store several: sent in order, confirmed as the server gets to them."""
        return await publish_each(self.publish, address, messages)

    @abstractmethod
    async def publish(self, address: Address, message: Message) -> None:
        """Store a message in the topic ``address.label``; return after the broker's own confirmation."""

    @abstractmethod
    def _joined(self, address: Address, options: SubscribeOptions) -> AbstractAsyncContextManager[Source]:
        """Take part in a group; entered, it is active on the broker. Left, everything it handed out is settled."""

    def _limit(self, options: SubscribeOptions) -> int:
        """Give the most deliveries at once."""
        return options.max_in_flight

    def _check(self, address: Address, options: SubscribeOptions) -> None:
        """Refuse what this layout lacks.

        Raises:
            FeatureNotSupportedError: It does.
        """
        features = self.features
        if options.ordered and not features.ordering:
            raise not_in_layout(features, "ordered subscriptions", "ordering")
        if options.ephemeral and not features.ephemeral:
            raise not_in_layout(features, "subscriptions that end with their instance", "ephemeral")
        written = not features.own_wildcards and not {"*", ">"}.isdisjoint(address.label.split("."))
        if not features.wildcard and (address.is_pattern or written):
            raise not_in_layout(features, f"the pattern {address.label!r}", "wildcard")

    @asynccontextmanager
    async def subscribe(self, address: Address, options: SubscribeOptions, handler: Handler) -> AsyncIterator[None]:
        """Take messages for a group; see ``Broker.subscribe``."""
        self._check(address, options)
        async with self._joined(address, options) as source, task_group() as handling:
            hands = _Hands(handler, self._limit(options), handling)
            async with task_group() as fetching:
                fetch = fetching.create_task(hands.fetch(source), name="native-fetch")
                try:
                    yield
                finally:
                    hands.stopping = True
                    await source.stop()
                    await asyncio.wait([fetch], timeout=STOP_SECONDS)
                    fetch.cancel()


class _Hands:
    """Runs a handler on deliveries, at most so many at once."""

    def __init__(self, handler: Handler, limit: int, tasks: asyncio.TaskGroup) -> None:
        self._handler, self._limit, self._tasks = handler, limit, tasks
        self._busy = 0
        self._freed = asyncio.Event()
        self.stopping = False

    async def fetch(self, source: Source) -> None:
        """Take and hand over until told to stop."""
        while not self.stopping:
            while self._busy >= self._limit and not self.stopping:
                self._freed.clear()
                await self._freed.wait()
            for taken in await source.take(max(1, self._limit - self._busy)):
                if self.stopping:
                    await taken.release()
                    continue
                self._busy += 1
                self._tasks.create_task(self._hand(taken), name="native-handle")

    async def _hand(self, taken: Taken) -> None:
        try:
            await run_handler(self._handler, taken.delivery, taken.release)
        finally:
            self._busy -= 1
            self._freed.set()


class Delays:
    """What is due later, for brokers that cannot delay a delivery: the member keeps it meanwhile.

    Left, all of it is done at once.
    """

    def __init__(self, most: int = MAX_DELAYED) -> None:
        """Keep at most so many; whoever comes with one more waits."""
        self._places = asyncio.Semaphore(most)
        self._ending = asyncio.Event()
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        """Begin."""
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        """Do what is left, and wait for it."""
        self._ending.set()
        with only_error():
            await self._tasks.__aexit__(*exc_info)

    async def after(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        """Have something done later; it must not raise."""
        await self._places.acquire()
        self._tasks.create_task(self._do(seconds, work), name="native-delay")

    async def _do(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._ending.wait()
            await work()
        finally:
            self._places.release()
