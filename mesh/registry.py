"""Component types by name: found through entry points, loaded only when named.

A third party's package plugs in the same way as our own adapters: an entry point in the group
``mesh.components`` whose name is the resource's ``type``. A type that no package has may be that of a socket
(``mesh/sockets.py``): what answers for it is an entry point in the group ``mesh.sockets``, named as the type's kind.
What no resource names, since a node needs it before all of them, is in the group ``mesh.identities``.
"""

from __future__ import annotations

import json
from importlib import import_module
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit

from mesh.errors import ConfigError, MissingDependencyError
from mesh.sockets import find_socket, sockets, sockets_told
from mesh.spelling import did_you_mean
from mesh.urls import without_credentials

__all__ = [
    "BACKBONE_TYPES",
    "CONFIGURATION_ON_BACKBONE",
    "LOCK_ON_BACKBONE",
    "PUBSUB_ON_BACKBONE",
    "STATE_ON_BACKBONE",
    "Registry",
    "needs",
]

GROUP = "mesh.components"
SOCKETS_GROUP = "mesh.sockets"
IDENTITIES_GROUP = "mesh.identities"
PUBSUB_ON_BACKBONE = "pubsub.mesh"
STATE_ON_BACKBONE = "state.mesh"
CONFIGURATION_ON_BACKBONE = "configuration.mesh"
LOCK_ON_BACKBONE = "lock.mesh"
# They live in the backbone itself.
BACKBONE_TYPES = frozenset({PUBSUB_ON_BACKBONE, STATE_ON_BACKBONE, CONFIGURATION_ON_BACKBONE, LOCK_ON_BACKBONE})
_STAND_INS = {
    "pubsub": f"{PUBSUB_ON_BACKBONE} takes the place of another broker: it publishes over the mesh's own",
    "state": f"{STATE_ON_BACKBONE} takes the place of a key/value store: it keeps values in the mesh's own broker",
    "configuration": f"{CONFIGURATION_ON_BACKBONE} takes the place of another store: the mesh's own broker keeps it",
    "lock": f"{LOCK_ON_BACKBONE} takes the place of a lock server: the mesh's own broker keeps the locks",
}
EXTRAS = {
    "aiobotocore": "aws",
    "aiokafka": "kafka",
    "aiormq": "rabbitmq",
    "proton": "amqp",
    "pulsar": "pulsar",
    "aiosmtplib": "smtp",
    "apprise": "apprise",
    "asyncssh": "sftp",
    "asyncmy": "mysql",
    "asyncpg": "postgresql",
    "azure": "azure",
    "azure.cosmos": "azure-cosmos",
    "azure.data": "azure-tables",
    "azure.eventhub": "azure-eventhubs",
    "azure.servicebus": "azure-servicebus",
    "azure.storage": "azure-blobs",
    "azure.storage.queue": "azure-queues",
    "botocore": "aws",
    "cassandra": "cassandra",
    "bson": "mongodb",
    "cryptography": "encryption",
    "fastavro": "avro",
    "faststream": "faststream",
    "google": "gcp",
    "grpc": "pluggable",
    "grpc.aio": "spiffe",
    "idna": "smtp",
    "jwt": "jwt",
    "mqtt5": "mqtt",
    "paho": "mqtt",
    "opentelemetry": "telemetry",
    "nkeys": "nkeys",
    "pymongo": "mongodb",
    "pyodbc": "sqlserver",
    "re2": "regex",
    "redis": "redis",
    "sqlalchemy": "sqlite",
    "watchfiles": "files",
}


def needs(what: str, missing: str) -> MissingDependencyError:
    """Make the error for something that needs a module which is not installed; it says what to run."""
    parts = missing.split(".")
    within = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]  # Packages of one vendor may share a name.
    module = next((each for each in within if each in EXTRAS), parts[0])
    package = f"'{_installed_from()}[{EXTRAS[module]}]'" if module in EXTRAS else module
    return MissingDependencyError(f"{what} needs the package {module}; install it with: pip install {package}")


def _installed_from() -> str:
    """Give what pip installs again: the folder it has installed from, if that is still there."""
    # More than one: in a clone what was built there is found as well, and it has no such file.
    for found in distributions(name="brokermesh"):
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        folder = unquote(urlsplit(str(origin.get("url"))).path)
        if "dir_info" in origin and Path(folder, "pyproject.toml").is_file():
            return folder
    return "brokermesh"


