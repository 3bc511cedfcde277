"""What tests of several native brokers are given."""

from __future__ import annotations

import pytest

from mesh import address
from mesh.address import Address
from tests.http.harness import Backbone
from tests.support.nodes import unique


@pytest.fixture
def backbone() -> Backbone:
    """One gateway alone: its topics are on the broker of a component."""
    return Backbone("memory:")


@pytest.fixture
def topic() -> str:
    """A topic that no other test uses."""
    return unique("orders")


@pytest.fixture
def orders(topic: str) -> Address:
    """Its address."""
    return address.topic("test", "shop", topic)


@pytest.fixture
def group() -> str:
    """A group that no other test uses."""
    return unique("app")
