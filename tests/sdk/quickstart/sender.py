"""The sending application of a quickstart, as it is written for `dapr run`."""

import json
import os

from dapr.clients import DaprClient

with DaprClient() as client:
    client.save_state("statestore", "order", json.dumps({"id": 7}))
    order = client.get_state("statestore", "order").json()
    client.publish_event("pubsub", "orders", json.dumps(order), data_content_type="application/json")
    answer = client.invoke_method("receiver", "greet", b"sender", content_type="text/plain", http_verb="POST")
    print(f"sent order {order['id']}, and was told {answer.text()}", flush=True)
    print(f"by {os.environ['DAPR_GRPC_PORT']} {os.environ['DAPR_GRPC_ENDPOINT']}", flush=True)
