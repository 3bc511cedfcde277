"""Sends orders to the other application, through a gateway of its own."""

import itertools
import time

from web import call

for number in itertools.count(1):
    call("/v1.0/invoke/nodeapp/method/neworder", {"data": {"orderId": number}})
    print(f"order {number} is sent")
    time.sleep(0.2)
