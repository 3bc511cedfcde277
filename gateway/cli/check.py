"""``mesh check``: everything that is wrong in resources and templates, without starting anything."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.findings import Findings
from gateway.cli.parsing import Parser, UsageError
from gateway.cli.template import load_template, read_template
from gateway.cli.terminal import note, show
from gateway.metrics.settings import rules_without_effect
from gateway.settings import load_settings
from mesh.blocks import BLOCKS
from mesh.blocks.middleware import check_pipelines, scoped_in_pipelines
from mesh.blocks.secrets import BLOCK as SECRETS
from mesh.errors import ConfigError, MissingDependencyError, Problem, SecretError
from mesh.home import single_host
from mesh.node.components import (
    check_denied,
    check_installed,
    check_references,
    check_together,
    check_types,
    unknown_settings,
)
from mesh.node.runtime import check as check_node
from mesh.node.settings import NONE_KNOWN, Secrets, wrong_values
from mesh.node.without_place import without_place
from mesh.registry import Registry
from mesh.resources.component import (
    Component,
    HTTPEndpoint,
    SecretRef,
    TemplateTokens,
    resolve_entries,
    without_secret,
    without_variable,
)
from mesh.resources.configuration import Configuration
from mesh.resources.loader import (
    Document,
    ResourceFiles,
    files_at,
    is_bridge_file,
    is_foreign,
    is_run_file,
    ordered,
    read_configuration_file,
    read_documents,
)
from mesh.resources.subscription import Subscription, clashes, without_component
from mesh.resources.workflow_access import WorkflowAccessPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gateway.cli.security import Opening
    from gateway.config import GatewayConfig
    from mesh.node.spec import NodeSettings

__all__ = ["check", "check_start", "parser", "run"]


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh check",
        description="Check resource files, folders of them, and templates; print every problem. Connects to nothing.",
        epilog="Folders are not searched further down; what a template refers to is checked with it.",
    )
    made.add_argument("paths", nargs="*", metavar="PATH", help="a file or a folder")
    made.add_argument("-d", "--resources-path", action="append", default=[], metavar="PATH", help="likewise")
    made.add_argument("--strict", action="store_true", help="take warnings for problems, and fail for all that is open")
    made.add_argument("--security", action="store_true", help="tell what is open, how bad that is, and what to do next")
    made.add_argument("-o", "--output", choices=("text", "json"), default="text", help="how it is written")
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    if not (paths := [*found.paths, *found.resources_path]):
        raise UsageError("name a file or a folder", "mesh check")
    findings = check([Path(each) for each in paths])
    openings: list[Opening] = []
    if found.security:
        from gateway.cli.security import look

        openings = look(findings, os.environ)
    fails = any(found.strict or each.severity != "low" for each in openings)
    if found.strict:
        findings.add(findings.warnings)
        findings.problems, findings.warnings = ordered(findings.problems, findings.files), []
    unseen = sorted(set(findings.unseen))
    if found.output == "json":
        show(
            json.dumps(
                {
                    "resources": findings.resources,
                    "templates": findings.templates,
                    "problems": [asdict(problem) for problem in findings.problems],
                    "warnings": [asdict(warning) for warning in findings.warnings],
                    **({"open": [asdict(each) for each in openings], "unseen": unseen} if found.security else {}),
                },
                indent=2,
            )
        )
        return int(fails or bool(findings.problems))
    for problem in findings.problems:
        show(str(problem))
    for warning in findings.warnings:
        note(f"warning: {warning}")
    if findings.problems:
        number = len(findings.problems)
        note(f"{number} problem{'' if number == 1 else 's'}")
    else:
        show(_fine(findings))
    for opening in openings:
        show(str(opening))
    if found.security:
        show(f"{len(openings) or ('so far nothing' if unseen else 'nothing')} open")
    if found.security and unseen:
        show(f"what is open was not looked for everywhere in {', '.join(unseen)}")
    return int(fails or bool(findings.problems))


def check(paths: Sequence[Path]) -> Findings:
    """Check files and folders, and what their templates refer to."""
    findings = Findings()
    resources: list[Path] = []
    templates: list[tuple[Document, Path]] = []
    configurations: list[Path] = []
    for path in paths:
        for file in _files(path, findings):
            # Problems of the file are found again by whoever loads it.
            documents = read_documents(file, [])
            template = next(filter(is_run_file, documents), None)
            if template is not None:
                templates.append((template, file))
            if documents and all(map(is_bridge_file, documents)):
                _check_bridge(file, findings)
                continue
            if [document.get("kind") for document in documents] == ["Configuration"] and not is_foreign(documents[0]):
                configurations.append(file)
            elif template is None or not all(map(is_run_file, documents)):
                resources.append(file)
    seen: set[frozenset[str]] = set()
    for template, file in templates:
        _check_template(template, file, findings, seen)
    _check_resources(resources, findings, seen)
    for file in configurations:
        domain, mode = (os.environ.get(f"MESH_TRUST_{name}", "") for name in ("DOMAIN", "MODE"))
        _check_configuration(file, findings, seen, domain, proven=mode == "strict")
    # Of several Configurations, which is whose is not known here.
    told = findings.add if len(findings.configurations) == 1 else findings.warn
    for configuration in findings.configurations:
        findings.warn(rules_without_effect(configuration))
        if not findings.apps:
            told(check_denied(findings.components, configuration))
    for configuration in findings.pipelines if findings.middleware else ():
        findings.add(check_pipelines(findings.middleware, frozenset(), configuration, complete=findings.complete))
        if not findings.apps:
            findings.warn(scoped_in_pipelines(findings.middleware, configuration))
    for _, config in findings.apps:
        problems, warnings = _of_node(config)
        findings.add(problems)
        findings.warn(warnings)
    findings.problems = ordered(findings.problems, findings.files)
    findings.warnings = ordered(findings.warnings, findings.files)
    return findings


def _check_bridge(file: Path, findings: Findings) -> None:
    from gateway.bridge_file import read_bridge_file

    findings.bridges += 1
    try:
        read_bridge_file(file)
    except ConfigError as error:
        findings.add(_relative(error.problems))


def _of_node(config: GatewayConfig) -> tuple[list[Problem], list[Problem]]:
    """Find what an application's Configuration denies, and what is wrong with its pipelines, in its scopes.

    Returns:
        Problems, and warnings of what its backbone has no place for.
    """
    found: list[Problem] = []
    try:
        settings = load_settings(config, [])
    except ConfigError as error:
        # What is wrong with its files is told of each of them; where the root is has none, and hides nothing else.
        found = [each for each in error.problems if each.file is None]
        try:
            settings = load_settings(replace(config, trust=None), [])
        except ConfigError:
            return _relative(found), []
    found += [
        *check_denied(settings.scoped, settings.configuration),
        *check_pipelines(settings.scoped, settings.not_for_it, settings.configuration),
    ]
    return _relative(found), _relative(_places(settings))


def _places(settings: NodeSettings) -> list[Problem]:
    of = settings.scoped, settings.subscriptions, settings.backbone
    return without_place(*of, Registry(), single_host=settings.single_host)


def _relative(problems: Sequence[Problem]) -> list[Problem]:
    return [replace(each, file=str(_shortened(Path(each.file))) if each.file else each.file) for each in problems]


def check_start(configs: Sequence[GatewayConfig]) -> Findings:
    """Find what gateways would say at their start, as far as it can be known without connecting to anything."""
    findings = Findings()
    registry = Registry()
    for config in configs:
        warnings: list[Problem] = []
        try:
            settings = load_settings(config, warnings)
        except ConfigError as error:
            findings.add(error.problems)
            continue
        findings.warn([*warnings, *_places(settings)])
        findings.add(check_node(settings, registry))
        secrets = _known_secrets(settings.scoped, settings.endpoints, registry, findings, sure=True)
        for component in settings.scoped:
            _check_component(component, registry, findings, config, secrets)
        for endpoint in settings.endpoints:
            findings.add(_endpoint_problems(endpoint, config))
            findings.add(without_secret(endpoint, secrets))
    return findings


def _known_secrets(
    components: Sequence[Component],
    endpoints: Sequence[HTTPEndpoint],
    registry: Registry,
    findings: Findings,
    *,
    sure: bool,
) -> Secrets:
    """Read what is referred to, from stores of this machine; whether another one answers is not known before.

    Args:
        components: The stores, and who refers to them.
        endpoints: Who refers to them too.
        registry: What is installed.
        findings: Gets stores that cannot be read.
        sure: Whether they are used here; elsewhere they may be readable.
    """
    found: dict[str, Mapping[SecretRef, str]] = {}
    for store in (each for each in components if each.block == SECRETS.kind):
        users: list[Component | HTTPEndpoint] = [*components, *endpoints]
        refs = {ref for each in users if each.auth_secret_store == store.name for ref in each.secret_refs()}
        given = asyncio.run(
            _secrets(store, refs, registry, findings.add if sure and not store.ignore_errors else findings.warn)
        )
        if given is not None:  # Of two of one name, any application takes one.
            found[store.name] = {**found.get(store.name, {}), **given}
    return found


async def _secrets(
    store: Component, refs: Iterable[SecretRef], registry: Registry, tell: Callable[[Sequence[Problem]], None]
) -> Mapping[SecretRef, str] | None:
    if registry.find(store.type) is None or not getattr(registry.load(store.type), "bound", False):
        return None
    found: dict[SecretRef, str] = {}
    try:
        adapter = registry.load(store.type).from_component(store)  # type: ignore[attr-defined]
    except ConfigError:
        return None  # As `_check_component` tells.
    try:
        async with adapter as opened:
            for ref in refs:
                with suppress(SecretError):  # Who refers to one that is not there says so.
                    secret = await opened.get(ref.name, {})
                    found |= {ref: secret[ref.key]} if ref.key in secret else {}
    except ConfigError as error:
        tell(error.problems)
        return None
    return found


def _files(path: Path, findings: Findings) -> list[Path]:
    problems: list[Problem] = []
    found = files_at(path, problems)
    findings.files |= dict.fromkeys(map(str, found))
    findings.unread(problems)
    findings.complete = findings.complete and not problems
    if not found and not problems:
        findings.warn([Problem("holds no YAML file", file=str(path))])
        findings.unseen.append(str(path))
    return found


def _check_template(document: Document, file: Path, findings: Findings, seen: set[frozenset[str]]) -> None:
    findings.templates += 1
    try:
        read_template(file)  # Syntax errors, keys that stand twice, and other documents beside it.
    except ConfigError as error:
        findings.unread(error.problems)
    warnings: list[Problem] = []
    try:
        specs = load_template(document, file, os.environ, warnings)
    except ConfigError as error:
        findings.unread(error.problems)
        return
    findings.warn(warnings)
    findings.apps += [(str(file), spec.config) for spec in specs]
    findings.environments += [(str(file), spec.config.app_id, spec.environment) for spec in specs]
    for spec in specs:
        files = [file for path in spec.config.resource_paths for file in _files(_shortened(path), findings)]
        _check_resources(files, findings, seen)
        for config in spec.config.configuration_files:
            trust = spec.config.trust
            domain, proven = ("", False) if trust is None else (trust.trust_domain, trust.mode == "strict")
            _check_configuration(_shortened(config), findings, seen, domain, proven=proven)


def _is_new(paths: Sequence[Path], seen: set[frozenset[str]]) -> bool:
    """Tell whether these files together were not checked yet; applications share theirs."""
    together = frozenset(os.path.realpath(path) for path in paths)
    if not together or any(together <= earlier for earlier in seen):
        return False
    seen.add(together)
    return True


def _check_resources(paths: Sequence[Path], findings: Findings, seen: set[frozenset[str]]) -> None:
    if not _is_new(paths, seen):
        return
    looked = ResourceFiles(paths, together=False).look()
    findings.add(looked.problems)
    findings.unseen += looked.unsound
    findings.warn(looked.warnings)
    findings.complete = findings.complete and looked.complete
    findings.resources += len(looked.found)
    findings.components += looked.whole(Component)
    findings.endpoints += looked.whole(HTTPEndpoint)
    findings.configurations += looked.whole(Configuration)
    findings.policies += looked.whole(WorkflowAccessPolicy)
    findings.middleware += looked.of(Component)
    findings.pipelines += looked.of(Configuration)
    registry = Registry()
    components = looked.of(Component)
    stores = [each.name for each in components if each.block == SECRETS.kind]
    findings.add(check_types(components, BLOCKS))
    findings.add([problem for _, problem in check_together(looked.of(Component, "spec", "scopes"), BLOCKS)])
    findings.add(check_references(looked.of(Component, "auth"), looked.of(HTTPEndpoint, "auth"), stores))
    subscriptions = looked.of(Subscription, "metadata", "scopes")
    findings.add(clashes(subscriptions))
    if brokers := [each.name for each in components if each.block == "pubsub"]:  # Else they are in another folder.
        findings.warn([problem for _, problem in without_component(subscriptions, brokers)])
    if backbone := os.environ.get("MESH_BACKBONE"):
        here = single_host(os.environ)
        findings.warn(without_place(components, subscriptions, backbone, registry, single_host=here))
    misspelt, others = check_installed(components, BLOCKS, registry)
    findings.add(misspelt)
    findings.warn(others)  # Where the files are used, more may be installed.
    for component in looked.of(Component, "spec"):
        _check_component(component, registry, findings, None)
    for endpoint in looked.of(HTTPEndpoint):
        findings.add(_endpoint_problems(endpoint, None))
    by_store, endpoints = looked.of(Component, "auth"), looked.of(HTTPEndpoint, "auth")
    secrets = _known_secrets(by_store, endpoints, registry, findings, sure=False)
    users: list[Component | HTTPEndpoint] = [*by_store, *endpoints]
    findings.warn([problem for each in users for problem in without_secret(each, secrets)])
    # Where the files are used, it may be set.
    findings.warn([problem for each in users for problem in without_variable(each, os.environ)])


def _endpoint_problems(endpoint: HTTPEndpoint, here: GatewayConfig | None) -> Sequence[Problem]:
    """Find variables and templates without a value."""
    entries = [entry for entry in endpoint.metadata if not isinstance(entry.value, SecretRef)]
    try:
        resolve_entries(entries, _tokens(here), os.environ, {}, file=endpoint.file)
    except ConfigError as error:
        return error.problems
    return ()


def _check_component(
    component: Component,
    registry: Registry,
    findings: Findings,
    here: GatewayConfig | None,
    secrets: Secrets = NONE_KNOWN,
) -> None:
    """Let the adapter read the settings, as at the start of a gateway; it connects to nothing before it is entered.

    Args:
        component: What is checked.
        registry: What is installed.
        findings: Gets what is wrong.
        here: The gateway that it is checked for; None = it runs elsewhere, where other drivers and variables are.
        secrets: What is known of stores.
    """
    block = next((block for block in BLOCKS if block.kind == component.block), None)
    if block is None:
        return
    problems: list[Problem] = []
    try:
        problems, strange = unknown_settings(component, block, registry)
        findings.warn(strange)
        problems += wrong_values(component, block, registry, _tokens(here), secrets, elsewhere=here is None)
    except MissingDependencyError as error:
        problem = component.type_problem(str(error))
        if here is None:
            findings.warn([problem])
        else:
            problems.append(problem)
    # One that may be missing is left out, with a warning.
    (findings.warn if component.ignore_errors else findings.add)(problems)


def _tokens(here: GatewayConfig | None) -> TemplateTokens:
    pod = os.environ.get("POD_NAME", "pod" if here is None else None)
    app_id, namespace = ("app", "default") if here is None else (here.app_id, here.namespace)
    return TemplateTokens(app_id, namespace, pod)


def _check_configuration(
    path: Path, findings: Findings, seen: set[frozenset[str]], trust_domain: str, *, proven: bool
) -> None:
    if not _is_new([path], seen):
        return
    problems: list[Problem] = []
    warnings: list[Problem] = []
    findings.files[str(path)] = None
    found = read_configuration_file(path, os.environ, problems, warnings, trust_domain, proven=proven)
    findings.unread(problems)
    findings.warn(warnings)
    findings.resources += 1
    findings.pipelines += [] if found is None else [found]
    findings.configurations += [] if found is None or problems else [found]


def _shortened(path: Path) -> Path:
    """Give a path as the user would name it from here."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def _fine(findings: Findings) -> str:
    counted = {"resource": findings.resources, "template": findings.templates, "bridge": findings.bridges}
    parts = [f"{number} {what}{'' if number == 1 else 's'}" for what, number in counted.items() if number]
    return f"{' and '.join(parts) or '0 resources'} {'is' if sum(counted.values()) == 1 else 'are'} fine"
