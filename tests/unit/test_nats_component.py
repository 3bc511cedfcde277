"""The metadata of ``pubsub.jetstream``."""

from __future__ import annotations

import pytest

from brokers.nats import NatsBroker
from brokers.nats._component import read
from mesh.errors import ConfigError
from mesh.resources.component import Component, MetadataEntry


def component(**settings: str) -> Component:
    entries = tuple(
        MetadataEntry(name, value, f"spec.metadata[{at}]", at + 1, 1)
        for at, (name, value) in enumerate(settings.items())
    )
    return Component("messages", "pubsub.jetstream", entries, file="f.yaml", line=1)


def test_what_is_read() -> None:
    config = read(component(natsURL="nats://a:4222, nats://b:4222", token="t", streamName="s", consumerID="c"))
    assert config == {"servers": ("nats://a:4222", "nats://b:4222"), "token": "t", "name": "brokermesh messages"}
    broker = NatsBroker.from_component(component(natsURL="nats://a", jwt="j", seedKey="s"))
    assert "j" not in repr(broker._config).replace("jwt", "")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "f.yaml:1:1: component messages: natsURL is required"),
        (
            {"natsURL": "nats://a", "natURL": "x"},
            "f.yaml:2:1: spec.metadata[1] (natURL): unknown setting; did you mean natsURL?",
        ),
        ({"natsURL": "nats://a", "jwt": "x"}, "f.yaml:2:1: spec.metadata[1] (jwt): jwt and seedKey go together"),
        (
            {"natsURL": "nats://a", "tls_client_key": "x"},
            "f.yaml:2:1: spec.metadata[1] (tls_client_key): tls_client_cert and tls_client_key go together",
        ),
    ],
)
def test_what_is_refused(settings: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(component(**settings))
    assert [str(each) for each in raised.value.problems] == [problem]
