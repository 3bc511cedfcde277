"""Settings of ``pubsub.azure.eventhubs``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from brokers.clients.azure_amqp import account_kind
from brokers.clients.eventhubs import CheckpointSettings
from brokers.native._topics import NativeSettings
from mesh.resources.settings import BOOLEAN, Setting, choice, ignored, setting

__all__ = ["NOT_MADE", "EventHubsTopicsSettings"]

NOT_MADE = "hubs and consumer groups are not made"


@dataclass(frozen=True, slots=True, kw_only=True)
class EventHubsTopicsSettings(NativeSettings, CheckpointSettings):
    """Settings of ``pubsub.azure.eventhubs``."""

    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored(NOT_MADE, "resourceGroupName", "subscriptionID", "partitionCount", "messageRetentionInDays"),
        *ignored(
            "a retry waits as the resiliency policies say",
            *("backOffPolicy", "backOffDuration", "backOffInitialInterval", "backOffRandomizationFactor"),
            *("backOffMultiplier", "backOffMaxInterval", "backOffMaxElapsedTime", "backOffMaxRetries"),
        ),
    )

    layout: str = setting(
        "layout", "Hubs are as every other program there has them.", choice("native"), default="native"
    )
    group: str | None = setting(
        "consumerGroup",
        "The consumer group, which must be there; by default the application's id.",
        aliases=("consumerID",),
        example="shop",
    )
    in_order: bool = setting(
        "enableInOrderMessageDelivery",
        "Whether events of a partition are handed over one after the other; otherwise those of a partition key are.",
        BOOLEAN,
        default=False,
    )
    makes: bool = setting("enableEntityManagement", f"`true` is refused: {NOT_MADE}.", BOOLEAN, default=False)
    storage_connection: str | None = setting(
        "storageConnectionString",
        "How that account is connected to, in place of its name and key.",
        account_kind,
        secret=True,
        suggested=True,
    )
    container: str | None = setting(
        "storageContainerName",
        "Container of those checkpoints, made if it is not there; needed to subscribe.",
        suggested=True,
        example="checkpoints",
    )
