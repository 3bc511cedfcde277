"""The gateway's container, and the volumes that it needs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bindings.kubernetes.injector.annotations import ANNOTATIONS, Values

__all__ = ["CONTAINER", "Injection", "gateway_container", "is_of_reference", "volumes"]

CONTAINER = "mesh-gateway"
HOME = "/var/lib/mesh"
SUPPLY = f"{HOME}/supply"
TOKENS = "/var/run/secrets/mesh"
SOCKETS, COMPONENT_SOCKETS = "/var/run/dapr-sockets", "/var/run/dapr-components-sockets"
AUDIENCE = "mesh"
MAX_CONFIG = 1024  # As far as the operator reads it.
TOKEN_SECONDS = 3600
USER = 65532
START_SECONDS = 300
# A pod that is new while the operator is away waits for it; ended meanwhile, it would begin again later and later.
PATIENCE_SECONDS = 24 * 3600
DRAIN, DRAIN_KEY_HEADER, ALIVE = "/v1.0/mesh/drain", "mesh-drain-key", "/v1.0/healthz/alive"
# Which of the annotations set an option: all but those that are told in another way, below.
_OPTIONS = tuple(each for each in ANNOTATIONS if each.flag)
_NEXT = re.compile(r",\s*(?=[A-Za-z_][A-Za-z0-9_]*=)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """What an operator says for all pods.

    Attributes:
        image: The gateway's.
        pull_policy: Of the image; empty = what Kubernetes does by itself.
        control_namespace: Where operators are; empty = gateways are supplied by nobody, and get files of their own.
        trust_domain: Of the mesh.
        trust_mode: What gateways ask of others; empty = nothing is proven.
        roots: Who is trusted, PEM.
        backbone: The broker's URL where no Secret says another.
        native: Whether the cluster has native sidecars.
        anywhere: The address of all interfaces: ``0.0.0.0``, or ``::`` where pods have none but those of IPv6.
        defaults: Annotations that count where a pod does not say otherwise.
    """

    image: str
    pull_policy: str = ""
    control_namespace: str = ""
    trust_domain: str = ""
    trust_mode: str = ""
    roots: str = ""
    backbone: str = ""
    native: bool = True
    anywhere: str = "0.0.0.0"  # noqa: S104 - probes and Prometheus ask the pod's own address, whichever that is
    defaults: Mapping[str, str] = field(default_factory=dict)


def gateway_container(
    spec: Mapping[str, Any], app_id: str, values: Values, injection: Injection, key: str, *, native: bool
) -> dict[str, Any]:
    """Give the container; what is wrong with values is noted there."""
    ports = {
        "dapr-http": values.number("mesh.http-port"),
        "dapr-grpc": values.number("dapr.io/grpc-port"),
        "dapr-metrics": values.number("dapr.io/metrics-port"),
        "mesh-public": values.number("mesh.public-port"),
    }
    _refuse_twice(ports, values)
    if values.text("dapr.io/unix-domain-socket-path"):
        del ports["dapr-http"], ports["dapr-grpc"]
    if values.switch("dapr.io/enable-metrics") is False:
        del ports["dapr-metrics"]
    public = values.number("mesh.public-port")
    drain = {"path": DRAIN, "port": public, "httpHeaders": [{"name": DRAIN_KEY_HEADER, "value": key}]}
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": _image(values, injection),
        "args": _arguments(app_id, values, injection),
        "env": _environment(values, injection, key),
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "lifecycle": {"preStop": {"httpGet": drain}},
        "livenessProbe": _probe("liveness", ALIVE, public, values),
        "readinessProbe": _probe("readiness", "/v1.0/healthz", public, values),
        "securityContext": _security(spec, values),
        "volumeMounts": _mounts(values, injection),
    }
    if injection.pull_policy:
        container["imagePullPolicy"] = injection.pull_policy
    if resources := _resources(values):
        container["resources"] = resources
    if native:
        container["restartPolicy"] = "Always"
        ready = {"httpGet": {"path": "/v1.0/healthz/outbound", "port": public}}
        container["startupProbe"] = {
            **ready,
            "periodSeconds": 1,
            "timeoutSeconds": 3,
            "failureThreshold": PATIENCE_SECONDS,
        }
    return container


def _refuse_twice(ports: Mapping[str, int | None], values: Values) -> None:
    names = ("mesh.http-port", "dapr.io/grpc-port", "dapr.io/metrics-port", "mesh.public-port", "dapr.io/app-port")
    numbers = [*ports.values(), values.number("dapr.io/app-port")]
    seen: dict[int, str] = {}
    for name, number in zip(names, numbers, strict=True):
        if number is not None and number in seen:
            values.problems.append(f"{name}: {number} is also {seen[number]}")
        elif number is not None:
            seen[number] = name


def is_of_reference(image: str) -> bool:
    """Tell whether an image is the runtime that a gateway takes the place of."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0] == "daprd"


