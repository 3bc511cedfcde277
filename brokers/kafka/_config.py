"""How to reach Kafka: read from a backbone URL, or from the metadata of a component."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar
from urllib.parse import unquote

from brokers.clients.msk import AWS_IAM, MSKSettings, iam_tokens, wrong_settings
from brokers.shared.backoff import CONNECT_WAIT
from brokers.shared.settings import Reading, count_option, hosts_of, layout_setting, shown_hosts, tls_of, url_options
from brokers.shared.tls import TLS_OPTIONS, TLSFiles
from mesh.errors import ConfigError
from mesh.resources.component import Component
from mesh.resources.settings import BOOLEAN, DURATION, VERBATIM, Setting, ignored, refused, setting, whole

if TYPE_CHECKING:
    from aiokafka.abc import AbstractTokenProvider

__all__ = ["ConnectionSettings", "KafkaConfig", "KafkaReading", "KafkaSettings"]

DEFAULT_PORT = 9092
MECHANISMS = {"PLAIN": "PLAIN", "PLAINTEXT": "PLAIN", "SHA-256": "SCRAM-SHA-256", "SHA-512": "SCRAM-SHA-512"}
MECHANISMS |= {name: name for name in ("SCRAM-SHA-256", "SCRAM-SHA-512")}
URL_OPTIONS = (*TLS_OPTIONS, "mechanism", "partitions", "replicas")

AUTH_TYPES = ("none", "password", "mtls", "certificate", AWS_IAM)
_Settings = TypeVar("_Settings", bound="ConnectionSettings")


# Of no effect in either layout.
_IGNORED = (
    *ignored("it is agreed with the broker", "version"),
    *ignored("a publish is retried until its deadline", "producerRetryMax"),
    *ignored("a publish waits for all replicas", "producerRequiredAcks", anyway=("all", "-1")),
    *ignored("the mesh retries alike on every broker, see Resiliency", "consumeRetryEnabled", "consumeRetryInterval"),
    *ignored(
        "what is fetched is bounded by bytes, and the times are fixed",
        *("channelBufferSize", "consumerFetchMin", "consumerFetchDefault", "writeTimeout"),
        *("clientConnectionTopicMetadataRefreshInterval", "clientConnectionKeepAliveInterval"),
    ),
    *MSKSettings.ignored,
)


@dataclass(frozen=True)
class ConnectionSettings(MSKSettings):
    """What both layouts of ``pubsub.kafka`` read alike; without slots, so that it can be one of two bases."""

    ignored: ClassVar[tuple[Setting, ...]] = _IGNORED

    brokers: str = setting(
        "brokers",
        "Host and port of some brokers of the cluster, separated by commas.",
        required=True,
        default="",
        example="localhost:9092",
    )
    auth: str = setting(
        "authType",
        "How to log in: `none`; `password`, by SASL and over TLS unless `disableTls`; `mtls` or `certificate`; "
        "`awsiam`, to Amazon MSK as an identity of AWS. If not set, `password` when there is a `saslUsername`.",
        default="",
        example="password",
    )
    auth_required: bool = setting(
        "authRequired", "An older way to say `password` in `authType`.", BOOLEAN, default=False
    )
    username: str = setting("saslUsername", "The user of SASL.", default="", example="shop")
    password: str | None = setting("saslPassword", "Its password.", VERBATIM, secret=True)
    mechanism: str = setting(
        "saslMechanism", "`PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`, also without `SCRAM-`.", default="PLAIN"
    )
    ca: str = setting(
        "caCert",
        "Whom to trust, a PEM text or a path; `authType: none` uses TLS then, too.",
        default="",
        example="ca.pem",
    )
    certificate: str = setting(
        "clientCert", "The client's certificate, a PEM text or a path.", default="", example="client.pem"
    )
    key: str = setting("clientKey", "Its private key, a PEM text or a path.", default="", secret=True)
    unverified: bool = setting("skipVerify", "Whether to accept any certificate.", BOOLEAN, default=False)
    without_tls: bool = setting("disableTls", "Whether to do without TLS.", BOOLEAN, default=False)
    client_id: str = setting("clientID", "The connection's name in the broker's reports.", default="brokermesh")
    group: str | None = setting("consumerGroup", "The group; goes before `consumerID`.", example="shop")
    max_message_bytes: int | None = setting(
        "maxMessageBytes",
        "The largest message, from 64 KiB on; smaller values are not applied. 1,000,000.",
        whole(),
        example="1000000",
    )


@dataclass(frozen=True, slots=True)
class KafkaSettings(ConnectionSettings):
    """Settings of ``pubsub.kafka`` with ``layout: mesh``."""

    ignored: ClassVar[tuple[Setting, ...]] = (
        *_IGNORED,
        *ignored("batches are not compressed", "compression", anyway=("none",)),
        *ignored("a new group begins with the oldest event", "initialOffset", anyway=("oldest",)),
        *ignored("it is a sixth of sessionTimeout", "heartbeatInterval"),
        *ignored("the times are fixed", "dialTimeout", "readTimeout"),
        *ignored("the mesh gives out partitions", "consumerGroupRebalanceStrategy"),
        *ignored("headers are the mesh's own", "escapeHeaders", "excludeHeaderMetaRegex", anyway=("false",)),
        *refused(
            "OpenID Connect in this layout",
            *("oidcTokenEndpoint", "oidcClientID", "oidcClientSecret", "oidcScopes", "oidcExtensions"),
            *("oidcClientAssertionCert", "oidcClientAssertionKey", "oidcResource", "oidcAudience"),
        ),
        *refused(
            "Avro with a schema registry in this layout",
            *("schemaRegistryURL", "schemaRegistryAPIKey", "schemaRegistryAPISecret", "schemaCachingEnabled"),
            *("useAvroJson", "schemaLatestVersionCacheTTL"),
        ),
    )

    layout: str = layout_setting()
    session: float = setting(
        "sessionTimeout", "Time until the partitions of a member that died go to others.", DURATION, default=6.0
    )


@dataclass(frozen=True, slots=True)
class KafkaConfig:
    """How to reach Kafka.

    Attributes:
        brokers: Host and port of some of the cluster's brokers.
        username: For SASL; None for none.
        password: Goes with ``username``.
        mechanism: ``PLAIN``, ``SCRAM-SHA-256`` or ``SCRAM-SHA-512``.
        tokens: Gives those to log in with instead, by OAUTHBEARER; None for none.
        tls: TLS context; None for plain TCP.
        client_id: The connection's name in the broker's reports.
        connect_wait: Seconds that an attempt to connect may take.
        request_timeout: Seconds until a broker that is silent is reconnected to.
        session_timeout: Seconds until a member that died is taken for dead.
        partitions: Of each topic that is made.
        replicas: Copies of each topic that is made; None for what its topology asks for.
        max_message_bytes: Largest message; the topics' and the broker's own limit must be above it.
    """

    brokers: tuple[tuple[str, int], ...]
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    mechanism: str = "PLAIN"
    tokens: AbstractTokenProvider | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    client_id: str = "brokermesh"
    connect_wait: float = CONNECT_WAIT
    request_timeout: float = 10.0
    session_timeout: float = 6.0
    partitions: int = 8
    replicas: int | None = None
    max_message_bytes: int = 1_000_000

    @property
    def shown(self) -> str:
        """Where it points, without credentials."""
        return f"{'kafka' if self.tls is None else 'kafkas'}://{shown_hosts(self.brokers)}"

    def connection_options(self) -> dict[str, object]:
        """Give the client's options for a connection."""
        sasl = self.mechanism if self.username is not None else None
        sasl = "OAUTHBEARER" if self.tokens is not None else sasl
        protocol = ("" if sasl is None else "SASL_") + ("PLAINTEXT" if self.tls is None else "SSL")
        return {
            "client_id": self.client_id,
            "request_timeout_ms": 600_000,  # Ours are shorter, one by one.
            "ssl_context": self.tls,
            "security_protocol": protocol,
            "sasl_mechanism": sasl,
            "sasl_plain_username": self.username,
            "sasl_plain_password": self.password,
            "sasl_oauth_token_provider": self.tokens,
        }

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Read ``kafka[s]://[user:password@]host[:port][,host[:port]]…[?option=value]``.

        Raises:
            ConfigError: It is not such a URL.
        """
        scheme, _, rest = url.partition("://")
        if scheme not in ("kafka", "kafkas"):
            raise ConfigError(f"a Kafka URL begins with kafka:// or kafkas://, not {scheme}://")
        rest, _, query = rest.partition("?")
        credentials, at, hosts = rest.rstrip("/").rpartition("@")
        try:
            brokers = hosts_of(hosts, DEFAULT_PORT)
        except ValueError:  # Its text may hold a part of the password.
            raise ConfigError("the backbone URL is not kafka://[user:password@]host[:port][,host[:port]]") from None
        options = url_options("Kafka", query, URL_OPTIONS)
        mechanism = MECHANISMS.get(options.get("mechanism", "PLAIN").upper())
        if mechanism is None:
            raise ConfigError(f"option mechanism is one of {', '.join(sorted(set(MECHANISMS.values())))}")
        files = tls_of(options, None if scheme == "kafkas" else "kafkas")
        if "mechanism" in options and not at:
            raise ConfigError("option mechanism needs user:password@ before the host")
        user, _, password = credentials.partition(":")
        return cls(
            brokers,
            username=unquote(user) if at else None,
            password=unquote(password) if at else None,
            mechanism=mechanism,
            tls=None if files is None else files.context(),
            partitions=count_option(options, "partitions") or 8,
            replicas=count_option(options, "replicas"),
        )

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the metadata of ``pubsub.kafka``.

        Raises:
            ConfigError: Holds every setting that is wrong, located.
        """
        reader = _MeshReading(component, KafkaSettings)
        fields = reader.read() | {"session_timeout": reader.found.session}
        reader.finish()
        return cls(**fields)  # type: ignore[arg-type]  # its keys are our fields


