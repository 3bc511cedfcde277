"""What ``pubsub.pulsar`` is told, and the tokens that it logs in with."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

from pulsar import CompressionType, ConsumerType, InitialPosition

from brokers.native._topics import NativeSettings
from brokers.shared.backoff import CONNECT_WAIT
from brokers.shared.settings import Reading, hosts_of
from brokers.shared.tls import TLSFiles
from mesh.registry import needs
from mesh.resources.component import Component, MetadataEntry
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
from mesh.values import parse_bool

if TYPE_CHECKING:
    from brokers.native._pulsar_schemas import TopicSchema

__all__ = ["COMPRESSIONS", "POSITIONS", "TYPES", "PulsarSettings", "Tokens", "read"]

logger = logging.getLogger("brokers.pulsar")

DEFAULT_PORT = 6650
BATCHING = ("batchingMaxPublishDelay", "batchingMaxSize", "batchingMaxMessages")
TOKEN_SECONDS = 5.0
MAX_TOKEN_BYTES = 64 * 1024
TOKEN_SHARE = 0.8  # Of a token's life, after which another is fetched.
SCHEMA = '{"type":"record","name":"Order","fields":[{"name":"id","type":"int"}]}'
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
        *ignored("the library has one level of each kind", "compressionLevel"),
        *ignored("there are no patterns of topics", "autoDiscoveryPeriod"),
        *refused("a pattern of topics", "topicsPattern"),
        *refused("a schema of Protocol Buffers, which events are not written in,", ".protoschema"),
    )

    layout: str = setting(
        "layout", "`native`: topics as every other program on the broker has them.", choice("native"), default="native"
    )
    host: str = setting("host", "Host and port of the broker; several with commas.", required=True, default="",
                        example="localhost:6650")  # fmt: skip
    listener: str | None = setting(
        "listenerName", "Which of a broker's advertised addresses to use.", example="external"
    )
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
    credentials: str | None = setting(
        "oauth2CredentialsFile",
        "A file of JSON with `client_id`, `client_secret` and `issuer_url`, the last in place of `oauth2TokenURL`.",
        example="/run/secrets/pulsar.json",
    )
    scopes: str = setting("oauth2Scopes", "What the token is for, with commas.", default="", example="messages")
    audiences: str = setting("oauth2Audiences", "Whom it is for, with commas.", default="", example="pulsar")
    token_ca: str | None = setting("oauth2TokenCAPEM", "Whom to trust there, a PEM text or a path.", example="ca.pem")
    unbatched: bool | None = setting(
        "disableBatching",
        "Whether each event is a message of its own; if not set, it is, unless one of the next three is set.",
        BOOLEAN, example="true",
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
    ahead: int = setting(
        "receiverQueueSize",
        "Most events that a member of a group fetches ahead, of each partition at least one; no other gets these.",
        COUNT, default=10,
    )  # fmt: skip
    redelivery: float | None = setting(
        "redeliveryDelay",
        "How long an event waits at least that the application refused; if not set, as resiliency says.",
        lasting(), default=None, aliases=("nackRedeliveryDelay",),
    )  # fmt: skip
    concurrency: int = setting(
        "maxConcurrentHandlers", "Most events of a subscription at work at once at one instance.", COUNT, default=100
    )
    process_mode: str = setting(
        "processMode", "`sync`: one event after another; a subscription may say it too.",
        choice("async", "sync"), default="async",
    )  # fmt: skip
    json_schema: str = setting(
        ".jsonschema",
        "After a topic's name: the schema of its events' data, in Avro's language. The broker keeps it for the topic.",
        default="", example=SCHEMA,
    )  # fmt: skip
    avro_schema: str = setting(
        ".avroschema", "The same, for events that are Avro on the broker, and JSON here.", default="", example=SCHEMA
    )
    raw_schema: bool = setting(
        ".rawschema", "After a topic's name: whether its messages are the data alone, without an envelope.",
        BOOLEAN, default=False,
    )  # fmt: skip
    dial: float = setting("dialTimeout", "How long an attempt to connect may take.", lasting(), default=CONNECT_WAIT)

    def topic(self, name: str) -> str:
        """Give a topic's full name."""
        return f"{'' if self.persistent else 'non-'}persistent://{self.tenant}/{self.namespace}/{name}"


def read(
    component: Component,
) -> tuple[PulsarSettings, str, tuple[tuple[str, int], ...], float, Mapping[str, TopicSchema]]:
    """Read a component; give its settings, the URL's scheme, hosts, the seconds to connect, and topics' schemas.

    Raises:
        ConfigError: Holds every setting that is wrong, located.
        MissingDependencyError: There are schemas, and what reads them is not installed.
    """
    return _Reader(component, PulsarSettings).read()


