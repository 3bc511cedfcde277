"""``python -m tests.support.crowd``: many nodes in one process, without HTTP, that tell of themselves and are tapped.

Each is a node to whoever asks the mesh: it has an id of its own, and answers with what a gateway answers with. They
share one connection to the backbone. What passes them is made up, by the same generator on each machine.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import sys
from contextlib import AsyncExitStack

from mesh.node.description import answering
from mesh.registry import Registry

__all__ = ["APPS", "TOPICS"]

APPS, TOPICS = 200, 2_000
PUBLISHED, SUBSCRIBED = TOPICS // APPS, 20
NAMESPACE = "default"


class _Member:
    """One node."""

    def __init__(self, number: int, dice: random.Random) -> None:
        self.id = secrets.token_hex(8)
        self.app_id = f"app-{number:03}"
        self.published = [("pubsub", f"topic-{number * PUBLISHED + each:04}") for each in range(PUBLISHED)]
        self.subscribed = [("pubsub", f"topic-{each:04}") for each in dice.sample(range(TOPICS), SUBSCRIBED)]

    def answer(self) -> dict[str, object]:
        """Say what a gateway says."""
        about = {
            "app": self.app_id,
            "subscriptions": [(*each, "") for each in self.subscribed],
            "published": self.published,
            "methods": None,
            "components": [("pubsub", "pubsub.mesh"), ("statestore", "state.mesh")],
            "actors": [],
        }
        return {"node": self.id, "ready": [self.app_id], "about": about}


async def main(backbone: str) -> None:
    """Answer until it is told to end."""
    broker = Registry().backbone(backbone).from_url(backbone)
    dice = random.Random(200)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(broker)
        for number in range(APPS):
            await stack.enter_async_context(answering(broker, NAMESPACE, _Member(number, dice).answer))
        print("all answer", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
