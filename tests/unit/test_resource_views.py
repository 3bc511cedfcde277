"""Which parts of resources are shown without their values."""

from __future__ import annotations

import pytest

from gateway.resource_views import hides, masked
from mesh.registry import Registry
from mesh.resources.settings import declared_by
from mesh.urls import HIDDEN

SCRUBBED = {"host", "natsURL", "url", "urls"}  # What is a secret in them is a login, and that is left out.
KEY = "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----"


def _declared() -> list[tuple[str, str]]:
    registry = Registry()
    found: list[tuple[str, str]] = []
    for name in registry.types():
        if name.endswith(".mesh"):
            continue  # They are the backbone's, which has no settings that are secrets.
        settings = declared_by(registry.load(name)) or ()
        found += [(name, alias) for each in settings if each.secret for alias in each.names]
    return found


def test_every_setting_that_an_adapter_calls_a_secret_is_hidden() -> None:
    declared = _declared()
    assert len(declared) > 50
    assert [each for each in declared if not hides(each[1]) and each[1] not in SCRUBBED] == []


@pytest.mark.parametrize(
    "name", ["partitionKey", "routingKey", "publicKey", "tokenURL", "secretsFile", "keyPrefix", "host"]
)
def test_what_is_no_secret_is_shown(name: str) -> None:
    assert not hides(name)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"name": "redisPassword", "value": "x"}, {"name": "redisPassword", "value": HIDDEN}),
        ({"name": "REDIS_PASSWORD", "value": "x"}, {"name": "REDIS_PASSWORD", "value": HIDDEN}),
        ({"name": "x-api-key", "value": "x"}, {"name": "x-api-key", "value": HIDDEN}),
        ({"name": "redisPassword", "value": ""}, {"name": "redisPassword", "value": ""}),
        ({"name": "redisPassword", "value": 12}, {"name": "redisPassword", "value": HIDDEN}),
        ({"name": "redisPassword", "value": ["a"]}, {"name": "redisPassword", "value": HIDDEN}),
        ({"name": "authorization", "value": "Bearer x"}, {"name": "authorization", "value": HIDDEN}),
        (
            {"name": "redisPassword", "secretKeyRef": {"name": "redis", "key": "password"}},
            {"name": "redisPassword", "secretKeyRef": {"name": "redis", "key": "password"}},
        ),
        ({"name": "redisPassword", "envRef": "PASSWORD"}, {"name": "redisPassword", "envRef": "PASSWORD"}),
        ({"auth": {"secretStore": "vault"}}, {"auth": {"secretStore": "vault"}}),
        ({"clientSecret": "x"}, {"clientSecret": HIDDEN}),
        ({"name": "redisHost", "value": "localhost:6379"}, {"name": "redisHost", "value": "localhost:6379"}),
        ({"name": "url", "value": "amqp://a:b@host/v"}, {"name": "url", "value": f"amqp://{HIDDEN}@host/v"}),
        ({"name": "url", "value": "amqp://a:b@c@host/v"}, {"name": "url", "value": f"amqp://{HIDDEN}@host/v"}),
        (
            {"name": "url", "value": "nats://a@h,nats://b:c@i"},
            {"name": "url", "value": f"nats://{HIDDEN}@h,nats://{HIDDEN}@i"},
        ),
        ({"name": "url", "value": "http://h/?sig=abc&a=1"}, {"name": "url", "value": f"http://h/?sig={HIDDEN}&a=1"}),
        (
            {"name": "x", "value": "host=h password=p user=u"},
            {"name": "x", "value": f"host=h password={HIDDEN} user=u"},
        ),
        ({"name": "x", "value": "root:p@tcp(h:1)/db"}, {"name": "x", "value": f"{HIDDEN}@tcp(h:1)/db"}),
        ({"name": "x", "value": "a@b.example"}, {"name": "x", "value": "a@b.example"}),
        ({"name": "x", "value": KEY}, {"name": "x", "value": HIDDEN}),
        ({"name": "x", "value": '{"private_key": "k"}'}, {"name": "x", "value": HIDDEN}),
        (
            {"annotations": {"mesh.placement": "local", "a/b": "{}"}},
            {"annotations": {"mesh.placement": "local", "a/b": HIDDEN}},
        ),
        ([{"headers": [{"name": "Cookie", "value": "c"}]}], [{"headers": [{"name": "Cookie", "value": HIDDEN}]}]),
        ({"enabled": True, "token": True, "count": 3}, {"enabled": True, "token": True, "count": 3}),
    ],
)
def test_masking(given: object, shown: object) -> None:
    assert masked(given) == shown
