"""Opens a node's components: secret stores first, since others refer to them; all problems at once.

Each is open in a task of its own (`mesh/life.py`), so that one can be replaced while its operations finish.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

from mesh.blocks.block import Block, Opened, Parts
from mesh.blocks.secrets import BLOCK as SECRETS
from mesh.blocks.secrets import secret_value
from mesh.errors import ConfigError, MeshError, MissingDependencyError, Problem
from mesh.host import fingerprint
from mesh.hosting import Hosted
from mesh.life import Life, Lives
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
from mesh.resources.settings import declared_by, without_effect
from mesh.telemetry import CANCELLED, COMPONENTS_OPENED, FAILED, OK, Tracing

__all__ = [
    "Components",
    "Entry",
    "check_denied",
    "check_installed",
    "check_named",
    "check_references",
    "check_together",
    "check_types",
    "in_order",
    "open_component",
    "open_components",
    "resolved_entries",
    "tell_unanswered",
    "unknown_settings",
]

logger = logging.getLogger(__name__)

TELL_SECONDS = 1.0
_LEFT_OUT = "with spec.ignoreErrors: true the component is left out"


@dataclass(frozen=True, slots=True)
class Entry:
    """An open component.

    Attributes:
        block: Whose it is.
        component: As it was loaded.
        resolved: With its references closed and its templates expanded.
        opened: What it was opened as.
        placement: Where its operations run.
        life: Of what is open.
    """

    block: Block
    component: Component
    resolved: Component
    opened: Opened
    placement: str
    life: Life

    @property
    def hosted(self) -> bool:
        """Whether other nodes are answered."""
        return self.block.hosted and self.placement != "local"

    def leave(self) -> None:
        """Answer operations that wait for something to happen: it is about to be closed."""
        leave = getattr(self.opened, "leave", None)
        if leave is not None:
            leave()

    def answer(self, run: Handler, tracing: Tracing) -> Hosted:
        """Say how they are answered; ``run`` is the pipeline that the answers come from."""
        return Hosted(
            block=self.block.name,
            component=self.component,
            fingerprint=fingerprint(self.component, self.resolved),
            capabilities=tuple(self.opened.capabilities),
            recoverable=self.placement == "backbone",
            methods={method.name: method for method in self.block.methods},
            run=run,
            tracing=tracing,
        )


@dataclass(slots=True)
class Components:
    """What is open on this node, by name, in the order it was opened; and why what is absent could not be opened."""

    entries: dict[str, Entry] = field(default_factory=dict)
    absent: dict[str, tuple[Component, str]] = field(default_factory=dict)
    _views: list[tuple[Block, tuple[str, ...], dict[str, Opened]]] = field(default_factory=list)

    @property
    def all(self) -> Sequence[tuple[Component, Opened]]:
        """Give each component as resolved, and what it was opened as."""
        return [(entry.resolved, entry.opened) for entry in self.entries.values()]

    def of(self, block: Block, *placements: str) -> Mapping[str, Opened]:
        """Give a block's components of these placements, by name, as they are at any time."""
        view: dict[str, Opened] = {}
        self._views.append((block, placements, view))
        for entry in self.entries.values():
            self._show(entry)
        return view

    def put(self, entry: Entry, parts: Parts) -> Entry | None:
        """Use it from here on; gives the one of its name that was used until now."""
        name = entry.component.name
        former = self.entries.get(name)
        if former is not None:
            self._hide(former, parts)
        self.entries[name] = entry
        self.absent.pop(name, None)
        parts.configured.add(entry.block.name)
        parts.scopes[name], parts.lives[name] = entry.component.scopes, entry.life
        self._show(entry)
        return former

    def take(self, name: str, parts: Parts) -> Entry | None:
        """Use one no longer; gives it."""
        self.absent.pop(name, None)
        former = self.entries.pop(name, None)
        if former is not None:
            self._hide(former, parts)
        return former

    def forget_absent(self, wanted: Iterable[str]) -> None:
        """Speak no longer of what could not be opened and is not wanted any more."""
        names = set(wanted)
        self.absent = {name: why for name, why in self.absent.items() if name in names}

    def _hide(self, entry: Entry, parts: Parts) -> None:
        name = entry.component.name
        for _, _, view in self._views:
            view.pop(name, None)
        del parts.scopes[name], parts.lives[name]
        if not any(each.block is entry.block for each in self.entries.values() if each is not entry):
            parts.configured.discard(entry.block.name)

    def _show(self, entry: Entry) -> None:
        for block, placements, view in self._views:
            if block is entry.block and entry.placement in placements:
                view[entry.component.name] = entry.opened


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