class Registry:
    """What is installed."""

    def __init__(self) -> None:
        """Look at nothing yet; the first question reads the entry points."""
        self._entries: dict[str, list[EntryPoint]] | None = None
        self._kinds: dict[str, EntryPoint] | None = None

    def _of_sockets(self) -> dict[str, EntryPoint]:
        """Give what answers for sockets, by kind."""
        if self._kinds is None:
            self._kinds = {entry.name: entry for entry in entry_points(group=SOCKETS_GROUP)}
        return self._kinds

    def _all(self) -> dict[str, list[EntryPoint]]:
        if self._entries is None:
            self._entries = {}
            for entry in entry_points(group=GROUP):
                self._entries.setdefault(entry.name, []).append(entry)
        return self._entries

    def types(self) -> list[str]:
        """List the component types that can be used."""
        return sorted(BACKBONE_TYPES | {name for name in self._all() if not name.startswith("backbone.")})

    def find(self, name: str) -> EntryPoint | None:
        """Find the provider of a type without loading it: a package, or else a socket.

        Raises:
            ConfigError: Two packages provide it, or two sockets.
        """
        found = self._all().get(name, [])
        if len({entry.value for entry in found}) > 1:
            owners = " and ".join(f"{entry.dist.name if entry.dist else '?'} ({entry.value})" for entry in found)
            raise ConfigError(f"component type {name!r} is provided twice: by {owners}; uninstall one")
        if found:
            return found[0]
        entry = self._of_sockets().get(name.partition(".")[0])
        return entry if entry is not None and find_socket(name) is not None else None

    def load(self, name: str, layout: str = "") -> type:
        """Load the adapter class of a type.

        Args:
            name: The type.
            layout: Which of the ways to lay out topics is asked for, where a type has several; what is none of them is
                for its settings to refuse.

        Raises:
            ConfigError: Nobody provides it, or two do.
            MissingDependencyError: It needs a library that is not installed.
        """
        entry = self.find(name)
        if entry is None:
            raise ConfigError(self.not_installed(name))
        try:
            adapter = entry.load()
            if (other := getattr(adapter, "layouts", {}).get(layout.strip().lower())) is not None:
                module, _, name_there = other.partition(":")
                adapter = getattr(import_module(module), name_there)
        except ModuleNotFoundError as error:
            raise needs(name, error.name or "") from error
        return cast("type", adapter)

    def workload_api(self) -> type:
        """Load the client of the SPIFFE Workload API.

        Raises:
            ConfigError: Nobody provides it.
            MissingDependencyError: It needs a library that is not installed.
        """
        try:
            for entry in entry_points(group=IDENTITIES_GROUP, name="spiffe"):
                return cast("type", entry.load())
        except ModuleNotFoundError as error:
            raise needs("the SPIFFE Workload API", "grpc.aio") from error
        raise ConfigError("no installed package speaks the SPIFFE Workload API; install brokermesh again")

    def backbone(self, url: str) -> type:
        """Load the adapter of a backbone's URL.

        Raises:
            ConfigError: No adapter has its scheme.
            MissingDependencyError: It needs a library that is not installed.
        """
        scheme = url.partition(":")[0]
        if self.find(f"backbone.{scheme}") is None:
            schemes = sorted(name.partition(".")[2] for name in self._all() if name.startswith("backbone."))
            shown = without_credentials(url) if "://" in url else f"{scheme}:…"
            raise ConfigError(f"'{shown}' does not begin with the scheme of a broker; these are: {', '.join(schemes)}")
        return self.load(f"backbone.{scheme}")

    def _of_kind(self, name: str) -> list[str]:
        block = name.partition(".")[0]
        return sorted(each for each in {*BACKBONE_TYPES, *self._all()} if each.startswith(f"{block}."))

    def meant(self, name: str) -> str | None:
        """Find the type of which one that is not there is a misspelling."""
        block, _, rest = name.partition(".")
        # What begins alike, as `middleware.http.` does, makes two names look alike that are not.
        alike = [each for each in self._of_kind(name) if _is_close(name.split("."), each.split("."))]
        if meant := did_you_mean(name, alike, 0.8):
            return meant
        plugged = did_you_mean(rest, sockets()) if block in self._of_sockets() else None
        return f"{block}.{plugged}" if plugged else None

    def not_installed(self, name: str) -> str:
        """Say that a type is not there, what may have been meant, and what stands in for it."""
        if meant := self.meant(name):
            return f"there is no component type {name!r}; did you mean {meant!r}?"
        block, same = name.partition(".")[0], ", ".join(self._of_kind(name))
        stand_in = f"; {_STAND_INS[block]}" if block in _STAND_INS else ""
        plugged = sockets_told() if block in self._of_sockets() else ""
        return f"there is no component type {name!r} here; types of this kind: {same or 'none'}{stand_in}{plugged}"


def _is_close(name: list[str], other: list[str]) -> bool:
    while name and other and name[0] == other[0]:
        name, other = name[1:], other[1:]
    return did_you_mean(".".join(name), [".".join(other)]) is not None
