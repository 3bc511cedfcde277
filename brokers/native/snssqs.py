"""``pubsub.aws.snssqs``: a topic is one of Amazon SNS, and a group takes from a queue of Amazon SQS.

The queue of a group is subscribed to each of its topics. A message that is handled is hidden from the others of the
group, which is renewed until it is settled; then it is deleted, or seen again.

Source: Dapr 1.18, the AWS SNS/SQS pub/sub component; the Amazon SNS and the Amazon SQS API Reference.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Self

from botocore.exceptions import ClientError

from brokers.native._held import GoneError
from brokers.native._snssqs_entities import NO_QUEUE, NO_TOPIC, Entities
from brokers.native._snssqs_settings import SNS, SQS, STS, SNSSQSSettings
from brokers.native._sqs import Poll, Queue, Source
from brokers.native._topics import NativeTopics
from brokers.shared.backoff import CONNECT_WAIT, waits
from brokers.shared.errors import NotAdmittedError, unavailable
from brokers.shared.limits import AT_ONCE, check_size, publish_each
from brokers.shared.outage import Outage
from mesh.address import Address
from mesh.broker import Message, SubscribeOptions
from mesh.errors import BrokerError, BrokerUnavailableError, PublishRejectedError
from mesh.features import Features
from mesh.resources.component import Component

__all__ = ["SNSSQSTopics"]

logger = logging.getLogger(__name__)

STOP_SECONDS = 5.0
FEATURES = Features(
    name="Amazon SNS and SQS",
    layout="native",
    max_message_bytes=256 * 1024,
    durable=True,
    shared=True,
    delay=True,
    release_counts=True,
    retention=False,
    frames=False,
)


class SNSSQSTopics(NativeTopics):
    """Topics of one account and region."""

    title = "Topics of Amazon SNS, taken from queues of Amazon SQS."
    tested = "moto's server, which is not AWS; never ran against the real services"
    settings = SNSSQSSettings
    features = FEATURES
    told_group = True
    _sns: SNS
    _sqs: SQS
    _sts: STS
    _entities: Entities

    def __init__(self, settings: SNSSQSSettings) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        if settings.fifo:
            self.features = replace(self.features, ordering=True, dedup=True)
        self._left = False
        self._polls: dict[str, tuple[Poll, asyncio.Task[None]]] = {}

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        made = super().from_component(component)
        made._sqs, made._sns = SQS.from_component(component), SNS.from_component(component)
        made._sts = STS.from_component(component)
        made._entities = Entities(made._settings, made._sns, made._sqs, made._sts)
        return made

    async def _enter(self) -> None:
        for each in (self._sns, self._sqs, self._sts):
            await self._stack.enter_async_context(each)
        self._outage = Outage(logger, "Amazon SNS and SQS", self._sqs.url)
        try:
            async with asyncio.timeout(CONNECT_WAIT):
                await self.check()
        except TimeoutError as error:
            raise unavailable(f"Amazon SQS at {self._sqs.url}", error) from error
        self._stack.callback(self._leave)
        self._tasks = await self._stack.enter_async_context(asyncio.TaskGroup())

    def _leave(self) -> None:
        self._left = True

    def _check_open(self) -> None:
        if self._left:
            raise BrokerUnavailableError(f"the connection to {FEATURES.name} was closed")

    async def check(self) -> None:
        """Ask whether the service answers, and knows the credentials."""
        self._check_open()
        try:
            await self._sqs.probe("list_queues", MaxResults=1)
        except BrokerUnavailableError:
            raise
        except BrokerError as error:
            raise NotAdmittedError(str(error)) from None

    # Publishing

    async def publish(self, address: Address, message: Message) -> None:
        """Publish to SNS; while it is away, or has too much to do, again until cancelled.

        Raises:
            BrokerError: The body is not text, or empty.
        """
        asked = self._asked(message)
        for pause in waits():
            self._check_open()
            try:
                topic = await self._entities.topic(address.label)
                await self._sns.call("publish", passes=NO_TOPIC, TopicArn=topic, **asked)
                self._outage.back()
                return
            except ClientError:  # It was deleted.
                self._entities.forget(address.label)
            except BrokerUnavailableError as error:
                self._outage.lost(error)
            except BrokerError as error:
                raise PublishRejectedError(str(error)) from error
            await asyncio.sleep(pause)

    async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
        """Publish several; with `fifo` one after the other, for their order."""
        return await publish_each(self.publish, address, messages, at_once=1 if self._settings.fifo else AT_ONCE)

    def _asked(self, message: Message) -> dict[str, Any]:
        check_size(message.body, message.headers, FEATURES.max_message_bytes)
        if not message.body:
            raise BrokerError(f"{FEATURES.name} take no message without a body")
        try:
            text = message.body.decode()
        except UnicodeDecodeError:
            told = (
                "take no body but text in UTF-8; without rawPayload other bytes travel in an envelope, as data_base64"
            )
            raise BrokerError(f"{FEATURES.name} {told}") from None
        asked: dict[str, Any] = {"Message": text}
        if attributes := {name: value for name, value in message.headers.items() if value}:
            asked["MessageAttributes"] = {
                name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()
            }
        if self._settings.fifo:
            asked["MessageGroupId"] = message.key or self._settings.fifo_group or self._settings.group or "default"
            # With the body: an application may give an id twice, and none of its events may be swallowed.
            digest = hashlib.sha256(f"{message.id}\n".encode() + message.body)
            asked["MessageDeduplicationId"] = digest.hexdigest()
        return asked

    # Taking

    def _limit(self, options: SubscribeOptions) -> int:
        settings: SNSSQSSettings = self._settings
        if settings.concurrency == "single":
            return 1
        return min(options.max_in_flight, settings.concurrency_limit or options.max_in_flight)

    @asynccontextmanager
    async def _joined(self, address: Address, options: SubscribeOptions) -> AsyncIterator[Source]:
        topic = await self._entities.topic(address.label)
        if options.dead_letters is not None:
            await self._entities.keep(options.dead_letters)
        url = await self._entities.bind(topic, options.group)
        poll, polling = self._polls.get(url) or self._begin(url, options.group)
        if polling.done():  # It failed, and those who took part in it are on their way out.
            poll, polling = self._begin(url, options.group)
        name = topic.rpartition(":")[2]
        source = poll.source(name, address, max(self._settings.hidden, math.ceil(options.ack_wait)))
        try:
            yield source
        finally:
            await source.stop()
            if poll.left_by(name, source):
                if self._polls[url][0] is poll:
                    del self._polls[url]
                await asyncio.wait([polling], timeout=STOP_SECONDS)
                polling.cancel()
                self._outage.forget(poll)

    def _begin(self, url: str, group: str) -> tuple[Poll, asyncio.Task[None]]:
        settings: SNSSQSSettings = self._settings
        name = self._entities.named(group, "queue")
        queue = Queue(partial(self._ask, url), name, settings.fifo, settings.most, settings.wait, self._outage)
        poll = Poll(queue)
        self._polls[url] = poll, self._tasks.create_task(poll.run(), name="sqs-poll")
        return self._polls[url]

    async def _ask(self, url: str, operation: str, /, **arguments: object) -> dict[str, Any]:
        try:
            return await self._sqs.call(operation, passes=NO_QUEUE, QueueUrl=url, **arguments)
        except ClientError:
            raise GoneError(f"the SQS queue {url} is gone") from None
