"""Puts a token of the gateway's own on every request.

Source: Dapr 1.18, the OAuth2 client credentials middleware; RFC 6749 section 4.4.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import parse_qsl

from bindings.middleware._attempts import Attempts
from bindings.middleware._paths import PathFilter
from bindings.middleware._service import SERVICE, Asked, header_name
from bindings.middleware._tokens import Token, TokenEndpoint, spaced
from bindings.middleware.routerchecker import EXPRESSION
from mesh.adapter import ComponentAdapter
from mesh.middleware import Answer, Onward, Request
from mesh.resources.settings import Kind, setting, whole

__all__ = ["ClientCredentialsMiddleware"]

MOST_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class ClientCredentialsSettings:
    """What is read of a component."""

    client: str = setting("clientID", "Id of the client.", required=True)
    secret: str = setting("clientSecret", "Its secret.", required=True, secret=True)
    scopes: str = setting("scopes", "Scopes to ask for, separated by commas or blanks.", required=True)
    url: str = setting(
        "tokenURL", "The token endpoint.", SERVICE, required=True, example="https://accounts.example.com/token"
    )
    header: str = setting(
        "headerName",
        "Name of the header field that holds the token.",
        Kind("name of a header field", header_name),
        required=True,
        example="authorization",
    )
    more: str = setting("endpointParamsQuery", "More parameters for the endpoint, written as a query.", default="")
    style: int = setting(
        "authStyle",
        "How the client says who it is: 1 in the form, 2 as a header field, 0 finds out.",
        whole(0, 2),
        default=0,
    )
    paths: str = setting(
        "pathFilter", "A regular expression of the paths that get the token; else all do.", EXPRESSION, default=""
    )


class ClientCredentialsMiddleware(ComponentAdapter):
    """Gets an access token by client credentials (OAuth 2.0) and puts it on every request, in a header field."""

    tested = "oidc-provider-mock, a provider of OpenID Connect, and an endpoint in the tests"
    settings: ClassVar[type[ClientCredentialsSettings]] = ClientCredentialsSettings

    def __init__(self, settings: ClientCredentialsSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._endpoint: TokenEndpoint
        self._token = Token("", 0.0)
        self._asking: Attempts[Token]
        self._paths = PathFilter(settings.paths)

    async def _enter(self) -> None:
        settings: ClientCredentialsSettings = self._settings
        asked = await self._stack.enter_async_context(Asked("the token endpoint", settings.url))
        self._endpoint = TokenEndpoint(asked, settings.client, settings.secret, settings.style)
        tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._asking = Attempts("there is no token", tasks, self._ask)
        self._stack.callback(self._asking.cancel)

    async def handle(self, request: Request, onward: Onward) -> Answer:
        """Pass it on with the token, in the place of what the client has there."""
        if not self._paths.has(request.place):
            return await onward(request)
        token = self._token if self._token.holds(time.monotonic()) else await self._asking.wait()
        return await onward(request.with_header(self._settings.header, token.value))

    async def _ask(self) -> Token:
        settings: ClientCredentialsSettings = self._settings
        form = [("grant_type", "client_credentials"), ("scope", spaced(settings.scopes))]
        token = await self._endpoint.ask([*form, *parse_qsl(settings.more, keep_blank_values=True)])
        self._token = Token(token.value, min(token.until, time.monotonic() + MOST_SECONDS))
        return self._token
