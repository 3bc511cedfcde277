"""What metrics are made of: the names that are observed, with their labels in order."""

from __future__ import annotations

from collections.abc import Mapping

from mesh import telemetry

__all__ = [
    "ACTORS",
    "ACTOR_CALLS",
    "ACTOR_TIMERS",
    "BREAKERS",
    "COMPONENTS",
    "DETAILS",
    "ERRORS_TOLD",
    "GATEWAY",
    "GRPC_CALLED",
    "GRPC_SERVED",
    "HTTP_RECEIVED",
    "HTTP_SENT",
    "HTTP_SERVED",
    "OLDEST",
    "OPEN",
    "PROBED",
    "SIZES",
    "SOURCES",
    "TAKEN",
    "WAITING",
]

# Observed by the gateway itself.
HTTP_SERVED = "http_served"
HTTP_RECEIVED = "http_received"
HTTP_SENT = "http_sent"
GRPC_SERVED = "grpc_served"
GRPC_CALLED = "grpc_called"
PROBED = "probed"
ERRORS_TOLD = "errors_told"
# Looked at when somebody asks.
ACTORS = "actors"
ACTOR_TIMERS = "actor_timers"
ACTOR_CALLS = "actor_calls"
BREAKERS = "breakers"
COMPONENTS = "components"
GATEWAY = "gateway"
WAITING = "waiting"
TAKEN = "taken"
OLDEST = "oldest"

SOURCES: Mapping[str, tuple[str, ...]] = {
    telemetry.OPERATIONS: ("block", "method", "target", "outcome", "detail"),
    telemetry.ARRIVALS: ("what", "of", "outcome", "caller", "status"),
    telemetry.BATCHES: ("component", "topic"),
    telemetry.BRIDGED: ("kind", "from", "to", "of", "outcome"),
    telemetry.BROKER_PUBLISHED: ("broker", "kind", "outcome"),
    telemetry.APPLICATION_CALLED: ("verb", "path", "status"),
    telemetry.COMPONENTS_OPENED: ("component", "type", "outcome"),
    telemetry.RESILIENCIES_LOADED: ("resource",),
    telemetry.POLICIES_APPLIED: ("what", "of", "resource", "policy", "status"),
    telemetry.POLICIES_ACTIVATED: ("what", "of", "resource", "policy", "status"),
    telemetry.EVENTS_PUBLISHED: ("component", "topic"),
    telemetry.EVENTS_DELIVERED: ("component", "topic", "outcome"),
    telemetry.EVENTS_DEAD_LETTERED: ("component", "topic"),
    telemetry.EVENTS_DROPPED: ("component", "topic"),
    telemetry.EVENTS_DUPLICATE: ("component", "topic"),
    telemetry.EVENTS_EXPIRED: ("component", "topic"),
    telemetry.DURABLE_CALLS: ("app", "outcome"),
    telemetry.INVOCATIONS_WAITED: ("app",),
    telemetry.ACTOR_TURNS: ("type", "turn", "outcome"),
    telemetry.PROOFS_ASKED: ("what",),
    telemetry.UNPROVEN: ("what", "reason"),
    telemetry.WORKFLOW_EXECUTIONS: ("workflow", "outcome"),
    telemetry.WORKFLOW_BEGINNINGS: ("workflow",),
    telemetry.WORKFLOW_TURNS: ("workflow", "outcome"),
    telemetry.WORKFLOW_ACTIVITIES: ("activity", "outcome"),
    telemetry.WORKFLOW_ACTIVITY_RUNS: ("activity", "outcome"),
    telemetry.WORKFLOW_ACCESS: ("action", "caller", "operation", "kind"),
    telemetry.SIGHTS: ("asker", "outcome"),
    telemetry.SPANS: ("exporter", "outcome"),
    telemetry.ACCESS: ("by", "action", "namespace", "trust_domain"),
    HTTP_SERVED: ("verb", "path", "status"),
    HTTP_RECEIVED: (),
    HTTP_SENT: (),
    GRPC_SERVED: ("rpc", "status"),
    GRPC_CALLED: ("rpc", "status"),
    PROBED: ("protocol", "status"),
    ERRORS_TOLD: ("code", "category"),
    ACTORS: ("type",),
    ACTOR_TIMERS: ("type",),
    ACTOR_CALLS: ("type",),
    BREAKERS: ("what", "of", "resource", "status"),
    COMPONENTS: (),
    GATEWAY: ("version",),
    WAITING: ("component", "topic"),
    TAKEN: ("component", "topic"),
    OLDEST: ("component", "topic"),
}
DETAILS: Mapping[str, int] = {telemetry.OPERATIONS: 1, telemetry.ARRIVALS: 2}
"""How many of these labels, from the end, are details."""
OPEN = frozenset(
    (
        "activity",
        "app",
        "broker",
        "caller",
        "component",
        "detail",
        "of",
        "path",
        "rpc",
        "target",
        "topic",
        "verb",
        "workflow",
    )
)
"""Labels whose values come from outside, so that nothing else bounds them."""
SIZES = frozenset((HTTP_RECEIVED, HTTP_SENT))
"""What is measured in bytes; everything else in milliseconds."""
