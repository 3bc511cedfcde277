"""The resources of a gateway as their files say now, with what is wrong with them, and without secrets.

They are written anew from what was read, not copied from the file: what stands in comments, below keys of the user's
own, or in the definition of an anchor, may be a secret as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gateway.metrics.settings import rules_without_effect
from mesh.errors import ConfigError, Problem
from mesh.host import is_secret_name
from mesh.resources.component import Component, EnvRef, SecretRef
from mesh.resources.loader import ResourceFiles, load_configuration_file, read_documents
from mesh.resources.schema import OURS
from mesh.urls import HIDDEN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.resources.documents import Document

__all__ = ["hides", "masked", "resources"]

MAX_YAML = 64 * 1024
_SECRET = re.compile(
    r"(pass(word|wd|phrase)|pwd|secrets?|token|credentials?|authorization|cookie|signature|jwt|jwks|dsn|certificate"
    r"|connectionstring|accountid|key|keyid)$"
)
_PLAIN = frozenset({"hostpublickey", "orderingkey", "partitionkey", "publickey", "routingkey"})
_LOGIN = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://)[^/?#\s@]*(?:@[^/?#\s@]*)*@")
_ASSIGNED = re.compile(
    r"((?:^|[?&;\s])[\w.-]*(?:password|pwd|passwd|secret|token|accountkey|accesskey|sharedaccesskey|api_?key|sig))\s*=\s*"
    r"(?:'[^']*'|\"[^\"]*\"|[^;&\s'\"]+)",
    re.IGNORECASE,
)
_DSN = re.compile(r"^[^\s:/@]+:[^\s]*@(?=[\w(\[])")  # user:password@tcp(host)
_BLOB = re.compile(r"PRIVATE KEY-----|\"private_key\"")
_REFERENCES = frozenset({"secretkeyref", "envref"})


def hides(name: str) -> bool:
    """Tell whether a setting of this name, or a header field, is shown without its value."""
    folded = re.sub(r"[-_.\s]", "", name.casefold())
    return name.startswith("header:") or (
        folded not in _PLAIN and (is_secret_name(name) or _SECRET.search(folded) is not None)
    )


def masked(value: object) -> Any:
    """Give what stands in a resource without what is a secret, or may be; references stay as they are."""
    if isinstance(value, Mapping):
        name = value.get("name")
        entry = isinstance(name, str) and "value" in value and hides(name)
        return {
            key: inner if str(key).casefold() in _REFERENCES else _member(str(key), inner, hidden=entry)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [masked(each) for each in value]
    return _scrubbed(value) if isinstance(value, str) else value


def _member(key: str, value: object, *, hidden: bool) -> object:
    if key == "annotations" and isinstance(value, Mapping):  # kubectl keeps a whole resource in one.
        return {name: masked(each) if str(name).startswith(OURS) else HIDDEN for name, each in value.items()}
    if value in (None, "") or isinstance(value, bool):
        return value
    if (hidden and key == "value") or (not isinstance(value, Mapping | list) and key != "name" and hides(key)):
        return HIDDEN
    return masked(value)


def _scrubbed(text: str) -> str:
    if _BLOB.search(text):
        return HIDDEN
    text = _LOGIN.sub(rf"\1{HIDDEN}@", text)
    text = _ASSIGNED.sub(rf"\1={HIDDEN}", text)
    return text if "://" in text else _DSN.sub(f"{HIDDEN}@", text)


@dataclass(slots=True)
class _Row:
    """A resource, or what else a file holds."""

    kind: str
    name: str
    file: str
    line: int
    data: object = None
    scopes: Sequence[str] = ()
    problems: list[dict[str, object]] = field(default_factory=list)

    def told(self) -> dict[str, object]:
        text = "" if self.data is None else _written(self.data)
        told = {"kind": self.kind, "name": self.name, "file": self.file, "line": self.line, "yaml": text}
        return {**told, "scopes": list(self.scopes), "problems": self.problems}


def _written(data: object) -> str:
    if isinstance(data, Mapping):
        data = {name: each for name, each in data.items() if not str(name).startswith("x-")}
    text = yaml.safe_dump(masked(data), sort_keys=False, allow_unicode=True, width=100)
    return text if len(text) <= MAX_YAML else f"{text[:MAX_YAML]}\n# …"


def _of(document: Document, problems: Iterable[Problem] = ()) -> _Row:
    kind, name, scopes = document.get("kind"), document.get("metadata", "name"), document.get("scopes")
    row = _Row(
        kind if isinstance(kind, str) else "",
        name if isinstance(name, str) else "",
        document.file,
        document.line,
        document.data,
        [str(each) for each in scopes] if isinstance(scopes, list) else (),
    )
    row.problems += [_problem(each, "error") for each in problems]
    return row


def _problem(problem: Problem, severity: str) -> dict[str, object]:
    told = {"message": problem.message, "path": problem.path, "file": problem.file, "line": problem.line}
    return {**told, "column": problem.column, "severity": severity}


def resources(
    paths: Sequence[Path],
    configurations: Sequence[Path],
    built_in: Sequence[Component],
    *,
    app_id: str | None,
    namespace: str | None,
    trust_domain: str,
    proven: bool,
) -> list[dict[str, object]]:
    """Read the files of a gateway, and tell what is in them; it may take a while.

    Args:
        paths: Files and folders of resources.
        configurations: Configuration files.
        built_in: Components that stand in no file.
        app_id: Whose resources; None = all.
        namespace: Of the mesh, if the user has named one.
        trust_domain: Of the gateway's identity; empty = of its Configuration.
        proven: Whether the gateway asks every caller to prove who it is.
    """
    looked = ResourceFiles(paths, namespace=namespace, app_id=app_id).look()
    known = {problem for each in looked.found for problem in each.problems}
    rows = [_of(each.document, each.problems) for each in looked.found]
    _place(rows, [each for each in looked.problems if each not in known], "error")
    _place(rows, looked.warnings, "warning")
    for path in configurations:
        rows += _configuration(path, trust_domain, proven=proven)
    return [each.told() for each in [*rows, *map(_built_in, built_in)]]


def _place(rows: list[_Row], problems: Iterable[Problem], severity: str) -> None:
    """Tell what is wrong with files and between resources where it stands; of a file that gave none, in a row of it."""
    for problem in problems:
        file, line = problem.file or "", problem.line or 0
        near = [each for each in rows if each.file == file and each.line <= line]
        if not near:
            near = [_Row("", "", file, line)]
            rows += near
        max(near, key=lambda row: row.line).problems.append(_problem(problem, severity))


def _configuration(path: Path, trust_domain: str, *, proven: bool) -> list[_Row]:
    problems: list[Problem] = []
    warnings: list[Problem] = []
    rows = [_of(each) for each in read_documents(path, []) if each.get("kind") == "Configuration"]
    try:
        read = load_configuration_file(path, os.environ, warnings, trust_domain, proven=proven)
        warnings += rules_without_effect(read)
    except ConfigError as error:
        problems += error.problems
    _place(rows, problems, "error")
    _place(rows, warnings, "warning")
    return rows


def _built_in(component: Component) -> _Row:
    """Write a component that stands in no file as if it did."""
    metadata: list[dict[str, object]] = []
    for each in component.metadata:
        match each.value:
            case SecretRef(name=name, key=key):
                metadata.append({"name": each.name, "secretKeyRef": {"name": name, "key": key}})
            case EnvRef(variable=variable):
                metadata.append({"name": each.name, "envRef": variable})
            case _:
                metadata.append({"name": each.name, "value": each.text()})
    spec: dict[str, object] = {"type": component.type, "version": component.version}
    spec |= {"metadata": metadata} if metadata else {}
    data = {"apiVersion": "dapr.io/v1alpha1", "kind": "Component", "metadata": {"name": component.name}, "spec": spec}
    return _Row("Component", component.name, "", 0, data)
