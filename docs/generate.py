"""Generate the parts of the documentation that are facts of the code.

``python -m docs.generate`` rewrites what stands between ``<!-- generated: NAME -->`` and
``<!-- end -->`` in README.md and docs/, and all of docs/components and docs/schemas; with ``--check`` it
only says whether that would change anything. The block on features is made from ``Features``, so
that no page can promise more than the adapter declares and the contract suite tests. The blocks on
faults are made from what the fault tests measured (``make faults-report``).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from bindings.kubernetes.injector.annotations import ANNOTATIONS
from brokers.embedded import EmbeddedBroker
from brokers.kafka import KafkaBroker
from brokers.memory import MemoryBroker
from brokers.mqtt import MQTTBroker
from brokers.nats import NatsBroker
from brokers.rabbitmq import RabbitMQBroker
from brokers.redis import RedisBroker
from docs import api, chart, reference, schema
from docs.limits import TABLES, table
from gateway.cli.options import DEPRECATED, FLAGS, IGNORED
from gateway.cli.reference import INSTEAD
from gateway.metrics.table import ABSENT, METRICS
from mesh.broker import Features
from mesh.registry import Registry
from mesh.resources.settings import declared_by

__all__ = ["BLOCKS", "changes", "main", "pages", "rendered"]

ROOT = Path(__file__).parents[1]
FAULTS = ROOT / "docs" / "faults.json"
_BLOCK = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n)(?P<old>.*?)(<!-- end -->)", re.DOTALL)

_MEANING: Mapping[str, str] = {
    "durable": "confirmed events outlive the broker's process",
    "shared": "other processes can take part",
    "ordering": "events of equal key in order",
    "delay": "retries are delayed",
    "dedup": "a repeated publish with the same message id is stored once",
    "wildcard": "subscriptions with wildcards",
    "own_wildcards": "subscriptions with wildcards of the broker's own",
    "key_value": "key/value store, for `state.mesh`, `configuration.mesh` and `lock.mesh`",
    "ephemeral": "broadcast subscriptions",
    "attempts": "a delivery that another member had before tells so by its attempt",
    "release_counts": "a delivery handed back unhandled counts as an attempt",
    "retention": "a new group begins with the oldest event that is stored",
    "reassigns": "one delivery can go to another instance while its own lives",
    "frames": "can be the backbone: invocation, presence",
    "headers": "messages have headers: binary mode, and proofs of who has published",
    "expires": "the broker itself lets an event expire",
}


def _features() -> list[Features]:
    embedded = EmbeddedBroker(Path()).features
    adapters = (NatsBroker, RedisBroker, RabbitMQBroker, KafkaBroker, MQTTBroker, MemoryBroker)
    return [embedded, *(each.features for each in adapters)]


def _native_features() -> list[Features]:
    """Give what each broker can do in the native layout."""
    registry = Registry()
    adapters = dict.fromkeys(
        registry.load(name) for name in registry.types() if name.startswith("pubsub.") and registry.find(name)
    )
    found = [each.features for each in adapters if hasattr(each, "features")]
    return [*{each.name: each for each in found if each.layout == "native"}.values()]


def _features_table() -> str:
    return _table_of_features(_features())


def _native_features_table() -> str:
    return _table_of_features(_native_features())


def _table_of_features(brokers: Sequence[Features]) -> str:
    lines = [
        f"| feature | {' | '.join(each.name for each in brokers)} |",
        f"| --- {'| --- ' * len(brokers)}|",
    ]
    for name, meaning in _MEANING.items():
        cells = ("yes" if getattr(each, name) else "no" for each in brokers)
        lines.append(f"| {meaning} (`{name}`) | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _flags_table() -> str:
    lines = ["| flag | meaning |", "| --- | --- |"]
    for flag in FLAGS:
        names = ", ".join(f"`{name}`" for name in flag.names)
        lines.append(f"| {names} | {flag.help or _UNSAID.get(flag.names[0], '')} |")
    return "\n".join(lines) + "\n"


# Accepted for the sake of existing command lines, and not shown in the help.
_UNSAID: Mapping[str, str] = {
    "--app-ssl": "an old name: the same as `--app-protocol https`, or `grpcs` in place of `grpc`",
    "--enable-metrics": "`=false` switches metrics off, see [metrics](metrics.md)",
    "--metrics-listen-address": "the address of the port of the metrics (127.0.0.1)",
    "--label": "`NAME=VALUE`, shown in metadata under `extended`",
}


def _metrics_table() -> str:
    lines = ["| metric | kind | labels | what it tells |", "| --- | --- | --- | --- |"]
    for each in {row.name: row for row in METRICS}.values():
        labels = ", ".join(f"`{name}`" for name in each.labels)
        lines.append(f"| `{each.name}` | {each.kind} | {labels} | {each.text} |")
    return "\n".join(lines) + "\n"


def _absent_metrics_table() -> str:
    lines = ["| Dapr's | why it is not there |", "| --- | --- |"]
    for names, reason in ABSENT.items():
        lines.append(f"| {', '.join(f'`{name}`' for name in names.split(', '))} | {reason} |")
    return "\n".join(lines) + "\n"


def _ignored_table() -> str:
    lines = ["| flag | why it has no effect |", "| --- | --- |"]
    for flag, reason in {id(flag): (flag, reason) for flag, reason in IGNORED.values()}.values():
        names = ", ".join(f"`{name}`" for name in flag.names)
        lines.append(f"| {names} | {reason} |")
    return "\n".join(lines) + "\n"


def _ignored_settings(kind: str, layout: str = "") -> str:
    reasons: dict[str, list[str]] = {}
    for each in declared_by(Registry().load(kind, layout)) or ():
        if each.ignored:
            reasons.setdefault(each.ignored, []).append(f"`{each.name}`")
    lines = ["| accepted, without effect | why |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {', '.join(names)} | {reason} |" for reason, names in reasons.items())]) + "\n"


def _annotations_table() -> str:
    lines = ["| annotation | meaning | default | wrong |", "| --- | --- | --- | --- |"]
    for each in ANNOTATIONS:
        if each.effect:
            default = f"`{each.default}`" if each.default and " " not in each.default else each.default
            lines.append(f"| `{each.name}` | {each.effect} | {default} | {'refused' if each.bound else 'warning'} |")
    return "\n".join(lines) + "\n"


def _annotations_without_effect_table() -> str:
    lines = ["| annotation | why |", "| --- | --- |"]
    lines += [f"| `{each.name}` | {each.reason} |" for each in ANNOTATIONS if each.reason]
    return "\n".join(lines) + "\n"


def _old_names_table() -> str:
    lines = ["| old name | write |", "| --- | --- |"]
    for old, new in DEPRECATED.items():
        name, comma, example = new.partition(",")
        lines.append(f"| `{old}` | `{name}`{comma}{example} |")
    return "\n".join(lines) + "\n"


def _instead_table() -> str:
    lines = ["| command | what it says |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| `dapr {name}` | {text} |" for name, text in INSTEAD.items())]) + "\n"


def _faults() -> dict[str, dict[str, Mapping[str, object]]]:
    """Give what the fault tests measured, by fault and broker."""
    found: dict[str, dict[str, Mapping[str, object]]] = {}
    for row in json.loads(FAULTS.read_text(encoding="utf-8")):
        found.setdefault(row["fault"], {})[row["broker"]] = row
    return found


def _by_broker(heading: str, rows: Mapping[str, Mapping[str, str]]) -> str:
    """Make a table of texts by row and broker."""
    known = [each.name for each in _features()]
    names = [name for name in known if any(name in row for row in rows.values())]
    lines = [f"| {heading} | {' | '.join(names)} |", f"| --- {'| --- ' * len(names)}|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(row.get(broker, '–') for broker in names)} |")
    return "\n".join(lines) + "\n"


def _by_layout(rows: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Make rows of their own of what was measured in the native layout, each behind that of the mesh's."""
    apart: dict[str, dict[str, str]] = {}
    for fault, row in rows.items():
        for broker, text in row.items():
            name = broker.removesuffix("-native")
            apart.setdefault(fault if name == broker else f"{fault}, native layout", {})[name] = text
    return apart


