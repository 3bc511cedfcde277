"""Tokens of an identity provider: that they are checked, and that people get them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import jwt
import pytest
import pytest_asyncio
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from bindings.middleware._attempts import Attempts
from bindings.middleware.bearer import BearerMiddleware, BearerSettings, algorithms_of
from bindings.middleware.oauth2 import MAX_TABS, OAuth2Middleware, OAuth2Settings
from bindings.middleware.oauth2clientcredentials import ClientCredentialsMiddleware, ClientCredentialsSettings
from mesh.errors import ConfigError
from mesh.middleware import Answer, MiddlewareError, Request
from tests.http.harness import App, Backbone, Node, component, gateway
from tests.middleware.harness import configuration, of_type, through
from tests.support.eventually import PATIENCE, eventually
from tests.support.identity import IdentityProvider
from tests.support.processes import free_port

CALL = "/v1.0/invoke/app/method"
RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def public(key: Any, **more: object) -> dict[str, Any]:
    """Write a public key."""
    kind = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    writer = next((each for of, each in kind.items() if isinstance(key, of)), OKPAlgorithm)
    return {**json.loads(writer.to_jwk(key.public_key())), **more}  # type: ignore[attr-defined]  # all of them have it


@dataclass
class Issuer:
    """What an issuer has on the web: served by the test, so that it can be wrong in any way."""

    port: int = field(default_factory=free_port)
    keys: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0
    claims: dict[str, Any] = field(default_factory=dict)
    hanging: asyncio.Event | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        if request.path == "/.well-known/openid-configuration":
            return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys", **self.claims})
        self.asked += 1
        if self.hanging is not None:
            await self.hanging.wait()
        return web.json_response({"keys": self.keys})

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Issuer]:
        runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True).start()
        try:
            yield self
        finally:
            await runner.cleanup()

    def token(self, key: Any = RSA, algorithm: str = "RS256", name: str | None = "one", **claims: object) -> str:
        """Make a token; a claim of None is left out."""
        now = int(time.time())
        told = {"iss": self.url, "aud": "me", "exp": now + 600, "iat": now, "sub": "s", **claims}
        return jwt.encode(
            {each: value for each, value in told.items() if value is not None},
            key,
            algorithm=algorithm,
            headers={"kid": name} if name else {},
        )


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    """One with keys of three kinds, a key for encryption, and one that nobody may know."""
    keys = [
        public(RSA, kid="one"),
        public(EC, kid="ec", alg="ES256"),
        public(ED, kid="ed"),
        public(OTHER_RSA, kid="enc", use="enc"),
        {"kty": "oct", "kid": "oct", "k": base64.urlsafe_b64encode(b"s" * 32).decode(), "alg": "HS256"},
    ]
    async with Issuer(keys=keys).serving() as issuer:
        yield issuer


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def provider(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[IdentityProvider]:
    """A real one, for what does not end it."""
    async with IdentityProvider(tmp_path_factory.mktemp("provider")) as provider:
        yield provider


async def fine(request: Request) -> Answer:
    return Answer(200)


def bearer(issuer: str, **more: str) -> str:
    return component("bearer", "middleware.http.bearer", issuer=issuer, audience="me", **more)


IN_FRONT = configuration(httpPipeline=["bearer"])


async def status(node: Node, token: str | None, scheme: str = "Bearer") -> int:
    headers = {} if token is None else {"Authorization": f"{scheme} {token}"}
    return (await node.request("GET", "/v1.0/metadata", headers)).status


def unsigned(algorithm: str, issuer: Issuer) -> tuple[bytes, str]:
    head = base64.urlsafe_b64encode(json.dumps({"alg": algorithm, "typ": "JWT", "kid": "one"}).encode()).rstrip(b"=")
    return head + b"." + issuer.token().split(".")[1].encode(), ""


def confused(issuer: Issuer, secret: bytes) -> str:
    """Sign with what everybody knows, as by a shared secret."""
    text, _ = unsigned("HS256", issuer)
    signed = base64.urlsafe_b64encode(hmac.digest(secret, text, hashlib.sha256)).rstrip(b"=")
    return (text + b"." + signed).decode()


def pem(form: serialization.PublicFormat) -> bytes:
    return RSA.public_key().public_bytes(serialization.Encoding.PEM, form)


async def test_tokens_of_a_provider(memory: Backbone, app: App, tmp_path: Path, provider: IdentityProvider) -> None:
    async with (
        aiohttp.ClientSession() as session,
        through(memory, tmp_path, bearer(provider.url), IN_FRONT, app=app) as node,
    ):
        reply = await node.get("/v1.0/metadata")
        assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
        token = await provider.token(session, "me")
        assert await status(node, token) == 200
        assert await status(node, token, "bearer") == 200
        assert await status(node, await provider.token(session, "other")) == 401, "for another audience"
        assert await status(node, token[:-8] + "AAAAAAAA") == 401
        reply = await node.request("GET", f"{CALL}/x", {"Authorization": f"Bearer {token}"})
        assert (reply.status, app.got[0].headers["authorization"]) == (200, f"Bearer {token}"), "it is passed on"
        assert (await node.get("/v1.0/healthz")).status == 204


async def test_it_guards_the_application(nats: Backbone, app: App, tmp_path: Path, issuer: Issuer) -> None:
    ways = configuration(appHttpPipeline=["bearer"])
    off = ("subscribe", "config")
    async with (
        through(nats, tmp_path, bearer(issuer.url), ways, app=app, init_endpoints_off=off),
        gateway(nats, tmp_path, app_id="asker") as asker,
    ):
        assert (await asker.get(f"{CALL}/x")).status == 401
        assert not app.got
        headers = {"Authorization": f"Bearer {issuer.token()}"}
        assert (await asker.request("GET", f"{CALL}/x", headers)).status == 200


async def test_what_a_token_must_be(memory: Backbone, tmp_path: Path, issuer: Issuer) -> None:
    now = int(time.time())
    good = {
        "RSA": issuer.token(),
        "PSS": issuer.token(algorithm="PS256"),
        "elliptic curve": issuer.token(EC, "ES256", "ec"),
        "Edwards curve": issuer.token(ED, "EdDSA", "ed"),
        "no name of a key": issuer.token(name=None),
        "several audiences": issuer.token(aud=["a", "me"]),
        "expired within the skew": issuer.token(exp=now - 200),
        "not yet within the skew": issuer.token(nbf=now + 200),
    }
    bad = {
        "no token": "",
        "no JWT": "abc",
        "three dots": "a.b.c",
        "expired": issuer.token(exp=now - 400),
        "without an end": issuer.token(exp=None),
        "not yet": issuer.token(nbf=now + 400),
        "other issuer": issuer.token(iss="https://evil.example"),
        "no issuer": issuer.token(iss=None),
        "other audience": issuer.token(aud="you"),
        "no audience": issuer.token(aud=None),
        "audience within another": issuer.token(aud="me-too"),
        "other key": issuer.token(OTHER_RSA),
        "key for encryption": issuer.token(OTHER_RSA, name="enc"),
        "secret key of the set": issuer.token(b"s" * 32, "HS256", "oct"),
        "unknown key": issuer.token(OTHER_RSA, name="unknown"),
        "key of another kind": issuer.token(EC, "ES256", "one"),
        "none": unsigned("none", issuer)[0].decode() + ".",
        "None": unsigned("None", issuer)[0].decode() + ".",
        "public key as a secret": confused(issuer, pem(serialization.PublicFormat.SubjectPublicKeyInfo)),
        "the same in PKCS 1": confused(issuer, pem(serialization.PublicFormat.PKCS1)),
        "nothing as a secret": confused(issuer, b""),
        "larger than any": issuer.token(more="x" * 20_000),
    }
    async with through(memory, tmp_path, bearer(issuer.url), IN_FRONT, max_header_bytes=64 * 1024) as node:
        for name, token in good.items():
            assert await status(node, token) == 200, name
        for name, token in bad.items():
            assert await status(node, token) == 401, name
        assert await status(node, issuer.token(), "Basic") == 401
        twice = [("Authorization", f"Bearer {issuer.token()}"), ("Authorization", "Bearer x")]
        assert (await node.request("GET", "/v1.0/metadata", twice)).status == 401
        assert issuer.asked <= 2, "what nobody knows has the keys read again, but not each time"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ({"kty": "RSA"}, ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
        ({"kty": "RSA", "alg": "PS512"}, ("PS512",)),
        ({"kty": "RSA", "alg": "HS256"}, ()),
        ({"kty": "RSA", "alg": "none"}, ()),
        ({"kty": "RSA", "use": "enc"}, ()),
        ({"kty": "RSA", "key_ops": ["encrypt"]}, ()),
        ({"kty": "RSA", "key_ops": ["verify"], "use": "sig"}, ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
        ({"kty": "EC", "crv": "P-384"}, ("ES384",)),
        ({"kty": "EC", "crv": "P-256", "alg": "ES512"}, ()),
        ({"kty": "OKP", "crv": "Ed25519"}, ("EdDSA",)),
        ({"kty": "OKP", "crv": "X25519"}, ()),
        ({"kty": "oct", "alg": "HS256"}, ()),
        ({}, ()),
    ],
)
def test_algorithms_are_the_keys(key: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert algorithms_of(key) == expected


@pytest.mark.costly
async def test_keys_change_and_their_provider_goes(memory: Backbone, tmp_path: Path) -> None:
    """What was read is used on while the provider is away; a key that it has then is found when it is asked for."""
    async with IdentityProvider(tmp_path / "provider") as provider, aiohttp.ClientSession() as session:
        token = await provider.token(session, "me")
        async with through(memory, tmp_path, bearer(provider.url), IN_FRONT) as node:
            assert await status(node, token) == 200
            await provider.kill()
            assert await status(node, token) == 200
            assert await status(node, token[:-8] + "AAAAAAAA") == 401
            await provider.start()
            renewed = await provider.token(session, "me")

            async def taken() -> None:
                assert await status(node, renewed) == 200
                assert await status(node, token) == 401, "its key is gone"

            await eventually(taken)


async def test_a_provider_that_hangs_holds_nobody_up(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that are old are read again while they are used; who names one that is not there waits for that alone."""
    made = BearerMiddleware(BearerSettings(issuer.url, "me"))
    monkeypatch.setattr("bindings.middleware.bearer.FRESH_SECONDS", 0.0)
    monkeypatch.setattr("bindings.middleware.bearer.AGAIN_SECONDS", 0.0)

    async def ask(token: str) -> int:
        return (await made.handle(Request("GET", "/", headers=[("Authorization", f"Bearer {token}")]), fine)).status

    issuer.hanging = asyncio.Event()
    issuer.hanging.set()
    async with made:
        issuer.hanging.clear()
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(ask(issuer.token(EC, "ES256", "new"))) for _ in range(3)]
            for _ in range(5):
                assert await ask(issuer.token()) == 200
            await eventually(lambda: _equal(issuer.asked, 2))
            assert not any(each.done() for each in waiting)
            issuer.keys.append(public(EC, kid="new"))
            issuer.hanging.set()
        assert [each.result() for each in waiting] == [200] * 3
        issuer.hanging.clear()
        assert await ask(issuer.token()) == 200  # What is being read when it is closed holds nothing up.


