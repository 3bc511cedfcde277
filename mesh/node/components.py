"""Opens a node's components: secret stores first, since others refer to them; all problems at once."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mesh.blocks.block import Block, Opened, Parts
from mesh.blocks.secrets import BLOCK as SECRETS
from mesh.blocks.secrets import secret_value
from mesh.errors import ConfigError, MeshError, MissingDependencyError, Problem
from mesh.host import Hosted, fingerprint
from mesh.pipeline import Handler
from mesh.registry import BACKBONE_TYPES, Registry
from mesh.resources.component import (
    Component,
    HTTPEndpoint,
    MetadataEntry,
    SecretRef,
    TemplateTokens,
    resolve_entries,
    without_store,
)
from mesh.resources.configuration import Configuration
from mesh.resources.settings import Setting, declared_by, without_effect

__all__ = [
    "Components",
    "check_denied",
    "check_installed",
    "check_references",
    "check_types",
    "open_components",
    "resolved_entries",
    "unknown_settings",
]

logger = logging.getLogger(__name__)

_LEFT_OUT = "with spec.ignoreErrors: true the component is left out"


@dataclass(frozen=True, slots=True)
class _Entry:
    block: Block
    component: Component
    resolved: Component
    opened: Opened
    placement: str


@dataclass(slots=True)
class Components:
    """What is open on this node, in the order it was opened."""

    entries: list[_Entry] = field(default_factory=list)

    @property
    def all(self) -> Sequence[tuple[Component, Opened]]:
        """Give each component as resolved, and what it was opened as."""
        return [(entry.resolved, entry.opened) for entry in self.entries]

    @property
    def placements(self) -> Sequence[tuple[Component, str]]:
        """Give each component that could be hosted, and where its operations run."""
        return [(entry.component, entry.placement) for entry in self.entries if entry.block.hosted]

    def of(self, block: Block, *placements: str) -> dict[str, Opened]:
        """Give a block's components of these placements, by name."""
        return {
            entry.component.name: entry.opened
            for entry in self.entries
            if entry.block is block and entry.placement in placements
        }

    def hosted(self, run: Handler) -> list[Hosted]:
        """Give what this node answers for; ``run`` is the pipeline that the answers come from."""
        return [
            Hosted(
                block=entry.block.name,
                component=entry.component,
                fingerprint=fingerprint(entry.component, entry.resolved),
                capabilities=tuple(entry.opened.capabilities),
                recoverable=entry.placement == "backbone",
                methods={method.name: method for method in entry.block.methods},
                run=run,
            )
            for entry in self.entries
            if entry.block.hosted and entry.placement != "local"
        ]


def check_types(components: Sequence[Component], blocks: Sequence[Block]) -> list[Problem]:
    """Find components of a kind that no building block has."""
    kinds = {block.kind for block in blocks if block.kind is not None}
    return [
        component.type_problem(
            f"component type {component.type!r}: this version has no components of the kind {component.block!r}, only "
            f"{', '.join(sorted(kinds))}, see docs/compatibility.md; {_LEFT_OUT}"
        )
        for component in components
        if component.block not in kinds and not component.ignore_errors
    ]


def check_installed(components: Sequence[Component], blocks: Sequence[Block], registry: Registry) -> list[Problem]:
    """Find components of a building block's kind whose type nothing installed here has."""
    kinds = {block.kind for block in blocks}
    return [
        component.type_problem(f"{registry.not_installed(component.type)}; {_LEFT_OUT}")
        for component in components
        if component.block in kinds
        and component.type not in BACKBONE_TYPES
        and not component.ignore_errors
        and registry.find(component.type) is None
    ]


def check_denied(components: Sequence[Component], configuration: Configuration) -> list[Problem]:
    """Find components whose type the Configuration denies."""
    spec = configuration.spec.components
    denied = {kind.lower() for kind in spec.deny} if spec is not None else set()
    return [
        component.type_problem(f"component type {component.type!r} is denied by Configuration {configuration.name!r}")
        for component in components
        if denied & {component.type, f"{component.type}/{component.version}"}
    ]


def check_references(components: Sequence[Component], endpoints: Sequence[HTTPEndpoint] = ()) -> list[Problem]:
    """Find references to secrets in resources that name no secret store."""
    stores = [each.name for each in components if each.block == SECRETS.kind]
    resources: list[Component | HTTPEndpoint] = [*(each for each in components if not each.ignore_errors), *endpoints]
    return [problem for each in resources for problem in without_store(each, stores)]


