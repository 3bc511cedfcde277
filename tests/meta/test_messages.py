"""The compiled messages of gRPC are those of their sources."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from gateway.grpc.messages import service
from gateway.routes import RPCS
from gateway.routes.rpc import DAPR
from tests.meta.sources import ROOT


@pytest.mark.parametrize("package", ["gateway/grpc", "bindings/pluggable", "bindings/spiffe"])
def test_compiled_messages_are_up_to_date(tmp_path: Path, package: str) -> None:
    """``make proto`` would change nothing."""
    folder = ROOT / package
    made, sources = tmp_path / "made", sorted((folder / "proto").glob("*.proto"))
    options = ["-I", str(folder / "proto"), "--include_imports", f"--descriptor_set_out={made}"]
    words = [sys.executable, "-m", "grpc_tools.protoc", *options, *map(str, sources)]
    subprocess.run(words, check=True, timeout=60)
    stored = FileDescriptorSet.FromString((folder / "messages.binpb").read_bytes())
    assert stored == FileDescriptorSet.FromString(made.read_bytes()), "stale; run: make proto"


def test_every_row_is_a_method() -> None:
    """Under all of its names, each once."""
    names = [(row.service, name) for row in RPCS for name in (row.name, *row.aliases)]
    assert len(set(names)) == len(names)
    services = (service(DAPR), service("TaskHubSidecarService", ""))
    assert set(names) <= {(each.name, method.name) for each in services for method in each.methods}