def _equal(one: object, other: object) -> None:
    assert one == other


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"issuer": "http://other"}, "is about the issuer 'http://other'"),
        ({"jwks_uri": None}, "does not say where the keys are"),
        ({"jwks_uri": "file:///etc/passwd"}, "does not say where the keys are"),
        ({"jwks_uri": "KEYS/../.well-known/openid-configuration"}, "no set of JSON Web Keys"),
    ],
)
async def test_what_is_wrong_with_a_provider_is_told_at_start(
    memory: Backbone, tmp_path: Path, issuer: Issuer, wrong: dict[str, Any], expected: str
) -> None:
    issuer.claims = {name: value.replace("KEYS", issuer.url) if value else value for name, value in wrong.items()}
    with pytest.raises(ConfigError) as caught:
        async with through(memory, tmp_path, bearer(issuer.url), IN_FRONT):
            pass
    assert expected in str(caught.value)
    assert "all.yaml" in str(caught.value)


async def test_a_provider_that_is_away_at_start_is_told(memory: Backbone, tmp_path: Path) -> None:
    port = free_port()
    for more in ({}, {"jwksURL": f"http://127.0.0.1:{port}/keys"}):
        with pytest.raises(ConfigError, match="cannot be reached"):
            async with through(memory, tmp_path, bearer(f"http://127.0.0.1:{port}", **more), IN_FRONT):
                pass


