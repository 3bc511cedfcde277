"""How to reach Kafka: read from a backbone URL, or from the metadata of a component."""

from __future__ import annotations

import difflib
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, unquote

from mesh.durations import parse_duration
from mesh.errors import ConfigError, Problem
from mesh.resources.component import Component

__all__ = ["KafkaConfig"]

DEFAULT_PORT = 9092
MECHANISMS = {"PLAIN": "PLAIN", "PLAINTEXT": "PLAIN", "SHA-256": "SCRAM-SHA-256", "SHA-512": "SCRAM-SHA-512"}
MECHANISMS |= {name: name for name in ("SCRAM-SHA-256", "SCRAM-SHA-512")}
URL_OPTIONS = ("mechanism", "cafile", "certfile", "keyfile", "verify", "partitions")

USED = (
    "brokers",
    "authType",
    "authRequired",
    "saslUsername",
    "saslPassword",
    "saslMechanism",
    "caCert",
    "clientCert",
    "clientKey",
    "skipVerify",
    "disableTls",
    "clientID",
    "initialOffset",
    "maxMessageBytes",
    "sessionTimeout",
    "heartbeatInterval",
    "producerRequiredAcks",
)
# Read elsewhere: the group, and who may use which topic.
COMMON = ("consumerGroup", "consumerID", "allowedTopics", "protectedTopics", "publishingScopes", "subscriptionScopes")
# They tune what this adapter does by itself, or not at all.
IGNORED = (
    "version",
    "compression",
    "producerRetryMax",
    "consumeRetryEnabled",
    "consumeRetryInterval",
    "consumerGroupRebalanceStrategy",
    "channelBufferSize",
    "consumerFetchMin",
    "consumerFetchDefault",
    "dialTimeout",
    "readTimeout",
    "writeTimeout",
    "clientConnectionTopicMetadataRefreshInterval",
    "clientConnectionKeepAliveInterval",
    "escapeHeaders",
    "excludeHeaderMetaRegex",
)
REFUSED = {
    "oidcTokenEndpoint": "OpenID Connect",
    "oidcClientID": "OpenID Connect",
    "oidcClientSecret": "OpenID Connect",
    "oidcScopes": "OpenID Connect",
    "oidcExtensions": "OpenID Connect",
    "schemaRegistryURL": "a schema registry",
    "schemaRegistryAPIKey": "a schema registry",
    "schemaRegistryAPISecret": "a schema registry",
    "schemaCachingEnabled": "a schema registry",
    "schemaLatestVersionCacheTTL": "a schema registry",
}
AUTH_TYPES = ("none", "password", "mtls", "certificate")
TRUE, FALSE = frozenset({"true", "1", "t", "yes", "y", "on"}), frozenset({"false", "0", "f", "no", "n", "off", ""})