class _Reader(Reading[PulsarSettings]):
    def read(self) -> tuple[PulsarSettings, str, tuple[tuple[str, int], ...], float, Mapping[str, TopicSchema]]:
        found = self.found
        scheme, _, rest = found.host.rpartition("://")
        hosts: tuple[tuple[str, int], ...] = ()
        if found.host:
            try:
                hosts = hosts_of(rest.rstrip("/"), DEFAULT_PORT)
            except ValueError:
                self.wrong("host", "is host:port, or several with commas")
        if scheme not in ("", "pulsar", "pulsar+ssl", "http", "https"):
            self.wrong("host", "begins with pulsar://, pulsar+ssl://, http://, https:// or none of these")
        if not scheme.startswith("http"):
            scheme = "pulsar+ssl" if found.tls or scheme == "pulsar+ssl" else "pulsar"
        if found.unbatched is None:
            found = replace(found, unbatched=not any(self.text(name) for name in BATCHING))
        self._keys()
        schemas = self._schemas()
        self.finish()
        return found, scheme, hosts, min(self.connect_wait, found.dial), schemas

    def _keys(self) -> None:
        found = self.found
        oauth = found.client_id, found.client_secret or found.secret_path
        if found.token_url and not (all(oauth) or found.credentials):
            needed = "oauth2ClientID, and oauth2ClientSecret or oauth2ClientSecretPath, or oauth2CredentialsFile"
            self.wrong("oauth2TokenURL", f"needs {needed}")
        if any(oauth) and not (found.token_url or found.credentials):
            self.wrong("oauth2ClientID" if found.client_id else "oauth2ClientSecret", "needs oauth2TokenURL")
        if found.keys and not found.public_key:
            self.wrong("keys", "needs publicKey")
        if found.keys and "," in found.keys:
            self.wrong("keys", "is one name: the client library encrypts for one key")
        if found.public_key and not (found.keys or found.private_key):
            self.wrong("publicKey", "needs keys, privateKey or both")

    def _schemas(self) -> Mapping[str, TopicSchema]:
        """Read the schemas of topics, by their full names."""
        made: dict[str, TopicSchema] = {}
        for entry in self.component.metadata:
            topic, _, kind = entry.name.rpartition(".")
            names = f"{topic}.jsonschema", f"{topic}.avroschema"
            there = [name for name in names if self.component.entry(name)]
            match kind.lower() if topic else "":
                case "protoschema":
                    self.wrong(entry.name, "is not supported: events are not written in Protocol Buffers")
                case "rawschema" if not there:
                    self.wrong(entry.name, f"needs {' or '.join(names)}")
                case "jsonschema" | "avroschema" if len(there) > 1:
                    self.wrong(entry.name, "is one of two schemas of a topic")
                case "jsonschema" | "avroschema" as known if not self.component.assumes(entry.name):
                    self._schema(entry, topic, known, made)
                case _:
                    pass
        return made

    def _schema(self, entry: MetadataEntry, topic: str, kind: str, made: dict[str, TopicSchema]) -> None:
        try:
            from brokers.native._pulsar_schemas import TopicSchema
        except ModuleNotFoundError as error:
            raise needs(entry.name, error.name or "") from error
        raw = f"{topic}.rawschema"
        try:
            is_raw = parse_bool(self.text(raw) or "false")
        except ValueError as error:
            self.wrong(raw, str(error))
            return
        try:
            made[self.found.topic(topic)] = TopicSchema(entry.text() or "", kind, raw=is_raw)
        except ValueError as error:
            self.wrong(entry.name, f"is no schema in Avro's language: {error}")


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
                place = self.settings.token_url or f"the issuer in {self.settings.credentials}"
                logger.warning("no token from %s: %s", urlsplit(place).hostname or place, error)
                return ""
        return self.token

    def _fetch(self) -> tuple[str, float]:
        found = self.settings
        given = json.loads(Path(found.credentials).read_text()) if found.credentials else {}
        secret = given.get("client_secret") or found.client_secret
        form = {
            "grant_type": "client_credentials",
            "client_id": given.get("client_id") or found.client_id or "",
            "client_secret": secret or _secret_in(Path(found.secret_path or "").read_text()),
            "scope": " ".join(found.scopes.replace(",", " ").split()),
            "audience": " ".join(found.audiences.replace(",", " ").split()),
        }
        body = urlencode({name: value for name, value in form.items() if value}).encode()
        url = str(found.token_url or given["issuer_url"])
        if not url.startswith(("http:", "https:")):
            raise ValueError("issuer_url is no URL of http or https")
        tls = TLSFiles(found.token_ca).context() if url.startswith("https:") else None
        with urlopen(Request(url, body), timeout=TOKEN_SECONDS, context=tls) as answer:  # noqa: S310 - a URL of http
            reply = json.loads(answer.read(MAX_TOKEN_BYTES))
        return str(reply["access_token"]), float(reply.get("expires_in", 60))


def _secret_in(text: str) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(text)["client_secret"])
    return text.strip()
