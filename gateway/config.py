"""What one gateway process is told: options and environment, read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from mesh.trust.identity import TrustSettings

if TYPE_CHECKING:
    from mesh.bridge.routes import Routes

__all__ = [
    "APP_PROTOCOLS",
    "CLOSE_SECONDS",
    "DEFAULT_BACKBONE",
    "GRPC_PORT",
    "METRICS_PORTS",
    "FOR_EVER",
    "ON_GRPC",
    "AppProtocol",
    "BridgeConfig",
    "DashboardConfig",
    "GatewayConfig",
    "HealthCheck",
    "SupplyConfig",
    "Tokens",
    "sharing",
]

MEBIBYTE = 1024 * 1024
DEFAULT_BACKBONE = "embedded:"
GRPC_PORT = 50001
METRICS_PORTS = range(9090, 9190)
"""Tried one after the other, where none was asked for; then any that is free."""
AppProtocol = Literal["http", "https", "h2c", "grpc", "grpcs"]
APP_PROTOCOLS: tuple[AppProtocol, ...] = get_args(AppProtocol)
ON_GRPC: frozenset[AppProtocol] = frozenset(("grpc", "grpcs"))
CLOSE_SECONDS = 5.0
"""What closing connections may take once the time to drain is over; then the process ends without."""
FOR_EVER = 10 * 365 * 24 * 3600.0
"""How long a bridge waits for a backbone at its start, in seconds: what is for it waits at the other one as long."""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """How the application's health is watched.

    Attributes:
        path: Asked with GET; any 2xx is healthy. An application on gRPC has a method for it.
        interval: Seconds between probes.
        timeout: Seconds a probe may take; shorter than ``interval``.
        threshold: Consecutive failures until it counts as unhealthy.
    """

    path: str = "/healthz"
    interval: float = 5.0
    timeout: float = 0.5
    threshold: int = 3


@dataclass(frozen=True, slots=True, repr=False)
class Tokens:
    """Secrets between application and gateway; never shown.

    Attributes:
        api: Clients of the gateway must send it (``DAPR_API_TOKEN``); None admits everyone.
        app: Sent with every call to the application (``APP_API_TOKEN``); None sends nothing.
        api_file: Its lines are in place of ``api``, any of them; it is read again when it changes.
    """

    api: str | None = None
    app: str | None = None
    api_file: Path | None = None

    @property
    def guarded(self) -> bool:
        """Whether clients must know a token."""
        return self.api is not None or self.api_file is not None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Tokens:
        """Read them; an empty variable counts as unset."""
        file = environment.get("DAPR_API_TOKEN_FILE")
        api, app = environment.get("DAPR_API_TOKEN") or None, environment.get("APP_API_TOKEN") or None
        return cls(api, app, Path(file).expanduser().absolute() if file else None)


@dataclass(frozen=True, slots=True)
class DashboardConfig:
    """What the dashboard that a gateway serves is told.

    Attributes:
        token: Who asks for more than the pages' files must send it; None = everybody on this machine may.
        traces_url: Where traces are looked at, with ``{traceId}`` in it; "" = nowhere.
        announce: Is told the port, once it listens.
        port: Gives the port in the place of ``http_port``, at the moment in which it is to listen; None = nothing does.
    """

    token: str | None = field(repr=False)
    traces_url: str = ""
    announce: Callable[[int], None] = lambda _: None
    port: Callable[[], int] | None = None


@dataclass(frozen=True, slots=True)
class SupplyConfig:
    """Who gives a gateway its resources, secrets and certificate (``mesh/supply``).

    Attributes:
        control: The operator's namespace.
        folder: Where that is kept.
        token_file: The token of the pod's service account, which may be replaced there.
        roots: Who is trusted as the operator at first (PEM).
        trust_domain: Of the operator's certificate and the gateway's own.
        pod: The pod's name.
        configurations: Names of Configurations that the gateway is to use; later ones win.
        trust: How it proves who it is by the certificate that it is given; None = it is given none.
        identified: Whether it must not start without one.
    """

    control: str
    folder: Path
    token_file: Path
    roots: str
    trust_domain: str
    pod: str
    configurations: tuple[str, ...] = ()
    trust: TrustSettings | None = None
    identified: bool = False


@dataclass(frozen=True, slots=True)
class BridgeConfig:
    """What a bridge is told (``mesh bridge``).

    Attributes:
        cluster: The cluster of the gateway's own backbone.
        peer_cluster: The other one.
        peer: The node on the other backbone.
        own_from: What the user has named the gateway's own backbone by, for what is said of it.
        peer_from: Likewise, of the other one.
        routes: What is carried.
        file: Where that is read again when it changes; None = nowhere.
        sides: The sides as they were written, to tell whether they are others.
    """

    cluster: str
    peer_cluster: str
    peer: GatewayConfig
    routes: Routes
    own_from: str = ""
    peer_from: str = ""
    file: Path | None = None
    sides: object = None


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Everything a gateway process needs to know.

    Attributes:
        app_id: The application it serves; no dots.
        app_port: Where the application listens; None for one that only calls out.
        app_host: The application's address.
        app_protocol: How it is spoken to; the certificate of ``https`` and ``grpcs`` is not verified.
        app_max_concurrency: Most calls into the application at once; None for no limit.
        app_health: How its health is watched; None not at all.
        app_binding_seconds: How long it may take to say whether it wants the events of a binding.
        http_port: Port of the API; 0 picks a free one.
        grpc_port: Port of the gRPC API; 0 picks a free one, None takes 50001 if that is free.
        listen: Addresses the API listens on.
        metrics: Whether there are any; the Configuration has a say too.
        metrics_port: Where Prometheus asks for them; 0 picks a free one, None takes 9090 or the next that is free.
        metrics_listen: The address of that port.
        public_port: Where others than clients ask for its health, as a kubelet does; None = nowhere.
        public_listen: The address of that port.
        drain_key: Whoever knows it may drain it there (``MESH_DRAIN_KEY``); None = nobody may.
        unix_socket_dir: Listen on ``<dir>/dapr-<app id>-http.socket`` instead of TCP.
        max_body_bytes: Largest body that is held in memory; invocations are streamed and not limited.
        max_header_bytes: Largest header section.
        allowed_origins: CORS origins; empty switches CORS off.
        resource_paths: Files and folders of resources; empty for the built-in defaults.
        configuration_files: Configuration files, later ones win.
        namespace: The mesh's namespace.
        backbone: URL of the backbone; ``embedded:`` for the server this user's gateways share.
        backbone_timeout: Seconds that a backbone which is not there is waited for at start.
        home: ``MESH_HOME``: data of the embedded server and the registry of what runs.
        single_host: ``MESH_SINGLE_HOST``: whether all gateways of the mesh are on this machine.
        drain: Seconds that calls, deliveries and requests in flight may take to finish on shutdown, all together.
        outlive: Seconds after being told to stop in which the application's own calls still work; 0 = none.
        builtin_secrets: Whether in a cluster there is a secret store ``kubernetes`` of itself.
        log_level: ``debug``, ``info``, ``warning`` or ``error``.
        log_json: One JSON object a line.
        api_logging: Whether every API call is logged; None = what the Configuration says.
        trust: How it proves who it is; None = it does not. Without a trust domain, the Configuration says which.
        h2c: Speak HTTP/2 without TLS beside HTTP/1.1 (``DAPR_HTTP_DISABLE_H2C``).
        tokens: Secrets between application and gateway.
        init_endpoints_off: ``config`` and ``subscribe`` switch off reading them from the application.
        labels: Shown in metadata under ``extended`` from the start.
        host_only: It is there to host components (``mesh host``).
        supply: Who gives it resources beside its own; None = nobody.
        dashboard: What its dashboard is told (``mesh dashboard``); None = it serves none.
        bridge: What it joins its backbone to (``mesh bridge``); None = nothing.
        registered: Write an entry to the registry of what runs, for ``mesh list`` and ``mesh stop``.
    """

    app_id: str
    home: Path
    single_host: bool = False
    app_port: int | None = None
    app_host: str = "127.0.0.1"
    app_protocol: AppProtocol = "http"
    app_max_concurrency: int | None = None
    app_health: HealthCheck | None = None
    app_binding_seconds: float = 3.0
    http_port: int = 3500
    grpc_port: int | None = None
    listen: tuple[str, ...] = ("127.0.0.1", "::1")
    metrics: bool = True
    metrics_port: int | None = None
    metrics_listen: str = "127.0.0.1"
    public_port: int | None = None
    public_listen: str = "0.0.0.0"  # noqa: S104 - who asks is elsewhere, and is told no more than how it is
    drain_key: str | None = field(default=None, repr=False)
    unix_socket_dir: Path | None = None
    max_body_bytes: int = 4 * MEBIBYTE
    max_header_bytes: int = 16 * 1024
    allowed_origins: tuple[str, ...] = ()
    resource_paths: tuple[Path, ...] = ()
    configuration_files: tuple[Path, ...] = ()
    namespace: str = "default"
    backbone: str = DEFAULT_BACKBONE
    backbone_timeout: float = 5.0
    drain: float = 5.0
    outlive: float = 0.0
    builtin_secrets: bool = True
    log_level: str = "info"
    log_json: bool = False
    api_logging: bool | None = None
    trust: TrustSettings | None = None
    h2c: bool = True
    tokens: Tokens = field(default_factory=Tokens)
    init_endpoints_off: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    host_only: bool = False
    supply: SupplyConfig | None = None
    dashboard: DashboardConfig | None = None
    bridge: BridgeConfig | None = None
    registered: bool = True

    @property
    def runs_app(self) -> bool:
        """Whether the application ends with the gateway: ``mesh run`` has started both."""
        return "appCommand" in self.labels


def sharing(configs: Sequence[GatewayConfig]) -> list[list[GatewayConfig]]:
    """Give those that are on one port, of the ports that have several."""
    by_port: dict[int, list[GatewayConfig]] = {}
    for each in configs:
        if each.http_port and each.unix_socket_dir is None:
            by_port.setdefault(each.http_port, []).append(each)
    return [group for group in by_port.values() if len(group) > 1]
