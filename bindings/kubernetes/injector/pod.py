"""What a pod gets: from the pod and the operator's settings to a patch, without asking anybody."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bindings.kubernetes.injector.annotations import ENABLED, Values, is_enabled
from bindings.kubernetes.injector.container import CONTAINER, Injection, gateway_container, volumes
from mesh.address import app_id_problem

__all__ = ["Injected", "app_id_of", "injected"]

OTHERS = "daprd"
APP_ID, METRICS = "dapr.io/app-id", "dapr.io/enable-metrics"
LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")

Operation = dict[str, Any]
Pod = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Injected:
    """What is to become of a pod.

    Attributes:
        patch: Operations of a JSON Patch (RFC 6902); empty = it stays as it is.
        warnings: For whoever made it.
        problems: Why it is refused; then there is no patch.
    """

    patch: Sequence[Operation] = ()
    warnings: Sequence[str] = ()
    problems: Sequence[str] = ()


def app_id_of(pod: Pod) -> str:
    """Give a pod's application: as its annotation says, else its name; empty while it has neither."""
    about = pod.get("metadata") or {}
    return str((about.get("annotations") or {}).get(APP_ID, "")).strip() or str(about.get("name") or "")


def injected(pod: Pod, injection: Injection, key: str) -> Injected:
    """Give what makes a pod that asks for a gateway have one.

    It is of no effect on a pod that has one, whosever it is, and on one that does not ask.

    Args:
        pod: As it was sent to the API server.
        injection: What the operator says for all pods.
        key: What nobody can guess: who knows it may have the gateway drain.
    """
    about, spec = pod.get("metadata") or {}, pod.get("spec") or {}
    annotations: Mapping[str, str] = about.get("annotations") or {}
    try:
        if not is_enabled(annotations):
            return Injected()
    except ValueError as error:
        return Injected(problems=(f"{ENABLED}: {error}",))
    present = {str(each.get("name")) for kind in ("containers", "initContainers") for each in spec.get(kind) or ()}
    if CONTAINER in present:
        return Injected()
    if OTHERS in present:
        return Injected(warnings=(f"the pod has a container {OTHERS} already, so it gets no gateway",))
    values = Values({**injection.defaults, **annotations})
    values.look()
    app_id = app_id_of(pod)
    if not app_id:
        values.problems.append(f"{APP_ID} is missing: it names the application")
    elif problem := app_id_problem(app_id):
        values.problems.append(f"{APP_ID}: {problem}")
    elif not LABEL.fullmatch(app_id):
        values.problems.append(f"{APP_ID}: '{app_id}' must be a label: at most 63 letters, digits, '-' and '_'")
    patch = _patch(about, spec, app_id, values, injection, key)
    if values.problems:
        return Injected(warnings=values.warnings, problems=values.problems)
    return Injected(patch, values.warnings)


@dataclass(slots=True)
class _Builder:
    """Collects operations; a list or map that is missing is made by the first one that needs it."""

    operations: list[Operation] = field(default_factory=list)
    made: set[str] = field(default_factory=set)

    def add(self, path: str, value: object) -> None:
        self.operations.append({"op": "add", "path": path, "value": value})

    def within(self, path: str, present: object, empty: object) -> None:
        if not present and path not in self.made:
            self.made.add(path)
            self.add(path, empty)

    def append(
        self, path: str, present: Sequence[object] | None, items: Sequence[object], *, first: bool = False
    ) -> None:
        if items:
            self.within(path, present, [])
        for item in reversed(items) if first else items:
            self.add(f"{path}/{0 if first else '-'}", item)


