"""Topics, queues and subscriptions at AWS: what is there is used as it is, and what lacks is made."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import orjson
from botocore.exceptions import ClientError

from brokers.native._snssqs_settings import SNS, SQS, STS, SNSSQSSettings
from mesh.address import Address
from mesh.errors import BrokerError, BrokerUnavailableError, TopologyMismatchError

__all__ = ["NO_QUEUE", "NO_TOPIC", "Entities"]

MAX_NAME = 80
MAX_TOPICS = 10_000
KEPT_SECONDS = 14 * 24 * 3600  # The longest that SQS keeps what nobody takes.
NO_TOPIC = ("NotFound", "NotFoundException")
NO_QUEUE = ("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist")
_NOT_IN_NAMES = re.compile("[^A-Za-z0-9_-]")


class Entities:
    """Those of one component."""

    def __init__(self, settings: SNSSQSSettings, sns: SNS, sqs: SQS, sts: STS) -> None:
        """Use the services, once they are entered."""
        self._settings, self._sns, self._sqs, self._sts = settings, sns, sqs, sts
        self._managing = asyncio.Lock()
        self._topics: dict[str, str] = {}
        self._account = settings.account

    def forget(self, label: str) -> None:
        """Look at a topic anew when it is asked for again."""
        self._topics.pop(self.named(label, "topic"), None)

    def named(self, label: str, what: str) -> str:
        """Give the name that something has at AWS: without what may not stand in one."""
        suffix = ".fifo" if self._settings.fifo else ""
        name = _NOT_IN_NAMES.sub("", label.removesuffix(suffix))[: MAX_NAME - len(suffix)]
        if not name:
            raise BrokerError(f"the {what} {label!r} has no letter or digit that may stand in a name at AWS")
        return name + suffix

    async def _arn(self, name: str) -> str:
        if self._account is None:
            self._account = str((await self._sts.manage("get_caller_identity"))["Account"])
        partition, region = self._sns.place
        return f"arn:{partition}:sns:{region}:{self._account}:{name}"

    async def topic(self, label: str) -> str:
        """Give a topic's ARN; it is made if it is not there."""
        name = self.named(label, "topic")
        if (known := self._topics.get(name)) is not None:
            return known
        async with self._managing:
            if name not in self._topics:
                if len(self._topics) >= MAX_TOPICS:
                    self._topics.clear()
                self._topics[name] = await self._found_topic(name, label)
            return self._topics[name]

    async def _found_topic(self, name: str, label: str) -> str:
        arn = await self._arn(name)
        try:
            await self._sns.manage("get_topic_attributes", *NO_TOPIC, TopicArn=arn)
            return arn
        except ClientError:
            if self._settings.unmanaged:
                raise BrokerError(f"there is no SNS topic {name!r}, and disableEntityManagement is set") from None
        kind = {"FifoTopic": "true", "ContentBasedDeduplication": "true"} if self._settings.fifo else {}
        tags = [{"Key": "dapr-topic-name", "Value": label[:256]}]
        return str((await self._sns.manage("create_topic", Name=name, Attributes=kind, Tags=tags))["TopicArn"])

    async def _queue(self, label: str, **more: str) -> tuple[str, str, dict[str, str]]:
        """Give a queue's URL, its ARN, and its attributes; it is made if it is not there."""
        name = self.named(label, "queue")
        owner = {} if self._settings.account is None else {"QueueOwnerAWSAccountId": self._settings.account}
        try:
            found = await self._sqs.manage("get_queue_url", *NO_QUEUE, QueueName=name, **owner)
        except ClientError:
            if self._settings.unmanaged:
                raise BrokerError(f"there is no SQS queue {name!r}, and disableEntityManagement is set") from None
            kind = {"FifoQueue": "true", "ContentBasedDeduplication": "true"} if self._settings.fifo else {}
            tags = {"dapr-queue-name": label[:256]}
            found = await self._sqs.manage("create_queue", QueueName=name, Attributes={**kind, **more}, tags=tags)
        url = str(found["QueueUrl"])
        names = ["QueueArn", "Policy", "RedrivePolicy"]
        attributes = (await self._sqs.manage("get_queue_attributes", QueueUrl=url, AttributeNames=names))["Attributes"]
        return url, str(attributes["QueueArn"]), attributes

    async def _redrive(self, url: str, attributes: dict[str, str]) -> None:
        """See that SQS moves dead letters as the settings say."""
        settings: SNSSQSSettings = self._settings
        if settings.dead_letters is None or settings.unmanaged:
            return
        wanted = {
            "deadLetterTargetArn": (await self._queue(settings.dead_letters))[1],
            "maxReceiveCount": str(settings.receive_limit),
        }
        there = orjson.loads(attributes.get("RedrivePolicy") or "{}")
        if not there:
            policy = {"RedrivePolicy": orjson.dumps(wanted).decode()}
            await self._sqs.manage("set_queue_attributes", QueueUrl=url, Attributes=policy)
        elif {name: str(there.get(name)) for name in wanted} != wanted:
            raise TopologyMismatchError(
                f"the SQS queue {url} has the redrive policy {there}, and the settings say {wanted}"
            )

    async def _admit(self, url: str, arn: str, topic: str, attributes: dict[str, str]) -> None:
        """See that SNS may put a topic's messages into a queue.

        Other members change the policy too, so it is read again after it was written.
        """
        for _ in range(3):
            policy = orjson.loads(attributes.get("Policy") or '{"Version":"2012-10-17","Statement":[]}')
            if not _admits(policy, arn, topic):
                return
            changed = {"Policy": orjson.dumps(policy).decode()}
            await self._sqs.manage("set_queue_attributes", QueueUrl=url, Attributes=changed)
            asked = await self._sqs.manage("get_queue_attributes", QueueUrl=url, AttributeNames=["Policy"])
            attributes = asked.get("Attributes") or {}

    async def _subscribed(self, topic: str, queue: str | None = None) -> bool:
        """Tell whether a queue is subscribed to a topic, or anything is."""
        seconds = self._settings.manage_seconds
        try:
            async with asyncio.timeout(seconds):
                async for page in self._sns.pages("list_subscriptions_by_topic", TopicArn=topic):
                    if any(queue in (None, each["Endpoint"]) for each in page["Subscriptions"]):
                        return True
        except TimeoutError:
            raise BrokerUnavailableError(f"AWS sns, list subscriptions by topic: no answer in {seconds:g} s") from None
        return False

    async def bind(self, topic: str, label: str) -> str:
        """Have a group's queue get a topic's messages; gives its URL."""
        async with self._managing:
            url, attributes = await self._bound(topic, label)
            await self._redrive(url, attributes)
            return url

    async def _bound(self, topic: str, label: str, **more: str) -> tuple[str, dict[str, str]]:
        url, arn, attributes = await self._queue(label, **more)
        if not self._settings.unmanaged:
            await self._admit(url, arn, topic, attributes)
            await self._sns.manage("subscribe", TopicArn=topic, Protocol="sqs", Endpoint=arn)
        elif not await self._subscribed(topic, arn):
            raise BrokerError(f"{arn} is not subscribed to {topic}, and disableEntityManagement is set")
        return url, attributes

    async def keep(self, letters: Address) -> None:
        """See that dead letters are kept: SNS drops what nobody is subscribed to."""
        topic = await self.topic(letters.label)
        async with self._managing:
            if await self._subscribed(topic):
                return
            if self._settings.unmanaged:
                text = f"nothing is subscribed to {topic}, so letters would be lost, and disableEntityManagement is set"
                raise BrokerError(text)
            label = self.named(letters.label, "topic").removesuffix(".fifo")[: MAX_NAME - 10]
            await self._bound(topic, f"{label}-kept", MessageRetentionPeriod=str(KEPT_SECONDS))


def _admits(policy: dict[str, Any], queue: str, topic: str) -> bool:
    """Put a topic into a queue's policy, as Dapr does; False = it is there already."""
    statements = policy.setdefault("Statement", [])
    for each in statements:
        if each.get("Resource") != queue:
            continue
        condition = each.get("Condition") or {}
        sources = condition.get("ForAllValues:ArnEquals", {}).get("aws:SourceArn")
        if isinstance(sources, list):
            if topic in sources:
                return False
            sources.append(topic)
            return True
    condition = {"ForAllValues:ArnEquals": {"aws:SourceArn": [topic]}}
    service = {"Service": "sns.amazonaws.com"}
    statements.append(
        {
            "Effect": "Allow",
            "Principal": service,
            "Action": "sqs:SendMessage",
            "Resource": queue,
            "Condition": condition,
        }
    )
    return True
