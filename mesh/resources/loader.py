"""Files to resources: every problem at once, each with file, line and column.

The pieces are public, because other YAML files of the project (the multi-app template) are checked
in the same way::

    problems: list[Problem] = []
    for document in read_documents(path, problems):
        model = validate(document, Template, problems)
    if problems:
        raise ConfigError(problems)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mesh.errors import ConfigError, Problem
from mesh.resources.component import Component, HTTPEndpoint
from mesh.resources.configuration import Configuration
from mesh.resources.documents import Document, FileModel, parse_documents, read_documents, validate
from mesh.resources.resiliency import Resiliency
from mesh.resources.schema import OURS, PLACEMENT, component, configuration, http_endpoint
from mesh.resources.schema_resiliency import resiliency
from mesh.resources.schema_subscription import check_metadata, subscription
from mesh.resources.subscription import Subscription
from mesh.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "Document",
    "FileModel",
    "LoadedResources",
    "expand_variables",
    "load_configuration_file",
    "load_resources",
    "parse_documents",
    "read_documents",
    "validate",
]

Resource = Component | Subscription | Configuration | Resiliency | HTTPEndpoint
_R = TypeVar("_R", Component, Subscription, Configuration, Resiliency, HTTPEndpoint)

_CONVERTERS: Mapping[str, Callable[[Document, list[Problem]], Resource | None]] = {
    "Component": component,
    "Configuration": configuration,
    "HTTPEndpoint": http_endpoint,
    "Resiliency": resiliency,
    "Subscription": subscription,
}
_IGNORED_KINDS = frozenset({"MCPServer", "WorkflowAccessPolicy"})
_GROUP = "dapr.io/"
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")


@dataclass(frozen=True, slots=True)
class LoadedResources:
    """Everything that was found, in the order of paths, file names and documents.

    Attributes:
        warnings: What was left out, and why.
    """

    components: tuple[Component, ...] = ()
    subscriptions: tuple[Subscription, ...] = ()
    configurations: tuple[Configuration, ...] = ()
    resiliencies: tuple[Resiliency, ...] = ()
    http_endpoints: tuple[HTTPEndpoint, ...] = ()
    warnings: tuple[Problem, ...] = ()


def load_resources(paths: Sequence[Path], *, namespace: str | None = None) -> LoadedResources:
    """Read every ``*.yaml`` and ``*.yml`` file.

    Args:
        paths: Files, and directories that are not searched further down.
        namespace: Resources of another namespace are left out; None = all are read.

    Raises:
        ConfigError: Holds every problem of every file.
    """
    problems: list[Problem] = []
    warnings: list[Problem] = []
    found: list[tuple[Document, Resource]] = []
    for file in _files(paths, problems):
        for document in read_documents(file, problems):
            resource = _resource(document, problems, warnings)
            if resource is not None and namespace in (None, "", resource.namespace or namespace):
                found.append((document, resource))
    problems.extend(_clashes(found))
    if problems:
        raise ConfigError(_ordered(problems))
    resources = [resource for _, resource in found]
    return LoadedResources(
        components=_of(Component, resources),
        subscriptions=_of(Subscription, resources),
        configurations=_of(Configuration, resources),
        resiliencies=_of(Resiliency, resources),
        http_endpoints=_of(HTTPEndpoint, resources),
        warnings=tuple(warnings),
    )


def load_configuration_file(path: Path, env: Mapping[str, str]) -> Configuration:
    """Read one Configuration; ``$VAR`` and ``${VAR}`` anywhere in the file are expanded first.

    Several files become one with `Configuration.overlaid`.

    Args:
        path: The file. Other kinds in it are an error.
        env: The variables; one that is not set is empty.

    Raises:
        ConfigError: Holds every problem of the file.
    """
    problems: list[Problem] = []
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        read_documents(path, problems)
        raise ConfigError(problems) from None
    result: Configuration | None = None
    for document in parse_documents(expand_variables(text, env), str(path), problems):
        if document.get("kind") != "Configuration":
            problems.append(document.problem("expected a Configuration here", ("kind",)))
        elif result is not None:
            problems.append(document.problem("a second Configuration in one file"))
        else:
            result = configuration(document, problems)
    if result is None and not problems:
        problems.append(Problem("holds no Configuration", file=str(path)))
    if problems or result is None:
        raise ConfigError(_ordered(problems))
    return result


def expand_variables(text: str, env: Mapping[str, str]) -> str:
    """Replace ``$VAR`` and ``${VAR}``; a ``$`` before anything else stays.

    Source: Go ``os.ExpandEnv``, without its one-character names (``$1``, ``$$``).
    """
    return _VARIABLE.sub(lambda match: env.get(match[1] or match[2], ""), text)


def _files(paths: Sequence[Path], problems: list[Problem]) -> list[Path]:
    files: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix in (".yaml", ".yml") and file.is_file())
        elif path.exists():
            found = [path]
        else:
            problems.append(Problem("there is no such file or directory", file=str(path)))
            continue
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def _resource(document: Document, problems: list[Problem], warnings: list[Problem]) -> Resource | None:
    kind, version = document.get("kind"), document.get("apiVersion")
    ours = isinstance(version, str) and version.startswith(_GROUP)
    if not isinstance(kind, str):
        if ours or kind is not None:
            problems.append(document.problem("expected the kind of a resource", ("kind",)))
        else:
            warnings.append(document.problem("is no resource (it has no apiVersion and kind) and is ignored"))
        return None
    converter = _CONVERTERS.get(kind)
    if converter is not None:
        _check_annotations(document, (PLACEMENT,) if kind == "Component" else (), problems, warnings)
        if kind == "Subscription":
            check_metadata(document, problems, warnings)
        return converter(document, problems)
    guess = None if kind in _IGNORED_KINDS else did_you_mean(kind, _CONVERTERS)
    hint = f"; did you mean '{guess}'?" if guess else ""
    warnings.append(document.problem(f"the kind '{kind}' is ignored{hint}", ("kind",)))
    return None


def _check_annotations(
    document: Document, known: Sequence[str], problems: list[Problem], warnings: list[Problem]
) -> None:
    """Find annotations that look like ours and are none."""
    given = document.get("metadata", "annotations")
    for name in given if isinstance(given, dict) else ():
        if name.casefold().startswith(OURS) and name not in known:
            guess = did_you_mean(name[len(OURS) :], [each.removeprefix(OURS) for each in known])
            hint = f"; did you mean '{OURS}{guess}'?" if guess else ", which nothing reads"
            found = document.problem(f"unknown annotation{hint}", ("metadata", "annotations", name), key=True)
            (problems if guess else warnings).append(found)


def _clashes(found: list[tuple[Document, Resource]]) -> list[Problem]:
    first: dict[tuple[type, str], Document] = {}
    problems: list[Problem] = []
    for document, resource in found:
        before = first.setdefault((type(resource), resource.name), document)
        if before is not document:
            location = ("metadata", "name")
            line, _ = before.position(location)
            kind = type(resource).__name__
            message = f"a {kind} named '{resource.name}' stands already in {before.file}:{line}"
            problems.append(document.problem(message, location))
    return problems


def _ordered(problems: list[Problem]) -> list[Problem]:
    order = {file: index for index, file in enumerate(dict.fromkeys(problem.file for problem in problems))}
    return sorted(problems, key=lambda problem: (order[problem.file], problem.line or 0, problem.column or 0))


def _of(kind: type[_R], resources: list[Resource]) -> tuple[_R, ...]:
    return tuple(resource for resource in resources if isinstance(resource, kind))
