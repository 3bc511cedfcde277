"""What is wrong with components' settings, known before anything is opened: adapters read them without connecting."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol

from mesh.blocks.block import Block
from mesh.errors import ConfigError, MissingDependencyError, Problem
from mesh.node.components import unknown_settings
from mesh.registry import Registry
from mesh.resources.component import (
    Component,
    EnvRef,
    MetadataEntry,
    Secret,
    SecretRef,
    TemplateTokens,
    env_refusal,
    resolve_entries,
)
from mesh.resources.settings import Setting, declared_by, example, read_settings

__all__ = ["NONE_KNOWN", "Secrets", "check_settings", "wrong_values"]

Secrets = Mapping[str, Mapping[SecretRef, str]]
"""What is known of secrets, by the name of their store."""

ANYTHING = "anything"
NONE_KNOWN: Secrets = MappingProxyType({})


class Node(Protocol):
    """What it takes of a node's settings."""

    @property
    def app_id(self) -> str:
        """Its application's."""

    @property
    def namespace(self) -> str:
        """Where it is."""

    @property
    def scoped(self) -> Sequence[Component]:
        """The components that it has."""


def check_settings(node: Node, registry: Registry, blocks: Sequence[Block]) -> list[Problem]:
    """Find what is wrong with settings of components of this node, all of it at once; secrets are not known yet."""
    by_kind = {block.kind: block for block in blocks}
    tokens = TemplateTokens(node.app_id, node.namespace, os.environ.get("POD_NAME"))
    problems: list[Problem] = []
    for component in node.scoped:
        if component.ignore_errors or component.block not in by_kind:
            continue
        block = by_kind[component.block]
        try:
            problems += unknown_settings(component, block, registry)[0]
            problems += wrong_values(component, block, registry, tokens)
        except MissingDependencyError as error:
            problems.append(component.type_problem(f"component {component.name}: {error}"))
    return problems


def wrong_values(
    component: Component,
    block: Block,
    registry: Registry,
    tokens: TemplateTokens,
    secrets: Secrets = NONE_KNOWN,
    *,
    elsewhere: bool = False,
) -> list[Problem]:
    """Find what is wrong with values: what block and adapter say of them, as far as it depends on known ones.

    A text that is not known is taken as given. What is said of it then is not told. Whether settings go together can
    be told beside a secret, which is only passed on; beside another one, such as a URL, it may depend on its text.

    Args:
        component: What is checked; nothing is opened.
        block: Whose it is.
        registry: What is installed.
        tokens: What templates in settings expand to.
        secrets: What is known of stores.
        elsewhere: Whether it runs on another machine, where other variables are.

    Raises:
        MissingDependencyError: Its adapter cannot be imported.
    """
    adapter = (
        None if registry.find(component.type) is None else registry.load(component.type, component.known("layout"))
    )
    own, read_all = declared_by(adapter), getattr(adapter, "from_component", None)
    declared = {name.casefold(): each for each in (*block.settings, *(own or ())) for name in each.names}
    closed, problems = _closed(component, tokens, secrets, declared, elsewhere=elsewhere)
    assumed = [entry for entry in closed.metadata if isinstance(entry.value, Secret) and entry.value.assumed]
    meant = [declared.get(entry.name.casefold()) for entry in assumed]
    reads: list[Callable[[Component], object]] = [] if block.check is None else [block.check]
    if assumed and own is not None:
        model: type = adapter.settings  # type: ignore[union-attr]  # It has declared them.
        reads.append(lambda each: read_settings(each, model))
    if read_all is not None and (not assumed or (own and all(each is not None and each.secret for each in meant))):
        reads.append(read_all)
    both = list(zip(assumed, meant, strict=True))
    silent = {
        component.problem("", setting=entry.name).path for entry, each in both if each is None or not each.refused
    }
    if any(each is None or each.name.casefold() != entry.name.casefold() for entry, each in both):
        # What is said of a setting by another of its names has no place of its own.
        silent |= {component.problem("").path, component.missing("").path}
    for read in reads:
        try:
            read(closed)
        except ConfigError as error:
            told = [each for each in error.problems if each.path not in silent]
            problems += [
                each if each.file or not component.file else component.type_problem(each.message) for each in told
            ]
    return list(dict.fromkeys(problems))


def _closed(
    component: Component, tokens: TemplateTokens, secrets: Secrets, declared: Mapping[str, Setting], *, elsewhere: bool
) -> tuple[Component, list[Problem]]:
    """Close the references of a component, and find those to what is not there.

    What is not known is a text that the setting may have.
    """
    known = secrets.get(component.auth_secret_store or "")
    problems: list[Problem] = []
    closed: list[MetadataEntry] = []
    for entry in component.metadata:
        setting = declared.get(entry.name.casefold())
        source = entry.value if isinstance(entry.value, SecretRef) else None
        assumed = replace(entry, value=Secret(ANYTHING if setting is None else example(setting), source, assumed=True))
        given = isinstance(entry.value, EnvRef) and env_refusal(entry.value.variable, {}) is None
        if (elsewhere and given) or (source is not None and known is None):
            closed.append(assumed)
            continue
        try:
            closed += resolve_entries([entry], tokens, os.environ, known or {}, file=component.file)
        except ConfigError as error:
            problems += error.problems
            closed.append(assumed)
    return replace(component, metadata=tuple(closed)), problems
