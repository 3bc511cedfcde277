"""What a bridge carries, by lists."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mesh.clusters import Target, check_cluster, target_of
from mesh.errors import BadArgumentError
from mesh.globs import Glob

__all__ = ["Routes", "TopicRoute", "app_of", "topic_of"]

_TOPIC = re.compile(r"([^/@]+)/([^@]+)@([^@]+)")


@dataclass(frozen=True, slots=True)
class TopicRoute:
    """A topic whose events go to the other side.

    Attributes:
        cluster: Where they are published.
        component: The pub/sub component there.
        topic: The topic there.
        to_component: The component on the other side.
        to_topic: The topic on the other side.
    """

    cluster: str
    component: str
    topic: str
    to_component: str
    to_topic: str

    def __str__(self) -> str:
        return f"{self.component}/{self.topic}@{self.cluster}"

    @property
    def described(self) -> str:
        """Say what it is, and its name on the other side where that is another one."""
        same = (self.component, self.topic) == (self.to_component, self.to_topic)
        return str(self) if same else f"{self} to {self.to_component}/{self.to_topic}"


@dataclass(frozen=True, slots=True)
class _Apps:
    cluster: str
    app_id: Glob
    namespace: str

    def fits(self, target: Target, namespace: str) -> bool:
        at = target.namespace or namespace
        return (self.cluster, self.namespace or namespace) == (target.cluster, at) and self.app_id.fits(target.app_id)


class Routes:
    """All that a bridge carries.

    Attributes:
        apps: Which applications may be called from the other side, as they were written.
        topics: Which topics go to the other side.
    """

    def __init__(self, apps: Iterable[str] = (), topics: Iterable[TopicRoute] = ()) -> None:
        """Read lists; raises ``ValueError`` for what is no application of a cluster."""
        self.apps = tuple(apps)
        self.topics = tuple(topics)
        self._apps = [app_of(each) for each in self.apps]

    def may_call(self, target: Target, namespace: str) -> bool:
        """Tell whether an application may be called.

        Args:
            target: It, with its cluster.
            namespace: Of the bridge in that cluster, where a target without a namespace is.
        """
        return any(each.fits(target, namespace) for each in self._apps)


def app_of(text: str) -> _Apps:
    """Read ``app@cluster`` or ``app.namespace@cluster``; the app id may be a pattern. Raises ``ValueError``."""
    try:
        target = target_of(text)
    except BadArgumentError as error:
        raise ValueError(f"'{text}': {error}") from None
    if not target.cluster:
        raise ValueError(f"'{text}' names no cluster; write {text}@CLUSTER, where the application is")
    return _Apps(target.cluster, Glob(target.app_id), target.namespace)


def topic_of(text: str, to: str = "") -> TopicRoute:
    """Read ``component/topic@cluster``, and ``component/topic`` of the other side if it has another name there.

    Raises:
        ValueError: It is none.
    """
    found = _TOPIC.fullmatch(text)
    if found is None:
        raise ValueError(f"'{text}' is not COMPONENT/TOPIC@CLUSTER, a topic and where its events are published")
    try:
        check_cluster(found[3])
    except BadArgumentError as error:
        raise ValueError(f"'{text}': {error}") from None
    if found[2] == "*":
        raise ValueError(f"'{text}': topics are listed one by one; * is no pattern here")
    component, slash, topic = (to or f"{found[1]}/{found[2]}").partition("/")
    if not (component and slash and topic) or "@" in to:
        raise ValueError(f"'{to}' is not COMPONENT/TOPIC, the topic's name on the other side")
    return TopicRoute(found[3], found[1], found[2], component, topic)
