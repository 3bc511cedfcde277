"""What is on RabbitMQ for a topic and a group, and the letters that lie in a queue, one after the other.

A topic has no messages of its own: its dead letters lie in the queue that the first gateway made for its group beside
its own, or in the ``dlq-<queue>`` that the server puts them in. They are held unsettled while they are looked at, and
given back to their place; who consumes such a queue is not stolen from.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiormq
from aio_pika.abc import AbstractChannel
from aiormq import spec
from aiormq.abc import DeliveredMessage
from msgspec.structs import replace

from brokers.native._rabbitmq_client import ANSWER_SECONDS, Client
from brokers.native._rabbitmq_message import decode
from brokers.native._rabbitmq_places import ACCESS_REFUSED, NOT_FOUND, Places, check_name
from brokers.native._rabbitmq_settings import Asked, RabbitMQNativeSettings
from brokers.rabbitmq._inspection import Tags
from brokers.rabbitmq._message import MAX_SHORT
from brokers.rabbitmq._refusals import RefusedError
from brokers.rabbitmq._session import Reconnecting
from mesh.address import Address
from mesh.broker import LETTER_REASON, ROUTING_HEADER, Message, SubscribeOptions
from mesh.errors import BrokerError, FeatureNotSupportedError, TopologyMismatchError
from mesh.event import decode_header_value
from mesh.inspection import Letter, Pile, Standing
from mesh.resources.component import Component

__all__ = ["Inspection", "is_there"]

logger = logging.getLogger("brokers.rabbitmq")

OF_SERVER = "dlq-"
NEAR_LIMIT = 10  # RabbitMQ 4 drops what was given back 20 times; a policy may say less.
_OF_DEATH = ("x-first-death-", "x-last-death-", "x-death", "x-delivery-count")


class Inspection:
    """The part of the adapter that looks on."""

    _settings: RabbitMQNativeSettings
    _consuming: Reconnecting[Client]
    _places: Places
    _component: Component | None

    async def inspect(self, address: Address, options: SubscribeOptions | None) -> Standing:
        """Look at a topic's exchange, and at the queue of a group; see ``Inspectable``."""
        topic, client, refused = address.label, self._consuming.current(), list[str]()
        check_name(topic)
        asked = None if options is None else Asked.read(topic, options, self._settings)
        losses: tuple[str, ...] = ()
        exists, there, differs = False, None if asked is None else False, ""
        try:
            exists = await is_there(client, topic)
            if exists:
                await self._places.exchange(client, topic)
            if asked is not None and await _found(client, asked.queue) is not None:
                there = True
                losses = tuple(f"queue {asked.queue} {each}" for each in await self._places.queue(client, asked))
        except TopologyMismatchError as error:
            differs = str(error)
        except RefusedError as error:
            if error.reply_code != ACCESS_REFUSED:
                raise
            refused.append(error.text)
        queue = None if asked is None or there else asked.queue
        refused += [each for each in await _rights(client, topic, queue, exists=exists) if each not in refused]
        if topic.startswith(OF_SERVER) and asked is None and not exists and await _found(client, topic) is not None:
            return Standing(f"queue {topic}", exists=True)
        letters = f"{OF_SERVER}{asked.queue}" if asked is not None and there and self._settings.dead_letter else ""
        return Standing(
            f"exchange {topic}",
            exists=exists,
            group=there,
            differs=differs,
            refused=tuple(refused),
            losses=losses,
            letters=letters,
        )

    @asynccontextmanager
    async def letters(self, address: Address) -> AsyncIterator[Pile]:
        """Go through a queue; what is removed is acknowledged, the rest goes back to its place."""
        client, topic = self._consuming.current(), address.label
        group = "" if self._component is None else self._component.setting("consumerID")
        queue = f"{group}-{topic}"
        check_name(queue)
        if topic.startswith(OF_SERVER) and (not group or await _found(client, queue) is None):
            queue = topic
        elif not group:
            told = f"dead letters of {topic} without a group: --app-id, or the setting consumerID, says whose queue"
            raise FeatureNotSupportedError("rabbitmq", told)
        pile = _Queue(client, queue, tell=self._settings.tell)
        try:
            yield pile
        finally:
            await pile.close()


async def _rights(client: Client, exchange: str, queue: str | None, *, exists: bool) -> list[str]:
    """Ask what this user may not do, and change nothing.

    Rights come first: what else is wrong with a question (an argument of another type, a queue that is not there) is
    told only to those who have them, and a transaction that is rolled back has published nothing.

    Args:
        client: Asks.
        exchange: Of the topic.
        queue: Of the group, which is not there; None = it is, or nobody asked for one.
        exists: Whether the exchange is there.
    """

    async def publish(channel: aiormq.abc.AbstractChannel) -> None:
        await channel.tx_select()
        await channel.basic_publish(b"", exchange=exchange)
        await channel.tx_rollback()

    questions: list[Callable[[aiormq.abc.AbstractChannel], Awaitable[object]]] = [publish]
    if not exists:
        wrong: dict[str, Any] = {"alternate-exchange": 1}
        questions.append(lambda channel: channel.exchange_declare(exchange, arguments=wrong))
    if queue is not None:
        limits: dict[str, Any] = {"x-max-length": "none"}
        questions.append(lambda channel: channel.queue_declare(queue, arguments=limits))
        questions.append(lambda channel: channel.queue_bind(queue, exchange))
        questions.append(lambda channel: channel.basic_get(queue))
    refused = list[str]()
    for ask in questions:
        try:
            async with client.channel() as channel:
                await client.ask(ask(await channel.get_underlay_channel()))
        except RefusedError as error:
            if error.reply_code == ACCESS_REFUSED:
                refused.append(error.text)
    return refused


