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

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.errors import ConfigError, Problem
from mesh.resources.component import Component, HTTPEndpoint
from mesh.resources.configuration import Configuration
from mesh.resources.documents import Document, FileModel, parse_documents, read_documents, validate
from mesh.resources.found import Found, Looked, Resource, of_kind
from mesh.resources.resiliency import Resiliency
from mesh.resources.schema import OURS, PLACEMENT, component, configuration, http_endpoint
from mesh.resources.schema_resiliency import resiliency, unknown_policies
from mesh.resources.schema_subscription import check_metadata, subscription
from mesh.resources.schema_workflow_access import workflow_access
from mesh.resources.subscription import Subscription
from mesh.resources.workflow_access import WorkflowAccessPolicy
from mesh.scopes import in_scope
from mesh.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "Document",
    "FileModel",
    "LoadedResources",
    "ResourceFiles",
    "expand_variables",
    "files_at",
    "is_foreign",
    "is_yaml",
    "is_bridge_file",
    "is_run_file",
    "load_configuration_file",
    "load_resources",
    "ordered",
    "parse_documents",
    "read_configuration_file",
    "read_documents",
    "validate",
]

_CONVERTERS: Mapping[str, Callable[[Document, list[Problem], list[Problem]], Resource | None]] = {
    "Component": component,
    "Configuration": configuration,
    "HTTPEndpoint": http_endpoint,
    "Resiliency": resiliency,
    "Subscription": subscription,
    "WorkflowAccessPolicy": workflow_access,
}
_LISTS = ("List", *(f"{kind}List" for kind in _CONVERTERS))
_IGNORED_KINDS = frozenset({"MCPServer"})
_GROUP = "dapr.io/"
DEFAULT_NAMESPACE = "default"  # Of a gateway whose user has named none.
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")


@dataclass(frozen=True, slots=True)
class LoadedResources:
    """Everything that was found, in the order of paths, file names and documents.

    Attributes:
        warnings: What was left out, and why.
        withheld: Names of components that are this gateway's by their namespace and not by their scopes.
    """

    components: tuple[Component, ...] = ()
    subscriptions: tuple[Subscription, ...] = ()
    configurations: tuple[Configuration, ...] = ()
    resiliencies: tuple[Resiliency, ...] = ()
    http_endpoints: tuple[HTTPEndpoint, ...] = ()
    workflow_access: tuple[WorkflowAccessPolicy, ...] = ()
    warnings: tuple[Problem, ...] = ()
    withheld: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _File:
    """What a file held.

    Attributes:
        readable: Whether all its documents could be read, whatever they say.
    """

    found: tuple[Found, ...]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    withheld: frozenset[str]
    readable: bool


def load_resources(
    paths: Sequence[Path], *, namespace: str | None = None, app_id: str | None = None, together: bool = True
) -> LoadedResources:
    """Read every ``*.yaml`` and ``*.yml`` file.

    Resources that are for others are not looked at, as far as it is known whose these are. Of two of one kind and name
    each gateway takes its own.

    Args:
        paths: Files, and directories that are not searched further down.
        namespace: Resources of another namespace are left out; None = the user has named none.
        app_id: Resources whose scopes lack this application are left out; None = all are read.
        together: Whether one node takes all of them. Otherwise two of one name are wrong only when a node takes both.

    Raises:
        ConfigError: Holds every problem of every file.
    """
    return ResourceFiles(paths, namespace=namespace, app_id=app_id, together=together).load()


