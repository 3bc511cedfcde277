"""Hears of orders."""

from web import say, serve


def heard(event):
    say(f"order {event['data']['orderId']} is processed")
    return {"success": True}


orders = {"pubsubname": "orderpubsub", "topic": "orders", "route": "orders"}
serve({"GET /dapr/subscribe": lambda _: [orders], "POST /orders": heard})
