"""The settings of ``pubsub.kafka`` in the native layout."""

from __future__ import annotations

import json
import re
import ssl
from dataclasses import dataclass
from typing import ClassVar

from brokers.kafka._config import AUTH_TYPES, ConnectionSettings, KafkaConfig, KafkaReading
from brokers.native._topics import NativeSettings
from brokers.shared.backoff import CONNECT_WAIT
from brokers.shared.settings import layout_setting
from mesh.resources.component import Component
from mesh.resources.settings import BOOLEAN, URL, VERBATIM, Kind, Setting, choice, lasting, refused, setting

__all__ = ["NativeKafkaSettings", "read"]

NO_JWT = "the login of OpenID Connect by a signed assertion (`authType: oidc` with a secret is)"
_MOST = 24 * 3600.0


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (each.strip() for each in text.split(","))))


def _texts(text: str) -> dict[str, str]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("is a JSON object of texts")
    return found


@dataclass(frozen=True, slots=True)
class NativeKafkaSettings(ConnectionSettings, NativeSettings):
    """What is read of a component."""

    ignored: ClassVar[tuple[Setting, ...]] = (
        *ConnectionSettings.ignored,
        *refused(NO_JWT, "oidcClientAssertionCert", "oidcClientAssertionKey", "oidcResource", "oidcAudience"),
    )

    layout: str = layout_setting()
    auth: str = setting(
        "authType",
        "How to log in: `none`; `password`, by SASL and over TLS unless `disableTls`; `mtls` or `certificate`; `oidc`, "
        "by a token for the client's credentials; `awsiam`, to Amazon MSK as an identity of AWS. If not set, "
        "`password` when there is a `saslUsername`.",
        default="",
        example="password",
    )
    token_endpoint: str = setting(
        "oidcTokenEndpoint",
        "Where `authType: oidc` gets tokens.",
        URL,
        default="",
        example="https://login.example.com/token",
    )
    oidc_client: str = setting("oidcClientID", "The client's name there.", default="", example="shop")
    oidc_secret: str = setting("oidcClientSecret", "Its secret.", VERBATIM, default="", secret=True)
    scopes: tuple[str, ...] = setting(
        "oidcScopes",
        "What the token is for, separated by commas; if not set, `openid`.",
        Kind("names, separated by commas", _words),
        default=(),
        example="kafka",
    )
    extensions: dict[str, str] | None = setting(  # noqa: RUF009 - a frozen value
        "oidcExtensions",
        "What is said to the broker beside the token.",
        Kind("JSON object of texts", _texts),
        example='{"logicalCluster":"lkc-1"}',
    )
    initial: str = setting(
        "initialOffset", "Where a new group begins: `newest` or `oldest`.", choice("newest", "oldest"), default="newest"
    )
    strategy: str = setting(
        "consumerGroupRebalanceStrategy",
        "How partitions are given out; all members of a group must say the same.",
        choice("range", "roundrobin", "sticky"),
        default="range",
    )
    session: float = setting(
        "sessionTimeout", "Time until the partitions of a member that died go to others.", lasting(_MOST), default=10.0
    )
    heartbeat: float = setting(
        "heartbeatInterval",
        "Time between signs of life of a member, at most a third of `sessionTimeout`.",
        lasting(_MOST),
        default=3.0,
    )
    compression: str = setting(
        "compression", "Of what is written.", choice("none", "gzip", "snappy", "lz4", "zstd"), default="none"
    )
    dial: float = setting(
        "dialTimeout", "How long an attempt to connect may take.", lasting(_MOST), default=CONNECT_WAIT
    )
    answer: float = setting(
        "readTimeout",
        "How long an answer may take, until another connection is made.",
        lasting(_MOST),
        default=10.0,
    )
    escape: bool = setting("escapeHeaders", "Whether values of headers are URL-encoded.", BOOLEAN, default=False)
    excluded: re.Pattern[str] | None = setting(  # noqa: RUF009 - a frozen value
        "excludeHeaderMetaRegex",
        "Metadata whose names match are not written as headers.",
        Kind("regular expression", _pattern),
        example="^traceparent$",
    )
    registry: str = setting(
        "schemaRegistryURL",
        "The schema registry of topics with `valueSchemaType: Avro`.",
        URL,
        default="",
        example="https://registry.example.com",
    )
    registry_key: str = setting("schemaRegistryAPIKey", "Its user.", default="", example="shop")
    registry_secret: str = setting("schemaRegistryAPISecret", "Its password.", VERBATIM, default="", secret=True)
    caching: bool = setting("schemaCachingEnabled", "Whether schemas are kept.", BOOLEAN, default=True)
    latest_for: float = setting(
        "schemaLatestVersionCacheTTL",
        "How long a topic's latest schema is taken to be that.",
        lasting(_MOST),
        default=300.0,
    )
    avro_json: bool = setting(
        "useAvroJson",
        "Whether JSON is as the Avro specification writes it, where a value of a union names its type; else plain.",
        BOOLEAN,
        default=False,
    )


class _Reading(KafkaReading[NativeKafkaSettings]):
    """Reads the settings of ``layout: native``."""

    auth_types = (*AUTH_TYPES, "oidc")

    def read(self) -> dict[str, object]:
        """Give the fields of the configuration."""
        found = self.found
        fields = KafkaReading.read(self) | {"session_timeout": found.session}
        fields["request_timeout"] = found.answer
        fields["connect_wait"] = min(found.dial, self.connect_wait)
        if found.auth.lower() == "oidc":
            for name in ("oidcTokenEndpoint", "oidcClientID", "oidcClientSecret"):
                if not self.text(name) and not self.component.assumes(name):
                    self.wrong("authType", f"'oidc' needs {name}")
            tls = fields["tls"]
            fields["tokens"] = self._tokens(tls if isinstance(tls, ssl.SSLContext) and found.ca else None)
        if found.registry_secret and not found.registry_key:
            self.wrong("schemaRegistryAPISecret", "schemaRegistryAPIKey and schemaRegistryAPISecret go together")
        return fields

    def _auth_type(self) -> str:
        if self.found.auth.lower() == "oidc_private_key_jwt":
            self.wrong("authType", f"{NO_JWT} is not supported")
            return "none"
        return KafkaReading._auth_type(self)

    def _tokens(self, tls: ssl.SSLContext | None) -> object:
        from brokers.native._oidc import ClientCredentials

        found = self.found
        credentials = found.oidc_client, found.oidc_secret
        return ClientCredentials(found.token_endpoint, credentials, found.scopes, found.extensions or {}, tls)


def read(component: Component) -> tuple[NativeKafkaSettings, KafkaConfig]:
    """Read the metadata of ``pubsub.kafka``.

    Raises:
        ConfigError: Holds every setting that is wrong, located.
    """
    reading = _Reading(component, NativeKafkaSettings)
    fields = reading.read()
    reading.finish()
    return reading.found, KafkaConfig(**fields)  # type: ignore[arg-type]  # its keys are its fields
