"""The file model of the multi-app template, ``dapr.yaml``.

Source: Dapr 1.18, the multi-app run template.
"""

# No `from __future__ import annotations`: pydantic reads these annotations at run time.

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, model_validator

from gateway.cli.configure import app_protocol
from mesh.address import app_id_problem
from mesh.resources.documents import Effect, FileModel
from mesh.resources.fields import Count, EnvText, Name, Parsed, ScalarText, Texts, whole_number
from mesh.resources.shapes import wire_name
from mesh.values import parse_size

__all__ = ["App", "Common", "Destination", "Shared", "Template"]

_SPECIAL = {
    "app_id": "appID",
    "app_ssl": "appSSL",
    "dapr_grpc_port": "daprGRPCPort",
    "dapr_http_max_request_size": "daprHTTPMaxRequestSize",
    "dapr_http_port": "daprHTTPPort",
    "dapr_http_read_buffer_size": "daprHTTPReadBufferSize",
    "dapr_internal_grpc_port": "daprInternalGRPCPort",
}
_LARGEST_PORT = 65535


def _name(field: str) -> str:
    return _SPECIAL.get(field) or wire_name(field)


def _size(value: int | str) -> str:
    parse_size(value)
    return str(value)


def _app_id(value: str) -> str:
    if problem := app_id_problem(value):
        raise ValueError(problem)
    return value


def _protocol(value: str) -> str:
    app_protocol(value)
    return value


Port = Annotated[int, whole_number(f"a port from 1 to {_LARGEST_PORT}", -1, _LARGEST_PORT)]
OldSize = Annotated[int, whole_number("a whole number", -1)]
Size = Annotated[str, Parsed(_size, (int, str), "a size such as '4Mi'")]
AppId = Annotated[str, Parsed(_app_id)]
Protocol = Annotated[str, Parsed(_protocol, str, "http, https, h2c, grpc or grpcs")]
AboveZero = Annotated[int, whole_number("a whole number above 0", 1)]
Destination = Literal["file", "console", "fileAndConsole"]
Level = Literal["debug", "info", "warn", "warning", "error", "fatal", "panic"]


class Shared(FileModel):
    """What stands in ``common`` and at each application; the application's value wins.

    The fields of a template repeat each other by its format, so that one model extends the other.
    """

    model_config = ConfigDict(alias_generator=_name)

    config_file_path: Name | None = None
    resources_path: Name | None = None
    resources_paths: Texts = ()
    app_protocol: Protocol | None = None
    api_listen_addresses: str | None = None
    app_max_concurrency: int | None = None
    app_ssl: bool | None = None
    log_level: Level | None = None
    enable_api_logging: bool | None = None
    enable_profiling: bool | None = None
    placement_host_address: str | None = None
    scheduler_host_address: str | None = None
    max_body_size: Size | None = None
    read_buffer_size: Size | None = None
    dapr_http_max_request_size: OldSize | None = None
    dapr_http_read_buffer_size: OldSize | None = None
    enable_app_health_check: bool | None = None
    app_health_check_path: str | None = None
    app_health_probe_interval: AboveZero | None = None
    app_health_probe_timeout: AboveZero | None = None
    app_health_threshold: AboveZero | None = None
    runtime_path: str | None = None
    env: Mapping[str, EnvText] = {}
    daprd_log_destination: Destination | None = None
    app_log_destination: Destination | None = None

    @model_validator(mode="after")
    def _old_sizes(self) -> Self:
        """Read the old names, in MB and KB, where the new ones are not given; -1 is the default."""
        for name, old, unit in (
            ("max_body_size", self.dapr_http_max_request_size, "Mi"),
            ("read_buffer_size", self.dapr_http_read_buffer_size, "Ki"),
        ):
            if getattr(self, name) is None and old is not None and old > 0:
                object.__setattr__(self, name, f"{old}{unit}")
        return self


class Common(Shared):
    """``common``."""


class App(Shared):
    """One application."""

    app_dir_path: Name
    app_id: AppId | None = None
    app_port: Port | None = None
    dapr_http_port: Port | None = None
    dapr_grpc_port: Port | None = None
    dapr_internal_grpc_port: Port | None = None
    profile_port: Port | None = None
    metrics_port: Port | None = None
    app_channel_address: str | None = None
    unix_domain_socket: str | None = None
    command: tuple[ScalarText, ...] = ()
    container_image: str | None = None
    container_image_pull_policy: Literal["Always", "Never", "IfNotPresent"] | None = None
    create_service: bool | None = None


_SERVICES = Effect("it has no effect: there is no such service behind the gateway")
_WITHOUT_EFFECT = {
    "placementHostAddress": _SERVICES,
    "schedulerHostAddress": _SERVICES,
    "daprInternalGRPCPort": Effect("it has no effect: gateways talk over the broker, never to each other"),
    "enableProfiling": Effect("it has no effect: there is no profiling endpoint"),
    "profilePort": Effect("it has no effect: there is no profiling endpoint"),
    "runtimePath": Effect("it has no effect: there is nothing to install"),
}


class Template(FileModel):
    """The whole file."""

    effects: ClassVar = {
        f"{where}.{name}": each for where in ("common", "apps") for name, each in _WITHOUT_EFFECT.items()
    }

    version: Count
    apps: tuple[App, ...]
    name: str | None = None
    common: Common = Common()
