"""Publishes some orders and ends."""

import time

from web import call

for number in range(1, 4):
    call("/v1.0/publish/orderpubsub/orders", {"orderId": number})
    print(f"order {number} is published")
    time.sleep(0.1)
