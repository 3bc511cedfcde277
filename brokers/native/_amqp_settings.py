"""What ``pubsub.solace.amqp`` is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from brokers.native._amqp_config import Config
from brokers.native._topics import NativeSettings
from brokers.shared.backoff import CONNECT_WAIT
from brokers.shared.settings import Reading
from brokers.shared.tls import ca_setting, certificate_setting, key_setting
from mesh.resources.settings import BOOLEAN, VERBATIM, Setting, ignored, lasting, setting

__all__ = ["AMQPSettings", "Reader"]

PORTS = {"amqp": 5672, "amqps": 5671}


@dataclass(frozen=True)
class AMQPSettings(NativeSettings):
    """Settings of ``pubsub.solace.amqp``."""

    ignored: ClassVar[tuple[Setting, ...]] = ignored(
        "a connection is made anew at once, and then ever more slowly",
        *("backOffPolicy", "backOffDuration", "backOffInitialInterval", "backOffMaxInterval"),
    )

    url: str = setting(
        "url", "Where the server is: `amqp://`, or `amqps://` with TLS.", required=True, default="", secret=True
    )
    username: str | None = setting("username", "Who logs in.", VERBATIM, example="shop", suggested=True)
    password: str | None = setting("password", "Its password.", VERBATIM, secret=True, suggested=True)
    anonymous: bool = setting("anonymous", "Whether nobody logs in.", BOOLEAN, default=False)
    ca: str | None = ca_setting()
    certificate: str | None = certificate_setting()
    key: str | None = key_setting()
    topics: str = setting("topicAddressPrefix", "What stands before a topic's name.", default="topic://")
    queues: str = setting(
        "queueAddressPrefix", "What stands before the name of a queue, as of `queue:orders`.", default="queue://"
    )
    idle: float = setting(
        "idleTimeout", "How long the server may be silent until the connection is lost.", lasting(), default=30.0
    )
    dial: float = setting("dialTimeout", "How long an attempt to connect may take.", lasting(), default=CONNECT_WAIT)

    def address(self, topic: str) -> tuple[str, bool]:
        """Give a topic's address, and whether it is a queue's."""
        kind, colon, name = topic.partition(":")
        if colon and kind in ("queue", "topic") and not name.startswith("//"):
            return (f"{self.queues}{name}", True) if kind == "queue" else (f"{self.topics}{name}", False)
        if self.queues and topic.startswith(self.queues):
            return topic, True
        return (topic if self.topics and topic.startswith(self.topics) else f"{self.topics}{topic}"), False


class Reader(Reading[AMQPSettings]):
    """Reads them."""

    def config(self) -> Config:
        """Give how to connect."""
        found = self.found
        parts = urlsplit(found.url)
        tls, host, port = None, "", None
        try:
            host, port = parts.hostname or "", parts.port
        except ValueError:
            self.wrong("url", "names a port that there cannot be")
        if found.url and (parts.scheme not in PORTS or not host):
            self.wrong("url", "is amqp://host:port or amqps://host:port")
        if parts.scheme == "amqps":
            tls = self.tls("clientCert", "clientKey", ca="caCert")
        else:
            for name, value in (("caCert", found.ca), ("clientCert", found.certificate), ("clientKey", found.key)):
                if value:
                    self.wrong(name, "needs a url that begins with amqps://")
        user = found.username or unquote(parts.username or "") or None
        password = found.password or unquote(parts.password or "") or None
        if found.anonymous:
            user = password = None
        elif user is None:
            problem = self.component.missing("the setting username is missing; without a user, set anonymous: true")
            self.problems.append(problem)
        self.finish()
        connect_wait = min(self.connect_wait, found.dial)
        return Config(host, port or PORTS[parts.scheme], tls, user, password, found.idle, connect_wait)