class ResourceFiles:
    """The files of `load_resources`, which may be read again and again."""

    def __init__(
        self, paths: Sequence[Path], *, namespace: str | None = None, app_id: str | None = None, together: bool = True
    ) -> None:
        """Read nothing yet; the arguments are those of `load_resources`."""
        self._paths = paths
        self._namespace = namespace
        self._app_id = app_id
        self._together = together
        self._good: dict[Path, _File] = {}
        self.bad: tuple[Problem, ...] = ()

    def load(self) -> LoadedResources:
        """Read all of them; raises ``ConfigError`` with every problem of every file."""
        loaded = self.again()
        if self.bad:
            raise ConfigError(self.bad)
        return loaded

    def again(self) -> LoadedResources:
        """Read all of them; a file that went wrong counts as it was last, and ``bad`` says what is wrong with it.

        Raises:
            ConfigError: They do not go together.
        """
        looked, now = self._look()
        read = {
            file: new if not new.problems else self._good[file]
            for file, new in now.items()
            if not new.problems or file in self._good
        }
        found = self._own(read.values())
        # A file that counts as it was last may clash where the one that is there does not.
        clashes = self._between(found, complete=len(read) == len(now))
        self.bad = tuple(ordered([*looked.problems, *clashes], map(str, now)))
        if clashes:
            raise ConfigError(self.bad)
        self._good = read
        resources = [each.resource for each in found]
        return LoadedResources(
            components=of_kind(Component, resources),
            subscriptions=of_kind(Subscription, resources),
            configurations=of_kind(Configuration, resources),
            resiliencies=of_kind(Resiliency, resources),
            http_endpoints=of_kind(HTTPEndpoint, resources),
            workflow_access=of_kind(WorkflowAccessPolicy, resources),
            warnings=tuple(each for file in read.values() for each in file.warnings),
            withheld=frozenset(name for file in read.values() for name in file.withheld)
            - {each.name for each in resources if isinstance(each, Component)},
        )

    def look(self) -> Looked:
        """Read all of them for whoever tells what is wrong: a file or a document that is wrong hides no other one."""
        return self._look()[0]

    def _look(self) -> tuple[Looked, dict[Path, _File]]:
        problems: list[Problem] = []
        read = {file: self._read(file) for file in self._all(problems)}
        found = self._own(read.values())
        complete = not problems and all(each.readable for each in read.values())
        problems += [each for file in read.values() for each in file.problems]
        problems += self._between(found, complete=complete)
        warnings = tuple(each for file in read.values() for each in file.warnings)
        complete = complete and all(each.resource is not None for each in found)
        unsound = tuple(str(path) for path, file in read.items() if file.problems)
        return Looked(tuple(found), tuple(ordered(problems, map(str, read))), warnings, complete, unsound), read

    def _own(self, files: Iterable[_File]) -> list[Found]:
        found = [each for file in files for each in file.found]
        return _of_default_namespace(found) if self._together and not self._namespace else found

    def _between(self, found: Sequence[Found], *, complete: bool) -> list[Problem]:
        """Find names that stand twice, and those of nothing; where files are missing, they may have these."""
        own = [
            (each.document, each.resource) for each in found if each.resource and each.is_right("metadata", "scopes")
        ]
        problems = _clashes(own, self._together)
        if complete and all(map(_tells_policies, found)):
            policies = [(each.document, each.resource) for each in found if isinstance(each.resource, Resiliency)]
            problems += unknown_policies(policies, self._app_id)
        return problems

    def _all(self, problems: list[Problem]) -> list[Path]:
        """List the files; those of a path that is not there for now are as they were."""
        files: dict[str, Path] = {}
        for path in self._paths:
            missing: list[Problem] = []
            found = files_at(path, missing)
            if missing:
                problems += missing
                found = [file for file in self._good if path in (file, file.parent)]
            for file in found:
                files.setdefault(os.path.realpath(file), file)  # `resolve` raises for a link to itself.
        return list(files.values())

    def _read(self, file: Path) -> _File:
        problems: list[Problem] = []
        warnings: list[Problem] = []
        found: list[Found] = []
        withheld: set[str] = set()
        documents = read_documents(file, problems)
        readable = not problems
        for document in _unpacked(documents, warnings):
            if _is_for_others(document, self._namespace, self._app_id):
                name = document.get("metadata", "name")
                of_namespace = not _is_for_others(document, self._namespace, None)
                if document.get("kind") == "Component" and not is_foreign(document) and of_namespace:
                    withheld |= {name} if isinstance(name, str) else set()
                continue
            wrong: list[Problem] = []
            told: list[Problem] = []
            resource = _resource(document, wrong, told)
            wrong = document.causes(wrong)
            problems += wrong
            warnings += document.causes(told)
            if resource is not None or wrong:
                found.append(Found(document, resource, tuple(wrong)))
        return _File(tuple(found), tuple(problems), tuple(warnings), frozenset(withheld), readable)


