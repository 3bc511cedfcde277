"""What the metadata of a ``pubsub.jetstream`` (or ``pubsub.nats``) component means here.

Source: Dapr 1.18, NATS JetStream pub/sub. Streams and consumers are the mesh's own, so what Dapr's
component says about them has no effect; docs/brokers/nats.md tells which.
"""

from __future__ import annotations

import difflib
import ssl
from pathlib import Path

from mesh.errors import ConfigError, Problem
from mesh.resources.component import Component

__all__ = ["IGNORED", "USED", "read"]

USED = ("natsURL", "token", "jwt", "seedKey", "tls_client_cert", "tls_client_key", "name")
GENERAL = ("allowedTopics", "consumerID", "protectedTopics", "publishingScopes", "subscriptionScopes")
IGNORED = (
    "ackPolicy",
    "ackWait",
    "apiPrefix",
    "backOff",
    "concurrency",
    "deliverPolicy",
    "domain",
    "durableName",
    "flowControl",
    "heartbeat",
    "maxAckPending",
    "maxDeliver",
    "memoryStorage",
    "queueGroupName",
    "rateLimit",
    "replicas",
    "startSequence",
    "startTime",
    "streamName",
)


def read(component: Component) -> dict[str, object]:
    """Read a component's metadata; give the members of a ``NatsConfig``.

    Raises:
        ConfigError: Settings are unknown, wrong or missing; holds all problems, located.
    """
    problems: list[Problem] = []
    known = (*USED, *GENERAL, *IGNORED)
    folded = {name.casefold() for name in known}
    for entry in component.metadata:
        if entry.name.casefold() not in folded:
            close = difflib.get_close_matches(entry.name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            problems.append(component.problem(f"unknown setting{hint}", setting=entry.name))
    url = component.setting("natsURL")
    if not url:
        problems.append(component.problem(f"component {component.name}: natsURL is required"))
    config: dict[str, object] = {
        "servers": tuple(part.strip() for part in (url or "").split(",")),
        "token": component.setting("token") or None,
        "name": component.setting("name") or f"brokermesh {component.name}",
    }
    jwt, seed = component.setting("jwt"), component.setting("seedKey")
    if bool(jwt) != bool(seed):
        problems.append(component.problem("jwt and seedKey go together", setting="jwt" if jwt else "seedKey"))
    elif jwt:
        config |= {"user_jwt": jwt, "user_seed": seed}
    certificate, key = component.setting("tls_client_cert"), component.setting("tls_client_key")
    if bool(certificate) != bool(key):
        present = "tls_client_cert" if certificate else "tls_client_key"
        problems.append(component.problem("tls_client_cert and tls_client_key go together", setting=present))
    elif certificate and key:
        try:
            config["tls"] = _tls(certificate, key)
        except (OSError, ssl.SSLError) as error:
            problems.append(component.problem(f"cannot be read: {error}", setting="tls_client_cert"))
    if problems:
        raise ConfigError(problems)
    return config


def _tls(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_cert_chain(Path(certificate), Path(key))
    return context
