"""What keeps a call from its answer: of HTTP/1.1 and HTTP/2 alike."""

from __future__ import annotations

__all__ = ["BusyError", "ConnectError", "NotSpokenError", "ResponseError"]


class ConnectError(Exception):
    """Nobody accepts the connection; nothing was sent."""


class NotSpokenError(ConnectError):
    """There is somebody, who speaks another protocol; nothing was sent."""


class BusyError(ConnectError):
    """There is somebody, who takes no more calls at once; it has not begun with this one."""


class ResponseError(Exception):
    """The other side broke off, or does not speak HTTP."""