async def test_keys_at_an_address_of_their_own(memory: Backbone, tmp_path: Path, issuer: Issuer) -> None:
    """Then the issuer is a name that nobody asks."""
    made = bearer("urn:us", jwksURL=f"{issuer.url}/keys")
    async with through(memory, tmp_path, made, IN_FRONT) as node:
        assert await status(node, issuer.token(iss="urn:us")) == 200
        assert await status(node, issuer.token()) == 401


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"issuer": "https://a"}, "the setting audience is missing"),
        ({"audience": "a"}, "the setting issuer is missing"),
        ({"issuer": "https://a", "audience": "a", "jwksURL": "x"}, "is no URL of a service"),
        ({"issuer": "nobody", "audience": "a"}, "is no URL of a service"),
        ({"issuer": "https://a", "audience": "a", "audence": "b"}, "did you mean 'audience'?"),
    ],
)
async def test_settings_that_are_wrong(
    memory: Backbone, tmp_path: Path, settings: dict[str, str], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        async with through(memory, tmp_path, component("bearer", "middleware.http.bearer", **settings), IN_FRONT):
            pass
    assert expected in str(caught.value)


# People who log in


def oauth2(provider: IdentityProvider, node_port: int, **more: str) -> str:
    settings = {
        "clientId": "me",
        "clientSecret": "secret",
        "scopes": "openid,email",
        "authURL": f"{provider.url}/oauth2/authorize",
        "tokenURL": f"{provider.url}/oauth2/token",
        "redirectURL": f"http://127.0.0.1:{node_port}/",
        "authHeaderName": "x-token",
        **more,
    }
    return of_type("oauth2", "middleware.http.oauth2", settings)


def cookie(fields: Any) -> str:
    return str(fields["set-cookie"]).partition(";")[0]


async def test_people_log_in(memory: Backbone, app: App, tmp_path: Path, provider: IdentityProvider) -> None:
    """The whole way of a browser, and the ways of others who see a part of it."""
    ways = configuration(httpPipeline=["oauth2"])
    async with (
        aiohttp.ClientSession() as browser,
        through(memory, tmp_path, oauth2(provider, 1), ways, app=app) as node,
    ):
        away = await node.request("GET", f"{CALL}/x?a=b", {"X-Token": "forged"})
        told = parse_qs(urlsplit(away.headers["location"]).query)
        assert (away.status, told["scope"], told["client_id"]) == (302, ["openid email"], ["me"])
        assert "HttpOnly; SameSite=Lax" in away.headers["set-cookie"]
        back = await provider.log_in(browser, away.headers["location"])
        returned = f"/?{urlsplit(back).query}"

        async def came(target: str, jar: str) -> tuple[int, str | None]:
            reply = await node.request("GET", target, {"Cookie": jar})
            return reply.status, reply.headers.get("location")

        stranger = await node.get("/v1.0/metadata")
        assert (await came(returned, cookie(stranger.headers)))[0] == 400, "with another's code"
        assert (await came(returned, ""))[0] == 302, "with no cookie"
        wrong_state = returned.replace("state=", "state=x")
        assert (await came(wrong_state, cookie(away.headers)))[0] == 400
        landed = await node.request("GET", returned, {"Cookie": cookie(away.headers)})
        assert (landed.status, landed.headers["location"]) == (302, f"{CALL}/x?a=b")
        jar = cookie(landed.headers)
        assert jar != cookie(away.headers), "a name that nobody knew before the login"
        assert (await came(f"{CALL}/x", cookie(away.headers)))[0] == 302
        reply = await node.request("POST", f"{CALL}/x", {"Cookie": jar, "X-Token": "forged"}, b"data")
        assert reply.status == 200
        [got] = app.got
        [token] = got.all("x-token")
        assert (token[:7], got.body) == ("Bearer ", b"data")
        async with browser.get(f"{provider.url}/userinfo", headers={"Authorization": token}) as response:
            assert (await response.json())["sub"] == "somebody", "a token that the provider takes"
        assert (await node.request("POST", f"{CALL}/x", None, b"data")).status == 401, "a body would be lost"
        assert len(app.got) == 1


async def test_paths_that_ask_for_a_login(
    memory: Backbone, app: App, tmp_path: Path, provider: IdentityProvider
) -> None:
    ways = configuration(httpPipeline=["oauth2"])
    made = oauth2(provider, 1, pathFilter="/method/admin")
    async with through(memory, tmp_path, made, ways, app=app) as node:
        for path, expected in {
            "open": 200,
            "admin": 302,
            "admin/x": 302,
            "%61dmin": 302,
            "./admin": 302,
            "x/../admin": 302,
            "x/%2e%2e/admin": 302,
            "/admin": 302,
            "../admin": 302,
            "../../../../../%2e%2e/x/../admin": 302,
        }.items():
            assert (await node.get(f"{CALL}/{path}")).status == expected, path
        login = base64.b64encode(b"dapr-app-id:app").decode()
        for named in ({"dapr-app-id": "app"}, {"Authorization": f"Basic {login}"}):
            for path, expected in {
                "/open": 200,
                "/admin": 302,
                "/x/..%2fadmin": 302,
                "/v1.0/invoke/other/method/open": 200,
                "/v1.0/invoke/other/method/admin": 302,
                "/v1.0/invoke/other/method/../../../../admin": 302,
                "/v1.0/invoke/other/method/../../../../../../../../admin": 302,
                "/v1.0/invoke/other": 200,
            }.items():
                assert (await node.request("GET", path, named)).status == expected, (named, path)


@pytest.mark.parametrize("named", [{}, {"dapr-app-id": "app"}, {"dapr-app-id": "zzz"}], ids=["none", "app", "other"])
async def test_a_login_is_asked_for_by_who_is_called_at_last(
    memory: Backbone, app: App, tmp_path: Path, provider: IdentityProvider, named: dict[str, str]
) -> None:
    """A header that names an application, and an alias before, lead nobody around."""
    aliases = {"/mine/{x}": "/v1.0/state/statestore/secret", "/theirs": "/v1.0/invoke/zzz/method/a", "/none": "/b"}
    made = oauth2(provider, 1, pathFilter="^/v1.0/(state|invoke/app)/")
    made += of_type("alias", "middleware.http.routeralias", aliases)
    ways = configuration(httpPipeline=["alias:routeralias", "oauth2"])
    is_app = named.get("dapr-app-id") == "app"
    async with through(memory, tmp_path, made, ways, app=app) as node:
        for path, guarded in {
            "/mine/1": True,
            "/v1.0/state/statestore/secret": True,
            "//v1.0/./state/memory/secret": True,
            "/v1.0/invoke/app/method/a": is_app or not named,
            "/v1.0/invoke/zzz/method/a": is_app,
            "/v1.0/invoke/zzz/method/../../../../a": is_app,
            "/theirs": is_app,
            "/none": is_app,
            "/a": is_app,
        }.items():
            assert ((await node.request("GET", path, named)).status == 302) is guarded, path
        assert not app.got


async def test_https_on_the_way_back(memory: Backbone, tmp_path: Path, provider: IdentityProvider) -> None:
    ways = configuration(httpPipeline=["oauth2"])
    async with (
        aiohttp.ClientSession() as browser,
        through(memory, tmp_path, oauth2(provider, 80, forceHTTPS="true"), ways) as node,
    ):
        away = await node.get("/v1.0/metadata")
        assert away.headers["set-cookie"].endswith("; Secure")
        back = await provider.log_in(browser, away.headers["location"])
        landed = await node.request("GET", f"/?{urlsplit(back).query}", {"Cookie": cookie(away.headers)})
        assert landed.headers["location"] == "https://127.0.0.1:80/v1.0/metadata"


async def test_a_provider_that_is_away_or_refuses(memory: Backbone, tmp_path: Path) -> None:
    ways = configuration(httpPipeline=["oauth2"])
    async with (
        IdentityProvider(tmp_path / "provider") as provider,
        aiohttp.ClientSession() as browser,
        through(memory, tmp_path, oauth2(provider, 1), ways) as node,
    ):
        away = await node.get("/v1.0/metadata")
        query = urlsplit(await provider.log_in(browser, away.headers["location"])).query
        await provider.kill()
        reply = await node.request("GET", f"/?{query}", {"Cookie": cookie(away.headers)})
        assert (reply.status, reply.json["errorCode"]) == (500, "ERR_MIDDLEWARE")
        again = await node.get("/v1.0/metadata")
        state = parse_qs(urlsplit(again.headers["location"]).query)["state"][0]
        target = f"/?state={state}&error=access_denied"
        refused = await node.request("GET", target, {"Cookie": cookie(again.headers)})
        assert (refused.status, refused.body) == (401, b"the login failed")


@pytest.mark.costly
async def test_a_login_ends_with_its_token(memory: Backbone, tmp_path: Path) -> None:
    ways = configuration(httpPipeline=["oauth2"])
    async with (
        IdentityProvider(tmp_path / "provider", max_age=12) as provider,
        aiohttp.ClientSession() as browser,
        through(memory, tmp_path, oauth2(provider, 1), ways) as node,
    ):
        away = await node.get("/v1.0/metadata")
        query = urlsplit(await provider.log_in(browser, away.headers["location"])).query
        landed = await node.request("GET", f"/?{query}", {"Cookie": cookie(away.headers)})
        headers = {"Cookie": cookie(landed.headers)}

        async def over() -> None:
            assert (await node.request("GET", "/v1.0/metadata", headers)).status == 302

        await eventually(over)


# Tokens of the gateway's own


@dataclass
class TokenEndpoint:
    """A token endpoint, as RFC 6749 has it for client credentials; the provider above has no such grant."""

    seconds: object = 3600
    takes: str = "header"
    status: int = 200
    port: int = field(default_factory=free_port)
    forms: list[dict[str, str]] = field(default_factory=list)
    answer: Callable[[web.BaseRequest], Awaitable[web.Response]] | None = None
    asked: int = 0

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        self.asked += 1
        if self.answer is not None:
            return await self.answer(request)
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.forms.append(form)
        in_header = request.headers.get("Authorization") == f"Basic {base64.b64encode(b'a%3Ab:s+c').decode()}"
        in_form = (form.get("client_id"), form.get("client_secret")) == ("a:b", "s c")
        if not (in_header if self.takes == "header" else in_form):
            return web.json_response({"error": "invalid_client"}, status=401)
        told = {"access_token": f"t{len(self.forms)}", "token_type": "bearer", "expires_in": self.seconds}
        return web.json_response(told, status=self.status)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[TokenEndpoint]:
        runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True).start()
        try:
            yield self
        finally:
            await runner.cleanup()

    def settings(self) -> ClientCredentialsSettings:
        return ClientCredentialsSettings("a:b", "s c", "one", f"http://127.0.0.1:{self.port}/token/", "authorization")

    def component(self, **more: str) -> str:
        settings = {
            "clientID": "a:b",
            "clientSecret": "s c",
            "scopes": "one,two",
            "tokenURL": f"http://127.0.0.1:{self.port}/token/",
            "headerName": "authorization",
            **more,
        }
        return of_type("own", "middleware.http.oauth2clientcredentials", settings)


