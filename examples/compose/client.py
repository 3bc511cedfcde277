"""Sends an order every second, through the gateway on its localhost."""

import itertools
import json
import os
import time
import urllib.request

URL = f"http://127.0.0.1:{os.environ.get('DAPR_HTTP_PORT', '3500')}/v1.0/invoke/orders/method/orders"

for number in itertools.count(1):
    body = json.dumps({"orderId": number}).encode()
    try:
        urllib.request.urlopen(urllib.request.Request(URL, body, {"Content-Type": "application/json"})).close()
        print(f"Sent order {number}", flush=True)
    except OSError as error:
        print(f"Order {number} failed: {error}", flush=True)
    time.sleep(1)
