"""FastStream applications on the mesh, without a gateway.

FastStream keeps what it is best at: decorators, injection, validation, middlewares, its TestBroker and
AsyncAPI. The mesh does the transport: a `Mesh` is a node, as a gateway is one, whose application is in
the same process. So events settle by the same state machine, calls stream by the same exchange, and
instances compete with gateways of the same app id, on every backbone there is an adapter for.

==============  ====================================================================================
ours            in FastStream
==============  ====================================================================================
subscription    a subscriber of the user's broker; ``Mesh`` hands it each delivery by its
                ``process_message``, the method that TestBroker uses
method          the same, for invocations; what it returns is the answer
event           ``message.event``, or a parameter ``event: Annotated[Event, Context("message.event")]``
CloudEvent      what a handler takes, returns or publishes may be an event of the package ``cloudevents``
settlement      the handler returns: ack; it raises: retry by policy; ``RejectMessage`` or
                ``message.reject()``: dead letter; ``NackMessage`` or ``message.nack()``: retry
publisher       a publisher of the user's broker, taken over by a middleware and confirmed by the mesh
lifetime        ``FastStream(broker, lifespan=mesh.lifespan)``
==============  ====================================================================================

Components of both layouts are the node's, as a gateway's are: what stands on a broker is made and read by the
component's wire, and its adapter has groups and settlement. FastStream's own subscribers never read it.

A subscriber needs a place on FastStream's own connection as well. It is a name with slashes, which no
mesh uses (``mesh/default/pubsub/orders``), so that nothing arrives there but what a test sends.

Source: FastStream 0.7.8, its documented API (subscribers, publishers, middlewares, lifespan, testing).
"""

from brokers.faststream._application import Reply
from brokers.faststream._mesh import Mesh
from brokers.faststream._message import Answered, IncomingCall, MeshMessage

__all__ = ["Answered", "IncomingCall", "Mesh", "MeshMessage", "Reply"]
