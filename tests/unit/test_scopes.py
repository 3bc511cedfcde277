"""Which app may use which topic."""

from __future__ import annotations

import pytest

from mesh.blocks.topic_scopes import TopicScopes
from mesh.errors import ConfigError
from mesh.resources.component import Component, MetadataEntry
from mesh.scopes import in_scope


def scopes(**settings: str) -> TopicScopes:
    """Read the scopes of a component with these settings."""
    metadata = tuple(MetadataEntry(name, value) for name, value in settings.items())
    return TopicScopes.from_component(Component("p", "pubsub.x", metadata))


@pytest.mark.parametrize(
    ("settings", "app_id", "topic", "allowed"),
    [
        ({}, "a", "t", True),
        ({"allowedTopics": "t, u"}, "a", "u", True),
        ({"AllowedTopics": "t,u"}, "a", "v", False),
        ({"protectedTopics": "t"}, "a", "t", False),
        ({"protectedTopics": "t"}, "a", "u", True),
        ({"protectedTopics": "t", "publishingScopes": "a=t"}, "a", "t", True),
        ({"protectedTopics": "t", "publishingScopes": "a=t"}, "b", "t", False),
        ({"publishingScopes": "a=t,u; b = ;c=v"}, "a", "u", True),
        ({"publishingScopes": "a=t,u; b = ;c=v"}, "a", "v", False),
        ({"publishingScopes": "a=t,u; b = ;c=v"}, "b", "t", False),
        ({"publishingScopes": "a=t,u; b = ;c=v"}, "d", "t", True),
        ({"publishingScopes": "a=t;a=u;"}, "a", "t", True),
        ({"allowedTopics": "t", "publishingScopes": "a=u"}, "a", "u", False),
        ({"subscriptionScopes": "a="}, "a", "t", True),
    ],
)
def test_publishing(settings: dict[str, str], app_id: str, topic: str, allowed: bool) -> None:
    """The allowed topics come first, then what the app is listed for, then the protected ones."""
    assert scopes(**settings).may_publish(app_id, topic) is allowed


def test_subscribing_has_its_own_list() -> None:
    """The two directions do not mix."""
    both = scopes(publishingScopes="a=t", subscriptionScopes="a=u")
    assert (both.may_publish("a", "t"), both.may_subscribe("a", "t")) == (True, False)
    assert (both.may_publish("a", "u"), both.may_subscribe("a", "u")) == (False, True)


@pytest.mark.parametrize("text", ["a", "a=t;b", "=t"])
def test_a_malformed_scope_is_refused(text: str) -> None:
    """A mistake must not open a topic."""
    with pytest.raises(ConfigError, match=r"publishingScopes: '.*' must be app=topic1,topic2"):
        scopes(publishingScopes=text)


def test_resource_scopes() -> None:
    """No scopes means every app."""
    assert in_scope((), "a")
    assert in_scope(("a", "b"), "a")
    assert not in_scope(("b",), "a")
