"""Parts of what ``GET metadata`` answers."""

from __future__ import annotations

from collections.abc import Mapping

from mesh.node.backlogs import SubscriptionBacklog
from mesh.node.description import NodeDescription
from mesh.resources.subscription import Subscription
from mesh.telemetry import EVENTS_DEAD_LETTERED, EVENTS_DELIVERED

__all__ = ["actors", "backlog", "subscription_as_told", "without_nothing"]


def actors(node: NodeDescription) -> list[dict[str, object]]:
    """Give the types of actors, and how many are active."""
    return [{"type": type_, "count": count} for type_, count in node.actors]


def without_nothing(component: dict[str, object]) -> dict[str, object]:
    """Leave out what there is none of, as Dapr does."""
    return {name: value for name, value in component.items() if value}


def backlog(each: SubscriptionBacklog, counted: Mapping[tuple[str, ...], int]) -> dict[str, object]:
    """Tell what a subscription has before it, and what became of what came to this gateway since it started."""
    of = each.component, each.topic
    attempts = {outcome: counted.get((EVENTS_DELIVERED, *of, outcome), 0) for outcome in ("success", "retry", "drop")}
    told: dict[str, object] = {"pubsubname": each.component, "topic": each.topic, "waiting": each.backlog.waiting}
    told |= {"taken": each.backlog.taken, "oldestSeconds": each.oldest_seconds, "attempts": attempts}
    return told | {"deadLetters": counted.get((EVENTS_DEAD_LETTERED, *of), 0)}


def subscription_as_told(subscription: Subscription) -> dict[str, object]:
    """Give a subscription with its rules."""
    rules = [{"match": rule.match, "path": rule.path} for rule in subscription.rules]
    if subscription.default_path is not None:
        rules.append({"path": subscription.default_path})
    return {
        "pubsubname": subscription.pubsub,
        "topic": subscription.topic,
        **({"metadata": dict(subscription.metadata)} if subscription.metadata else {}),
        "rules": rules,
        "deadLetterTopic": subscription.dead_letter_topic or "",
        "type": subscription.origin,
    }
