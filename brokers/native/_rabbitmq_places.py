"""Exchanges and queues: made as everybody makes them, or used as they are.

Each is declared, which makes it or says what is different: that is taken over unless events would go astray, so nothing
that exists is changed. What is refused ends a channel, so each declaration has one of its own.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from aio_pika.abc import AbstractChannel, AbstractQueue

from brokers.native._rabbitmq_client import Client
from brokers.native._rabbitmq_settings import Asked, RabbitMQNativeSettings, lengths
from brokers.rabbitmq._refusals import RefusedError
from mesh.broker import SubscribeOptions
from mesh.errors import FeatureNotSupportedError, TopologyMismatchError

__all__ = ["ACCESS_REFUSED", "NOT_FOUND", "Places", "check_name", "waiting"]

logger = logging.getLogger("brokers.rabbitmq")

Value = str | int | bool

ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED = 403, 404, 406
MOST_DIFFERENCES = 12
MOST_TIMES = 3
MAX_WARNED = 1000
# With another kind, or without these, events would not come, or be lost, or come out of order.
NEEDED = frozenset({"type", "x-dead-letter-exchange", "x-single-active-consumer"})
STREAM = ("x-queue-type", "stream")  # Its consumers begin where they say, and settle nothing.
# What a queue that is there may lose, by the argument that says so.
LOSSES = {
    "auto_delete": "ends with its last consumer, as does what is in it",
    "durable": "ends with the server, as does what is in it",
    "x-expires": "ends when nobody consumes for {} ms, as does what is in it",
    "x-max-length": "drops what is more than {} messages",
    "x-max-length-bytes": "drops what is more than {} bytes",
    "x-message-ttl": "drops what waits for longer than {} ms",
}
_DIFFERS = re.compile(r"inequivalent arg '([^']+)' for .*: received (.+) but current is (.+)\Z", re.DOTALL)
_VALUE = re.compile(r"(?:the value )?'(.*)'(?: of type '\w+')?\Z", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9_.:@#,/+ -]{1,127}\Z")  # What the client library lets pass.


def check_name(name: str) -> None:
    """Refuse a name that no exchange or queue can have.

    Raises:
        FeatureNotSupportedError: It is one.
    """
    if _NAME.match(name) is None:
        raise FeatureNotSupportedError(
            "rabbitmq", f"the name {name[:140]!r}: one has up to 127 letters, digits, blanks and any of _.:@#,/+-"
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """An exchange or a queue.

    Attributes:
        name: Its name.
        durable: Whether it outlives the server.
        auto_delete: Whether it ends with its last user.
        kind: An exchange's; empty = it is a queue.
        arguments: The others.
    """

    name: str
    durable: bool
    auto_delete: bool
    kind: str = ""
    arguments: Mapping[str, Value] = field(default_factory=dict)

    async def declare(self, channel: AbstractChannel, *, passive: bool = False) -> None:
        arguments = dict(self.arguments) or None
        if self.kind:
            await channel.declare_exchange(
                self.name,
                self.kind,
                durable=self.durable,
                auto_delete=self.auto_delete,
                passive=passive,
                arguments=arguments,  # type: ignore[arg-type]  # a dictionary is invariant
            )
        else:
            await channel.declare_queue(
                self.name,
                durable=self.durable,
                auto_delete=self.auto_delete,
                passive=passive,
                arguments=arguments,  # type: ignore[arg-type]  # a dictionary is invariant
            )

    def like(self, argument: str, current: str) -> _Place:
        """Give it as it is on the server, in one respect."""
        text = _plain(current)
        if argument == "durable":
            return replace(self, durable=text == "true")
        if argument == "auto_delete":
            return replace(self, auto_delete=text == "true")
        others = {name: value for name, value in self.arguments.items() if name != argument}
        if text is not None:
            others[argument] = int(text) if text.isdigit() else text
        return replace(self, arguments=others)


class Places:
    """Makes what a component needs on its server."""

    def __init__(self, settings: RabbitMQNativeSettings) -> None:
        """Prepare."""
        self._settings = settings
        self._warned: set[tuple[str, str]] = set()

    async def exchange(self, client: Client, topic: str) -> None:
        """See that a topic's exchange is there.

        Raises:
            TopologyMismatchError: There is one of another kind.
            RefusedError: It may not be made.
        """
        settings = self._settings
        await self._ensure(client, _Place(topic, settings.durable, self._unused, settings.kind))

    @property
    def _unused(self) -> bool:
        """Whether an exchange goes with its last queue."""
        return self._settings.deleted is not False

    async def subscription(self, client: Client, topic: str, asked: Asked, options: SubscribeOptions) -> None:
        """See that a subscription's queue is there, and bound; and what takes its dead letters.

        Raises:
            TopologyMismatchError: Something is there that would not do.
            RefusedError: It may not be made.
        """
        for left in reversed(range(MOST_TIMES)):
            try:
                await self._subscription(client, topic, asked, options)
            except RefusedError as error:
                if error.reply_code != NOT_FOUND or not left:
                    raise
                # An exchange ended, with its last queue, before ours was bound.
            else:
                return

    async def _subscription(self, client: Client, topic: str, asked: Asked, options: SubscribeOptions) -> None:
        settings = self._settings
        await self.exchange(client, topic)
        if options.dead_letters is not None:  # Nobody may have subscribed to them yet.
            letters = options.dead_letters.label
            await self.exchange(client, letters)
            await self._group(client, letters, Asked.read(letters, SubscribeOptions(options.group), settings))
        await self._group(client, topic, asked)

    async def _group(self, client: Client, topic: str, asked: Asked) -> None:
        """See that a group's queue is there, and bound, and what takes that which it rejects."""
        settings = self._settings
        if settings.dead_letter:
            dlx, dlq = f"dlx-{asked.queue}", f"dlq-{asked.queue}"
            await self._ensure(client, _Place(dlx, True, self._unused, "fanout"))
            lazy: dict[str, Value] = {**lengths(settings), "x-queue-mode": "lazy"}
            await self._queue(client, dlq, dlx, ("",), lazy, durable=True)
        await self._queue(client, asked.queue, topic, asked.keys, self._arguments(asked))

    def _arguments(self, asked: Asked) -> dict[str, Value]:
        letters = {"x-dead-letter-exchange": f"dlx-{asked.queue}"} if self._settings.dead_letter else {}
        return {**asked.arguments, **letters}

    async def queue(self, client: Client, asked: Asked) -> tuple[str, ...]:
        """See that a subscription's queue, which is there, would do, and tell what it may lose; nothing is bound.

        Raises:
            TopologyMismatchError: It would not.
            RefusedError: It may not be used.
        """
        settings = self._settings
        arguments = self._arguments(asked)
        wanted = _Place(asked.queue, settings.durable, settings.deleted is True, arguments=arguments)
        return await self._ensure(client, wanted)

    async def _queue(
        self,
        client: Client,
        name: str,
        exchange: str,
        keys: tuple[str, ...],
        arguments: Mapping[str, Value],
        *,
        durable: bool = False,
    ) -> None:
        settings = self._settings
        wanted = _Place(name, durable or settings.durable, settings.deleted is True, arguments=arguments)
        await self._ensure(client, wanted)
        async with client.channel() as channel:
            queue = await channel.get_queue(name, ensure=False)
            for key in keys:
                await client.ask(queue.bind(exchange, key))

    async def _ensure(self, client: Client, wanted: _Place) -> tuple[str, ...]:
        check_name(wanted.name)
        place, losses = wanted, list[str]()
        for _ in range(MOST_DIFFERENCES):
            try:
                async with client.channel() as channel:
                    await client.ask(place.declare(channel))
            except RefusedError as error:
                if error.reply_code == ACCESS_REFUSED:
                    await self._find(client, wanted, error)
                    return ()
                found = _DIFFERS.search(error.text) if error.reply_code == PRECONDITION_FAILED else None
                if found is None:
                    raise
                argument, asked, current = found.groups()
                if argument in NEEDED or (argument, _plain(current)) == STREAM:
                    raise TopologyMismatchError(
                        f"{wanted.name} exists on RabbitMQ, and differs: {argument} is {current} there, {asked} here"
                    ) from error
                if not wanted.kind and (loss := _loss(argument, current)):
                    losses.append(loss)
                    self._warn(wanted.name, loss)
                place = place.like(argument, current)
            else:
                return tuple(losses)
        raise TopologyMismatchError(f"{wanted.name} exists on RabbitMQ, and differs in more than can be told")

    async def _find(self, client: Client, wanted: _Place, refused: RefusedError) -> None:
        """Look for what may not be made."""
        try:
            async with client.channel() as channel:
                await client.ask(wanted.declare(channel, passive=True))
        except RefusedError as error:
            raise (refused if error.reply_code == NOT_FOUND else error) from None

    def _warn(self, queue: str, loss: str) -> None:
        """Say once what a queue that is there may lose."""
        if (queue, loss) not in self._warned and len(self._warned) < MAX_WARNED:
            self._warned.add((queue, loss))
            logger.warning("queue %s is there, and %s", queue, loss)


def _plain(current: str) -> str | None:
    """Give the value of an argument as the server tells it; None = it has none."""
    found = _VALUE.match(current)
    return None if found is None else found[1]


def _loss(argument: str, current: str) -> str:
    value = _plain(current)
    safe = {"auto_delete": "false", "durable": "true"}.get(argument)
    return "" if value in (None, safe) or argument not in LOSSES else LOSSES[argument].format(value)


async def waiting(client: Client, queue: str) -> int:
    """Count what waits in a queue; raises ``RefusedError`` if there is none."""
    async with client.channel() as channel:
        found: AbstractQueue = await client.ask(channel.get_queue(queue))
        return found.declaration_result.message_count or 0
