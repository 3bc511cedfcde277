"""Every annotation of a pod that says how its gateway is to be: one table, and how their values are read.

Source: reference/dapr-surface.md 4.6; the defaults are the reference's where nothing else is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mesh.spelling import did_you_mean
from mesh.values import parse_bool, parse_duration, parse_size, parse_whole

__all__ = ["ANNOTATIONS", "BY_NAME", "ENABLED", "Annotation", "Values", "is_enabled"]

Kind = Literal["text", "switch", "number", "port", "duration", "size", "quantity", "list"]

ENABLED = "dapr.io/enabled"
_PREFIXES = ("dapr.io/", "mesh.")
_LARGEST_PORT = 65535
_LARGEST_NUMBER = 2**31 - 1  # Kubernetes has no larger ones in a pod.
_MAX_UNKNOWN = 20  # For so many it is looked what was meant: that takes a millisecond each.
# Kubernetes: a number, of which the unit is one of these.
_QUANTITY = re.compile(r"[+]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+|[numkMGTPE]|[KMGTPE]i)?")
COMPONENT_FOLDER = "/tmp/dapr-components-sockets"  # noqa: S108 - as the reference has it
_CALLS = "a call goes over the broker, never from gateway to gateway"
_NO_SERVICE = "there is no such service behind a gateway"


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotation.

    Attributes:
        name: As it stands on a pod.
        kind: How its value is read.
        effect: What it does; empty = nothing here.
        default: What counts without it; empty = nothing.
        flag: The option of the gateway that it sets; empty = it does something else.
        reason: Why it does nothing here.
        bound: A wrong value refuses the pod. Else the default counts, as in the reference, and a warning says so.
        least: The least of a number.
    """

    name: str
    kind: Kind
    effect: str = ""
    default: str = ""
    flag: str = ""
    reason: str = ""
    bound: bool = False
    least: int = -_LARGEST_NUMBER


def _set(name: str, kind: Kind, flag: str, effect: str, default: str = "", *, bound: bool = False) -> Annotation:
    return Annotation(f"dapr.io/{name}", kind, effect, default, f"--{flag}", bound=bound)


def _counts(name: str, effect: str, default: str = "", *, option: bool = True) -> Annotation:
    """Make one with a number of at least 1: no gateway starts with another."""
    return Annotation(f"dapr.io/{name}", "number", effect, default, f"--{name}" if option else "", least=1)


def _does(name: str, kind: Kind, effect: str, default: str = "", *, bound: bool = False) -> Annotation:
    full = name if name.startswith("mesh.") else f"dapr.io/{name}"
    return Annotation(full, kind, effect, default, bound=bound)


def _nothing(name: str, reason: str) -> Annotation:
    return Annotation(f"dapr.io/{name}", "text", reason=reason)


def _probe(which: str, what: str, delay: str, timeout: str, period: str, threshold: str) -> tuple[Annotation, ...]:
    begin = f"sidecar-{which}-probe"
    return (
        _does(f"{begin}-delay-seconds", "number", f"seconds until {what} is asked for first", delay),
        _does(f"{begin}-timeout-seconds", "number", "seconds an answer may take", timeout),
        _does(f"{begin}-period-seconds", "number", "seconds between two", period),
        _does(f"{begin}-threshold", "number", "failures in a row that count", threshold),
    )


