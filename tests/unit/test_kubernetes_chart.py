"""The chart has the objects of ``mesh init -k``, for each setting, as Helm itself makes them, which also lints it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from bindings.kubernetes.delivery.installing import complete
from bindings.kubernetes.delivery.objects import crds, objects
from bindings.kubernetes.delivery.settings import nested, read
from docs.chart import FOLDER, files
from mesh.errors import ConfigError
from tests.support.kubernetes.node import find_program
from tests.support.processes import ROOT

NAMESPACE = "somewhere"


def test_the_chart_is_what_the_objects_say() -> None:
    """Whoever changes them writes the chart anew: ``python -m docs.generate``."""
    written = {path for path in FOLDER.rglob("*") if path.is_file()}
    made = files()
    assert written == set(made)
    assert all(path.read_text() == text for path, text in made.items())


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["nats.replicas=1", "nats.storage=", "dashboard=false"],
        ["nats.replicas=5", "nats.storageClass=fast"],
        ["backbone=kafka://kafka.data:9092", "replicas=1"],
        ["image=registry.example/mesh:2", "identities=false", "logAsJson=true", "trustDomain=example.org"],
    ],
    ids=["defaults", "memory", "five", "kafka", "others"],
)
def test_helm_makes_the_same_objects(tmp_path: Path, given: list[str]) -> None:
    """Object by object, field by field."""
    program = find_program(ROOT / "tests" / "support" / "helm")
    settings = read(given)
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(nested(settings)))
    done = subprocess.run([program, FOLDER, NAMESPACE, values], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    rendered = [each for each in yaml.safe_load_all(done.stdout) if each]
    assert by_name(rendered) == by_name(objects(NAMESPACE, complete(NAMESPACE, settings)))
    kept = [yaml.safe_load(path.read_text()) for path in sorted((FOLDER / "crds").iterdir())]
    assert by_name(kept) == by_name(crds())


def by_name(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    return {f"{each['kind']} {each['metadata']['name']}": json.loads(json.dumps(each)) for each in manifests}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("nats.replica=1", "there is no such setting; did you mean nats.replicas?"),
        ("nats.replicas=2", "1, 3 or 5 servers make a cluster that can decide"),
        ("replicas", "is no NAME=VALUE"),
        ("replicas=many", "'many'"),
        ("backbone=nats://ann:secret@nats:4222", "a URL with a password belongs into a Secret mesh-backbone"),
    ],
)
def test_a_wrong_setting_is_refused(given: str, told: str) -> None:
    """With its name, and the next step."""
    with pytest.raises(ConfigError, match=told.replace("?", r"\?").replace("(", r"\(")) as error:
        read([given])
    assert f"--set {given.partition('=')[0]}" in str(error.value)


def test_settings_are_read() -> None:
    """Several behind commas, names of the other chart, and a broker of several servers."""
    found = read(["backbone=nats://a:4222,nats://b:4222,replicas=3", "global.logAsJson=true"])
    assert found["backbone"] == "nats://a:4222,nats://b:4222"
    assert (found["replicas"], found["logAsJson"]) == (3, True)