def _faults_table() -> str:
    rows = {
        fault: {
            broker: f"{row['confirmed']:,} / {row['missing']} / {row['duplicates']}"
            for broker, row in by_broker.items()
            if "missing" in row
        }
        for fault, by_broker in _faults().items()
    }
    return _by_broker("what fails, under load", _by_layout(rows))


def _calls_table() -> str:
    rows = {
        fault: {broker: f"{row['calls']:,} / {row['failed']}" for broker, row in by_broker.items() if "calls" in row}
        for fault, by_broker in _faults().items()
    }
    return _by_broker("what happens, under calls", {fault: row for fault, row in rows.items() if row})


def _fault_times_table() -> str:
    rows = {
        fault: {broker: f"{row['seconds']}" for broker, row in by_broker.items() if "seconds" in row}
        for fault, by_broker in _faults().items()
    }
    return _by_broker("seconds until", _by_layout(rows))


def _actor_calls_table() -> str:
    rows = {
        fault: {
            broker: f"{row['asked']:,} / {row['refused']} / {row['longest']} / {row['late']}"
            for broker, row in by_broker.items()
            if "asked" in row
        }
        for fault, by_broker in _faults().items()
    }
    return _by_broker("what happens, under calls of actors", {fault: row for fault, row in rows.items() if row})


