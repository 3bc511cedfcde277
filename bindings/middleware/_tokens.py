"""Access tokens of OAuth 2.0, as a token endpoint gives them.

Source: RFC 6749 sections 2.3.1, 4.1.3, 4.4, 5.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote_plus, urlencode

from bindings.middleware._service import Asked
from brokers.clients.http import Answer
from mesh.middleware import MiddlewareError

__all__ = ["AuthStyle", "Token", "TokenEndpoint", "spaced"]

EARLY_SECONDS = 10.0
AUTO, IN_FORM, IN_HEADER = 0, 1, 2
AuthStyle = int


def spaced(text: str) -> str:
    """Give scopes as they are sent: separated by blanks, however they are written."""
    return " ".join(text.replace(",", " ").split())


@dataclass(frozen=True, slots=True)
class Token:
    """An access token.

    Attributes:
        value: As a header field has it: its kind and the token.
        until: Seconds of the monotonic clock, until which it is used.
    """

    value: str
    until: float

    def holds(self, now: float) -> bool:
        """Tell whether it can be used."""
        return now < self.until


class TokenEndpoint:
    """Asks for tokens as a client with a secret."""

    def __init__(self, asked: Asked, client: str, secret: str, style: AuthStyle = AUTO) -> None:
        """Prepare.

        Args:
            asked: The endpoint.
            client: The client's id.
            secret: Its secret.
            style: Where these are sent: 1 in the form, 2 as a header field, 0 by what the endpoint takes.
        """
        self._asked, self._client, self._secret, self._style = asked, client, secret, style

    async def ask(self, form: Mapping[str, str] | list[tuple[str, str]]) -> Token:
        """Ask for a token.

        Raises:
            MiddlewareError: The endpoint is away, or refuses.
        """
        fields = list(form.items()) if isinstance(form, Mapping) else form
        style = self._style or IN_HEADER
        answer = await self._send(fields, style)
        if self._style == AUTO and answer.status in (400, 401):
            answer = await self._send(fields, IN_FORM)
            style = IN_FORM
        if answer.status == 200:
            self._style = style  # What it takes need not be found out again.
        return _token(answer)

    async def _send(self, fields: list[tuple[str, str]], style: AuthStyle) -> Answer:
        headers = {"Accept": "application/json"}
        if style == IN_FORM:
            fields = [*fields, ("client_id", self._client), ("client_secret", self._secret)]
        else:
            pair = f"{quote_plus(self._client)}:{quote_plus(self._secret)}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        return await self._asked.form(urlencode(fields).encode(), headers)


def _token(answer: Answer) -> Token:
    body = answer.body if isinstance(answer.body, dict) else {}
    token, kind = body.get("access_token"), body.get("token_type", "Bearer")
    if answer.status != 200 or not isinstance(token, str) or not isinstance(kind, str):
        raise MiddlewareError(f"the token endpoint gives no token: {answer.reason()}")
    value = f"{'Bearer' if kind.lower() == 'bearer' else kind} {token}"
    if not value.isprintable() or not value.isascii():
        raise MiddlewareError("the token endpoint gives a token that no header field can hold")
    try:
        seconds = float(body["expires_in"])
    except (KeyError, TypeError, ValueError):
        seconds = math.inf  # It does not say; who uses it has a limit of its own.
    return Token(value, time.monotonic() + max(0.0, seconds - EARLY_SECONDS))
