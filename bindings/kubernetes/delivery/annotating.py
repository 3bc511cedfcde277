"""Annotations written into the manifests of workloads: ``mesh annotate``, without a cluster."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from bindings.kubernetes.injector import ANNOTATIONS
from mesh.errors import ConfigError, Problem

__all__ = ["annotated", "flags"]

# Where each kind has the metadata of its pods.
_PODS: Mapping[str, tuple[str, ...]] = {
    "Pod": (),
    **dict.fromkeys(("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"), ("spec", "template")),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}


def flags() -> Mapping[str, str]:
    """Give each annotation by the option that sets it."""
    return {f"--{each.name.removeprefix('dapr.io/').removeprefix('mesh.')}": each.name for each in ANNOTATIONS}


def annotated(text: str, given: Mapping[str, str], resource: str | None, namespace: str | None) -> str:
    """Write annotations into the pods of workloads; all else stays as it is read.

    Args:
        text: YAML documents; a ``List`` holds several.
        given: The annotations; ``dapr.io/enabled`` is set, too.
        resource: The name of the one workload; None: there is only one, or each gets them.
        namespace: Its namespace; None: any.

    Raises:
        ConfigError: It is no YAML, or holds no such workload.
    """
    try:
        documents = [each for each in yaml.safe_load_all(text) if each is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(Problem("is no YAML", line=None if mark is None else mark.line + 1)) from None
    changed = 0
    for each in _workloads(documents):
        about = each.get("metadata") or {}
        if resource not in (None, about.get("name")) or namespace not in (None, about.get("namespace", "default")):
            continue
        at = each
        for part in _PODS[each["kind"]]:
            at = at.setdefault(part, {})
        annotations = at.setdefault("metadata", {}).setdefault("annotations", {})
        own = {"dapr.io/enabled": "true", **given}
        if "dapr.io/app-id" not in annotations and "dapr.io/app-id" not in own:
            own["dapr.io/app-id"] = "-".join(
                filter(None, (about.get("namespace"), each["kind"].lower(), about.get("name")))
            )
        annotations.update(own)
        changed += 1
    if not changed:
        wanted = f"the workload {resource}" if resource else "a workload, such as a Deployment or a Pod"
        raise ConfigError(Problem(f"there is no {wanted.removeprefix('the ')} in it"))
    written = io.StringIO()
    yaml.safe_dump_all(documents, written, sort_keys=False)
    return written.getvalue()


def _workloads(documents: list[Any]) -> Iterator[dict[str, Any]]:
    for each in documents:
        if not isinstance(each, dict):
            continue
        if each.get("kind") == "List":
            yield from _workloads(each.get("items") or [])
        elif each.get("kind") in _PODS:
            yield each