def _actor_record_table() -> str:
    """Make the rows of what a store accepted, and of what was to come later."""
    rows = {
        "writes of actors that the store accepted": ("actors", "writes"),
        "stale ones among them": ("actors", "stale"),
        "turns of one actor at once": ("actors", "doubled"),
        **{
            f"{what}: {text}": (what, name)
            for what in ("reminders", "jobs")
            for text, name in (("registered", "kept"), ("lost", "lost"), ("early", "early"))
        },
    }
    return _by_broker("in all of that", _cells(rows))


def _actor_moves_table() -> str:
    rows = {
        "moves of actors": ("actors that move", "moves"),
        "what half of the calls wait at most, in ms": ("actors that move", "median"),
        "what 99 % wait at most, in ms": ("actors that move", "most"),
        "the longest, in ms": ("actors that move", "longest"),
    }
    return _by_broker("owners restart, one after the other", _cells(rows))


def _actor_clocks_table() -> str:
    rows = {
        f"{what}: {text}": (f"{what} while a clock jumps", name)
        for what in ("reminders", "jobs")
        for text, name in (
            ("registered", "set"),
            ("lost", "lost"),
            ("early", "early"),
            ("the last one came behind the last jump, in seconds", "last"),
        )
    }
    return _by_broker("the clock of an owner jumps", _cells(rows))


def _cells(rows: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Give by heading and broker what was measured of a fault by a name."""
    found = _faults()
    return {
        heading: {broker: f"{row[name]:,}" for broker, row in found.get(fault, {}).items()}
        for heading, (fault, name) in rows.items()
    }


BLOCKS: Mapping[str, Callable[[], str]] = {
    "annotations": _annotations_table,
    "annotations-without-effect": _annotations_without_effect_table,
    "api": api.table,
    "kubernetes-settings": chart.settings,
    "bindings": reference.bindings,
    "features": _features_table,
    "native-features": _native_features_table,
    "flags": _flags_table,
    "ignored-flags": _ignored_table,
    "instead": _instead_table,
    "metrics": _metrics_table,
    "absent-metrics": _absent_metrics_table,
    "old-names": _old_names_table,
    "faults": _faults_table,
    "calls": _calls_table,
    "actor-stores": reference.actors,
    "actor-calls": _actor_calls_table,
    "actor-clocks": _actor_clocks_table,
    "actor-moves": _actor_moves_table,
    "actor-record": _actor_record_table,
    "fault-times": _fault_times_table,
    "ignored-settings-nats": partial(_ignored_settings, "pubsub.nats", "mesh"),
    **{
        f"ignored-settings-{kind.partition('.')[2]}": partial(_ignored_settings, kind)
        for kind in ("pubsub.redis", "pubsub.rabbitmq", "pubsub.kafka", "pubsub.mqtt")
    },
    **{f"limits-{name}": partial(table, name) for name in TABLES},
}
"""What can be generated, by name."""

WHOLE = (reference, schema, chart)
"""What makes whole files; the folders that they are in hold nothing else."""


def pages() -> list[Path]:
    """List every page that people read."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def rendered(text: str) -> str:
    """Give a page with its generated blocks made anew.

    Raises:
        KeyError: A block names something that cannot be generated.
    """
    return _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found['name']]()}{found[4]}", text)


def changes() -> Mapping[Path, str | None]:
    """Give the files that are not as they would be made now, with their text; None where there would be no file."""
    made = {path: text for part in WHOLE for path, text in part.files().items()}
    folders = {path.parent for path in made}
    there = {path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_file()}
    wanted: dict[Path, str | None] = dict.fromkeys(there - made.keys())
    wanted |= made
    wanted |= {page: rendered(page.read_text(encoding="utf-8")) for page in pages() if page.parent not in folders}
    return {
        path: text
        for path, text in wanted.items()
        if text is None or not path.exists() or path.read_text(encoding="utf-8") != text
    }


def main(arguments: list[str]) -> int:
    """Rewrite the pages, or with ``--check`` name those that are stale; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when something is stale")
    check = parser.parse_args(arguments).check
    changed = changes()
    for page, text in changed.items():
        if check:
            sys.stdout.write(f"{page.relative_to(ROOT)} is stale; run: python -m docs.generate\n")
        elif text is None:
            page.unlink()
            sys.stdout.write(f"{page.relative_to(ROOT)} removed\n")
        else:
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(text, encoding="utf-8")
            sys.stdout.write(f"{page.relative_to(ROOT)} written\n")
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
