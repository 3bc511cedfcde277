"""What the components on Redis are told about it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bindings.redis._settings import RedisSettings, StateSettings, read
from bindings.redis._wire import LostError, RefusedError, foreign_errors
from bindings.redis.state import RedisStateStore
from mesh.errors import ConfigError, StateError
from mesh.resources.settings import settings_of
from tests.support.nodes import component
from tests.unit.test_client_errors import made, public_exceptions

# The settings that Dapr 1.18 documents for state.redis; those of the block are read by the block.
KNOWN = """
redisHost redisPort redisUsername redisPassword redisDB redisType enableTLS insecureSkipTLSVerify clientCert clientKey
useEntraID failover sentinelMasterName sentinelUsername sentinelPassword redisMaxRetries redisMinRetryInterval
redisMaxRetryInterval maxRetries maxRetryBackoff dialTimeout readTimeout writeTimeout poolSize poolTimeout minIdleConns
maxConnAge idleTimeout idleCheckFrequency queryIndexes
"""


def settings(**given: str) -> RedisSettings:
    return read(component("c", "state.redis", **{"redisHost": "localhost", **given}), StateSettings)[0]


@pytest.mark.parametrize(
    ("given", "addresses", "shown"),
    [
        ({"redisHost": "localhost"}, [("localhost", 6379)], "Redis at localhost:6379"),
        ({"redisHost": "localhost:6380"}, [("localhost", 6380)], "Redis at localhost:6380"),
        ({"redisHost": " redis "}, [("redis", 6379)], "Redis at redis:6379"),
        ({"redisHost": "redis", "redisPort": "7000"}, [("redis", 7000)], "Redis at redis:7000"),
        ({"redisHost": "redis:1", "redisPort": "7000"}, [("redis", 1)], "Redis at redis:1"),
        ({"redisHost": "[::1]:6380"}, [("::1", 6380)], "Redis at [::1]:6380"),
        ({"redisHost": "[::1]"}, [("::1", 6379)], "Redis at [::1]:6379"),
        (
            {"redisHost": "a:1, b", "redisType": "Cluster"},
            [("a", 1), ("b", 6379)],
            "the Redis cluster at a:1,b:6379",
        ),
        (
            {"redisHost": "a,b:2", "failover": "true", "sentinelMasterName": "m"},
            [("a", 26379), ("b", 2)],
            "Redis 'm' of the Sentinels a:26379,b:2",
        ),
    ],
    ids=str,
)
def test_hosts(given: dict[str, str], addresses: list[tuple[str, int]], shown: str) -> None:
    found = settings(**given)
    assert (list(found.addresses), found.shown) == (addresses, shown)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"redisHost": ""}, "redisHost): must not be empty"),
        ({"redisHost": "rediss://redis:6379"}, "redisHost): is host:port, and no URL"),
        ({"redisHost": "redis://:sesame@redis"}, "redisHost): is host:port, without credentials"),
        ({"redisHost": ":sesame\uff20redis"}, "redisHost): is host:port, without credentials"),
        ({"redisHost": "redis:"}, "redisHost): is host:port, or several"),
        ({"redisHost": "redis:port"}, "redisHost): is host:port, or several"),
        ({"redisHost": "redis:70000"}, "redisHost): is host:port, or several"),
        ({"redisHost": "a,,b"}, "redisHost): is host:port, or several"),
        ({"redisHost": "::1"}, "redisHost): is host:port, or several"),
        ({"redisHost": "a b"}, "redisHost): is host:port, or several"),
        ({"redisHost": "a,b"}, "redisHost): is one host, unless"),
        ({"redisPort": "0"}, "redisPort): "),
        ({"redisDB": "x"}, "redisDB): "),
        ({"redisType": "sentinel"}, "redisType): is node or cluster"),
        ({"redisType": "cluster", "redisDB": "1"}, "redisDB): must be 0"),
        ({"failover": "true"}, "failover): needs sentinelMasterName"),
        ({"failover": "true", "sentinelMasterName": "m", "redisType": "cluster"}, "failover): does not go with"),
        ({"useEntraID": "true"}, "useEntraID): Entra ID is not supported"),
        ({"clientCert": "/c.pem"}, "clientCert): needs enableTLS"),
        ({"caCert": "/c.pem"}, "caCert): needs enableTLS"),
        ({"enableTLS": "true", "clientKey": "/c.pem"}, "clientKey): goes with clientCert"),
        ({"enableTLS": "true", "caCert": "/none.pem"}, "the CA certificate cannot be used"),
        ({"enableTLS": "true", "clientCert": "/none.pem"}, "clientCert and clientKey cannot be used"),
        ({"readTimeout": "-1"}, "readTimeout): "),
        ({"poolSize": "0"}, "poolSize): "),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_where_it_stands(given: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        settings(**given)
    text = str(raised.value)
    assert problem.partition("): ")[2] in text
    assert problem.partition(")")[0] in text
    assert "sesame" not in text


def test_durations_are_milliseconds_without_a_unit() -> None:
    found = settings(readTimeout="1500", dialTimeout="2s", redisMaxRetries="-1")
    assert (found.read_timeout, found.dial_timeout, found.retries) == (1.5, 2.0, -1)


def test_waits_that_are_off() -> None:
    off = settings(redisMinRetryInterval="-1", maxRetryBackoff="-1", idleTimeout="-1", maxConnAge="-1")
    assert (off.least_wait, off.most_wait, off.idle, off.max_age) == (0.0, 0.0, 0.0, 0.0)


def test_secrets_are_not_shown() -> None:
    assert "sesame" not in repr(settings(redisPassword="sesame", sentinelPassword="sesame"))


def test_every_setting_of_the_reference_is_known() -> None:
    names = {name for each in settings_of(StateSettings) for name in each.names}
    assert not set(KNOWN.split()) - names


@pytest.mark.parametrize("kind", [*public_exceptions("redis.exceptions", "redis.asyncio"), OSError, UnicodeError])
def test_every_exception_of_the_client_has_a_counterpart(kind: type[Exception]) -> None:
    with pytest.raises((LostError, RefusedError)), foreign_errors():
        raise made(kind)


async def test_a_host_whose_name_is_none() -> None:
    store = RedisStateStore.from_component(replace(component("c", "", redisHost="a..b"), init_timeout=0.2))
    with pytest.raises(StateError, match=r"Redis at a\.\.b:6379"):
        await store.__aenter__()


def test_an_outbox_is_not_for_a_cluster() -> None:
    settings = {"redisHost": "localhost", "outboxPublishPubsub": "pubsub", "outboxPublishTopic": "orders"}
    RedisStateStore.from_component(component("c", "state.redis", **settings))
    with pytest.raises(ConfigError, match=r"outboxPublishPubsub.*not for a Redis cluster"):
        RedisStateStore.from_component(component("c", "state.redis", redisType="cluster", **settings))