ANNOTATIONS: tuple[Annotation, ...] = (
    _does("enabled", "switch", "the pod gets a gateway", "false", bound=True),
    _set("app-id", "text", "app-id", "name of the application; without it the pod's name, if it has one", bound=True),
    _set("app-port", "port", "app-port", "where the application listens", bound=True),
    _set("app-protocol", "text", "app-protocol", "`http`, `https`, `h2c`, `grpc` or `grpcs`", "http", bound=True),
    _set("app-ssl", "switch", "app-ssl", "an old name: the same as the protocol `https`, or `grpcs`"),
    _set("app-channel-address", "text", "app-channel-address", "the application's address", "127.0.0.1"),
    _set("app-max-concurrency", "number", "app-max-concurrency", "most calls into the application at once"),
    _does("config", "text", "name of the Configuration in the pod's namespace", bound=True),
    _set("log-level", "text", "log-level", "`debug`, `info`, `warning` or `error`", "info"),
    _set("log-as-json", "switch", "log-as-json", "one JSON object a line"),
    _set(
        "enable-api-logging",
        "switch",
        "enable-api-logging",
        "log every API call; `false`: none, whatever a Configuration says",
    ),
    _does("api-token-secret", "text", "Secret whose key `token` clients must send (`DAPR_API_TOKEN`)", bound=True),
    _does("app-token-secret", "text", "Secret whose key `token` the application is sent (`APP_API_TOKEN`)", bound=True),
    _set("enable-metrics", "switch", "enable-metrics", "`false` switches metrics off", "true"),
    _set("metrics-port", "port", "metrics-port", "where Prometheus asks for metrics", "9090", bound=True),
    _set("grpc-port", "port", "dapr-grpc-port", "port of the gRPC API", "50001", bound=True),
    _set(
        "sidecar-listen-addresses",
        "text",
        "dapr-listen-addresses",
        "where the API listens, comma separated",
        "127.0.0.1,[::1]",
        bound=True,
    ),
    _does("env", "list", "variables of the gateway, `NAME=VALUE`, comma separated; `envRef` reads them", bound=True),
    _does(
        "env-from-secret",
        "list",
        "the same from Secrets, `NAME=SECRET:KEY` or `NAME=SECRET` for a key of that name",
        bound=True,
    ),
    _does("sidecar-cpu-request", "quantity", "what the gateway asks of a node"),
    _does("sidecar-cpu-limit", "quantity", "the most it gets"),
    _does("sidecar-memory-request", "quantity", "what the gateway asks of a node"),
    _does("sidecar-memory-limit", "quantity", "the most it gets"),
    *_probe("liveness", "whether the process works", "0", "3", "6", "3"),
    *_probe("readiness", "whether everything works, the application included,", "0", "3", "2", "3"),
    _does("sidecar-image", "text", "the gateway's image; one that is called `daprd` is another runtime, and not taken"),
    _does("sidecar-seccomp-profile-type", "text", "`RuntimeDefault`, `Unconfined` or `Localhost`", "RuntimeDefault"),
    _set("max-body-size", "size", "max-body-size", "largest body held in memory", "4Mi"),
    _set("read-buffer-size", "size", "read-buffer-size", "largest header section", "16Ki"),
    _counts("http-max-request-size", "an old name: `max-body-size` in Mi", option=False),
    _counts("http-read-buffer-size", "an old name: `read-buffer-size` in Ki", option=False),
    _set(
        "graceful-shutdown-seconds", "number", "dapr-graceful-shutdown-seconds", "time to finish calls at the end", "5"
    ),
    _set(
        "block-shutdown-duration",
        "duration",
        "dapr-block-shutdown-duration",
        "how long the application may call out after SIGTERM; a native sidecar ends after the application anyway",
    ),
    _does(
        "unix-domain-socket-path",
        "text",
        "folder of the application's containers in which the API's sockets are; then it has no ports",
        bound=True,
    ),
    _does(
        "volume-mounts", "list", "volumes of the pod that the gateway reads, `VOLUME:PATH`, comma separated", bound=True
    ),
    _does("volume-mounts-rw", "list", "those that it writes, too", bound=True),
    _set(
        "disable-builtin-k8s-secret-store",
        "switch",
        "disable-builtin-k8s-secret-store",
        "there is no secret store `kubernetes` of itself",
    ),
    _set(
        "enable-app-health-check",
        "switch",
        "enable-app-health-check",
        "probe the application, and call it only while healthy",
    ),
    _set("app-health-check-path", "text", "app-health-check-path", "what is probed over HTTP", "/healthz"),
    _counts("app-health-probe-interval", "seconds between probes", "5"),
    _counts("app-health-probe-timeout", "milliseconds a probe may take", "500"),
    _counts("app-health-threshold", "failures until it is unhealthy", "3"),
    _set(
        "app-binding-options-timeout",
        "duration",
        "app-binding-options-timeout",
        "how long it may take to say which bindings it wants",
        "3s",
    ),
    _set(
        "disable-init-endpoints",
        "text",
        "disable-init-endpoints",
        "what is not asked of it at start: `config`, `subscribe`",
        bound=True,
    ),
    _does(
        "pluggable-components",
        "list",
        "containers of the pod that are components; the gateway is an ordinary container then, which begins with them",
        bound=True,
    ),
    _does(
        "pluggable-components-sockets-folder",
        "text",
        "where their sockets are, in their containers",
        COMPONENT_FOLDER,
        bound=True,
    ),
    _does(
        "enable-native-sidecar",
        "switch",
        "`false`: an ordinary container, as before Kubernetes 1.29; a Job completes by `POST /v1.0/shutdown` then",
    ),
    _does("mesh.http-port", "port", "port of the HTTP API", "3500", bound=True),
    _does("mesh.public-port", "port", "port of the pod's address that answers for health alone", "3501", bound=True),
    _does("mesh.image", "text", "the gateway's image", "the operator's"),
    _does(
        "mesh.backbone-secret",
        "text",
        "Secret whose key `url` is the broker's URL; where there is none, the operator's broker",
        "mesh-backbone",
        bound=True,
    ),
    _does(
        "mesh.trust-mode",
        "text",
        "`off`, `permissive` or `strict`: what is asked of others",
        "the operator's",
        bound=True,
    ),
    _does(
        "mesh.drain",
        "switch",
        "containers without a `preStop` get one, which waits until the gateway has nothing in flight for them",
        "true",
    ),
    _nothing("enable-profiling", "there is no profiling endpoint"),
    _nothing("enable-debug", "there is no debugger in the image"),
    _nothing("debug-port", "there is no debugger in the image"),
    _nothing("internal-grpc-port", _CALLS),
    _nothing("placement-host-address", _NO_SERVICE),
    _nothing("actors-disseminate-timeout", _NO_SERVICE),
    _nothing("scheduler-host-address", _NO_SERVICE),
    _nothing("sentry-request-jwt-audiences", "the token of a gateway is for the audience `mesh`"),
    _nothing("sidecar-svc-annotations", "no Service is made: " + _CALLS),
    _nothing(
        "inject-pluggable-components", "write the container into the pod, and its name into `pluggable-components`"
    ),
    _nothing("component-container", "write the container into the pod, and its name into `pluggable-components`"),
)
"""All of them: those of the reference under their own names, and ours, which begin with ``mesh.``."""

