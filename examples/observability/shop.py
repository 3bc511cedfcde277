"""Sends an order every second, through the gateway on its localhost."""

import itertools
import json
import os
import time
import urllib.request

URL = f"http://127.0.0.1:{os.environ.get('DAPR_HTTP_PORT', '3500')}/v1.0/invoke/orders/method/orders"
# The second can not be sold, and there is no address that the third could be confirmed to.
ORDERS = (
    *({"item": "spoon", "mail": "ada@example.com"}, {"item": "unicorn", "mail": "ada@example.com"}),
    *({"item": "teapot", "mail": ""}, {"item": "piano", "mail": "grace@example.com"}),
)

for number, order in zip(itertools.count(1), itertools.cycle(ORDERS)):
    body = json.dumps({"orderId": number, **order}).encode()
    try:
        urllib.request.urlopen(urllib.request.Request(URL, body, {"Content-Type": "application/json"})).close()
        print(f"Sent order {number}", flush=True)
    except OSError as error:
        print(f"Order {number} failed: {error}", flush=True)
    time.sleep(1)
