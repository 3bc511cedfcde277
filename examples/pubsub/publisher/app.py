"""Publishes an order every second, by plain HTTP to its gateway."""

import itertools
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request

PORT = os.environ.get("DAPR_HTTP_PORT", "3500")
URL = f"http://127.0.0.1:{PORT}/v1.0/publish/pubsub/orders"
ITEMS = ("teapot", "piano", "spoon", "unicorn")
PRICES = {"teapot": 25, "piano": 4000, "spoon": 2, "unicorn": 1}


def publish(order: dict[str, object]) -> None:
    request = urllib.request.Request(URL, json.dumps(order).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5):
            print(f"Published order {order['orderId']}: {order['item']}")
    except urllib.error.HTTPError as error:
        print(f"Order {order['orderId']} was not published: {error.code} {error.read().decode(errors='replace')}")
    except OSError as error:
        print(f"Order {order['orderId']} was not published: {error}")


for each in (signal.SIGINT, signal.SIGTERM):
    signal.signal(each, lambda *_: sys.exit(0))

for number, item in zip(itertools.count(1), itertools.cycle(ITEMS)):
    publish({"orderId": number, "item": item, "total": PRICES[item]})
    time.sleep(1)
