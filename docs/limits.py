"""The tables of docs/limits.md: every default limit, with its number as the code has it.

A row says what is limited, the number, what sets another one, and what one sees who meets it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bindings import local
from bindings.middleware.oauth2 import MAX_SESSIONS
from bindings.middleware.ratelimit import MAX_CLIENTS
from bindings.redis._settings import RedisSettings
from bindings.redis.configuration import MAX_KEYS
from bindings.sql import sqlite
from brokers import memory
from brokers.nats import broker as nats_broker
from brokers.shared import backoff
from docs import limits_of_actors, limits_of_workflows
from gateway import errors, logs
from gateway.app import ASK_SECONDS
from gateway.config import CLOSE_SECONDS, GatewayConfig, HealthCheck
from gateway.export import queue as span_queue
from gateway.grpc.proxy import LONGEST_SECONDS
from gateway.http import application, client, opening, scraping, server
from gateway.http2 import client as http2_client
from gateway.http2 import server as http2
from gateway.routes import invocation as invocation_routes
from gateway.routes import node, request, topic_views
from gateway.routes.jobs import MAX_LISTED
from gateway.routes.workflow_views import MAX_EVENTS, MAX_WAIT
from gateway.routes.workflows import MAX_ID_BYTES
from gateway.topic_views import CHANGE_SECONDS, PAGE_SECONDS
from mesh import (
    address,
    clusters,
    conditions,
    delivery,
    flow,
    host,
    key_value,
    large,
    pipeline,
    policies,
    store,
    telemetry,
)
from mesh.blocks import (
    actors,
    configuration,
    configuration_store,
    conversation,
    crypto,
    durable,
    invocation,
    job_record,
    jobs,
    lock,
    pubsub,
    remembered,
    secrets,
    state,
    topics,
    workflow_service,
    workflows,
)
from mesh.blocks.binding_contract import INVOKE as INVOKE_BINDING
from mesh.blocks.binding_contract import STREAM as STREAM_BINDING
from mesh.broker import SubscribeOptions, Topology
from mesh.calls import exchange, link
from mesh.node import directory, health, inbound, reload, remote
from mesh.resources.component import Component
from mesh.resources.resiliency import ENDPOINTS
from mesh.resources.subscription import (
    DEFAULT_MAX_IN_FLIGHT,
    GROUP_EXPIRES,
    MAX_GROUP_EXPIRES,
    MAX_IN_FLIGHT,
    MIN_GROUP_EXPIRES,
    BulkOptions,
)

__all__ = ["HEADINGS", "TABLES", "table"]
from mesh.workflows import actions, decide, propagation, waiting
from mesh.workflows import application as worker
from mesh.workflows.declared import Declared

GATEWAY = GatewayConfig("", Path())
HEALTH = HealthCheck()
DELIVERIES = SubscribeOptions("")
DECLARED = Declared()
RETRY, BREAKER, BULK = policies.Retry(), policies.CircuitBreaker(), BulkOptions()
HEADINGS = ("what", "limit", "what sets another", "what one sees who meets it")
NONE = "nothing"
POLICY = "`timeout` of a [policy](resiliency.md)"
OUTBOUND = f"{POLICY}, `outbound` of the component"

Row = tuple[str, str, str, str]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "none"
    for size, unit in ((86400.0, "d"), (3600.0, "h")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def _size(number: int) -> str:
    for size, unit in ((1024 * 1024, "MiB"), (1024, "KiB")):
        if number >= size and number % size == 0:
            return f"{number // size:,} {unit}"
    return f"{number:,} bytes"


def _asked() -> Sequence[Row]:
    failed = "500 with the error of the route, and a text that says that the outcome is unknown"
    return (
        (
            "a request that another node is asked",
            _time(ASK_SECONDS),
            f"the deadline of who asks, at most {_time(remote.MAX_SECONDS)}",
            "504 `ERR_NODE_SILENT`",
        ),
        (
            "a look into a topic",
            _time(PAGE_SECONDS),
            NONE,
            "what was found until then, with `complete` false",
        ),
        (
            "dead letters that are sent back or deleted",
            _time(CHANGE_SECONDS),
            NONE,
            "504, with how many were",
        ),
        (
            "a call, until its answer begins; each attempt",
            _time(invocation.INVOKE.seconds),
            f"{POLICY} for the application; `mesh-timeout` on the call, for all attempts together",
            "500 `ERR_DIRECT_INVOKE`: `no answer within the deadline`",
        ),
        (
            "a call of gRPC without a deadline, until its answer begins",
            _time(LONGEST_SECONDS),
            "`grpc-timeout`, which bounds the whole call",
            "`DEADLINE_EXCEEDED`; until somebody has taken the call it is 60 s",
        ),
        (
            "a call of a binding; each attempt",
            _time(INVOKE_BINDING.seconds),
            OUTBOUND,
            "500 `ERR_INVOKE_OUTPUT_BINDING`; the outcome is unknown",
        ),
        (
            "a call of a binding whose data or answer are streams, until its answer begins; each attempt",
            f"{STREAM_BINDING.seconds:g} s",
            OUTBOUND,
            f"500 `ERR_INVOKE_OUTPUT_BINDING`; long before, if nothing moves for {_time(flow.IDLE_SECONDS)}",
        ),
        ("a publish, alone or in bulk; each attempt", _time(topics.PUBLISH.seconds), OUTBOUND, failed),
        ("an operation on a state store; each attempt", _time(state.GET.seconds), OUTBOUND, failed),
        ("reading a secret; each attempt", _time(secrets.GET.seconds), OUTBOUND, failed),
        (
            "wrapping a document's key, or a single operation with one; each attempt",
            _time(crypto.WRAP_KEY.seconds),
            OUTBOUND,
            failed,
        ),
        ("asking a language model; each attempt", _time(conversation.CONVERSE.seconds), OUTBOUND, failed),
        (
            "taking a lock, or giving it back; reading, writing or subscribing to a configuration; each attempt",
            _time(lock.ACQUIRE.seconds),
            OUTBOUND,
            failed,
        ),
        (
            "asking whether a configuration has changed, for a subscription",
            _time(configuration.WATCH.seconds),
            OUTBOUND,
            "a line in the log; it is asked again",
        ),
        (
            "a call of a method of an actor; each attempt",
            _time(actors.INVOKE.seconds),
            f"{POLICY} for the type; `mesh-timeout` on the call, for all attempts together",
            "500 `ERR_ACTOR_INVOKE_METHOD`; the turn goes on, and the next one waits for it",
        ),
        ("accepting a durable call, or reading its outcome", _time(durable.ACCEPT.seconds), NONE, failed),
        ("scheduling, reading or deleting a job", _time(jobs.SCHEDULE.seconds), NONE, failed),
        ("listing jobs, deleting several, or running one now", _time(jobs.LIST.seconds), NONE, failed),
        (
            "starting a workflow, telling one something, or looking at one",
            _time(workflows.START.seconds),
            "`mesh-timeout` on the call, or `grpc-timeout`",
            failed,
        ),
        (
            "a turn of a workflow over HTTP",
            _time(DECLARED.turn_seconds),
            "`turnTimeout` of `workflowSettings`",
            "it is run again",
        ),
        (
            "waiting until a workflow has ended, over HTTP",
            _time(MAX_WAIT),
            "`wait` in the query, up to that",
            "the workflow as it is",
        ),
        (
            "listing workflows, their histories, purging them, or running one again",
            _time(workflows.LIST.seconds),
            NONE,
            failed,
        ),
        (
            "all attempts under a policy",
            _time(RETRY.max_elapsed),
            "`maxRetries`; `mesh-timeout` on a call; the client, by hanging up",
            "the answer or the error of the last attempt",
        ),
        (
            "retries of a policy that says only `policy: constant`",
            f"{'no end' if RETRY.max_retries is None else RETRY.max_retries}, one each {_time(RETRY.interval)}",
            "`maxRetries`, `duration`",
            "the answer or the error of the last attempt",
        ),
        (
            "an exponential retry",
            f"from {_time(policies.EXPONENTIAL_START)} to {_time(RETRY.max_interval)} apart, "
            f"for {policies.EXPONENTIAL_MAX_ELAPSED / 60:g} minutes",
            "`maxInterval`, `maxRetries`",
            "the answer or the error of the last attempt",
        ),
        (
            "an open circuit breaker",
            f"{_time(BREAKER.timeout)}, then {BREAKER.max_requests} call may try",
            "`timeout`, `maxRequests`",
            "the error of the route: `circuit breaker is open`",
        ),
        (
            "waiting for an application that is away",
            f"the call's own limit; none if it was not there within the last {_time(directory.SEEN_WINDOW)}",
            "as a call's",
            "500 `ERR_DIRECT_INVOKE`: `was not back within the deadline`, or `no instance of … is on the mesh`",
        ),
        (
            "finding a host of a component that is elsewhere",
            _time(host.FIND_SECONDS * 2),
            NONE,
            "the error of the route: `nobody said within …`",
        ),
        (
            "`mesh invoke` and `mesh publish`: silence of the gateway",
            "that of the call",
            "`--timeout`",
            "exit code 1, and a line that names `--timeout`",
        ),
        (
            "a component on Redis: a reply; connecting",
            f"{RedisSettings().read_timeout:g} s; {RedisSettings().dial_timeout:g} s",
            "`readTimeout`, `dialTimeout`",
            "500 with the error of the route",
        ),
        (
            "`state.sqlite`: waiting for a lock of the file, whatever a policy says",
            _time(sqlite.BUSY_SECONDS),
            "its setting `busyTimeout`",
            "500 with the error of the route",
        ),
    )


def _towards() -> Sequence[Row]:
    slow = delivery.SLOW_DELAYS
    return (
        (
            "an attempt to deliver an event, of a binding too, to hand a job over or to run a durable call",
            _time(pipeline.MAX_ATTEMPT_SECONDS),
            f"{POLICY}: `inbound` of the component, or for the application",
            "it is an attempt that failed: the next follows",
        ),
        (
            "a delivery without a sign of life of its gateway",
            _time(DELIVERIES.ack_wait),
            NONE,
            "another instance gets the event; a gateway that works gives these signs, however long it takes",
        ),
        (
            "between attempts without a policy",
            f"from {_time(slow[0])} to {_time(slow[-1])}",
            "`retry` of a policy, `inbound`",
            "`mesh-attempt` counts up",
        ),
        (
            "attempts of an event whose connection breaks off, with a dead letter topic and no policy",
            f"{delivery.BROKEN_ATTEMPTS}",
            "`retry` of a policy, `inbound`",
            "the event in the dead letter topic",
        ),
        ("storing a dead letter", _time(delivery.DEAD_LETTER_SECONDS), NONE, "the event is delivered again"),
        (
            "attempts of a durable call",
            f"{durable.DEFAULT_RETRY.max_retries:,}, from {_time(durable.DEFAULT_RETRY.interval)} "
            f"to {_time(durable.DEFAULT_RETRY.max_interval)} apart",
            "`retry` of a policy for the application",
            "its outcome is `failed`",
        ),
        (
            "telling of a change of a configuration",
            _time(configuration.TELL_SECONDS),
            f"{POLICY}: `inbound` of the configuration component",
            "a line in the log; it is not told again without a `retry` of a policy",
        ),
        (
            "collecting events for a bulk delivery",
            f"{BULK.max_messages} events or {_time(BULK.max_wait)}",
            "`maxMessagesCount`, `maxAwaitDurationMs` of the subscription",
            "smaller batches",
        ),
        (
            "connecting to the application",
            _time(client.CONNECT_SECONDS),
            NONE,
            "as if nothing listened: a call goes to another instance or waits, an event waits",
        ),
        (
            "a connection to the application without use",
            _time(client.IDLE_SECONDS),
            NONE,
            "it is closed by the gateway",
        ),
        (
            f"connections to an application on HTTP/1.1 that are opened within {1000 * opening.SECONDS:g} ms",
            str(opening.AT_ONCE),
            NONE,
            "the others are opened then",
        ),
        (
            "an application on HTTP/1.1 that has vanished without a word, while it is waited for",
            _time(opening.NOTICED_SECONDS),
            NONE,
            "as if the connection broke",
        ),
        (
            "connections to an application on HTTP/2, while all have as many calls as it takes on one",
            f"{http2_client.MAX_CONNECTIONS}; one more than needed is closed after {_time(http2_client.IDLE_SECONDS)}",
            NONE,
            f"a call waits {_time(http2_client.ROOM_SECONDS)} for another to end; then it is as if nobody listened",
        ),
        (
            "a health probe, when `--enable-app-health-check` is given",
            f"{_time(HEALTH.timeout)}, each {_time(HEALTH.interval)}, {HEALTH.threshold} failures",
            "`--app-health-probe-timeout`, `--app-health-probe-interval`, `--app-health-threshold`",
            "no calls and no events until it is healthy",
        ),
    )


def _stored() -> Sequence[Row]:
    return (
        (
            "an event, or on some brokers only one that no group has taken",
            _time(Topology("").max_age),
            "a setting of some brokers, see [their pages](brokers/README.md)",
            "it is removed",
        ),
        (
            "the outcome of a durable call, and an idempotency key",
            _time(durable.KEEP_SECONDS),
            "`mesh-idempotency-window` for the key",
            "404 for the outcome",
        ),
        (
            "a delay of a durable call",
            f"{_time(durable.MAX_SECONDS)}; on other brokers than RabbitMQ, as long as an event is kept",
            NONE,
            "400",
        ),
        (
            "a subscription to a configuration, made before the gateway's restart, whose component nobody has",
            _time(remembered.FORGET_SECONDS),
            NONE,
            "it ends, with a line in the log",
        ),
    )


def _streams() -> Sequence[Row]:
    return (
        (
            "silence of the other side of a stream",
            _time(exchange.SILENCE_LIMIT),
            NONE,
            f"the body breaks off; signs of life go each {_time(exchange.PING_INTERVAL)}",
        ),
        (
            "a stream whose receiver takes nothing",
            _time(exchange.STALL_LIMIT),
            NONE,
            "the body breaks off",
        ),
        (
            "a stream to or from a binding in which nothing moves, by what is outside or by the client",
            _time(flow.IDLE_SECONDS),
            NONE,
            "500 `ERR_INVOKE_OUTPUT_BINDING`, or 408 `ERR_BODY_READ` if it was the client; an answer breaks off",
        ),
        (
            "silence of a client of HTTP/2 or gRPC, whether it has calls open or not",
            _time(http2.PING_TICKS * http2.TICK_SECONDS),
            NONE,
            "it gets a PING, which its library answers; after more of them, and at the latest after "
            f"{_time((http2.LOST_TICKS + 1) * http2.TICK_SECONDS)} of silence, it is closed, and its streams end",
        ),
        ("of a stream under way, in each direction", _size(link.WINDOW_BYTES), NONE, "the sender waits"),
    )


def _http() -> Sequence[Row]:
    return (
        (
            "a request's header to arrive, from its first byte on; at `--metrics-port` the first one's from the "
            "connection on",
            _time(server.HEADER_SECONDS),
            NONE,
            "the connection is closed",
        ),
        (
            "connections to `--metrics-port`",
            str(scraping.MAX_CONNECTIONS),
            NONE,
            "the idle one that is the oldest is closed",
        ),
        (
            "file descriptors of the process",
            "the system's (`ulimit -n`)",
            "the system",
            f"with fewer than {server.FEW_DESCRIPTORS} left a line in the log, each {_time(server.TOLD_SECONDS)}"
            " at most; without any clients are reset",
        ),
        (
            "a request's body to arrive, but for a streamed call",
            _time(request.BODY_SECONDS),
            NONE,
            "408 `ERR_BODY_READ`",
        ),
        ("a client's connection without use", _time(server.IDLE_SECONDS), NONE, "it is closed"),
        (
            "a body that is held in memory: all but a call's",
            _size(GATEWAY.max_body_bytes),
            "`--max-body-size`",
            "413 `ERR_BODY_READ`",
        ),
        ("a body of a call", "none", NONE, f"over {_size(invocation_routes.WHOLE_BODY_BYTES)} it is streamed"),
        (
            "a field of a request's header",
            _size(GATEWAY.max_header_bytes),
            "`--read-buffer-size`",
            "431 `ERR_BAD_REQUEST`",
        ),
        (
            "all fields of a request's header, of the HTTP API over HTTP/2",
            _size(GATEWAY.max_header_bytes),
            "`--read-buffer-size`",
            f"431 `ERR_BAD_REQUEST`; over {http2.SECTION_FACTOR} times that the connection is closed",
        ),
        ("requests at once on a connection of HTTP/2", f"{http2.MAX_STREAMS}", NONE, "the client waits"),
        (
            "connections of HTTP/2 to a port",
            f"{http2.MAX_CONNECTIONS}",
            NONE,
            "an idle one, that was silent longest, is closed",
        ),
        (
            "the header of an application's answer, and over HTTP/2 what comes behind its body",
            _size(client.MAX_HEAD_BYTES),
            NONE,
            "500 `ERR_DIRECT_INVOKE`, over gRPC `UNAVAILABLE`; of a delivery, an attempt that failed",
        ),
        (
            "an application's answer to an event",
            _size(application.ANSWER_LIMIT_BYTES),
            NONE,
            "its body is not read: the status alone counts",
        ),
        (
            "an application's answer to `GET /dapr/subscribe`",
            _size(application.ANSWER_LIMIT_BYTES),
            NONE,
            "a warning; it is asked again, and has no subscriptions of its own until then",
        ),
        ("the text of an error", f"{errors.MAX_TEXT:,} characters", NONE, "it is cut"),
    )


def _sizes() -> Sequence[Row]:
    return (
        (
            "an event",
            _size(large.MAX_EVENT_BYTES),
            "the body limit, up to here; MQTT and pluggable components have [their own](brokers/README.md)",
            "413, or 500 that names both sizes",
        ),
        ("the attributes of an event", "the broker's", "its [page](brokers/README.md)", "500 that names both sizes"),
        (
            "events above the broker's own limit that a subscriber's gateway has in memory, for each component",
            f"{_size(large.IN_HAND_BYTES)}, or one event",
            NONE,
            "the others wait",
        ),
        (
            "a body that another node is asked with, and its answer",
            _size(remote.MAX_BODY_BYTES),
            NONE,
            "400, and 413 `ERR_NODE_ANSWER`",
        ),
        (
            "the log that a gateway keeps to be asked for",
            f"{logs.RING_LINES:,} lines, {_size(logs.RING_BYTES)}",
            NONE,
            "the oldest lines are forgotten; `missed` counts them",
        ),
        ("a value of `state.mesh`", "the broker's", "its [page](brokers/README.md)", "500"),
        ("a key of `state.mesh`, with its prefix", _size(key_value.MAX_KEY_BYTES), NONE, "500"),
        (
            "arguments and result of an operation on a component elsewhere",
            _size(host.MAX_BODY_BYTES),
            NONE,
            "500 that names both sizes",
        ),
        (
            "the answer of a bulk read or a query of state",
            _size(state.MAX_ANSWER_BYTES),
            "fewer keys at once, a smaller `page.limit`",
            "413 `ERR_STATE_BULK_GET` or `ERR_STATE_QUERY`, over gRPC `RESOURCE_EXHAUSTED`",
        ),
        ("a topic's name", _size(address.MAX_TOPIC_BYTES), NONE, "400; a subscription is left out, with a warning"),
        (
            "names of namespaces, components and groups",
            _size(address.MAX_NAME_BYTES),
            NONE,
            "the gateway does not start",
        ),
        (
            "an app id that is called",
            _size(clusters.MAX_TARGET_BYTES),
            NONE,
            "500 `ERR_DIRECT_INVOKE`: `invalid app id`",
        ),
        (
            "a configuration in `configuration.mesh`, with all of its keys",
            _size(configuration_store.MAX_BYTES),
            NONE,
            "400",
        ),
        (
            "what is kept of an application's subscriptions to configurations for a restart of its gateway",
            _size(remembered.MAX_BYTES),
            NONE,
            "a line in the log; those that have no room end with the gateway",
        ),
        ("the name of a job", _size(job_record.MAX_NAME_BYTES), NONE, "400 `DAPR_SCHEDULER_SCHEDULE_JOB`"),
        (
            "the data of a job",
            _size(job_record.MAX_DATA_BYTES),
            NONE,
            "400 `DAPR_SCHEDULER_SCHEDULE_JOB`; what is larger belongs in a state store",
        ),
        ("jobs on one page of a list", f"{job_record.MAX_PAGE:,}", "`limit`", "`after` in the answer"),
        (
            "workflows on one page of a list, or purged at once",
            f"{workflows.MAX_PAGE:,}",
            "`limit`",
            "`after` in the answer",
        ),
        (
            "activities, timers, children and events that are told of what an instance waits for, of each",
            f"{waiting.MAX_LISTED}; names of events that a worker over HTTP waits for {waiting.MAX_AWAITED}",
            NONE,
            "`waitingFor` has how many there are",
        ),
        ("the id under which a workflow is started", f"{MAX_ID_BYTES} bytes", NONE, "400 `ERR_INSTANCE_ID_TOO_LONG`"),
        (
            "events that wait for an instance of a workflow to take them",
            f"{decide.MAX_WAITING:,}",
            NONE,
            "an error that says so; events of other workflows wait where they are from",
        ),
        (
            "the id of a child, or of a workflow that a client of an SDK's worker protocol starts",
            f"{workflow_service.MAX_ID_BYTES:,} bytes",
            NONE,
            "`RESOURCE_EXHAUSTED`; the child fails with `WorkflowTooLarge`",
        ),
        (
            "what a worker over HTTP answers to a turn or an activity",
            _size(worker.MAX_ANSWER_BYTES),
            NONE,
            "the instance, or the activity, fails with `InvalidAnswer` or `InvalidResult`",
        ),
        (
            "history that a workflow hands on with an activity or a child",
            _size(propagation.MAX_BYTES),
            NONE,
            "the activity or the child fails with `WorkflowTooLarge`",
        ),
        (
            "history that a workflow which has begun anew keeps for children that were not reached before",
            _size(propagation.MAX_SETTLED_BYTES),
            NONE,
            "children beyond that are not started, and a line in the log says so",
        ),
        ("actions in an answer to a turn of a workflow", f"{actions.MAX_ACTIONS:,}", NONE, "`InvalidAnswer`"),
        ("events on one page of a history", f"{MAX_EVENTS:,}", "`limit`", "`after` in the answer"),
        ("jobs that `ListJobs` gives", f"{MAX_LISTED:,}", NONE, "`RESOURCE_EXHAUSTED`; pages over HTTP"),
        ("an idempotency key", _size(durable.MAX_KEY_BYTES), NONE, "400"),
        (
            "the answer that is kept of a durable call",
            _size(durable.MAX_KEPT_BODY_BYTES),
            NONE,
            "its outcome says `truncated`",
        ),
        ("a file of `secretstores.local.file`", _size(local.MAX_FILE_BYTES), NONE, "the gateway does not start"),
        ("what the broker `memory` stores", _size(memory.MAX_STORED_BYTES), NONE, "500: the publish is refused"),
    )


def _counts() -> Sequence[Row]:
    return (
        (
            "requests of other nodes that a node answers at once",
            f"{remote.MAX_AT_ONCE}",
            NONE,
            "404 `ERR_NODE_AWAY`: it has too much to do",
        ),
        (
            "events and dead letters that are looked at by one request",
            f"{topic_views.DEFAULT_LIMIT}",
            f"`limit`, at most {topic_views.MAX_LIMIT}",
            "the next ones are asked for with `after`",
        ),
        (
            "dead letters that one request sends back or deletes",
            f"{topic_views.DEFAULT_CHANGED:,}",
            f"`limit`, at most {topic_views.MAX_CHANGED:,}",
            "the others stay",
        ),
        (
            "events in flight, for each subscription and instance",
            f"{DEFAULT_MAX_IN_FLIGHT}",
            f"`maxInFlight` of the subscription, at most {MAX_IN_FLIGHT:,}",
            "the others wait at the broker",
        ),
        (
            "a group that only streams used, without anybody, on NATS and Redis",
            _time(GROUP_EXPIRES),
            f"`groupExpires` of the stream, {_time(MIN_GROUP_EXPIRES)} to {_time(MAX_GROUP_EXPIRES)}",
            "it ends; who comes back begins with the oldest event that is stored",
        ),
        (
            "groups of a component on NATS, one for each topic; 17 for each that is ordered",
            f"{nats_broker.MAX_CONSUMERS:,}, or what the stream or the account has",
            "`nats stream edit`, see [NATS](brokers/nats.md#limits)",
            "a stream ends with `UNAVAILABLE`, other subscriptions are a line in the log; those that are there go on",
        ),
        (
            "calls into the application at once",
            "none" if GATEWAY.app_max_concurrency is None else f"{GATEWAY.app_max_concurrency}",
            "`--app-max-concurrency`",
            "the others wait, within their limit of time",
        ),
        (
            "calls that one gateway serves at once",
            f"{exchange.MAX_SERVED:,}",
            NONE,
            "a call goes to another instance, or waits",
        ),
        (
            "turns, and activities, that an application is asked for over HTTP at once",
            f"{DECLARED.max_turns}, {DECLARED.max_tasks}",
            "`workflowSettings`, see [workers](workflow-http.md#what-the-application-says-of-itself)",
            "the others wait, or are run by another instance",
        ),
        ("keys that a bulk read reads at once", f"{store.MAX_PARALLEL}", "`parallelism`, fewer", "nothing"),
        (
            "keys of a configuration that are read by name, or subscribed to",
            f"{configuration_store.MAX_KEYS:,}",
            NONE,
            "400",
        ),
        ("subscriptions to configurations of an application", f"{configuration.MAX_SUBSCRIPTIONS}", NONE, "400"),
        (
            "applications whose subscriptions to configurations are kept in one `MESH_HOME`",
            f"{remembered.MAX_FILES:,}",
            NONE,
            "those written longest ago are forgotten, but for those whose gateway runs",
        ),
        ("connections of a component on Redis to a server", f"{RedisSettings().pool}", "`poolSize`", "the others wait"),
        ("keys that `configuration.redis` gives when none is named", f"{MAX_KEYS:,}", "names of keys", "500"),
        ("keys in a page of a list", f"{state.MAX_LISTED:,}", "`limit`, fewer; 100 without it", "400"),
        ("labels in metadata", f"{node.MAX_LABELS}", NONE, "400"),
        ("topics that a node tells it published to", f"{pubsub.MAX_TOPICS}", NONE, "`mesh asyncapi` leaves others out"),
        (
            "lines in the log from one place in the code, at `info` and above",
            f"{logs.BURST} at once, then {logs.LINES_A_MINUTE} a minute; "
            f"{logs.TIMES['mesh.conditions']} times that where a target or a circuit breaker changes its state",
            NONE,
            f"a line says how many were left out in the last {_time(logs.TOLD_SECONDS)}",
        ),
        ("combinations that each count has", f"{telemetry.MAX_SERIES:,}", NONE, "others are counted as `(other)`"),
        (
            "clients and paths that `middleware.http.ratelimit` counts",
            f"{MAX_CLIENTS:,}",
            NONE,
            "those that were not seen for longest begin anew",
        ),
        (
            "people who are logged in by `middleware.http.oauth2`, and as many on their way",
            f"{MAX_SESSIONS:,}",
            NONE,
            "those that were not seen for longest log in again",
        ),
        (
            "targets whose policies and breakers are kept",
            f"{pipeline.MAX_GUARDS:,}",
            NONE,
            "what has been quiet longest is forgotten",
        ),
        (
            "paths of an application that have a circuit breaker",
            f"{ENDPOINTS:,}",
            "`circuitBreakerCacheSize` of the target",
            "that of the path that was called longest ago is forgotten",
        ),
        (
            "paths of all applications together that have a circuit breaker",
            f"{conditions.MAX_ENDPOINTS:,}",
            NONE,
            "half of them are forgotten, first those that are closed and were called longest ago",
        ),
        (
            "characters that are shown of a path that has a circuit breaker",
            f"{conditions.MAX_TEXT:,}",
            NONE,
            "longer ones are told apart, and their ends not shown",
        ),
        (
            "targets without a policy that `mesh status` knows",
            f"{conditions.MAX_TARGETS:,}",
            NONE,
            "what has been quiet longest is forgotten",
        ),
    )


def _life() -> Sequence[Row]:
    return (
        (
            "a broker that is not there at start",
            _time(GATEWAY.backbone_timeout),
            "`--backbone-timeout`",
            f"exit code 1, with the reason; each attempt to connect has {_time(backoff.CONNECT_WAIT)}",
        ),
        (
            "the start of a component",
            _time(Component("", "").init_timeout),
            "`spec.initTimeout`",
            "exit code 1, with what it waited for",
        ),
        (
            "operations on a component that was replaced or removed",
            _time(reload.LAST_USE_SECONDS),
            NONE,
            "the component is closed, with a warning; they fail",
        ),
        (
            "deliveries of a subscription that was changed or removed",
            _time(inbound.LEAVE_SECONDS),
            NONE,
            "events are handed back",
        ),
        ("a component that is asked how it is", _time(health.CHECK_SECONDS), NONE, "it counts as failing"),
        ("a broker that is lost later", "none", NONE, "calls wait within their limit; the gateway connects again"),
        (
            "what is in flight when a gateway stops",
            _time(GATEWAY.drain),
            "`--dapr-graceful-shutdown-seconds`",
            "calls break off, events are handed back",
        ),
        ("spans that wait when a gateway stops", _time(span_queue.FLUSH_SECONDS), NONE, "they are lost, and counted"),
        ("closing connections after that", _time(CLOSE_SECONDS), NONE, "the process ends without"),
    )


TABLES: Mapping[str, Sequence[Row]] = {
    "asked": _asked(),
    "towards": _towards(),
    "stored": _stored(),
    "streams": _streams(),
    "http": _http(),
    "sizes": _sizes(),
    "counts": _counts(),
    "actors": limits_of_actors.rows(),
    "workflows": limits_of_workflows.rows(),
    "life": _life(),
}
"""The rows by table."""


def table(name: str) -> str:
    """Write one as Markdown."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *TABLES[name]]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
