"""Sends some orders, addressed by a header, and ends."""

import time
from urllib.error import HTTPError

from web import call


def passed_on(number):
    while True:
        try:
            return call("/orders", {"orderId": number}, dapr_app_id="order-processor")
        except HTTPError:
            # Both are started at the same time.
            time.sleep(0.1)


for number in range(1, 4):
    print(f"order {passed_on(number)['orderId']} is passed on")
