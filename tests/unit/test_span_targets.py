"""Where spans go: what a Configuration says, and what the variables of OpenTelemetry say in its place."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from gateway.export.targets import OTLP, Targets, resource_of, targets_of
from mesh.errors import ConfigError
from mesh.policies import Timeout
from mesh.resources.configuration import OTel, Tracing, Zipkin

VARIABLE = "OTEL_EXPORTER_OTLP_"


@pytest.mark.parametrize(
    ("otel", "environ", "protocol", "endpoint", "insecure"),
    [
        (OTel("c:4317", "grpc"), {}, "grpc", "c:4317", False),
        (OTel("c:4317", "grpc", is_secure=False), {}, "grpc", "c:4317", True),
        (OTel("https://c:4317/", "grpc", is_secure=False), {}, "grpc", "c:4317", False),
        (OTel("c:4318"), {}, "http", "https://c:4318/v1/traces", False),
        (OTel("c:4318", "http", is_secure=False), {}, "http", "http://c:4318/v1/traces", True),
        (OTel("http://c:4318"), {}, "http", "http://c:4318/v1/traces", True),
        (OTel("https://c/own/path", "http"), {}, "http", "https://c/own/path", False),
        (OTel("https://c?key=s", "http"), {}, "http", "https://c/v1/traces?key=s", False),
        (OTel("c:1", "http"), {"ENDPOINT": "http://other"}, "http", "https://c:1/v1/traces", False),
        (OTel("c:1"), {"PROTOCOL": "grpc"}, "grpc", "c:1", False),
        (OTel(), {"ENDPOINT": "http://c:4318"}, "http", "http://c:4318/v1/traces", True),
        (OTel(), {"ENDPOINT": "http://c:4318/base"}, "http", "http://c:4318/base/v1/traces", True),
        (OTel(), {"TRACES_ENDPOINT": "http://c/x", "ENDPOINT": "http://other"}, "http", "http://c/x", True),
        (OTel(), {"ENDPOINT": "http://c:1", "PROTOCOL": "grpc"}, "grpc", "c:1", True),
        (OTel(), {"ENDPOINT": "c:1", "TRACES_PROTOCOL": "grpc", "PROTOCOL": "x"}, "grpc", "c:1", False),
        (OTel(), {"ENDPOINT": "c:1", "PROTOCOL": "grpc", "INSECURE": "true"}, "grpc", "c:1", True),
    ],
)
def test_places(otel: OTel, environ: Mapping[str, str], protocol: str, endpoint: str, insecure: bool) -> None:
    """The file goes before the environment, and that of traces before that of everything."""
    found = targets_of(Tracing(otel=otel), {VARIABLE + name: value for name, value in environ.items()}, {}).otlp
    assert found is not None
    assert (found.protocol, found.endpoint, found.insecure) == (protocol, endpoint, insecure)
    assert found.from_environment == (not otel.endpoint_address)


@pytest.mark.parametrize(
    ("otel", "environ", "told"),
    [
        (OTel(), {"ENDPOINT": "c:1", "PROTOCOL": "http/json"}, "PROTOCOL: spans go as http/protobuf"),
        (OTel("c:1", "http"), {"PROTOCOL": "http/json"}, ""),
        (OTel(), {"ENDPOINT": "http://c:4317"}, "ENDPOINT: 4317 is usually gRPC's port"),
        (OTel(), {"ENDPOINT": "http://c:4317", "PROTOCOL": "http/protobuf"}, ""),
        (OTel(), {"ENDPOINT": "http://c:4318"}, ""),
        (OTel(), {"TRACES_ENDPOINT": "http://c:4317/x"}, "TRACES_ENDPOINT: 4317 is usually gRPC's port"),
        (OTel(), {"ENDPOINT": "c:1", "COMPRESSION": "deflate"}, "COMPRESSION: spans go uncompressed: it is gzip or"),
        (OTel(), {"ENDPOINT": "c:1", "TRACES_COMPRESSION": "br"}, "TRACES_COMPRESSION: spans go uncompressed"),
        (OTel(), {"ENDPOINT": "c:1", "HEADERS": "s3cret"}, "HEADERS: what is not name=value has no effect"),
    ],
)
def test_what_is_perhaps_not_meant(
    otel: OTel, environ: Mapping[str, str], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once and without values of headers, and spans go over HTTP, uncompressed."""
    found = targets_of(Tracing(otel=otel), {VARIABLE + name: value for name, value in environ.items()}, {}).otlp
    assert found is not None
    assert (found.protocol, found.gzip) == ("http", False)
    assert "s3cret" not in caplog.text
    assert [each.getMessage().startswith(VARIABLE + told) for each in caplog.records] == [True] * bool(told)


def test_nowhere() -> None:
    """Without a place there is nothing to send."""
    assert targets_of(None, {VARIABLE + "HEADERS": "a=b"}, {}) == Targets()
    assert targets_of(Tracing(zipkin=Zipkin(" http://z "), stdout=True), {}, {}) == Targets(None, "http://z", True)


def test_header_fields_and_time() -> None:
    """What is in both is the file's; a password is in no text that people are shown."""
    environ = {
        VARIABLE + "HEADERS": "a=1,b=%20x%20y, c = d ",
        VARIABLE + "TIMEOUT": "2500",
        VARIABLE + "TRACES_COMPRESSION": "gzip",
        VARIABLE + "COMPRESSION": "none",
        VARIABLE + "ENDPOINT": "http://u:p4ss@c",
    }
    found = targets_of(None, environ, {"a": "file"}).otlp
    assert found is not None
    assert (found.headers, found.timeout, found.gzip) == ({"a": "file", "b": "x y", "c": "d"}, 2.5, True)
    assert "p4ss" not in found.where
    given = targets_of(Tracing(otel=OTel("c:1", timeout=Timeout(7.0))), environ, {}).otlp
    assert given is not None
    assert given.timeout == 7.0
    assert "x y" not in repr(OTLP("http", "c", True, {"b": "x y"}))


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"ENDPOINT": "c", "PROTOCOL": "udp"}, "OTEL_EXPORTER_OTLP_PROTOCOL: is grpc, or http/protobuf, not 'udp'"),
        ({"ENDPOINT": "http://"}, "OTEL_EXPORTER_OTLP_ENDPOINT: must be host:port or a URL, not 'http://'"),
        (
            {"ENDPOINT": "c", "TRACES_TIMEOUT": "soon"},
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT: is a number of milliseconds, not 'soon'",
        ),
        (
            {"ENDPOINT": "c", "HEADERS": "a=s3cret%0A"},
            "OTEL_EXPORTER_OTLP_HEADERS: the value of a header cannot hold the character U+000A",
        ),
        (
            {"ENDPOINT": "c", "TRACES_HEADERS": "key s3cret=b"},
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS: holds the name of no header",
        ),
    ],
)
def test_what_makes_no_sense(environ: Mapping[str, str], said: str) -> None:
    """It is said before anything is sent."""
    with pytest.raises(ConfigError) as raised:
        targets_of(None, {VARIABLE + name: value for name, value in environ.items()}, {})
    assert str(raised.value) == said


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, "shop"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=a,x=y"}, "a"),
        ({"OTEL_SERVICE_NAME": "b", "OTEL_RESOURCE_ATTRIBUTES": "service.name=a"}, "b"),
    ],
)
def test_what_a_gateway_is_called(environ: Mapping[str, str], name: str) -> None:
    """By its app id, unless the variables say otherwise."""
    found = resource_of("shop", "default", "1", environ)
    assert found["service.name"] == name
    assert found["service.namespace"] == "default"
