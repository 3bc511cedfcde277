"""Short messages of Twilio: those that arrive there trigger applications.

Source: Twilio's pages on webhooks; names of settings as in Dapr 1.18.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import ClassVar

from bindings._listener import AT_ONCE, MOST_BYTES, PORT, Listener, place_of
from bindings._twilio_webhook import sms_listener
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import Reading
from mesh.resources.settings import COUNT, SIZE, VERBATIM, setting

__all__ = ["TwilioSMSBinding"]


@dataclass(frozen=True, slots=True)
class TwilioSMSSettings:
    """What is read of a component."""

    token: str = setting("authToken", "The account's token.", VERBATIM, required=True, secret=True)
    port: int | None = setting(
        "port", "Where Twilio's webhook comes in; not set = no messages come in.", PORT, example="8085"
    )
    address: str = setting("address", "The address that it listens at; `0.0.0.0` is all.", default="127.0.0.1")
    path: str = setting("path", "The path that is posted to.", default="/")
    url: str = setting(
        "publicUrl",
        "The URL that Twilio posts to, as it stands there; a part of what it signs.",
        default="",
        example="https://a.example.com/sms",
    )
    most: int = setting("maxBodySize", "The largest body of a webhook.", SIZE, default=MOST_BYTES)
    at_once: int = setting("maxConcurrency", "How many messages are handled at once.", COUNT, default=AT_ONCE)


class TwilioSMSBinding(ComponentAdapter):
    """An account at Twilio."""

    title = "Takes the short messages that arrive at Twilio."
    tested = "requests signed as Twilio's pages show; it never ran against the real service"
    settings: ClassVar[type[TwilioSMSSettings]] = TwilioSMSSettings

    def __init__(self, settings: TwilioSMSSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._listener: Listener
        self.directions = () if settings.port is None else ("input",)

    async def _enter(self) -> None:
        settings: TwilioSMSSettings = self._settings
        if settings.port is None:
            return
        if not settings.url.startswith(("https://", "http://")):
            raise self._problem("messages come in by publicUrl, which is a part of what is signed", "publicUrl")
        self._listener = sms_listener(place_of(settings, self._problem), settings.url, settings.token)

    def reading(self, reading: Reading) -> AbstractAsyncContextManager[None]:
        """Take what arrives while it is entered."""
        return self._listener.joined(reading.handle)
