"""RabbitMQ without a server: messages, names, settings."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from aiormq import spec
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame
from pamqp.common import FieldTable
from pamqp.header import ContentHeader

from brokers.rabbitmq import RabbitMQBroker, RabbitMQConfig, _message, _names
from brokers.rabbitmq._connection import Connection
from brokers.rabbitmq._refusals import is_foreign, reason_of
from brokers.rabbitmq._topology import Space
from mesh import address
from mesh.address import matches
from mesh.broker import Message, Topology
from mesh.errors import ConfigError, FeatureNotSupportedError, MessageTooLargeError
from mesh.resources.component import Component, MetadataEntry

names = st.text("!#$%&'*+-.^_`|~0123456789abcXYZ", min_size=1, max_size=60)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40).map(str.strip)
reserved = st.sampled_from(sorted(_message.RESERVED))
tokens = st.text("ab=-_0", min_size=1, max_size=4) | st.text("xyz", min_size=50, max_size=90)
topics = st.lists(tokens, min_size=1, max_size=40).map(".".join)
patterns = st.lists(tokens | st.just("*"), min_size=1, max_size=6).flatmap(
    lambda parts: st.sampled_from([".".join(parts), ".".join([*parts, ">"]), ">"])
)


def read_back(encoded: spec.Basic.Properties) -> spec.Basic.Properties:
    """Encode properties, and decode them as they come from a server."""
    _, _, found = frame.unmarshal(frame.marshal(ContentHeader(0, 0, encoded), 1))
    assert isinstance(found, ContentHeader)
    return found.properties


@given(st.dictionaries(names | reserved, values, max_size=8), st.binary(max_size=20), st.none() | st.text(max_size=300))
def test_message_arrives_as_it_was_given(headers: dict[str, str], body: bytes, identity: str | None) -> None:
    message = Message(headers, body, id=identity)
    encoded = _message.encode(message, stored=True, extra={_message.ATTEMPT: "3"})
    found, attempts = _message.decode(read_back(encoded), body)
    assert (dict(found.headers), found.body, found.id, attempts) == (headers, body, identity, 3)


def test_frame_properties_arrive() -> None:
    found = read_back(_message.encode(Message({}, b""), correlation_id="t", reply_to="queue.token"))
    assert (found.correlation_id, found.reply_to, found.headers) == ("t", "queue.token", {})


@given(st.lists(st.none() | st.sampled_from(["", "a", "=1"]), min_size=2, max_size=8), st.booleans())
def test_what_waits_for_a_return_has_a_message_id_of_its_own(ids: list[str | None], stored: bool) -> None:
    """The client library finds what is returned by it."""
    encoded = [_message.encode(Message({}, b"", id=each), stored=stored) for each in ids]
    given = [properties.message_id for properties in encoded if not (stored and properties.message_id == "a")]
    assert all(given)
    assert len(set(given)) == len(given)
    assert [_message.decode(read_back(each), b"")[0].id for each in encoded] == ids


def test_name_of_a_header_that_the_client_library_would_cut_is_refused() -> None:
    _message.encode(Message({"x" * 128: ""}, b""))
    with pytest.raises(MessageTooLargeError):
        _message.encode(Message({"x" * 129: ""}, b""))


@given(st.dictionaries(names, values, max_size=8), st.text(max_size=300))
def test_size_of_headers_is_never_less_than_what_is_sent(headers: dict[str, str], identity: str) -> None:
    encoded = _message.encode(Message(headers, b"", id=identity))
    alone = spec.Basic.Properties(headers=encoded.headers)
    assert _message.headers_size(encoded) >= len(alone.marshal()) - 6


def test_what_others_publish_is_read_as_the_cloudevents_binding_has_it() -> None:
    fields: FieldTable = {
        "cloudEvents:specversion": "1.0",
        "cloudEvents:time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "cloudEvents:count": 3,
        "cloudEvents:flag": True,
        "x-death": [{"count": 1}],
        "x-delivery-count": 2,
        "table": {"a": 1},
    }
    found, attempts = _message.decode(spec.Basic.Properties(headers=fields, content_type="text/plain"), b"")
    assert attempts == 2
    assert found.headers == {
        "cloudEvents_specversion": "1.0",
        "cloudEvents_time": "2026-01-02T03:04:05Z",
        "cloudEvents_count": "3",
        "cloudEvents_flag": "true",
        "cloudEvents_datacontenttype": "text/plain",
    }
    plain, _ = _message.decode(spec.Basic.Properties(content_type="application/cloudevents+json"), b"{}")
    assert plain.headers == {"content-type": "application/cloudevents+json"}


def amqp_matches(binding: str, key: str) -> bool:
    """As RabbitMQ's topic exchange: ``*`` is one word, ``#`` any number of them."""

    def fits(pattern: list[str], words: list[str]) -> bool:
        if not pattern:
            return not words
        if pattern[0] == "#":
            return any(fits(pattern[1:], words[start:]) for start in range(len(words) + 1))
        return bool(words) and pattern[0] in ("*", words[0]) and fits(pattern[1:], words[1:])

    return fits(binding.split("."), key.split("."))


