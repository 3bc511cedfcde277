"""``mesh status``."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from gateway.cli.backbone import embedded_status
from gateway.cli.client import metadata
from gateway.cli.parsing import Parser
from gateway.cli.terminal import add_output_option, byte_size, show, show_document
from gateway.config import DEFAULT_BACKBONE
from gateway.runs import list_runs
from mesh.home import mesh_home
from mesh.urls import without_credentials

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["parser", "run"]

_ANSWER_WITHIN = 4.0
_MOST_CLOSED = 10


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh status",
        description="Show the backbone, where its data is, what of the applications is not well, and their actors.",
    )
    made.add_kubernetes("with -k: where it is installed (mesh-system)")
    add_output_option(made)
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    if found.kubernetes:
        from gateway.cli import cluster

        return cluster.status(found)
    output = found.output
    facts = _facts(os.environ)
    if not show_document(facts, output):
        size = facts["dataBytes"]
        facts["dataBytes"] = byte_size(size) if isinstance(size, int) else None
        titles = {
            "backbone": "backbone",
            "state": "state",
            "url": "address",
            "serverPid": "server pid",
            "home": "home",
            "dataDirectory": "data",
            "dataBytes": "size",
            "gateways": "gateways",
        }
        shown = [(title, facts[key]) for key, title in titles.items() if facts[key] is not None]
        shown += [(each["appId"], line) for each in facts["apps"] for line in _lines(each)]
        width = max(12, *(len(title) + 2 for title, _ in shown))
        show("\n".join(f"{title:<{width}}{value}" for title, value in shown))
    return 0


def _facts(environ: Mapping[str, str]) -> dict[str, Any]:
    home = mesh_home(environ)
    runs = list_runs(home)
    apps = zip(runs, metadata(runs, _ANSWER_WITHIN), strict=True)
    backbone = environ.get("MESH_BACKBONE") or DEFAULT_BACKBONE
    facts: dict[str, Any] = {
        "backbone": without_credentials(backbone),
        "state": "yours",
        "url": None,
        "serverPid": None,
        "home": str(home),
        "dataDirectory": None,
        "dataBytes": None,
        "gateways": len(runs),
        "apps": [{"appId": each.app_id, "daprdPid": each.pid, **_told(told)} for each, told in apps],
    }
    if backbone.partition(":")[0] == "embedded":
        server = embedded_status(home)
        data = home / "backbone" / "data"
        facts |= {
            "state": "running" if server else "stopped; it starts with the first gateway",
            "url": server.url if server else None,
            "serverPid": server.pid if server else None,
            "dataDirectory": str(data),
            "dataBytes": _bytes_below(data),
        }
    return facts


def _told(told: Mapping[str, Any] | str) -> dict[str, object]:
    """Give what is told of a gateway, or why it is not known."""
    if isinstance(told, str):
        return {"conditions": None, "reason": told}
    facts: dict[str, object] = {
        name: told.get(name, []) for name in ("conditions", "circuitBreakers", "backlogs", "actors")
    }
    return {**facts, "bridge": told["bridge"]} if "bridge" in told else facts


def _lines(app: Mapping[str, Any]) -> list[str]:
    """Write what is not well with an application, one line each."""
    if app["conditions"] is None:
        return [f"not known: {app['reason']}"]
    lines = []
    for each in app["conditions"]:
        parts = []
        if "breaker" in each:
            of = f" of {each['endpoint']}" if "endpoint" in each else ""
            which = f"circuit breaker {each['circuitBreaker']}{of}"
            parts.append(f"{which} is {each['breaker']}, {each['refused']} refused")
        if "seconds" in each:
            counts = f"{each['repeated']} attempts repeated, {each['givenUp']} given up, {each['trying']} going on"
            parts.append(f"{each['state']} for {each['seconds']:.3g} s ({counts}): {each['reason']}")
            parts += [each["advice"]] if "advice" in each else []
        elif "state" in each:
            parts.append(each["state"])
        lines.append(f"{each['target']}: {'; '.join(parts)}")
    backlogs = map(_backlog, filter(_is_told, app.get("backlogs", ())))
    hosted = [f"{each['type']} ({each['count']} active)" for each in app.get("actors", ())]
    actors = [f"hosts actors: {', '.join(hosted)}"] if hosted else []
    lines += _bridge_problems(app.get("bridge"))
    return [
        *(lines or ["well"]),
        *_bridge(app.get("bridge")),
        *actors,
        *_closed(app.get("circuitBreakers", ())),
        *backlogs,
    ]


def _bridge_problems(bridge: Mapping[str, Any] | None) -> list[str]:
    """Write what a bridge does not carry now."""
    if bridge is None:
        return []
    away = [each for each in bridge["sides"] if not each["connected"]]
    links = [f"{each['cluster']} is away for {each['awaySeconds']:.3g} s: {each['reason']}" for each in away]
    return [*links, *bridge["problems"]]


def _bridge(bridge: Mapping[str, Any] | None) -> list[str]:
    """Write what a bridge joins, and what it carries."""
    if bridge is None or not bridge["sides"]:
        return []
    sides = " and ".join(f"{each['cluster']} ({each['backbone']})" for each in bridge["sides"])
    carried = (("apps", bridge["apps"]), ("topics", bridge["topics"]))
    return [f"joins {sides}", *(f"{what}: {', '.join(names)}" for what, names in carried if names)]


def _closed(breakers: Sequence[Mapping[str, str]]) -> list[str]:
    """Write which targets have circuit breakers that are closed."""
    closed = Counter((each["name"], each["target"]) for each in breakers if each["state"] == "closed")
    told = [
        f"{target}: circuit breaker {name} is closed" + (f" for {count} endpoints" if count > 1 else "")
        for (name, target), count in closed.most_common(_MOST_CLOSED)
    ]
    left = len(closed) - len(told)
    return [*told, f"{left} more targets with closed circuit breakers"] if left else told


def _is_told(backlog: Mapping[str, Any]) -> bool:
    return bool(backlog["waiting"] or backlog["taken"] or backlog["deadLetters"])


def _backlog(told: Mapping[str, Any]) -> str:
    """Write what a subscription has before it."""
    parts = [f"{told['waiting']} waiting"]
    if told["taken"] is not None:
        parts.append(f"{told['taken']} taken")
    if told["oldestSeconds"]:
        parts.append(f"the oldest for {told['oldestSeconds']:.3g} s")
    attempts, dead = told["attempts"], told["deadLetters"]
    since = f"here {attempts['success']} done, {attempts['retry']} attempts failed, {dead} dead letters"
    return f"subscription {told['pubsubname']}/{told['topic']}: {', '.join(parts)}; {since}"


def _bytes_below(directory: Path) -> int:
    total = 0
    for folder, _, files in os.walk(directory):
        for name in files:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except OSError:
                # The server removes files while we look.
                continue
    return total
