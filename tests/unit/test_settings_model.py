"""The settings of adapters: declared once, read with every problem located, secrets never shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, ClassVar

import pytest

from mesh.blocks import BLOCKS
from mesh.errors import ConfigError
from mesh.node.components import unknown_settings
from mesh.registry import GROUP, Registry
from mesh.resources.component import Component, MetadataEntry, Secret
from mesh.resources.settings import (
    BOOLEAN,
    COUNT,
    DURATION,
    LIMIT,
    LIMIT_SECONDS,
    SECONDS,
    SIZE,
    VERBATIM,
    Setting,
    choice,
    declared_by,
    example,
    ignored,
    lasting,
    read_settings,
    refused,
    setting,
    settings_of,
    whole,
    without_effect,
)


@dataclass(frozen=True, slots=True)
class Reach:
    """How to reach it."""

    ignored: ClassVar[tuple[Setting, ...]] = ignored("there is no pool", "poolSize")

    host: str = setting("theHost", "Name and port.", required=True, aliases=("hostName",))
    password: str | None = setting("thePassword", "To log in with.", secret=True)


@dataclass(frozen=True, slots=True)
class Settings(Reach):
    """With more."""

    on: bool = setting("on", "Whether.", BOOLEAN, default=False)
    many: int = setting("many", "How many.", COUNT, default=3)
    some: int = setting("some", "How many at most.", whole(0, 9), default=0)
    wait: float = setting("wait", "How long.", DURATION, default=5.0)
    ttl: float = setting("ttl", "How long, in seconds.", SECONDS, default=0.0)
    size: int = setting("size", "How much.", SIZE, default=1024)
    mode: str = setting("mode", "Which.", choice("node", "cluster"), default="node")
    port: int | None = setting("port", "Of the server.", COUNT, secret=True)


def component(**settings: str | Secret) -> Component:
    """Make one."""
    entries = tuple(MetadataEntry(name, value, line=index) for index, (name, value) in enumerate(settings.items(), 1))
    return Component("c", "toys.c", entries, file="c.yaml", line=1)


def test_values_and_defaults() -> None:
    """Texts become values; what is not set, or is empty, is the default; names count in any case."""
    assert read_settings(component(thehost=" h:1 "), Settings) == Settings("h:1")
    given = component(
        hostName="h",
        on="YES",
        many="7",
        some="9",
        wait="1m",
        ttl="90",
        size="4Ki",
        mode="Cluster",
        port="",
        poolSize="3",
    )
    assert read_settings(given, Settings) == Settings("h", None, True, 7, 9, 60.0, 90.0, 4096, "cluster", None)


def test_every_problem_at_once() -> None:
    """Each names its line; a secret's text is in none."""
    given = component(theHost="", on="maybe", many="0", wait="soon", mode="grid", port=Secret("hunter2"))
    with pytest.raises(ConfigError) as raised:
        read_settings(given, Settings)
    assert [(problem.line, problem.message) for problem in raised.value.problems] == [
        (1, "must not be empty"),
        (2, "not a boolean: 'maybe' ('true' or 'false')"),
        (3, "not a whole number of at least 1: '0'"),
        (4, raised.value.problems[3].message),
        (5, "is node or cluster, not 'grid'"),
        (6, "is no whole number"),
    ]
    assert "soon" in raised.value.problems[3].message
    assert "hunter2" not in str(raised.value)


def test_what_is_read_from_a_secret_is_never_told() -> None:
    """Whichever setting it is of: logs tell problems, and so does the status of a resource, which others may read."""
    hidden = Secret("hunter2")
    given = component(theHost="h", on=hidden, many=hidden, wait=hidden, size=hidden, mode=hidden)
    with pytest.raises(ConfigError, match="is no boolean") as raised:
        read_settings(given, Settings)
    assert len(raised.value.problems) == 5
    assert "hunter2" not in str(raised.value)


def test_a_setting_that_is_missing() -> None:
    """The error says what it is."""
    with pytest.raises(ConfigError, match="the setting theHost is missing: name and port"):
        read_settings(component(), Settings)


