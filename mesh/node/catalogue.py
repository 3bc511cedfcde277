"""What can be used as a component: every installed type, told by its adapter's own declarations.

The command line, the reference pages and the schemas are made from this. An adapter declares its ``settings``
(``mesh/resources/settings.py``), and may have a ``title`` and what it is ``tested`` against.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mesh.blocks.block import Block
from mesh.errors import MissingDependencyError
from mesh.registry import BACKBONE_TYPES, Registry
from mesh.resources.settings import Setting, declared_by

__all__ = ["ComponentType", "component_type", "component_types"]

_ON_BACKBONE = "On the mesh's own broker; nothing else has to run."
NOT_HERE = frozenset({"ACTOR"})  # Metadata tells it as Dapr does; no actor can use it yet.
_FIRST = re.compile(r".*?[.!?](?=\s|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ComponentType:
    """A type of component.

    Attributes:
        name: As in ``spec.type``.
        block: Its building block, None for a kind that this version has not.
        title: What it is, one sentence; empty while its library is missing.
        settings: Its own, those without effect last; None = it does not say.
        abilities: What metadata will tell of it, whatever its settings are, but for what nothing here uses yet.
        abilities_with: What it will tell besides, each with the settings that it takes.
        operations: What can be asked of it by name, as of an output binding; empty = nothing, or it depends.
        streamed: Those of them whose data and answers are passed on in parts.
        versions: Those of ``spec.version`` that it knows, the usual one first.
        tested: What it is tested against; empty = it does not say.
        placement: Where operations run if nothing else is said; empty for a block that is never hosted.
        provider: What an entry point names; empty for what is on the backbone.
        needs: What to install, and how; empty = it can be used.
        layouts: What it is with another ``layout``, by that.
    """

    name: str
    block: Block | None
    title: str = ""
    settings: tuple[Setting, ...] | None = ()
    abilities: tuple[str, ...] = ()
    abilities_with: Mapping[str, str] = field(default_factory=dict)
    operations: tuple[str, ...] = ()
    streamed: tuple[str, ...] = ()
    versions: tuple[str, ...] = ("v1",)
    tested: str = ""
    placement: str = ""
    provider: str = ""
    needs: str = ""
    layouts: Mapping[str, ComponentType] = field(default_factory=dict)

    @property
    def all_settings(self) -> tuple[Setting, ...]:
        """Its own and its block's, those without effect last."""
        own, shared = self.settings or (), () if self.block is None else self.block.settings
        taken = {name.casefold() for each in own for name in each.names}
        both = (*own, *(each for each in shared if each.name.casefold() not in taken))
        return tuple(sorted(both, key=lambda each: not each.used))

    @property
    def told_abilities(self) -> tuple[str, ...]:
        """Its abilities, those that depend on a setting with what they take."""
        return (*self.abilities, *(f"{name} (with {what})" for name, what in self.abilities_with.items()))

    def described(self) -> Mapping[str, object]:
        """Give all of it as JSON values."""
        return {
            "type": self.name,
            "block": "" if self.block is None else self.block.name,
            "title": self.title,
            "versions": list(self.versions),
            "abilities": list(self.abilities),
            "abilitiesWith": dict(self.abilities_with),
            "operations": list(self.operations),
            "streamed": list(self.streamed),
            "placement": self.placement,
            "tested": self.tested,
            "needs": self.needs,
            "settings": [_setting(each) for each in self.all_settings],
            "layouts": {name: each.described() for name, each in self.layouts.items()},
        }


def _setting(each: Setting) -> Mapping[str, object]:
    if not each.used:
        return (
            {"name": each.name, "noEffect": each.ignored}
            if each.ignored
            else {"name": each.name, "refused": each.refused}
        )
    return {
        "name": each.name,
        "aliases": list(each.aliases),
        "about": each.told,
        "kind": each.kind.name,
        "choices": list(each.kind.choices),
        "default": each.shown_default or None,
        "required": each.required,
        "sensitive": each.secret,
    }


def component_types(registry: Registry, blocks: Iterable[Block]) -> list[ComponentType]:
    """Describe every installed type; raises ``ConfigError`` for one that two packages provide."""
    known = tuple(blocks)
    return [component_type(name, registry, known) for name in registry.types()]


def component_type(name: str, registry: Registry, blocks: Sequence[Block]) -> ComponentType:
    """Describe a type.

    Raises:
        ConfigError: Nothing installed here has it, or two packages do.
    """
    block = next((each for each in blocks if each.kind == name.partition(".")[0]), None)
    if name in BACKBONE_TYPES and registry.find(name) is None:
        return ComponentType(name, block, _ON_BACKBONE, tested="every broker that can be a backbone")
    try:
        adapter = registry.load(name)
        others = {layout: registry.load(name, layout) for layout in getattr(adapter, "layouts", ())}
    except MissingDependencyError as error:
        return ComponentType(name, block, settings=None, needs=str(error))
    found = _of_adapter(name, block, adapter, registry)
    return replace(found, layouts={key: _of_adapter(name, block, each, registry) for key, each in others.items()})


def _of_adapter(name: str, block: Block | None, adapter: type, registry: Registry) -> ComponentType:
    hosted = block is not None and block.hosted
    entry = registry.find(name)
    depending: Mapping[str, str] = getattr(adapter, "capabilities_with", {})
    return ComponentType(
        name,
        block,
        title=_title(adapter),
        settings=declared_by(adapter),
        abilities=() if block is None else _abilities(block, adapter, depending),
        abilities_with=depending,
        operations=_names(adapter, "operations"),
        streamed=_names(adapter, "streamed"),
        versions=tuple(getattr(adapter, "versions", ("v1",))),
        tested=getattr(adapter, "tested", ""),
        placement="" if not hosted else "local" if getattr(adapter, "bound", False) else "nearest",
        provider="" if entry is None else entry.value,
    )


def _abilities(block: Block, adapter: type, depending: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(each for each in block.abilities(adapter) if each not in depending and each not in NOT_HERE)


def _names(adapter: type, name: str) -> tuple[str, ...]:
    """Give what an adapter says as a whole, and not as a property of each component."""
    found = getattr(adapter, name, ())
    return tuple(found) if isinstance(found, (tuple, list)) else ()


def _title(adapter: type) -> str:
    """Give what an adapter says that it is, else the first sentence of what its code says."""
    text = getattr(adapter, "title", "") or inspect.cleandoc(adapter.__doc__ or "")
    found = _FIRST.match(text)
    return " ".join((found[0] if found else text).replace("``", "`").split())
