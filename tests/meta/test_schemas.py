"""docs/schemas: what the gateway takes, they take, and what an editor is to find, they refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from mesh.resources.loader import Document, is_bridge_file, is_run_file, parse_documents
from tests.meta.sources import ROOT, blocks

_KINDS = {"Component", "Configuration", "HTTPEndpoint", "Resiliency", "WorkflowAccessPolicy"}


@cache
def _validator(name: str) -> Draft202012Validator:
    schema = json.loads((ROOT / "docs" / "schemas" / f"{name}.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def _name(document: Document) -> str | None:
    kind, version = document.get("kind"), str(document.get("apiVersion"))
    if kind == "Subscription":
        return f"subscription-{version.rpartition('/')[2]}"
    if kind in _KINDS:
        return str(kind).lower()
    if is_bridge_file(document):
        return "bridge"
    return "run-file" if is_run_file(document) else None


def _texts() -> Iterator[tuple[str, str]]:
    """Give the files of examples and tutorials, and the examples of pages."""
    folders = (ROOT / "examples", ROOT / "tests" / "support" / "apps")
    for file in sorted(file for folder in folders for file in folder.rglob("*.yaml")):
        yield str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")
    for block in blocks():
        if block.language == "yaml":
            yield str(block), block.text


_TEXTS = list(_texts())


@pytest.mark.parametrize("text", [text for _, text in _TEXTS], ids=[name for name, _ in _TEXTS])
def test_what_is_loaded_is_valid(text: str) -> None:
    for document in parse_documents(text, "f.yaml", []):
        if name := _name(document):
            found = _validator(name).iter_errors(document.data)
            assert not [f"{error.json_path}: {error.message[:200]}" for error in found]


_STATE = "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: s}\nspec:\n  type: "


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("component", f"{_STATE}state.sqlite\n  metadata: [{{name: connectionStrin, value: a}}]", 2),
        ("component", f"{_STATE}state.sqlite", 1),
        ("component", f"{_STATE}state.sqlite\n  metadata: [{{name: connectionString, valu: a}}]", 1),
        ("component", f"{_STATE}state.sqlite\n  metadata: [{{name: connectionString, value: 1}}]", 0),
        ("component", f"{_STATE}state.sqlite\n  metadata: [{{name: tableName, value: 1}}]", 1),
        ("component", f"{_STATE}state.redis\n  metadata: [{{name: redishost, value: a}}]", 0),
        ("component", f"{_STATE}state.redis\n  metadata: [{{name: redisHost}}, {{name: processingTimeout}}]", 0),
        ("component", f"{_STATE}state.redis\n  metadata: [{{name: redisHost}}, {{name: redisPasword}}]", 1),
        ("component", f"{_STATE}state.somebodys\n  metadata: [{{name: anything}}]", 0),
        (
            "component",
            f"{_STATE}state.in-memory\n  version:\n  initTimeout: 5s\nstatus: {{}}\nx-own: 1",
            0,
        ),
        ("component", f"{_STATE}state.in-memory\n  initTimeout: [5s]", 1),
        ("component", f"{_STATE}state.in-memory\n  scopes: [a]", 1),
        ("component", f"{_STATE}state.in-memory\nscopes: [a]", 0),
        ("run-file", "version: 1\napps:\n- {appDirPath: a, appPort: many}", 1),
        ("run-file", "version: 1\napps:\n- {appDirPath: a, appPort: 3000, env: {A: 1, B: }}\nx-y: {}", 0),
        ("run-file", "version: 1\napps:\n- {appDirPath: a, logLevel: loud}", 1),
    ],
)
def test_what_an_editor_finds(name: str, text: str, wrong: int) -> None:
    found = list(_validator(name).iter_errors(yaml.safe_load(text)))
    assert len(found) == wrong, [error.message for error in found]


def test_there_is_one_of_every_kind() -> None:
    names = {file.stem for file in (ROOT / "docs" / "schemas").iterdir()}
    subscriptions = {"subscription-v1alpha1", "subscription-v2alpha1"}
    assert names == {kind.lower() for kind in _KINDS} | subscriptions | {"bridge", "run-file"}


def test_settings_stand_in_the_schema_of_components() -> None:
    schema: dict[str, Any] = json.loads((ROOT / "docs/schemas/component.json").read_text(encoding="utf-8"))
    types = schema["$defs"]["ComponentSpec"]["properties"]["type"]["anyOf"][0]["enum"]
    assert {"state.sqlite", "pubsub.mesh"} <= set(types)