def check_installed(
    components: Sequence[Component], blocks: Sequence[Block], registry: Registry
) -> tuple[list[Problem], list[Problem]]:
    """Find components of a building block's kind whose type nothing installed here has: first misspelt ones."""
    kinds = {block.kind for block in blocks}
    misspelt: list[Problem] = []
    others: list[Problem] = []
    for component in components:
        known = component.type in BACKBONE_TYPES or registry.find(component.type) is not None
        if component.block in kinds and not known and not component.ignore_errors:
            problem = component.type_problem(f"{registry.not_installed(component.type)}; {_LEFT_OUT}")
            (misspelt if registry.meant(component.type) else others).append(problem)
    return misspelt, others


def check_named(components: Sequence[Component], blocks: Sequence[Block]) -> list[Problem]:
    """Find settings that name a component which this node has not."""
    there = {(component.block, component.name) for component in components}
    refers = {block.kind: block.refers for block in blocks if block.refers is not None}
    return [
        component.problem(f"there is no {kind} component {name!r}", setting=setting)
        for component in components
        if component.block in refers and not component.ignore_errors
        for setting, (kind, name) in refers[component.block](component).items()
        if (kind, name) not in there
    ]


def check_together(components: Sequence[Component], blocks: Sequence[Block]) -> list[tuple[Component, Problem]]:
    """Find components that one node may not have beside those before them."""
    return [
        clash
        for block in blocks
        if block.kind is not None
        for clash in block.together([each for each in components if each.block == block.kind])
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


def check_references(
    components: Sequence[Component], endpoints: Sequence[HTTPEndpoint] = (), stores: Sequence[str] | None = None
) -> list[Problem]:
    """Find references to secrets in resources that name no secret store; None as stores = those of the components."""
    if stores is None:
        stores = [each.name for each in components if each.block == SECRETS.kind]
    resources: list[Component | HTTPEndpoint] = [*(each for each in components if not each.ignore_errors), *endpoints]
    return [problem for each in resources for problem in without_store(each, stores)]


def unknown_settings(component: Component, block: Block, registry: Registry) -> tuple[list[Problem], list[Problem]]:
    """Find a version and settings that nothing reads: first what may not be ignored, an error, then what is a warning.

    Those that the adapter takes without effect are warnings too, with its reason.

    An adapter that does not say its ``settings`` looks at them itself.
    """
    shared = [name for each in block.settings for name in each.names]
    if component.type in BACKBONE_TYPES:
        advice = f"; {component.type} uses the mesh's own broker: delete this line if it is about another server"
        near, others = component.unknown(shared, advice)
        return _of_version(component, ("v1",)) + near, others
    adapter = (
        None if registry.find(component.type) is None else registry.load(component.type, component.known("layout"))
    )
    declared = declared_by(adapter)
    if declared is None:
        return [], []
    near, others = component.unknown((*shared, *(name for each in declared for name in each.names)))
    versions = getattr(adapter, "versions", ("v1",))
    return _of_version(component, versions) + near, others + without_effect(component, declared)


def _of_version(component: Component, versions: Sequence[str]) -> list[Problem]:
    problem = component.version_problem(versions)
    return [] if problem is None else [problem]


async def open_components(
    components: Sequence[Component], blocks: Sequence[Block], parts: Parts, opened: Components, lives: Lives
) -> None:
    """Open every component.

    Args:
        components: Those in scope.
        blocks: The table.
        parts: Of the node.
        opened: Where they are put, as they are opened.
        lives: Holds them open.

    Raises:
        ConfigError: Some cannot be opened; holds all problems.
    """
    problems: list[Problem] = []
    for component in in_order(components, blocks, problems):
        try:
            entry = await open_component(component, blocks, parts, opened, lives)
            opened.put(entry, parts)
            logger.info(
                "Component loaded: %s (%s/%s)%s",
                *(component.name, component.type, component.version),
                ", other nodes are answered as well" if entry.hosted else "",
            )
        except ConfigError as error:
            if component.ignore_errors:
                logger.warning("component %s is left out: %s", component.name, error)
                opened.absent[component.name] = component, str(error)
            else:
                problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)


