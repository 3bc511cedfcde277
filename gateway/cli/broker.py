"""``mesh broker``: what a broker has to allow a gateway."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from gateway.cli.configure import split_list
from gateway.cli.parsing import Parser, UsageError
from gateway.cli.terminal import note, show
from mesh.address import app_id_problem
from mesh.clusters import check_cluster
from mesh.errors import BadArgumentError
from mesh.registry import Registry
from mesh.resources.loader import load_resources
from mesh.rights import ALL, WILD, rights_of
from mesh.scopes import in_scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.rights import Permitting

__all__ = ["parser", "run"]


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh broker",
        description="Print the rights that an application's gateway needs on the broker, and no others.",
        epilog="mesh broker permissions orders --broker nats --resources-path resources",
    )
    made.add_argument("what", choices=("permissions",), metavar="permissions", help="what to do")
    made.add_argument("app_id", metavar="APP-ID", help="the application")
    made.add_argument(
        "-b", "--broker", metavar="BROKER", help="nats, amqp, kafka or redis; as MESH_BACKBONE says if it is not given"
    )
    made.add_argument("-d", "--resources-path", action="append", default=[], metavar="PATH", help="its resources")
    made.add_argument("-n", "--namespace", metavar="NAME", help="of the mesh")
    made.add_argument(
        "--calls", metavar="APP-IDS", help="those that it may call, by commas, an empty text for none; all if not given"
    )
    made.add_argument(
        "--supply",
        metavar="NAMESPACE",
        help="of the operator that gives it resources; as MESH_SUPPLY says if not given",
    )
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    scheme = found.broker or os.environ.get("MESH_BACKBONE", "").partition(":")[0]
    if not scheme:
        raise UsageError("--broker says for which broker, unless MESH_BACKBONE does", "mesh broker")
    adapter = Registry().backbone(f"{scheme}:")
    if not hasattr(adapter, "permissions"):
        raise UsageError(f"--broker: {scheme} has no rights to be given", "mesh broker")
    calls = (ALL,) if found.calls is None else split_list(found.calls)
    problems = ["APP-ID: " + problem] if (problem := _problem(found.app_id)) else []
    problems += [f"--calls: {problem}" for each in calls if each != ALL and (problem := _called_problem(each))]
    if problems:
        raise UsageError(problems[0], "mesh broker")
    components = None
    namespace = found.namespace or os.environ.get("NAMESPACE") or "default"
    if namespace in WILD:
        raise UsageError(f"--namespace: '{namespace}' would be all of them", "mesh broker")
    if found.resources_path:
        paths = [Path(path) for path in found.resources_path]
        loaded = load_resources(paths, namespace=found.namespace, app_id=found.app_id)
        for warning in loaded.warnings:
            note(f"warning: {warning}")
        components = [each for each in loaded.components if in_scope(each.scopes, found.app_id)]
        if wild := next((each for each in components if each.name in WILD), None):
            raise UsageError(f"the component '{wild.name}' would be all of them", "mesh broker")
    control = found.supply or os.environ.get("MESH_SUPPLY", "")
    if control in WILD:
        raise UsageError(f"--supply: '{control}' would be all of them", "mesh broker")
    rights = rights_of(namespace, found.app_id, components, calls, control)
    show(cast("Permitting", adapter).permissions(rights).rstrip("\n"))
    return 0


def _problem(app_id: str) -> str | None:
    return f"'{app_id}' would be all of them" if app_id in WILD else app_id_problem(app_id)


def _called_problem(name: str) -> str | None:
    """Say what is wrong with who may be called: an app id, or applications of another cluster as ``@west``."""
    app_id, at, cluster = name.partition("@")
    if not at:
        return _problem(name)
    try:
        check_cluster(cluster)
    except BadArgumentError as error:
        return str(error)
    return app_id_problem(app_id.partition(".")[0]) if app_id else None
