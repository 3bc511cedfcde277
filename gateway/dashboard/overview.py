"""What the nodes of a mesh said about themselves, as one thing to show: ``GET /dashboard/api/mesh``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mesh.node.description import Node

__all__ = ["overview"]

JSON = Mapping[str, object]
_Topic = tuple[str, str]


def overview(nodes: Iterable[Node], *, without: str) -> dict[str, object]:
    """Put together applications, components and topics, each sorted by name.

    Args:
        nodes: What each of them said.
        without: An app id to leave out, that of the dashboard.
    """
    of_apps: dict[str, list[Node]] = {}
    for node in nodes:
        app_id = node.app_id or next(iter(node.apps), "")
        if app_id and app_id != without:
            of_apps.setdefault(app_id, []).append(node)
    ordered = sorted(of_apps.items())
    return {
        "apps": [_application(app_id, instances) for app_id, instances in ordered],
        "components": _components(ordered),
        "topics": _topics(ordered),
        "problems": [
            {"app": app_id, "node": node.id, "target": target, "state": state}
            for app_id, instances in ordered
            for node in instances
            for target, state in node.problems
        ],
    }


def _application(app_id: str, instances: Sequence[Node]) -> JSON:
    subscriptions = sorted({each for node in instances for each in node.subscriptions})
    published = sorted({each for node in instances for each in node.published})
    methods = {each for node in instances for each in node.methods or ()}
    actors: dict[str, int] = {}
    for node in instances:
        for type_, count in node.actors:
            actors[type_] = actors.get(type_, 0) + count
    return {
        "id": app_id,
        # Who has no application that takes calls waits for none.
        "instances": [
            {"node": node.id, "ready": app_id in node.apps or not node.serves, "serves": node.serves}
            for node in sorted(instances, key=lambda node: node.id)
        ],
        "subscriptions": [
            {"component": component, "topic": topic, "deadLetterTopic": dead_letters}
            for component, topic, dead_letters in subscriptions
        ],
        "published": [_named(each) for each in published],
        "components": sorted({name for node in instances for name, _ in node.components}),
        "actors": [{"type": type_, "count": count} for type_, count in sorted(actors.items())],
        "methods": sorted(methods) if any(node.methods is not None for node in instances) else None,
    }


def _components(of_apps: Sequence[tuple[str, Sequence[Node]]]) -> list[JSON]:
    users: dict[tuple[str, str], set[str]] = {}
    for app_id, instances in of_apps:
        for node in instances:
            for each in node.components:
                users.setdefault(each, set()).add(app_id)
    return [{"name": name, "type": type_, "apps": sorted(apps)} for (name, type_), apps in sorted(users.items())]


def _topics(of_apps: Sequence[tuple[str, Sequence[Node]]]) -> list[JSON]:
    publishers: dict[_Topic, set[str]] = {}
    subscribers: dict[_Topic, set[str]] = {}
    lettered: dict[_Topic, set[_Topic]] = {}
    for app_id, instances in of_apps:
        for node in instances:
            for topic in node.published:
                publishers.setdefault(topic, set()).add(app_id)
            for component, name, dead_letters in node.subscriptions:
                subscribers.setdefault((component, name), set()).add(app_id)
                if dead_letters:
                    lettered.setdefault((component, dead_letters), set()).add((component, name))
    return [
        {
            **_named(each),
            "publishers": sorted(publishers.get(each, ())),
            "subscribers": sorted(subscribers.get(each, ())),
            "deadLetterOf": [_named(of) for of in sorted(lettered.get(each, ()))],
        }
        for each in sorted({*publishers, *subscribers, *lettered})
    ]


def _named(topic: _Topic) -> dict[str, object]:
    return {"component": topic[0], "topic": topic[1]}
