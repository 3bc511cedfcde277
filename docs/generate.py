"""Generate the parts of the documentation that are facts of the code.

``python -m docs.generate`` rewrites what stands between ``<!-- generated: NAME -->`` and
``<!-- end -->`` in README.md and docs/; with ``--check`` it only says whether that would change
anything. The block on features is made from ``Features``, so that no page can promise more than
the adapter declares and the contract suite tests.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from brokers.embedded import EmbeddedBroker
from brokers.kafka import KafkaBroker
from brokers.memory import MemoryBroker
from brokers.nats import NatsBroker, NatsConfig
from brokers.rabbitmq import RabbitMQBroker
from brokers.redis import RedisBroker
from gateway.cli.options import FLAGS, IGNORED
from mesh.broker import Features

__all__ = ["BLOCKS", "main", "pages", "rendered"]

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n)(?P<old>.*?)(<!-- end -->)", re.DOTALL)

_MEANING: Mapping[str, str] = {
    "durable": "confirmed events outlive the broker's process",
    "shared": "other processes can take part",
    "ordering": "events of equal key in order",
    "delay": "delayed retries are held by the broker",
    "dedup": "a repeated publish with the same message id is stored once",
    "wildcard": "subscriptions with wildcards",
    "key_value": "key/value store, for `state.mesh`",
    "ephemeral": "broadcast subscriptions",
    "release_counts": "a delivery handed back unhandled counts as an attempt",
}


def _features() -> list[Features]:
    nats = NatsBroker(NatsConfig(("nats://localhost:4222",)))
    return [
        EmbeddedBroker(Path()).features,
        nats.features,
        RedisBroker.from_url("redis://localhost").features,
        RabbitMQBroker.from_url("amqp://localhost").features,
        KafkaBroker.from_url("kafka://localhost").features,
        MemoryBroker().features,
    ]


def _features_table() -> str:
    brokers = _features()
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
    "--app-ssl": "the same as `--app-protocol https`; an old name",
    "--metrics-port": "passed on to the application as `DAPR_METRICS_PORT`; there is no metrics endpoint yet",
    "--label": "`NAME=VALUE`, shown in metadata under `extended`",
}


def _ignored_table() -> str:
    lines = ["| flag | why it has no effect |", "| --- | --- |"]
    for flag, reason in {id(flag): (flag, reason) for flag, reason in IGNORED.values()}.values():
        names = ", ".join(f"`{name}`" for name in flag.names)
        lines.append(f"| {names} | {reason} |")
    return "\n".join(lines) + "\n"


BLOCKS: Mapping[str, Callable[[], str]] = {
    "features": _features_table,
    "flags": _flags_table,
    "ignored-flags": _ignored_table,
}
"""What can be generated, by name."""


def pages() -> list[Path]:
    """List every page that people read."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def rendered(text: str) -> str:
    """Give a page with its generated blocks made anew.

    Raises:
        KeyError: A block names something that cannot be generated.
    """
    return _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found['name']]()}{found[4]}", text)


def main(arguments: list[str]) -> int:
    """Rewrite the pages, or with ``--check`` name those that are stale; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when something is stale")
    check = parser.parse_args(arguments).check
    stale = 0
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = rendered(text)
        if new == text:
            continue
        stale += 1
        if check:
            sys.stdout.write(f"{page.relative_to(ROOT)} is stale; run: python -m docs.generate\n")
        else:
            page.write_text(new, encoding="utf-8")
            sys.stdout.write(f"{page.relative_to(ROOT)} written\n")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
