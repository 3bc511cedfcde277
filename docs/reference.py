"""The reference pages of the types of components, made from what their adapters declare; see `docs/generate.py`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from gateway.cli.component import component_file
from mesh.blocks import BLOCKS
from mesh.blocks.actor_store import NEEDED as STATE_NEEDS
from mesh.blocks.records import NEEDED
from mesh.node.catalogue import ComponentType, component_types
from mesh.registry import Registry
from mesh.resources.settings import Setting

__all__ = ["actors", "bindings", "files", "own_types"]

DOCS = Path(__file__).parent
FOLDER = DOCS / "components"
_OWN = ("bindings", "brokers", "")
_GUIDES = {"secretstores": "secrets"}
_BROKERS = {"jetstream": "nats", "snssqs": "aws", "gcp_pubsub": "gcp"}  # Whose module has another name.
_WHERE = {
    "nearest": "on the node itself, or on one that [hosts it](../hosting.md)",
    "local": "on the node itself: others have another one, unless one node [hosts it](../hosting.md)",
    "": "on the node itself",
}


def own_types() -> list[ComponentType]:
    """Describe the types that come with this package; raises ``RuntimeError`` when a library is missing."""
    found = [each for each in component_types(Registry(), BLOCKS) if each.provider.partition(".")[0] in _OWN]
    lacking = [each.needs for each in found if each.needs]
    if lacking:
        raise RuntimeError("; ".join(lacking))
    return found


def files() -> Mapping[Path, str]:
    """Give every page by its path; types that one adapter has share a page."""
    together: dict[tuple[str, str], list[ComponentType]] = {}
    for each in own_types():
        kind = each.name.partition(".")[0]
        together.setdefault((kind, each.provider or each.name), []).append(each)
    pages = {FOLDER / f"{alike[0].name}.md": _page(alike) for alike in together.values()}
    return {**pages, FOLDER / "README.md": _index(list(together.values()))}


def _index(groups: Iterable[Sequence[ComponentType]]) -> str:
    lines = [
        "# Types of components",
        "",
        "Each page tells what the adapter declares, as `mesh component types TYPE` does; `mesh component new TYPE`",
        "writes a file of it. [Other packages](../extending.md) may add types.",
        "",
        "| type | what it is | tested with |",
        "| --- | --- | --- |",
    ]
    for alike in groups:
        names = ", ".join(f"[`{each.name}`]({alike[0].name}.md)" for each in alike)
        lines.append(f"| {names} | {alike[0].title} | {alike[0].tested or 'not said'} |")
    return "\n".join(lines) + "\n"


def bindings() -> str:
    """Give the table of the types of bindings."""
    lines = ["| type | in | out | operations | in parts | tested with |", "| --- | --- | --- | --- | --- | --- |"]
    for each in own_types():
        if not each.name.startswith("bindings."):
            continue
        sides = ["yes" if f"{side}_BINDING" in each.abilities else "–" for side in ("INPUT", "OUTPUT")]
        told = _words(each.operations) or ("as its page says" if sides[1] == "yes" else "–")
        cells = [
            f"[`{each.name}`](components/{_paged(each)}.md)",
            *sides,
            told,
            _words(each.streamed) or "–",
            each.tested,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def actors() -> str:
    """Make the table of what each state store can keep of actors and jobs."""
    owners, timers = NEEDED["mesh:owners"], NEEDED["mesh:timers"]
    lines = [
        "| type | state of actors | owners, durable calls, `deduplicate` | reminders and jobs | tested with |",
        "| --- | --- | --- | --- | --- |",
    ]
    together: dict[str, list[ComponentType]] = {}
    for each in own_types():
        if each.name.startswith("state.") and each.provider:  # What is on the backbone can what that can.
            together.setdefault(each.provider, []).append(each)
    for alike in together.values():
        kind = alike[0]
        names = ", ".join(f"[`{each.name}`](components/{kind.name}.md)" for each in alike)
        cells = [_can(kind, STATE_NEEDS), _shared(kind, owners), _shared(kind, timers)]
        lines.append(f"| {names} | {' | '.join(cells)} | {_tested(kind)} |")
    return "\n".join(lines) + "\n"


def _tested(kind: ComponentType) -> str:
    return re.sub("^not run", "**not run**", kind.tested)


def _can(kind: ComponentType, needed: Iterable[str]) -> str:
    missing = [each for each in needed if each not in kind.abilities and each not in kind.abilities_with]
    if missing:
        return f"no {_words(missing)}"
    takes = [kind.abilities_with[each] for each in needed if each in kind.abilities_with]
    return f"with {', '.join(takes)}" if takes else "yes"


def _shared(kind: ComponentType, needed: Iterable[str]) -> str:
    """Tell whether it can keep the mesh's own records, which all nodes have to reach."""
    if kind.placement != "local":
        return _can(kind, needed)
    return "no, is of one process" if Registry().load(kind.name).volatile else "with `MESH_SINGLE_HOST`"  # type: ignore[attr-defined]


