"""The same fixtures as for the fault tests: a MESH_HOME in which nothing is left running, and a server."""

from tests.faults.conftest import mesh_home, nats_server

__all__ = ["mesh_home", "nats_server"]
