"""What can be said of an installation; its names are those of ``--set`` and of the values of the chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mesh.errors import ConfigError, Problem
from mesh.spelling import did_you_mean
from mesh.values import parse_bool, parse_whole

__all__ = ["NAMESPACE", "SETTINGS", "Setting", "Settings", "nested", "read"]

NAMESPACE = "mesh-system"

Settings = Mapping[str, Any]
"""Each setting's value by its name, such as ``nats.replicas``."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Attributes:
        name: With dots between its parts.
        default: What counts where nothing is said.
        help: One line.
    """

    name: str
    default: str | int | bool
    help: str


SETTINGS: Sequence[Setting] = (
    Setting("image", "brokermesh/gateway:0.1.0", "image of the gateway, which the operator runs as well"),
    Setting("imagePullPolicy", "IfNotPresent", "when it is loaded"),
    Setting("replicas", 2, "copies of the operator; one of them leads"),
    Setting("backbone", "", "URL of a broker that is there, without a password; empty: a NATS cluster is made"),
    Setting("nats.image", "nats:2.12-alpine", "image of NATS"),
    Setting("nats.replicas", 3, "its servers: 1, 3 or 5; each stream has as many copies"),
    Setting("nats.storage", "2Gi", "disk of each server; empty: memory and the node's disk, lost with the pod"),
    Setting("nats.storageClass", "", "class of these disks; empty: the cluster's own choice"),
    Setting("trustDomain", "cluster.local", "begins each identity: spiffe://DOMAIN/ns/NAMESPACE/APP-ID"),
    Setting("identities", True, "certificates for gateways, which prove who they are"),
    Setting("dashboard", True, "a dashboard, reached by mesh dashboard -k"),
    Setting("logLevel", "info", "of the operator"),
    Setting("logAsJson", False, "one JSON object a line"),
)
"""All of them."""

_BY_NAME: Mapping[str, Setting] = {each.name: each for each in SETTINGS}
# What the reference's chart calls them, where it is the same.
_OLD: Mapping[str, str] = {
    "global.image": "image",
    "global.imagePullPolicy": "imagePullPolicy",
    "global.logAsJson": "logAsJson",
    "global.mtls.enabled": "identities",
    "dapr_operator.logLevel": "logLevel",
}


def read(given: Sequence[str], base: Settings | None = None) -> dict[str, Any]:
    """Read what was given as ``NAME=VALUE``, several with commas between them.

    Args:
        given: As it was written.
        base: What counts for what is not given; None: the defaults.

    Raises:
        ConfigError: Holds every problem.
    """
    found: dict[str, Any] = {each.name: each.default for each in SETTINGS} | dict(base or {})
    problems = []
    for text in (part for each in given for part in _parts(each)):
        name, equals, value = text.partition("=")
        name = _OLD.get(name, name)
        known = _BY_NAME.get(name)
        if known is None or not equals:
            meant = did_you_mean(name, _BY_NAME)
            told = (
                "is no NAME=VALUE"
                if not equals
                else "there is no such setting" + (f"; did you mean {meant}?" if meant else "")
            )
            problems.append(Problem(told, f"--set {text}"))
            continue
        try:
            found[name] = _value(known, value)
        except ValueError as error:
            problems.append(Problem(str(error), f"--set {name}"))
    if "@" in found["backbone"].partition("?")[0]:
        text = "a URL with a password belongs into a Secret mesh-backbone, key url: docs/kubernetes.md"
        problems.append(Problem(text, "--set backbone"))
    if found["nats.replicas"] not in (1, 3, 5):
        problems.append(Problem("1, 3 or 5 servers make a cluster that can decide", "--set nats.replicas"))
    if problems:
        raise ConfigError(problems)
    return found


def nested(settings: Settings) -> dict[str, Any]:
    """Give settings as a tree, as a chart has its values."""
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        *path, last = name.split(".")
        at = tree
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return tree


def _parts(text: str) -> list[str]:
    """Divide at commas, but for those of a URL with several servers."""
    parts: list[str] = []
    for each in text.split(","):
        if parts and each.partition("=")[0] not in {*_BY_NAME, *_OLD} and parts[-1].startswith("backbone="):
            parts[-1] += f",{each}"
        else:
            parts.append(each)
    return parts


def _value(known: Setting, text: str) -> str | int | bool:
    if isinstance(known.default, bool):
        return parse_bool(text)
    return parse_whole(text, least=1) if isinstance(known.default, int) else text
