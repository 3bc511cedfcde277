"""The only place where a failure becomes an answer: one table for HTTP and gRPC.

Every failure is one JSON object with ``errorCode`` and ``message``; those that have a reason also carry
``details``. Codes, statuses and texts are Dapr's, so that its clients read them.

Source: Dapr's error tables; docs/errors.md lists every code with its meaning and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.error_row import Row
from gateway.errors_of_actors import ROWS as _OF_ACTORS
from gateway.errors_of_jobs import ROWS as _OF_JOBS
from gateway.errors_of_workflows import ROWS as _OF_WORKFLOWS
from mesh.errors import MeshError
from mesh.operation import Method

__all__ = [
    "ERRORS",
    "TYPES",
    "APIError",
    "Row",
    "answer",
    "bad_request",
    "header_too_large",
    "malformed",
    "row_of",
    "told",
    "too_large",
    "too_slow",
    "unexpected",
    "unsendable",
]

TYPES = "type.googleapis.com/google.rpc."
MAX_TEXT = 4096
MAX_TARGET = 1024
# Of what is wrong with a request itself.
GRPC: Mapping[int, str] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    413: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
}


_TOPIC = (("appID", "{app_id}"), ("topic", "{arguments.topic}"))
_PUBLISHING = "error when publishing to topic {arguments.topic} in pubsub {target}: {error}"
_NOT_STORED = ("ERR_PUBSUB_PUBLISH_MESSAGE", _PUBLISHING, "DAPR_PUBSUB_PUBLISH_MESSAGE", "pubsub")
_PUBLISH_FAILED = Row(500, "INTERNAL", *_NOT_STORED, (*_TOPIC, ("error", "{error}")))
_SUBSCRIBING = "error when subscribing to topic {arguments.topic} in pubsub {target}: {error}"
_UNKNOWN = "; whether it was stored is unknown"
_METADATA = "failed deserializing metadata. Error: {error}"
_BAD_METADATA = ("ERR_PUBSUB_REQUEST_METADATA", _METADATA, "DAPR_PUBSUB_METADATA_DESERIALIZATION")
_BULK_GET = Row(500, "INTERNAL", "ERR_STATE_BULK_GET", "fail to get from state store {target}: {error}")
_QUERY = Row(
    500,
    "INTERNAL",
    "ERR_STATE_QUERY",
    "state store {target} query failed: {error}",
    "DAPR_STATE_QUERY_FAILED",
    "state",
)
_SAVE, _SAVING = "ERR_STATE_SAVE", "failed saving state in state store {target}: "
_DELETE, _DELETING = "ERR_STATE_DELETE", "failed deleting state with key {arguments.listed}: "
_CONFIGURATION_SUBSCRIBE = Row(
    500,
    "INTERNAL",
    "ERR_CONFIGURATION_SUBSCRIBE",
    "failed to subscribe {arguments.listed} from Configuration store {target}: {error}",
)
_CONFLICT = "possible etag mismatch. error from state store: {error}"
_STATE_UNSUPPORTED = "ERR_STATE_STORE_NOT_SUPPORTED"
_BAD_ARGUMENT = Row(400, "INVALID_ARGUMENT", "ERR_BAD_REQUEST", "invalid request: {error}")

_BINDING = "ERR_INVOKE_OUTPUT_BINDING"
_NO_BINDING = Row(
    500, "INTERNAL", _BINDING, "error invoking output binding {target}: couldn't find output binding {target}"
)
_BINDING_FAILED = Row(500, "INTERNAL", _BINDING, "error invoking output binding {target}: {error}")
_CRYPTO = Row(500, "INTERNAL", "ERR_CRYPTO", "failed to perform operation: {error}")
_CRYPTO_KEY = Row(500, "INTERNAL", "ERR_CRYPTO_KEY", "failed to retrieve key {arguments.name}: {error}")
_CONVERSE = Row(500, "INTERNAL", "ERR_CONVERSATION_INVOKE", "failed conversing with component {target}: {error}")
_NO_MODEL = Row(400, "INVALID_ARGUMENT", "ERR_CONVERSATION_NOT_FOUND", "failed finding conversation component {target}")
_INVOKE = Row(500, "INTERNAL", "ERR_DIRECT_INVOKE", "failed to invoke, id: {target}, err: {error}")
_INVOKE_UNAVAILABLE = _INVOKE._replace(grpc="UNAVAILABLE")

# By ``<block>.<method>/<code>``, ``<block>/<code>``, ``*/<code>``, ``<block>.<method>``, ``<code>``: the first that is
# there counts. A code stands for the class of the error and all its subclasses.
ERRORS: Mapping[str, Row] = {
    "pubsub/COMPONENT_NOT_CONFIGURED": Row(
        400,
        "FAILED_PRECONDITION",
        "ERR_PUBSUB_NOT_CONFIGURED",
        "pubsub {target} is not configured",
        "DAPR_PUBSUB_NOT_CONFIGURED",
    ),
    "pubsub/COMPONENT_NOT_FOUND": Row(
        404, "INVALID_ARGUMENT", "ERR_PUBSUB_NOT_FOUND", "pubsub {target} is not found", "DAPR_PUBSUB_NOT_FOUND"
    ),
    "pubsub/NAME_EMPTY": Row(
        404, "INVALID_ARGUMENT", "ERR_PUBSUB_EMPTY", "pubsub name is empty", "DAPR_PUBSUB_NAME_EMPTY"
    ),
    "pubsub/TOPIC_EMPTY": Row(
        404,
        "INVALID_ARGUMENT",
        "ERR_TOPIC_NAME_EMPTY",
        "topic is empty in pubsub {target}",
        "DAPR_PUBSUB_TOPIC_NAME_EMPTY",
        "pubsub",
    ),
    "pubsub/ENTRIES_INVALID": Row(
        400,
        "INVALID_ARGUMENT",
        "ERR_PUBSUB_EVENTS_SER",
        "error when unmarshaling the request for topic {arguments.topic} in pubsub {target}: {error}",
        "DAPR_PUBSUB_UNMARSHAL_EVENTS",
        "pubsub",
    ),
    "pubsub/BAD_ARGUMENT": Row(400, "INVALID_ARGUMENT", *_BAD_METADATA, "pubsub", asked=True),
    # What a broker, or a layout, has not is asked for by metadata, or by a topic's name.
    "pubsub.publish/FEATURE_NOT_SUPPORTED": Row(400, "INVALID_ARGUMENT", *_BAD_METADATA, "pubsub", asked=True),
    "pubsub/CONFIG_INVALID": Row(
        400, "INVALID_ARGUMENT", _BAD_METADATA[0], "{error}", _BAD_METADATA[2], "pubsub", asked=True
    ),
    "pubsub/PERMISSION_DENIED": Row(
        403, "PERMISSION_DENIED", "ERR_PUBSUB_FORBIDDEN", "{error}", "DAPR_PUBSUB_FORBIDDEN", "pubsub", _TOPIC
    ),
    "pubsub/EVENT_INVALID": Row(
        500,
        "INVALID_ARGUMENT",
        "ERR_PUBSUB_CLOUD_EVENTS_SER",
        "{error}",
        "DAPR_PUBSUB_CLOUD_EVENT_CREATION",
        "pubsub",
        _TOPIC,
    ),
    "pubsub.subscribe_stream/DEADLINE_EXCEEDED": Row(500, "DEADLINE_EXCEEDED", "ERR_PUBSUB_SUBSCRIBE"),
    "pubsub.subscribe_stream/FEATURE_NOT_SUPPORTED": Row(501, "UNIMPLEMENTED", "ERR_PUBSUB_SUBSCRIBE", _SUBSCRIBING),
    "pubsub.subscribe_stream/TOPOLOGY_MISMATCH": Row(500, "FAILED_PRECONDITION", "ERR_PUBSUB_SUBSCRIBE", _SUBSCRIBING),
    "pubsub/DEADLINE_EXCEEDED": _PUBLISH_FAILED._replace(text=_PUBLISHING + _UNKNOWN),
    "pubsub.publish": _PUBLISH_FAILED,
    "pubsub.bulk_publish": _PUBLISH_FAILED,
    "state/COMPONENT_NOT_CONFIGURED": Row(
        500,
        "FAILED_PRECONDITION",
        "ERR_STATE_STORE_NOT_CONFIGURED",
        "state store {target} is not configured",
        "DAPR_STATE_NOT_CONFIGURED",
    ),
    "state/COMPONENT_NOT_FOUND": Row(
        400,
        "INVALID_ARGUMENT",
        "ERR_STATE_STORE_NOT_FOUND",
        "state store {target} is not found",
        "DAPR_STATE_NOT_FOUND",
        metadata=(("appID", "{app_id}"),),
    ),
    "state/PERMISSION_DENIED": Row(403, "PERMISSION_DENIED", "ERR_PERMISSION_DENIED"),
    "state/STATE_ILLEGAL_KEY": Row(
        400,
        "INVALID_ARGUMENT",
        "ERR_MALFORMED_REQUEST",
        "{error}",
        "DAPR_STATE_ILLEGAL_KEY",
        "state",
        (),
        "{error.key}",
    ),
    "state.get": Row(
        500, "INTERNAL", "ERR_STATE_GET", "fail to get {arguments.key} from state store {target}: {error}"
    ),
    "state.bulk_get/STATE_ANSWER_TOO_LARGE": _BULK_GET._replace(status=413, grpc="RESOURCE_EXHAUSTED"),
    "state.bulk_get": _BULK_GET,
    "state.save/STATE_CONFLICT": Row(409, "ABORTED", _SAVE, _SAVING + _CONFLICT),
    "state.save/STATE_ETAG_INVALID": Row(400, "INVALID_ARGUMENT", _SAVE, _SAVING + "{error}"),
    "state.save": Row(500, "INTERNAL", _SAVE, _SAVING + "{error}"),
    "state.delete/STATE_CONFLICT": Row(409, "ABORTED", _DELETE, _DELETING + _CONFLICT),
    "state.delete/STATE_ETAG_INVALID": Row(400, "INVALID_ARGUMENT", _DELETE, _DELETING + "{error}"),
    "state.delete": Row(500, "INTERNAL", _DELETE, _DELETING + "{error}"),
    "state.transact/FEATURE_NOT_SUPPORTED": Row(
        500,
        "UNIMPLEMENTED",
        _STATE_UNSUPPORTED,
        "state store {target} doesn't support transactions",
        "DAPR_STATE_TRANSACTIONS_NOT_SUPPORTED",
        "state",
    ),
    "state.transact/STATE_TOO_MANY_OPERATIONS": Row(
        400,
        "INVALID_ARGUMENT",
        "ERR_STATE_STORE_TOO_MANY_TRANSACTIONS",
        "{error}",
        "DAPR_STATE_TOO_MANY_TRANSACTIONS",
        "state",
        (("currentOpsTransaction", "{error.count}"), ("maxOpsPerTransaction", "{error.most}")),
    ),
    "state.transact/STATE_OUTBOX": Row(
        500, "INTERNAL", "ERR_PUBLISH_OUTBOX", "error while publishing outbox message: {error}", "DAPR_PUBSUB_OUTBOX"
    ),
    "state.transact": Row(500, "INTERNAL", "ERR_STATE_TRANSACTION", "error while executing state transaction: {error}"),
    "state.query/FEATURE_NOT_SUPPORTED": Row(
        500,
        "INTERNAL",
        _STATE_UNSUPPORTED,
        "state store does not support querying",
        "DAPR_STATE_QUERYING_NOT_SUPPORTED",
        "state",
    ),
    "state.query/BAD_ARGUMENT": Row(
        400, "INVALID_ARGUMENT", "ERR_MALFORMED_REQUEST", "failed deserializing HTTP body: {error}"
    ),
    "state.query/STATE_ANSWER_TOO_LARGE": _QUERY._replace(status=413, grpc="RESOURCE_EXHAUSTED"),
    "state.query": _QUERY,
    "state.keys/FEATURE_NOT_SUPPORTED": Row(
        500, "UNIMPLEMENTED", _STATE_UNSUPPORTED, "state store {target} does not support listing keys"
    ),
    "state.keys": Row(500, "INTERNAL", "ERR_STATE_KEYS", "failed listing the keys of state store {target}: {error}"),
    "secrets/COMPONENT_NOT_CONFIGURED": Row(
        500, "FAILED_PRECONDITION", "ERR_SECRET_STORES_NOT_CONFIGURED", "secret store is not configured"
    ),
    "secrets/COMPONENT_NOT_FOUND": Row(
        401, "INVALID_ARGUMENT", "ERR_SECRET_STORE_NOT_FOUND", "failed finding secret store with key {target}"
    ),
    "secrets/PERMISSION_DENIED": Row(403, "PERMISSION_DENIED", "ERR_PERMISSION_DENIED"),
    "secrets.get": Row(
        500,
        "INTERNAL",
        "ERR_SECRET_GET",
        "failed getting secret with key {arguments.name} from secret store {target}: {error}",
    ),
    "secrets.bulk": Row(
        500, "INTERNAL", "ERR_SECRET_GET", "failed getting secrets from secret store {target}: {error}"
    ),
    "configuration/COMPONENT_NOT_CONFIGURED": Row(
        500, "FAILED_PRECONDITION", "ERR_CONFIGURATION_STORE_NOT_CONFIGURED", "configuration stores not configured"
    ),
    "configuration/COMPONENT_NOT_FOUND": Row(
        400, "INVALID_ARGUMENT", "ERR_CONFIGURATION_STORE_NOT_FOUND", "configuration store {target} not found"
    ),
    "configuration/PERMISSION_DENIED": Row(403, "PERMISSION_DENIED", "ERR_PERMISSION_DENIED"),
    "configuration/BAD_ARGUMENT": _BAD_ARGUMENT,
    "configuration.get": Row(
        500,
        "INTERNAL",
        "ERR_CONFIGURATION_GET",
        "failed to get {arguments.listed} from Configuration store {target}: {error}",
    ),
    "configuration.subscribe/NOT_SPOKEN": Row(500, "INTERNAL", "ERR_APP_CHANNEL_NIL", "{error}"),
    "configuration.subscribe": _CONFIGURATION_SUBSCRIBE,
    "configuration.subscribe_stream": _CONFIGURATION_SUBSCRIBE,
    "configuration.unsubscribe": Row(
        500,
        "INTERNAL",
        "ERR_CONFIGURATION_UNSUBSCRIBE",
        "failed to unsubscribe to configuration request {arguments}: {error}",
    ),
    "configuration.set": Row(
        500,
        "INTERNAL",
        "ERR_CONFIGURATION_SET",
        "failed to write {arguments.key} to configuration store {target}: {error}",
    ),
    "lock/COMPONENT_NOT_CONFIGURED": Row(
        500, "FAILED_PRECONDITION", "ERR_LOCK_STORE_NOT_CONFIGURED", "lock store is not configured"
    ),
    "lock/COMPONENT_NOT_FOUND": Row(
        400, "INVALID_ARGUMENT", "ERR_LOCK_STORE_NOT_FOUND", "lock store {target} not found"
    ),
    "lock/PERMISSION_DENIED": Row(403, "PERMISSION_DENIED", "ERR_PERMISSION_DENIED"),
    "lock/BAD_ARGUMENT": _BAD_ARGUMENT,
    "lock.acquire": Row(500, "INTERNAL", "ERR_TRY_LOCK", "failed to try acquiring lock: {error}"),
    "lock.release": Row(500, "INTERNAL", "ERR_UNLOCK", "failed to release lock: {error}"),
    "bindings/COMPONENT_NOT_CONFIGURED": _NO_BINDING,
    "bindings/COMPONENT_NOT_FOUND": _NO_BINDING,
    "bindings.invoke": _BINDING_FAILED,
    "bindings.stream": _BINDING_FAILED,
    "crypto/COMPONENT_NOT_CONFIGURED": Row(
        500, "INTERNAL", "ERR_CRYPTO_PROVIDERS_NOT_CONFIGURED", "crypto providers not configured"
    ),
    "crypto/COMPONENT_NOT_FOUND": Row(
        400, "INVALID_ARGUMENT", "ERR_CRYPTO_PROVIDER_NOT_FOUND", "crypto provider {target} not found"
    ),
    "crypto/CRYPTO_ERROR": _CRYPTO,
    "crypto/DEPENDENCY_MISSING": _CRYPTO,
    "crypto/CRYPTO_AWAY": _CRYPTO._replace(grpc="UNAVAILABLE"),
    "crypto.get_key/CIRCUIT_OPEN": _CRYPTO_KEY,
    "crypto/CIRCUIT_OPEN": _CRYPTO,
    "crypto.get_key/CRYPTO_ERROR": _CRYPTO_KEY,
    "crypto.get_key/CRYPTO_AWAY": _CRYPTO_KEY._replace(grpc="UNAVAILABLE"),
    "conversation/COMPONENT_NOT_CONFIGURED": _NO_MODEL,
    "conversation/COMPONENT_NOT_FOUND": _NO_MODEL,
    "conversation/PERMISSION_DENIED": Row(403, "PERMISSION_DENIED", "ERR_PERMISSION_DENIED"),
    "conversation/INPUTS_MISSING": Row(
        400,
        "INVALID_ARGUMENT",
        "ERR_CONVERSATION_MISSING_INPUTS",
        "failed conversing with component {target}: missing inputs in request",
    ),
    "conversation/BAD_ARGUMENT": Row(
        400,
        "INVALID_ARGUMENT",
        "ERR_CONVERSATION_INVALID_PARMS",
        "failed conversing with component {target}: invalid params: {error}",
    ),
    "conversation.converse/CONVERSATION_AWAY": _CONVERSE._replace(grpc="UNAVAILABLE"),
    "conversation.converse/DEADLINE_EXCEEDED": _CONVERSE._replace(grpc="DEADLINE_EXCEEDED"),
    "conversation.converse": _CONVERSE,
    "invocation.invoke/BAD_ARGUMENT": _INVOKE._replace(grpc="INVALID_ARGUMENT"),
    "invocation.invoke/PERMISSION_DENIED": _INVOKE._replace(status=403, grpc="PERMISSION_DENIED"),
    "invocation.invoke/NOT_SPOKEN": _INVOKE._replace(grpc="UNIMPLEMENTED"),
    "invocation.invoke/DEADLINE_EXCEEDED": _INVOKE._replace(grpc="DEADLINE_EXCEEDED"),
    "invocation.invoke/NO_RESPONDER": _INVOKE,
    "invocation.invoke/APP_AWAY": _INVOKE_UNAVAILABLE,
    "invocation.invoke/APP_UNREACHABLE": _INVOKE_UNAVAILABLE,
    "invocation.invoke/APP_FAILED": _INVOKE_UNAVAILABLE,
    "invocation.invoke/BROKER_ERROR": _INVOKE_UNAVAILABLE,
    "invocation.invoke": _INVOKE,
    "durable.accept/BAD_ARGUMENT": _BAD_ARGUMENT,
    "durable.accept/DEADLINE_EXCEEDED": Row(
        500, "DEADLINE_EXCEEDED", "ERR_DURABLE_INVOKE", "failed to store the call to {target}: {error}" + _UNKNOWN
    ),
    "durable.accept": Row(500, "INTERNAL", "ERR_DURABLE_INVOKE", "failed to store the call to {target}: {error}"),
    "durable.outcome": Row(500, "INTERNAL", "ERR_DURABLE_INVOKE"),
    **_OF_ACTORS,
    **_OF_JOBS,
    **_OF_WORKFLOWS,
    "*/STREAM_ENDED": Row(503, "UNAVAILABLE", "ERR_STREAM_ENDED"),
    "*/COMPONENT_HOSTS_GONE": Row(503, "UNAVAILABLE", "ERR_BROKER"),
    "*/COMPONENT_HOSTS_DIFFER": Row(500, "FAILED_PRECONDITION", "ERR_COMPONENT"),
    "BAD_ARGUMENT": _BAD_ARGUMENT,
    "PERMISSION_DENIED": Row(403, "PERMISSION_DENIED", "ERR_PERMISSION_DENIED"),
    "*/IDENTITY_NOT_PROVEN": Row(401, "UNAUTHENTICATED", "ERR_IDENTITY_NOT_PROVEN"),
    "*/IDENTITY_AWAY": Row(503, "UNAVAILABLE", "ERR_IDENTITY_AWAY"),
    "COMPONENT_ERROR": Row(500, "FAILED_PRECONDITION", "ERR_COMPONENT"),
    "MIDDLEWARE_ERROR": Row(500, "INTERNAL", "ERR_MIDDLEWARE"),
    "BROKER_ERROR": Row(503, "UNAVAILABLE", "ERR_BROKER"),
    "MESH_ERROR": Row(500, "UNKNOWN", "ERROR"),
}


class APIError(Exception):
    """An answer that is a failure."""

    def __init__(
        self, status: int, code: str, message: str, details: list[Mapping[str, object]] | None = None, grpc: str = ""
    ) -> None:
        """Make it.

        Args:
            status: HTTP status.
            code: ``errorCode``.
            message: For people.
            details: In proto-JSON, each with its ``@type``.
            grpc: gRPC status; empty = the one that goes with the HTTP status.
        """
        self.status = status
        self.grpc = grpc or GRPC.get(status, "INTERNAL")
        self.code = code
        self.message = message[:MAX_TEXT].encode("utf-8", "replace").decode()
        self.details = details
        super().__init__(message)


def row_of(error: MeshError, method: Method | None) -> Row:
    """Find the row of a failure of an operation; None = it was no operation yet."""
    codes = [kind.code for kind in type(error).__mro__ if issubclass(kind, MeshError)]
    scopes = (str(method), method.block, "*") if method is not None else ()
    keys = [f"{scope}/{code}" for scope in scopes for code in codes]
    found = next((ERRORS[key] for key in (*keys, str(method), *codes) if key in ERRORS), None)
    assert found is not None  # Every error is a MeshError.
    return found


def answer(
    error: MeshError,
    method: Method | None = None,
    target: str = "",
    arguments: object = None,
    app_id: str = "",
    namespace: str = "",
) -> APIError:
    """Say what clients are told of a failure.

    Args:
        error: What went wrong.
        method: Of the operation; None = it was no operation yet.
        target: Of the operation.
        arguments: Of the operation.
        app_id: Of its caller.
        namespace: Of its caller.
    """
    return told(row_of(error, method), error, target, arguments, app_id, namespace)


def told(
    row: Row,
    error: object = None,
    target: str = "",
    arguments: object = None,
    app_id: str = "",
    namespace: str = "",
) -> APIError:
    """Make the failure of a row; what its texts do not use may be left out."""
    if len(target) > MAX_TARGET:
        target = f"{target[:40]}…"
    words = {"error": error, "target": target, "arguments": arguments, "app_id": app_id, "namespace": namespace}
    message = row.text.format(**words)
    details: list[Mapping[str, object]] = []
    if row.field:
        violation = {"description": message, "field": row.field.format(**words)}
        details.append({"@type": TYPES + "BadRequest", "field_violations": [violation]})
    if row.resource:
        details.append(
            {
                "@type": TYPES + "ResourceInfo",
                "description": message if row.resource == "pubsub" else "",
                "owner": "",
                "resource_name": target,
                "resource_type": row.resource,
            }
        )
    if row.reason:
        metadata = dict(getattr(arguments, "metadata", {})) if row.asked else {}
        metadata |= {name: text.format(**words) for name, text in row.metadata}
        details.append({"@type": TYPES + "ErrorInfo", "domain": "dapr.io", "metadata": metadata, "reason": row.reason})
    return APIError(row.status, row.code, message, details or None, row.grpc)


def malformed(reason: object) -> APIError:
    """The body is not the JSON it should be."""
    return APIError(400, "ERR_MALFORMED_REQUEST", f"failed deserializing HTTP body: {reason}")


def bad_request(reason: object) -> APIError:
    """Something about the request is wrong."""
    return APIError(400, "ERR_BAD_REQUEST", f"invalid request: {reason}")


def too_large(limit_bytes: int) -> APIError:
    """The body is above what the gateway holds in memory."""
    return APIError(413, "ERR_BODY_READ", f"the body is larger than {limit_bytes} bytes (--max-body-size)")


def header_too_large(reason: str) -> APIError:
    """The header is above a limit."""
    return APIError(431, "ERR_BAD_REQUEST", f"invalid request: {reason}")


def too_slow(seconds: float) -> APIError:
    """The body did not arrive in time."""
    return APIError(408, "ERR_BODY_READ", f"the body did not arrive within {seconds:g} s")


def unsendable(reason: object) -> APIError:
    """What is to be answered cannot be written."""
    return APIError(500, "ERR_INTERNAL", f"the answer cannot be sent: {reason}")


def unexpected(error: Exception) -> APIError:
    """A failure nobody foresaw where it happened."""
    if isinstance(error, MeshError):
        return answer(error)
    return APIError(500, "ERROR", f"internal error: {type(error).__name__}")
