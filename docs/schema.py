"""JSON Schemas of the files that people write, for editors, made from the models that read them.

A schema is stricter than the gateway where an editor helps by it: it knows keys in their usual spelling alone, names of
settings in that or in small letters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from docs.reference import own_types
from gateway.bridge_file import BridgeFile
from gateway.cli.template_schema import Template
from mesh.node.catalogue import ComponentType
from mesh.resources.documents import Effect, FileModel
from mesh.resources.schema import ComponentFile, ConfigurationFile, HTTPEndpointFile
from mesh.resources.schema_resiliency import ResiliencyFile
from mesh.resources.schema_subscription import V1, V2, SubscriptionV1File, SubscriptionV2File
from mesh.resources.schema_workflow_access import WorkflowAccessPolicyFile
from mesh.resources.settings import Setting

__all__ = ["files"]

FOLDER = Path(__file__).parent / "schemas"
_MODELS: Mapping[str, type[FileModel]] = {
    "bridge": BridgeFile,
    "component": ComponentFile,
    "configuration": ConfigurationFile,
    "httpendpoint": HTTPEndpointFile,
    "resiliency": ResiliencyFile,
    "run-file": Template,
    "subscription-v1alpha1": SubscriptionV1File,
    "subscription-v2alpha1": SubscriptionV2File,
    "workflowaccesspolicy": WorkflowAccessPolicyFile,
}
_VERSIONS = {"subscription-v1alpha1": V1, "subscription-v2alpha1": V2}
_TEXT = ["string", "boolean", "number"]  # As YAML reads what stands there without quotes.
_Schema = dict[str, Any]


def files() -> Mapping[Path, str]:
    """Give every schema by its path."""
    return {FOLDER / f"{name}.json": _written(_schema(name, model)) for name, model in _MODELS.items()}


def _written(schema: _Schema) -> str:
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _schema(name: str, model: type[FileModel]) -> _Schema:
    schema = _simple(model.model_json_schema())
    for path, effect in model.effects.items():
        _note(schema, schema, path.split("."), effect)
    if name in _VERSIONS:
        schema["properties"]["apiVersion"] = {"const": _VERSIONS[name]}
    if model is ComponentFile:
        types = own_types()
        schema["$defs"]["ComponentSpec"]["properties"]["type"] = {
            "anyOf": [{"enum": [each.name for each in types]}, {"type": "string"}]
        }
        schema["allOf"] = [condition for each in types for condition in _conditions(each)]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _simple(schema: Any) -> Any:
    """Make what pydantic says of a model what a file may be: text without quotes, keys without a value, ``x-`` keys."""
    if isinstance(schema, list):
        return [_simple(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made: _Schema = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            made[key] = {name: _simple(each) for name, each in value.items()}
        elif key == "description":
            if value != "Expected: text.":
                made[key] = " ".join(value.replace("``", "`").split())
        elif key == "default":
            if isinstance(value, bool | str) and value != "":
                made[key] = value
        elif key != "title":
            made[key] = _simple(value)
    if made.get("type") == "string" and not {"enum", "const"} & made.keys():
        made["type"] = _TEXT
    if made.get("additionalProperties") is False:
        made["patternProperties"] = {"^x-": {}}
    required = made.get("required", ())
    for name, each in made.get("properties", {}).items():
        if name not in required and {"type": "null"} not in each.get("anyOf", ()):
            made["properties"][name] = _or_nothing(each)
    return made


def _or_nothing(schema: _Schema) -> _Schema:
    outside = {key: schema.pop(key) for key in ("description", "default") if key in schema}
    return {**outside, "anyOf": [schema, {"type": "null"}]} if schema else outside


def _note(root: _Schema, schema: _Schema, path: list[str], effect: Effect) -> None:
    """Write at a field that it has no effect, and know one that the model has not, unless it is refused."""
    name, *rest = path
    for holder in _objects(root, schema):
        known = holder["properties"]
        if rest:
            _note(root, known.get(name, {}), rest, effect)
        elif name in known or not effect.unsafe:
            known.setdefault(name, {}).update({"description": effect.reason} if effect.reason else {})


def _objects(root: _Schema, schema: _Schema) -> Iterator[_Schema]:
    """Find the objects with properties that a schema may be, also as the items of a list."""
    if "$ref" in schema:
        yield from _objects(root, root["$defs"][schema["$ref"].rpartition("/")[2]])
    if "properties" in schema:
        yield schema
    for each in (*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else [])):
        yield from _objects(root, each)


def _conditions(kind: ComponentType) -> Iterator[_Schema]:
    """Say for a type of component which settings it has, and which it must have."""
    is_of_type = {"properties": {"spec": {"properties": {"type": {"const": kind.name}}, "required": ["type"]}}}
    every = [*kind.all_settings, *(each for other in kind.layouts.values() for each in other.all_settings)]
    known: dict[str, Setting] = {}
    for each in every:
        if not each.refused:
            known |= {name: each for name in each.names if name not in known}
    if kind.settings is None:
        return
    usual = {"enum": list(known), "markdownEnumDescriptions": [_told(each) for each in known.values()]}
    small = sorted({name.lower() for name in known} - known.keys())
    families = [{"pattern": f"^{name}"} for name in known if name.endswith((":", "/"))]  # Any number of settings each.
    families += [{"pattern": rf"\{name}$"} for name in known if name.startswith(".")]
    ways = [usual, *([{"enum": small}] if small else []), *families]
    name = {"anyOf": ways} if len(ways) > 1 else usual
    metadata: _Schema = {"items": {"properties": {"name": name}}}
    needed = [
        {"contains": {"properties": {"name": {"enum": _spelt(each.names)}}, "required": ["name"]}}
        for each in kind.all_settings
        if each.required
    ]
    spec: _Schema = {"properties": {"metadata": metadata}}
    if needed:
        metadata["allOf"] = needed
        spec["required"] = ["metadata"]
    yield {"if": is_of_type, "then": {"properties": {"spec": spec}}}


def _spelt(names: Iterable[str]) -> list[str]:
    """Give names as usual and in small letters."""
    return list(dict.fromkeys(each for name in names for each in (name, name.lower())))


def _told(each: Setting) -> str:
    if each.ignored:
        return f"It has no effect: {each.ignored}."
    parts = [each.told, f"One of {', '.join(filter(None, each.kind.choices))}." if each.kind.choices else ""]
    parts += ["Required." if each.required else f"Default: {each.shown_default}." if each.shown_default else ""]
    parts += ["Sensitive: by secretKeyRef." if each.secret else ""]
    return " ".join(filter(None, parts))