@given(patterns, topics)
def test_bindings_let_through_at_least_what_fits(pattern: str, topic: str) -> None:
    key, reversible = _names.routing_key(topic, "3")
    assert len(key) <= 255
    assert not reversible or key.partition(".")[2] == topic
    for lane in ("*", "3"):
        keys = _names.bindings(pattern, lane)
        assert all(len(each) <= 255 for each in keys)
        found = any(amqp_matches(each, key) for each in keys)
        assert found or not matches(pattern, topic)
        if reversible and found:
            assert matches(pattern, topic), "an event came that the pattern does not take"
    assert not any(amqp_matches(each, key) for each in _names.bindings(pattern, "4"))


@given(topics, topics)
def test_topic_without_wildcards_takes_itself_only(one: str, other: str) -> None:
    [binding] = _names.bindings(one, "*")
    assert amqp_matches(binding, _names.routing_key(one, "_")[0])
    assert amqp_matches(binding, _names.routing_key(other, "_")[0]) is (one == other)


@given(st.floats(0.0001, 100_000))
def test_delay_is_rounded_up_by_little(delay: float) -> None:
    step = _names.retry_step(delay) / 1000
    assert delay <= step <= (delay + 0.001) * 1.25  # To a millisecond, and then by a quarter at most.


def test_there_are_few_delays() -> None:
    assert len({_names.retry_step(ms / 1000) for ms in range(1, 3_600_000, 7)}) < 80
    assert _names.retry_step(1e12) < 2**31


def test_names_stay_within_what_amqp_allows() -> None:
    topic = address.topic("n" * 256, "c" * 256, "\U0001f600" * 100)
    for lane in ("", "15", "retry-1073741824"):
        spec.Queue.Declare(queue=_names.queue_name(topic, "g" * 500, lane))
    exchange = _names.exchange_name(topic.space)
    for name in (f"{exchange}:unclaimed", _names.claimed_name(_names.queue_name(topic, "g" * 500))):
        spec.Exchange.Declare(exchange=name)
    assert _names.queue_name(topic, "a") != _names.queue_name(topic, "b")
    assert len({_names.queue_name(topic, group) for group in ("a+", "a=", "a*", "a>", "a~", "a@", "a#", "a,")}) == 8
    assert _names.address_of("s", "not=ZZours").label == "not=ZZours"


# Settings


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://localhost", RabbitMQConfig((("localhost", 5672),))),
        ("amqp://localhost:5672/", RabbitMQConfig((("localhost", 5672),))),
        ("amqp://u%40x:p%3A%2F@h:1/v%2Fw", RabbitMQConfig((("h", 1),), "u@x", "p:/", "v/w")),
        ("amqp://u:p@a:1,b/v", RabbitMQConfig((("a", 1), ("b", 5672)), "u", "p", "v")),
        ("amqp://[::1]:7", RabbitMQConfig((("::1", 7),))),
        ("amqp://h?heartbeat=30", RabbitMQConfig((("h", 5672),), heartbeat=30)),
        ("amqp://h?connection_timeout=2000", RabbitMQConfig((("h", 5672),), connect_wait=2.0)),
        ("amqp://h?auth_mechanism=EXTERNAL", RabbitMQConfig((("h", 5672),), external=True)),
    ],
)
def test_url(url: str, expected: RabbitMQConfig) -> None:
    assert RabbitMQConfig.from_url(url) == expected


