"""CustomResourceDefinitions, with schemas made from the models that gateways read resources by.

A schema of the API server is narrower than one for editors: it refers to nothing, and a field has one type, or any.
Defaults are left out, since the API server would write them into what people apply.

Source: the Kubernetes documentation, "Extend the Kubernetes API with CustomResourceDefinitions".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bindings.kubernetes.operator.kinds import GROUP, KINDS, Kind
from bindings.kubernetes.operator.status import LOADED
from mesh.resources.documents import FileModel
from mesh.resources.schema import ComponentFile, ConfigurationFile, HTTPEndpointFile
from mesh.resources.schema_resiliency import ResiliencyFile
from mesh.resources.schema_subscription import SubscriptionV1File, SubscriptionV2File
from mesh.resources.schema_workflow_access import WorkflowAccessPolicyFile

__all__ = ["definitions"]

Schema = dict[str, Any]

_MODELS: Mapping[str, Sequence[type[FileModel]]] = {
    "Component": (ComponentFile,),
    "Configuration": (ConfigurationFile,),
    "HTTPEndpoint": (HTTPEndpointFile,),
    "Resiliency": (ResiliencyFile,),
    "Subscription": (SubscriptionV2File, SubscriptionV1File),
    "WorkflowAccessPolicy": (WorkflowAccessPolicyFile,),
}
_COLUMNS: Mapping[str, Sequence[tuple[str, str]]] = {
    "Component": (("Type", ".spec.type"), ("Version", ".spec.version")),
    "HTTPEndpoint": (("URL", ".spec.baseUrl"),),
    "Subscription": (("PubSub", ".spec.pubsubname"), ("Topic", ".spec.topic")),
}
_ANY: Schema = {"x-kubernetes-preserve-unknown-fields": True}
_TEXT = {"string", "boolean", "number"}
_RULES: Mapping[str, Sequence[tuple[str, str]]] = {
    "Component": (
        (
            "self.type.matches('^\\\\s*[A-Za-z][A-Za-z0-9]*([.][A-Za-z0-9_-]+)+\\\\s*$')",
            "a type looks like state.redis: the building block, a dot, and what it is on",
        ),
    ),
    "HTTPEndpoint": (
        ("self.baseUrl.matches('^\\\\s*[hH][tT][tT][pP][sS]?://[^/]')", "baseUrl is http:// or https:// and a host"),
    ),
    "Subscription": (
        ("has(self.route) != has(self.routes)", "needs route (v1alpha1) or routes (v2alpha1), one of them"),
    ),
}
"""What is checked of ``spec`` beyond types, with what is said where it does not hold."""


def definitions() -> list[dict[str, Any]]:
    """Give the definition of every kind."""
    return [_definition(kind) for kind in KINDS.values()]


def _definition(kind: Kind) -> dict[str, Any]:
    spec, beside = _fields(kind)
    schema: Schema = {
        "type": "object",
        "description": f"A {kind.name} of the mesh.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            **beside,
            "spec": spec,
            "status": _STATUS,
        },
    }
    versions = [
        {
            "name": version,
            "served": True,
            "storage": version == kind.versions[0],
            "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}},
            "additionalPrinterColumns": _columns(kind),
        }
        for version in kind.versions
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind.plural}.{GROUP}",
            "labels": {"app.kubernetes.io/part-of": "brokermesh"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "categories": ["dapr", "mesh"],
            },
            # All versions have one schema, with the fields of each: so nothing need convert them.
            "conversion": {"strategy": "None"},
            "versions": versions,
        },
    }


def _columns(kind: Kind) -> list[dict[str, Any]]:
    shown = [{"name": name, "type": "string", "jsonPath": path} for name, path in _COLUMNS.get(kind.name, ())]
    condition = f'.status.conditions[?(@.type=="{LOADED}")]'
    return [
        *shown,
        {"name": "Loaded", "type": "string", "jsonPath": f"{condition}.status"},
        {"name": "Nodes", "type": "integer", "jsonPath": ".status.loadedBy.count"},
        {"name": "Problem", "type": "string", "jsonPath": f"{condition}.message"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]


def _fields(kind: Kind) -> tuple[Schema, Schema]:
    """Give the schema of ``spec``, and those of the fields beside it, of all versions together."""
    found: Schema = {}
    required: set[str] | None = None
    beside: Schema = {}
    for model in _MODELS[kind.name]:
        whole = model.model_json_schema()
        schema = _structural(whole, whole)
        for path, effect in model.effects.items():
            if not effect.unsafe:
                _add(schema, path.split("."))
        beside |= {name: each for name, each in schema["properties"].items() if name in ("auth", "scopes")}
        spec = schema["properties"]["spec"]
        found = {**spec["properties"], **found}
        needed = set(spec.get("required", ()))
        required = needed if required is None else required & needed
    spec = {"type": "object", "properties": found}
    if required:
        spec["required"] = sorted(required)
    if kind.name in _RULES:
        spec["x-kubernetes-validations"] = [{"rule": rule, "message": told} for rule, told in _RULES[kind.name]]
    return spec, beside


def _structural(schema: Schema, root: Schema) -> Schema:
    """Make what pydantic says of a field what the API server takes."""
    if "$ref" in schema:
        return _structural(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        ways = [each for each in schema["anyOf"] if each.get("type") != "null"]
        if len(ways) != 1:
            return dict(_ANY)
        made = _structural(ways[0], root)
        if "type" in made:
            made["nullable"] = True
        return made
    kinds = schema.get("type")
    kinds = {kinds} if isinstance(kinds, str) else set(kinds or ())
    if kinds == {"string", "integer"}:
        return {"x-kubernetes-int-or-string": True, **_described(schema)}
    if kinds and kinds <= _TEXT and "string" in kinds:
        kinds = {"string"}  # Where people write files, what looks like a number is text as well; here it is quoted.
    if len(kinds) != 1 and "const" not in schema and "enum" not in schema:
        return {**_ANY, **_described(schema)}
    made = {"type": kinds.pop() if kinds else "string", **_described(schema)}
    if "const" in schema or "enum" in schema:
        made["enum"] = list(schema.get("enum", ())) or [schema["const"]]
    if made["type"] == "array":
        made["items"] = _structural(schema["items"], root) if schema.get("items") else dict(_ANY)
    if made["type"] == "object":
        if "properties" in schema:
            made["properties"] = {name: _structural(each, root) for name, each in schema["properties"].items()}
            if schema.get("required"):
                made["required"] = list(schema["required"])
        elif isinstance(schema.get("additionalProperties"), dict):
            made["additionalProperties"] = _structural(schema["additionalProperties"], root)
        else:
            made |= _ANY
    return made


def _described(schema: Schema) -> Schema:
    text = " ".join(str(schema.get("description", "")).replace("``", "`").split())
    return {} if text in ("", "Expected: text.") else {"description": text}


def _add(schema: Schema, path: Sequence[str]) -> None:
    """Admit a field that has no effect here, so that what was written for another mesh is taken as it is."""
    name, *rest = path
    schema = schema.get("items", schema)
    known = schema.get("properties")
    if known is None:
        return
    if rest:
        _add(known.get(name, {}), rest)
    else:
        known.setdefault(name, dict(_ANY))


_STATUS: Schema = {
    "type": "object",
    "description": "What the nodes make of it, as the operator hears from them.",
    "properties": {
        "observedGeneration": {"type": "integer", "format": "int64", "description": "What generation this is about."},
        "loadedBy": {
            "type": "object",
            "description": "The nodes that use it.",
            "properties": {
                "count": {"type": "integer", "format": "int32", "description": "How many there are."},
                "nodes": {"type": "array", "items": {"type": "string"}, "description": "The first 20, by name."},
            },
        },
        "problems": {
            "type": "array",
            "description": "What is wrong with it, at the first nodes that say so.",
            "items": {
                "type": "object",
                "properties": {
                    "node": {"type": "string"},
                    "field": {"type": "string"},
                    "line": {"type": "integer", "format": "int32", "description": "As kubectl get -o yaml counts."},
                    "text": {"type": "string"},
                },
            },
        },
        "conditions": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
            "items": {
                "type": "object",
                "required": ["type", "status"],
                "properties": {
                    "type": {"type": "string"},
                    "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                    "reason": {"type": "string"},
                    "message": {"type": "string"},
                    "observedGeneration": {"type": "integer", "format": "int64"},
                    "lastTransitionTime": {"type": "string", "format": "date-time"},
                },
            },
        },
    },
}
