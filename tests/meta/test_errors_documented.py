"""Every failure has one code, one place in the tree and one line in docs/errors.md."""

from __future__ import annotations

import ast
import asyncio
import importlib
import re

import mesh.errors
from gateway.errors import ERRORS, GRPC
from mesh.errors import MeshError
from tests.meta.sources import PACKAGES, ROOT, modules

_PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
_CODES = r"ERR_[A-Z_]+|DAPR_SCHEDULER_[A-Z_]+|ERROR"
_API_CODE = re.compile(_CODES)


def _api_codes_in_code() -> set[str]:
    found = set()
    for name, module in modules().items():
        if name.partition(".")[0] != "gateway":
            continue
        for node in module.nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _API_CODE.fullmatch(node.value):
                found.add(node.value)
    return found


async def _import_all() -> None:
    """In an event loop, as gateways do: gRPC's library asks for one."""
    for name in modules():
        if not name.endswith("__main__"):
            importlib.import_module(name)


def _classes() -> set[type[MeshError]]:
    asyncio.run(_import_all())
    found: set[type[MeshError]] = {MeshError}
    waiting = [MeshError]
    while waiting:
        for each in waiting.pop().__subclasses__():
            package, *_, module = each.__module__.split(".")
            # One of a private module is a detail of its base, under the base's name and code.
            if package in PACKAGES and not module.startswith("_"):
                found.add(each)
            waiting.append(each)
    return found


def test_every_api_code_is_documented() -> None:
    """An ``errorCode`` in the code stands on the page, and the reverse."""
    rows = [line for line in _PAGE.splitlines() if line.startswith("| `")]
    documented = {row.split("`")[1] for row in rows if _API_CODE.fullmatch(row.split("`")[1])}
    assert _api_codes_in_code() == documented


def test_every_error_class_is_documented() -> None:
    """A class stands on the page with its code and whether it is worth another try."""
    rows = set(re.findall(r"^\| `(\w+Error)` \| `([A-Z_]+)` \| (yes|no) \|", _PAGE, re.MULTILINE))
    classes = {(each.__name__, each.code, "yes" if each.retryable else "no") for each in _classes()}
    assert rows == classes


def test_codes_are_unique() -> None:
    """Every class has a code of its own, never inherited."""
    assert all("code" in vars(each) for each in _classes())
    codes = [each.code for each in _classes()]
    assert len(codes) == len(set(codes))


def test_tree_in_the_docstring_is_the_tree() -> None:
    """The drawing in ``mesh.errors`` shows each class below its base."""
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in (mesh.errors.__doc__ or "").splitlines():
        if found := re.match(r"^    (?P<indent>[│ ]*(?:[├└]── )?)(?P<name>\w+Error)\b", line):
            depth = len(found["indent"]) // 4
            del path[depth:]
            drawn[found["name"]] = path[-1] if path else ""
            path.append(found["name"])
    actual = {
        each.__name__: "" if each is MeshError else each.__bases__[0].__name__
        for each in _classes()
        if each.__module__ == "mesh.errors"
    }
    assert drawn == actual


def test_statuses_are_documented() -> None:
    """Each row of the table stands on the page with its statuses, over HTTP and over gRPC."""
    found = re.findall(
        r"^\| `(ERR_[A-Z_]+|DAPR_SCHEDULER_[A-Z_]+|ERROR)` \| ([\d, ]+) \| ([^|]+) \|", _PAGE, re.MULTILINE
    )
    documented = [(code, told.split(", "), grpc) for code, told, grpc in found]
    for row in ERRORS.values():
        cells = [grpc for code, told, grpc in documented if code == row.code and str(row.status) in told]
        assert cells, row
        assert any(cell == "–" or f"`{row.grpc}`" in cell for cell in cells), row
    known = {row.grpc for row in ERRORS.values()} | {*GRPC.values(), "INTERNAL"}
    assert {name for _, _, cell in documented for name in re.findall(r"`(\w+)`", cell)} <= known
