"""The AsyncAPI document of a mesh: what nodes said, and the rules of AsyncAPI 3.0.0."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.cli import main
from gateway.cli.asyncapi import document
from mesh import address
from mesh.node.description import Node

ON_BACKBONE = (("pubsub", "pubsub.mesh"),)
NODES = [
    Node("1", ("shop",), (("pubsub", "priced", ""),), (("pubsub", "orders"),), None, ON_BACKBONE, "shop"),
    Node(
        "2",
        ("shop",),
        (("pubsub", "priced", ""),),
        (("pubsub", "orders"), ("pubsub", "a b/c.ü")),
        None,
        ON_BACKBONE,
        "shop",
    ),
    Node(
        "3",
        ("pricing",),
        (("pubsub", "orders", "rejected"), ("kafka", "clicks.*", "")),
        (("pubsub", "priced"),),
        ("GET stock/{item}", "price"),
        (*ON_BACKBONE, ("kafka", "pubsub.kafka")),
        "pricing",
    ),
    Node("4", ("old",)),
    Node("5", (), (), (("pubsub", "orders"),), None, ON_BACKBONE, "publisher"),
]
_KEY = re.compile(r"[A-Za-z0-9._-]+\Z")


def _made(nodes: list[Node] = NODES, **more: Any) -> dict[str, Any]:
    given = {"namespace": "default", "backbone": "nats://user:secret@127.0.0.1:4222", **more}
    made: dict[str, Any] = json.loads(json.dumps(document(nodes, **given)))
    return made


def _resolved(made: dict[str, Any], reference: dict[str, str]) -> Any:
    """Follow a Reference Object, which has no other members and points into the document."""
    assert list(reference) == ["$ref"]
    assert reference["$ref"].startswith("#/")
    found: Any = made
    for part in reference["$ref"][2:].split("/"):
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


def check_asyncapi(made: dict[str, Any]) -> None:
    """Check the rules of AsyncAPI 3.0.0 that a document of ours can break."""
    fixed = {"asyncapi", "id", "info", "servers", "defaultContentType", "channels", "operations", "components"}
    assert set(made) <= fixed
    assert made["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= set(made["info"])
    for name, server in made.get("servers", {}).items():
        assert _KEY.match(name)
        assert {"host", "protocol"} <= set(server)
        assert not {"@", "/"} & set(server["host"])
    for name, channel in made.get("channels", {}).items():
        assert _KEY.match(name)
        known = {"address", "messages", "title", "summary", "description", "servers", "parameters", "tags"}
        assert {key for key in channel if not key.startswith("x-")} <= known
        assert channel["address"] is None or isinstance(channel["address"], str)
        # A channel address expression would need a parameter of its name.
        assert set(re.findall(r"\{(.*?)\}", channel["address"] or "")) <= set(channel.get("parameters", {}))
        for server in channel.get("servers", []):
            assert _resolved(made, server) in made["servers"].values()
        for message in channel["messages"].values():
            assert _resolved(made, message) in made["components"]["messages"].values()
    for name, operation in made.get("operations", {}).items():
        assert _KEY.match(name)
        assert operation["action"] in ("send", "receive")
        _check_messages(made, operation)
        if "reply" in operation:
            assert set(operation["reply"]) <= {"address", "channel", "messages"}
            _check_messages(made, operation["reply"])
    for message in made["components"]["messages"].values():
        assert {"name", "payload", "headers"} <= set(message)
        assert message["headers"]["type"] == "object"  # A rule of the Message Object.


def _check_messages(made: dict[str, Any], subject: dict[str, Any]) -> None:
    """The messages of an operation or reply are named through its own channel."""
    _resolved(made, subject["channel"])
    assert subject["channel"]["$ref"].startswith("#/channels/")
    for message in subject["messages"]:
        assert message["$ref"].startswith(subject["channel"]["$ref"] + "/messages/")
        _resolved(made, message)


@pytest.mark.parametrize("nodes", [NODES, [], NODES[3:], NODES[:1]], ids=["all", "nobody", "old", "one"])
def test_document_keeps_the_rules(nodes: list[Node]) -> None:
    made = _made(nodes)
    check_asyncapi(made)


def test_document_is_one_by_faststreams_models() -> None:
    """A second opinion on the structure: the models with which FastStream writes its own documents."""
    pytest.importorskip("faststream")
    from faststream.specification.asyncapi.v3_0_0.schema import ApplicationSchema

    made = _made()
    made["servers"]["backbone"]["pathname"] = ""  # Optional in AsyncAPI, and not in these models.
    read = ApplicationSchema.model_validate(made)
    assert set(read.operations) == set(made["operations"])


def test_document_says_who_does_what() -> None:
    made = _made()
    assert {name: each["action"] for name, each in made["operations"].items()} == {
        "pricing.receive.kafka.clicks.-": "receive",
        "pricing.receive.pubsub.orders": "receive",
        "pricing.send.pubsub.rejected": "send",
        "pricing.send.pubsub.priced": "send",
        "shop.receive.pubsub.priced": "receive",
        "shop.send.pubsub.orders": "send",
        "publisher.send.pubsub.orders": "send",
        "shop.send.pubsub.a-b-c.-": "send",
        "pricing.answer.GET-stock--item-": "receive",
        "pricing.answer.price": "receive",
        "shop.answer": "receive",
        "old.answer": "receive",
    }
    orders = made["channels"]["pubsub.pubsub.orders"]
    assert orders["address"] == address.topic("default", "pubsub", "orders").text
    assert orders["servers"] == [{"$ref": "#/servers/backbone"}]
    assert made["operations"]["pricing.receive.pubsub.orders"]["x-mesh-dead-letter-topic"] == "rejected"
    answer = made["operations"]["pricing.answer.price"]
    assert answer["x-mesh-method"] == "price"
    assert _resolved(made, answer["reply"]["channel"])["address"] is None
    assert _resolved(made, answer["channel"])["address"] == address.app("default", "pricing").text


def test_a_component_on_another_broker_is_not_on_the_backbone() -> None:
    clicks = _made()["channels"]["pubsub.kafka.clicks.-"]
    assert "servers" not in clicks
    assert clicks["x-mesh-component-type"] == "pubsub.kafka"


def test_names_that_lose_characters_stay_apart() -> None:
    topics = ("a b", "a/b", "a-b")
    made = _made([Node("1", ("x",), (), tuple(("pubsub", topic) for topic in topics), (), (), "x")])
    channels = {each.get("x-mesh-topic") for each in made["channels"].values()}
    assert set(topics) <= channels
    assert len([each for each in made["operations"].values() if each["action"] == "send"]) == 3


@pytest.mark.parametrize(
    ("backbone", "servers"),
    [
        ("nats://u:p@a:4222,nats://b:4222", {"backbone": ("a:4222", "nats"), "backbone-2": ("b:4222", "nats")}),
        ("tls://a:4222", {"backbone": ("a:4222", "nats")}),
        ("amqps://u:p@q/v", {"backbone": ("q", "amqps")}),
        ("kafka://a:9092,b:9092", {"backbone": ("a:9092", "kafka"), "backbone-2": ("b:9092", "kafka")}),
        ("memory:", None),
    ],
)
def test_servers_are_named_without_credentials(backbone: str, servers: dict[str, tuple[str, str]] | None) -> None:
    made = _made(backbone=backbone)
    check_asyncapi(made)
    found = made.get("servers")
    assert not found or found["backbone"].get("pathname") == ("/v" if backbone.endswith("/v") else None)
    assert (found and {name: (each["host"], each["protocol"]) for name, each in found.items()}) == servers


# The command


def test_command_writes_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MESH_BACKBONE", "memory:")
    monkeypatch.delenv("NAMESPACE", raising=False)
    assert main(["asyncapi", "--wait", "0"]) == 0
    shown = capsys.readouterr()
    assert "&id" not in shown.out
    assert yaml.safe_load(shown.out)["asyncapi"] == "3.0.0"
    assert "no node of this namespace answered" in shown.err
    assert main(["asyncapi", "--wait=0", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["info"]["title"] == "Mesh default"
    for words, name, read in (
        (["--output", "mesh.json"], "mesh.json", json.loads),
        (["--output", "mesh.yaml"], "mesh.yaml", yaml.safe_load),
        (["--output", "mesh.txt", "-o", "json"], "mesh.txt", json.loads),
    ):
        monkeypatch.chdir(tmp_path)
        assert main(["asyncapi", "--wait=0", *words]) == 0
        assert capsys.readouterr().out == ""
        assert read((tmp_path / name).read_text())["asyncapi"] == "3.0.0"


def test_command_refuses_two_of_a_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["asyncapi", "-o", "json", "-o", "yaml"]) == 2
    assert "one format and one file" in capsys.readouterr().err


def test_command_starts_no_server_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MESH_BACKBONE", raising=False)
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    assert main(["asyncapi"]) == 1
    assert "no gateway runs" in capsys.readouterr().err
