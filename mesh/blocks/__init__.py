"""The building blocks, each written against the broker contract alone; this table is all that names them."""

from mesh.blocks import (
    actor_block,
    bindings,
    configuration,
    conversation,
    crypto,
    durable,
    invocation,
    jobs,
    lock,
    middleware,
    pubsub,
    secrets,
    state,
    workflow_block,
)
from mesh.blocks.block import Block

__all__ = ["BLOCKS"]

# Components are opened in this order, as far as they do not wait for a secret.
BLOCKS: tuple[Block, ...] = (
    secrets.BLOCK,
    pubsub.BLOCK,
    state.BLOCK,
    configuration.BLOCK,
    lock.BLOCK,
    bindings.BLOCK,
    crypto.BLOCK,
    conversation.BLOCK,
    middleware.BLOCK,
    invocation.BLOCK,
    durable.BLOCK,
    actor_block.BLOCK,
    jobs.BLOCK,
    workflow_block.BLOCK,
)
