"""Component types by name."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from mesh.errors import ConfigError, MissingDependencyError
from mesh.registry import BACKBONE_TYPES, GROUP, Registry


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, GROUP)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    entries = [
        entry("backbone.memory", "brokers.memory:MemoryBroker"),
        entry("state.in-memory", "bindings.in_memory:InMemoryStateStore"),
        entry("state.twice", "one:A"),
        entry("state.twice", "two:B"),
        entry("state.same", "mesh.key_value:MemoryKeyValue"),
        entry("state.same", "mesh.key_value:MemoryKeyValue"),
        entry("pubsub.kafka", "tests.unit.needs_aiokafka:X"),
        entry("pubsub.odd", "no_such_package.module:X"),
    ]
    monkeypatch.setattr("mesh.registry.entry_points", lambda group: [each for each in entries if each.group == group])
    return Registry()


def test_types(registry: Registry) -> None:
    """Those that a resource may name; backbones are not among them, what lives in one is."""
    expected = {"state.in-memory", "state.twice", "state.same", "pubsub.kafka", "pubsub.odd", *BACKBONE_TYPES}
    assert set(registry.types()) == expected
    assert registry.types() == sorted(expected)


def test_load(registry: Registry) -> None:
    """Only the named one."""
    assert registry.load("state.in-memory").__name__ == "InMemoryStateStore"
    assert registry.load("state.same").__name__ == "MemoryKeyValue"
    assert registry.find("state.nope") is None


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("state.in-memry", "did you mean 'state.in-memory'?"),
        (
            "state.redis",
            "types of this kind: state.in-memory, state.mesh, state.same, state.twice; state.mesh takes the",
        ),
        ("pubsub.nobody", "types of this kind: pubsub.kafka, pubsub.mesh, pubsub.odd; pubsub.mesh takes the place of"),
        ("middleware.http.bearer", "types of this kind: none"),
    ],
)
def test_not_installed(registry: Registry, name: str, hint: str) -> None:
    """With what may have been meant."""
    with pytest.raises(ConfigError, match=f"there is no component type '{name}'") as raised:
        registry.load(name)
    assert hint in str(raised.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("middleware.http.opaa", "middleware.http.opa"),
        ("middleware.htp.ratelimit", "middleware.http.ratelimit"),
        ("middleware.http.wasm", None),
        ("middleware.http.nope", None),
        ("secretstores.azure.other", None),
        ("bindings.mysq", "bindings.mysql"),
    ],
)
def test_what_was_meant(name: str, meant: str | None) -> None:
    """What begins alike is not alike."""
    assert Registry().meant(name) == meant


def test_two_providers(registry: Registry) -> None:
    """Naming both."""
    with pytest.raises(ConfigError, match=r"provided twice: by \? \(one:A\) and \? \(two:B\); uninstall one"):
        registry.load("state.twice")


def test_missing_library(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it: the extra if there is one."""
    with pytest.raises(MissingDependencyError, match="install it with: pip install no_such_package"):
        registry.load("pubsub.odd")

    def load(self: EntryPoint) -> object:
        raise ModuleNotFoundError("No module named 'aiokafka'", name="aiokafka.abc")

    monkeypatch.setattr(EntryPoint, "load", load)
    with pytest.raises(MissingDependencyError, match=r"pip install '(.*)\[kafka\]'$") as raised:
        registry.load("pubsub.kafka")
    # There is no such package on an index: what is installed again is the folder that it came from.
    folder = str(raised.value).partition("'")[2].partition("[")[0]
    assert Path(folder, "pyproject.toml").is_file()


def test_what_is_installed_loads() -> None:
    """Every entry point of ours names something that exists."""
    registry = Registry()
    for name in registry.types():
        if name not in BACKBONE_TYPES:
            try:
                assert registry.load(name)
            except MissingDependencyError as error:
                assert "pip install" in str(error)