OWN = configuration(httpPipeline=["own:oauth2clientcredentials"])


@pytest.mark.parametrize(("takes", "style", "asked"), [("header", "0", 1), ("form", "0", 2), ("form", "1", 1)])
async def test_a_token_is_got_once_and_put_on_every_request(
    memory: Backbone, app: App, tmp_path: Path, takes: str, style: str, asked: int
) -> None:
    async with TokenEndpoint(takes=takes).serving() as endpoint:
        made = endpoint.component(authStyle=style, endpointParamsQuery="resource=x&audience=y")
        async with through(memory, tmp_path, made, OWN, app=app) as node, asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(node.get(f"{CALL}/x", Authorization="Bearer theirs"))
            await app.until("/x", 5)
        assert {tuple(got.all("authorization")) for got in app.got} == {(f"Bearer t{asked}",)}
        expected = {"grant_type": "client_credentials", "scope": "one two", "resource": "x", "audience": "y"}
        assert len(endpoint.forms) == asked
        assert expected.items() <= endpoint.forms[-1].items()


async def test_a_token_that_is_over_is_got_anew(memory: Backbone, app: App, tmp_path: Path) -> None:
    async with TokenEndpoint(seconds=5).serving() as endpoint:  # It is used until ten seconds before its end.
        async with through(memory, tmp_path, endpoint.component(), OWN, app=app) as node:
            for _ in range(2):
                await node.get(f"{CALL}/x")
        assert [got.headers["authorization"] for got in app.got] == ["Bearer t1", "Bearer t2"]


