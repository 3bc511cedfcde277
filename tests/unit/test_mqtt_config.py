"""How to reach an MQTT server, as URLs and components say it; and names and headers on the way there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqtt5 import PublishPacket, QoS

from brokers.mqtt import MQTTBroker, MQTTConfig
from brokers.mqtt._dialect import MQTT311
from brokers.mqtt._messages import message_of, properties_of
from brokers.mqtt._topics import filter_of, is_clean, label_of, topic_of
from mesh.address import topic
from mesh.broker import Message
from mesh.errors import ConfigError
from mesh.event import encode_header_value
from mesh.registry import Registry
from mesh.resources.component import Component, MetadataEntry


def component(**settings: str) -> Component:
    metadata = tuple(MetadataEntry(name, value, line=9, column=7) for name, value in settings.items())
    return Component("sensors", "pubsub.mqtt3", metadata, file="sensors.yaml", line=1)


def test_both_types_are_there() -> None:
    assert Registry().load("pubsub.mqtt3", "mesh") is Registry().load("pubsub.mqtt", "mesh") is MQTTBroker


def test_metadata_of_tutorials() -> None:
    read = MQTTConfig.from_component(
        component(
            url="tcp://admin:public@localhost:1883",
            consumerID="channel1",
            retain="false",
            cleanSession="false",
            qos="1",
            backOffMaxRetries="0",
        )
    )
    assert read == MQTTConfig("localhost", 1883, "admin", "public")
    assert (read.retain, read.clean, read.shared, read.prefix, read.version) == (False, False, True, "", "")
    assert "public" not in repr(read)
    assert read.shown == "mqtt://localhost:1883"


def test_settings_of_our_own() -> None:
    read = MQTTConfig.from_component(
        component(
            url="mqtt://[::1]",
            retain="true",
            cleanSession="true",
            topicPrefix="plant/",
            sessionExpiry="24h",
            sharedSubscriptions="false",
            mqttVersion="3.1.1",
            maxInFlight="8",
        )
    )
    assert (read.host, read.port, read.shown) == ("::1", 1883, "mqtt://[::1]:1883")
    assert (read.retain, read.clean, read.shared, read.prefix, read.version) == (True, True, False, "plant/", "3.1.1")
    assert (read.session_expiry, read.max_in_flight) == (24 * 3600.0, 8)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "url is missing"),
        ({"url": "localhost:1883"}, "an MQTT URL is mqtt://"),
        ({"url": "amqp://localhost"}, "an MQTT URL is mqtt://"),
        ({"url": "mqtt://me:secret@localhost:port"}, "an MQTT URL is mqtt://"),
        ({"url": "mqtt://x", "qos": "0"}, "would lose messages"),
        ({"url": "mqtt://x", "qos": "often"}, "is 1, not 'often'"),
        ({"url": "mqtt://x", "retain": "perhaps"}, "not a boolean: 'perhaps'"),
        ({"url": "mqtt://x", "caCert": "ca.pem"}, "begins with mqtts://"),
        ({"url": "mqtts://x", "caCert": "/nowhere/ca.pem"}, "cannot be used"),
        ({"url": "mqtts://x", "clientCert": "a"}, "go together"),
        ({"url": "mqtt://x", "sessionExpiry": "1s"}, "is 60 s at least"),
        ({"url": "mqtt://x", "topicPrefix": "a/#/"}, "holds no '+'"),
        ({"url": "mqtt://x", "mqttVersion": "4"}, "is 5 or 3.1.1"),
    ],
)
def test_what_is_wrong_is_said_where_it_stands(settings: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        MQTTConfig.from_component(component(**settings))
    assert problem in str(raised.value)
    assert "sensors.yaml" in str(raised.value)
    assert "secret" not in str(raised.value)
    if settings:
        assert raised.value.problems[0].line == 9 or "url" not in settings


@pytest.mark.parametrize(
    "url",
    ["mqtt://", "http://x", "mqtt://x/path", "mqtt://x?topic=y", "mqtt://x?cacertfile=y", "mqtt://x?mqttVersion=3"],
)
def test_urls_that_make_no_sense(url: str) -> None:
    with pytest.raises(ConfigError):
        MQTTConfig.from_url(url)


def test_url() -> None:
    read = MQTTConfig.from_url("mqtt://me:p%40ss@host:1884?topicPrefix=a/&mqttVersion=5")
    assert (read.host, read.port, read.username, read.password) == ("host", 1884, "me", "p@ss")
    assert (read.prefix, read.version, read.tls) == ("a/", "5", None)


TOPICS = st.text(min_size=1, max_size=60).filter(lambda name: not {"+", "#"} & set(name))


@given(TOPICS)
def test_topics_come_back_as_they_were(name: str) -> None:
    address = topic("n", "c", name)
    for prefix in ("", "{space}/", "plant/"):
        written = topic_of(address, prefix)
        assert is_clean(written)
        assert label_of(written, address.space, prefix) == address


@given(TOPICS, TOPICS)
def test_different_topics_stay_different(one: str, two: str) -> None:
    assert (topic_of(topic("n", "c", one), "") == topic_of(topic("n", "c", two), "")) is (one == two)


@pytest.mark.parametrize("name", ["sensors/kitchen/temp", "a=b", "größe/日本語", "a.b.c", "=0009", "x y"])
def test_ordinary_topics_are_not_changed(name: str) -> None:
    assert topic_of(topic("n", "c", name), "") == name


def test_groups_of_one_name_and_filter_share_their_sessions() -> None:
    def wanted(name: str, group: str, prefix: str = "") -> str:
        return filter_of(topic("n", "c", name), group, prefix).key

    assert wanted("a/+", "g") == wanted("$share/g/a/+", "other") == wanted("$queue/g/a/+", "other")
    assert len({wanted("a", "g"), wanted("a", "h"), wanted("b", "g"), wanted("a", "g", "p/")}) == 4
    assert filter_of(topic("n", "c", "a/+"), "größe/1", "").shared == "$share/gr=C3=B6=C3=9Fe=2F1/a/+"


NAMES = st.text(alphabet="!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=12) | st.sampled_from(
    ["specversion", "ce-id", "ce-a-b", "ce-Id", "ce-", "content-type", "Content-Type", "id", "ce-datacontenttype"]
)
VALUES = st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20).map(str.strip)
ENCODED = st.text(max_size=10).map(encode_header_value)


@given(
    st.dictionaries(NAMES, VALUES | ENCODED, max_size=6),
    st.booleans(),
    st.none() | st.text(max_size=8),
    st.none() | st.text(max_size=8),
)
def test_headers_come_back_as_they_were(
    headers: dict[str, str], is_event: bool, key: str | None, identity: str | None
) -> None:
    if is_event:
        headers["ce-specversion"] = "1.0"
    message = Message(headers, b"body", key, identity)
    content_type, properties = properties_of(message)
    assert all(is_clean(text) for pair in properties for text in pair)
    unit = PublishPacket("t", b"body", content_type=content_type, user_properties=properties)
    assert message_of(unit) == message


@given(TOPICS, st.binary(max_size=400), st.integers(1, 65535), st.booleans())
def test_older_packets_come_back_as_they_were(name: str, payload: bytes, packet_id: int, duplicate: bool) -> None:
    dialect = MQTT311()
    unit = PublishPacket(name, payload, qos=QoS.AT_LEAST_ONCE, packet_id=packet_id, duplicate=duplicate)
    data = dialect.write(unit)
    with memoryview(data + b"\xd0\x00") as view:
        read, size = dialect.read(view)
    assert isinstance(read, PublishPacket)
    assert (read.topic, read.payload, read.packet_id, read.duplicate) == (name, payload, packet_id, duplicate)
    assert size == len(data)
    for cut in (0, 1, len(data) // 2, len(data) - 1):
        with pytest.raises(IndexError), memoryview(data[:cut]) as view:
            dialect.read(view)
