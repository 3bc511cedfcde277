"""Sends an order every second to the application ``nodeapp``, by plain HTTP to its own gateway."""

import itertools
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request

PORT = os.environ.get("DAPR_HTTP_PORT", "3500")
URL = f"http://127.0.0.1:{PORT}/v1.0/invoke/nodeapp/method/neworder"


def send(order_id: int) -> None:
    body = json.dumps({"data": {"orderId": order_id}}).encode()
    request = urllib.request.Request(URL, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5):
            print(f"Order {order_id} was taken")
    except urllib.error.HTTPError as error:
        # The other application may not have started yet; the next order may get through.
        print(f"Order {order_id} failed: {error.code} {error.read().decode(errors='replace')}")
    except OSError as error:
        print(f"Order {order_id} failed: {error}")


for each in (signal.SIGINT, signal.SIGTERM):
    signal.signal(each, lambda *_: sys.exit(0))

for number in itertools.count(1):
    send(number)
    time.sleep(1)
