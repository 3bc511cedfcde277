"""The table of what there is over HTTP and over gRPC, made from the tables of routes and of RPCs.

A route and an RPC are of one line when the functions that answer them have one name, but for ``_rpc``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable

from gateway.grpc.messages import service
from gateway.routes import ROUTES, RPCS
from gateway.routes.unanswered import MISSING

__all__ = ["table"]

HEAD = "| block | what | HTTP | gRPC |\n| --- | --- | --- | --- |\n"
NONE = "–"
_PARTS = {"actor_": "actors", "workflow_": "workflows"}  # Blocks whose routes stand in several modules.


def table() -> str:
    """Make the table: a line for each thing that can be asked, then what is not there yet."""
    http: dict[tuple[str, str], list[str]] = {}
    grpc: dict[tuple[str, str], list[str]] = {}
    said: dict[tuple[str, str], str] = {}
    for route in ROUTES:
        key = _key(route.answer)
        said.setdefault(key, _said(route.answer))
        verbs = ", ".join(sorted(route.methods, key=_order)) or "any verb"
        first, *others = route.versions
        also = [f"and `/{version}/…`" for version in others]
        http.setdefault(key, []).append(" ".join([f"`{verbs} /{first}/{route.path}`", *also]))
    for row in RPCS:
        key = _key(row.answer)
        said.setdefault(key, _said(row.answer))
        grpc.setdefault(key, []).extend(f"`{name}`" for name in (row.name, *row.aliases))
    blocks = list(dict.fromkeys(block for block, _ in said))
    lines = [
        _line(key[0], what, _cell(http.get(key, ())), _cell(grpc.get(key, ())))
        for block in blocks
        for key, what in said.items()
        if key[0] == block
    ]
    there = {name for row in RPCS for name in (row.name, *row.aliases)}
    absent = [f"`{each.name}`" for each in service("Dapr").methods if each.name not in there]
    if absent:
        lines.append(_line("these blocks", "further calls", NONE, f"not yet: {', '.join(absent)}"))
    lines += [_line(block, "", "not yet", "not yet") for block in sorted(set(MISSING.values()))]
    return HEAD + "".join(lines)


def _key(answer: Callable[..., object]) -> tuple[str, str]:
    module = answer.__module__.rpartition(".")[2]
    whole = next((whole for begin, whole in _PARTS.items() if module.startswith(begin)), module)
    return whole, answer.__name__.removesuffix("_rpc")


def _said(answer: Callable[..., object]) -> str:
    first = (inspect.getdoc(answer) or "").partition("\n")[0].rstrip(".")
    return first[:1].lower() + first[1:].replace("``", "`")


def _order(verb: str) -> int:
    return ("GET", "POST", "PUT", "DELETE").index(verb)


def _cell(texts: Iterable[str]) -> str:
    return ", ".join(texts) or NONE


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"
