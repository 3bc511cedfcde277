"""``mesh operator``: supplies gateways of a cluster, and gives them to pods; what a cluster itself runs."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

from gateway.cli.configure import gateway_config
from gateway.cli.options import GatewayOptions
from gateway.cli.parsing import Parser
from gateway.cli.platform import load_platform
from gateway.logs import configure_logging
from mesh.errors import ConfigError, Problem
from mesh.values import parse_bool

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["parser", "run"]

APP_ID = "mesh-operator"


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh operator",
        description="Send gateways of a Kubernetes cluster their resources, and add them to pods.",
        epilog="mesh init -k starts it, as a deployment. Any number of them run: one of them leads.",
    )
    made.add_argument("--namespace", metavar="NAME", help="its own (NAMESPACE, or mesh-system)")
    made.add_argument("--backbone", metavar="URL", help="where it meets gateways (MESH_BACKBONE)")
    made.add_argument("--gateway-backbone", metavar="URL", help="what gateways are given, if it is another")
    made.add_argument(
        "--gateway-image", metavar="IMAGE", help="what pods are given; without it, they are given nothing"
    )
    made.add_argument("--gateway-image-pull-policy", metavar="POLICY", help="when it is loaded")
    made.add_argument("--trust-domain", metavar="DOMAIN", default="cluster.local", help="begins identities")
    made.add_argument("--trust-mode", metavar="MODE", default="strict", help="strict, permissive or off (strict)")
    made.add_argument("--identities", metavar="BOOL", default="true", help="whether gateways have certificates (true)")
    made.add_argument("--health-port", type=int, metavar="N", default=8080, help="/healthz and /readyz (8080)")
    made.add_argument("--webhook-port", type=int, metavar="N", default=9443, help="what the API server asks (9443)")
    made.add_argument("--kubeconfig", metavar="FILE", help="how to reach the cluster; a pod knows it")
    made.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error (info)")
    made.add_argument("--log-as-json", action="store_true", help="one JSON object a line")
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    usual = os.environ.get("MESH_BACKBONE_DEFAULT")
    backbone = found.backbone or os.environ.get("MESH_BACKBONE") or usual
    if not backbone:
        raise ConfigError(Problem("an operator meets gateways on a broker: give its URL", "--backbone"))
    platform = load_platform()
    options = {
        "namespace": found.namespace or os.environ.get("NAMESPACE") or platform.namespace,
        "backbone": backbone,
        "gateway_backbone": found.gateway_backbone or usual or backbone,
        "image": found.gateway_image,
        "pull_policy": found.gateway_image_pull_policy or "",
        "trust_domain": found.trust_domain,
        "trust_mode": found.trust_mode,
        "identities": _read(found.identities, "--identities"),
        "name": os.environ.get("POD_NAME") or socket.gethostname(),
        "health_port": found.health_port,
        "webhook_port": found.webhook_port,
        "kubeconfig": found.kubeconfig,
    }
    own = GatewayOptions(app_id=APP_ID, log_level=found.log_level, log_as_json=found.log_as_json)
    configure_logging(gateway_config(own, os.environ, default_http_port=0))
    asyncio.run(platform.operate(options))
    return 0


def _read(text: str, option: str) -> bool:
    try:
        return parse_bool(text)
    except ValueError as error:
        raise ConfigError(Problem(str(error), option)) from None
