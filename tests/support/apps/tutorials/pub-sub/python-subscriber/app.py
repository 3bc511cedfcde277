"""Hears of A and C."""

from web import say, serve


def heard(event):
    say(f"python heard {event['topic']}: {event['data']['message']}")
    return {"success": True}


topics = [{"pubsubname": "pubsub", "topic": topic, "route": topic} for topic in "AC"]
serve({"GET /dapr/subscribe": lambda _: topics, "POST /A": heard, "POST /C": heard})
