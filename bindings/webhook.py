"""Events that services post over HTTP, as they say what has happened there: webhooks.

Who posts is answered once the applications have taken the event, so that it can post again what they have not.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import ClassVar

import orjson

from bindings._listener import AT_ONCE, MOST_BYTES, PORT, Answer, Listener, Posted, metadata_of, place_of
from bindings._signatures import SIGNATURES, Generic, Signed
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingEvent, Reading
from mesh.resources.settings import BOOLEAN, COUNT, SIZE, VERBATIM, choice, setting

__all__ = ["WebhookBinding"]


def _is_loopback(host: str) -> bool:
    """Tell whether nobody else can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """What is read of a component."""

    port: int = setting("port", "Where it listens.", PORT, required=True, example="8085")
    address: str = setting("address", "The address that it listens at; `0.0.0.0` is all.", default="127.0.0.1")
    path: str = setting("path", "The path that is posted to.", default="/", example="/hooks/orders")
    signature: str = setting(
        "signature",
        "How requests are signed; beyond this machine it must be said, even if it is `none`.",
        choice("none", "github", "stripe", "slack", "shopify", "twilio", "generic"),
        example="github",
    )
    secret: str = setting("secret", "What they are signed with.", VERBATIM, default="", secret=True)
    former: str = setting("previousSecret", "Taken as well, while it is changed.", VERBATIM, default="", secret=True)
    header: str = setting("signatureHeader", "For `generic`: the header field of the signature.", default="")
    algorithm: str = setting(
        "signatureAlgorithm", "For `generic`: the hash.", choice("sha256", "sha1", "sha512"), default="sha256"
    )
    encoding: str = setting(
        "signatureEncoding", "For `generic`: how it is written.", choice("hex", "base64"), default="hex"
    )
    prefix: str = setting("signaturePrefix", "For `generic`: what stands before it.", default="", example="sha256=")
    url: str = setting(
        "publicUrl",
        "For `twilio`: the URL that is posted to, as Twilio knows it.",
        default="",
        example="https://a.example.com/sms",
    )
    most: int = setting("maxBodySize", "The largest body.", SIZE, default=MOST_BYTES)
    at_once: int = setting("maxConcurrency", "How many requests are handled at once.", COUNT, default=AT_ONCE)
    answers: bool = setting(
        "answer", "Whether who posts is answered with what the application answered, as JSON.", BOOLEAN, default=False
    )


class WebhookBinding(ComponentAdapter):
    """A place that services post to."""

    title = "Takes what services post over HTTP, as of GitHub, Stripe, Slack or Shopify, by their signatures."
    tested = "HTTP clients, and signatures that the services' pages show"
    settings: ClassVar[type[WebhookSettings]] = WebhookSettings

    def __init__(self, settings: WebhookSettings) -> None:
        """Prepare; it listens while somebody reads."""
        super().__init__(settings)
        self._verify: Callable[[Signed, str], bool] | None = None
        self._fields: Sequence[str] = ()
        self._secrets = [each for each in (settings.secret, settings.former) if each]
        self._listener: Listener

    async def _enter(self) -> None:
        settings: WebhookSettings = self._settings
        if settings.signature is None and not _is_loopback(settings.address):
            raise self._problem(
                "whoever reaches this address could post: say how requests are signed, or `none`", "signature"
            )
        if settings.signature == "generic":
            if not settings.header:
                raise self._problem("`generic` needs signatureHeader", "signature")
            made = Generic(settings.header, settings.algorithm, settings.encoding, settings.prefix)
            self._verify, self._fields = made, (settings.header,)
        elif settings.signature not in (None, "none"):
            self._verify, self._fields = SIGNATURES[settings.signature]
        if self._verify is not None and not self._secrets:
            raise self._problem(f"`{settings.signature}` needs the secret", "secret")
        if self._verify is None and self._secrets:
            raise self._problem("with a secret it must be said how requests are signed", "signature")
        if settings.signature == "twilio" and not settings.url.startswith(("https://", "http://")):
            raise self._problem("`twilio` needs publicUrl, which is a part of what is signed", "signature")
        self._listener = Listener(place_of(settings, self._problem), self._look, self._render)

    def reading(self, reading: Reading) -> AbstractAsyncContextManager[None]:
        """Take what is posted while it is entered."""
        return self._listener.joined(reading.handle)

    def _look(self, posted: Posted) -> BindingEvent | Answer:
        settings: WebhookSettings = self._settings
        if self._verify is not None:
            url = settings.url + (f"?{posted.query}" if posted.query and "?" not in settings.url else "")
            signed = Signed(posted.headers, posted.body, time.time(), url)
            if not any(self._verify(signed, secret) for secret in self._secrets):
                return Answer(401, b"not signed by who may post\n")
        elif "Origin" in posted.headers:  # A web page of anybody's, in a browser on this machine.
            return Answer(403, b"not from a browser\n")
        if settings.signature == "slack" and (challenge := _challenge(posted.body)) is not None:
            return Answer(200, challenge.encode())
        if settings.signature == "github" and posted.headers.get("X-GitHub-Event") == "ping":
            return Answer(200)
        return BindingEvent(posted.body, metadata_of(posted, *self._fields))

    def _render(self, answers: Sequence[bytes]) -> Answer:
        said = next((each for each in answers if each), b"") if self._settings.answers else b""
        return Answer(200, said, "application/json" if said else "text/plain")


def _challenge(body: bytes) -> str | None:
    """Read by what Slack sees that this is the place that it was told."""
    try:
        read = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(read, dict) or read.get("type") != "url_verification":
        return None
    challenge = read.get("challenge")
    return challenge if isinstance(challenge, str) else None