def load_configuration_file(
    path: Path, env: Mapping[str, str], warnings: list[Problem], trust_domain: str = "", *, proven: bool = False
) -> Configuration:
    """Read one Configuration; ``$VAR`` and ``${VAR}`` anywhere in the file are expanded first.

    Several files become one with `Configuration.overlaid`.

    Args:
        path: The file. Other kinds in it are an error.
        env: The variables; one that is not set is empty.
        warnings: Gets what has no effect.
        trust_domain: Of who reads it; empty = what it says itself.
        proven: Whether every caller of who reads it must prove who it is (``--trust-mode strict``).

    Raises:
        ConfigError: Holds every problem of the file.
    """
    problems: list[Problem] = []
    result = read_configuration_file(path, env, problems, warnings, trust_domain, proven=proven)
    if problems or result is None:
        raise ConfigError(ordered(problems))
    return result


def read_configuration_file(
    path: Path,
    env: Mapping[str, str],
    problems: list[Problem],
    warnings: list[Problem],
    trust_domain: str = "",
    *,
    proven: bool = False,
) -> Configuration | None:
    """Read one Configuration as `load_configuration_file` does; gives it without what is wrong with it."""
    before = len(problems)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        read_documents(path, problems)
        return None
    result: Configuration | None = None
    for document in parse_documents(expand_variables(text, env), str(path), problems):
        if document.get("kind") != "Configuration":
            problems.append(document.problem("expected a Configuration here", ("kind",)))
        elif result is not None:
            problems.append(document.problem("a second Configuration in one file"))
        else:
            found: tuple[list[Problem], list[Problem]] = ([], [])
            result = configuration(document, *found, trust_domain, proven=proven)
            problems += document.causes(found[0])
            warnings += document.causes(found[1])
    if result is None and len(problems) == before:
        problems.append(Problem("holds no Configuration", file=str(path)))
    return result


def expand_variables(text: str, env: Mapping[str, str]) -> str:
    """Replace ``$VAR`` and ``${VAR}``; a ``$`` before anything else stays.

    Source: Go ``os.ExpandEnv``, without its one-character names (``$1``, ``$$``).
    """
    return _VARIABLE.sub(lambda match: env.get(match[1] or match[2], ""), text)


def is_yaml(path: Path) -> bool:
    """Tell whether a file of a folder is looked at; the lock that an editor keeps beside one that it edits is not."""
    return path.suffix.lower() in (".yaml", ".yml") and not path.name.startswith(".#")


def files_at(path: Path, problems: list[Problem]) -> list[Path]:
    """List the YAML files of a folder, or give a file; a link that leads nowhere is one whose reading fails."""
    try:
        if path.is_dir():
            named = sorted(file for file in path.iterdir() if is_yaml(file))
            return [file for file in named if file.is_file() or (file.is_symlink() and not file.exists())]
        if path.exists():
            return [path]
    except OSError as error:
        problems.append(Problem(f"cannot be read: {error.strerror}", file=str(path)))
    else:
        problems.append(Problem("there is no such file or directory", file=str(path)))
    return []


def _resource(document: Document, problems: list[Problem], warnings: list[Problem]) -> Resource | None:
    kind, version = document.get("kind"), document.get("apiVersion")
    ours = isinstance(version, str) and version.startswith(_GROUP)
    if not isinstance(kind, str):
        if is_run_file(document) or is_bridge_file(document):
            return None
        if ours or kind is not None:
            problems.append(document.problem("expected the kind of a resource", ("kind",)))
        else:
            warnings.append(document.problem("is no resource (it has no apiVersion and kind) and is ignored"))
        return None
    if is_foreign(document):
        warnings.append(document.problem(f"the kind '{kind}' of {version} is ignored", ("kind",)))
        return None
    converter = _CONVERTERS.get(kind)
    if converter is not None:
        _check_annotations(document, (PLACEMENT,) if kind == "Component" else (), problems, warnings)
        if kind == "Subscription":
            check_metadata(document, problems, warnings)
        return converter(document, problems, warnings)
    guess = None if kind in _IGNORED_KINDS else did_you_mean(kind, _CONVERTERS)
    if guess and ours:
        problems.append(document.problem(f"unknown kind '{kind}'; did you mean '{guess}'?", ("kind",)))
        return None
    hint = f"; did you mean '{guess}'?" if guess else ""
    warnings.append(document.problem(f"the kind '{kind}' is ignored{hint}", ("kind",)))
    return None


def is_run_file(document: Document) -> bool:
    """Tell whether a document describes applications to run together; it may lie among their resources."""
    keys = _keys_of_no_resource(document)
    return "apps" in keys and not {"from", "to"} <= keys


