"""What the checks of documentation and code look at: pages, their blocks, and modules as text."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("mesh", "brokers", "bindings", "gateway")
_FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    info: str
    text: str

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@cache
def pages() -> tuple[Path, ...]:
    """List every page that people read."""
    return (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("examples/**/*.md")))


@cache
def blocks() -> tuple[Block, ...]:
    """List every fenced block of every page."""
    return tuple(_blocks())


def _blocks() -> Iterator[Block]:
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for found in _FENCE.finditer(text):
            yield Block(page, text.count("\n", 0, found.start()) + 1, found["info"], found["text"])


@dataclass(frozen=True)
class Module:
    """A module of ours as text."""

    name: str
    path: Path
    tree: ast.Module
    lines: int

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """All that is in it: to walk all modules takes seconds, and several checks do."""
        return tuple(ast.walk(self.tree))

    @property
    def offered(self) -> tuple[str, ...] | None:
        """What ``__all__`` lists; None when there is none."""
        for statement in self.tree.body:
            if isinstance(statement, ast.Assign) and any(
                isinstance(target, ast.Name) and target.id == "__all__" for target in statement.targets
            ):
                return tuple(ast.literal_eval(statement.value))
        return None


@cache
def modules() -> Mapping[str, Module]:
    """Give every module of ours by name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            text = path.read_text(encoding="utf-8")
            found[name] = Module(name, path, ast.parse(text), text.count("\n"))
    return found


def in_fresh_process(code: str, *options: str) -> str:
    """Run Python code in a process that has imported nothing, and give what it prints."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MESH_", "DAPR_"))}
    done = subprocess.run(
        [sys.executable, *options, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
