"""Topic scopes: which app may use which topic of a pub/sub component.

Source: Dapr 1.18, topic scoping.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from mesh.errors import ConfigError
from mesh.resources.settings import Setting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesh.resources.component import Component

__all__ = ["SETTINGS", "TopicScopes"]

_APP_TOPICS = "`app=topic1,topic2;other=`: what an application may {}; one that is not named may all."
SETTINGS = (
    Setting(
        "consumerID",
        "The group that the instances of an application form; its app id if it is not set.",
        example="shop",
    ),
    Setting(
        "allowedTopics", "If it is set, no other topic may be used; separated by commas.", example="orders,payments"
    ),
    Setting(
        "protectedTopics",
        "Topics only for applications that are listed for them; separated by commas.",
        example="payments",
    ),
    Setting("publishingScopes", _APP_TOPICS.format("publish to"), example="shop=orders;ledger="),
    Setting("subscriptionScopes", _APP_TOPICS.format("subscribe to"), example="shop=orders;ledger="),
)
"""What the mesh reads of every pub/sub component."""


@dataclass(frozen=True, slots=True)
class TopicScopes:
    """What apps may publish to and subscribe to on one pub/sub component.

    Attributes:
        allowed: If not empty, no other topic may be used by anyone.
        protected: Topics only for apps that are listed for them.
        publishing: App id to the topics it may publish to; an app not in it is free.
        subscription: App id to the topics it may subscribe to; an app not in it is free.
    """

    allowed: frozenset[str] = frozenset()
    protected: frozenset[str] = frozenset()
    publishing: Mapping[str, frozenset[str]] = field(default_factory=dict)
    subscription: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def from_component(cls, component: Component) -> TopicScopes:
        """Read the topic scopes in a component's metadata.

        Raises:
            ConfigError: An entry of ``publishingScopes`` or ``subscriptionScopes`` is not ``app=topics``.
        """
        return cls(
            allowed=_topics(component.setting("allowedTopics") or ""),
            protected=_topics(component.setting("protectedTopics") or ""),
            publishing=_app_topics(component, "publishingScopes"),
            subscription=_app_topics(component, "subscriptionScopes"),
        )

    def may_publish(self, app_id: str, topic: str) -> bool:
        """Tell whether the app may publish to the topic."""
        return self._may(self.publishing, app_id, topic)

    def may_subscribe(self, app_id: str, topic: str) -> bool:
        """Tell whether the app may subscribe to the topic."""
        return self._may(self.subscription, app_id, topic)

    def _may(self, listed: Mapping[str, frozenset[str]], app_id: str, topic: str) -> bool:
        if self.allowed and topic not in self.allowed:
            return False
        topics = listed.get(app_id)
        return topic not in self.protected if topics is None else topic in topics


def _topics(text: str) -> frozenset[str]:
    return frozenset(topic for part in text.split(",") if (topic := part.strip()))


def _app_topics(component: Component, name: str) -> Mapping[str, frozenset[str]]:
    listed: dict[str, frozenset[str]] = {}
    for part in (component.setting(name) or "").split(";"):
        app_id, equals, topics = part.partition("=")
        if not part.strip():
            continue
        if not equals or not app_id.strip():
            message = f"'{part.strip()}' must be app=topic1,topic2 (nothing after '=' means no topic)"
            raise ConfigError(component.problem(message, setting=name))
        listed[app_id.strip()] = listed.get(app_id.strip(), frozenset()) | _topics(topics)
    return MappingProxyType(listed)