@dataclass(frozen=True, slots=True)
class KafkaConfig:
    """How to reach Kafka.

    Attributes:
        brokers: Host and port of some of the cluster's brokers.
        username: For SASL; None for none.
        password: Goes with ``username``.
        mechanism: ``PLAIN``, ``SCRAM-SHA-256`` or ``SCRAM-SHA-512``.
        tls: TLS context; None for plain TCP.
        client_id: The connection's name in the broker's reports.
        connect_wait: Seconds to wait for the first connection.
        request_timeout: Seconds until a broker that is silent is reconnected to.
        session_timeout: Seconds until a member that died is taken for dead.
        partitions: Of each topic that is made.
        max_message_bytes: Largest message; the topics' and the broker's own limit must be above it.
        reach: Other addresses for those that the brokers advertise, for tunnels.
    """

    brokers: tuple[tuple[str, int], ...]
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    mechanism: str = "PLAIN"
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    client_id: str = "brokermesh"
    connect_wait: float = 10.0
    request_timeout: float = 10.0
    session_timeout: float = 6.0
    partitions: int = 8
    max_message_bytes: int = 1_000_000
    reach: Mapping[tuple[str, int], tuple[str, int]] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """Where it points, without credentials."""
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.brokers)
        return f"{'kafka' if self.tls is None else 'kafkas'}://{hosts}"

    def connection_options(self) -> dict[str, object]:
        """Give the client's options for a connection."""
        protocol = ("SASL_" if self.username is not None else "") + ("PLAINTEXT" if self.tls is None else "SSL")
        protocol = {"SASL_PLAINTEXT": "SASL_PLAINTEXT", "PLAINTEXT": "PLAINTEXT", "SSL": "SSL"}.get(
            protocol, "SASL_SSL"
        )
        return {
            "client_id": self.client_id,
            "request_timeout_ms": 600_000,  # Ours are shorter, one by one.
            "ssl_context": self.tls,
            "security_protocol": protocol,
            "sasl_mechanism": self.mechanism if self.username is not None else None,
            "sasl_plain_username": self.username,
            "sasl_plain_password": self.password,
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
            options = dict(parse_qsl(query, strict_parsing=bool(query)))
            brokers = _brokers(hosts)
            partitions = int(options.get("partitions", "8"))
        except ValueError:  # Its text may hold a part of the password.
            raise ConfigError("the backbone URL is not kafka://[user:password@]host[:port][,host[:port]]") from None
        if unknown := options.keys() - set(URL_OPTIONS):
            raise ConfigError(f"unknown option of a Kafka URL: {_with_hint(min(unknown), URL_OPTIONS)}")
        mechanism = MECHANISMS.get(options.get("mechanism", "PLAIN").upper())
        if mechanism is None:
            raise ConfigError(f"mechanism is one of {', '.join(sorted(set(MECHANISMS.values())))}")
        tls = None
        if scheme == "kafkas":
            tls = _tls(options.get("cafile"), verify=options.get("verify", "true").lower() in TRUE)
            if certificate := options.get("certfile"):
                tls.load_cert_chain(certificate, options.get("keyfile"))
        user, colon, password = credentials.partition(":")
        return cls(
            brokers,
            username=unquote(user) if at else None,
            password=unquote(password) if at and colon else None,
            mechanism=mechanism,
            tls=tls,
            partitions=partitions,
        )

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the metadata of ``pubsub.kafka``.

        Raises:
            ConfigError: Holds every setting that is wrong, located.
        """
        return cls(**_Reader(component).read())  # type: ignore[arg-type]  # its keys are our fields


class _Reader:
    """Reads a component's settings, and gathers what is wrong with them."""

    def __init__(self, component: Component) -> None:
        self._component = component
        self._problems: list[Problem] = []

    def _wrong(self, setting: str, message: str) -> None:
        self._problems.append(self._component.problem(message, setting=setting))

    def _text(self, name: str) -> str:
        return (self._component.setting(name) or "").strip()

    def _bool(self, name: str) -> bool:
        text = self._text(name).lower()
        if text not in TRUE | FALSE:
            self._wrong(name, f"is 'true' or 'false', not {text!r}")
        return text in TRUE

    def read(self) -> dict[str, object]:
        """Give the fields of the configuration."""
        self._check_names()
        kind = self._auth_type()
        fields: dict[str, object] = {"brokers": self._brokers(), "tls": self._tls(kind)}
        if kind == "password":
            fields |= self._login()
        if client_id := self._text("clientID"):
            fields["client_id"] = client_id
        if text := self._text("maxMessageBytes"):
            if not text.isascii() or not text.isdigit():
                self._wrong("maxMessageBytes", f"is a whole number, not {text!r}")
            elif int(text) > 64 * 1024:  # Dapr's default of 1,024 has never limited anything either.
                fields["max_message_bytes"] = int(text)
        if text := self._text("sessionTimeout"):
            try:
                fields["session_timeout"] = parse_duration(text)
            except ValueError as error:
                self._wrong("sessionTimeout", str(error))
        if self._text("initialOffset").lower() not in ("", "newest", "oldest"):
            self._wrong("initialOffset", "is 'newest' or 'oldest'")
        if self._text("producerRequiredAcks").lower() not in ("", "all", "-1", "1", "0", "leader", "none"):
            self._wrong("producerRequiredAcks", "is 'all'; this adapter always waits for all")
        if self._problems:
            raise ConfigError(self._problems)
        return fields

    def _check_names(self) -> None:
        known = {name.casefold(): name for name in (*USED, *COMMON, *IGNORED)}
        refused = {name.casefold(): what for name, what in REFUSED.items()}
        for entry in self._component.metadata:
            name = entry.name.casefold()
            if name in refused:
                self._wrong(entry.name, f"{refused[name]} is not supported")
            elif name not in known:
                self._wrong(
                    entry.name, f"unknown setting of pubsub.kafka: {_with_hint(entry.name, tuple(known.values()))}"
                )

    def _brokers(self) -> tuple[tuple[str, int], ...]:
        text = self._text("brokers")
        if not text:
            self._problems.append(self._component.problem("brokers is missing", setting="brokers"))
            return ()
        try:
            return _brokers(text)
        except ValueError:
            self._wrong("brokers", f"is host:port[,host:port], not {text!r}")
            return ()

    def _auth_type(self) -> str:
        kind = self._text("authType").lower()
        if not kind:
            kind = "password" if self._text("saslUsername") or self._bool("authRequired") else "none"
        if kind not in AUTH_TYPES:
            self._wrong("authType", f"is one of {', '.join(AUTH_TYPES)}, not {kind!r}")
        return kind

    def _login(self) -> dict[str, object]:
        username, password = self._text("saslUsername"), self._component.setting("saslPassword")
        if not username or password is None:
            missing = "saslPassword" if username else "saslUsername"
            self._problems.append(self._component.problem(f"{missing} is missing", setting=missing))
        mechanism = MECHANISMS.get((self._text("saslMechanism") or "PLAIN").upper())
        if mechanism is None:
            self._wrong("saslMechanism", f"is one of {', '.join(MECHANISMS)}")
        return {"username": username, "password": password, "mechanism": mechanism}

    def _tls(self, kind: str) -> ssl.SSLContext | None:
        component = self._component
        authority = component.setting("caCert")
        certificate, key = component.setting("clientCert"), component.setting("clientKey")
        if self._bool("disableTls") or (kind == "none" and not authority and not certificate):
            return None
        try:
            context = _tls(None, verify=not self._bool("skipVerify"), authority=authority)
        except (OSError, ValueError) as error:
            self._wrong("caCert", f"cannot be used: {error}")
            return None
        if bool(certificate) != bool(key):
            self._wrong("clientCert" if certificate else "clientKey", "clientCert and clientKey go together")
        elif certificate and key:
            try:
                _load_pair(context, certificate, key)
            except (OSError, ValueError) as error:
                self._wrong("clientCert", f"cannot be used with clientKey: {error}")
        elif kind in ("mtls", "certificate"):
            self._wrong("authType", f"{kind!r} needs clientCert and clientKey")
        return context


def _brokers(text: str) -> tuple[tuple[str, int], ...]:
    found = []
    for each in text.split(","):
        part = each.strip()
        host, colon, port = part.rpartition(":")
        if not colon or (":" in host and not host.endswith("]")):
            host, port = part, str(DEFAULT_PORT)
        if not host or not 0 < int(port) < 65536:
            raise ValueError(part)
        found.append((host.strip("[]"), int(port)))
    return tuple(found)


def _with_hint(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name.casefold(), [each.casefold() for each in known], n=1)
    hint = next((each for each in known if close and each.casefold() == close[0]), None)
    return f"{name!r}" + (f"; did you mean {hint!r}?" if hint else "")


def _tls(authorities: str | None, *, verify: bool, authority: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authorities, cadata=authority)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _load_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Load PEM texts; the ssl module reads files only."""
    with tempfile.TemporaryDirectory() as directory:
        paths = Path(directory, "certificate"), Path(directory, "key")
        for path, text in zip(paths, (certificate, key), strict=True):
            path.touch(mode=0o600)
            path.write_text(text)
        context.load_cert_chain(*paths)
