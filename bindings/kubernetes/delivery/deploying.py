"""Applications of a template as workloads: ``mesh run -k -f``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["RUN", "workloads"]

Manifest = dict[str, Any]
RUN = "mesh.run"
LABELS = {"app.kubernetes.io/managed-by": "mesh-run"}


def workloads(run: str, namespace: str, apps: Sequence[Mapping[str, Any]]) -> list[Manifest]:
    """Give a Deployment for each application, and a Service where it asks for one.

    Args:
        run: What tells them from those of other templates.
        namespace: Where they go.
        apps: Of each its ``appId``, ``image``, ``pullPolicy``, ``command``, ``env``, ``appPort``, ``service``, and the
            ``annotations`` that say how its gateway is to be.
    """
    made: list[Manifest] = []
    for app in apps:
        name = app["appId"]
        labels = {**LABELS, RUN: run, "app": name}
        about = {"name": name, "namespace": namespace, "labels": labels}
        container: Manifest = {
            "name": name,
            "image": app["image"],
            "env": [{"name": key, "value": value} for key, value in app["env"].items()],
        }
        if app["pullPolicy"]:
            container["imagePullPolicy"] = app["pullPolicy"]
        if app["command"]:
            container["command"] = list(app["command"])
        if app["appPort"]:
            container["ports"] = [{"name": "app", "containerPort": app["appPort"]}]
        annotations = {"dapr.io/enabled": "true", "dapr.io/app-id": name, **app["annotations"]}
        made.append(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": about,
                "spec": {
                    "replicas": 1,
                    "selector": {"matchLabels": {"app": name}},
                    "template": {
                        "metadata": {"labels": labels, "annotations": annotations},
                        "spec": {"containers": [container]},
                    },
                },
            }
        )
        if app["service"] and app["appPort"]:
            ports = [{"name": "app", "port": 80, "targetPort": app["appPort"]}]
            spec = {"selector": {"app": name}, "ports": ports}
            made.append({"apiVersion": "v1", "kind": "Service", "metadata": about, "spec": spec})
    return made
