"""The settings of ``pubsub.aws.snssqs``, and the services that it asks."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from brokers.clients.aws import AWSAdapter, AWSSettings
from brokers.native._topics import NativeSettings
from mesh.errors import BrokerError, BrokerUnavailableError, Problem
from mesh.resources.component import Component
from mesh.resources.settings import BOOLEAN, LIMIT_SECONDS, Kind, Setting, choice, ignored, setting, whole

__all__ = ["SNS", "SQS", "STS", "Part", "SNSSQSSettings"]

_MANY = "how often an event is tried is a matter of the retry policy, and none is deleted that was not taken"


def _account(text: str) -> str:
    if not re.fullmatch("[0-9]{12}", text):
        raise ValueError("is the 12 digits of an account")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class SNSSQSSettings(NativeSettings, AWSSettings):
    """Settings of ``pubsub.aws.snssqs``."""

    ignored: ClassVar[tuple[Setting, ...]] = (
        *AWSSettings.ignored,
        *ignored(_MANY, "messageRetryLimit"),
        *ignored(_MANY, "disableDeleteOnRetryLimit", anyway=("true",)),
        *ignored(
            "while SQS is away it is asked again, more rarely with time",
            *("backOffPolicy", "backOffDuration", "backOffInitialInterval", "backOffRandomizationFactor"),
            *("backOffMultiplier", "backOffMaxInterval", "backOffMaxElapsedTime", "backOffMaxRetries"),
        ),
    )

    access_key: str | None = setting(
        "accessKey",
        "Id of an access key; without it the credentials are found as the AWS tools do.",
        secret=True,
        aliases=("awsAccessKey", "awsAccountID"),
    )
    secret_key: str | None = setting(
        "secretKey", "The secret part of the access key.", secret=True, aliases=("awsSecretKey", "awsSecret")
    )
    account: str | None = setting(
        "accountId",
        "The account of topics and queues; without it that of the credentials.",
        Kind("account", _account),
        example="123456789012",
    )
    group: str = setting(
        "consumerID", "The consumer group, and the name of its SQS queue; by default the application's id."
    )
    fifo: bool = setting("fifo", "Use FIFO topics and queues: events of one key stay in order.", BOOLEAN, default=False)
    fifo_group: str | None = setting(
        "fifoMessageGroupID",
        "With `fifo`, the message group of events without a partition key; by default `consumerID`.",
    )
    hidden: int = setting(
        "messageVisibilityTimeout",
        "Seconds without a sign of life of who holds an event until it is handed out again; 15 at least.",
        whole(1, 43_200),
        default=15,
    )
    wait: int = setting("messageWaitTimeSeconds", "Seconds that one request waits for events.", whole(1, 20), default=1)
    most: int = setting("messageMaxNumber", "Most events that one request takes.", whole(1, 10), default=10)
    dead_letters: str | None = setting(
        "sqsDeadLettersQueueName", "Queue to which SQS itself moves what it handed out `messageReceiveLimit` times."
    )
    receive_limit: int | None = setting("messageReceiveLimit", "See `sqsDeadLettersQueueName`.", whole(1, 1000))
    unmanaged: bool = setting(
        "disableEntityManagement", "Create no topics, queues and subscriptions: they are there.", BOOLEAN, default=False
    )
    manage_seconds: float = setting(
        "assetsManagementTimeoutSeconds",
        "How long a request about topics, queues and subscriptions may take.",
        LIMIT_SECONDS,
        default=5.0,
    )
    concurrency: str = setting(
        "concurrencyMode",
        "`parallel`, or `single`: each subscription handles one event at a time.",
        choice("parallel", "single"),
        default="parallel",
    )
    concurrency_limit: int | None = setting(
        "concurrencyLimit", "Most events that a subscription handles at once; 0 = as it says itself.", whole()
    )


class Part(AWSAdapter):
    """One of the services."""

    settings = SNSSQSSettings
    failed = BrokerError
    away = BrokerUnavailableError

    @property
    def place(self) -> tuple[str, str]:
        """Its partition and its region."""
        return self._client.meta.partition, self._client.meta.region_name

    @property
    def url(self) -> str:
        """Where it is."""
        return str(self._client.meta.endpoint_url)

    async def manage(self, operation: str, *passes: str, **arguments: object) -> dict[str, Any]:
        """Ask about what there is, in the time for that."""
        seconds = self._settings.manage_seconds
        try:
            async with asyncio.timeout(seconds):
                return await self.call(operation, passes=passes, **arguments)
        except TimeoutError:
            text = f"{self._shown}, {operation.replace('_', ' ')}: no answer in {seconds:g} s"
            raise BrokerUnavailableError(text) from None


class SNS(Part):
    """Topics."""

    service = "sns"
    connections = 128


class SQS(Part):
    """Queues."""

    service = "sqs"
    connections = 128
    answer_seconds = 30.0

    def _wrong(self, component: Component) -> Iterator[Problem]:
        yield from super()._wrong(component)
        given, lacking = "sqsDeadLettersQueueName", "messageReceiveLimit"
        settings = self._settings
        if (settings.dead_letters is None) != (settings.receive_limit is None):
            if settings.dead_letters is None:
                given, lacking = lacking, given
            yield component.problem(f"needs {lacking} as well", setting=given)


class STS(Part):
    """Whose the credentials are."""

    service = "sts"