def test_url_with_tls() -> None:
    config = RabbitMQConfig.from_url("amqps://h?verify=verify_none")
    assert config.hosts == (("h", 5671),)
    assert config.tls is not None
    assert config.tls.verify_mode == ssl.CERT_NONE
    with pytest.raises(ConfigError, match="certificate '/c'"):
        RabbitMQConfig.from_url("amqps://h?certfile=/c&keyfile=/k")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://u:secret@h", "amqp://user:password@host"),
        ("amqp://u:secret@", "amqp://user:password@host"),
        ("amqp://u:secret@h:port", "amqp://user:password@host"),
        ("amqp://u:secret@h?hartbeat=1", "did you mean 'heartbeat'"),
        ("amqp://u:secret@h?heartbeat=soon", "heartbeat"),
        ("amqps://u:secret@h?verify=maybe", "verify_peer or verify_none"),
        ("amqp://u:secret@h?cacertfile=/ca", "needs a URL that begins with amqps://"),
        ("amqp://u:secret@h?auth_mechanism=magic", "plain or external"),
    ],
)
def test_url_that_is_wrong_says_so_without_its_password(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        RabbitMQBroker.from_url(url)
    assert said in str(raised.value)
    assert "secret" not in str(raised.value)


def component(**settings: str) -> Component:
    entries = tuple(
        MetadataEntry(name, value, f"spec.metadata[{line - 8}]", line, 5)
        for line, (name, value) in enumerate(settings.items(), 8)
    )
    return Component("orders", "pubsub.rabbitmq", entries, file="pubsub.yaml", line=1)


def test_component_as_tutorials_have_it() -> None:
    config = RabbitMQConfig.from_component(
        component(host="amqp://localhost:5672", consumerID="{appID}", durable="true")
    )
    assert config == RabbitMQConfig((("localhost", 5672),), name="brokermesh orders")
    assert "secret" not in repr(RabbitMQConfig.from_url("amqp://u:secret@h"))


def test_component_with_everything() -> None:
    given = component(
        protocol="amqps",
        hostname="rabbit:1234",
        username="u",
        password="p",
        clientName="me",
        saslExternal="true",
        heartBeat="30s",
        reconnectWaitSeconds="5",
        ttlInSeconds="60",
        maxLenBytes="1000",
        maxLen="10",
        prefetchCount="7",
        concurrency="parallel",
    )
    config = RabbitMQConfig.from_component(given)
    assert config.tls is not None
    assert replace(config, tls=None) == RabbitMQConfig(
        (("rabbit", 1234),),
        "u",
        "p",
        external=True,
        heartbeat=30,
        max_backoff=5.0,
        name="me",
        max_age=60.0,
        max_bytes=1000,
        max_events=10,
        max_in_flight=7,
    )
    single = RabbitMQConfig.from_component(
        component(connectionString="amqp://h", concurrency="single", prefetchCount="0")
    )
    assert single.max_in_flight == 1


def test_component_reports_all_problems_where_they_are() -> None:
    with pytest.raises(ConfigError) as raised:
        RabbitMQBroker.from_component(
            component(hostname="h:x", protocol="http", heartBeat="soon", maxLen="many", saslExternal="maybe")
        )
    said = str(raised.value)
    assert len(raised.value.problems) == 5
    for line in (8, 9, 10, 11, 12):
        assert f"pubsub.yaml:{line}:5" in said


def test_component_without_a_server_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match="connectionString"):
        RabbitMQConfig.from_component(component(username="u"))
    with pytest.raises(ConfigError) as raised:
        RabbitMQConfig.from_component(component(connectionString="amqp://u:secret@"))
    assert "secret" not in str(raised.value)


def test_age_that_no_timer_counts_is_refused() -> None:
    Space(Topology("s", max_age=None))
    with pytest.raises(FeatureNotSupportedError):
        Space(Topology("s", max_age=60 * 86400.0))


def test_what_aiormq_raises_without_a_reason_is_a_lost_connection() -> None:
    assert is_foreign(Exception())
    assert not is_foreign(TypeError())
    assert "the connection broke" in str(reason_of(Exception()))


async def test_a_server_that_closes_before_the_client_reads() -> None:
    """It is a connection that was lost, as any other: it is tried again."""

    def accept(listening: socket.socket) -> None:
        listening.accept()[0].close()

    async def be_busy() -> None:
        while True:  # The end is there when the client, which reads a round later, comes to it.
            time.sleep(0.002)
            await asyncio.sleep(0)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.to_thread(accept, listening))
            busy = tasks.create_task(be_busy())
            with pytest.raises(ConnectionError, match="the server closed the connection"):
                await Connection.open("127.0.0.1", port, RabbitMQConfig((("127.0.0.1", port),)), "test")
            busy.cancel()
