"""How an application on gRPC says that it has no such method, where its server is one of HTTP."""

from __future__ import annotations

from mesh.errors import AppFailedError

__all__ = ["NotServedError"]


class NotServedError(AppFailedError):
    """A 404 of HTTP: servers of HTTP that speak gRPC besides say so what they have not, and so does any other server.

    So it chooses among methods, but settles nothing: a server that is just starting would lose each event.
    """
