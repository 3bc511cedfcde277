"""The same fixture as for the fault tests: a MESH_HOME in which nothing is left running."""

from tests.faults.conftest import mesh_home

__all__ = ["mesh_home"]
