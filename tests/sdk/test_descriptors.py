"""Our messages are those of the official package, field by field."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

from bindings.pluggable import _messages as components
from gateway.grpc.messages import COMMON, message, service
from gateway.routes.unanswered import missing
from tests.sdk.descriptors import described
from tests.sdk.test_programs import built

HERE = Path(__file__).parent
PYTHON = HERE / ".python" / "bin" / "python"


@pytest.fixture(scope="module")
def official() -> dict[str, dict[str, Any]]:
    if not PYTHON.exists():
        assert "CI" not in os.environ, "the official package is missing: tests/provision/sdks.sh"
        pytest.skip("not installed: tests/provision/sdks.sh")
    words = [str(PYTHON), "descriptors.py"]
    found = subprocess.run(words, cwd=HERE, capture_output=True, text=True, timeout=60, check=True)
    told: dict[str, dict[str, Any]] = json.loads(found.stdout)
    return told


def test_messages_and_methods_are_the_official_ones(official: dict[str, dict[str, Any]]) -> None:
    """Names, numbers, types, labels, and their names in JSON: none is missing in a message, and none is another."""
    ours = json.loads(json.dumps(described([service("Dapr").file, message("StateItem", COMMON).DESCRIPTOR.file])))
    services = {"Dapr", "AppCallback", "AppCallbackAlpha", "AppCallbackHealthCheck"}
    assert services <= {name.rpartition(".")[2] for name in ours}
    for name, members in ours.items():
        wanted = official[name]
        if name.rpartition(".")[2] in services:  # They have methods of blocks that are not here.
            wanted = {member: wanted[member] for member in members}
        assert members == wanted, name


def test_messages_of_workers_are_the_official_ones(official: dict[str, dict[str, Any]]) -> None:
    """Also those that clients of workflows send; their service is not one of a package."""
    file = service("TaskHubSidecarService", "").file
    ours = json.loads(json.dumps(described([file])))
    for name, members in ours.items():
        wanted = official[name]
        if name == ".TaskHubSidecarService":
            wanted = {member: wanted[member] for member in members}
        assert members == wanted, name


def test_no_method_is_missing(official: dict[str, dict[str, Any]]) -> None:
    """A call of one that is not here would say so."""
    ours = {method.name for method in service("Dapr").methods}
    others = official["dapr.proto.runtime.v1.Dapr"].keys() - ours
    assert all("there is no method" in missing(name) for name in others)


def test_messages_of_pluggable_components_are_the_official_ones() -> None:
    """They come with Dapr's module for Go; those of bindings are of a block that is not here."""
    words = [str(built("go") / "program"), "components"]
    found = subprocess.run(words, capture_output=True, timeout=60, check=True)
    pool, names = DescriptorPool(), []
    for file in FileDescriptorSet.FromString(found.stdout).file:
        pool.Add(file)
        if file.package == components.COMPONENTS:
            names.append(file.name)
    official = described(pool.FindFileByName(name) for name in names)
    ours = described([components.message("GetRequest").DESCRIPTOR.file])
    for name, members in ours.items():
        wanted = official[name]
        if name.endswith(".PubSub"):  # It has a method that nobody calls.
            wanted = {member: wanted[member] for member in members}
        assert members == wanted, name
