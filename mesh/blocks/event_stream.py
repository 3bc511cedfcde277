"""Events for whoever holds a stream open: it is handed one after the other, and answers each by its id.

To a subscription it is an application like any other, which is there for as long as the stream is. What carries the
stream writes what ``outgoing`` gives, says what comes back to ``processed``, and when it is over to ``end``. It alone
writes, so that nothing is cut off in the middle when an attempt's time is over.

An id names an event. Of two in flight that have the same one, as an application's own ids may be, the second waits
until the first is answered: an answer never counts for another event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mesh.application import AppResponse, BindingAnswer, Headers, Kind
from mesh.blocks.proofs import PROVEN_BY
from mesh.errors import AppFailedError, AppUnreachableError, BadArgumentError
from mesh.operation import Method
from mesh.resources.subscription import Subscription, unknown_metadata

__all__ = ["SUBSCRIBE_STREAM", "EventStream", "SubscribeStream"]

logger = logging.getLogger(__name__)

PATH = "/"


@dataclass(eq=False, slots=True)
class _Entry:
    event: Any
    answer: asyncio.Future[bytes]
    sent: bool = False


class EventStream:
    """An application that is a stream (``mesh/application.py``).

    Attributes:
        begun: Set once its subscription is there.
        ended: Set when nobody holds it open any more.
        takes_grpc: It is not called.
        is_grpc: Likewise.
        kinds: Single events.
    """

    takes_grpc = False
    is_grpc = False
    kinds = frozenset[Kind](("event",))

    def __init__(self, render: Callable[[str, bytes, str | None], tuple[str, Any]]) -> None:
        """Begin.

        Args:
            render: Makes of a path, an event, and who has proven to publish it (None = nobody asks for that), what is
                written, and gives its id besides; raises ``EventError``.
        """
        self.begun, self.ended = asyncio.Event(), asyncio.Event()
        self._render = render
        self._waiting: dict[_Entry, None] = {}
        self._pending: dict[str, _Entry] = {}
        self._wake = asyncio.Event()
        self._told = False

    # Towards whoever holds it open

    async def outgoing(self) -> AsyncIterator[Any]:
        """Iterate over what is to be written, until the stream ends."""
        while not self.ended.is_set():
            while self._waiting:
                entry = next(iter(self._waiting))
                del self._waiting[entry]
                entry.sent = True
                yield entry.event
            self._wake.clear()
            if not self.ended.is_set():
                await self._wake.wait()

    def processed(self, identity: str, answer: bytes) -> None:
        """Take the answer to an event, as an application gives it.

        One to an event that is not there is no mistake of anybody's: the time of the attempt may have been over.
        """
        entry = self._pending.get(identity)
        if entry is None or not entry.sent:
            if not self._told:
                self._told = True
                logger.warning(
                    "a stream answered the event %.100r, which it does not have, and perhaps others", identity
                )
            return
        del self._pending[identity]
        if not entry.answer.done():
            entry.answer.set_result(answer)

    def end(self) -> None:
        """Hand out nothing more; what is not answered comes again."""
        self.ended.set()
        self._wake.set()
        for entry in self._pending.values():
            if not entry.answer.done():
                text = "the stream has ended"
                entry.answer.set_exception(AppFailedError(text) if entry.sent else AppUnreachableError(text))
        self._pending.clear()
        self._waiting.clear()

    # As an application

    async def post(self, path: str, headers: Headers, body: bytes, kind: str = "event") -> tuple[int, bytes]:
        """Hand over an event, and give what is answered.

        Raises:
            AppUnreachableError: The stream ended before it was handed over.
            AppFailedError: It ended before the answer.
            EventError: It cannot be written.
        """
        proven = next((value for name, value in headers if name == PROVEN_BY), None)
        identity, event = self._render(path, body, proven)
        while (before := self._pending.get(identity)) is not None:
            await asyncio.wait([before.answer])
        if self.ended.is_set():
            raise AppUnreachableError("the stream has ended")
        entry = self._pending[identity] = _Entry(event, asyncio.get_running_loop().create_future())
        self._waiting[entry] = None
        self._wake.set()
        try:
            return 200, await entry.answer
        finally:
            self._waiting.pop(entry, None)
            if self._pending.get(identity) is entry:
                del self._pending[identity]

    async def trigger(self, name: str, path: str, headers: Headers, body: bytes) -> tuple[int, BindingAnswer]:
        """Take no events of bindings."""
        return 404, BindingAnswer()

    async def wants(self, name: str, path: str) -> bool:
        """Want nothing of bindings."""
        return False

    async def until_reachable(self) -> None:
        """Do not wait: a stream that has ended is not back.

        Raises:
            CancelledError: Always. So the broker is handed back what was never handed over, and counts no attempt.
        """
        raise asyncio.CancelledError

    async def until_unreachable(self) -> None:
        """Wait until it has ended."""
        await self.ended.wait()

    def call(
        self, method: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> AbstractAsyncContextManager[AppResponse]:
        """Refuse: a stream takes events alone.

        Raises:
            AppUnreachableError: Always.
        """
        raise AppUnreachableError("a stream takes no calls")


@dataclass(frozen=True, slots=True)
class SubscribeStream:
    """Hand a topic's events to a stream until that ends.

    Attributes:
        topic: As for any subscription.
        stream: Who takes them.
        metadata: Of a subscription.
        dead_letter_topic: None = none.
    """

    topic: str
    stream: EventStream
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    dead_letter_topic: str | None = None

    def subscription(self, pubsub: str) -> Subscription:
        """Make the subscription to a topic of a component.

        Raises:
            BadArgumentError: A name in the metadata looks like a known one.
        """
        near, others = unknown_metadata(self.metadata, stream=True)
        if near:
            raise BadArgumentError("; ".join(message for _, message in near))
        for _, message in others:
            logger.warning("a stream's subscription to '%s' on '%s': %s", self.topic, pubsub, message)
        return Subscription(
            name="",
            pubsub=pubsub,
            topic=self.topic,
            default_path=PATH,
            metadata=MappingProxyType(dict(self.metadata)),
            dead_letter_topic=self.dead_letter_topic or None,
            origin="STREAMING",
        )


# The topic's policies are those of the way to the application; what may be tried again is up to the stream's client.
SUBSCRIBE_STREAM = Method("pubsub", "subscribe_stream", SubscribeStream, seconds=float("inf"), guarded=False)
