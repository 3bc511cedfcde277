"""What is shown of a backbone's URL."""

from __future__ import annotations

import pytest

from mesh.urls import without_credentials


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("embedded:", "embedded:"),
        ("nats://h:4222", "nats://h:4222"),
        ("amqp://u:secret@h/v", "amqp://***@h/v"),
        ("nats://secret@a,b", "nats://***@a,b"),
        ("nats://u:secret@a, nats://u:secret@b", "nats://***@a,***@b"),
        ("nats://a,nats://u:secret@b", "nats://a,***@b"),
        ("amqp://u:sec,ret@h", "amqp://***@h"),
        ("amqp://u:sec@ret@h", "amqp://***@h"),
        ("redis://h?sentinel_password=secret", "redis://h"),
        ("redis://u:secret@h?sentinel_password=sec@ret", "redis://***"),
        ("redis://u:sec?ret@h", "redis://***"),
    ],
)
def test_without_credentials(url: str, shown: str) -> None:
    assert without_credentials(url) == shown