def _paged(kind: ComponentType) -> str:
    """Give the first of the types that one adapter has: their page has its name."""
    alike = (each.name for each in own_types() if kind.provider and each.provider == kind.provider)
    return next(alike, kind.name)


def _words(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _page(alike: Sequence[ComponentType]) -> str:
    first = alike[0]
    title = ", ".join(each.name for each in alike)
    guides = [name for name in _guides(first) if (DOCS / name).exists()]
    see = " and ".join(f"[{Path(name).stem}](../{name})" for name in guides)
    lines = [f"# {title}", "", first.title, *([f"See {see}."] if see else []), ""]
    lines += ["| | |", "| --- | --- |"]
    abilities = [*(f"`{each}`" for each in first.abilities)]
    abilities += [f"`{name}` with {what}" for name, what in first.abilities_with.items()]
    lines += [f"| abilities | {', '.join(abilities)} |"] * bool(abilities)
    lines += [f"| operations | {_words(first.operations)} |"] * bool(first.operations)
    lines += [f"| passed on in parts | {_words(first.streamed)} |"] * bool(first.streamed)
    lines += [f"| versions | {', '.join(f'`{each}`' for each in first.versions)} |"] * (first.versions != ("v1",))
    lines += [f"| operations run | {_WHERE[first.placement]} |"]
    lines += [f"| tested with | {first.tested or 'its adapter does not say'} |"]
    lines += ["", "```yaml", component_file(first, optional=False).rstrip(), "```", "", "## Settings", ""]
    lines += _settings(first)
    for layout, other in first.layouts.items():
        lines += ["", f"## With `layout: {layout}`", "", other.title, "", "| | |", "| --- | --- |"]
        lines += [f"| abilities | {_words(other.abilities)} |"] * bool(other.abilities)
        lines += [f"| tested with | {other.tested} |", "", *_settings(other, first)]
    return "\n".join(lines) + "\n"


def _settings(first: ComponentType, shown: ComponentType | None = None) -> Iterator[str]:
    """Give the tables of settings; where some are shown already, of those that differ."""
    lines: list[str] = []
    before = set() if shown is None else {(each.name, each.told, each.ignored) for each in shown.all_settings}
    own = [each for each in first.settings or () if each.used and (each.name, each.told, each.ignored) not in before]
    names = {each.name for each in own}
    common = [
        each
        for each in first.all_settings
        if each.used and each.name not in names and (each.name, each.told, each.ignored) not in before
    ]
    lines += (
        _table(own) if own else ["It has none of its own." if shown is None else "Its settings are among those above."]
    )
    if common:
        lines += ["", "Of every component of this kind:", "", *_table(common)]
    reasons: dict[str, list[str]] = {}
    for each in first.settings or ():
        if not each.used and (each.name, each.told, each.ignored) not in before:
            reason = each.ignored or f"it is refused: {each.refused} is not supported"
            reasons.setdefault(reason, []).append(f"`{each.name}`")
    if reasons:
        lines += ["", "| without effect | why |", "| --- | --- |"]
        lines += [f"| {', '.join(names)} | {reason} |" for reason, names in reasons.items()]
    yield from lines


def _guides(kind: ComponentType) -> Iterator[str]:
    block = kind.name.partition(".")[0]
    yield f"{_GUIDES.get(block, block)}.md"
    if kind.provider.startswith("brokers."):
        module = kind.provider.partition(":")[0].split(".")
        yield f"brokers/{_BROKERS.get(module[-1], module[-1]) if module[1] == 'native' else module[1]}.md"


def _table(settings: Iterable[Setting]) -> list[str]:
    return ["| setting | what it is | kind | default |", "| --- | --- | --- | --- |", *map(_row, settings)]


def _row(each: Setting) -> str:
    names = ", ".join(f"`{name}`" for name in each.names)
    words = ", ".join(f"`{word}`" for word in each.kind.choices if word) or each.kind.name
    kind = f"{words}; sensitive" if each.secret else words
    default = "**required**" if each.required else f"`{each.shown_default}`" if each.shown_default else ""
    return f"| {names} | {each.told.replace('|', chr(92) + '|')} | {kind} | {default} |"