def unknown_settings(component: Component, block: Block, registry: Registry) -> tuple[list[Problem], list[Problem]]:
    """Find settings that nothing reads: first what may not be ignored, an error, then what is a warning.

    Those that the adapter takes without effect are warnings too, with its reason.

    An adapter that does not say its ``settings`` looks at them itself.
    """
    shared = [name for each in block.settings for name in each.names]
    if component.type in BACKBONE_TYPES:
        advice = f"; {component.type} uses the mesh's own broker: delete this line if it is about another server"
        return component.unknown(shared, advice)
    declared: Sequence[Setting] | None = None
    if registry.find(component.type) is not None:
        declared = declared_by(registry.load(component.type))
    if declared is None:
        return [], []
    near, others = component.unknown((*shared, *(name for each in declared for name in each.names)))
    return near, others + without_effect(component, declared)


async def open_components(
    components: Sequence[Component], blocks: Sequence[Block], parts: Parts, opened: Components
) -> None:
    """Open every component.

    Args:
        components: Those in scope.
        blocks: The table.
        parts: Of the node.
        opened: Where they are put, as they are opened.

    Raises:
        ConfigError: Some cannot be opened; holds all problems.
    """
    by_kind = {block.kind: (order, block) for order, block in enumerate(blocks) if block.kind is not None}
    known = [component for component in components if component.block in by_kind]
    waiting = sorted(known, key=lambda component: by_kind[component.block][0])
    problems: list[Problem] = []
    while waiting:
        names = {component.name for component in waiting}
        ready = [each for each in waiting if not (each.secret_refs() and each.auth_secret_store in names)]
        if not ready:
            problems += [
                each.problem(f"waits for the secret store {each.auth_secret_store}, which waits as well")
                for each in waiting
            ]
            break
        for component in ready:
            await _open(component, by_kind[component.block][1], parts, opened, problems)
        waiting = [component for component in waiting if component not in ready]
    if problems:
        raise ConfigError(problems)


async def _open(component: Component, block: Block, parts: Parts, opened: Components, problems: list[Problem]) -> None:
    assert block.open is not None
    waits_for = ""
    try:
        misspelt, warnings = unknown_settings(component, block, parts.registry)
        if misspelt:
            raise ConfigError(misspelt)
        for warning in warnings:
            logger.warning("%s", warning)
        async with asyncio.timeout(component.init_timeout):
            waits_for = f"the secret store {component.auth_secret_store}"
            secrets = await _secrets(component.secret_refs(), component.auth_secret_store, parts, opened)
            waits_for = f"its adapter {component.type}"
            resolved = component.resolved(_tokens(parts), os.environ, secrets)
            entry = await block.open(resolved, parts)
        placement = _placement(component, block, entry, parts)
        parts.configured.add(block.name)
        parts.scopes[component.name] = component.scopes
        opened.entries.append(_Entry(block, component, resolved, entry, placement))
    except (MeshError, TimeoutError) as error:
        late = f"its start took longer than {component.init_timeout:g} s (spec.initTimeout), it waited for {waits_for}"
        reason = str(error) or late
        if component.ignore_errors:
            logger.warning("component %s is left out: %s", component.name, reason)
        elif isinstance(error, ConfigError):
            problems.extend(error.problems)
        elif isinstance(error, MissingDependencyError):
            problems.append(component.type_problem(f"component {component.name}: {reason}"))
        else:
            problems.append(component.problem(f"component {component.name}: {reason}"))


def _placement(component: Component, block: Block, opened: Opened, parts: Parts) -> str:
    """Decide where operations run: as the component says, as its type must, or as the Configuration says."""
    if not block.hosted:
        return "local"
    if component.placement is not None:
        return component.placement
    store = getattr(opened, "store", None)
    if getattr(store, "bound", False):  # To a process or a machine: others have another one.
        return "local"
    return parts.configuration.spec.placement or "nearest"


def _tokens(parts: Parts) -> TemplateTokens:
    """Give what templates in settings expand to."""
    return TemplateTokens(parts.caller.app_id, parts.caller.namespace, os.environ.get("POD_NAME"))


async def _secrets(
    refs: Sequence[SecretRef], store: str | None, parts: Parts, opened: Components
) -> Mapping[SecretRef, str]:
    """Read the secrets that a resource refers to; those that cannot be read are left out, and told by who needs them.

    Args:
        refs: The references.
        store: The secret store that the resource names; it may be hosted elsewhere.
        parts: Of the node.
        opened: What is open.
    """
    if not refs or store is None:
        return {}
    stores = {component.name: each for component, each in opened.all}
    found = {ref: await secret_value(parts, stores.get(store), store, ref) for ref in refs}
    return {ref: value for ref, value in found.items() if value is not None}


async def resolved_entries(
    entries: Sequence[MetadataEntry], store: str | None, file: str | None, parts: Parts, opened: Components
) -> tuple[MetadataEntry, ...]:
    """Close the references of a resource that is no component.

    Raises:
        ConfigError: Some have no value; holds all of them, located.
    """
    refs = tuple(dict.fromkeys(entry.value for entry in entries if isinstance(entry.value, SecretRef)))
    secrets = await _secrets(refs, store, parts, opened)
    return resolve_entries(entries, _tokens(parts), os.environ, secrets, file=file)