async def test_without_a_token_nothing_goes_on(
    memory: Backbone, app: App, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    endpoint = TokenEndpoint(status=403)
    async with through(memory, tmp_path, endpoint.component(), OWN, app=app) as node:
        reply = await node.get(f"{CALL}/x")
        assert (reply.status, reply.json["errorCode"]) == (500, "ERR_MIDDLEWARE")
        assert str(endpoint.port) not in str(reply.body), "where it is stands in the log alone"
        async with endpoint.serving():
            assert (await node.get(f"{CALL}/x")).status == 500
            endpoint.status = 200

            async def passed() -> None:  # What failed is not tried again for a second.
                assert (await node.get(f"{CALL}/x")).status == 200

            await eventually(passed)
        assert len(app.got) == 1
    told = [line for line in caplog.messages if line.startswith("middleware own: ")]
    assert [line.split(":")[1].split()[0] for line in told] == ["fails", "works"], told


async def test_an_attempt_is_shared_and_a_failure_counts_for_a_while() -> None:
    """Nobody who gives up waiting ends it for the others."""
    go, made = asyncio.Event(), 0

    async def make() -> int:
        nonlocal made
        made += 1
        await go.wait()
        if made == 1:
            raise MiddlewareError("first")
        if made == 2:
            raise ZeroDivisionError
        return made

    async with asyncio.TaskGroup() as tasks:
        attempts = Attempts("it failed", tasks, make, failed=3600.0)
        waiting = [tasks.create_task(_refused(attempts.wait())) for _ in range(4)]
        impatient = waiting.pop()
        await eventually(lambda: _equal(made, 1))
        impatient.cancel()
        go.set()
        told = [await each for each in waiting] + [await _refused(attempts.wait())]
        assert {str(each) for each in told} == {"first"}
        assert len({id(each) for each in told}) == 4, "each has an error of its own"
        assert (made, impatient.cancelled()) == (1, True)
        attempts = Attempts("it failed", tasks, make, failed=0.0)
        assert "ZeroDivisionError" in str(await _refused(attempts.wait()))
        assert await attempts.wait() == 3


async def _refused(work: Awaitable[object]) -> MiddlewareError:
    with pytest.raises(MiddlewareError) as caught:
        await work
    return caught.value


async def test_a_token_endpoint_that_hangs_is_asked_once() -> None:
    hanging = asyncio.Event()

    async def hang(request: web.BaseRequest) -> web.Response:
        await hanging.wait()
        return web.Response()

    endpoint = TokenEndpoint(answer=hang)
    async with endpoint.serving(), ClientCredentialsMiddleware(endpoint.settings()) as made:
        async with asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(_refused(made.handle(Request("GET", "/"), fine))) for _ in range(5)]
            await eventually(lambda: _equal(endpoint.asked, 1))
            for each in waiting[:3]:
                each.cancel()
            await asyncio.wait(waiting[:3])
            hanging.set()
            for each in waiting[3:]:
                assert "gives no token" in str(await each)
        assert endpoint.asked == 1
        assert all(each.cancelled() for each in waiting[:3]), "each waits as long as it wants to"


