"""Takes orders."""

from web import say, serve


def taken(order):
    say(f"order {order['orderId']} is taken")
    return order


serve({"POST /orders": taken})
