"""One Kubernetes for all tests of this folder, which one process runs one after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kubernetes.node import LocalCluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """A node of our own that runs pods; nothing of it is left afterwards."""
    # Not below pytest's own folder: paths of sockets are short.
    folder = tempfile.TemporaryDirectory(prefix="mesh-k8s-", dir="/var/tmp", ignore_cleanup_errors=True)
    with folder as made, LocalCluster(Path(made)) as cluster:
        yield cluster
