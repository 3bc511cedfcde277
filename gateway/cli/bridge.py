"""``mesh bridge``: joins the meshes of two clusters, each with a backbone of its own."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.configure import gateway_config, split_list
from gateway.cli.options import GatewayOptions
from gateway.cli.parsing import Parser, UsageError
from gateway.cli.serve import serve
from gateway.config import FOR_EVER, BridgeConfig
from mesh.clusters import bridge_of
from mesh.errors import ConfigError, Problem

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from gateway.bridge_file import BridgeFile, SideFile
    from gateway.config import GatewayConfig

__all__ = ["bridge_config", "parser", "run"]

_NEAR, _FAR = "MESH_BACKBONE", "MESH_BRIDGE_TO"
_SIDES = ("from_", "to", "cluster", "peer", "resources_path", "to_resources_path", "trust_dir", "to_trust_dir")


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh bridge",
        description="Join the meshes of two clusters: calls, durable calls and topics, by lists.",
        epilog="An application of the other side is called as APP@CLUSTER, or APP.NAMESPACE@CLUSTER. Several bridges "
        "share the work. docs/bridge.md has the file's fields.",
    )
    made.add_argument("--file", "-f", metavar="FILE", help="both sides and the lists as YAML; changed lists are taken")
    made.add_argument("--from", dest="from_", metavar="URL", help=f"backbone of this side ({_NEAR})")
    made.add_argument("--to", metavar="URL", help=f"backbone of the other side ({_FAR})")
    made.add_argument("--as", dest="cluster", metavar="NAME", help="name of this side's cluster")
    made.add_argument("--peer", metavar="NAME", help="name of the other side's cluster")
    made.add_argument(
        "--apps", action="append", default=[], metavar="LIST", help="who may be called: APP@CLUSTER,…; APP may be '*'"
    )
    made.add_argument(
        "--topics", action="append", default=[], metavar="LIST", help="what is carried: COMPONENT/TOPIC@CLUSTER,…"
    )
    made.add_argument(
        "--resources-path", "-d", action="append", default=[], metavar="PATH", help="resources of this side"
    )
    made.add_argument(
        "--to-resources-path", action="append", default=[], metavar="PATH", help="resources of the other side"
    )
    made.add_argument("--trust-dir", metavar="DIR", help="root of this side, see mesh trust (MESH_TRUST_DIR)")
    made.add_argument("--to-trust-dir", metavar="DIR", help="root of the other side (MESH_TRUST_DIR)")
    made.add_argument("--dapr-http-port", "-H", type=int, metavar="N", help="port of the API, for health (a free one)")
    made.add_argument("--metrics-port", "-M", type=int, metavar="N", help="port of the metrics (a free one)")
    made.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error")
    made.add_argument("--log-as-json", action="store_true", help="one JSON object a line")
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    return serve(bridge_config(parser().parse(words), dict(os.environ)))


def bridge_config(found: argparse.Namespace, environ: dict[str, str]) -> GatewayConfig:
    """Give the configuration of a bridge's process.

    Raises:
        UsageError: Options are missing, or exclude each other.
        ConfigError: A value makes no sense; holds every problem.
    """
    from gateway import bridge_file as files  # With pydantic, which no other command needs.

    file = None if found.file is None else Path(found.file)
    if file is not None:
        if given := [name for name in (*_SIDES, "apps", "topics") if getattr(found, name)]:
            raise UsageError(f"--{_option(given[0])} stands in the file that --file names")
        wanted = files.read_bridge_file(file)
    else:
        if missing := [name for name in ("cluster", "peer") if not getattr(found, name)]:
            raise UsageError(f"--{_option(missing[0])} is missing; or name a file with --file")
        wanted = _from_options(files.BridgeFile, found)
        problems: list[Problem] = []
        files.check_routes(
            wanted.routes,
            (wanted.from_.cluster, wanted.to.cluster),
            lambda field, text: problems.append(Problem(text, f"--{field.partition('[')[0].partition('.')[0]}")),
        )
        if problems:
            raise ConfigError(problems)
    one, other = wanted.from_, wanted.to
    base = Path() if file is None else file.parent
    near = _side(one, bridge_of(other.cluster), base, environ | {"MESH_BACKBONE": environ.get(_NEAR, "")}, found)
    far = _side(other, bridge_of(one.cluster), base, environ | {"MESH_BACKBONE": environ.get(_FAR, "")}, found)
    if not (other.backbone or environ.get(_FAR)):
        raise UsageError("--to is missing: the backbone of the other side")
    if file is None and not (wanted.apps or wanted.topics):
        raise UsageError("--apps or --topics is missing: what the bridge carries")
    own_from, peer_from = ("--from", "--to") if file is None else ("from.backbone", "to.backbone")
    if (near.backbone, near.namespace) == (far.backbone, far.namespace):
        text = f"both sides are one mesh: the namespace {far.namespace} on the same broker; name another one of either"
        raise ConfigError(Problem(text, peer_from, None if file is None else str(file)))
    bridge = BridgeConfig(
        cluster=one.cluster,
        peer_cluster=other.cluster,
        peer=far,
        own_from=own_from if one.backbone else _NEAR,
        peer_from=peer_from if other.backbone else _FAR,
        routes=wanted.routes,
        file=file,
        sides=(one, other),
    )
    return replace(near, bridge=bridge)


def _option(field: str) -> str:
    return {"from_": "from", "cluster": "as"}.get(field, field.replace("_", "-"))


def _from_options(model: type[BridgeFile], found: argparse.Namespace) -> BridgeFile:
    """Read options as the file that would say the same."""
    from pydantic import ValidationError

    def side(cluster: str, backbone: str | None, paths: list[str], root: str | None) -> dict[str, object]:
        given: dict[str, object] = {"cluster": cluster, "backbone": backbone, "resourcesPaths": paths}
        return {**given, "trust": {"dir": root}} if root else given

    data = {
        "from": side(found.cluster, found.from_, found.resources_path, found.trust_dir),
        "to": side(found.peer, found.to, found.to_resources_path, found.to_trust_dir),
        "apps": [each for text in found.apps for each in split_list(text)],
        "topics": [each for text in found.topics for each in split_list(text)],
    }
    try:
        return model.model_validate_json(json.dumps(data))  # Where a list may fill a tuple.
    except ValidationError as error:
        names = {("from", "cluster"): "--as", ("to", "cluster"): "--peer", ("apps",): "--apps", ("topics",): "--topics"}
        problems = []
        for each in error.errors():
            where = tuple(str(part) for part in each["loc"])
            named = names.get(where[:2]) or names.get(where[:1]) or "--" + ".".join(where)
            problems.append(Problem(each["msg"].removeprefix("Value error, "), named))
        raise ConfigError(problems) from None


def _side(
    side: SideFile, app_id: str, base: Path, environ: Mapping[str, str], found: argparse.Namespace
) -> GatewayConfig:
    """Give the configuration of one side's node; what it names is relative to a folder."""
    told = dict(environ)
    if side.backbone:
        told["MESH_BACKBONE"] = side.backbone
    if side.namespace:
        told["NAMESPACE"] = side.namespace
    if side.trust is not None:
        told = {name: text for name, text in told.items() if not name.startswith(("MESH_TRUST_", "SPIFFE_"))}
    from gateway.bridge_file import TrustFile

    trust = side.trust or TrustFile()
    options = GatewayOptions(
        app_id=app_id,
        resources_path=tuple(str(base / each) for each in side.resources_paths),
        config=tuple(str(base / each) for each in side.config),
        dapr_http_port=found.dapr_http_port,
        metrics_port=found.metrics_port,
        log_level=found.log_level,
        log_as_json=found.log_as_json,
        trust_mode=trust.mode,
        trust_dir=_below(base, trust.dir),
        trust_cert=_below(base, trust.cert),
        trust_key=_below(base, trust.key),
        trust_roots=_below(base, trust.roots),
        trust_socket=trust.socket,
        trust_secret=trust.secret,
        trust_domain=trust.domain,
        trust_hosts=",".join(trust.hosts) or None,
        trust_seal=trust.seal,
    )
    return replace(gateway_config(options, told, default_http_port=0), backbone_timeout=FOR_EVER)


def _below(base: Path, path: str | None) -> str | None:
    return None if path is None else str(base / path)
