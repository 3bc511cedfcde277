"""Operations of the mesh as activities: what they are called, and what their input may have.

Their names begin with ``mesh.``, whichever worker runs the workflow; `mesh/blocks/workflow_operations.py` does them.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["IDEMPOTENCY_KEY", "MEMBERS", "PREFIX"]

PREFIX = "mesh."
IDEMPOTENCY_KEY = "mesh-idempotency-key"
MEMBERS: Mapping[str, frozenset[str]] = {
    "mesh.invoke": frozenset({"app", "path", "method", "headers", "data"}),
    "mesh.publish": frozenset({"pubsub", "topic", "data", "contentType", "metadata"}),
    "mesh.binding": frozenset({"binding", "command", "data", "metadata"}),
    "mesh.state.get": frozenset({"store", "key", "metadata"}),
    "mesh.state.set": frozenset({"store", "key", "value", "metadata"}),
    "mesh.state.delete": frozenset({"store", "key", "metadata"}),
    "mesh.actor": frozenset({"type", "id", "method", "data"}),
}
