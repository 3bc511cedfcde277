"""``mesh dashboard``: pages that show what there is on the mesh and what flows, for a browser."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import os
import secrets
import socket
import sys
from typing import TYPE_CHECKING

from gateway.cli.configure import gateway_config
from gateway.cli.options import GatewayOptions
from gateway.cli.parsing import Parser
from gateway.cli.serve import serve
from gateway.cli.terminal import note, show
from gateway.cli.version import version
from gateway.config import DashboardConfig, Tokens
from mesh.errors import ConfigError, Problem
from mesh.urls import in_url, is_local

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.config import GatewayConfig

__all__ = ["APP_ID", "PORT", "TOKEN_VARIABLE", "address", "configured", "is_free", "parser", "run"]

APP_ID = "mesh-dashboard"
PORT = 8080
TOKEN_VARIABLE = "MESH_DASHBOARD_TOKEN"
MIN_TOKEN = 16
_NAMES = {"--dapr-http-port": "--port", "--dapr-listen-addresses": "--listen-address"}
_LOOPBACK = ("127.0.0.1", "::1")
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where a local browser reaches it


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh dashboard",
        description="Show the mesh in a browser: what there is, what flows, and what failed.",
        epilog="It is a gateway without an application, and asks the others over the backbone; what they tell is for "
        f"them to say (docs/access.md). The token is a new one each time, unless {TOKEN_VARIABLE} has it.",
    )
    made.add_argument("--port", "-p", type=int, metavar="N", help=f"port of the pages ({PORT}, or a free one)")
    made.add_argument(
        "--listen-address",
        "--address",
        "-a",
        metavar="HOST",
        help="where it listens (this machine alone); elsewhere a token is needed",
    )
    made.add_argument("--no-token", action="store_true", help="let everybody on this machine look")
    made.add_argument("--open", action="store_true", help="open the page in the browser")
    made.add_argument("--traces-url", metavar="URL", help="where a trace is looked at, with {traceId} in it")
    made.add_argument("--resources-path", "-d", action="append", default=[], metavar="PATH", help="its own resources")
    made.add_argument("--config", "-c", action="append", default=[], metavar="FILE", help="configuration file")
    made.add_argument("--app-id", default=APP_ID, metavar="NAME", help=f"its name on the mesh ({APP_ID})")
    made.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error (warning)")
    made.add_argument("--log-as-json", action="store_true", help="one JSON object a line")
    # Of dapr's command.
    made.add_argument("-v", "--version", action="store_true", help=argparse.SUPPRESS)
    made.add_kubernetes("with -k: where it is installed (mesh-system)")
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    if found.version:
        show(version())
        return 0
    if found.kubernetes:
        from gateway.cli import cluster

        return cluster.dashboard(found)
    return serve(configured(found, os.environ))


def configured(found: argparse.Namespace, environ: Mapping[str, str]) -> GatewayConfig:
    """Give the configuration of its gateway.

    Args:
        found: What was given.
        environ: The token, and what other gateways read.

    Raises:
        ConfigError: A value is wrong.
    """
    listens = (found.listen_address,) if found.listen_address else _LOOPBACK
    beyond = not all(map(is_local, listens))
    given = environ.get(TOKEN_VARIABLE) or None
    problems = []
    if found.no_token and beyond:
        problems.append(Problem(f"{listens[0]} is not this machine's alone, so a token is needed", "--no-token"))
    if given is not None and len(given) < MIN_TOKEN:
        problems.append(Problem(f"it is shorter than {MIN_TOKEN} characters", TOKEN_VARIABLE))
    if given is not None and not (given.isascii() and given.isprintable() and given == given.strip()):
        problems.append(Problem("it has characters that no header has", TOKEN_VARIABLE))
    if found.traces_url and "{traceId}" not in found.traces_url:
        problems.append(Problem(f"'{found.traces_url}' has no {{traceId}} in it", "--traces-url"))
    if problems:
        raise ConfigError(problems)
    token = None if found.no_token else given or secrets.token_urlsafe(24)
    options = GatewayOptions(
        app_id=found.app_id,
        resources_path=tuple(found.resources_path),
        config=tuple(found.config),
        dapr_http_port=found.port,
        dapr_listen_addresses=",".join(listens),
        log_level=found.log_level or "warning",
        log_as_json=found.log_as_json,
    )
    config = _checked(options, environ)

    def announce(listening: int) -> None:
        where = address(listens[0], listening, token)
        show(f"Dashboard: {where}")
        sys.stdout.flush()
        if found.open:
            _open(where)

    def usual() -> int:
        return PORT if is_free(PORT, listens) else 0

    tokens = config.tokens
    if beyond and not tokens.guarded:  # The API of its gateway is reached from elsewhere as well.
        tokens = Tokens(token, tokens.app)
    port = usual if found.port is None else None
    own = DashboardConfig(token, found.traces_url or "", announce, port)
    return dataclasses.replace(config, tokens=tokens, dashboard=own)


def _checked(options: GatewayOptions, environ: Mapping[str, str]) -> GatewayConfig:
    """Give the configuration of a gateway; what is wrong is called as this command calls it."""
    try:
        return gateway_config(options, environ, default_http_port=0)
    except ConfigError as error:
        problems = [dataclasses.replace(each, path=_NAMES.get(each.path, each.path)) for each in error.problems]
        raise ConfigError(problems) from None


def address(host: str, port: int, token: str | None) -> str:
    """Give where a local browser finds it."""
    where = f"http://{in_url(_ANY.get(host.strip('[]'), host))}:{port}/dashboard/"
    return where if token is None else f"{where}#token={token}"


def is_free(port: int, hosts: Sequence[str]) -> bool:
    """Tell whether nobody listens on a port of these addresses."""
    for host in hosts:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            with socket.create_server((host.strip("[]"), port), family=family):
                pass
        except OSError as error:
            if error.errno == errno.EADDRINUSE:  # What else is wrong is said by the gateway.
                return False
    return True


def _open(where: str) -> None:
    import webbrowser  # Nobody else has to load it.

    if not webbrowser.open(where):
        note("there is no browser to open it with; open the address above")
