"""Where spans go: ``spec.tracing`` of a Configuration, and where that does not say, the variables of OpenTelemetry.

Source: OpenTelemetry specification, "OpenTelemetry Protocol Exporter" and "Environment Variable Specification".
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from mesh.errors import ConfigError, Problem
from mesh.resources.component import TOKEN, header_refusal
from mesh.resources.configuration import GRPC_PORT, OTel, Tracing
from mesh.urls import names_a_host, port_of

__all__ = ["OTLP", "Targets", "resource_of", "targets_of"]

logger = logging.getLogger(__name__)

GENERAL, OF_TRACES = "OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_"
TIMEOUT_SECONDS = 10.0
HTTP_PATH = "/v1/traces"
_JSON = "http/json"
_PROTOCOLS: Mapping[str, Literal["grpc", "http"]] = {
    "grpc": "grpc",
    "http": "http",
    "http/protobuf": "http",
    _JSON: "http",
}


@dataclass(frozen=True, slots=True)
class OTLP:
    """A collector that speaks OTLP.

    Attributes:
        protocol: Over what.
        endpoint: A URL for HTTP, ``host:port`` for gRPC.
        insecure: Without TLS.
        headers: Sent with each batch.
        timeout: Seconds that a batch may take, further attempts included.
        gzip: Whether batches are compressed.
        from_environment: Whether no file names it.
    """

    protocol: Literal["grpc", "http"]
    endpoint: str
    insecure: bool
    headers: Mapping[str, str] = field(repr=False)
    timeout: float = TIMEOUT_SECONDS
    gzip: bool = False
    from_environment: bool = False

    @property
    def where(self) -> str:
        """The place, for people."""
        return self.endpoint.partition("?")[0].rpartition("@")[2]  # Either may hold a secret.


@dataclass(frozen=True, slots=True)
class Targets:
    """Where spans go; nowhere is the default."""

    otlp: OTLP | None = None
    zipkin: str = ""
    stdout: bool = False


def targets_of(tracing: Tracing | None, environ: Mapping[str, str], headers: Mapping[str, str]) -> Targets:
    """Find out.

    Args:
        tracing: The section of the Configuration; None = there is none.
        environ: The variables of the process.
        headers: Those of ``spec.tracing.otel.headers``, with their secrets.

    Raises:
        ConfigError: Something there makes no sense.
    """
    found = tracing or Tracing()
    return Targets(_otlp(found.otel, environ, headers), found.zipkin.endpoint_address.strip(), found.stdout)


def _otlp(given: OTel, environ: Mapping[str, str], headers: Mapping[str, str]) -> OTLP | None:
    def variable(name: str) -> str:
        return environ.get(OF_TRACES + name) or environ.get(GENERAL + name) or ""

    def called(name: str) -> str:
        return (OF_TRACES if environ.get(OF_TRACES + name) else GENERAL) + name

    endpoint = given.endpoint_address.strip()
    from_file = bool(endpoint)
    endpoint = endpoint or variable("ENDPOINT").strip()
    if not endpoint:
        return None
    named = "" if given.protocol else variable("PROTOCOL").strip()
    if named == _JSON:
        logger.warning("%s: spans go as http/protobuf: %s is not supported", called("PROTOCOL"), _JSON)
    protocol = given.protocol or _PROTOCOLS.get(named or "http")
    if protocol is None:
        raise ConfigError(Problem(f"is grpc, or http/protobuf, not {named!r}", called("PROTOCOL")))
    told = {**_header_fields(variable("HEADERS"), called("HEADERS")), **headers}
    told = {name: value.strip(" \t") for name, value in told.items()}  # Blanks around a value are none of it.
    if not names_a_host(endpoint):  # Of a file that was said when it was read.
        raise ConfigError(Problem(f"must be host:port or a URL, not {endpoint!r}", called("ENDPOINT")))
    if not (from_file or named) and given.protocol is None and port_of(endpoint) == GRPC_PORT:
        text = "%s: %d is usually gRPC's port, and without a protocol it is HTTP; %sPROTOCOL=grpc says otherwise"
        logger.warning(text, called("ENDPOINT"), GRPC_PORT, GENERAL)
    scheme = urlsplit(endpoint).scheme if "://" in endpoint else ""
    insecure = not given.is_secure if from_file else variable("INSECURE").strip().lower() == "true"
    insecure = scheme == "http" if scheme else insecure
    timeout = _timeout(given, variable("TIMEOUT"), called("TIMEOUT"))
    compression = variable("COMPRESSION").strip().lower()
    if compression not in ("", "none", "gzip"):
        text = "%s: spans go uncompressed: it is gzip or none, not %r"  # It may be meant for the application.
        logger.warning(text, called("COMPRESSION"), compression)
    gzip = compression == "gzip"
    if protocol == "grpc":
        where = endpoint.partition("://")[2] if scheme else endpoint
        return OTLP("grpc", where.rstrip("/"), insecure, told, timeout, gzip, not from_file)
    url = endpoint if scheme else f"{'http' if insecure else 'https'}://{endpoint}"
    parts = urlsplit(url)
    whole = parts.path.strip("/") != "" and (from_file or bool(environ.get(OF_TRACES + "ENDPOINT")))
    url = url if whole else urlunsplit(parts._replace(path=parts.path.rstrip("/") + HTTP_PATH))
    return OTLP("http", url, insecure, told, timeout, gzip, not from_file)


def _timeout(given: OTel, text: str, called: str) -> float:
    if given.timeout is not None:
        return given.timeout.seconds
    if not text:
        return TIMEOUT_SECONDS
    try:
        seconds = float(text) / 1000
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigError(Problem(f"is a number of milliseconds, not {text!r}", called))
    return seconds


def _header_fields(text: str, called: str) -> dict[str, str]:
    """Read those of the variable; what is wrong is told without it, for it may be a secret."""
    if any(each.strip() and "=" not in each for each in text.split(",")):
        logger.warning("%s: what is not name=value has no effect", called)
    fields = _pairs(text)
    if not all(TOKEN.fullmatch(name) for name in fields):
        raise ConfigError(Problem("holds the name of no header", called))
    if problems := [Problem(refusal, called) for value in fields.values() if (refusal := header_refusal(value))]:
        raise ConfigError(problems)
    return fields


def _pairs(text: str) -> dict[str, str]:
    """Read ``name=value,…``, with percent escapes."""
    pairs = (each.partition("=") for each in text.split(",") if "=" in each)
    return {unquote(name.strip()): unquote(value.strip()) for name, _, value in pairs}


def resource_of(app_id: str, namespace: str, version: str, environ: Mapping[str, str]) -> Mapping[str, str]:
    """Give what is told of this node with its spans."""
    own = {"service.name": app_id, "service.namespace": namespace, "telemetry.sdk.name": "brokermesh"}
    given = {"telemetry.sdk.version": version, **own, **_pairs(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))}
    return {**given, "service.name": environ.get("OTEL_SERVICE_NAME") or given["service.name"]}
