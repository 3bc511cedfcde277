"""The file of a bridge: its two sides, and the lists of what it carries."""

# No `from __future__ import annotations`: pydantic reads these annotations at run time.

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict

from mesh.bridge.routes import Routes, TopicRoute, app_of, topic_of
from mesh.clusters import check_cluster
from mesh.errors import BadArgumentError, ConfigError, Problem
from mesh.resources.documents import FileModel, read_documents, validate
from mesh.resources.fields import Name, Parsed, Texts
from mesh.resources.shapes import wire_name

__all__ = ["BridgeFile", "SideFile", "TrustFile", "check_routes", "cluster_name", "read_bridge_file"]


def cluster_name(text: str) -> str:
    """Read a cluster's name; raises ``ValueError``."""
    try:
        check_cluster(text)
    except BadArgumentError as error:
        raise ValueError(str(error)) from None
    return text


def _app(text: str) -> str:
    app_of(text)
    return text


def _topic(value: str | Mapping[str, object]) -> TopicRoute:
    if isinstance(value, str):
        return topic_of(value)
    given = {name: text for name, text in value.items() if isinstance(text, str)}
    if given.keys() != value.keys() or not {"from"} <= given.keys() <= {"from", "to"}:
        raise ValueError("expected 'from' (COMPONENT/TOPIC@CLUSTER) and perhaps 'to' (COMPONENT/TOPIC)")
    return topic_of(given["from"], given.get("to", ""))


Cluster = Annotated[str, Parsed(cluster_name)]
App = Annotated[str, Parsed(_app)]
Topic = Annotated[TopicRoute, Parsed(_topic, (str, dict), "COMPONENT/TOPIC@CLUSTER, or a mapping of from and to")]


class TrustFile(FileModel):
    """How a side proves who it is: the options ``--trust-…`` of a gateway."""

    mode: Literal["off", "permissive", "strict"] | None = None
    dir: Name | None = None
    cert: Name | None = None
    key: Name | None = None
    roots: Name | None = None
    socket: Name | None = None
    secret: Name | None = None
    domain: Name | None = None
    hosts: Texts = ()
    seal: bool = False


class SideFile(FileModel):
    """A side; without a trust section, it is as the environment says."""

    cluster: Cluster
    backbone: Name | None = None
    namespace: Name | None = None
    resources_paths: Texts = ()
    config: Texts = ()
    trust: TrustFile | None = None


class BridgeFile(FileModel):
    """All of it."""

    model_config = ConfigDict(alias_generator=lambda name: wire_name(name.rstrip("_")))

    from_: SideFile
    to: SideFile
    apps: tuple[App, ...] = ()
    topics: tuple[Topic, ...] = ()

    @property
    def routes(self) -> Routes:
        """What is carried."""
        return Routes(self.apps, self.topics)


def check_routes(routes: Routes, clusters: tuple[str, str], complain: Callable[[str, str], None]) -> None:
    """Find what is of no side, or listed twice.

    Args:
        routes: What is carried.
        clusters: The names of the sides.
        complain: Is told a field, and what is wrong with it.
    """
    one, other = clusters
    if one == other:
        complain("to.cluster", f"both sides are called {one}; give each cluster a name of its own")
    for index, app in enumerate(routes.apps):
        if app_of(app).cluster not in clusters:
            complain(f"apps[{index}]", f"{app} is neither in {one} nor in {other}")
    for index, topic in enumerate(routes.topics):
        if topic.cluster not in clusters:
            complain(f"topics[{index}]", f"{topic} is neither in {one} nor in {other}")
        if str(topic) in map(str, routes.topics[:index]):  # Its bridges are one group: each event goes one way.
            complain(f"topics[{index}]", f"{topic} is listed twice; a topic goes to one topic of the other side")


def read_bridge_file(path: Path) -> BridgeFile:
    """Read it.

    Raises:
        ConfigError: It cannot be read, or something is wrong with it; holds every problem.
    """
    problems: list[Problem] = []
    if not path.is_file():
        raise ConfigError([Problem("there is no such file", file=str(path))])
    documents = read_documents(path, problems)
    if not problems and len(documents) != 1:
        problems.append(Problem("expected one document with 'from' and 'to'", file=str(path)))
    if problems:
        raise ConfigError(problems)
    document = documents[0]
    found = validate(document, BridgeFile, problems, [])
    if found is None or problems:
        raise ConfigError(sorted(problems, key=lambda problem: (problem.line or 0, problem.column or 0)))

    def complain(field: str, message: str) -> None:
        name, _, index = field.rstrip("]").partition("[")
        at = (name, int(index)) if index else tuple(field.split("."))
        problems.append(document.problem(message, at))

    check_routes(found.routes, (found.from_.cluster, found.to.cluster), complain)
    if problems:
        raise ConfigError(problems)
    return found
