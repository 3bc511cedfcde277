"""Has people log in at an identity provider, and keeps them logged in.

Source: Dapr 1.18, the OAuth2 middleware; RFC 6749 section 4.1, RFC 7636 (PKCE), RFC 9700.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, TypeVar
from urllib.parse import parse_qs, urlencode, urlsplit

from bindings.middleware._paths import PathFilter
from bindings.middleware._service import SERVICE, Asked, header_name
from bindings.middleware._tokens import Token, TokenEndpoint, spaced
from bindings.middleware.routerchecker import EXPRESSION, plain
from mesh.adapter import ComponentAdapter
from mesh.middleware import Answer, MiddlewareError, Onward, Request
from mesh.resources.settings import BOOLEAN, Kind, ignored, setting

__all__ = ["MAX_SESSIONS", "OAuth2Middleware", "OAuth2Settings"]

MAX_SESSIONS = 10_000
LOGIN_SECONDS = 600.0
MOST_SECONDS = 24 * 3600.0
_Kept = TypeVar("_Kept")


@dataclass(frozen=True, slots=True)
class OAuth2Settings:
    """What is read of a component."""

    ignored: ClassVar = ignored(
        "tokens stay in the gateway, and a cookie holds a random name alone",
        "tokenEncryptionKey",
        "mode",
        anyway=("cookie",),
    )

    client: str = setting("clientID", "Id of the client.", required=True)
    secret: str = setting("clientSecret", "Its secret.", required=True, secret=True)
    login: str = setting(
        "authURL",
        "Where people log in: the authorization endpoint.",
        SERVICE,
        required=True,
        example="https://accounts.example.com/authorize",
    )
    url: str = setting(
        "tokenURL", "The token endpoint.", SERVICE, required=True, example="https://accounts.example.com/token"
    )
    back: str = setting(
        "redirectURL",
        "Where people come back to: an address of this gateway, as the provider knows it.",
        SERVICE,
        required=True,
        example="https://app.example.com/v1.0/invoke/app/method/",
    )
    scopes: str = setting("scopes", "Scopes to ask for, separated by commas or blanks.", default="")
    header: str = setting(
        "authHeaderName",
        "Name of the header field that holds the token from then on.",
        Kind("name of a header field", header_name),
        default="Authorization",
    )
    https: bool = setting(
        "forceHTTPS", "Whether people go back to where they came from by HTTPS.", BOOLEAN, default=False
    )
    paths: str = setting(
        "pathFilter", "A regular expression of the paths that ask for it; else all do.", EXPRESSION, default=""
    )
    cookie: str = setting(
        "cookieName",
        "Name of the cookie.",
        Kind("name of a cookie", header_name),
        default="_dapr_oauth2",
    )


@dataclass(frozen=True, slots=True)
class _Login:
    """Somebody who went to the provider.

    Attributes:
        state: What the provider gives back.
        proof: What proves that who comes back is who went.
        target: Where they wanted to go.
        until: When nobody waits for them any more.
    """

    state: str
    proof: str
    target: str
    until: float


class OAuth2Middleware(ComponentAdapter):
    """Has people log in at an identity provider (OAuth 2.0, authorization code), and puts their token on requests."""

    tested = "oidc-provider-mock, a provider of OpenID Connect"
    settings: ClassVar[type[OAuth2Settings]] = OAuth2Settings

    def __init__(self, settings: OAuth2Settings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._endpoint: TokenEndpoint
        # By cookie, and apart: whoever begins many logins ends none of those that are done.
        self._logins: OrderedDict[str, _Login] = OrderedDict()
        self._tokens: OrderedDict[str, Token] = OrderedDict()
        self._paths = PathFilter(settings.paths)

    async def _enter(self) -> None:
        settings: OAuth2Settings = self._settings
        asked = await self._stack.enter_async_context(Asked("the token endpoint", settings.url))
        self._endpoint = TokenEndpoint(asked, settings.client, settings.secret)

    async def handle(self, request: Request, onward: Onward) -> Answer:
        """Pass on who has logged in; send others to the provider."""
        if not self._paths.may_have(request.place):
            return await onward(request)
        now = time.monotonic()
        name = self._cookie(request)
        token, login = self._tokens.get(name), self._logins.get(name)
        if token is not None and token.holds(now):
            self._tokens.move_to_end(name)
            return await onward(request.with_header(self._settings.header, token.value))
        self._tokens.pop(name, None)
        query = parse_qs(request.query)
        if login is not None and now < login.until and "state" in query and ("code" in query or "error" in query):
            return await self._come_back(name, login, query)
        return self._send_away(request, now)

    def _cookie(self, request: Request) -> str:
        given = "; ".join(value for name, value in request.headers if name.lower() == "cookie")
        for pair in given.split(";"):
            name, _, value = pair.strip().partition("=")
            if name == self._settings.cookie:
                return value
        return ""

    def _send_away(self, request: Request, now: float) -> Answer:
        settings: OAuth2Settings = self._settings
        if request.method not in ("GET", "HEAD"):  # Its body would be lost on the way.
            return plain(401, "Unauthorized")
        name, state, proof = (secrets.token_urlsafe(32) for _ in range(3))
        path = "/" + request.path.replace("\\", "%5C").lstrip("/")  # Else a browser may take it for another host's.
        target = f"{path}?{request.query}" if request.query else path
        _keep(self._logins, name, _Login(state, proof, target, now + LOGIN_SECONDS))
        asked = {
            "response_type": "code",
            "client_id": settings.client,
            "redirect_uri": settings.back,
            "state": state,
            "code_challenge": base64.urlsafe_b64encode(hashlib.sha256(proof.encode()).digest()).decode().rstrip("="),
            "code_challenge_method": "S256",
            **({"scope": spaced(settings.scopes)} if settings.scopes else {}),
        }
        joint = "&" if urlsplit(settings.login).query else "?"
        return self._redirect(f"{settings.login}{joint}{urlencode(asked)}", name)

    async def _come_back(self, name: str, login: _Login, query: dict[str, list[str]]) -> Answer:
        settings: OAuth2Settings = self._settings
        if not hmac.compare_digest(query["state"][0].encode(), login.state.encode()):
            return plain(400, "invalid state")
        self._logins.pop(name, None)  # A code, and what proves it, are used once.
        if "code" not in query:
            return plain(401, "the login failed")
        form = {
            "grant_type": "authorization_code",
            "code": query["code"][0],
            "redirect_uri": settings.back,
            "code_verifier": login.proof,
        }
        try:
            token = await self._endpoint.ask(form)
        except MiddlewareError as error:
            raise MiddlewareError(f"nobody can log in: {error}") from error
        logged_in = secrets.token_urlsafe(32)  # Another name than before the login, which somebody may have set.
        _keep(self._tokens, logged_in, Token(token.value, min(token.until, time.monotonic() + MOST_SECONDS)))
        target = login.target
        if settings.https:
            target = f"https://{urlsplit(settings.back).netloc}{target}"
        return self._redirect(target, logged_in)

    def _redirect(self, target: str, name: str) -> Answer:
        settings: OAuth2Settings = self._settings
        secure = "; Secure" if settings.https or settings.back.startswith("https:") else ""
        cookie = f"{settings.cookie}={name}; Path=/; HttpOnly; SameSite=Lax{secure}"
        return Answer(302, [("Location", target), ("Set-Cookie", cookie), ("Cache-Control", "no-store")])


def _keep(found: OrderedDict[str, _Kept], name: str, value: _Kept) -> None:
    found[name] = value
    if len(found) > MAX_SESSIONS:
        found.popitem(last=False)
