"""A client on the unmodified Python SDK, over HTTP and gRPC; prints what it saw as one line of JSON."""

import json

import grpc
from dapr.clients import DaprClient
from dapr.clients.exceptions import DaprInternalError
from dapr.clients.health import DaprHealth
from dapr.clients.http.dapr_invocation_http_client import DaprInvocationHttpClient

DaprHealth.wait_for_sidecar()
client = DaprInvocationHttpClient()
answer = client.invoke_method("callee", "echo", b'{"from":"python"}', content_type="application/json", http_verb="POST")
try:
    client.invoke_method("nobody", "x", b"", http_verb="GET")
    refused = ""
except DaprInternalError as error:
    refused = str(error)
with DaprClient() as over_grpc:
    try:
        over_grpc.get_state("statestore", "key")
        told = ""
    except grpc.RpcError as error:
        told = f"{error.code().name}: {error.details()}"
print(json.dumps({"answer": answer.text(), "refused": refused, "told": told}))
