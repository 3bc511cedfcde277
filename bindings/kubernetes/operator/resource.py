"""What is kept of a custom resource, and how it is shown to a gateway."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import yaml

from bindings.kubernetes.json import is_deeper
from bindings.kubernetes.operator.kinds import GROUP, Kind

__all__ = ["BUILT_IN_STORE", "Resource", "resource_of", "text_of"]

BUILT_IN_STORE = "kubernetes"
"""The secret store that a reference means which names no other one, inside a cluster."""

MAX_DEPTH = 64
_SHOWN = ("annotations", "creationTimestamp", "generation", "labels", "name", "namespace", "resourceVersion", "uid")
_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_Dumper: type[Any] = type("_Dumper", (getattr(yaml, "CSafeDumper", yaml.SafeDumper),), {})


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource.

    Attributes:
        kind: As in its text.
        namespace: Likewise.
        name: Likewise.
        data: What gateways are shown, as JSON.
        generation: That the cluster counts.
        scopes: App ids; empty = all of the namespace.
        secrets: Name and key of each entry of a Secret that it refers to.
        status: Its status as the cluster has it.
        refused: Why no gateway is given it, and nothing of it is kept; empty = it is not.
    """

    kind: str
    namespace: str
    name: str
    data: bytes
    generation: int
    scopes: tuple[str, ...]
    secrets: frozenset[tuple[str, str]]
    status: Mapping[str, Any] = field(repr=False)
    refused: str = ""

    @property
    def key(self) -> str:
        """What tells it from the others of its namespace."""
        return f"{self.kind}/{self.name}"

    def without(self, refused: str) -> Resource:
        """Give what is left of it when no gateway is given it."""
        return replace(self, data=b"", secrets=frozenset(), refused=refused)

    def is_shown_as(self, other: Resource | None) -> bool:
        """Tell whether gateways cannot tell it from another one."""
        return other is not None and self.data == other.data

    def admits(self, app_id: str) -> bool:
        """Tell whether it is for an application."""
        return not self.scopes or app_id in self.scopes


def resource_of(kind: Kind, item: Mapping[str, Any]) -> Resource:
    """Read an object as the API server gives it; what is malformed in it is for gateways to tell.

    One that is nested so deeply that whoever read it would fail is refused.
    """
    about = item["metadata"]
    deep = is_deeper({name: value for name, value in item.items() if name != "status"}, MAX_DEPTH)
    if deep:
        item = {name: item[name] for name in ("metadata", "status") if name in item}
    shown = {name: about[name] for name in _SHOWN if name in about}
    shown["resourceVersion"] = ""  # It counts every change of the status, which is nothing to a gateway.
    if _APPLIED in shown.get("annotations", ()):
        shown["annotations"] = {**shown["annotations"], _APPLIED: "{}\n"}  # All of it once more, in as many lines.
    data = {name: value for name, value in item.items() if name not in ("apiVersion", "kind", "metadata", "status")}
    data |= {"apiVersion": _version(kind, data.get("spec")), "kind": kind.name, "metadata": shown}
    scopes, status = data.get("scopes"), item.get("status")  # Anything, where the definition is of others.
    store = data["auth"].get("secretStore") if isinstance(data.get("auth"), dict) else None
    found = Resource(
        kind.name,
        str(about.get("namespace") or ""),
        str(about["name"]),
        bytes(bytearray(orjson.dumps(data, option=orjson.OPT_SORT_KEYS))),  # A copy has no room that nobody needs.
        int(about.get("generation") or 0),
        tuple(each for each in scopes if isinstance(each, str)) if isinstance(scopes, list) else (),
        frozenset(_references(data.get("spec"))) if store in (None, "", BUILT_IN_STORE) else frozenset(),
        status if isinstance(status, dict) else {},
    )
    return found.without(f"it is nested more than {MAX_DEPTH} times") if deep else found


def _version(kind: Kind, spec: object) -> str:
    """Give the version that a resource was written in: all are stored as one, and the shapes of one differ by a field.

    Nothing converts them, so that a cluster without an operator keeps on reading them.
    """
    old = kind.name == "Subscription" and isinstance(spec, dict) and "route" in spec and "routes" not in spec
    return f"{GROUP}/{kind.versions[-1] if old else kind.versions[0]}"


def _references(value: object) -> Iterator[tuple[str, str]]:
    """Find what is referred to; what no Secret can be called refers to nothing, for whoever wrote it may want more."""
    if isinstance(value, list):
        for each in value:
            yield from _references(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            if name == "secretKeyRef" and isinstance(each, dict) and isinstance(each.get("name"), str):
                if _NAME.fullmatch(each["name"]):
                    yield each["name"], str(each.get("key") or each["name"])
            else:
                yield from _references(each)


def text_of(resource: Resource) -> str:
    """Write a resource as kubectl shows it, line for line, so that a problem's line is found there."""
    return str(yaml.dump(orjson.loads(resource.data), Dumper=_Dumper, width=10**6, allow_unicode=True))


def _text(dumper: Any, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
