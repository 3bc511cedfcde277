"""The shape of the code: docstrings, sizes, what modules offer, and what their import costs."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests.meta.sources import PACKAGES, ROOT, Module, in_fresh_process, modules

MAX_LINES = 500
MAX_FUNCTION_LINES = 60

# Longer modules, each with the reason that its docstring gives or follows from.
LONGER = {}

# Used by other modules and not offered. To be shortened, never to grow.
NOT_OFFERED = {"mesh.__version__"}


def test_modules_have_docstrings() -> None:
    """A module says what it is."""
    assert not [module.name for module in modules().values() if not ast.get_docstring(module.tree)]


def _needs_no_list(module: Module) -> bool:
    return len(module.tree.body) <= 1 or module.name.endswith("__main__") or module.name == "mesh"


def test_modules_say_what_they_offer() -> None:
    """A module with code has ``__all__``."""
    assert not [each.name for each in modules().values() if each.offered is None and not _needs_no_list(each)]


def test_modules_are_short() -> None:
    """A module is at most 500 lines, unless there is a reason."""
    assert not [each.name for each in modules().values() if each.lines > MAX_LINES and each.name not in LONGER]


def test_functions_are_short() -> None:
    """A function is at most 60 lines."""
    assert not [
        f"{module.name}.{node.name}:{node.lineno}"
        for module in modules().values()
        for node in module.nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]


def test_modules_use_what_others_offer() -> None:
    """A name that one module takes from another's public module is in its ``__all__``."""
    taken = set()
    for module in modules().values():
        for node in module.nodes:
            if not isinstance(node, ast.ImportFrom) or node.module not in modules():
                continue
            source = modules()[node.module]
            if source.name.rpartition(".")[2].startswith("_"):
                continue
            for alias in node.names:
                full = f"{source.name}.{alias.name}"
                if full not in modules() and alias.name not in (source.offered or ()):
                    taken.add(full)
    assert not taken - NOT_OFFERED


def test_no_module_is_named_after_nothing() -> None:
    """``utils`` and ``helpers`` say nothing about what is in them."""
    vague = {"util", "utils", "helper", "helpers", "common", "misc", "manager", "base"}
    assert not {name for name in modules() if name.rpartition(".")[2].strip("_") in vague}


@pytest.mark.costly
def test_every_module_imports_without_a_warning() -> None:
    """Importing raises no warning, and ``__all__`` names what is there, once."""
    names = [name for name in modules() if not name.endswith("__main__")]
    code = f"""
import importlib
wrong = []
for name in {names!r}:
    module = importlib.import_module(name)
    offered = getattr(module, "__all__", [])
    wrong += [f"{{name}}.{{each}}" for each in offered if not hasattr(module, each)]
    wrong += [f"{{name}}: twice" for _ in [0] if len(set(offered)) != len(offered)]
print(wrong)
"""
    assert in_fresh_process(code, "-W", "error").strip() == "[]"


def _imported_by(code: str) -> set[str]:
    loaded = json.loads(in_fresh_process(f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"))
    return {name.partition(".")[0] for name in loaded}


def test_the_core_imports_no_client_and_no_models() -> None:
    """A node without files needs neither HTTP nor a broker's client nor pydantic nor YAML nor CEL."""
    loaded = _imported_by("import mesh.node.runtime")
    forbidden = {*PACKAGES, "aiohttp", "nats", "pydantic", "yaml", "typer", "rich", "cel"} - {"mesh"}
    assert not loaded & forbidden


def test_a_gateway_without_files_imports_no_models() -> None:
    """A gateway process reads its options without the command line's libraries and without pydantic."""
    code = """
from pathlib import Path
import gateway.cli.serve
import gateway.app
import gateway.settings
from gateway.config import GatewayConfig
gateway.settings.load_settings(GatewayConfig(app_id="app", home=Path()))
"""
    assert not _imported_by(code) & {"typer", "rich", "pydantic", "yaml", "cel", "nats", "faststream"}


def test_a_gateway_without_a_dashboard_does_not_load_it() -> None:
    """Nor what replays for it; so its process and its start are what they were."""
    loaded = json.loads(
        in_fresh_process(
            "import gateway.cli.serve, gateway.app, sys, json; "
            "print(json.dumps([name for name in sys.modules if name.startswith('gateway.')]))"
        )
    )
    assert "gateway.app" in loaded
    assert not [name for name in loaded if name.startswith(("gateway.dashboard", "gateway.replaying"))]


def test_help_imports_little() -> None:
    """``mesh --help`` is quick because it imports nearly nothing."""
    loaded = _imported_by(
        "import io, contextlib\nfrom gateway.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['--help'])"
    )
    assert not loaded & {"aiohttp", "pydantic", "yaml", "typer", "rich", "argparse", "asyncio", "nats"}


def test_listed_exceptions_exist() -> None:
    """The lists above name only what is there."""
    assert set(LONGER) <= set(modules())
    assert {name.rpartition(".")[0] for name in NOT_OFFERED} <= set(modules())


def test_declared_packages_are_all_packages() -> None:
    """Every folder with code is in the distribution."""
    import tomllib

    from setuptools import find_packages

    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = set(find_packages(str(ROOT), **config["tool"]["setuptools"]["packages"]["find"]))
    actual = {".".join(Path(m.path).parent.relative_to(ROOT).parts) for m in modules().values()}
    assert declared == actual


def test_data_of_packages_is_declared() -> None:
    """What is no code, such as the dashboard's pages, is in the distribution as well."""
    import tomllib

    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = {
        path
        for package, patterns in config["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
        if path.is_file()
    }
    there = {
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and path.name[0] != "."
    }
    assert there - declared == set()
    assert ROOT / "gateway" / "dashboard" / "assets" / "index.html" in declared
