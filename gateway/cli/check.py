"""``mesh check``: everything that is wrong in resources and templates, without starting anything."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.parsing import Parser
from gateway.cli.template import is_template, load_template
from gateway.cli.terminal import note, show
from mesh.blocks import BLOCKS
from mesh.errors import ConfigError, MissingDependencyError, Problem
from mesh.node.components import check_references, check_types, unknown_settings
from mesh.registry import BACKBONE_TYPES, Registry
from mesh.resources.loader import Document, LoadedResources, load_configuration_file, load_resources, read_documents
from mesh.resources.subscription import clashes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.resources.component import Component

__all__ = ["Findings", "check", "parser", "run"]

_SUFFIXES = (".yaml", ".yml")


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh check",
        description="Check resource files, folders of them, and templates; print every problem. Connects to nothing.",
        epilog="Folders are not searched further down; what a template refers to is checked with it.",
    )
    made.add_argument("paths", nargs="+", metavar="PATH", help="a file or a folder")
    made.add_argument("-o", "--output", choices=("text", "json"), default="text", help="how it is written")
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    findings = check([Path(path) for path in found.paths])
    if found.output == "json":
        show(
            json.dumps(
                {
                    "resources": findings.resources,
                    "templates": findings.templates,
                    "problems": [asdict(problem) for problem in findings.problems],
                    "warnings": [asdict(warning) for warning in findings.warnings],
                },
                indent=2,
            )
        )
        return int(bool(findings.problems))
    for problem in findings.problems:
        show(str(problem))
    for warning in findings.warnings:
        note(f"warning: {warning}")
    if findings.problems:
        number = len(findings.problems)
        note(f"{number} problem{'' if number == 1 else 's'}")
        return 1
    show(_fine(findings))
    return 0


@dataclass(slots=True)
class Findings:
    """What a check found.

    Attributes:
        resources: How many there are.
        templates: How many there are.
        problems: What is wrong, once each.
        warnings: What is not wrong, but perhaps not meant.
    """

    resources: int = 0
    templates: int = 0
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def add(self, problems: Sequence[Problem]) -> None:
        """Add problems that are not known yet."""
        self.problems += [problem for problem in dict.fromkeys(problems) if problem not in self.problems]


def check(paths: Sequence[Path]) -> Findings:
    """Check files and folders, and what their templates refer to."""
    findings = Findings()
    resources: list[Path] = []
    templates: list[tuple[Document, Path]] = []
    for path in paths:
        for file in _files(path, findings):
            template, others = _template_of(file)
            if template is None or others:
                resources.append(file)
            if template is not None:
                templates.append((template, file))
    seen: set[frozenset[Path]] = set()
    for template, file in templates:
        _check_template(template, file, findings, seen)
    _check_resources(resources, findings, seen)
    return findings


def _files(path: Path, findings: Findings) -> list[Path]:
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())
        if not found:
            findings.warnings.append(Problem("holds no YAML file", file=str(path)))
        return found
    if not path.exists():
        findings.add([Problem("there is no such file or directory", file=str(path))])
        return []
    return [path]


def _template_of(file: Path) -> tuple[Document | None, int]:
    """Find the template in a file, and count its other documents."""
    # Problems of the file are found again by whoever loads it.
    documents = read_documents(file, [])
    templates = [document for document in documents if is_template(document)]
    return (templates[0], len(documents) - 1) if templates else (None, len(documents))


def _check_template(document: Document, file: Path, findings: Findings, seen: set[frozenset[Path]]) -> None:
    findings.templates += 1
    # Syntax errors and keys that stand twice.
    problems: list[Problem] = []
    read_documents(file, problems)
    findings.add(problems)
    try:
        specs = load_template(document, file, os.environ)
    except ConfigError as error:
        findings.add(error.problems)
        return
    for spec in specs:
        files = [file for path in spec.config.resource_paths for file in _files(_shortened(path), findings)]
        _check_resources(files, findings, seen)
        for config in spec.config.configuration_files:
            _check_configuration(_shortened(config), findings, seen)


def _is_new(paths: Sequence[Path], seen: set[frozenset[Path]]) -> bool:
    """Tell whether these files together were not checked yet; applications share theirs."""
    together = frozenset(path.resolve() for path in paths)
    if not together or any(together <= earlier for earlier in seen):
        return False
    seen.add(together)
    return True


def _check_resources(paths: Sequence[Path], findings: Findings, seen: set[frozenset[Path]]) -> None:
    if not _is_new(paths, seen):
        return
    try:
        loaded = load_resources(paths)
    except ConfigError as error:
        findings.add(error.problems)
        return
    findings.warnings += [warning for warning in loaded.warnings if warning not in findings.warnings]
    findings.resources += sum(
        map(
            len,
            (
                loaded.components,
                loaded.subscriptions,
                loaded.configurations,
                loaded.resiliencies,
                loaded.http_endpoints,
            ),
        )
    )
    _check_types(loaded, findings)


def _check_types(loaded: LoadedResources, findings: Findings) -> None:
    registry = Registry()
    findings.add(check_types(loaded.components, BLOCKS))
    findings.add(check_references(loaded.components, loaded.http_endpoints))
    findings.add(clashes(loaded.subscriptions))
    by_kind = {block.kind: block for block in BLOCKS}
    for component in loaded.components:
        if component.block not in by_kind:
            continue
        try:
            misspelt, strange = unknown_settings(component, by_kind[component.block], registry)
            findings.add(misspelt)
            findings.warnings += [warning for warning in strange if warning not in findings.warnings]
            if component.type in BACKBONE_TYPES:
                continue
            if registry.find(component.type) is not None:
                _check_settings(component, registry.load(component.type), findings)
                continue
            warning = component.problem(registry.not_installed(component.type))
        except (ConfigError, MissingDependencyError) as error:
            warning = component.problem(str(error))
        if warning not in findings.warnings:
            findings.warnings.append(warning)


def _check_settings(component: Component, adapter: type, findings: Findings) -> None:
    """Let the adapter read the settings, as at the start of a gateway; it connects to nothing before it is entered."""
    read = getattr(adapter, "from_component", None)
    if read is None or any(entry.text() is None for entry in component.metadata):
        return  # Secrets and variables have their values where the gateway runs.
    try:
        read(component)
    except ConfigError as error:
        findings.add(error.problems)


def _check_configuration(path: Path, findings: Findings, seen: set[frozenset[Path]]) -> None:
    if not _is_new([path], seen):
        return
    try:
        load_configuration_file(path, os.environ)
    except ConfigError as error:
        findings.add(error.problems)
    else:
        findings.resources += 1


def _shortened(path: Path) -> Path:
    """Give a path as the user would name it from here."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def _fine(findings: Findings) -> str:
    parts = [
        f"{number} {what}{'' if number == 1 else 's'}"
        for number, what in ((findings.resources, "resource"), (findings.templates, "template"))
        if number or (what == "resource" and not findings.templates)
    ]
    alone = findings.resources + findings.templates == 1
    return f"{' and '.join(parts)} {'is' if alone else 'are'} fine"