def is_bridge_file(document: Document) -> bool:
    """Tell whether a document describes a bridge (``mesh bridge``); it may lie there as well."""
    return {"from", "to"} <= _keys_of_no_resource(document)


def _keys_of_no_resource(document: Document) -> set[str]:
    named = document.get("kind") is not None or document.get("apiVersion") is not None
    return set() if named or not isinstance(document.data, dict) else {str(key).casefold() for key in document.data}


def is_foreign(document: Document) -> bool:
    """Tell whether a document says that it is of another program; some have kinds of our names."""
    version = document.get("apiVersion")
    group = version.partition("/")[0].casefold() if isinstance(version, str) and "/" in version else ""
    return "." in group and "dapr" not in group and did_you_mean(group, (_GROUP.rstrip("/"),)) is None


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


def _unpacked(documents: Sequence[Document], warnings: list[Problem]) -> Iterator[Document]:
    """Give documents with the contents of lists, which kubectl writes, in place of these; lists may hold lists."""
    for document in documents:
        if document.get("kind") not in _LISTS or is_foreign(document):
            yield document
        elif isinstance(document.get("items"), list):
            yield from _unpacked(document.items(), warnings)
        else:
            warnings.append(document.problem("a list without items holds no resource", ("items",)))


def _is_for_others(document: Document, namespace: str | None, app_id: str | None) -> bool:
    """Tell whether a document names another namespace, or scopes without this application; no mistake hides it."""
    own, scopes = document.get("metadata", "namespace"), document.get("scopes")
    if namespace and isinstance(own, str) and own not in ("", namespace):
        return True
    if app_id is None or not isinstance(scopes, list) or not all(isinstance(each, str) for each in scopes):
        return False
    return not in_scope(tuple(scopes), app_id)


def _of_default_namespace(found: list[Found]) -> list[Found]:
    """Of several of one name leave out those of other namespaces: without a word from the user it is ``default``."""
    default = (None, "", DEFAULT_NAMESPACE)
    own = {_identity(each.resource) for each in found if each.resource and each.resource.namespace in default}
    return [
        each
        for each in found
        if each.resource is None or each.resource.namespace in default or _identity(each.resource) not in own
    ]


def _tells_policies(found: Found) -> bool:
    """Tell whether it is known which policies this has: below their names and in the targets, anything may be wrong."""
    if found.resource is None:
        return found.document.get("kind") in _CONVERTERS and found.document.get("kind") != "Resiliency"
    inside = all(each.path.count(".") > 2 or each.path.startswith("spec.targets.") for each in found.problems)
    return inside or not isinstance(found.resource, Resiliency)


def _identity(resource: Resource) -> tuple[type, str]:
    return type(resource), resource.name


def _clashes(found: list[tuple[Document, Resource]], together: bool) -> list[Problem]:
    """Find resources of one kind and name that one node would take."""
    earlier: dict[tuple[type, str], list[tuple[Document, Resource]]] = {}
    problems: list[Problem] = []
    for document, resource in found:
        others = earlier.setdefault(_identity(resource), [])
        before, other = next((each for each in others if together or _meet(each[1], resource)), (None, resource))
        others.append((document, resource))
        if before is not None:
            location = ("metadata", "name")
            line, _ = before.position(location)
            kind = type(resource).__name__
            message = f"a {kind} named '{resource.name}' stands already in {before.file}:{line}"
            if (other.namespace or resource.namespace) != (resource.namespace or other.namespace):
                message += "; the variable NAMESPACE says which of their namespaces is this gateway's"
            problems.append(document.problem(message, location))
    return problems


def _meet(one: Resource, other: Resource) -> bool:
    """Tell whether some gateway takes both: their namespaces and their scopes have something in common."""
    if one.namespace and other.namespace and one.namespace != other.namespace:
        return False
    ours, theirs = (() if isinstance(each, Configuration) else each.scopes for each in (one, other))
    return not ours or not theirs or not set(ours).isdisjoint(theirs)


def ordered(problems: Iterable[Problem], files: Iterable[str] = ()) -> list[Problem]:
    """Give problems in the order of files and lines, each once: first what is about none of these files."""
    problems = list(dict.fromkeys(problems))
    known = list(files)
    others = [problem.file for problem in problems if problem.file not in known]
    order = {file: index for index, file in enumerate(dict.fromkeys([*others, *known]))}
    return sorted(problems, key=lambda problem: (order[problem.file], problem.line or 0, problem.column or 0))
