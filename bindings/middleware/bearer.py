"""Lets through who has a token of an identity provider.

Sources: Dapr 1.18, the bearer middleware; RFC 6750, 7515, 7517, 7519, 8725; OpenID Connect Discovery 1.0.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import jwt

from bindings.middleware._attempts import Attempts
from bindings.middleware._service import SERVICE, Asked
from bindings.middleware.routerchecker import plain
from mesh.adapter import ComponentAdapter
from mesh.middleware import Answer, MiddlewareError, Onward, Request
from mesh.resources.component import Component
from mesh.resources.settings import setting

__all__ = ["BearerMiddleware", "Keys", "algorithms_of"]

logger = logging.getLogger(__name__)

SKEW_SECONDS = 300
FRESH_SECONDS = 600.0
AGAIN_SECONDS = 10.0
MAX_TOKEN = 16 * 1024
MAX_KEYS = 100
# By the key, never by what the token says: a public key is no secret of HMAC, and "none" is no algorithm.
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"P-256": ("ES256",), "P-384": ("ES384",), "P-521": ("ES512",), "secp256k1": ("ES256K",)}


def algorithms_of(key: Mapping[str, Any]) -> tuple[str, ...]:
    """Say by which algorithms a public key may have signed; none for one that is no such key."""
    if key.get("use", "sig") != "sig" or "verify" not in key.get("key_ops", ("verify",)):
        return ()
    kind, curve = key.get("kty"), key.get("crv")
    all_of = _RSA if kind == "RSA" else _CURVES.get(str(curve), ()) if kind == "EC" else ()
    if kind == "OKP" and curve in ("Ed25519", "Ed448"):
        all_of = ("EdDSA",)
    named = key.get("alg")
    return all_of if named is None else tuple(each for each in all_of if each == named)


@dataclass(frozen=True, slots=True)
class BearerSettings:
    """What is read of a component."""

    issuer: str = setting(
        "issuer",
        "Who must have issued a token, as its `iss` says it; the keys are found by its OpenID configuration.",
        required=True,
        aliases=("issuerURL",),
        example="https://accounts.example.com",
    )
    audience: str = setting(
        "audience", "Whom a token must be for, as its `aud` says it.", required=True, aliases=("clientID",)
    )
    jwks: str = setting("jwksURL", "Where the keys are; else the OpenID configuration says it.", SERVICE, default="")


class Keys:
    """The keys of an issuer, as they were last read.

    Attributes:
        read_at: When that was, in seconds of the monotonic clock.
    """

    def __init__(self, issuer: str, url: str, stack: AsyncExitStack, tasks: asyncio.TaskGroup) -> None:
        """Prepare.

        Args:
            issuer: Whose.
            url: Where they are; empty = its OpenID configuration says it.
            stack: For connections.
            tasks: Read them again.
        """
        self._issuer, self._url, self._stack = issuer, url, stack
        self._asked: Asked | None = None
        self._found: list[tuple[Mapping[str, Any], jwt.PyJWK, tuple[str, ...]]] = []
        self.read_at = -math.inf
        self._reading = Attempts(
            "keys that were read before are used on", tasks, self.read, done=AGAIN_SECONDS, failed=AGAIN_SECONDS
        )

    async def read(self) -> None:
        """Read them; what was read before stays if that fails.

        Raises:
            MiddlewareError: They are not there now.
        """
        if self._asked is None:
            self._asked = await self._open(f"the keys of {self._issuer}", self._url or await self._discover())
        body = (await self._asked.read()).body
        keys = body.get("keys") if isinstance(body, dict) else None
        if not isinstance(keys, list):
            raise MiddlewareError(f"what {self._issuer} has for its keys is no set of JSON Web Keys")
        self._found = [found for each in keys[:MAX_KEYS] if (found := _key(each)) is not None]
        if not self._found:
            raise MiddlewareError(f"{self._issuer} has no public key that signatures can be checked with")
        self.read_at = time.monotonic()

    async def _open(self, name: str, url: str) -> Asked:
        return await self._stack.enter_async_context(Asked(name, url))

    async def _discover(self) -> str:
        """Find where the keys are."""
        url = self._issuer.rstrip("/") + "/.well-known/openid-configuration"
        async with Asked("the OpenID configuration", url) as asked:
            body = (await asked.read()).body
        told = body if isinstance(body, dict) else {}
        if told.get("issuer") != self._issuer:
            raise MiddlewareError(f"{url} is about the issuer {str(told.get('issuer'))[:200]!r}, not {self._issuer!r}")
        found = told.get("jwks_uri")
        try:
            return cast("str", SERVICE.parse(str(found)))
        except ValueError:
            raise MiddlewareError(f"{url} does not say where the keys are (jwks_uri)") from None

    async def of(self, header: Mapping[str, Any]) -> list[tuple[jwt.PyJWK, tuple[str, ...]]]:
        """Give those that may have signed a token.

        When they are old, they are read again while those that are here are used. Only who names one that is not here
        waits for that.
        """
        if time.monotonic() - self.read_at > FRESH_SECONDS:
            self._reading.begin()
        if not self._named(header):
            await self.renew(self.read_at)
        return self._named(header)

    async def renew(self, known: float) -> bool:
        """Read them again, but not all the time; tells whether there are others than at a time that is known."""
        if self.read_at == known:
            with suppress(MiddlewareError):
                await self._reading.wait()
        return self.read_at != known

    def close(self) -> None:
        """Read them no more."""
        self._reading.cancel()

    def _named(self, header: Mapping[str, Any]) -> list[tuple[jwt.PyJWK, tuple[str, ...]]]:
        name = header.get("kid")
        return [(key, algorithms) for told, key, algorithms in self._found if name is None or told.get("kid") == name]


def _key(told: object) -> tuple[Mapping[str, Any], jwt.PyJWK, tuple[str, ...]] | None:
    algorithms = algorithms_of(told) if isinstance(told, dict) else ()
    if not isinstance(told, dict) or not algorithms:
        return None
    try:
        return told, jwt.PyJWK(told, algorithms[0]), algorithms
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None


class BearerMiddleware(ComponentAdapter):
    """Refuses requests, with 401, that have no valid token of an identity provider (OpenID Connect)."""

    tested = "oidc-provider-mock, a provider of OpenID Connect"
    settings: ClassVar[type[BearerSettings]] = BearerSettings

    def __init__(self, settings: BearerSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._keys: Keys

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; the issuer is asked for its keys, unless something else says where they are."""
        made = super().from_component(component)
        settings: BearerSettings = made._settings
        if not settings.jwks:
            try:
                SERVICE.parse(settings.issuer)
            except ValueError as error:
                raise made._problem(str(error), "issuer") from None
        return made

    async def _enter(self) -> None:
        """Read the keys: what is wrong with them is known at start."""
        settings: BearerSettings = self._settings
        tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._keys = Keys(settings.issuer, settings.jwks, self._stack, tasks)
        self._stack.callback(self._keys.close)
        await self._keys.read()

    async def handle(self, request: Request, onward: Onward) -> Answer:
        """Pass on what has a valid token."""
        given = [value for name, value in request.headers if name.lower() == "authorization"]
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            return plain(401, "Unauthorized", ("WWW-Authenticate", "Bearer"))
        if len(token) > MAX_TOKEN or not await self._is_valid(token):
            return plain(401, "Unauthorized", ("WWW-Authenticate", 'Bearer error="invalid_token"'))
        return await onward(request)

    async def _is_valid(self, token: str) -> bool:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError):
            return False
        keys = self._keys
        valid = self._by_any(token, header, await keys.of(header))
        if valid is None and await keys.renew(keys.read_at):  # There may be another key, of no name or the same one.
            valid = self._by_any(token, header, await keys.of(header))
        return valid is True

    def _by_any(
        self, token: str, header: Mapping[str, Any], keys: list[tuple[jwt.PyJWK, tuple[str, ...]]]
    ) -> bool | None:
        """Tell whether a token is valid; None = nobody of these has signed it."""
        algorithm = header.get("alg")
        told = [self._by(token, key, algorithm) for key, algorithms in keys if algorithm in algorithms]
        return next((each for each in told if each is not None), None)

    def _by(self, token: str, key: jwt.PyJWK, algorithm: str) -> bool | None:
        settings: BearerSettings = self._settings
        try:
            jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=SKEW_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.InvalidSignatureError:
            return None
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            logger.debug("a token is refused: %s", type(error).__name__)
            return False
        return True
