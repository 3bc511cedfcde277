"""Where Redis is: URLs and component metadata, and what is wrong with them."""

from __future__ import annotations

import ssl

import pytest

from brokers.redis import RedisBroker, RedisConfig
from brokers.redis._config import Sentinels
from mesh.errors import ConfigError
from mesh.resources.component import Component, MetadataEntry, Secret


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", RedisConfig()),
        ("redis://h", RedisConfig("h")),
        ("redis://h:1234/5", RedisConfig("h", 1234, db=5)),
        ("redis://h?db=2", RedisConfig("h", db=2)),
        ("redis://:p%40ss@h", RedisConfig("h", password="p@ss")),
        ("redis://user:pass@[::1]:1", RedisConfig("::1", 1, "user", "pass")),
        (
            "redis://u:p@a,b:7/2?sentinel_master=m&sentinel_username=v&sentinel_password=q%40",
            RedisConfig(
                username="u", password="p", db=2, sentinels=Sentinels((("a", 26379), ("b", 7)), "m", "v", "q@")
            ),
        ),
    ],
)
def test_url(url: str, expected: RedisConfig) -> None:
    assert RedisConfig.from_url(url) == expected


def test_tls_url() -> None:
    verified, unverified = (RedisConfig.from_url(f"rediss://h{rest}") for rest in ("", "?verify=verify_none"))
    assert verified.tls is not None
    assert unverified.tls is not None
    assert (verified.tls.verify_mode, unverified.tls.verify_mode) == (ssl.CERT_REQUIRED, ssl.CERT_NONE)
    assert verified.shown == "rediss://h:6379/0"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://h", "redis://"),
        ("redis://u:secret@h:port", "the backbone URL"),
        ("redis://u:secret@h/x", "the backbone URL"),
        ("rediss://u:secret@h?cacerts=/ca.pem", "did you mean 'cacertfile'"),
        ("rediss://u:secret@h?verify=maybe", "verify_peer or verify_none"),
        ("rediss://u:secret@h?verify=", "verify_peer or verify_none"),
        ("rediss://u:secret@h?cacertfile=/nowhere", "'/nowhere' cannot be used"),
        ("rediss://u:secret@h?keyfile=/nowhere", "goes with certfile"),
        ("rediss://u:secret@h?keyfile", "option=value"),
        ("redis://u:secret@h?cacertfile=/ca.pem", "rediss://"),
        ("redis://u:p?secret=x@h", "percent-encode"),
        ("redis://u:secret@a,b", "sentinel_master"),
        ("redis://u:secret@a?sentinel_password=secret", "sentinel_master"),
    ],
)
def test_wrong_url(url: str, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        RedisConfig.from_url(url)
    assert problem in str(raised.value)
    assert "secret" not in str(raised.value)


def test_credentials_are_not_shown() -> None:
    config = RedisConfig.from_url("redis://user:secret@h:1/2")
    assert config.shown == "redis://h:1/2"
    assert "secret" not in repr(config)
    assert "user" not in repr(config)
    config = RedisConfig.from_url("redis://user:secret@a,b:1/2?sentinel_master=m&sentinel_password=secret")
    assert config.shown == "redis://a:26379,b:1/2?sentinel_master=m"
    assert "secret" not in repr(config)


def component(**settings: str) -> Component:
    entries = [
        MetadataEntry(name, value, f"spec.metadata[{n}]", n + 5, 7) for n, (name, value) in enumerate(settings.items())
    ]
    return Component("pubsub", "pubsub.redis", tuple(entries), file="pubsub.yaml", line=1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"redisHost": "localhost:6379", "redisPassword": ""}, RedisConfig()),
        ({"REDISHOST": "h"}, RedisConfig("h")),
        ({"redisHost": "h", "redisPort": "7"}, RedisConfig("h", 7)),
        ({"redisHost": "[::1]:7"}, RedisConfig("::1", 7)),
        (
            {"redisHost": "h:1", "redisUsername": "u", "redisPassword": "p", "redisDB": "3", "redisType": "node"},
            RedisConfig("h", 1, "u", "p", 3),
        ),
        (
            {"redisHost": "h", "consumerID": "g", "processingTimeout": "15s", "queueDepth": "5", "maxLenApprox": "100"},
            RedisConfig("h"),
        ),
        ({"redisHost": "h", "concurrency": "3", "streamTTL": "30m"}, RedisConfig("h", max_in_flight=3, max_age=1800.0)),
        (
            {"redisHost": "a:1, b", "failover": "true", "sentinelMasterName": "m", "sentinelPassword": "q"},
            RedisConfig(sentinels=Sentinels((("a", 1), ("b", 26379)), "m", None, "q")),
        ),
    ],
)
def test_component(settings: dict[str, str], expected: RedisConfig) -> None:
    assert RedisConfig.from_component(component(**settings)) == expected
    assert isinstance(RedisBroker.from_component(component(**settings)), RedisBroker)


def test_component_with_tls() -> None:
    config = RedisConfig.from_component(component(redisHost="h", enableTLS="true", insecureSkipTLSVerify="true"))
    assert config.tls is not None
    assert config.tls.verify_mode == ssl.CERT_NONE


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "redisHost is missing"),
        ({"redisHost": "h", "redisType": "cluster"}, "Redis Cluster needs 'layout: native'"),
        ({"redisHost": "a:1,b:2"}, "Redis Cluster needs 'layout: native'"),
        ({"redisHost": "h", "failover": "true"}, "needs sentinelMasterName"),
        ({"redisHost": "h", "useEntraID": "true"}, "Entra ID is not supported"),
        ({"redisHost": "h:x"}, "is host:port"),
        ({"redisHost": "h", "redisDB": "-1"}, "whole number"),
        ({"redisHost": "h", "enableTLS": "maybe"}, "'true' or 'false'"),
        ({"redisHost": "h", "streamTTL": "soon"}, "soon"),
        ({"redisHost": "h", "enableTLS": "true", "clientCert": "x"}, "go together"),
        ({"redisHost": "h", "enableTLS": "true", "clientCert": "x", "clientKey": "y"}, "cannot be used"),
    ],
)
def test_wrong_component(settings: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        RedisConfig.from_component(component(**settings))
    assert problem in str(raised.value)
    assert str(raised.value).startswith("pubsub.yaml:")


def test_a_host_that_is_missing_is_one_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        RedisConfig.from_component(component())
    (problem,) = caught.value.problems
    assert problem.message.startswith("the setting redisHost is missing: host and port of the server")


def test_all_problems_of_a_component_are_told_and_no_secret() -> None:
    entries = (
        MetadataEntry("redisHost", "h", "spec.metadata[0]", 5, 7),
        MetadataEntry("redisPassword", Secret("hush"), "spec.metadata[1]", 6, 7),
        MetadataEntry("redisDB", "x", "spec.metadata[2]", 7, 7),
        MetadataEntry("redisType", "cluster", "spec.metadata[3]", 8, 7),
    )
    with pytest.raises(ConfigError) as raised:
        RedisConfig.from_component(Component("pubsub", "pubsub.redis", entries, file="pubsub.yaml", line=1))
    assert [problem.line for problem in raised.value.problems] == [7, 8]
    assert "hush" not in str(raised.value)


def test_certificates_without_tls_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """They would seem to protect the connection."""
    config = RedisConfig.from_component(component(redisHost="h", caCert="ca.pem", clientKey="secret"))
    assert config.tls is None
    told = 'component pubsub: caCert and clientKey: no effect without TLS; enableTLS: "true" turns it on'
    assert caplog.messages == [told]