async def test_a_login_leads_to_no_other_host(memory: Backbone, tmp_path: Path, provider: IdentityProvider) -> None:
    """A browser takes a backslash for a slash, and two of them for the beginning of a host."""
    ways = configuration(httpPipeline=["oauth2"])
    async with (
        aiohttp.ClientSession() as browser,
        through(memory, tmp_path, oauth2(provider, 1), ways) as node,
    ):
        for target in ("//evil.example/x", "/\\evil.example/x", "///evil.example/x", "/./\\evil.example/x"):
            raw = await node.raw(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            head = raw.decode().partition("\r\n\r\n")[0]
            fields = {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in head.split("\r\n")[1:]}
            if " 302 " not in head.partition("\r\n")[0]:
                continue  # It was no request.
            back = await provider.log_in(browser, fields["location"])
            landed = await node.request("GET", f"/?{urlsplit(back).query}", {"Cookie": cookie(fields)})
            assert landed.headers["location"] in ("/evil.example/x", "/%5Cevil.example/x"), target


async def test_logins_of_one_browser_side_by_side(provider: IdentityProvider) -> None:
    """Each tab lands where it wanted to go. The browser keeps what a few of them need, and cannot change it."""
    endpoint = f"{provider.url}/oauth2/"
    settings = OAuth2Settings("me", "s", f"{endpoint}authorize", f"{endpoint}token", "http://x/", "openid")
    jar: dict[str, str] = {}

    async def ask(path: str, query: str = "", own: dict[str, str] = jar) -> tuple[int, str]:
        headers = [("Cookie", "; ".join(f"{name}={value}" for name, value in own.items()))] if own else []
        answer = await made.handle(Request("GET", path, query, headers), fine)
        for name, value in answer.headers:
            if name == "Set-Cookie":
                kept, _, rest = value.partition(";")
                own.update([kept.split("=", 1)])  # type: ignore[arg-type]  # a pair
                if "Max-Age=0" in rest:
                    del own[kept.split("=", 1)[0]]
        return answer.status, dict(answer.headers).get("Location", "")

    async with OAuth2Middleware(settings) as made, aiohttp.ClientSession() as browser:
        away = [(await ask(f"/{number}", f"q={'x' * number}"))[1] for number in (1, 2, 2000)]
        back = [urlsplit(await provider.log_in(browser, each)).query for each in away]
        begun = dict(jar)
        assert [await ask("/", each, begun.copy()) for each in back] == [
            *((302, "/1?q=x"), (302, "/2?q=xx"), (302, "/2000")),  # A cookie has room for so much.
        ]
        for name, value in begun.items():
            until, _, rest = value.partition(".")
            for wrong in (
                f"{int(until) + 1}.{rest}",
                value[:-2],
                f"{until}.Lw==.{rest.rpartition('.')[2]}",
                "",
                "\udcff",
            ):
                assert (await ask("/", back[0], {name: wrong}))[0] == 302
                assert not made._tokens.keys() & {wrong}
        for number in range(20):
            await ask(f"/{number}")
        assert len(jar) == MAX_TABS
        other = OAuth2Middleware(settings)
        assert not list(other._begun(begun)), "another gateway's"


async def test_paths_that_get_a_token(memory: Backbone, app: App, tmp_path: Path) -> None:
    async with TokenEndpoint().serving() as endpoint:
        made = endpoint.component(pathFilter="/users/.*")
        async with through(memory, tmp_path, made, OWN, app=app) as node:
            for path in ("users/1", "%75sers/1", "orders/1"):
                await node.get(f"{CALL}/{path}")
        assert [got.headers.get("authorization") for got in app.got] == ["Bearer t1", "Bearer t1", None]
