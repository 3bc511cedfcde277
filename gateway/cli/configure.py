"""Options and environment to `GatewayConfig`: checked together, every problem at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.config import (
    APP_PROTOCOLS,
    DEFAULT_BACKBONE,
    AppProtocol,
    GatewayConfig,
    HealthCheck,
    SupplyConfig,
    Tokens,
)
from mesh.address import app_id_problem
from mesh.errors import ConfigError, Problem
from mesh.home import mesh_home
from mesh.supply.names import OPERATOR, SUPPLY_FOLDER, is_resource_name
from mesh.trust.identity import DEFAULT_TRUST_DOMAIN, MODES, Identity, RootSecret, TrustSettings, target_of
from mesh.urls import in_url
from mesh.values import is_host, parse_bool, parse_duration, parse_size, parse_trust_domain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.cli.options import GatewayOptions

__all__ = ["app_protocol", "gateway_config", "split_list", "trust_by"]

_LEVELS = {
    "debug": "debug",
    "info": "info",
    "warn": "warning",
    "warning": "warning",
    "error": "error",
    "fatal": "error",
    "panic": "error",
}
_INIT_ENDPOINTS = frozenset({"config", "subscribe"})
_PROTOCOLS: Mapping[str, AppProtocol] = {name: name for name in APP_PROTOCOLS}
_WITH_TLS: Mapping[AppProtocol, AppProtocol] = {"http": "https", "grpc": "grpcs"}
_LARGEST_PORT = 65535
_DEFAULT = GatewayConfig(app_id="", home=Path())
_HEALTH = HealthCheck()


def app_protocol(text: str) -> AppProtocol:
    """Read the application's protocol.

    Raises:
        ValueError: It is another one.
    """
    known = _PROTOCOLS.get(text.lower())
    if known is None:
        message = f"'{text}' is not supported; use {', '.join(APP_PROTOCOLS[:-1])} or {APP_PROTOCOLS[-1]}"
        raise ValueError(message)
    return known


def split_list(text: str | None) -> tuple[str, ...]:
    """Read a comma separated list."""
    return tuple(part for part in (word.strip() for word in (text or "").split(",")) if part)


@dataclass(slots=True)
class _Checker:
    """Reads values and collects what is wrong with them."""

    problems: list[Problem] = field(default_factory=list)

    def complain(self, name: str, message: str) -> None:
        self.problems.append(Problem(message, name))

    def port(self, name: str, value: int | None) -> int | None:
        """Give a port; 0 and less mean that there is none."""
        if value is None or value <= 0:
            return None
        if value > _LARGEST_PORT:
            self.complain(name, f"{value} is no port; use 1 to {_LARGEST_PORT}")
        return value

    def free_port(self, name: str, value: int | None, *, free: bool) -> int | None:
        """Give a port; 0 = a free one; None = the usual one, unless that is to be free."""
        port = self.port(name, value)
        return 0 if port is None and (free or value is not None) else port

    def hosts(self, name: str, *values: str) -> tuple[str, ...]:
        for value in values:
            if not is_host(value):
                self.complain(name, f"'{value}' is neither an address nor the name of a host")
        return values

    def paths(self, name: str, values: Sequence[str]) -> tuple[Path, ...]:
        """Give paths; an empty one, as of a variable that is not set, would be the current folder."""
        if not all(map(str.strip, values)):
            self.complain(name, "the path is empty; '.' is the current folder")
        return tuple(map(Path, values))

    def positive(self, name: str, value: int | None, default: float) -> float:
        if value is not None and value <= 0:
            self.complain(name, f"expected a number above 0, got {value}")
        return default if value is None else value

    def size(self, name: str, value: str | None, default: int) -> int:
        if value is None:
            return default
        try:
            return parse_size(value)
        except ValueError as error:
            self.complain(name, str(error))
            return default

    def truth(self, name: str, value: str | None) -> bool:
        try:
            return parse_bool(value or "false", words=True)
        except ValueError as error:
            self.complain(name, str(error))
            return False

    def duration(self, name: str, value: str | None, default: float) -> float:
        if value is None:
            return default
        try:
            return parse_duration(value, bare="s")
        except ValueError as error:
            self.complain(name, str(error))
            return default


def gateway_config(
    options: GatewayOptions, environ: Mapping[str, str], *, default_http_port: int = 3500
) -> GatewayConfig:
    """Give the configuration of a gateway process.

    Args:
        options: What was given.
        environ: Tokens, namespace, backbone and home.
        default_http_port: 0 = a free one.

    Raises:
        ConfigError: Holds every problem; its paths are names of options.
    """
    check = _Checker()
    supply = _supply(options, environ, check) if environ.get("MESH_SUPPLY") else None
    files, folders = _given_paths(options, supply)
    config = GatewayConfig(
        app_id=_app_id(options, check),
        home=mesh_home(environ),
        single_host=check.truth("MESH_SINGLE_HOST", environ.get("MESH_SINGLE_HOST")),
        app_port=check.port("--app-port", options.app_port),
        app_host=in_url(check.hosts("--app-channel-address", options.app_channel_address or _DEFAULT.app_host)[0]),
        app_protocol=_protocol(options, check),
        app_max_concurrency=_limit(options.app_max_concurrency),
        app_health=_health(options, check),
        http_port=_http_port(options, check, default_http_port),
        grpc_port=check.free_port("--dapr-grpc-port", options.dapr_grpc_port, free=not default_http_port),
        listen=_listen(options, check),
        metrics=options.enable_metrics,
        metrics_port=check.free_port("--metrics-port", options.metrics_port, free=not default_http_port),
        metrics_listen=_metrics_listen(options, check),
        public_port=check.port("--dapr-public-port", options.dapr_public_port),
        public_listen=_public_listen(options, check),
        drain_key=environ.get("MESH_DRAIN_KEY") or None,
        unix_socket_dir=Path(options.unix_domain_socket).absolute() if options.unix_domain_socket else None,
        max_body_bytes=check.size("--max-body-size", options.max_body_size, _DEFAULT.max_body_bytes),
        max_header_bytes=check.size("--read-buffer-size", options.read_buffer_size, _DEFAULT.max_header_bytes),
        allowed_origins=split_list(options.allowed_origins),
        resource_paths=check.paths("--resources-path", folders),
        configuration_files=check.paths("--config", files),
        namespace=environ.get("NAMESPACE") or "default",
        backbone=environ.get("MESH_BACKBONE") or environ.get("MESH_BACKBONE_DEFAULT") or DEFAULT_BACKBONE,
        backbone_timeout=check.duration("--backbone-timeout", options.backbone_timeout, _DEFAULT.backbone_timeout),
        app_binding_seconds=_binding_seconds(options, check),
        drain=_drain(options),
        outlive=check.duration("--dapr-block-shutdown-duration", options.dapr_block_shutdown_duration, 0.0),
        builtin_secrets=not options.disable_builtin_k8s_secret_store,
        log_level=_level(options, check),
        log_json=options.log_as_json,
        api_logging=options.enable_api_logging,
        trust=_trust(options, environ, check) if supply is None or supply.trust is None else None,
        supply=supply,
        h2c=not check.truth("DAPR_HTTP_DISABLE_H2C", environ.get("DAPR_HTTP_DISABLE_H2C")),
        tokens=_tokens(environ, check),
        init_endpoints_off=_init_endpoints(options, check),
        labels=_labels(options),
    )
    if check.problems:
        raise ConfigError(check.problems)
    return config


def _app_id(options: GatewayOptions, check: _Checker) -> str:
    app_id = options.app_id or ""
    if problem := app_id_problem(app_id):
        check.complain("--app-id", problem)
    return app_id


def _drain(options: GatewayOptions) -> float:
    """Give the seconds; less than none is what nobody has said."""
    given = options.dapr_graceful_shutdown_seconds
    return _DEFAULT.drain if given is None or given < 0 else float(given)


def _http_port(options: GatewayOptions, check: _Checker, default: int) -> int:
    port = check.port("--dapr-http-port", options.dapr_http_port)
    if port is None:
        return default if options.dapr_http_port is None else 0
    return port


def _given_paths(options: GatewayOptions, supply: SupplyConfig | None) -> tuple[Sequence[str], Sequence[str]]:
    """Give the files of Configurations and the folders of resources, but for what an operator will put there."""
    files, folders = options.config, options.resources_path
    if supply is not None:  # What is in its folder is not there yet.
        files = tuple(each for each in files if not _supplied_name(each, supply.folder))
        folders = tuple(each for each in folders if Path(each).absolute() != supply.folder)
    return files, folders


def _tokens(environ: Mapping[str, str], check: _Checker) -> Tokens:
    found = Tokens.from_environment(environ)
    if found.api is not None and found.api_file is not None:
        check.complain("DAPR_API_TOKEN_FILE", "it takes the place of DAPR_API_TOKEN, which is set as well")
    return found


def _level(options: GatewayOptions, check: _Checker) -> str:
    level = _LEVELS.get((options.log_level or "info").lower())
    if level is None:
        check.complain("--log-level", f"'{options.log_level}' is none of debug, info, warning, error")
    return level or "info"


def trust_by(environ: Mapping[str, str]) -> TrustSettings | None:
    """Read how a node without options of its own proves who it is."""
    from gateway.cli.options import GatewayOptions

    return _trust(GatewayOptions(), environ, _Checker())


def _trust(options: GatewayOptions, environ: Mapping[str, str], check: _Checker) -> TrustSettings | None:
    """Read how the node proves who it is; each option has a variable, and goes before it."""
    names = ("mode", "dir", "cert", "key", "roots", "socket", "secret", "domain", "hosts")
    given: dict[str, str] = {
        each: getattr(options, f"trust_{each}") or environ.get(f"MESH_TRUST_{each.upper()}", "") for each in names
    }
    paths = {each: Path(given[each]).expanduser().absolute() if given[each] else None for each in names[1:5]}
    files = [each for each in names[2:5] if paths[each]]
    if files and (len(files) < 3 or paths["dir"]):
        check.complain("--trust-cert", "it goes with --trust-key and --trust-roots, and without --trust-dir")
        return None
    source = files or paths["dir"]
    other = given["socket"] or given["secret"]
    if other and (source or (given["socket"] and given["secret"])):
        named = "--trust-socket" if given["socket"] else "--trust-secret"
        check.complain(named, "of --trust-dir, --trust-cert, --trust-socket and --trust-secret there can be one")
    mode = (given["mode"] or ("strict" if source or other else "off")).lower()
    if mode not in MODES:
        check.complain("--trust-mode", f"'{given['mode']}' is none of {', '.join(MODES)}")
    seal = options.trust_seal or check.truth("MESH_TRUST_SEAL", environ.get("MESH_TRUST_SEAL"))
    if mode not in ("permissive", "strict"):
        if seal and mode == "off":
            check.complain("--trust-seal", "it needs identities: --trust-mode permissive or strict")
        return None
    # The variable of the standard may be there for the application, so by itself it asks for nothing.
    socket = given["socket"] or ("" if source or other else environ.get("SPIFFE_ENDPOINT_SOCKET", ""))
    if socket:
        _check_socket(socket, "--trust-socket" if given["socket"] else "SPIFFE_ENDPOINT_SOCKET", check)
    secret = _root_secret(given["secret"], check) if given["secret"] else None
    folder = None if files or socket or secret else paths["dir"] or mesh_home(environ) / "trust"
    domain = ""  # What the Configuration says.
    try:
        domain = parse_trust_domain(given["domain"]) if given["domain"] else ""
    except ValueError as error:
        check.complain("--trust-domain", str(error))
    hosts = frozenset(split_list(given["hosts"]))
    three = paths["cert"], paths["key"], paths["roots"]
    sources = folder, *three, socket, secret
    return TrustSettings("strict" if mode == "strict" else "permissive", domain, *sources, hosts, seal)


def _supply(options: GatewayOptions, environ: Mapping[str, str], check: _Checker) -> SupplyConfig:
    """Read who gives the gateway its resources; proves itself by what it is given, unless it is told another way."""
    control, folder = environ["MESH_SUPPLY"], Path(environ.get("MESH_SUPPLY_DIR") or SUPPLY_FOLDER).absolute()
    domain = options.trust_domain or environ.get("MESH_TRUST_DOMAIN") or DEFAULT_TRUST_DOMAIN
    try:
        Identity(parse_trust_domain(domain), control, OPERATOR)
    except (ConfigError, ValueError) as error:
        check.complain("MESH_SUPPLY", str(error))
    roots = environ.get("MESH_SUPPLY_ROOTS", "")
    file = environ.get("MESH_SUPPLY_ROOTS_FILE")
    if file and not roots:
        try:
            roots = Path(file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            check.complain("MESH_SUPPLY_ROOTS_FILE", f"{file} cannot be read: {error}")
    elif not roots:
        check.complain(
            "MESH_SUPPLY_ROOTS", "it must say who is trusted as the operator (PEM), or MESH_SUPPLY_ROOTS_FILE"
        )
    named = ("dir", "cert", "key", "roots", "socket", "secret")
    other = any(getattr(options, f"trust_{each}") or environ.get(f"MESH_TRUST_{each.upper()}") for each in named)
    given = {"CERT": "tls.crt", "KEY": "tls.key", "ROOTS": "ca.crt"}
    files = {f"MESH_TRUST_{name}": str(folder / "identity" / file) for name, file in given.items()}
    return SupplyConfig(
        control=control,
        folder=folder,
        token_file=Path(environ.get("MESH_SUPPLY_TOKEN_FILE") or "/var/run/secrets/mesh/token"),
        roots=roots,
        trust_domain=domain.lower(),
        pod=environ.get("POD_NAME") or environ.get("HOSTNAME", ""),
        configurations=tuple(filter(None, (_supplied_name(each, folder) for each in options.config))),
        trust=None if other else _trust(options, {**environ, "MESH_TRUST_DOMAIN": domain, **files}, check),
        identified=bool(options.trust_mode or environ.get("MESH_TRUST_MODE")),
    )


def _supplied_name(config: str, folder: Path) -> str:
    """Give the name of a Configuration that is to be supplied: it, or where it is to be; empty = it is another file."""
    path = Path(config)
    if path.absolute().parent == folder and path.suffix in (".yaml", ".yml"):
        config = path.stem.removeprefix("configuration-")
    return config if is_resource_name(config) else ""


def _root_secret(text: str, check: _Checker) -> RootSecret | None:
    try:
        return RootSecret.parse(text)
    except ValueError as error:
        check.complain("--trust-secret", str(error))
        return None


def _check_socket(address: str, named: str, check: _Checker) -> None:
    try:
        target_of(address)
    except ValueError as error:
        check.complain(named, f"'{address}': {error}")


def _protocol(options: GatewayOptions, check: _Checker) -> AppProtocol:
    try:
        protocol = app_protocol(options.app_protocol or "http")
    except ValueError as error:
        check.complain("--app-protocol", str(error))
        return "http"
    return _WITH_TLS.get(protocol, protocol) if options.app_ssl else protocol


def _listen(options: GatewayOptions, check: _Checker) -> tuple[str, ...]:
    """Read the addresses; daprd takes one of IPv6 in brackets."""
    given = (host.removeprefix("[").removesuffix("]") for host in split_list(options.dapr_listen_addresses))
    return check.hosts("--dapr-listen-addresses", *given) or _DEFAULT.listen


def _metrics_listen(options: GatewayOptions, check: _Checker) -> str:
    given = options.metrics_listen_address or _DEFAULT.metrics_listen
    return check.hosts("--metrics-listen-address", given.removeprefix("[").removesuffix("]"))[0]


def _public_listen(options: GatewayOptions, check: _Checker) -> str:
    given = options.dapr_public_listen_address or _DEFAULT.public_listen
    return check.hosts("--dapr-public-listen-address", given.removeprefix("[").removesuffix("]"))[0]


def _limit(value: int | None) -> int | None:
    return value if value is not None and value > 0 else None


def _health(options: GatewayOptions, check: _Checker) -> HealthCheck | None:
    if not options.enable_app_health_check:
        return None
    interval = check.positive("--app-health-probe-interval", options.app_health_probe_interval, _HEALTH.interval)
    timeout = (
        check.positive("--app-health-probe-timeout", options.app_health_probe_timeout, _HEALTH.timeout * 1000) / 1000
    )
    if timeout >= interval:
        check.complain("--app-health-probe-timeout", "must be shorter than --app-health-probe-interval")
    threshold = check.positive("--app-health-threshold", options.app_health_threshold, _HEALTH.threshold)
    path = options.app_health_check_path or _HEALTH.path
    return HealthCheck(path if path.startswith("/") else f"/{path}", interval, timeout, int(threshold))


def _binding_seconds(options: GatewayOptions, check: _Checker) -> float:
    name = "--app-binding-options-timeout"
    seconds = check.duration(name, options.app_binding_options_timeout, _DEFAULT.app_binding_seconds)
    if seconds <= 0:
        check.complain(name, "must be above 0")
    return seconds


def _init_endpoints(options: GatewayOptions, check: _Checker) -> frozenset[str]:
    names = frozenset(split_list(options.disable_init_endpoints))
    for name in sorted(names - _INIT_ENDPOINTS):
        check.complain("--disable-init-endpoints", f"'{name}' is none of config, subscribe")
    return names


def _labels(options: GatewayOptions) -> dict[str, str]:
    pairs = (label.partition("=") for label in options.label)
    return {key: value for key, _, value in pairs}
