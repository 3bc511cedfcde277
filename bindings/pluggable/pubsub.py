"""``pubsub.<name>``: events through the pluggable component whose socket has the name."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self

from bindings.pluggable._adapter import PluggableAdapter, Plugged
from bindings.pluggable._connection import Connection, Failed
from bindings.pluggable._events import PREFIX, fields_of
from bindings.pluggable._member import Member
from bindings.pluggable._messages import Message as Told
from bindings.pluggable._messages import message
from mesh.address import Address
from mesh.broker import Features, Handler, Message, SubscribeOptions, Topology
from mesh.errors import (
    BrokerError,
    BrokerUnavailableError,
    FeatureNotSupportedError,
    MessageTooLargeError,
    PublishRejectedError,
)
from mesh.frameless import Frameless
from mesh.resources.component import Component
from mesh.tasks import task_group

__all__ = ["PluggableBroker"]

MAX_MESSAGE_BYTES = 2 * 1024 * 1024  # As base64 in an event it is still below what servers of gRPC take.
BATCH, BATCH_BYTES = 100, 1024 * 1024
RETRY_SECONDS = 0.2
HEADER_BYTES = 4


class PluggableBroker(Frameless, PluggableAdapter):
    """A component that says nothing of order, delays or what it keeps: none of it is promised."""

    service = "PubSub"
    group_settings = ("consumerID",)
    told_group = True
    features = Features(
        name="pluggable",
        event_prefix=PREFIX,
        max_message_bytes=MAX_MESSAGE_BYTES,
        shared=True,
        attempts=False,
        retention=False,
        reassigns=False,
        frames=False,
        embeds=True,
    )

    def __init__(self, plugged: Plugged) -> None:
        """Prepare; entering connects."""
        super().__init__(plugged)
        self.inbox = secrets.token_hex(8)
        self._group: str | None = None
        self._instances: dict[str, Connection] = {}
        self._bulk = True

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Find the socket; raises ``ConfigError``."""
        made = super().from_component(component)
        made._group = component.setting("consumerID")
        return made

    def _error(self, failed: Failed) -> BrokerError:
        if failed.away:
            return BrokerUnavailableError(str(failed))
        return BrokerError(str(failed)) if failed.final else PublishRejectedError(str(failed))

    # Messages

    async def declare(self, topology: Topology) -> None:
        """Nothing: the protocol has no such thing."""

    def _topic(self, address: Address) -> str:
        return self._settings.prefix.replace("{space}", address.space) + address.label

    async def publish(self, address: Address, message: Message) -> None:
        """Publish; the component's answer confirms it."""
        await self._until_there("Publish", "PublishRequest", address, self._fields(address, message))

    def _fields(self, address: Address, message: Message) -> dict[str, Any]:
        size = len(message.body) + sum(len(a) + len(b) + HEADER_BYTES for a, b in message.headers.items())
        if size > MAX_MESSAGE_BYTES:
            raise MessageTooLargeError(size, MAX_MESSAGE_BYTES)
        return fields_of(message, self._settings.name, address.label)

    async def _until_there(self, name: str, kind: str, address: Address, fields: dict[str, Any]) -> Told:
        """Ask, as soon as there is a program that can be; whoever waits for it bounds that."""
        request = message(kind)(**fields, pubsub_name=self._settings.name, topic=self._topic(address))
        while True:
            try:
                return await self._connection.call(self.service, name, request)
            except Failed as failed:
                if failed.sent or failed.closed or not failed.away:
                    raise self._error(failed) from failed
            await asyncio.sleep(RETRY_SECONDS)

    async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
        """Publish several at a time, in order; one by one where the component cannot."""
        results: list[BrokerError | None] = []
        batch: list[dict[str, Any]] = []
        size = 0
        places: list[int] = []
        for index, each in enumerate(messages):
            results.append(None)
            try:
                fields = self._fields(address, each)
            except BrokerError as error:
                results[index] = error
                continue
            if batch and (len(batch) >= BATCH or size + len(fields["data"]) > BATCH_BYTES):
                await self._publish_batch(address, batch, places, results)
                batch, places, size = [], [], 0
            batch.append(fields)
            places.append(index)
            size += len(fields["data"])
        if batch:
            await self._publish_batch(address, batch, places, results)
        return results

    async def _publish_batch(
        self, address: Address, batch: list[dict[str, Any]], places: list[int], results: list[BrokerError | None]
    ) -> None:
        if self._bulk and len(batch) > 1:
            entries = [
                {
                    "entry_id": str(place),
                    "event": each["data"],
                    "content_type": each["content_type"],
                    "metadata": each["metadata"],
                }
                for place, each in zip(places, batch, strict=True)
            ]
            try:
                answer = await self._until_there("BulkPublish", "BulkPublishRequest", address, {"entries": entries})
            except BrokerError as error:
                cause = error.__cause__
                if not (isinstance(cause, Failed) and cause.code.name == "UNIMPLEMENTED"):
                    for place in places:
                        results[place] = error
                    return
                self._bulk = False
            else:
                known = {str(place): place for place in places}
                for each in answer.failed_entries:
                    if each.entry_id in known:
                        text = self._settings.shown(each.error) or "the component did not take it"
                        results[known[each.entry_id]] = PublishRejectedError(text)
                return
        for place, fields in zip(places, batch, strict=True):
            try:
                await self._until_there("Publish", "PublishRequest", address, fields)
            except BrokerError as error:
                results[place] = error

    @asynccontextmanager
    async def subscribe(self, address: Address, options: SubscribeOptions, handler: Handler) -> AsyncIterator[None]:
        """Take messages for a group: the component's instance that was told its name as ``consumerID``."""
        for asked, what in (
            (options.ordered, "ordered subscriptions"),
            (options.ephemeral, "subscriptions that end with their instance"),
            (address.is_pattern, f"the pattern {address.label!r}"),
        ):
            if asked:
                raise FeatureNotSupportedError(self.features.name, what)
        async with task_group() as keepers:
            try:
                member: Member | None = None
                async with task_group() as tasks:
                    try:
                        connection = self._instance(options.group)
                        member = Member(connection, self._topic(address), address, options.max_in_flight, handler)
                        await member.start(keepers, tasks)
                    except Failed as failed:
                        raise self._error(failed) from None
                    try:
                        yield
                    finally:
                        member.stop()
            finally:
                if member is not None:
                    await member.finish()

    def _instance(self, group: str) -> Connection:
        """Give the component's instance for a group: each is told its name as a component of its own is.

        Its first call connects.
        """
        if group == self._group:
            return self._connection
        found = self._instances.get(group)
        if found is None:
            initialise = partial(self._initialise, consumerID=group)
            told = self._settings
            found = Connection(told.path, f"{told.name}/{group}", self.service, initialise, told.shown)
            self._instances[group] = found
            self._stack.push_async_callback(found.close)
        return found