BY_NAME: Mapping[str, Annotation] = {each.name: each for each in ANNOTATIONS}


def is_enabled(annotations: Mapping[str, str]) -> bool:
    """Tell whether a pod asks for a gateway; raises ``ValueError`` for what is neither yes nor no."""
    return parse_bool(annotations.get(ENABLED) or "false", words=True)


@dataclass(slots=True)
class Values:
    """The values of one pod.

    Attributes:
        given: Of the pod, and behind it what the operator says for all pods.
        problems: What refuses the pod.
        warnings: What does not.
    """

    given: Mapping[str, str]
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def look(self) -> None:
        """Find what is unknown, and what has no effect here."""
        ours = [name for name in sorted(self.given) if name.startswith(_PREFIXES)]
        if len(ours) > len(BY_NAME) + _MAX_UNKNOWN:
            self.problems.append(f"{len(ours)} annotations begin as ours do, and there are only {len(BY_NAME)} of them")
            return
        for name in ours:
            known = BY_NAME.get(name)
            if known is None:
                meant = did_you_mean(name, BY_NAME)
                where = self.problems if meant else self.warnings
                where.append(f"{name}: there is no such annotation" + (f"; did you mean {meant}?" if meant else ""))
            elif known.reason:
                self.warnings.append(f"{name} has no effect: {known.reason}")

    def text(self, name: str) -> str:
        """Give a text, or the default."""
        given = self.given.get(name, "").strip()
        return given or BY_NAME[name].default

    def switch(self, name: str) -> bool | None:
        """Give yes or no; None = nothing is said, and there is no default."""
        text = self.given.get(name, "").strip() or BY_NAME[name].default
        if text not in ("true", "false", ""):
            try:
                return parse_bool(text, words=True)
            except ValueError:
                self.wrong(name, f"'{text}' is neither true nor false")
                text = BY_NAME[name].default
        return None if text not in ("true", "false") else text == "true"

    def number(self, name: str) -> int | None:
        """Give a whole number, of a port one that there is; None = nothing is said, and there is no default."""
        known = BY_NAME[name]
        given, default = self.given.get(name, "").strip(), int(known.default) if known.default else None
        if not given:
            return default
        try:
            if known.kind == "port":
                return parse_whole(given, most=_LARGEST_PORT) or default
            return _whole(given, known)
        except ValueError:
            what = f"a port: 1 to {_LARGEST_PORT}" if known.kind == "port" else "a whole number"
            self.wrong(name, f"'{given}' is not {what}")
            return default

    def checked(self, name: str) -> str:
        """Give what a number, duration, size or quantity says, as it was written; empty = nothing, or it was none."""
        known = BY_NAME[name]
        text = self.given.get(name, "").strip()
        if not text:
            return ""
        try:
            if known.kind == "quantity" and not _QUANTITY.fullmatch(text):
                raise ValueError(f"'{text}' is no quantity such as 100m or 64Mi")
            if known.kind == "duration":
                parse_duration(text, bare="s")
            elif known.kind == "size":
                parse_size(text)
            elif known.kind == "number":
                _whole(text, known)
        except ValueError as error:
            self.wrong(name, str(error))
            return ""
        return text

    def wrong(self, name: str, why: str) -> None:
        """Note a wrong value: it refuses the pod, or its default counts."""
        known = BY_NAME[name]
        text = f"{name}: {why}" if known.bound else f"{name}: {why}; what counts is {known.default or 'nothing'}"
        where = self.problems if known.bound else self.warnings
        if text not in where:  # A value may be read several times.
            where.append(text)


def _whole(text: str, known: Annotation) -> int:
    return parse_whole(text, least=known.least, most=_LARGEST_NUMBER)