def test_what_is_declared() -> None:
    """Docs and checks see the same; those without effect stand last; secrets are not in the text of a value."""
    names = [each.name for each in settings_of(Settings)]
    assert names == ["theHost", "thePassword", "on", "many", "some", "wait", "ttl", "size", "mode", "port", "poolSize"]
    assert settings_of(Settings)[0].names == ("theHost", "hostName")
    assert settings_of(Settings)[-1].ignored == "there is no pool"
    assert "hunter2" not in repr(read_settings(component(theHost="h", thePassword=Secret("hunter2")), Settings))


@pytest.mark.parametrize(
    ("kind", "given", "meant"),
    [
        ("pubsub.redis", "redisPasword", "redisPassword"),
        ("pubsub.redis", "consumrID", "consumerID"),
        ("pubsub.kafka", "brokrs", "brokers"),
        ("pubsub.kafka", "oidcClientId2", "oidcClientID"),
        ("pubsub.mqtt3", "cleansesion", "cleanSession"),
        ("pubsub.jetstream", "natURL", "natsURL"),
        ("pubsub.rabbitmq", "hartBeat", "heartBeat"),
        ("pubsub.in-memory", "allowedTopic", "allowedTopics"),
        ("state.sqlite", "connectionStrin", "connectionString"),
        ("state.in-memory", "keyPrefx", "keyPrefix"),
    ],
)
def test_names_that_no_model_has(kind: str, given: str, meant: str) -> None:
    """They are told with what was meant, also when it is the block's; a setting without effect is no error."""
    block = next(each for each in BLOCKS if each.kind == kind.partition(".")[0])
    misspelt, others = unknown_settings(Component("c", kind, (MetadataEntry(given, "x"),)), block, Registry())
    assert [problem.message for problem in misspelt] == [f"unknown setting; did you mean {meant!r}?"]
    assert not others


@pytest.mark.parametrize(
    ("kind", "given", "other"),
    [
        ("bindings.graphql", "header:X-Key", "header-X-Key"),
        ("bindings.graphql", "HEADER:authorization", "HEADER-authorization"),
        ("bindings.graphql", "variable:n", "variable-n"),
        ("pubsub.pulsar", "orders.avroschema", "orders-avroschema"),
        ("pubsub.pulsar", "a.b.JSONSchema", "a.b.xsd"),
    ],
)
def test_names_that_have_a_beginning_or_an_end_in_common(kind: str, given: str, other: str) -> None:
    """Any number of them is known, whatever else is in them; another one is not."""
    block = next(each for each in BLOCKS if each.kind == kind.partition(".")[0])
    for name, known in ((given, True), (other, False)):
        found = unknown_settings(Component("c", kind, (MetadataEntry(name, "x"),)), block, Registry())
        assert (not any(found)) is known


@pytest.mark.parametrize(
    ("kind", "version", "known"),
    [
        ("state.redis", "v2", "version v1"),
        ("state.mesh", "v2", "version v1"),
        ("pubsub.redis", "v3", "version v1"),
        ("state.postgresql", "v3", "versions v1 and v2"),
        ("state.cockroachdb", "v1", "version v2"),
        ("state.redis", "v1", None),
        ("state.postgresql", "v2", None),
        ("state.yugabyte", "v1", None),
        ("state.sqlserver", "v2", None),
        ("state.etcd", "v2", None),
    ],
)
def test_versions_that_a_type_does_not_have(kind: str, version: str, known: str | None) -> None:
    block = next(each for each in BLOCKS if each.kind == kind.partition(".")[0])
    problems, _ = unknown_settings(Component("c", kind, version=version), block, Registry())
    told = [] if known is None else [f"{kind} has the {known} (spec.version), not {version!r}"]
    assert [problem.message for problem in problems] == told


