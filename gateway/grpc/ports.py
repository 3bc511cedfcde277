"""What clients are told that speak the one protocol on the port of the other."""

from __future__ import annotations

from collections.abc import Callable

from httpunk.h2.server import ServerRequest

from gateway.grpc.wire import CONTENT_TYPE, is_type, status_fields
from gateway.http2.server import Handler, Peer
from gateway.status import Code

__all__ = ["HTTP_1_ANSWER", "not_grpc", "without_grpc"]

HTTP_1_ANSWER = (
    "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n{text}"
)


def not_grpc(http_port: int) -> str:
    """Say it to a client of HTTP."""
    return f"this port speaks gRPC; the HTTP API is on {_at(http_port)}\n"


def without_grpc(answer: Handler, grpc_port: Callable[[], int]) -> Handler:
    """Answer requests of HTTP/2, and tell clients of gRPC where to go, in their own way.

    Args:
        answer: Answers the others.
        grpc_port: Gives the port of gRPC; 0 = a socket file.
    """

    async def answer_or_refuse(request: ServerRequest, peer: Peer) -> None:
        fields = request.headers
        kind = fields.get("content-type", b"").decode("utf-8", "replace") if request.method == "POST" else ""
        if not is_type(kind) or fields.get("te") != b"trailers":
            await answer(request, peer)
            return
        text = f"this port speaks HTTP; the gRPC API is on {_at(grpc_port())}"
        await request.respond(200, headers=[("content-type", CONTENT_TYPE), *status_fields(Code.UNIMPLEMENTED, text)])

    return answer_or_refuse


def _at(port: int) -> str:
    return f"port {port}" if port else "a socket file of its own"
