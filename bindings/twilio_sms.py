"""Short messages of Twilio: sends them, and those that arrive there trigger applications.

Sources: Twilio's pages on webhooks; Dapr 1.18, the Twilio SMS binding.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import ClassVar

from bindings._listener import AT_ONCE, MOST_BYTES, PORT, Listener, place_of
from bindings._service import protected
from bindings._twilio_send import OPERATIONS, TWILIO, TwilioMessages
from bindings._twilio_webhook import sms_listener
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import Invoke, Reading
from mesh.resources.settings import COUNT, LIMIT, SIZE, VERBATIM, setting

__all__ = ["TwilioSMSBinding"]


@dataclass(frozen=True, slots=True)
class TwilioSMSSettings:
    """What is read of a component."""

    token: str = setting("authToken", "The account's token.", VERBATIM, required=True, secret=True)
    account: str = setting("accountSid", "The account's SID; not set = no messages are sent.", default="")
    sender: str = setting("fromNumber", "The number that messages come from.", default="", example="+15551234567")
    to: str = setting("toNumber", "The number that they go to; empty = each call says it.", default="")
    timeout: float = setting("timeout", "How long Twilio may take to answer.", LIMIT, default=300.0)
    endpoint: str = setting("endpoint", "Where Twilio is; other regions are elsewhere.", default=TWILIO)
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

    title = "Sends short messages by Twilio, and takes those that arrive there."
    tested = "a server with the request that sends, and requests signed as Twilio's pages show; not the real service"
    settings: ClassVar[type[TwilioSMSSettings]] = TwilioSMSSettings
    operations = OPERATIONS

    def __init__(self, settings: TwilioSMSSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._listener: Listener
        self._messages: TwilioMessages
        self.directions = ("input",) * (settings.port is not None) + ("output",) * bool(settings.account)

    async def _enter(self) -> None:
        settings: TwilioSMSSettings = self._settings
        if bool(settings.account) != bool(settings.sender):
            raise self._problem("accountSid and fromNumber go together", "accountSid")
        if not protected(settings.endpoint):
            raise self._problem("is a URL with https", "endpoint")
        if settings.account:
            messages = TwilioMessages(
                *(settings.account, settings.token, settings.sender, settings.to),
                seconds=settings.timeout,
                url=settings.endpoint,
            )
            self._messages = await self._stack.enter_async_context(messages)
        if settings.port is None:
            return
        if not settings.url.startswith(("https://", "http://")):
            raise self._problem("messages come in by publicUrl, which is a part of what is signed", "publicUrl")
        self._listener = sms_listener(place_of(settings, self._problem), settings.url, settings.token)

    def reading(self, reading: Reading) -> AbstractAsyncContextManager[None]:
        """Take what arrives while it is entered."""
        return self._listener.joined(reading.handle)

    async def invoke(self, asked: Invoke) -> None:
        """Send a message: the data are its text."""
        await self._messages.invoke(asked)
