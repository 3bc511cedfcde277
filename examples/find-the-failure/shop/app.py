"""Publishes two orders a second, by plain HTTP to its gateway. One customer in five takes everything back."""

import itertools
import json
import os
import signal
import sys
import time
import urllib.request

PORT = os.environ.get("DAPR_HTTP_PORT", "3500")
URL = f"http://127.0.0.1:{PORT}/v1.0/publish/pubsub/orders"
ORDERS = (("teapot", 2, 50), ("spoon", 6, 12), ("piano", 1, 4000), ("spoon", 12, 24), ("teapot", 0, 0))


def publish(order: dict[str, object]) -> None:
    request = urllib.request.Request(URL, json.dumps(order).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5):
            print(f"Published order {order['orderId']}: {order['quantity']} × {order['item']}")
    except OSError as error:
        print(f"Order {order['orderId']} was not published: {error}")


for each in (signal.SIGINT, signal.SIGTERM):
    signal.signal(each, lambda *_: sys.exit(0))

for number, (item, quantity, total) in zip(itertools.count(1), itertools.cycle(ORDERS)):
    publish({"orderId": number, "item": item, "quantity": quantity, "total": total})
    time.sleep(0.5)
