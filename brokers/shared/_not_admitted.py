"""A detail of ``BrokerUnavailableError``: whether asking again is of any use."""

from __future__ import annotations

from mesh.errors import BrokerUnavailableError

__all__ = ["NotAdmittedError"]


class NotAdmittedError(BrokerUnavailableError):
    """One side does not accept the other's credentials or certificate, and will not in future."""

    retryable = False