def _image(values: Values, injection: Injection) -> str:
    given, other = values.given.get("mesh.image", ""), values.given.get("dapr.io/sidecar-image", "")
    if other and is_of_reference(other):
        values.warnings.append(
            f"dapr.io/sidecar-image: {other} is another runtime; mesh.image names the gateway's image"
        )
        other = ""
    return given or other or injection.image


def _arguments(app_id: str, values: Values, injection: Injection) -> list[str]:
    """Write the options; what an annotation does not say, the gateway says itself, but for where others ask it."""
    arguments = [f"--app-id={app_id}"]
    for each in _OPTIONS:
        if each.name == "dapr.io/app-id":
            continue
        if each.kind == "switch":
            on = values.switch(each.name)
            text = "" if on is None or str(on).lower() == each.default else str(on).lower()
        elif each.kind == "port":
            number = values.number(each.name)
            text = "" if number is None else str(number)
        elif each.kind == "text":
            text = _text(each.name, values)
        else:
            text = values.checked(each.name)
        if text:
            arguments.append(f"{each.flag}={text}")
    for name, flag, unit in (
        ("dapr.io/http-max-request-size", "--max-body-size", "Mi"),
        ("dapr.io/http-read-buffer-size", "--read-buffer-size", "Ki"),
    ):
        if text := values.checked(name):
            arguments.append(f"{flag}={text}{unit}")
    arguments += [
        f"--dapr-http-port={values.number('mesh.http-port')}",
        f"--dapr-public-port={values.number('mesh.public-port')}",
        f"--dapr-public-listen-address={injection.anywhere}",
        f"--metrics-listen-address={injection.anywhere}",
        f"--backbone-timeout={START_SECONDS}s",
    ]
    if values.text("dapr.io/unix-domain-socket-path"):
        arguments.append(f"--unix-domain-socket={SOCKETS}")
    if injection.control_namespace:
        arguments.append(f"--resources-path={SUPPLY}")
        if name := values.text("dapr.io/config"):
            if len(name) > MAX_CONFIG:
                values.wrong("dapr.io/config", f"is longer than {MAX_CONFIG} characters")
            arguments.append(f"--config={SUPPLY}/configuration-{name}.yaml")
    return arguments


_INIT_ENDPOINTS = ("config", "subscribe")
_CHOICES: Mapping[str, Sequence[str]] = {
    "dapr.io/app-protocol": ("http", "https", "h2c", "grpc", "grpcs"),
    "dapr.io/log-level": ("debug", "info", "warn", "warning", "error", "fatal", "panic"),
    "dapr.io/sidecar-seccomp-profile-type": ("RuntimeDefault", "Unconfined", "Localhost"),
    "mesh.trust-mode": ("off", "permissive", "strict"),
}


def _text(name: str, values: Values) -> str:
    """Give a text that was written on the pod; one of a few, where only these make sense."""
    given = values.given.get(name, "").strip()
    if name == "dapr.io/disable-init-endpoints":
        for each in _list(values, name):
            if each not in _INIT_ENDPOINTS:
                values.wrong(name, f"'{each}' is none of {', '.join(_INIT_ENDPOINTS)}")
    choices = _CHOICES.get(name)
    if given and choices and given not in choices and given.lower() not in choices:
        values.wrong(name, f"'{given}' is none of {', '.join(choices)}")
        return ""
    return given


