"""Tokens to log in with (SASL OAUTHBEARER), for a client's credentials at an identity provider.

Source: RFC 6749 sections 2.3.1, 4.4, 5; RFC 7628 section 3.1.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections.abc import Mapping
from urllib.parse import quote_plus

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError, SaslAuthenticationFailed

from brokers.native._http import ask, shown

__all__ = ["ClientCredentials"]

EARLY = 0.8  # Of a token's life it is used for so much.
USUAL_SECONDS = 300.0  # How long a token holds whose answer does not say.
_TOKEN = re.compile(r"[!-~]+\Z")
_EXTENSION = re.compile(r"[A-Za-z]+\Z")


class ClientCredentials(AbstractTokenProvider):  # type: ignore[misc]  # the library has no types
    """Gives a token that holds, for each connection that is made; asked for anew before it ends."""

    def __init__(
        self,
        endpoint: str,
        credentials: tuple[str, str],
        scopes: tuple[str, ...],
        extensions: Mapping[str, str],
        tls: ssl.SSLContext | None,
    ) -> None:
        """Prepare.

        Args:
            endpoint: The provider's token endpoint.
            credentials: The client's id and its secret.
            scopes: What for; empty = ``openid``.
            extensions: What is said to the broker besides.
            tls: Whom to trust at the endpoint; None = whom the system trusts.
        """
        self._endpoint, self._tls = endpoint, tls
        self._client, self._secret = credentials
        self._scope = " ".join(scopes or ("openid",))
        self._extensions = {name: text for name, text in extensions.items() if _EXTENSION.match(name)}
        self._asking = asyncio.Lock()
        self._held: tuple[str, float] = "", 0.0

    def extensions(self) -> Mapping[str, str]:
        """Give what is said beside the token."""
        return self._extensions

    async def token(self) -> str:
        """Give a token.

        Raises:
            SaslAuthenticationFailed: The provider refuses, or what it answers is no token.
            KafkaConnectionError: It cannot be reached.
        """
        async with self._asking:
            token, until = self._held
            if time.monotonic() >= until:
                began = time.monotonic()
                token, seconds = await self._ask()
                self._held = token, began + seconds * EARLY
            return token

    async def _ask(self) -> tuple[str, float]:
        form = {"grant_type": "client_credentials", "scope": self._scope}
        secret = {"client_id": self._client, "client_secret": self._secret}
        escaped = quote_plus(self._client), quote_plus(self._secret)
        try:
            status, answer = await ask(self._endpoint, form=form, auth=escaped, tls=self._tls)
            if status in (400, 401):  # Some take a client's credentials in the form alone.
                status, answer = await ask(self._endpoint, form=form | secret, tls=self._tls)
        except ConnectionError as error:
            raise KafkaConnectionError(f"no token: {error}") from error
        return self._read(status, answer)

    def _read(self, status: int, answer: bytes) -> tuple[str, float]:
        try:
            members = json.loads(answer)
        except ValueError:
            members = None
        members = members if isinstance(members, dict) else {}
        if status != 200:
            why = str(members.get("error", ""))[:100]
            raise SaslAuthenticationFailed(f"{shown(self._endpoint)} gives no token: status {status} {why!r}")
        token, seconds = members.get("access_token"), members.get("expires_in", USUAL_SECONDS)
        # It stands in a text whose parts are separated by control characters.
        if not isinstance(token, str) or not _TOKEN.match(token):
            raise SaslAuthenticationFailed(f"{shown(self._endpoint)} answers without an access_token")
        try:
            return token, max(0.0, float(seconds))
        except (TypeError, ValueError):
            return token, USUAL_SECONDS
