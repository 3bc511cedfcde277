"""What a broker without frames has in their place."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from mesh.address import Address
from mesh.broker import Features, Message, Sink
from mesh.errors import FeatureNotSupportedError

__all__ = ["Frameless"]


class Frameless:
    """Refuses to send and to take frames.

    Attributes:
        features: Those of the broker, without ``frames``.
    """

    features: Features

    def on_frame(self, sink: Sink) -> None:
        """Do nothing: none will come."""

    async def send(self, to: str | Address, message: Message, reply_to: str = "") -> None:
        """Refuse."""
        raise self._refusal()

    def serve(self, address: Address, group: str, sink: Sink) -> AbstractAsyncContextManager[None]:
        """Refuse."""
        raise self._refusal()

    async def broadcast(self, address: Address, message: Message) -> None:
        """Refuse."""
        raise self._refusal()

    def listen(self, address: Address, sink: Sink) -> AbstractAsyncContextManager[None]:
        """Refuse."""
        raise self._refusal()

    def _refusal(self) -> FeatureNotSupportedError:
        return FeatureNotSupportedError(self.features.name, "frames between nodes; use another broker as the backbone")
