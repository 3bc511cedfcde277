"""What of a node's resources needs a place for the mesh's own records that is not there, by their types alone."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.blocks.state import is_marked
from mesh.broker import Features
from mesh.errors import ConfigError, MissingDependencyError, Problem
from mesh.registry import STATE_ON_BACKBONE, Registry
from mesh.resources.component import Component
from mesh.resources.subscription import Subscription, asked

__all__ = ["without_place"]

HOW = 'a state store that every node reaches, marked by actorStateStore: "true", or MESH_SINGLE_HOST=true'


def without_place(
    components: Sequence[Component],
    subscriptions: Sequence[Subscription],
    backbone: str,
    registry: Registry,
    *,
    single_host: bool,
) -> list[Problem]:
    """Find what is going to be refused at its first use, as far as types tell (``mesh/node/places.py``).

    Args:
        components: Of the node.
        subscriptions: Of the node, declared.
        backbone: The backbone's URL.
        registry: What is installed.
        single_host: Whether all nodes are on this machine.
    """
    if single_host or (name := _without_key_value(backbone, registry)) is None:
        return []
    marked = [each for each in components if is_marked(each)]
    unfit = [each for each in marked if each.type == STATE_ON_BACKBONE or _bound(each, registry)]
    nowhere = f"is no place that every node reaches, and {name} has no key/value store: it takes {HOW}"
    found = [each.problem(f"{each.type} {nowhere}", setting="actorStateStore") for each in unfit]
    if len(marked) > len(unfit):
        return found
    found += [
        each.type_problem(f"{name} has no key/value store: {each.type} takes {HOW}")
        for each in components
        if each.type == STATE_ON_BACKBONE and each not in unfit
    ]
    found += [
        Problem(f"deduplicate: {name} has no key/value store: it takes {HOW}", "", each.file, each.line)
        for each in subscriptions
        if asked(each.metadata)[0].deduplicate
    ]
    return found


def _without_key_value(backbone: str, registry: Registry) -> str | None:
    """Give the name of a broker that has no key/value store; None where it has, or is not known."""
    try:
        features = getattr(registry.backbone(backbone), "features", None)
    except (ConfigError, MissingDependencyError):  # As others tell.
        return None
    return features.name if isinstance(features, Features) and not features.key_value else None


def _bound(component: Component, registry: Registry) -> bool:
    try:
        return registry.find(component.type) is not None and getattr(registry.load(component.type), "bound", False)
    except (ConfigError, MissingDependencyError):
        return False
