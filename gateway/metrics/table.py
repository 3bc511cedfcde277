"""The one table of metrics: what is observed becomes which metric, with which labels.

Names and labels are the reference's where the meaning is the same, with the prefix ``dapr_``; ours begin with
``mesh_``. Every metric has the label ``app_id`` besides.

Source: Dapr 1.18, its metrics as they are seen on its metrics port.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from gateway.metrics import sources
from mesh import telemetry

__all__ = ["ABSENT", "METRICS", "NAMESPACE", "Metric"]

Kind = Literal["counter", "histogram", "gauge"]
Told = Mapping[str, str]
Label = Callable[[Told], str]

NAMESPACE = "namespace"
"""In ``labels``, this one is the namespace that the user gave, as for the reference."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A row.

    Attributes:
        name: As it is exposed.
        kind: A histogram is of milliseconds, or of bytes; a counter counts how often.
        text: What it tells.
        source: What is observed (`gateway/metrics/sources.py`).
        labels: By name: the source's label, or what makes it of all of them.
        where: Only what has one of these values, by the source's label.
        calls: Whether each measurement counts as one, however many things it was about.
        raw: Whether it is there only with ``http.increasedCardinality``.
    """

    name: str
    kind: Kind
    text: str
    source: str
    labels: Mapping[str, str | Label]
    where: Mapping[str, frozenset[str]]
    calls: bool = False
    raw: bool = False


def _always(value: str) -> Label:
    return lambda told: value


def _success(told: Told) -> str:
    return "true" if told["outcome"] in (telemetry.OK, "success") else "false"


def _component(told: Told) -> str:
    return told["of"].partition("/")[0]


def _topic(told: Told) -> str:
    return told["of"].partition("/")[2] or told["of"]  # It may be told of as others.


def _by_method(names: Mapping[str, str]) -> Label:
    return lambda told: names[told["method"]]


def _answered(told: Told) -> str:
    return told["status"] or told["outcome"]


def _called(told: Told) -> str:
    return told["detail"] or told["outcome"]


_TARGETS = {
    "invocation": "app_{}",
    "event": "pubsub_{}",
    "binding": "binding_{}",
    "change": "configuration_{}",
    "actors": "actor_{}",
    "job": "app_{}",
}
_INBOUND = frozenset(("event", "binding", "change", "durable", "call", "job"))


def _policy_target(told: Told) -> str:
    return _TARGETS.get(told["what"], told["what"] + "_{}").format(_component(told))


def _direction(told: Told) -> str:
    return "inbound" if told["what"] in _INBOUND else "outbound"


def _pair(
    prefix: str,
    text: str,
    source: str,
    labels: Mapping[str, str | Label],
    *,
    suffixes: tuple[str, str] = ("_count", "_latencies"),
    calls: bool = False,
    **where: str | tuple[str, ...],
) -> Iterator[Metric]:
    """Give what counts, and what tells how long it took."""
    only = {name: frozenset((value,) if isinstance(value, str) else value) for name, value in where.items()}
    yield Metric(prefix + suffixes[0], "counter", f"Number of {text}.", source, labels, only, calls=calls)
    yield Metric(prefix + suffixes[1], "histogram", f"Milliseconds taken by {text}.", source, labels, only)


def _one(
    name: str, kind: Kind, text: str, source: str, labels: Mapping[str, str | Label], **where: str | tuple[str, ...]
) -> Metric:
    only = {key: frozenset((value,) if isinstance(value, str) else value) for key, value in where.items()}
    return Metric(name, kind, text, source, labels, only)


_STATE = {
    "get": "get",
    "save": "set",
    "delete": "delete",
    "bulk_get": "bulk_get",
    "query": "query",
    "transact": "transaction",
}
_CONFIGURATION = {"get": "get", "subscribe": "subscribe", "unsubscribe": "unsubscribe"}
_SECRETS = {"get": "get", "bulk": "bulk_get"}
_CRYPTO = dict.fromkeys(("get_key", "encrypt", "decrypt", "wrap_key", "unwrap_key", "sign", "verify"), "crypto_op")
_OF_COMPONENT: Mapping[str, str | Label] = {"component": "target", "namespace": NAMESPACE, "success": _success}
_EGRESS = {**_OF_COMPONENT, "topic": "detail"}
_INGRESS: Mapping[str, str | Label] = {
    "component": _component,
    "namespace": NAMESPACE,
    "topic": _topic,
    "process_status": "outcome",
    "status": "outcome",
}
_BULK_INGRESS: Mapping[str, str | Label] = {
    "component": "component",
    "namespace": NAMESPACE,
    "topic": "topic",
    "process_status": _always(""),
}
_HTTP: Mapping[str, str | Label] = {"method": "verb", "path": "path", "status": "status"}
_POLICY: Mapping[str, str | Label] = {
    "name": "resource",
    "namespace": NAMESPACE,
    "policy": "policy",
    "flow_direction": _direction,
    "target": _policy_target,
    "status": "status",
}


def _components() -> Iterator[Metric]:
    """Give those of operations on components."""
    of, operations = telemetry.OPERATIONS, "operations on a {} component"
    for block, name, names in (
        ("state", "state", _STATE),
        ("configuration", "configuration", _CONFIGURATION),
        ("secrets", "secret", _SECRETS),
        ("crypto", "crypto", _CRYPTO),
    ):
        labels = {**_OF_COMPONENT, "operation": _by_method(names)}
        text = operations.format(name)
        yield from _pair(f"dapr_component_{name}", text, of, labels, block=block, method=tuple(names))
    binding = {**_OF_COMPONENT, "operation": "detail"}
    yield from _pair("dapr_component_output_binding", operations.format("binding"), of, binding, block="bindings")
    conversation = operations.format("conversation")
    yield from _pair("dapr_component_conversation", conversation, of, _OF_COMPONENT, block="conversation")
    pubsub, labels = "dapr_component_pubsub_egress", _EGRESS
    yield from _pair(pubsub, "events published", of, labels, block="pubsub", method="publish")
    bulk = "requests to publish several events"
    yield from _pair(f"{pubsub}_bulk", bulk, of, labels, block="pubsub", method="bulk_publish")
    pubsub, status = "dapr_component_pubsub_ingress", ("success", "retry", "drop")
    attempts = "attempts to hand an event to the application"
    yield from _pair(pubsub, attempts, telemetry.ARRIVALS, _INGRESS, what="event", outcome=status)
    batches = "batches handed to the application"
    yield from _pair(f"{pubsub}_bulk", batches, telemetry.BATCHES, _BULK_INGRESS, calls=True)
    yield _one(
        f"{pubsub}_bulk_event_count", "counter", "Number of events in batches.", telemetry.BATCHES, _BULK_INGRESS
    )
    arriving: Mapping[str, str | Label] = {"component": "of", "namespace": NAMESPACE, "success": _success}
    events = "attempts to hand an event of a binding to the application"
    yield from _pair("dapr_component_input_binding", events, telemetry.ARRIVALS, arriving, what="binding")
    of_job: Mapping[str, str | Label] = {"namespace": NAMESPACE, "operation": _always("job_trigger_op")}
    for name, outcomes in (("success", ("success",)), ("failure", ("retry", "DEADLINE_EXCEEDED"))):
        text = f"Number of jobs that were handed to the application, with {name}."
        yield _one(
            f"dapr_component_job_{name}_count",
            "counter",
            text,
            telemetry.ARRIVALS,
            of_job,
            what="job",
            outcome=outcomes,
        )
    text = "Milliseconds taken by jobs that were handed to the application."
    took = {**of_job, "success": _success}
    yield _one("dapr_component_job_latencies", "histogram", text, telemetry.ARRIVALS, took, what="job")


def _dead_letters() -> Metric:
    """Give what counts a dead letter, which was a ``retry`` before, once more as a ``drop``, as the reference does."""
    labels: Mapping[str, str | Label] = {
        "component": "component",
        "namespace": NAMESPACE,
        "topic": "topic",
        "process_status": _always("drop"),
        "status": _always("drop"),
    }
    name = "dapr_component_pubsub_ingress_count"
    text = "Number of attempts to hand an event to the application."
    return _one(name, "counter", text, telemetry.EVENTS_DEAD_LETTERED, labels)


def _http() -> Iterator[Metric]:
    served, called = sources.HTTP_SERVED, telemetry.APPLICATION_CALLED
    suffixes = ("_request_count", "_latency")
    yield from _pair("dapr_http_server", "requests of the HTTP API", served, _HTTP, suffixes=suffixes)
    text = "Number of answers of the HTTP API."
    yield Metric("dapr_http_server_response_count", "counter", text, served, _HTTP, {}, raw=True)
    sizes = (("request", sources.HTTP_RECEIVED), ("response", sources.HTTP_SENT))
    for what, source in sizes:
        yield _one(f"dapr_http_server_{what}_bytes", "histogram", f"Bytes of the bodies of {what}s.", source, {})
    suffixes = ("_completed_count", "_roundtrip_latency")
    yield from _pair("dapr_http_client", "calls of the application over HTTP", called, _HTTP, suffixes=suffixes)
    probes: Mapping[str, str | Label] = {"status": "status"}
    text = "probes of the application's health"
    yield from _pair(
        "dapr_http_healthprobes", f"{text} over HTTP", sources.PROBED, probes, suffixes=suffixes, protocol="http"
    )
    probes = {"grpc_client_status": "status"}
    yield from _pair(
        "dapr_grpc_io_healthprobes", f"{text} over gRPC", sources.PROBED, probes, suffixes=suffixes, protocol="grpc"
    )
    for side, source, text, took in (
        ("server", sources.GRPC_SERVED, "calls of the gRPC API", "_server_latency"),
        ("client", sources.GRPC_CALLED, "calls of the application over gRPC", "_roundtrip_latency"),
    ):
        labels: Mapping[str, str | Label] = {f"grpc_{side}_method": "rpc", f"grpc_{side}_status": "status"}
        yield from _pair(f"dapr_grpc_io_{side}", text, source, labels, suffixes=("_completed_rpcs", took))


def _runtime() -> Iterator[Metric]:
    prefix = "dapr_runtime_service_invocation"
    calls = telemetry.OPERATIONS
    unary = _always("unary")
    sent: Mapping[str, str | Label] = {"dst_app_id": "target", "type": unary}
    yield _one(
        f"{prefix}_req_sent_total", "counter", "Number of calls of applications.", calls, sent, block="invocation"
    )
    back: Mapping[str, str | Label] = {"src_app_id": "target", "status": _called, "type": unary}
    text = "Number of answers of applications."
    yield _one(f"{prefix}_res_recv_total", "counter", text, calls, back, block="invocation")
    took: Mapping[str, str | Label] = {"src_app_id": "target", "status": _called}
    text = "Milliseconds until an application's answer begins."
    yield _one(f"{prefix}_res_recv_latency_ms", "histogram", text, calls, took, block="invocation")
    came: Mapping[str, str | Label] = {"src_app_id": "caller"}
    text = "Number of calls of this application."
    yield _one(f"{prefix}_req_recv_total", "counter", text, telemetry.ARRIVALS, came, what="call")
    answered: Mapping[str, str | Label] = {"dst_app_id": "caller", "status": _answered}
    text = "Number of answers of this application."
    yield _one(f"{prefix}_res_sent_total", "counter", text, telemetry.ARRIVALS, answered, what="call")
    opened, of_type = telemetry.COMPONENTS_OPENED, {"component": "type"}
    name = "dapr_runtime_component"
    yield _one(f"{name}_loaded", "gauge", "Number of components that are open.", sources.COMPONENTS, {})
    text = "Number of components that were opened."
    yield _one(f"{name}_init_total", "counter", text, opened, of_type, outcome=telemetry.OK)
    failed: Mapping[str, str | Label] = {"component": "type", "componentName": "component", "reason": _always("init")}
    text = "Number of components that could not be opened."
    yield _one(f"{name}_init_fail_total", "counter", text, opened, failed, outcome=telemetry.FAILED)
    applied, acted = telemetry.POLICIES_APPLIED, telemetry.POLICIES_ACTIVATED
    yield _one("dapr_resiliency_count", "counter", "Number of operations under a policy.", applied, _POLICY)
    text = "Number of times that a policy began to act."
    yield _one("dapr_resiliency_activations_total", "counter", text, acted, _POLICY)
    state = {**_POLICY, "policy": _always("circuitbreaker")}
    text = "1 for each state that a circuit breaker of the target has."
    yield _one("dapr_resiliency_cb_state", "gauge", text, sources.BREAKERS, state)
    loaded: Mapping[str, str | Label] = {"name": "resource", "namespace": NAMESPACE}
    text = "Number of times that a Resiliency was loaded."
    yield _one("dapr_resiliency_loaded", "counter", text, telemetry.RESILIENCIES_LOADED, loaded)
    yield from _access()
    told: Mapping[str, str | Label] = {"error_code": "code", "category": "category"}
    yield _one(
        "dapr_error_code_total", "counter", "Number of errors that clients were told.", sources.ERRORS_TOLD, told
    )


def _actors() -> Iterator[Metric]:
    prefix, turns = "dapr_runtime_actor", telemetry.ACTOR_TURNS
    of: Mapping[str, str | Label] = {"actor_type": "type"}
    for kind in ("timer", "reminder"):
        text = f"Number of times that a {kind} of an actor has fired."
        yield _one(f"{prefix}_{kind}s_fired_total", "counter", text, turns, {**of, "success": _success}, turn=kind)
    text = "Number of actors that were deactivated."
    yield _one(f"{prefix}_deactivated_total", "counter", text, turns, of, turn="deactivation", outcome=telemetry.OK)
    yield _one(f"{prefix}_timers", "gauge", "Timers of the actors that are active.", sources.ACTOR_TIMERS, of)
    text = "Calls of actors that run or wait for their turn."
    yield _one(f"{prefix}_pending_actor_calls", "gauge", text, sources.ACTOR_CALLS, of)
    own = {"type": "type", "turn": "turn", "outcome": "outcome"}
    yield from _pair("mesh_actor_turns", "turns of actors", turns, own, suffixes=("_total", "_latencies"))
    yield _one("mesh_actors", "gauge", "Actors that are active.", sources.ACTORS, {"type": "type"})


_WORKFLOWS = {
    "start": "create_workflow",
    "get": "get_workflow",
    "raise_event": "add_event",
    "purge": "purge_workflow",
    "purge_many": "purge_workflow",
}


def _workflows() -> Iterator[Metric]:
    prefix, activity = "dapr_runtime_workflow", "dapr_runtime_workflow_activity"
    executions, runs = ("_execution_count", "_execution_latency"), ("_operation_count", "_operation_latency")
    asked: Mapping[str, str | Label] = {
        "namespace": NAMESPACE,
        "operation": _by_method(_WORKFLOWS),
        "status": lambda told: "success" if told["outcome"] == telemetry.OK else "failed",
    }
    text = "operations on workflows"
    of, methods = telemetry.OPERATIONS, tuple(_WORKFLOWS)
    yield from _pair(prefix, text, of, asked, suffixes=runs, block="workflows", method=methods)
    named: Mapping[str, str | Label] = {"namespace": NAMESPACE, "workflow_name": "workflow"}
    ended, text = {**named, "status": "outcome"}, "workflows that have ended, since their first turn"
    yield from _pair(prefix, text, telemetry.WORKFLOW_EXECUTIONS, ended, suffixes=executions)
    text = "Milliseconds that workflows waited for their first turn, since they were due."
    yield _one(f"{prefix}_scheduling_latency", "histogram", text, telemetry.WORKFLOW_BEGINNINGS, named)
    task: Mapping[str, str | Label] = {"namespace": NAMESPACE, "activity_name": "activity", "status": "outcome"}
    text = "activities that have ended, since they were asked for"
    yield from _pair(activity, text, telemetry.WORKFLOW_ACTIVITIES, task, suffixes=runs)
    text = "attempts at activities, since a worker was given them"
    yield from _pair(activity, text, telemetry.WORKFLOW_ACTIVITY_RUNS, task, suffixes=executions)
    by: Mapping[str, str | Label] = {"src_app_id": "caller", "operation": "operation", "type": "kind"}
    for action in ("allowed", "denied"):
        text = f"Number of times that a workflow access policy has {action} another application something."
        yield _one(f"{prefix}_acl_action_{action}_total", "counter", text, telemetry.WORKFLOW_ACCESS, by, action=action)
    turn: Mapping[str, str | Label] = {"workflow_name": "workflow", "outcome": "outcome"}
    suffixes = ("_total", "_latencies")
    yield from _pair("mesh_workflow_turns", "turns of workflows", telemetry.WORKFLOW_TURNS, turn, suffixes=suffixes)


def _access() -> Iterator[Metric]:
    of: Mapping[str, str | Label] = {"namespace": "namespace", "trustDomain": "trust_domain"}
    for by, decided in (("app", "a policy about their caller"), ("global", "what holds for everybody")):
        for action in ("allowed", "blocked"):
            name, text = (
                f"dapr_runtime_acl_{by}_policy_action_{action}_total",
                f"Number of calls {action} by {decided}.",
            )
            yield _one(name, "counter", text, telemetry.ACCESS, of, by=by, action=action)


def _ours() -> Iterator[Metric]:
    def same(*names: str) -> Mapping[str, str | Label]:
        return {name: name for name in names}

    suffixes = ("_total", "_latencies")
    operation = same("block", "method", "target", "outcome")
    yield from _pair(
        "mesh_operations", "operations of building blocks", telemetry.OPERATIONS, operation, suffixes=suffixes
    )
    arrival = same("what", "of", "outcome")
    yield from _pair("mesh_arrivals", "arrivals for the application", telemetry.ARRIVALS, arrival, suffixes=suffixes)
    publish = same("broker", "kind", "outcome")
    text = "messages given to a broker"
    yield from _pair("mesh_broker_published", text, telemetry.BROKER_PUBLISHED, publish, suffixes=suffixes)
    topic = same("component", "topic")
    for source, text in (
        (telemetry.EVENTS_PUBLISHED, "were stored by a broker"),
        (telemetry.EVENTS_DEAD_LETTERED, "went to a dead letter topic"),
        (telemetry.EVENTS_DROPPED, "were dropped without a dead letter topic"),
        (telemetry.EVENTS_DUPLICATE, "came again and were held back"),
        (telemetry.EVENTS_EXPIRED, "came after their time"),
    ):
        yield _one(f"mesh_{source}_total", "counter", f"Number of events that {text}.", source, topic)
    delivered = same("component", "topic", "outcome")
    text = "Number of attempts that were settled with the broker."
    yield _one("mesh_events_delivered_total", "counter", text, telemetry.EVENTS_DELIVERED, delivered)
    durable: Mapping[str, str | Label] = {"callee": "app", "outcome": "outcome"}
    text = "Number of durable calls that came to an end here."
    yield _one("mesh_durable_calls_total", "counter", text, telemetry.DURABLE_CALLS, durable)
    waited: Mapping[str, str | Label] = {"callee": "app"}
    text = "Number of waits for an application that was away."
    yield _one("mesh_invocations_waited_total", "counter", text, telemetry.INVOCATIONS_WAITED, waited)
    text = "Number of requests, answers, news, events and stored calls whose sender is not proven, or may not send it."
    yield _one("mesh_unproven_total", "counter", text, telemetry.UNPROVEN, same("what", "reason"))
    text = "Number of requests that were to be proven anew (`asked`), and of calls not sealed for that (`downgrade`)."
    yield _one("mesh_proofs_asked_total", "counter", text, telemetry.PROOFS_ASKED, same("what"))
    text = "Number of spans that an exporter has sent, could not send, or left out since too many waited."
    yield _one("mesh_spans_total", "counter", text, telemetry.SPANS, same("exporter", "outcome"))
    text = "Number of sights that a tap of another node was told, or that were left out since they came too fast."
    yield _one("mesh_sights_total", "counter", text, telemetry.SIGHTS, same("asker", "outcome"))
    text, bridged = "Number of things that came to a bridge.", same("kind", "from", "to", "of", "outcome")
    yield _one("mesh_bridged_total", "counter", text, telemetry.BRIDGED, bridged)
    for name, source, text in (
        ("waiting", sources.WAITING, "Events of a subscription that were not handed to an instance yet."),
        ("taken", sources.TAKEN, "Events of a subscription that instances have been handed and that are not settled."),
        ("oldest_seconds", sources.OLDEST, "Age of a subscription's oldest event that is not settled."),
    ):
        yield _one(f"mesh_subscription_{name}", "gauge", text, source, topic)
    yield _one("mesh_gateway_info", "gauge", "1; tells the version.", sources.GATEWAY, same("version"))


METRICS: tuple[Metric, ...] = (
    *_components(),
    _dead_letters(),
    *_http(),
    *_runtime(),
    *_actors(),
    *_workflows(),
    *_ours(),
)

ABSENT: Mapping[str, str] = {
    "dapr_runtime_actor_status_report_*, dapr_runtime_actor_table_operation_*": "there is no placement service",
    "dapr_runtime_actor_rebalanced_total, dapr_runtime_actor_reminders": "the table of owners and the store have both",
    "dapr_runtime_actor_deactivated_failed_total": "`mesh_actor_turns_total` has it, with the outcome",
    "dapr_runtime_workflow_payload_size_ratio, dapr_runtime_workflow_activity_payload_size_ratio": (
        "payloads are not held against the limit of a message of gRPC"
    ),
    "dapr_runtime_workflow_attestation_*": "histories are not signed",
    "dapr_runtime_mtls_*": "there are no connections between gateways that would have certificates",
    "dapr_component_pubsub_egress_bulk_event_count": "the reference does not have it either, although it names it",
    "dapr_http_client_sent_bytes, dapr_http_client_received_bytes": "bodies towards the application are not measured",
    "dapr_grpc_io_*_received_bytes_per_rpc, dapr_grpc_io_*_sent_bytes_per_rpc": "messages of gRPC are not measured",
    "go_*": "it is no program in Go; the process_* are there",
}
"""What the reference has and this gateway has not, and why."""
