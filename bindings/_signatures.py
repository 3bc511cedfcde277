"""Signatures of requests that services send: who knows a secret has sent this body.

Comparisons take the same time however much is right. What says when it was signed is not taken after five minutes, so
that a request that somebody has overheard cannot be repeated for ever.

Sources: the pages of GitHub, Stripe, Slack, Shopify and Twilio on their webhooks.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

__all__ = ["SIGNATURES", "TOLERANCE_SECONDS", "Generic", "Signed", "twilio_signature"]

TOLERANCE_SECONDS = 300.0
_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Signed:
    """A request that is to be verified.

    Attributes:
        headers: Without regard to case.
        body: As it came.
        now: Unix time.
        url: The one that it was sent to, as its sender knows it.
    """

    headers: Mapping[str, str]
    body: bytes
    now: float
    url: str = ""


def _same(given: str, expected: str) -> bool:
    # As a header field is decoded, bytes that are no UTF-8 are surrogates.
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())


def _hex(secret: str, signed: bytes) -> str:
    return hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def _recent(text: str, now: float) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 16 and abs(now - int(text)) <= TOLERANCE_SECONDS


def _github(request: Signed, secret: str) -> bool:
    return _same(request.headers.get("X-Hub-Signature-256", ""), f"sha256={_hex(secret, request.body)}")


def _stripe(request: Signed, secret: str) -> bool:
    parts = [part.strip().partition("=")[::2] for part in request.headers.get("Stripe-Signature", "").split(",")]
    moment = next((value for name, value in parts if name == "t"), "")
    expected = _hex(secret, moment.encode("utf-8", "surrogateescape") + b"." + request.body)
    # Several while the secret is changed.
    return _recent(moment, request.now) and any(_same(value, expected) for name, value in parts if name == "v1")


def _slack(request: Signed, secret: str) -> bool:
    moment = request.headers.get("X-Slack-Request-Timestamp", "")
    if not _recent(moment, request.now):
        return False
    expected = f"v0={_hex(secret, b'v0:' + moment.encode() + b':' + request.body)}"
    return _same(request.headers.get("X-Slack-Signature", ""), expected)


def _shopify(request: Signed, secret: str) -> bool:
    digest = hmac.new(secret.encode(), request.body, hashlib.sha256).digest()
    return _same(request.headers.get("X-Shopify-Hmac-Sha256", ""), base64.b64encode(digest).decode())


def twilio_signature(url: str, pairs: Iterable[tuple[str, str]], secret: str) -> str:
    """Sign a request to a URL with fields of a form."""
    text = url + "".join(name + value for name, value in sorted(set(pairs)))
    return base64.b64encode(
        hmac.new(secret.encode(), text.encode("utf-8", "surrogateescape"), hashlib.sha1).digest()
    ).decode()


def _twilio(request: Signed, secret: str) -> bool:
    given, parts = request.headers.get("X-Twilio-Signature", ""), urlsplit(request.url)
    pairs: list[tuple[str, str]] = []
    if request.headers.get("Content-Type", "").partition(";")[0].strip() == "application/x-www-form-urlencoded":
        pairs = parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True)
    else:
        digest = next((value for name, value in parse_qsl(parts.query) if name == "bodySHA256"), "")
        if request.body and not _same(digest.lower(), hashlib.sha256(request.body).hexdigest()):
            return False
    host = parts.netloc.rpartition("@")[2]
    bare = parts.netloc.removesuffix(f":{parts.port}") if parts.port else parts.netloc
    # Whether the port is written depends on what Twilio signs.
    ways = {parts.netloc, bare, parts.netloc if parts.port else f"{host}:{_PORTS.get(parts.scheme, 443)}"}
    urls = [parts._replace(netloc=netloc).geturl() for netloc in ways]
    return any(_same(given, twilio_signature(url, pairs, secret)) for url in urls)


@dataclass(frozen=True, slots=True)
class Generic:
    """A signature of the body in a header field.

    Attributes:
        header: The field's name.
        algorithm: One of hashlib's.
        encoding: ``hex`` or ``base64``.
        prefix: What stands before it.
    """

    header: str
    algorithm: str = "sha256"
    encoding: str = "hex"
    prefix: str = ""

    def __call__(self, request: Signed, secret: str) -> bool:
        """Verify."""
        digest = hmac.new(secret.encode(), request.body, self.algorithm)
        hexed = self.encoding == "hex"
        text = digest.hexdigest() if hexed else base64.b64encode(digest.digest()).decode()
        given = request.headers.get(self.header, "")
        rest = given.removeprefix(self.prefix)
        return given.startswith(self.prefix) and _same(rest.lower() if hexed else rest, text)


SIGNATURES: Mapping[str, tuple[Callable[[Signed, str], bool], tuple[str, ...]]] = {
    "github": (_github, ("X-Hub-Signature-256", "X-Hub-Signature")),
    "stripe": (_stripe, ("Stripe-Signature",)),
    "slack": (_slack, ("X-Slack-Signature",)),
    "shopify": (_shopify, ("X-Shopify-Hmac-Sha256",)),
    "twilio": (_twilio, ("X-Twilio-Signature",)),
}
"""What verifies those of a service, and the header fields that they stand in."""
