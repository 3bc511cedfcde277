"""``mesh host``: a node that only hosts components, so that gateways need neither drivers nor passwords."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from gateway.cli.configure import gateway_config
from gateway.cli.options import GatewayOptions
from gateway.cli.parsing import Parser
from gateway.cli.serve import serve

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["parser", "run"]

APP_ID = "mesh-host"


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh host",
        description="Open the components of resource files and answer for them on the mesh; run no application.",
        epilog="Components are answered for within their scopes. Those bound to a machine, such as files, need the "
        "annotation mesh.placement: backbone. Several hosts of equal settings share the work.",
    )
    made.add_argument(
        "--resources-path", "-d", action="append", required=True, metavar="PATH", help="file or folder of resources"
    )
    made.add_argument("--config", "-c", action="append", default=[], metavar="FILE", help="configuration file")
    made.add_argument("--app-id", "-a", default=APP_ID, metavar="NAME", help=f"name of the host ({APP_ID})")
    made.add_argument("--dapr-http-port", "-H", type=int, metavar="N", help="port of the API, for health (a free one)")
    made.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error")
    made.add_argument("--log-as-json", action="store_true", help="one JSON object a line")
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    options = GatewayOptions(
        app_id=found.app_id,
        resources_path=tuple(found.resources_path),
        config=tuple(found.config),
        dapr_http_port=found.dapr_http_port,
        log_level=found.log_level,
        log_as_json=found.log_as_json,
    )
    config = gateway_config(options, os.environ, default_http_port=0)
    return serve(dataclasses.replace(config, host_only=True))