async def is_there(client: Client, exchange: str) -> bool:
    """Tell whether there is an exchange of that name."""
    try:
        async with client.channel() as channel:
            await client.ask(channel.declare_exchange(exchange, passive=True))
    except RefusedError as error:
        if error.reply_code != NOT_FOUND:
            raise
        return False
    return True


async def _found(client: Client, queue: str) -> spec.Queue.DeclareOk | None:
    try:
        async with client.channel() as channel:
            return await _declared(client, channel, queue)
    except RefusedError as error:
        if error.reply_code != NOT_FOUND:
            raise
        return None


async def _declared(client: Client, channel: AbstractChannel, queue: str) -> spec.Queue.DeclareOk:
    """Ask for a queue that is there; the answer comes after all that was settled over the channel before."""
    return await client.ask((await channel.get_underlay_channel()).queue_declare(queue, passive=True))


class _Queue:
    """The messages of one queue."""

    def __init__(self, client: Client, queue: str, *, tell: bool) -> None:
        self._client, self._queue, self._tell = client, queue, tell
        self._channel: AbstractChannel | None = None
        self._tags = Tags()
        self._warned = False

    async def count(self) -> int:
        """See ``Pile``."""
        found = await _found(self._client, self._queue)
        return 0 if found is None else found.message_count or 0

    async def __aiter__(self) -> AsyncIterator[Letter]:
        """Get one after the other: a queue has no member for it, and hands nothing out that was not asked for."""
        await self.close()
        found = await _found(self._client, self._queue)
        if found is None:
            return
        if found.consumer_count:
            raise BrokerError(
                f"queue {self._queue} on RabbitMQ has consumers ({found.consumer_count}), whose letters these are: "
                "stop them, or have them settle what is there"
            )
        self._channel = await self._client.open_channel()
        raw = await self._channel.get_underlay_channel()
        for _ in range(found.message_count or 0):
            got = await self._client.ask(raw.basic_get(self._queue, timeout=ANSWER_SECONDS))
            if got.delivery_tag is None:  # The rest expired, or somebody else holds it.
                return
            identity = self._tags.add(got.header.properties.message_id, got.body, got.delivery_tag)
            self._warn(got)
            sent = got.header.properties.timestamp
            yield Letter(identity, _message(got, tell=self._tell), None if sent is None else sent.timestamp())

    def _warn(self, got: DeliveredMessage) -> None:
        """Tell, once, that a quorum queue counts looks, and may let go what was looked at too often."""
        count = (got.header.properties.headers or {}).get("x-delivery-count")
        if not self._warned and isinstance(count, int) and count >= NEAR_LIMIT:
            self._warned = True
            logger.warning(
                "queue %s on RabbitMQ counts each look as a delivery, and a letter has had %d: beyond its limit, "
                "20 on RabbitMQ 4 unless a policy sets it, the server drops a letter or moves it on",
                self._queue,
                count,
            )

    async def remove(self, letters: Sequence[Letter]) -> None:
        """See ``Pile``."""
        channel = self._channel
        raw = None if channel is None else await channel.get_underlay_channel()
        for each in letters:
            tag = self._tags.take(each.id)
            if channel is None or raw is None or channel.is_closed or tag is None:
                raise BrokerError(f"the letter {each.id} is not held any more, and goes back to its queue")
            await self._client.ask(raw.basic_ack(tag))
        if channel is not None:
            await _declared(self._client, channel, self._queue)

    async def close(self) -> None:
        """Give back what was not removed; the server does it itself where the connection is lost."""
        channel, self._channel = self._channel, None
        self._tags.clear()
        if channel is None:
            return
        with suppress(BrokerError, aiormq.AMQPError):
            raw = await channel.get_underlay_channel()
            await self._client.ask(raw.basic_nack(0, multiple=True, requeue=True))
            await _declared(self._client, channel, self._queue)
        await self._client.close_channel(channel)


def _message(found: DeliveredMessage, *, tell: bool) -> Message:
    """Read a letter as it could be published again; what the server wrote of its death is told as a gateway's is."""
    message, said = decode(found, tell=tell), found.header.properties
    headers = {name: text for name, text in message.headers.items() if not name.startswith(_OF_DEATH)}
    asked = {"correlationID": said.correlation_id, "type": said.message_type}
    metadata = {name: text for name, text in asked.items() if text}
    routed = decode_header_value(message.headers.get(ROUTING_HEADER, ""))
    if routed and len(routed.encode()) <= MAX_SHORT:  # Whoever may write letters may write that.
        metadata["routingKey"] = routed
    if origin := message.headers.get("x-first-death-exchange"):
        metadata["__topic"] = origin
        headers.setdefault(LETTER_REASON, message.headers.get("x-first-death-reason", ""))
        if found.routing_key:
            metadata["routingKey"] = found.routing_key
    return replace(message, headers=headers, metadata=metadata)
