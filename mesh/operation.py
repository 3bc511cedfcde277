"""One thing asked by one application, whoever carries it: an HTTP route, the command line, another node.

An `Operation` goes through the pipeline (`mesh/pipeline.py`) and nothing reaches a building block another way.
What it can be is a `Method` of a block; the arguments are one frozen value, which also is what crosses the
backbone when the component is hosted elsewhere (`mesh/host.py`). An `Arrival` is the mirror image: something
for this node's application, which goes through the inbound pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from mesh.errors import MeshError
from mesh.policies import Verdict, by_error

if TYPE_CHECKING:
    from mesh.flow import Body
    from mesh.passing import Passing
    from mesh.trust.identity import Identity

__all__ = ["DEFAULT_SECONDS", "UNTRACED", "Arrival", "Caller", "Context", "Method", "Operation", "Trace"]

DEFAULT_SECONDS = 15.0


class Caller(msgspec.Struct, frozen=True):
    """Who asks.

    Attributes:
        namespace: The mesh's namespace that it is in.
        app_id: Its app id.
        proven: Whether that was proven to who acts on it; else it is what the asking node says.
        trust_domain: Of the identity, where it is proven.
    """

    namespace: str
    app_id: str
    proven: bool = False
    trust_domain: str = "public"

    @classmethod
    def proven_by(cls, identity: Identity, app_id: str = "") -> Caller:
        """Make the caller that somebody has proven to be, or may speak for (``mesh/clusters.py``)."""
        return cls(identity.namespace, app_id or identity.app_id, proven=True, trust_domain=identity.trust_domain)


class Trace(NamedTuple):
    """The part of a `Context` that names the trace; see there."""

    traceparent: str | None = None
    tracestate: str = ""
    baggage: str = ""
    own: bool = False


UNTRACED = Trace()


class Context(msgspec.Struct, frozen=True):
    """Around what it is asked.

    Attributes:
        caller: Who asks.
        deadline: Unix time in seconds, as the caller gave it; None leaves it to the policy or the block.
        traceparent: Of the span that this belongs to; None when there is none.
        tracestate: What goes with it.
        baggage: What applications want to be passed on with everything that follows from it.
        own: Whether the span is that of this one thing, as a gateway's of a call of its API, and not of whoever asks.
    """

    caller: Caller
    deadline: float | None = None
    traceparent: str | None = None
    tracestate: str = ""
    baggage: str = ""
    own: bool = False


def _whole(_: object) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Method:
    """Something that a building block can be asked; a constant of the block's module.

    Attributes:
        block: The block's name (``state``).
        name: The method's name (``get``), which is that of the function that runs it.
        arguments: The type of ``Operation.arguments``.
        result: The type of what it gives.
        seconds: How long one attempt may take where neither client nor policy says so; infinite for a stream.
        judge: What a policy makes of its result or error.
        grace: Seconds after the deadline in which the block itself says what it waited for, before it is cancelled.
        guarded: Whether the target's policy is around it; not where only this node is asked.
        streamed: Whether bytes in parts may follow its arguments, and its result, which then is a ``Flow``.
        told: Gives what an observer is told besides target and outcome, of the arguments and the result (None for a
            failure); None = nothing.
        endpoint: Gives the part of the target that is asked, of the arguments, where a policy tells these apart.
    """

    block: str
    name: str
    arguments: type
    result: object = None
    seconds: float = DEFAULT_SECONDS
    judge: Callable[[Operation, object, MeshError | None], Verdict] | None = None
    grace: float = 0.0
    guarded: bool = True
    streamed: bool = False
    told: Callable[[Any, Any], tuple[str, ...]] | None = None
    endpoint: Callable[[Any], str] = _whole

    def __str__(self) -> str:
        return f"{self.block}.{self.name}"


@dataclass(slots=True)
class Operation:
    """One thing asked. Only the pipeline, and the block for its next attempt, change it.

    Attributes:
        method: What.
        target: Of whom: a component, an app id, an actor…
        arguments: With what; of the method's type.
        context: By whom, until when.
        deadline: Unix time in seconds until which this attempt may take; set by the pipeline.
        limit: Seconds that a policy gives to one attempt; None = the method's own. Set by the pipeline.
        waits: Whether an attempt may wait for a target that is away; not where a policy says what follows a failure.
            Set by the pipeline.
        kept: What the block makes once for all attempts, as the events of a publish: another attempt is no other event.
        sent: Whether a host was asked, which may have done some of it.
        body: What follows the arguments of a streamed method; None = nothing.
    """

    method: Method
    target: str
    arguments: object
    context: Context
    deadline: float = 0.0
    limit: float | None = None
    waits: bool = True
    kept: object = None
    sent: bool = False
    body: Body | None = None

    def judged(self, result: object, error: MeshError | None) -> Verdict:
        """Say what an attempt came to."""
        judge = self.method.judge
        verdict = by_error(result, error) if judge is None else judge(self, result, error)
        gone = self.body is not None and self.body.begun
        return verdict._replace(again=False) if gone else verdict


class Arrival(NamedTuple):
    """An event, a durable call or a call, once each attempt to hand it to the application.

    Attributes:
        headers: Of its message: who sent it, in which trace.
        deadline: Unix time in seconds until which its sender waits; None = the broker keeps it.
        what: It, for the innermost stage: the delivery, or what begins the call.
        passing: What is told of it; None = nobody watches.
    """

    headers: Mapping[str, str]
    deadline: float | None
    what: Any
    passing: Passing | None = None
