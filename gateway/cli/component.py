"""``mesh component``: what can be used as a component, and a file of one to begin with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import yaml

from gateway.cli.parsing import Parser, UsageError
from gateway.cli.terminal import Format, note, show, show_document, show_records, table
from mesh.blocks import BLOCKS
from mesh.errors import ConfigError
from mesh.node.catalogue import ComponentType, component_type, component_types
from mesh.registry import Registry
from mesh.resources.settings import example, is_takable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mesh.resources.settings import Setting

__all__ = ["component_file", "parser", "run"]

_FORMATS = ("table", "json", "yaml")
_SECRET_STORE = "secretstore"
_WIDTH = 100
_PLAIN = re.compile(r"[A-Za-z0-9_./][\w./:@+-]*")


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh component",
        description="Tell which types of components are installed, and write a file of one.",
        epilog="mesh component types              every type\n"
        "mesh component types state.sqlite one type with its settings\n"
        "mesh component new state.sqlite   a file with all its settings, those that are not needed as comments",
    )
    made.add_argument("what", choices=("types", "new"), metavar="types|new", help="what to do")
    made.add_argument("type", nargs="?", metavar="TYPE", help="such as state.sqlite")
    made.add_argument("-n", "--name", metavar="NAME", help="new: the component's name")
    made.add_argument(
        "-o", "--output", metavar="OUTPUT", help="types: table, json or yaml; new: the file to write, which must be new"
    )
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    registry = Registry()
    if found.what == "new":
        if found.type is None:
            raise UsageError("new needs a type; mesh component types lists them", "mesh component")
        return _new(component_type(found.type.lower(), registry, BLOCKS), found.name, found.output)
    output: Format = found.output or "table"
    if output not in _FORMATS:
        raise UsageError(f"--output: '{output}' is none of {', '.join(_FORMATS)}", "mesh component")
    if found.name is not None:
        raise UsageError("--name belongs to: mesh component new TYPE", "mesh component")
    if found.type is None:
        types = component_types(registry, BLOCKS)
        records = [each.described() for each in types]
        if output == "table":
            records = [
                {
                    "type": each.name,
                    "abilities": " ".join((*each.abilities, *each.abilities_with)),
                    "title": each.title or each.needs,
                }
                for each in types
            ]
        show_records(records, output, {"type": "TYPE", "abilities": "ABILITIES", "title": "WHAT IT IS"})
        return 0
    kind = component_type(found.type.lower(), registry, BLOCKS)
    if not show_document(dict(kind.described()), output):
        show("\n".join(_told(kind)))
    return 0


def _told(kind: ComponentType) -> Iterator[str]:
    """Tell a type to people."""
    yield f"{kind.name}: {kind.title or kind.needs}"
    if kind.needs:
        return
    facts = {
        "abilities": ", ".join(kind.told_abilities).replace("`", ""),
        "placement": kind.placement,
        "tested with": kind.tested,
    }
    yield from (f"{name}: {text}" for name, text in facts.items() if text)
    if kind.settings is None:
        yield "its adapter does not say which settings it has"
    used = [each for each in kind.all_settings if each.used]
    if used:
        yield ""
        rows = [(each.name, each.kind.name, _default(each), _about(each)) for each in used]
        yield table([("SETTING", "KIND", "DEFAULT", "WHAT IT IS"), *rows])
    reasons: dict[str, list[str]] = {}
    for each in kind.all_settings:
        if not each.used:
            reasons.setdefault(each.ignored or f"refused, {each.refused} is not supported", []).append(each.name)
    if reasons:
        yield ""
        yield "without effect:"
        yield from (f"  {', '.join(names)}: {reason}" for reason, names in reasons.items())


def _default(each: Setting) -> str:
    return "(required)" if each.required else each.shown_default


def _about(each: Setting) -> str:
    parts = [each.told.replace("`", "")]
    parts += [f"One of {', '.join(filter(None, each.kind.choices))}."] * bool(each.kind.choices)
    parts += [f"Also {', '.join(each.aliases)}."] * bool(each.aliases)
    parts += ["Sensitive."] * each.secret
    return " ".join(filter(None, parts))


def _new(kind: ComponentType, name: str | None, output: str | None) -> int:
    """Write a file, or show it.

    Raises:
        ConfigError: The library of the type is missing, or the file is there already.
        OSError: It cannot be written.
    """
    if kind.needs:
        raise ConfigError(kind.needs)
    text = component_file(kind, name)
    if output is None:
        show(text.rstrip())
        return 0
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{output} is there already; name another file, or remove it") from None
    note(f"wrote {output}; to look at it: mesh check {output}")
    return 0


def component_file(kind: ComponentType, name: str | None = None, *, optional: bool = True) -> str:
    """Write a component of a type: what it needs filled in, and what it may have as comments, if that is wanted."""
    name = name or (kind.block.called if kind.block is not None else "") or kind.name.partition(".")[0]
    used = [each for each in kind.all_settings if each.used and is_takable(each) and (optional or _written(each))]
    lines = [f"# {line}" for line in wrap(f"{kind.name}: {kind.title}".removesuffix(": "), _WIDTH)] * optional
    lines += ["apiVersion: dapr.io/v1alpha1", "kind: Component", "metadata:", f"  name: {_scalar(name)}"]
    lines += ["spec:", f"  type: {kind.name}", f"  version: {kind.versions[0]}"]
    lines += ["  metadata:"] * bool(used)
    for each in sorted(used, key=lambda each: not _written(each)):
        lines += [f"    # {line}" for line in wrap(_about(each), _WIDTH - 6)]
        lines += [f"    {'' if _written(each) else '# '}{line}" for line in _entry(each, name)]
    secret = [each for each in used if each.secret]
    if secret:
        lead = "" if any(map(_written, secret)) else "# "
        lines += ["# The component that has what secretKeyRef names:"]
        lines += [f"{lead}auth:", f"{lead}  secretStore: {_SECRET_STORE}"]
    lines += ["# Only these applications may use it; without this, all may:", "# scopes: [APP-ID]"] * optional
    return "\n".join([*lines, ""])


def _written(each: Setting) -> bool:
    return each.required or each.suggested


def _entry(each: Setting, component: str) -> list[str]:
    name = _scalar(each.name)
    if each.secret:
        return [f"- name: {name}", f"  secretKeyRef: {{name: {_scalar(component)}, key: {name}}}"]
    return [f"- name: {name}", f"  value: {_scalar(example(each))}"]


def _scalar(text: str) -> str:
    """Write text as YAML, without quotes where they change nothing."""
    plain = _PLAIN.fullmatch(text) and yaml.safe_load(text) == text
    return text if plain else json.dumps(text, ensure_ascii=False)
