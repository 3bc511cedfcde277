"""What a bridge is told, and what it makes of messages; without a broker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.bridge_file import read_bridge_file
from gateway.cli.bridge import bridge_config, parser
from gateway.cli.parsing import UsageError
from gateway.config import FOR_EVER
from mesh.bridge.routes import Routes, TopicRoute, topic_of
from mesh.bridge.topics import looped, moved, path_of
from mesh.broker import Message
from mesh.clusters import Target, bridge_of, cluster_of, may_speak, target_of
from mesh.errors import BadArgumentError, ConfigError
from mesh.features import Features

NATS, KAFKA = Features("nats"), replace(Features("kafka"), event_prefix="ce_")
FILE = """\
from: {cluster: east, backbone: "nats://east:4222", resourcesPaths: [east]}
to:
  cluster: west
  backbone: kafka://west:9092
  namespace: shop
  trust: {dir: west/trust, domain: west.example}
apps: [orders@west, "*@east"]
topics:
  - pubsub/orders@east
  - {from: pubsub/stock@west, to: inventory/stock}
"""


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("orders", Target("orders", "", "")),
        ("orders.shop", Target("orders", "shop", "")),
        ("orders@west", Target("orders", "", "west")),
        ("orders.shop@west-1", Target("orders", "shop", "west-1")),
    ],
)
def test_who_is_called(text: str, target: Target) -> None:
    assert target_of(text) == target


@pytest.mark.parametrize(
    "text", ["a.b.c", "x" * 300, "orders@", "orders@we.st", "orders@west@north", "@west", "orders@we st"]
)
def test_who_is_nobody(text: str) -> None:
    with pytest.raises(BadArgumentError):
        target_of(text)


def test_who_speaks_for_whom() -> None:
    bridge = bridge_of("east")
    assert (may_speak("shop", "shop"), may_speak(bridge, "shop@east"), may_speak(bridge, bridge)) == (True, True, True)
    assert not may_speak(bridge, "shop")
    assert not may_speak(bridge, "shop@west")
    assert not may_speak("shop", "shop@east")
    assert (cluster_of("shop"), cluster_of("shop@east")) == ("", "east")


def test_who_may_be_called() -> None:
    routes = Routes(["orders@west", "pay-*@west", "*.tools@west", "shop@east"])

    def may(text: str) -> bool:
        return routes.may_call(target_of(text), "default")

    assert [may(each) for each in ("orders@west", "orders.default@west", "pay-card@west", "x.tools@west")] == [True] * 4
    assert [may(each) for each in ("orders.tools2@west", "stock@west", "orders@east", "shop@west")] == [False] * 4
    assert not Routes().may_call(target_of("orders@west"), "default")


@pytest.mark.parametrize(
    ("text", "to", "said"),
    [
        ("orders@east", "", "COMPONENT/TOPIC@CLUSTER"),
        ("pubsub/orders", "", "COMPONENT/TOPIC@CLUSTER"),
        ("pubsub/orders@ea.st", "", "names no cluster"),
        ("pubsub/*@east", "", "topics are listed one by one"),
        ("pubsub/orders@east", "orders", "'orders' is not COMPONENT/TOPIC"),
        ("pubsub/orders@east", "pubsub/orders@west", "is not COMPONENT/TOPIC"),
    ],
)
def test_what_is_no_topic_of_a_cluster(text: str, to: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        topic_of(text, to)


def test_a_topic_may_have_slashes() -> None:
    assert topic_of("pubsub/a/b.c@east") == TopicRoute("east", "pubsub", "a/b.c", "pubsub", "a/b.c")


def test_an_event_goes_as_it_is_with_what_it_has_passed() -> None:
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-meshpublisher": "a lie", "mesh-signer": "x", "other": "y"}
    going = moved(Message(headers, b"body", "key", "id"), NATS, KAFKA, {"meshpath": "north,east"})
    assert going.headers == {"ce_specversion": "1.0", "ce_id": "1", "other": "y", "ce_meshpath": "north,east"}
    assert (going.body, going.key, going.id) == (b"body", "key", "id")
    assert path_of(going.headers, KAFKA) == ("north", "east")


def test_no_event_goes_round_whatever_bridges_call_the_clusters() -> None:
    """Two bridges join the same two clusters: one calls them east and west, the other south and north."""
    path: list[str] = []
    for here, there in (("east", "west"), ("north", "south")):
        assert not looped(path, here, there)
        path.append(here)
    assert looped(path, "east", "west"), "it has come back to the first one"
    assert looped(["west"], "east", "west")
    assert not looped(["north"], "east", "west")


def test_a_raw_message_says_it_beside() -> None:
    going = moved(Message({}, b"raw"), NATS, KAFKA, {"meshpath": "east", "meshpublisher": "spiffe://a/ns/b/c"})
    assert going.headers == {"mesh-path": "east", "mesh-publisher": "spiffe://a/ns/b/c"}
    assert path_of(going.headers, KAFKA) == ("east",)
    assert path_of({}, NATS) == ()


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(FILE)
    config = bridge_config(parser().parse(["--file", str(path)]), {"HOME": str(tmp_path)})
    bridge = config.bridge
    assert bridge is not None
    peer = bridge.peer
    assert (config.app_id, config.namespace, config.backbone) == ("mesh-bridge-west", "default", "nats://east:4222")
    assert (peer.app_id, peer.namespace, peer.backbone) == ("mesh-bridge-east", "shop", "kafka://west:9092")
    assert config.resource_paths == (tmp_path / "east",)
    assert config.trust is None
    assert peer.trust is not None
    assert (peer.trust.folder, peer.trust.trust_domain) == (tmp_path / "west/trust", "west.example")
    assert (bridge.own_from, bridge.peer_from) == ("from.backbone", "to.backbone")
    assert bridge.routes.apps == ("orders@west", "*@east")
    assert bridge.routes.topics[1] == TopicRoute("west", "pubsub", "stock", "inventory", "stock")
    told = [each.described for each in bridge.routes.topics]
    assert told == ["pubsub/orders@east", "pubsub/stock@west to inventory/stock"]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("cluster: west", "cluster: east", "bridge.yaml:3:12: to.cluster: both sides are called east"),
        ("orders@west", "orders", "bridge.yaml:7:8: apps[0]: 'orders' names no cluster"),
        ("orders@west", "orders@north", "bridge.yaml:7:8: apps[0]: orders@north is neither in east nor in west"),
        ("pubsub/orders@east", "orders@east", "bridge.yaml:9:5: topics[0]: 'orders@east' is not COMPONENT/TOPIC"),
        ("to: inventory/stock", "too: x", "topics[1]"),
        ("pubsub/stock@west", "pubsub/orders@east", "topics[1]: pubsub/orders@east is listed twice"),
        ("backbone: kafka://west:9092", "backbon: x", "did you mean"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, before: str, after: str, said: str) -> None:
    path = tmp_path / "bridge.yaml"
    assert before in FILE
    path.write_text(FILE.replace(before, after))
    with pytest.raises(ConfigError) as raised:
        read_bridge_file(path)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "nats://b"], "--as is missing"),
        (["--as", "east", "--peer", "west"], "--to is missing"),
        (["--file", "x", "--as", "east"], "--as stands in the file"),
        (["--as", "e.st", "--peer", "west", "--to", "nats://b"], "--as: 'e.st' names no cluster"),
        (["--as", "a", "--peer", "a", "--to", "nats://b"], "--to: both sides are called a"),
        (["--as", "a", "--peer", "b", "--to", "nats://b", "--apps", "x@a,y"], "--apps: 'y' names no cluster"),
        (["--as", "a", "--peer", "b", "--to", "nats://b", "--topics", "x@a"], "--topics: 'x@a' is not COMPONENT/TOPIC"),
        (["--file", "absent.yaml"], "absent.yaml: there is no such file"),
        (["--as", "a", "--peer", "b", "--to", "nats://b"], "--apps or --topics is missing"),
        (
            ["--as", "a", "--peer", "b", "--from", "nats://b", "--to", "nats://b", "--apps", "x@a"],
            "--to: both sides are one mesh",
        ),
    ],
)
def test_what_is_wrong_with_a_command_line(words: list[str], said: str) -> None:
    with pytest.raises((UsageError, ConfigError)) as raised:
        bridge_config(parser().parse(words), {})
    assert said in str(raised.value)


def test_sides_by_the_environment() -> None:
    words = ["--as", "east", "--peer", "west", "--apps", "a@west,b@west", "--apps", "c@east"]
    environ = {"MESH_BACKBONE": "nats://a", "MESH_BRIDGE_TO": "redis://b", "NAMESPACE": "shop"}
    config = bridge_config(parser().parse(words), environ)
    assert config.bridge is not None
    assert (config.backbone, config.bridge.peer.backbone, config.bridge.peer_from) == (
        "nats://a",
        "redis://b",
        "MESH_BRIDGE_TO",
    )
    assert config.bridge.own_from == "MESH_BACKBONE"
    assert (config.namespace, config.bridge.peer.namespace) == ("shop", "shop")
    assert (config.backbone_timeout, config.bridge.peer.backbone_timeout) == (FOR_EVER, FOR_EVER)
    assert config.bridge.routes.apps == ("a@west", "b@west", "c@east")