def test_what_is_refused_and_what_has_no_effect() -> None:
    """The first is an error, the other is told once, unless it has no text or asks for what is so anyway."""

    @dataclass(frozen=True, slots=True)
    class Model:
        ignored: ClassVar[tuple[Setting, ...]] = (
            *ignored("it is always so", "sure", anyway=("true",)),
            *refused("Avro", "schema"),
        )
        password: str | None = setting("password", "It.", VERBATIM, aliases=("old",))

    assert [each.name for each in settings_of(Model)] == ["password", "sure", "schema"]
    with pytest.raises(ConfigError, match="Avro is not supported"):
        read_settings(component(schema="x"), Model)
    assert read_settings(component(schema="", password="", old=" a "), Model) == Model(" a ")
    for text, told in (("false", 1), ("True", 0), ("", 0)):
        assert len(without_effect(component(Sure=text), settings_of(Model))) == told


@dataclass(frozen=True, slots=True)
class Limits:
    """Of time, and a place."""

    wait: float = setting("wait", "How long.", LIMIT, default=5.0)
    ttl: float = setting("ttl", "How long, in seconds.", LIMIT_SECONDS, default=5.0)
    session: float = setting("session", "How long at most.", lasting(60.0), default=5.0)
    url: str = setting("url", "Where.", default="", secret=True)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("wait", "0", "must be longer than 0"),
        ("wait", "0s", "must be longer than 0"),
        ("ttl", "0", "must be longer than 0"),
        ("session", "61s", "is at most 1m"),
        *(
            ("url", given, "names a port that there cannot be: one is from 1 to 65535")
            for given in (
                "http://h:0",
                "http://h:99999/x",
                "amqp://u:secret@h:65536/v",
                "mongodb://h:0,h:1/",
                "REDIS://[::1]:70000?x",
                f"nats://h:{5000 * '9'}",
            )
        ),
    ],
)
def test_times_and_ports_that_there_cannot_be(name: str, given: str, said: str) -> None:
    """They are refused where settings are read, not when something is connected to, and no secret is shown."""
    with pytest.raises(ConfigError) as raised:
        read_settings(component(**{name: given}), Limits)
    assert [each.message for each in raised.value.problems] == [said]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("wait", "1ns"),
        ("ttl", "1"),
        ("session", "60s"),
        *(
            ("url", given)
            for given in (
                "http://h",
                "http://h:1",
                "http://h:65535/x:99999",
                "amqp://u:99999@h",
                "amqp://u:99999/x@h",
                "h:99999",
                "http://h:99999x",
            )
        ),
    ],
)
def test_what_only_looks_like_it(name: str, given: str) -> None:
    read_settings(component(**{name: given}), Limits)


def with_ports() -> Iterator[tuple[str, str, str]]:
    """Find settings whose example names a port: type, name, and the example with one that there cannot be."""
    registry = Registry()
    for kind in sorted(each.name for each in entry_points(group=GROUP) if not each.name.startswith("backbone.")):
        for each in declared_by(registry.load(kind)) or ():
            wrong = re.sub(r"(?<=[a-z0-9]:)[0-9]{2,5}(?=[/,?)]|$)", "99999", each.example or each.shown_default)
            if each.used and "99999" in wrong:
                yield kind, each.name, wrong


def problems_of(kind: str, name: str, wrong: str) -> list[str]:
    adapter: Any = Registry().load(kind)
    given = {each.name: example(each) for each in declared_by(adapter) or () if each.required and each.name != name}
    made = Component("c", kind, tuple(MetadataEntry(*each) for each in {**given, name: wrong}.items()))
    try:
        adapter.from_component(made)
    except ConfigError as error:
        return [str(each) for each in error.problems]
    return []


def test_ports_that_there_cannot_be() -> None:
    """No type leaves them to whoever connects. One test: to find them is to load every adapter."""
    found = {(kind, name): problems_of(kind, name, wrong) for kind, name, wrong in with_ports()}
    assert len(found) > 10
    taken = [setting for setting, problems in found.items() if not any(setting[1] in each for each in problems)]
    assert not taken