def _environment(values: Values, injection: Injection, key: str) -> list[dict[str, Any]]:
    fixed: list[dict[str, Any]] = [
        {"name": "NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "MESH_HOME", "value": HOME},
        {"name": "TMPDIR", "value": HOME},
        {"name": "MESH_DRAIN_KEY", "value": key},
    ]
    secret = values.text("mesh.backbone-secret")
    fixed.append({"name": "MESH_BACKBONE", **_of_secret(secret, "url", optional=True)})
    if injection.backbone:
        fixed.append({"name": "MESH_BACKBONE_DEFAULT", "value": injection.backbone})
    for name, variable in (("api-token-secret", "DAPR_API_TOKEN"), ("app-token-secret", "APP_API_TOKEN")):
        if secret := values.text(f"dapr.io/{name}"):
            fixed.append({"name": variable, **_of_secret(secret, "token")})
    if values.text("dapr.io/pluggable-components"):
        fixed.append({"name": "DAPR_COMPONENTS_SOCKETS_FOLDER", "value": COMPONENT_SOCKETS})
    if injection.control_namespace:
        told = {
            "MESH_SUPPLY": injection.control_namespace,
            "MESH_SUPPLY_DIR": SUPPLY,
            "MESH_SUPPLY_TOKEN_FILE": f"{TOKENS}/token",
            "MESH_SUPPLY_ROOTS": injection.roots,
            "MESH_TRUST_DOMAIN": injection.trust_domain,
            "MESH_TRUST_MODE": _text("mesh.trust-mode", values) or injection.trust_mode,
        }
        fixed += [{"name": name, "value": value} for name, value in told.items() if value]
    own = [*_plain(values), *_from_secrets(values)]
    if own:
        fixed.append({"name": "DAPR_ENV_KEYS", "value": " ".join(each["name"] for each in own)})
    named = {each["name"] for each in own}
    return [*(each for each in fixed if each["name"] not in named), *own]


def _of_secret(name: str, key: str, *, optional: bool = False) -> dict[str, Any]:
    reference = {"name": name, "key": key, **({"optional": True} if optional else {})}
    return {"valueFrom": {"secretKeyRef": reference}}


def _plain(values: Values) -> list[dict[str, Any]]:
    """Read ``NAME=VALUE`` pairs; a value may have commas, up to what looks like the next name."""
    found = []
    for each in _NEXT.split(values.text("dapr.io/env")):
        name, sign, value = each.strip().partition("=")
        if not each.strip():
            continue
        if not sign or not _VARIABLE.fullmatch(name):
            values.problems.append(f"dapr.io/env: '{each.strip()}' is not NAME=VALUE")
            continue
        found.append({"name": name, "value": value})
    return found


def _from_secrets(values: Values) -> list[dict[str, Any]]:
    found = []
    for each in _list(values, "dapr.io/env-from-secret"):
        name, sign, reference = (part.strip() for part in each.partition("="))
        secret, _, key = reference.partition(":")
        if not sign or not _VARIABLE.fullmatch(name) or not secret:
            values.problems.append(f"dapr.io/env-from-secret: '{each}' is not NAME=SECRET:KEY")
            continue
        found.append({"name": name, **_of_secret(secret, key or name)})
    return found


def _list(values: Values, name: str) -> list[str]:
    return [each.strip() for each in values.text(name).split(",") if each.strip()]


def _probe(which: str, path: str, port: int | None, values: Values) -> dict[str, Any]:
    begin = f"dapr.io/sidecar-{which}-probe"
    return {
        "httpGet": {"path": path, "port": port},
        "initialDelaySeconds": _at_least(0, f"{begin}-delay-seconds", values),
        "timeoutSeconds": _at_least(1, f"{begin}-timeout-seconds", values),
        "periodSeconds": _at_least(1, f"{begin}-period-seconds", values),
        "failureThreshold": _at_least(1, f"{begin}-threshold", values),
    }


def _at_least(least: int, name: str, values: Values) -> int | None:
    number = values.number(name)
    if number is not None and number < least:
        values.wrong(name, f"{number} is less than {least}")
        return Values({}).number(name)
    return number


def _resources(values: Values) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for group, end in (("requests", "request"), ("limits", "limit")):
        for kind in ("cpu", "memory"):
            if text := values.checked(f"dapr.io/sidecar-{kind}-{end}"):
                found.setdefault(group, {})[kind] = text
    return found


def _security(spec: Mapping[str, Any], values: Values) -> dict[str, Any]:
    profile = _text("dapr.io/sidecar-seccomp-profile-type", values) or "RuntimeDefault"
    found: dict[str, Any] = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": profile},
    }
    if (spec.get("securityContext") or {}).get("runAsUser") == 0:
        found |= {"runAsUser": USER, "runAsGroup": USER}  # What the pod says would count, and that is root.
    return found


def volumes(values: Values, injection: Injection) -> list[dict[str, Any]]:
    """Give the volumes that the pod gets."""
    memory: dict[str, Any] = {"medium": "Memory", "sizeLimit": "64Mi"}
    found: list[dict[str, Any]] = [{"name": "mesh-gateway", "emptyDir": memory}]
    if injection.control_namespace:
        token = {"path": "token", "audience": AUDIENCE, "expirationSeconds": TOKEN_SECONDS}
        found.append({"name": "mesh-token", "projected": {"sources": [{"serviceAccountToken": token}]}})
    if values.text("dapr.io/unix-domain-socket-path"):
        found.append({"name": "dapr-unix-domain-socket", "emptyDir": memory})
    if values.text("dapr.io/pluggable-components"):
        found.append({"name": "dapr-components-sockets", "emptyDir": memory})
    return found


def _mounts(values: Values, injection: Injection) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"name": "mesh-gateway", "mountPath": HOME}]
    if injection.control_namespace:
        found.append({"name": "mesh-token", "mountPath": TOKENS, "readOnly": True})
    if values.text("dapr.io/unix-domain-socket-path"):
        found.append({"name": "dapr-unix-domain-socket", "mountPath": SOCKETS})
    if values.text("dapr.io/pluggable-components"):
        found.append({"name": "dapr-components-sockets", "mountPath": COMPONENT_SOCKETS})
    for name, writes in (("dapr.io/volume-mounts", False), ("dapr.io/volume-mounts-rw", True)):
        for each in _list(values, name):
            volume, _, path = each.partition(":")
            if not volume or not path:
                values.problems.append(f"{name}: '{each}' is not VOLUME:PATH")
                continue
            found.append({"name": volume, "mountPath": path, **({} if writes else {"readOnly": True})})
    return found