def _patch(
    about: Mapping[str, Any], spec: Mapping[str, Any], app_id: str, values: Values, injection: Injection, key: str
) -> list[Operation]:
    builder = _Builder()
    components = _named(values)
    own: Sequence[Mapping[str, Any]] = spec.get("containers") or ()
    known = {str(each.get("name")) for each in own}
    for name in components:
        if name not in known:
            values.problems.append(f"dapr.io/pluggable-components: the pod has no container {name}")
    native = injection.native and values.switch("dapr.io/enable-native-sidecar") is not False and not components
    container = gateway_container(spec, app_id, values, injection, key, native=native)
    builder.append("/spec/volumes", spec.get("volumes"), volumes(values, injection))
    kind = "initContainers" if native else "containers"
    before: Sequence[Mapping[str, Any]] = spec.get("initContainers") or ()
    at = {"initContainers": 1, "containers": 0} if native else {"initContainers": 0, "containers": 0}
    # First, so that it is there for whatever else the pod begins with, and ends last.
    builder.append(f"/spec/{kind}", spec.get(kind), [container], first=native)
    groups = [("containers", own)] + ([("initContainers", before)] if native else [])
    for group, containers in groups:
        for number, each in enumerate(containers):
            path = f"/spec/{group}/{number + at[group]}"
            if each.get("name") in components:
                _sockets(builder, path, each, values)
            else:
                _changed(builder, path, each, values, container, hooks=group == "containers")
    builder.within("/metadata/labels", about.get("labels"), {})
    metrics = values.switch(METRICS) is not False
    for name, value in (("sidecar-injected", "true"), ("app-id", app_id), ("metrics-enabled", str(metrics).lower())):
        builder.add(f"/metadata/labels/dapr.io~1{name}", value)
    _warn_of_time(spec, values)
    return builder.operations


def _named(values: Values) -> dict[str, None]:
    found = values.text("dapr.io/pluggable-components").split(",")
    return {each.strip(): None for each in found if each.strip()}


def _changed(
    builder: _Builder,
    path: str,
    container: Mapping[str, Any],
    values: Values,
    gateway: Mapping[str, Any],
    *,
    hooks: bool,
) -> None:
    """Tell a container of the application where its gateway is; what it says itself stays."""
    known = {str(each.get("name")) for each in container.get("env") or ()}
    told = {
        "DAPR_HTTP_PORT": str(values.number("mesh.http-port")),
        "DAPR_GRPC_PORT": str(values.number("dapr.io/grpc-port")),
        "APP_PROTOCOL": values.text("dapr.io/app-protocol"),
    }
    env = [{"name": name, "value": value} for name, value in told.items() if name not in known]
    builder.append(f"{path}/env", container.get("env"), env)
    if folder := values.text("dapr.io/unix-domain-socket-path"):
        mount = {"name": "dapr-unix-domain-socket", "mountPath": folder}
        builder.append(f"{path}/volumeMounts", container.get("volumeMounts"), [mount])
    lifecycle = container.get("lifecycle") or {}
    if hooks and not lifecycle.get("preStop") and values.switch("mesh.drain") is not False:
        builder.within(f"{path}/lifecycle", lifecycle, {})
        builder.add(f"{path}/lifecycle/preStop", gateway["lifecycle"]["preStop"])


def _sockets(builder: _Builder, path: str, container: Mapping[str, Any], values: Values) -> None:
    """Give a container that is a component the folder of sockets."""
    folder = values.text("dapr.io/pluggable-components-sockets-folder")
    mount = {"name": "dapr-components-sockets", "mountPath": folder}
    builder.append(f"{path}/volumeMounts", container.get("volumeMounts"), [mount])
    env = {"name": "DAPR_COMPONENTS_SOCKETS_FOLDER", "value": folder}
    if env["name"] not in {str(each.get("name")) for each in container.get("env") or ()}:
        builder.append(f"{path}/env", container.get("env"), [env])


def _warn_of_time(spec: Mapping[str, Any], values: Values) -> None:
    """Say where the pod ends before what is in flight may."""
    period = spec.get("terminationGracePeriodSeconds")
    drain = values.number("dapr.io/graceful-shutdown-seconds")
    if isinstance(period, int) and drain is not None and period <= drain:
        text = f"terminationGracePeriodSeconds is {period}: what is in flight is cut off before the {drain} s"
        values.warnings.append(f"{text} of dapr.io/graceful-shutdown-seconds are over")
