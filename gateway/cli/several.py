"""``mesh gateway --app a=3000 --app b=3001``, or ``--apps FILE``: the applications of one process, checked together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gateway.cli.configure import gateway_config
from gateway.cli.options import FLAGS, Flag, GatewayOptions
from gateway.config import sharing
from mesh.errors import ConfigError, Problem
from mesh.spelling import did_you_mean
from mesh.values import parse_bool, parse_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.config import GatewayConfig

__all__ = ["several"]

MAX_APPS = 1000
HTTP_PORT, GRPC_PORT = 3500, 50001
LARGEST_PORT = 65535
_SHORT = {"http-port": "--dapr-http-port", "grpc-port": "--dapr-grpc-port", "protocol": "--app-protocol"}
_VARIABLES = {
    "api-token-file": "DAPR_API_TOKEN_FILE",
    "backbone": "MESH_BACKBONE",
    "namespace": "NAMESPACE",
}
"""What a gateway by itself reads from its environment."""
# These are the process's, not one application's.
_OF_ALL = frozenset(
    {
        "app_id",
        "app_port",
        "enable_metrics",
        "label",
        "log_as_json",
        "log_level",
        "metrics_listen_address",
        "metrics_port",
    }
)
_FLAGS: Mapping[str, Flag] = {flag.names[0][2:]: flag for flag in FLAGS if flag.to_field not in _OF_ALL}


@dataclass(slots=True)
class _App:
    """One application, as it was given."""

    where: str
    options: GatewayOptions
    environ: dict[str, str] = field(default_factory=dict)


def several(
    words: Sequence[str], file: str | None, common: GatewayOptions, environ: Mapping[str, str], warnings: list[str]
) -> list[GatewayConfig]:
    """Give the configurations of all applications.

    Args:
        words: What was given with ``--app``: ``ID[=PORT][,NAME=VALUE…]``.
        file: A multi-app template, whose commands are not started; None = there is none.
        common: Options that count for all.
        environ: As of one gateway.
        warnings: Gets what has no effect.

    Raises:
        ConfigError: Holds every problem.
    """
    problems: list[Problem] = []
    if common.app_id is not None or common.app_port is not None:
        problems.append(Problem("with --app, each has its id and port there", "--app-id"))
    if environ.get("MESH_SUPPLY"):
        problems.append(
            Problem("an operator gives one application what it needs; start a gateway for each", "MESH_SUPPLY")
        )
    own = replace(common, dapr_http_port=None, dapr_grpc_port=None)
    apps = [_app(each, own, problems) for each in words]
    if file is not None:
        apps += _of_file(file, own, environ, warnings)
    if not apps and not problems:
        problems.append(Problem("there is no application in it", "--apps"))
    if len(apps) > MAX_APPS:
        problems.append(Problem(f"there are {len(apps)}, and one process has {MAX_APPS} at most", "--app"))
    if problems:
        raise ConfigError(problems)
    configs = []
    for each in _with_ports(apps, common):
        try:
            configs.append(gateway_config(each.options, {**environ, **each.environ}))
        except ConfigError as error:
            problems += [replace(problem, path=f"{each.where}: {problem.path}") for problem in error.problems]
    problems = problems or _apart(configs)
    if problems:
        raise ConfigError(problems)
    return configs


def _app(word: str, common: GatewayOptions, problems: list[Problem]) -> _App:
    """Read what was given with ``--app``."""
    first, *rest = word.split(",")
    app_id, _, port = first.partition("=")
    where = f"--app {app_id}"
    made = _App(where, replace(common, app_id=app_id, app_port=_number(port, where, "the port", problems)))
    for pair in rest:
        name, equals, value = pair.partition("=")
        flag = _FLAGS.get(_SHORT.get(name, f"--{name}")[2:])
        if name in _VARIABLES:
            made.environ[_VARIABLES[name]] = value
        elif flag is None:
            problems.append(Problem(f"there is no option '{name}' of one application{_instead(name)}", where))
        elif not equals and flag.kind != "switch":
            problems.append(Problem(f"{name} needs a value, as in {name}=…", where))
        else:
            given: dict[str, Any] = {flag.to_field: _value(flag, value, made.options, where, problems)}
            made.options = replace(made.options, **given)
    return made


def _instead(name: str) -> str:
    """Say what was meant, perhaps, by an option that is none of one application."""
    if name in ("app-id", "app-port"):
        return "; both stand before the first comma: ID=PORT"
    if name == "workers" or name.replace("-", "_") in _OF_ALL:
        return f"; it counts for all: --{name} stands beside --app"
    meant = did_you_mean(name, (*_FLAGS, *_SHORT, *_VARIABLES))
    return f"; did you mean {meant}?" if meant else ""


def _value(flag: Flag, text: str, options: GatewayOptions, where: str, problems: list[Problem]) -> object:
    if flag.kind == "number":
        return _number(text, where, flag.names[0][2:], problems)
    if flag.kind == "list":
        return (*getattr(options, flag.to_field), text)
    if flag.kind == "switch":
        try:
            return parse_bool(text or "true")
        except ValueError as error:
            problems.append(Problem(f"{flag.names[0][2:]}: {error}", where))
    return text


def _number(text: str, where: str, name: str, problems: list[Problem]) -> int | None:
    try:
        return parse_whole(text, least=-1) if text else None
    except ValueError as error:
        problems.append(Problem(f"{name} is {error}", where))
        return None


def _of_file(file: str, common: GatewayOptions, environ: Mapping[str, str], warnings: list[str]) -> list[_App]:
    """Read a multi-app template: the same file as of ``mesh run -f``."""
    from gateway.cli.template import load_template, read_template, template_path

    path, found = template_path(file), list[Problem]()
    (document,) = read_template(path)
    apps = []
    for spec in load_template(document, path, environ, found):
        given = {flag.to_field: getattr(spec.options, flag.to_field) for flag in FLAGS}
        defaults = {flag.to_field: getattr(GatewayOptions(), flag.to_field) for flag in FLAGS}
        own = {name: value for name, value in given.items() if value != defaults[name] and name not in _OF_ALL}
        own |= {"app_id": spec.options.app_id, "app_port": spec.options.app_port}
        apps.append(_App(f"{file}: {spec.app_id}", replace(common, **own), dict(spec.environment)))
    warnings += [str(each) for each in found if "cannot be started" not in each.message]
    return apps


def _with_ports(apps: Sequence[_App], common: GatewayOptions) -> list[_App]:
    """Give each the ports that it is not told: one after the other, and those of one port the same for gRPC."""
    http, grpc = common.dapr_http_port, common.dapr_grpc_port
    shared: dict[int, int | None] = {}
    found = []
    for index, each in enumerate(apps):
        own = each.options
        if own.unix_domain_socket is not None:
            found.append(each)
            continue
        own_http, own_grpc = own.dapr_http_port, own.dapr_grpc_port
        if own_http is None:
            own_http = _following(HTTP_PORT if http is None else http, index)
        elif own_grpc is None and own_http in shared:
            own_grpc = shared[own_http]
        if own_grpc is None:
            own_grpc = _following(GRPC_PORT if grpc is None else grpc, index)
        shared.setdefault(own_http, own_grpc)
        found.append(replace(each, options=replace(own, dapr_http_port=own_http, dapr_grpc_port=own_grpc)))
    return found


def _following(first: int, index: int) -> int:
    return min(first + index, LARGEST_PORT) if first > 0 else 0


def _apart(configs: Sequence[GatewayConfig]) -> list[Problem]:
    """Refuse what two applications cannot have both."""
    problems = []
    ids = Counter(each.app_id for each in configs)
    for app_id, times in ids.items():
        if times > 1:
            text = f"{app_id} is there {times} times; instances of one application have a process each"
            problems.append(Problem(text, "--app"))
    on_one = sharing(configs)
    for group in on_one:
        port, first = group[0].http_port, group[0]
        tokens: set[object] = set()
        for each in group:
            own = each.tokens.api or each.tokens.api_file
            if own is None or own in tokens:
                text = f"{each.app_id} is on port {port} beside others, and needs an API token that none of these has"
                problems.append(Problem(f"{text}: api-token-file=FILE", f"--app {each.app_id}"))
            tokens.add(own)
            if (each.grpc_port, each.listen) != (first.grpc_port, first.listen):
                text = (
                    f"{each.app_id} and {first.app_id} share port {port}, so gRPC port and addresses are the same too"
                )
                problems.append(Problem(text, f"--app {each.app_id}"))
    alone = {each.app_id for group in on_one for each in group[1:]}
    on_ports = [each for each in configs if each.unix_socket_dir is None and each.app_id not in alone]
    ports = Counter(port for each in on_ports for port in (each.http_port, each.grpc_port) if port)
    for each in on_ports:
        problems += [
            Problem(f"port {port} is used {ports[port]} times", f"--app {each.app_id}")
            for port in {each.http_port, each.grpc_port}
            if port and ports[port] > 1
        ]
    return problems
