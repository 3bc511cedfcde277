"""What `pubsub.rabbitmq` is told in the native layout: by its component, and by each of its subscriptions.

Source: Dapr 1.18, RabbitMQ pub/sub; the layout that it was seen to use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from brokers.native._topics import NativeSettings
from brokers.rabbitmq._config import ConnectionSettings
from brokers.shared.settings import layout_setting
from mesh.broker import SubscribeOptions
from mesh.errors import ConfigError
from mesh.resources.settings import BOOLEAN, COUNT, LIMIT_SECONDS, Kind, Setting, choice, ignored, setting, whole
from mesh.values import parse_bool, parse_whole

__all__ = ["SUBSCRIBE_METADATA", "Asked", "RabbitMQNativeSettings"]

SUBSCRIBE_METADATA = (
    *("maxLen", "maxLenBytes", "maxPriority", "queueName", "queueType", "routingKey", "singleActiveConsumer"),
)


def _not_lost(text: str) -> bool:
    if parse_bool(text, words=True):
        raise ValueError("must be false: what the broker takes for handled as it hands it out is lost with the handler")
    return False


@dataclass(frozen=True, slots=True)
class RabbitMQNativeSettings(NativeSettings, ConnectionSettings):
    """Settings of ``pubsub.rabbitmq``."""

    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored(
            "the mesh retries alike on every broker, see Resiliency",
            *("backOffDuration", "backOffInitialInterval", "backOffMaxInterval", "backOffMaxRetries", "backOffPolicy"),
            *("backOffMultiplier", "backOffRandomizationFactor"),
        ),
        *ignored("every publish is confirmed", "publisherConfirm", anyway=("true",)),
    )

    layout: str = layout_setting()
    kind: str = setting(
        "exchangeKind",
        "What kind an exchange is of.",
        choice("fanout", "topic", "direct", "headers"),
        default="fanout",
    )
    durable: bool = setting("durable", "Whether exchanges and queues outlive the server.", BOOLEAN, default=True)
    deleted: bool | None = setting(
        "deletedWhenUnused",
        "Whether exchanges and queues are deleted when nobody uses them; if it is not set, exchanges alone are.",
        BOOLEAN,
        example="false",
    )
    mode: int = setting("deliveryMode", "1: events are lost with the server; else they stay.", whole(0, 2), default=2)
    prefetch: int = setting(
        "prefetchCount",
        "Most events that an instance is handed at once; 0: as many as its subscription has in flight.",
        whole(0, 65535),
        default=0,
    )
    ttl: float | None = setting(
        "ttlInSeconds", "How long an event is kept, if its publisher says nothing.", LIMIT_SECONDS, example="168h"
    )
    max_length: int | None = setting(
        "maxLen", "Most events that wait in a queue; the oldest goes.", COUNT, example="10000"
    )
    max_bytes: int | None = setting(
        "maxLenBytes", "Most bytes that wait in a queue; the oldest event goes.", COUNT, example="100000000"
    )
    dead_letter: bool = setting(
        "enableDeadLetter",
        "Whether each queue has a queue `dlq-<queue>` for what cannot be handled, if its subscription names no topic.",
        BOOLEAN,
        default=False,
    )
    requeue: bool = setting(
        "requeueInFailure",
        "Whether what failed is retried without end, in spite of `enableDeadLetter`; without that it is anyway.",
        BOOLEAN,
        default=False,
    )
    auto_ack: bool = setting(
        "autoAck",
        "Must be false: an event is acknowledged once it was handled.",
        Kind("boolean", _not_lost),
        default=False,
    )
    tell: bool = setting(
        "publishMessagePropertiesToMetadata",
        "Whether applications are told the properties and headers of messages, as headers `metadata.<name>`.",
        BOOLEAN,
        default=False,
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """What a subscription asks of its queue.

    Attributes:
        queue: Its name.
        keys: The routing keys that it is bound with.
        arguments: It is declared with.
    """

    queue: str
    keys: tuple[str, ...]
    arguments: Mapping[str, str | int | bool]

    @classmethod
    def read(cls, topic: str, options: SubscribeOptions, settings: RabbitMQNativeSettings) -> Self:
        """Read a subscription's metadata.

        Raises:
            ConfigError: A value makes no sense.
        """
        told = {name.lower(): value.strip() for name, value in options.metadata.items()}
        arguments: dict[str, str | int | bool] = dict(lengths(settings))
        name = "queueType"
        try:
            arguments["x-queue-type"] = _TYPES.parse(told.get("queuetype") or "classic")  # type: ignore[assignment]  # str
            for name, argument, most in _COUNTS:
                if text := told.get(name.lower()):
                    arguments[argument] = min(parse_whole(text, least=0), most)
            name = "singleActiveConsumer"
            if parse_bool(told.get(name.lower()) or "false", words=True):
                arguments["x-single-active-consumer"] = True
        except ValueError as error:
            raise ConfigError(f"subscription to {topic}: the metadata {name}: {error}") from None
        queue = told.get("queuename") or f"{options.group}-{topic}"
        return cls(queue, tuple(told.get("routingkey", "").split(",")), arguments)


def lengths(settings: RabbitMQNativeSettings) -> dict[str, int]:
    """Give the arguments of every queue."""
    found = {"x-max-length": settings.max_length, "x-max-length-bytes": settings.max_bytes}
    return {name: value for name, value in found.items() if value is not None}


_TYPES = choice("classic", "quorum")
_COUNTS = (
    ("maxPriority", "x-max-priority", 255),
    ("maxLen", "x-max-length", 2**63 - 1),
    ("maxLenBytes", "x-max-length-bytes", 2**63 - 1),
)
