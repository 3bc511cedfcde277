"""Every option of a gateway, once: for ``mesh run``, for ``mesh gateway`` and for the template's fields.

`GatewayOptions` holds them as they were given; its fields carry the names that the command lines use.
Only the standard library is imported, since this is part of every cold start.

Source: dapr CLI ``run`` and daprd flags.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "DEPRECATED",
    "FLAGS",
    "IGNORED",
    "NOT_OF_RUN",
    "OLD_SIZES",
    "Flag",
    "GatewayOptions",
    "to_arguments",
]

Kind = Literal["text", "number", "switch", "list"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Flag:
    """One option.

    Attributes:
        names: The long name first, then the short one and old names.
        kind: ``list`` may be given several times.
        help: One line; empty = not shown.
        section: Where the help shows it.
        metavar: What stands for its value in the help.
        to_field: The field of `GatewayOptions`; empty = it is accepted and has no effect.
        on: What a switch is that is not given; None = what a file says, so that off is told apart from that.
    """

    names: tuple[str, ...]
    kind: Kind
    help: str = ""
    section: str = ""
    metavar: str = ""
    to_field: str = ""
    on: bool | None = False


def _option(default: T, kind: Kind, names: str, help: str = "", *, section: str = "", metavar: str = "") -> T:
    on = None if default is None else default is True
    flag = Flag(tuple(names.split()), kind, help, section, metavar, on=on)
    # A dataclass field stands for the value that it will hold.
    return field(default=default, metadata={"flag": flag})


_IDENTITY, _PORTS, _APP = "options", "where the gateway listens", "the application"
_LIMITS, _LOGS, _TRUST = "limits", "logs", "who it proves to be"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """What was given for one gateway; None where nothing was. `gateway.cli.configure` gives it meaning."""

    app_id: str | None = _option(
        None, "text", "--app-id -a", "name of the application", section=_IDENTITY, metavar="NAME"
    )
    resources_path: tuple[str, ...] = _option(
        (),
        "list",
        "--resources-path --components-path -d",
        "file or folder of resources; may be given several times",
        section=_IDENTITY,
        metavar="PATH",
    )
    config: tuple[str, ...] = _option(
        (), "list", "--config -c", "configuration file", section=_IDENTITY, metavar="FILE"
    )

    app_port: int | None = _option(None, "number", "--app-port -p", "where the application listens", section=_APP)
    app_protocol: str | None = _option(
        None, "text", "--app-protocol -P --protocol", "http, https, h2c, grpc or grpcs", section=_APP, metavar="NAME"
    )
    app_channel_address: str | None = _option(
        None, "text", "--app-channel-address", "the application's address (127.0.0.1)", section=_APP, metavar="HOST"
    )
    app_max_concurrency: int | None = _option(
        None, "number", "--app-max-concurrency --max-concurrency", "most calls into it at once", section=_APP
    )
    app_ssl: bool = _option(False, "switch", "--app-ssl", section=_APP)
    enable_app_health_check: bool = _option(
        False, "switch", "--enable-app-health-check", "probe it, and call it only while healthy", section=_APP
    )
    app_health_check_path: str | None = _option(
        None, "text", "--app-health-check-path", "what is probed over HTTP (/healthz)", section=_APP, metavar="PATH"
    )
    app_health_probe_interval: int | None = _option(
        None, "number", "--app-health-probe-interval", "seconds between probes (5)", section=_APP
    )
    app_health_probe_timeout: int | None = _option(
        None, "number", "--app-health-probe-timeout", "milliseconds a probe may take (500)", section=_APP
    )
    app_health_threshold: int | None = _option(
        None, "number", "--app-health-threshold", "failures until it is unhealthy (3)", section=_APP
    )
    app_binding_options_timeout: str | None = _option(
        None,
        "text",
        "--app-binding-options-timeout",
        "how long it may take to say which bindings it wants (3s)",
        section=_APP,
        metavar="DURATION",
    )
    disable_init_endpoints: str | None = _option(
        None,
        "text",
        "--disable-init-endpoints",
        "what is not asked of it at start: config, subscribe",
        section=_APP,
        metavar="NAMES",
    )

    dapr_http_port: int | None = _option(
        None, "number", "--dapr-http-port -H --port", "port of the API (a free one)", section=_PORTS
    )
    dapr_grpc_port: int | None = _option(
        None,
        "number",
        "--dapr-grpc-port -G --grpc-port",
        "port of the gRPC API (a free one)",
        section=_PORTS,
    )
    dapr_listen_addresses: str | None = _option(
        None, "text", "--dapr-listen-addresses", "comma separated (127.0.0.1,::1)", section=_PORTS, metavar="HOSTS"
    )
    unix_domain_socket: str | None = _option(
        None, "text", "--unix-domain-socket -u", "use a socket in this folder, no port", section=_PORTS, metavar="DIR"
    )
    metrics_port: int | None = _option(
        None, "number", "--metrics-port -M", "port of the metrics (a free one)", section=_PORTS
    )
    enable_metrics: bool = _option(True, "switch", "--enable-metrics", section=_PORTS)
    metrics_listen_address: str | None = _option(
        None, "text", "--metrics-listen-address", section=_PORTS, metavar="HOST"
    )
    dapr_public_port: int | None = _option(
        None, "number", "--dapr-public-port", "port that answers for health alone (none)", section=_PORTS
    )
    dapr_public_listen_address: str | None = _option(
        None,
        "text",
        "--dapr-public-listen-address",
        "the address of that port (0.0.0.0)",
        section=_PORTS,
        metavar="HOST",
    )

    max_body_size: str | None = _option(
        None, "text", "--max-body-size", "largest body held in memory (4Mi)", section=_LIMITS, metavar="SIZE"
    )
    read_buffer_size: str | None = _option(
        None, "text", "--read-buffer-size", "largest header section (16Ki)", section=_LIMITS, metavar="SIZE"
    )
    allowed_origins: str | None = _option(
        None, "text", "--allowed-origins", "CORS origins, comma separated", section=_LIMITS, metavar="URLS"
    )
    backbone_timeout: str | None = _option(
        None,
        "text",
        "--backbone-timeout",
        "how long a broker is waited for at start (5s)",
        section=_LIMITS,
        metavar="TIME",
    )
    dapr_graceful_shutdown_seconds: int | None = _option(
        None, "number", "--dapr-graceful-shutdown-seconds", "time to finish calls at the end (5)", section=_LIMITS
    )
    dapr_block_shutdown_duration: str | None = _option(
        None,
        "text",
        "--dapr-block-shutdown-duration",
        "how long the application may still call out at the end (0)",
        section=_LIMITS,
        metavar="DURATION",
    )
    disable_builtin_k8s_secret_store: bool = _option(
        False,
        "switch",
        "--disable-builtin-k8s-secret-store",
        "in a cluster, there is no secret store kubernetes of itself",
        section=_APP,
    )

    trust_mode: str | None = _option(
        None,
        "text",
        "--trust-mode",
        "off, permissive or strict: what is asked of others (MESH_TRUST_MODE)",
        section=_TRUST,
        metavar="MODE",
    )
    trust_dir: str | None = _option(
        None, "text", "--trust-dir", "folder of a root, see mesh trust (MESH_TRUST_DIR)", section=_TRUST, metavar="DIR"
    )
    trust_cert: str | None = _option(
        None, "text", "--trust-cert", "certificate chain, PEM (MESH_TRUST_CERT)", section=_TRUST, metavar="FILE"
    )
    trust_key: str | None = _option(
        None, "text", "--trust-key", "its private key, PEM (MESH_TRUST_KEY)", section=_TRUST, metavar="FILE"
    )
    trust_roots: str | None = _option(
        None, "text", "--trust-roots", "who is trusted, PEM (MESH_TRUST_ROOTS)", section=_TRUST, metavar="FILE"
    )
    trust_socket: str | None = _option(
        None,
        "text",
        "--trust-socket",
        "SPIFFE Workload API: unix:///path or tcp://address:port (MESH_TRUST_SOCKET)",
        section=_TRUST,
        metavar="URL",
    )
    trust_secret: str | None = _option(
        None,
        "text",
        "--trust-secret",
        "root in a secret store of the resources (MESH_TRUST_SECRET)",
        section=_TRUST,
        metavar="STORE/NAME",
    )
    trust_domain: str | None = _option(
        None, "text", "--trust-domain", "whose names count (MESH_TRUST_DOMAIN; public)", section=_TRUST, metavar="NAME"
    )
    trust_hosts: str | None = _option(
        None,
        "text",
        "--trust-hosts",
        "app ids that may answer for components, comma separated (MESH_TRUST_HOSTS; all)",
        section=_TRUST,
        metavar="NAMES",
    )
    trust_seal: bool = _option(
        False,
        "switch",
        "--trust-seal",
        "encrypt calls, so that the broker reads nothing (MESH_TRUST_SEAL)",
        section=_TRUST,
    )

    log_level: str | None = _option(
        None, "text", "--log-level", "debug, info, warning or error", section=_LOGS, metavar="LEVEL"
    )
    log_as_json: bool = _option(False, "switch", "--log-as-json", "one JSON object a line", section=_LOGS)
    enable_api_logging: bool | None = _option(
        None, "switch", "--enable-api-logging", "log every API call; =false none, whatever a file says", section=_LOGS
    )

    label: tuple[str, ...] = _option((), "list", "--label", section=_IDENTITY)


def _flags() -> Iterator[Flag]:
    for each in fields(GatewayOptions):
        flag: Flag = each.metadata["flag"]
        yield Flag(flag.names, flag.kind, flag.help, flag.section, flag.metavar or "N", each.name, flag.on)


FLAGS: tuple[Flag, ...] = tuple(_flags())
"""Every option that has an effect."""

_NO_DIRECT = "gateways talk over the broker, never to each other"
_NO_SERVICE = "there is no such service behind the gateway"

IGNORED: Mapping[str, tuple[Flag, str]] = {
    name: (flag, reason)
    for flag, reason in (
        (Flag(("--dapr-internal-grpc-port", "-I"), "text"), _NO_DIRECT),
        (Flag(("--dapr-internal-grpc-listen-address",), "text"), _NO_DIRECT),
        (Flag(("--placement-host-address",), "text"), _NO_SERVICE),
        (Flag(("--scheduler-host-address",), "text"), _NO_SERVICE),
        (Flag(("--scheduler-job-streams",), "text"), _NO_SERVICE),
        (Flag(("--actors-disseminate-timeout",), "text"), _NO_SERVICE),
        (Flag(("--control-plane-address",), "text"), _NO_SERVICE),
        (Flag(("--control-plane-trust-domain",), "text"), _NO_SERVICE),
        (Flag(("--control-plane-namespace",), "text"), _NO_SERVICE),
        (Flag(("--sentry-address",), "text"), _NO_SERVICE),
        (Flag(("--sentry-request-jwt-audiences",), "text"), _NO_SERVICE),
        (Flag(("--enable-mtls",), "switch"), _NO_DIRECT),
        (Flag(("--enable-profiling",), "switch"), "there is no profiling endpoint"),
        (Flag(("--profile-port",), "text"), "there is no profiling endpoint"),
        (Flag(("--hot-reload-reconcile-interval",), "text"), "resource files are looked at every second"),
        (Flag(("--runtime-path", "--dapr-path"), "text"), "there is no runtime that would have to be found"),
        (Flag(("--mode",), "text"), "there is one mode"),
        (Flag(("--wait",), "switch"), "a gateway does not wait for others"),
    )
    for name in flag.names
}
"""Options of daprd that have nothing to act on here, by every name, and why."""

OLD_SIZES: Mapping[str, tuple[str, str]] = {
    "--dapr-http-max-request-size": ("max_body_size", "Mi"),
    "--dapr-http-read-buffer-size": ("read_buffer_size", "Ki"),
}
"""Old names of sizes that take a number: the field of `GatewayOptions`, and the unit."""

DEPRECATED: Mapping[str, str] = {
    "--app-ssl": "--app-protocol https or grpcs",
    "--components-path": "--resources-path",
    "--dapr-http-max-request-size": "--max-body-size, such as 16Mi",
    "--dapr-http-read-buffer-size": "--read-buffer-size, such as 64Ki",
    "--dapr-path": "--runtime-path",
    "--grpc-port": "--dapr-grpc-port",
    "--max-concurrency": "--app-max-concurrency",
    "--payload": "--data",
    "--port": "--dapr-http-port",
    "--protocol": "--app-protocol",
}
"""Old names, and what to write instead."""

NOT_OF_RUN = frozenset(
    (
        "--actors-disseminate-timeout",
        "--allowed-origins",
        "--backbone-timeout",
        "--control-plane-address",
        "--control-plane-namespace",
        "--control-plane-trust-domain",
        "--dapr-block-shutdown-duration",
        "--dapr-public-listen-address",
        "--dapr-public-port",
        "--dashboard",
        "--disable-builtin-k8s-secret-store",
        "--disable-init-endpoints",
        "--enable-metrics",
        "--enable-mtls",
        "--hot-reload-reconcile-interval",
        "--label",
        "--metrics-listen-address",
        "--mode",
        "--scheduler-job-streams",
        "--trust-cert",
        "--trust-dir",
        "--trust-domain",
        "--trust-hosts",
        "--trust-key",
        "--trust-mode",
        "--trust-roots",
        "--trust-seal",
        "--trust-secret",
        "--trust-socket",
        "--sentry-address",
        "--sentry-request-jwt-audiences",
        "--wait",
    )
)
"""What ``dapr run`` does not know: within a command, these are the application's."""


def to_arguments(options: GatewayOptions) -> list[str]:
    """Write options as the command line of ``mesh gateway``."""
    words: list[str] = []
    for flag in FLAGS:
        value = getattr(options, flag.to_field)
        name = flag.names[0]
        if flag.kind == "switch":
            words += [] if value == flag.on else [name if value else f"{name}=false"]
        elif flag.kind == "list":
            words += [f"{name}={item}" for item in value]
        elif value is not None:
            words.append(f"{name}={value}")
    return words