class KafkaReading(Reading[_Settings]):
    """Reads how to reach the cluster that a ``pubsub.kafka`` is on.

    Attributes:
        auth_types: The ways to log in.
    """

    auth_types: ClassVar[tuple[str, ...]] = AUTH_TYPES

    def read(self) -> dict[str, object]:
        """Give fields of the configuration; ``finish`` raises what is wrong."""
        found, kind = self.found, self._auth_type()
        fields: dict[str, object] = {
            "brokers": self._brokers(),
            "tls": self._tls(kind),
            "connect_wait": self.connect_wait,
            "client_id": found.client_id,
        }
        if kind == "password":
            fields |= self._login()
        elif kind == AWS_IAM:
            problems = list(wrong_settings(found))
            for name, message in problems:
                self.wrong(name, message)
            fields["tokens"] = None if problems else iam_tokens(found)
        limit = found.max_message_bytes
        if limit is not None and limit > 64 * 1024:  # Dapr's default of 1,024 has never limited anything either.
            fields["max_message_bytes"] = limit
        if self.text("producerRequiredAcks").lower() not in ("", "all", "-1", "1", "0", "leader", "none"):
            self.wrong("producerRequiredAcks", "is 'all'; this adapter always waits for all")
        return fields

    def _brokers(self) -> tuple[tuple[str, int], ...]:
        text = self.found.brokers
        try:
            return hosts_of(text, DEFAULT_PORT) if text else ()
        except ValueError:
            self.wrong("brokers", "is host:port[,host:port]; a login is in saslUsername and saslPassword")
            return ()

    def _auth_type(self) -> str:
        found = self.found
        kind = found.auth.lower() or ("password" if found.username or found.auth_required else "none")
        if kind not in self.auth_types:
            self.wrong("authType", f"is one of {', '.join(self.auth_types)}, not {kind!r}")
        if kind == "none":
            self.useless("with the authType none", "saslUsername", "saslPassword", "saslMechanism")
        return kind

    def _login(self) -> dict[str, object]:
        username = self.found.username
        if not username or self.component.entry("saslPassword") is None:
            missing = "saslPassword" if username else "saslUsername"
            self.wrong(missing, f"{missing} is missing")
        mechanism = MECHANISMS.get(self.found.mechanism.upper())
        if mechanism is None:
            self.wrong("saslMechanism", f"is one of {', '.join(MECHANISMS)}")
        return {"username": username, "password": self.found.password or "", "mechanism": mechanism}

    def _tls(self, kind: str) -> ssl.SSLContext | None:
        found = self.found
        ours = found.certificate or found.key
        if found.without_tls or (kind == "none" and not found.ca and not ours):
            self.without_tls("disableTls turns it off", "skipVerify")
            return None
        if kind == "mtls" and not ours:
            self.wrong("authType", f"{kind!r} needs clientCert and clientKey")
        if kind == "certificate" and not (ours or found.ca):
            self.wrong("authType", f"{kind!r} needs caCert, or clientCert and clientKey")
        files = TLSFiles(verify=not found.unverified)
        return self.tls("clientCert", "clientKey", ca="caCert", files=files)


class _MeshReading(KafkaReading[KafkaSettings]):
    """Reads the settings of ``layout: mesh``."""

    def read(self) -> dict[str, object]:
        """Give fields of the configuration."""
        if self.text("initialOffset").lower() not in ("", "newest", "oldest"):
            self.wrong("initialOffset", "is 'newest' or 'oldest'")
        return KafkaReading.read(self)