def in_order(components: Sequence[Component], blocks: Sequence[Block], problems: list[Problem]) -> list[Component]:
    """Give components of the blocks' kinds, each after the secret store that it names; the rest is a problem.

    Secret stores are before all others, so what waits for one keeps its place: state stores are before who remembers
    something in them.
    """
    order = {block.kind: number for number, block in enumerate(blocks) if block.kind is not None}
    waiting = sorted((each for each in components if each.block in order), key=lambda each: order[each.block])
    found: list[Component] = []
    while waiting:
        names = {component.name for component in waiting}
        ready = [each for each in waiting if not (each.secret_refs() and each.auth_secret_store in names)]
        if not ready:
            problems += [
                each.problem(f"waits for the secret store {each.auth_secret_store}, which waits as well")
                for each in waiting
            ]
            break
        found += ready
        waiting = [component for component in waiting if component not in ready]
    return sorted(found, key=lambda each: order[each.block])


async def open_component(
    component: Component, blocks: Sequence[Block], parts: Parts, opened: Components, lives: Lives
) -> Entry:
    """Open one; it is not used yet.

    Raises:
        ConfigError: It cannot be opened.
    """
    outcome = CANCELLED
    try:
        entry = await _open(component, blocks, parts, opened, lives)
        outcome = OK
    except ConfigError:
        outcome = FAILED
        raise
    finally:
        if parts.own_observer is not None:
            parts.own_observer(COMPONENTS_OPENED, (component.name, component.type, outcome))
    return entry


async def _open(component: Component, blocks: Sequence[Block], parts: Parts, opened: Components, lives: Lives) -> Entry:
    block = next(each for each in blocks if each.kind == component.block)
    assert block.open is not None
    opening = block.open
    waits_for = ""

    def tell() -> None:
        logger.info("component %s waits for %s, %g s at most", component.name, waits_for, component.init_timeout)

    telling = asyncio.get_running_loop().call_later(TELL_SECONDS, tell)
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

            async def begin(stack: AsyncExitStack) -> Opened:
                return await opening(resolved, replace(parts, stack=stack))

            entry, life = await lives.begin(f"component {component.name}", begin)
        return Entry(block, component, resolved, entry, _placement(component, block, entry, parts), life)
    except ConfigError as error:
        raise ConfigError([each if each.file else _located(component, each) for each in error.problems]) from error
    except MissingDependencyError as error:
        raise ConfigError(component.type_problem(f"component {component.name}: {error}")) from error
    except (MeshError, TimeoutError) as error:
        late = f"its start took longer than {component.init_timeout:g} s (spec.initTimeout), it waited for {waits_for}"
        raise ConfigError(component.problem(f"component {component.name}: {str(error) or late}")) from error
    finally:
        telling.cancel()


def _located(component: Component, problem: Problem) -> Problem:
    """Say where it is that something is wrong, where only what is wrong was known."""
    return component.problem(f"component {component.name}: {problem}") if component.file else problem


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
    """Read the secrets that a resource refers to; those that nobody gives are left out, and told by who needs them.

    Args:
        refs: The references.
        store: The secret store that the resource names; it may be hosted elsewhere.
        parts: Of the node.
        opened: What is open.

    Raises:
        MeshError: They may be given later.
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
        ConfigError: Some have no value; holds all of them, located. Or the secret store is away, which is its cause.
    """
    refs = tuple(dict.fromkeys(entry.value for entry in entries if isinstance(entry.value, SecretRef)))
    try:
        secrets = await _secrets(refs, store, parts, opened)
    except MeshError as error:
        raise ConfigError(Problem(f"secret store {store}: {error}", "", file)) from error
    return resolve_entries(entries, _tokens(parts), os.environ, secrets, file=file)


def tell_unanswered(entries: Iterable[Entry]) -> None:
    """Say what a node that is there to host keeps for itself."""
    for entry in entries:
        if entry.block.hosted and not entry.hosted:
            logger.warning(
                "component %s (%s) is not answered for: it is bound to this machine; "
                "the annotation mesh.placement: backbone lets others use it",
                entry.component.name,
                entry.component.type,
            )
