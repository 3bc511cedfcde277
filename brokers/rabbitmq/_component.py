"""What the metadata of a ``pubsub.rabbitmq`` component means here.

Source: reference/dapr-surface.md 5.5; docs.dapr.io, RabbitMQ pub/sub.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from brokers.rabbitmq._config import RabbitMQConfig, TLSFiles, one_of, unknown
from mesh.errors import ConfigError, Problem
from mesh.resources.component import Component
from mesh.values import parse_duration

__all__ = ["IGNORED", "USED", "read"]

T = TypeVar("T")

USED = (
    "caCert",
    "clientCert",
    "clientKey",
    "clientName",
    "concurrency",
    "concurrencyMode",
    "connectionString",
    "heartBeat",
    "host",
    "hostname",
    "maxLen",
    "maxLenBytes",
    "password",
    "prefetchCount",
    "protocol",
    "reconnectWait",
    "reconnectWaitSeconds",
    "saslExternal",
    "ttlInSeconds",
    "username",
)
# The mesh's own.
GENERAL = ("allowedTopics", "consumerID", "protectedTopics", "publishingScopes", "subscriptionScopes")
# What they ask for is always so here, or has no counterpart; docs/brokers/rabbitmq.md tells which.
IGNORED = (
    "autoAck",
    "backOffDuration",
    "backOffInitialInterval",
    "backOffMaxInterval",
    "backOffMaxRetries",
    "backOffPolicy",
    "backOffMultiplier",
    "backOffRandomizationFactor",
    "deletedWhenUnused",
    "deliveryMode",
    "durable",
    "enableDeadLetter",
    "exchangeKind",
    "publishMessagePropertiesToMetadata",
    "publisherConfirm",
    "requeueInFailure",
)


def read(component: Component) -> RabbitMQConfig:
    """Read a component's metadata.

    Raises:
        ConfigError: Settings are unknown, wrong or missing; holds all problems, located.
    """
    settings = _Settings(component)
    config = settings.server()
    config = replace(
        config,
        name=settings.get("clientName", str, f"brokermesh {component.name}"),
        user=settings.get("username", str, config.user),
        password=settings.get("password", str, config.password),
        external=settings.get("saslExternal", _boolean, config.external),
        heartbeat=settings.get("heartBeat", lambda text: max(1, round(_seconds(text))), config.heartbeat),
        max_backoff=settings.get_first(("reconnectWaitSeconds", "reconnectWait"), _seconds, 0.0) or config.max_backoff,
        max_age=settings.get("ttlInSeconds", _seconds, None),
        max_bytes=settings.get("maxLenBytes", _count, None),
        max_events=settings.get("maxLen", _count, None),
        max_in_flight=settings.get("prefetchCount", _count, None),
    )
    concurrency = settings.get_first(
        ("concurrency", "concurrencyMode"), lambda text: one_of(text, "parallel", "single"), ""
    )
    if concurrency == "single":
        config = replace(config, max_in_flight=1)
    if config.tls is not None:
        given = config.tls
        files = TLSFiles(
            ca=settings.get("caCert", str, given.ca),
            certificate=settings.get("clientCert", str, given.certificate),
            key=settings.get("clientKey", str, given.key),
            verify=given.verify,
        )
        config = replace(config, tls=files)
    settings.finish()
    return config


class _Settings:
    """A component's metadata, and what is wrong with it."""

    def __init__(self, component: Component) -> None:
        known = {name.casefold() for name in (*USED, *GENERAL, *IGNORED)}
        self._component = component
        self._problems: list[Problem] = [
            component.problem(unknown(entry.name, (*USED, *GENERAL, *IGNORED)), setting=entry.name)
            for entry in component.metadata
            if entry.name.casefold() not in known
        ]

    def get(self, name: str, parse: Callable[[str], T], default: T) -> T:
        """Read a setting; empty is as if it were not given."""
        text = self._component.setting(name)
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            self._problems.append(self._component.problem(str(error), setting=name))
            return default

    def get_first(self, names: Sequence[str], parse: Callable[[str], T], default: T) -> T:
        """Read a setting that goes by several names."""
        name = next((each for each in names if self._component.setting(each)), names[0])
        return self.get(name, parse, default)

    def server(self) -> RabbitMQConfig:
        """Read where the server is: one URL, or its parts."""
        for name in ("connectionString", "host"):
            url = self.get(name, str, "")
            if url:
                try:
                    return RabbitMQConfig.from_url(url)
                except ConfigError as error:
                    problems = [self._component.problem(each.message, setting=name) for each in error.problems]
                    self._problems.extend(problems)
                    return RabbitMQConfig(())
        hostname = self.get("hostname", str, "")
        if not hostname:
            self._problems.append(
                self._component.problem("says not where RabbitMQ is: set connectionString, or hostname and protocol")
            )
            return RabbitMQConfig(())
        protocol = self.get("protocol", lambda text: one_of(text, "amqp", "amqps"), "amqp")
        host, _, port = hostname.partition(":")
        try:
            number = int(port) if port else {"amqp": 5672, "amqps": 5671}[protocol]
        except ValueError:
            self._problems.append(self._component.problem(f"has no port: {hostname!r}", setting="hostname"))
            number = 0
        return RabbitMQConfig(((host, number),), tls=TLSFiles() if protocol == "amqps" else None)

    def finish(self) -> None:
        """Raise if anything is wrong."""
        if self._problems:
            raise ConfigError(self._problems)


def _boolean(text: str) -> bool:
    return one_of(text, "true", "false") == "true"


def _count(text: str) -> int | None:
    """Read a number; 0 is as if it were not given."""
    if not text.isdecimal():
        raise ValueError(f"is {text!r}; it must be a whole number")
    return int(text) or None


def _seconds(text: str) -> float:
    """Read a duration, or a number of seconds."""
    return float(text) if text.isdecimal() else parse_duration(text)
