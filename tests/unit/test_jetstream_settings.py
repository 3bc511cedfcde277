"""What a component of NATS says in the native layout: what is asked of the server for it, and what is refused."""

from __future__ import annotations

import pytest

from brokers.native._jetstream import wanted_consumer
from brokers.native.jetstream import JetStreamTopics
from mesh.broker import SubscribeOptions
from mesh.errors import ConfigError
from mesh.registry import Registry
from mesh.resources.component import Component, MetadataEntry

DURABLE = {"durableName": "shop", "queueGroupName": "team"}


def built(**settings: str) -> JetStreamTopics:
    given = {"natsURL": "nats://h", **settings}
    entries = tuple(MetadataEntry(name, value, f"spec.metadata[{name}]", 3, 1) for name, value in given.items())
    made: JetStreamTopics = JetStreamTopics.from_component(
        Component("messages", "pubsub.jetstream", entries, file="f.yaml", line=1)
    )
    return made


def wanted(group: str, **settings: str) -> dict[str, object]:
    made = wanted_consumer(built(**settings)._settings, "orders", SubscribeOptions(group), "_INBOX.x")
    assert made["name"] == made["durable_name"]
    return made


@pytest.mark.parametrize(
    ("settings", "setting", "said"),
    [
        ({"ackPolicy": "none"}, "ackPolicy", "is explicit: with another one, the server forgets"),
        ({"ackPolicy": "all"}, "ackPolicy", "is explicit: with another one, the server forgets"),
        ({"deliverPolicy": "sequence"}, "deliverPolicy", "it needs startSequence"),
        ({"deliverPolicy": "time"}, "deliverPolicy", "it needs startTime"),
        ({"deliverPolicy": "lastPerSubject"}, "deliverPolicy", "is all or last or new or sequence or time"),
        ({"flowControl": "true", "durableName": "d"}, "flowControl", "it needs heartbeat"),
        ({"heartbeat": "5s", **DURABLE}, "heartbeat", "a consumer with a deliver group"),
        ({"durableName": "a.b"}, "durableName", "no name of NATS has"),
        ({"streamName": "a b"}, "streamName", "no name of NATS has"),
        ({"domain": "a", "apiPrefix": "b"}, "domain", "domain and apiPrefix exclude each other"),
        ({"apiPrefix": "a.>"}, "apiPrefix", "a wildcard"),
        ({"maxDeliver": "0"}, "maxDeliver", "0"),
        ({"backOff": "1s, x"}, "backOff", "x"),
        ({"ackWait": "0s"}, "ackWait", "must be longer than 0"),
        ({"layout": "other"}, "layout", "is native or mesh"),
        ({"natsURL": "http://h"}, "natsURL", "a NATS URL is"),
        ({"jwt": "x"}, "jwt", "jwt and seedKey go together"),
    ],
)
def test_what_is_wrong_is_told_where_it_stands(settings: dict[str, str], setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        built(**settings)
    assert f"f.yaml:3:1: spec.metadata[{setting}] ({setting}): " in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, ""),
        (DURABLE, ""),
        ({"flowControl": "false", "maxDeliver": "-1"}, ""),
        (
            {"rateLimit": "1024", "heartbeat": "10s", "maxDeliver": "5", "backOff": "1s"},
            "heartbeat, rateLimit, maxDeliver, backOff",
        ),
        ({"rateLimit": "1024", **DURABLE}, ""),
        ({"startSequence": "5"}, "startSequence"),
        ({"startTime": "5", "deliverPolicy": "time"}, ""),
    ],
)
def test_what_has_no_effect_is_told_once(
    settings: dict[str, str], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    built(**settings)
    said = f"component messages: {named} has no effect on what it reads (see docs/brokers/nats.md)"
    assert [record.getMessage() for record in caplog.records] == ([said] if named else [])


def test_a_group_has_a_pull_consumer() -> None:
    made = wanted("g", ackWait="20s", maxAckPending="5", replicas="3", memoryStorage="true", maxDeliver="4")
    del made["name"], made["durable_name"]
    assert made == {
        "ack_policy": "explicit",
        "filter_subject": "orders",
        "replay_policy": "instant",
        "deliver_policy": "all",
        "num_replicas": 3,
        "mem_storage": True,
        "ack_wait": 20_000_000_000,
        "max_ack_pending": 5,
        "max_deliver": -1,
    }
    assert wanted("g")["name"] == wanted("g", consumerID="other")["name"] != wanted("h")["name"]


def test_a_name_is_a_push_consumer() -> None:
    assert wanted("shop", **DURABLE) == {
        "name": "shop",
        "durable_name": "shop",
        "ack_policy": "explicit",
        "filter_subject": "orders",
        "replay_policy": "instant",
        "deliver_policy": "all",
        "deliver_subject": "_INBOX.x",
        "deliver_group": "team",
        "max_deliver": -1,
    }
    more = wanted("shop", **DURABLE, ackWait="5s", maxDeliver="4", backOff="1s, 2m", rateLimit="9", maxAckPending="7")
    assert {"ack_wait": 5 * 10**9, "max_deliver": 4, "backoff": [10**9, 120 * 10**9]}.items() <= more.items()
    assert (more["rate_limit_bps"], more["max_ack_pending"]) == (9, 7)
    assert wanted("team", queueGroupName="team")["name"] == "team"
    alone = wanted("shop", durableName="shop", heartbeat="5s", flowControl="true")
    assert (alone["idle_heartbeat"], alone["flow_control"], "deliver_group" in alone) == (5 * 10**9, True, False)
    assert "deliver_subject" not in wanted("another", **DURABLE)


@pytest.mark.parametrize(
    ("settings", "begins"),
    [
        ({"deliverPolicy": "NEW"}, {"deliver_policy": "new"}),
        (
            {"deliverPolicy": "sequence", "startSequence": "7"},
            {"deliver_policy": "by_start_sequence", "opt_start_seq": 7},
        ),
        (
            {"deliverPolicy": "time", "startTime": "1700000000"},
            {"deliver_policy": "by_start_time", "opt_start_time": "2023-11-14T22:13:20Z"},
        ),
    ],
)
def test_where_it_begins(settings: dict[str, str], begins: dict[str, object]) -> None:
    for names in ({}, DURABLE):
        assert begins.items() <= wanted("shop", **settings, **names).items()


def test_where_the_api_is() -> None:
    prefixes = [built(**each)._connection.prefix for each in ({}, {"domain": "hub"}, {"apiPrefix": "JS.hub."})]
    assert prefixes == ["$JS.API", "$JS.hub.API", "JS.hub"]


def test_the_layout_picks_the_adapter() -> None:
    load = Registry().load
    assert [load("pubsub.nats", layout).__name__ for layout in ("", "native", "Mesh")] == [
        "JetStreamTopics",
        "JetStreamTopics",
        "NatsBroker",
    ]
