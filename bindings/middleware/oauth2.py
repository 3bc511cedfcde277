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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import parse_qs, urlencode, urlsplit

from bindings.middleware._paths import PathFilter
from bindings.middleware._service import SERVICE, Asked, header_name
from bindings.middleware._tokens import Token, TokenEndpoint, spaced
from bindings.middleware.routerchecker import EXPRESSION, plain
from mesh.adapter import ComponentAdapter
from mesh.middleware import Answer, MiddlewareError, Onward, Request
from mesh.resources.settings import BOOLEAN, Kind, ignored, setting

__all__ = ["MAX_TABS", "OAuth2Middleware", "OAuth2Settings"]

MAX_SESSIONS = 10_000
LOGIN_SECONDS = 600.0
MOST_SECONDS = 24 * 3600.0
LOGIN = "_login_"
MAX_TABS = 5
MAX_TARGET = 1024


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
    """Somebody who went to the provider; their browser keeps it, signed, so that nothing of it is kept here.

    Attributes:
        state: What the provider gives back.
        target: Where they wanted to go.
        until: When nobody waits for them any more, in seconds of this process's clock.
    """

    state: str
    target: str
    until: int


class OAuth2Middleware(ComponentAdapter):
    """Has people log in at an identity provider (OAuth 2.0, authorization code), and puts their token on requests."""

    tested = "oidc-provider-mock, a provider of OpenID Connect"
    settings: ClassVar[type[OAuth2Settings]] = OAuth2Settings

    def __init__(self, settings: OAuth2Settings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._endpoint: TokenEndpoint
        self._key = secrets.token_bytes(32)  # Of logins that have begun.
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
        cookies = _cookies(request)
        name = cookies.get(self._settings.cookie, "")
        token = self._tokens.get(name)
        if token is not None and token.holds(now):
            self._tokens.move_to_end(name)
            return await onward(request.with_header(self._settings.header, token.value))
        self._tokens.pop(name, None)
        logins = {each.state: each for each in self._begun(cookies) if now < each.until}
        query = parse_qs(request.query)
        if logins and "state" in query and ("code" in query or "error" in query):
            login = logins.get(query["state"][0])
            return plain(400, "invalid state") if login is None else await self._come_back(login, query)
        return self._send_away(request, now, cookies, logins)

    def _begun(self, cookies: Mapping[str, str]) -> Iterator[_Login]:
        """Read the logins that a browser has begun here."""
        for name, value in cookies.items():
            told, _, proof = value.rpartition(".")
            state = name.removeprefix(self._settings.cookie + LOGIN)
            if state != name and hmac.compare_digest(_bytes(proof), _bytes(self._sign(f"{state}.{told}"))):
                until, _, target = told.partition(".")
                yield _Login(state, base64.urlsafe_b64decode(target).decode(), int(until))

    def _sign(self, text: str) -> str:
        return _base64(hmac.digest(self._key, _bytes(text), "sha256"))

    def _send_away(
        self, request: Request, now: float, cookies: Mapping[str, str], logins: Mapping[str, _Login]
    ) -> Answer:
        settings: OAuth2Settings = self._settings
        if request.method not in ("GET", "HEAD"):  # Its body would be lost on the way.
            return plain(401, "Unauthorized")
        state = secrets.token_urlsafe(32)
        path = "/" + request.path.replace("\\", "%5C").lstrip("/")  # Else a browser may take it for another host's.
        whole = f"{path}?{request.query}" if request.query else path
        target = next(each for each in (whole, path, "/") if len(each) <= MAX_TARGET or each == "/")
        told = f"{int(now + LOGIN_SECONDS)}.{base64.urlsafe_b64encode(target.encode()).decode()}"
        asked = {
            "response_type": "code",
            "client_id": settings.client,
            "redirect_uri": settings.back,
            "state": state,
            "code_challenge": _base64(hashlib.sha256(self._verifier(state).encode()).digest()),
            "code_challenge_method": "S256",
            **({"scope": spaced(settings.scopes)} if settings.scopes else {}),
        }
        joint = "&" if urlsplit(settings.login).query else "?"
        # Those of other tabs stay, a few of them: all that a browser has come with each request.
        newest = sorted(logins.values(), key=lambda each: each.until)[-MAX_TABS + 1 :]
        kept = {self._settings.cookie + LOGIN + each.state for each in newest}
        over = [name for name in cookies if name.startswith(settings.cookie + LOGIN) and name not in kept]
        signed = f"{told}.{self._sign(f'{state}.{told}')}"
        put = self._put(settings.cookie + LOGIN + state, signed, LOGIN_SECONDS)
        return _redirect(f"{settings.login}{joint}{urlencode(asked)}", *map(self._taken, over), put)

    def _verifier(self, state: str) -> str:
        """Give what proves at the token endpoint that who asks for a token is who has begun the login."""
        return self._sign(f"verifier {state}")

    async def _come_back(self, login: _Login, query: dict[str, list[str]]) -> Answer:
        settings: OAuth2Settings = self._settings
        over = self._taken(settings.cookie + LOGIN + login.state)
        if "code" not in query:
            return plain(401, "the login failed", ("Set-Cookie", over))
        form = {
            "grant_type": "authorization_code",
            "code": query["code"][0],
            "redirect_uri": settings.back,
            "code_verifier": self._verifier(login.state),
        }
        try:
            token = await self._endpoint.ask(form)
        except MiddlewareError as error:
            raise MiddlewareError(f"nobody can log in: {error}") from error
        logged_in = secrets.token_urlsafe(32)  # A name that nobody knew before the login.
        self._tokens[logged_in] = Token(token.value, min(token.until, time.monotonic() + MOST_SECONDS))
        if len(self._tokens) > MAX_SESSIONS:
            self._tokens.popitem(last=False)
        target = login.target
        if settings.https:
            target = f"https://{urlsplit(settings.back).netloc}{target}"
        return _redirect(target, over, self._put(settings.cookie, logged_in))

    def _put(self, name: str, value: str, seconds: float | None = None) -> str:
        settings: OAuth2Settings = self._settings
        secure = "; Secure" if settings.https or settings.back.startswith("https:") else ""
        end = "" if seconds is None else f"; Max-Age={seconds:.0f}"
        return f"{name}={value}; Path=/{end}; HttpOnly; SameSite=Lax{secure}"

    def _taken(self, name: str) -> str:
        return self._put(name, "", 0.0)


def _cookies(request: Request) -> Mapping[str, str]:
    given = "; ".join(value for name, value in request.headers if name.lower() == "cookie")
    pairs = (each.strip().partition("=") for each in given.split(";"))
    return {name: value for name, _, value in reversed(list(pairs))}  # The first of a name counts.


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # Bytes that are no text come as such.


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _redirect(target: str, *cookies: str) -> Answer:
    fields = [("Set-Cookie", each) for each in cookies]
    return Answer(302, [("Location", target), *fields, ("Cache-Control", "no-store")])
