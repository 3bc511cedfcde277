"""What ``pubsub.pulsar`` is told, and the tokens that it logs in with."""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

from pulsar import CompressionType, ConsumerType, InitialPosition

from brokers.native._topics import NativeSettings
from brokers.shared.backoff import CONNECT_WAIT
from brokers.shared.tls import TLSFiles
from mesh.resources.settings import (
    BOOLEAN,
    COUNT,
    SIZE,
    URL,
    VERBATIM,
    Setting,
    choice,
    ignored,
    lasting,
    refused,
    setting,
)

__all__ = ["COMPRESSIONS", "POSITIONS", "TYPES", "PulsarSettings", "Tokens"]

logger = logging.getLogger("brokers.pulsar")

TOKEN_SECONDS = 5.0
MAX_TOKEN_BYTES = 64 * 1024
TOKEN_SHARE = 0.8  # Of a token's life, after which another is fetched.
TYPES = {
    "shared": ConsumerType.Shared,
    "key_shared": ConsumerType.KeyShared,
    "exclusive": ConsumerType.Exclusive,
    "failover": ConsumerType.Failover,
}
POSITIONS = {"latest": InitialPosition.Latest, "earliest": InitialPosition.Earliest}
COMPRESSIONS = {
    "none": CompressionType.NONE,
    "lz4": CompressionType.LZ4,
    "zlib": CompressionType.ZLib,
    "zstd": CompressionType.ZSTD,
}


@dataclass(frozen=True)
class PulsarSettings(NativeSettings):
    """Settings of ``pubsub.pulsar``."""

    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored("the mesh retries alike on every broker, see Resiliency", "redeliveryDelay", "nackRedeliveryDelay"),
        *ignored("as many events are asked for as there is room for at this instance", "receiverQueueSize"),
        *ignored("the library has one level of each kind", "compressionLevel"),
        *refused("a file of credentials; set oauth2ClientID, oauth2ClientSecret", "oauth2CredentialsFile"),
    )

    layout: str = setting(
        "layout", "`native`: topics as every other program on the broker has them.", choice("native"), default="native"
    )
    host: str = setting("host", "Host and port of the broker; several with commas.", required=True, default="",
                        example="localhost:6650")  # fmt: skip
    tls: bool = setting("enableTLS", "Whether to use TLS.", BOOLEAN, default=False)
    ca: str | None = setting(
        "caCert", "Whom to trust, a PEM text or a path; if not set, whom the client library trusts.", example="ca.pem"
    )
    tenant: str = setting("tenant", "The tenant of the topics.", default="public")
    namespace: str = setting("namespace", "Their namespace.", default="default")
    persistent: bool = setting("persistent", "Whether the broker stores what is published.", BOOLEAN, default=True)
    token: str | None = setting("token", "A token (JWT) to log in with.", VERBATIM, secret=True)
    token_url: str | None = setting("oauth2TokenURL", "Where to get a token, by OAuth 2.", URL)
    client_id: str | None = setting("oauth2ClientID", "As whom.", example="shop")
    client_secret: str | None = setting("oauth2ClientSecret", "The secret of it.", VERBATIM, secret=True)
    secret_path: str | None = setting(
        "oauth2ClientSecretPath", "A file that holds the secret, as text or as JSON.", example="/run/secrets/pulsar"
    )
    scopes: str = setting("oauth2Scopes", "What the token is for, with commas.", default="", example="messages")
    audiences: str = setting("oauth2Audiences", "Whom it is for, with commas.", default="", example="pulsar")
    token_ca: str | None = setting("oauth2TokenCAPEM", "Whom to trust there, a PEM text or a path.", example="ca.pem")
    unbatched: bool = setting(
        "disableBatching", "Whether each event is a message of its own. A batch comes again as a whole.",
        BOOLEAN, default=True,
    )  # fmt: skip
    batch_delay: float = setting("batchingMaxPublishDelay", "How long a batch waits.", lasting(), default=0.01)
    batch_size: int = setting("batchingMaxSize", "Most bytes of a batch.", SIZE, default=128 * 1024)
    batch_messages: int = setting("batchingMaxMessages", "Most events of a batch.", COUNT, default=1000)
    compression: str = setting("compressionType", "How events are compressed.", choice(*COMPRESSIONS), default="none")
    public_key: str | None = setting(
        "publicKey", "The key to encrypt events with, a PEM text or a path.", example="public.pem"
    )
    private_key: str | None = setting("privateKey", "The key to decrypt them, a PEM text or a path.", secret=True)
    keys: str | None = setting("keys", "The name that `publicKey` has in messages.", example="shop")
    kind: str = setting(
        "subscribeType", "How members of a group share a topic; a subscription may say it too.",
        choice(*TYPES), default="shared", aliases=("subscriptionType",),
    )  # fmt: skip
    position: str = setting(
        "subscribeInitialPosition", "Where a group begins that is new.", choice(*POSITIONS), default="latest"
    )
    mode: str = setting(
        "subscribeMode", "`durable`: a group's place is kept. The client library has nothing else.",
        choice("durable"), default="durable",
    )  # fmt: skip
    replicate: bool = setting(
        "replicateSubscriptionState", "Whether a group's place goes to other clusters.", BOOLEAN, default=False
    )
    concurrency: int = setting(
        "maxConcurrentHandlers", "Most events of a subscription at work at once at one instance.", COUNT, default=100
    )
    process_mode: str = setting(
        "processMode", "`sync`: one event after another; a subscription may say it too.",
        choice("async", "sync"), default="async",
    )  # fmt: skip

    dial: float = setting("dialTimeout", "How long an attempt to connect may take.", lasting(), default=CONNECT_WAIT)

    def topic(self, name: str) -> str:
        """Give a topic's full name."""
        return f"{'' if self.persistent else 'non-'}persistent://{self.tenant}/{self.namespace}/{name}"


@dataclass
class Tokens:
    """Fetches tokens, in the library's own threads."""

    settings: PulsarSettings
    token: str = ""
    until: float = field(default=0.0)

    def __call__(self) -> str:
        """Give a token that holds; an empty one if there is none: what is raised here would end the process."""
        if time.monotonic() >= self.until:
            try:
                self.token, lasts = self._fetch()
                self.until = time.monotonic() + lasts * TOKEN_SHARE
            except Exception as error:  # noqa: BLE001 - see above
                logger.warning("no token from %s: %s", urlsplit(self.settings.token_url or "").hostname, error)
                return ""
        return self.token

    def _fetch(self) -> tuple[str, float]:
        found = self.settings
        form = {
            "grant_type": "client_credentials",
            "client_id": found.client_id or "",
            "client_secret": found.client_secret or _secret_in(Path(found.secret_path or "").read_text()),
            "scope": " ".join(found.scopes.replace(",", " ").split()),
            "audience": " ".join(found.audiences.replace(",", " ").split()),
        }
        body = urlencode({name: value for name, value in form.items() if value}).encode()
        url = found.token_url or ""
        tls = TLSFiles(found.token_ca).context() if url.startswith("https:") else None
        with urlopen(Request(url, body), timeout=TOKEN_SECONDS, context=tls) as answer:  # noqa: S310 - a URL of http
            reply = json.loads(answer.read(MAX_TOKEN_BYTES))
        return str(reply["access_token"]), float(reply.get("expires_in", 60))


def _secret_in(text: str) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(text)["client_secret"])
    return text.strip()
