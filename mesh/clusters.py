"""Applications of other clusters, and who may speak for them.

``orders@west`` is the application ``orders`` of the cluster ``west``; ``orders.shop@west`` is in a namespace of its own
there. What is asked of it goes to a *bridge*, a node that is on the backbones of both clusters (``mesh/bridge``). Its
app id on one side names the other side: ``mesh-bridge-west`` is who speaks for the applications of ``west``, to those
who call them and in their names, and for no others. So a certificate of that name is all that rules have to ask for.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mesh.errors import BadArgumentError

__all__ = [
    "CALLED_HEADER",
    "Target",
    "at_cluster",
    "bridge_of",
    "bridged_by",
    "check_cluster",
    "cluster_of",
    "may_speak",
    "target_of",
]

CALLED_HEADER = "mesh-called"
MAX_TARGET_BYTES = 256
MAX_CLUSTER = 64
_CLUSTER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BRIDGE = "mesh-bridge-"


class Target(NamedTuple):
    """Who is called.

    Attributes:
        app_id: The application.
        namespace: Where it is; empty = where its caller is, or the bridge to its cluster.
        cluster: Where that is; empty = here.
    """

    app_id: str
    namespace: str
    cluster: str


def target_of(text: str) -> Target:
    """Read ``id``, ``id.namespace``, ``id@cluster`` or ``id.namespace@cluster``.

    Raises:
        BadArgumentError: It is too long, or none of these.
    """
    name, at, cluster = text.partition("@")
    if name.count(".") > 1 or len(text.encode("utf-8", "replace")) > MAX_TARGET_BYTES:
        raise BadArgumentError("invalid app id")
    app_id, _, namespace = name.partition(".")
    if at:
        check_cluster(cluster)
        if not app_id:
            raise BadArgumentError(f"invalid app id: nothing stands before the '@' of '{text}'")
    return Target(app_id, namespace, cluster)


def check_cluster(name: str) -> None:
    """Refuse what can be no cluster's name; raises ``BadArgumentError``."""
    if not _CLUSTER.fullmatch(name):
        text = f"'{name[:MAX_CLUSTER]}' names no cluster: that is letters, digits, '-' and '_', at most {MAX_CLUSTER}"
        raise BadArgumentError(f"{text}, and there is one '@' before it")


def bridge_of(cluster: str) -> str:
    """Give the app id of the bridges to a cluster."""
    return f"{_BRIDGE}{cluster}"


def bridged_by(app_id: str) -> str:
    """Give the cluster to which an app id is that of bridges; empty = it is none of a bridge."""
    return app_id.removeprefix(_BRIDGE) if app_id.startswith(_BRIDGE) else ""


def at_cluster(app_id: str, cluster: str) -> str:
    """Name an application as others than its own cluster do."""
    return f"{app_id}@{cluster}"


def cluster_of(app_id: str) -> str:
    """Give the cluster of an application that is elsewhere; empty = it is here."""
    return app_id.partition("@")[2]


def may_speak(proven: str, app_id: str) -> bool:
    """Tell whether who has proven an app id may speak in the name of another one."""
    cluster = cluster_of(app_id)
    return proven == (bridge_of(cluster) if cluster else app_id)
