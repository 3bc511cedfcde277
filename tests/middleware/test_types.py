"""Each type that asks no identity provider, by what its settings say."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from bindings.middleware.opa import OPAMiddleware, OPASettings
from bindings.middleware.ratelimit import MAX_CLIENTS, Buckets, RateLimitMiddleware, RateLimitSettings
from mesh.errors import ConfigError
from mesh.middleware import Answer, Request
from mesh.regular import Regular
from tests.http.harness import App, Backbone, component, gateway
from tests.middleware.harness import configuration, of_type, through
from tests.support.eventually import PATIENCE
from tests.support.policy import PolicyService

CALL = "/v1.0/invoke/app/method"


# Aliases


ALIASES = {
    "/v1.0/mall/activity/info": f"{CALL}/mall/info",
    "/v1.0/hello/{id}/info": f"{CALL}/hello/info",
    "/n/{number:[0-9]+}": f"{CALL}/number?kind=n",
    "/n/{other}": f"{CALL}/other",
    "/a b/{x}": f"{CALL}/blank",
    "/case/{x:(?i)b+}/c": f"{CALL}/case",
    "/code/{x:[0-9]{2}}-{y:(?:a{1,2}b){2}}": f"{CALL}/code",
    "/brace/{x:[\\x7b?#]}": f"{CALL}/brace",
    "/deep/{x:.*}": f"{CALL}/deep",
}
ALIASED = {
    "/v1.0/mall/activity/info?id=123": "/mall/info?id=123",
    "/v1.0/hello/a%20b/info": "/hello/info?id=a+b",
    "/v1.0/hello/x/info?y=%20z": "/hello/info?y=%20z&id=x",
    "/n/12": "/number?kind=n&number=12",
    "/n/ab": "/other?other=ab",
    "/a%20b/%26c%3D": "/blank?x=%26c%3D",
    "/case/bBb/c": "/case?x=bBb",
    "/code/12-abaab": "/code?x=12&y=abaab",
    "/brace/%7B": "/brace?x=%7B",
    "/brace/%3F": "/brace?x=%3F",
    "/deep/a/b": "/deep?x=a%2Fb",
    "//v1.0/./mall/activity/info": "/mall/info",
    f"{CALL}/as/it/is": "/as/it/is",
}


@pytest.mark.parametrize("how", ["names", "routes"])
async def test_aliases(memory: Backbone, app: App, tmp_path: Path, how: str) -> None:
    """Each as a setting, or all in one; the first that matches counts."""
    settings = ALIASES if how == "names" else {"routes": json.dumps(ALIASES)}
    made = of_type("alias", "middleware.http.routeralias", settings)
    async with through(memory, tmp_path, made, configuration(httpPipeline=["alias:routeralias"]), app=app) as node:
        for path, expected in ALIASED.items():
            app.got.clear()
            assert (await node.post(path, b"body")).status == 200, path
            assert [got.target for got in app.got] == [expected], path
        for path in ("/v1.0/hello/a/b/info", "/case/b/C", "/code/123-abab", "/code/12-ab"):
            assert (await node.get(path)).status == 404, (
                f"{path}: a variable is one segment, and its expression all of it"
            )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"/a": "b"}, "(/a): 'b' is no path"),
        ({"/a/{b": "/c"}, "(/a/{b): '/a/{b' has a brace"),
        ({"/a/b}": "/c"}, "(/a/b}): '/a/b}' has a brace"),
        ({"/a/{}": "/c"}, "a variable that is empty"),
        ({"/a/{:x}": "/c"}, "a variable that is empty"),
        ({"/a/{b:}": "/c"}, "a variable that is empty"),
        ({"/a/{b:[0-9]{2}": "/c"}, "has a brace that is not closed"),
        ({"/a/{b:[{]}": "/c"}, "has a brace that is not closed"),
        ({"/a/{b:(}": "/c"}, "'(' is no regular expression"),
        ({"/a/{b:a)(b}": "/c"}, "'a)(b' is no regular expression"),
        ({"/a/{b}?c": "/c"}, "'/a/{b}?c' is no path"),
        ({"/a/{b?}": "/c"}, "'/a/{b?}' is no path"),
        ({"/a?b": "/c"}, "'/a?b' is no path"),
        ({"routes": "[1]"}, "(routes): is no dictionary of paths"),
        ({"routes": "{a: /b}"}, "(routes): 'a' is no path"),
        ({"routes": "{"}, "(routes): is neither JSON nor YAML"),
        ({"/a": "/b", "other": "x"}, ""),
    ],
)
async def test_aliases_that_are_wrong(
    memory: Backbone, tmp_path: Path, settings: dict[str, str], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = of_type("alias", "middleware.http.routeralias", settings)
    if not expected:
        async with through(memory, tmp_path, made, configuration(httpPipeline=["alias:routeralias"])):
            assert "(other): unknown setting, which nothing reads" in caplog.text
        return
    with pytest.raises(ConfigError) as caught:
        async with through(memory, tmp_path, made, configuration(httpPipeline=["alias:routeralias"])):
            pass
    assert expected in str(caught.value)


# Forms of targets


@pytest.mark.parametrize(
    ("rule", "path", "status"),
    [
        ("^[A-Za-z0-9/._-]+$", "/fine", 200),
        ("^[A-Za-z0-9/._-]+$", "/%20cat%20password", 400),
        ("^[A-Za-z0-9/._-]+$", "/fine?q=1", 400),
        ("/method/pub", "/public", 200),
        ("/method/pub", "/private", 400),
        ("^/v1.0/invoke/", "/../../../secrets/a/b", 200),  # What a method is called is the application's matter.
    ],
)
async def test_forms(memory: Backbone, app: App, tmp_path: Path, rule: str, path: str, status: int) -> None:
    made = component("check", "middleware.http.routerchecker", rule=rule)
    async with through(memory, tmp_path, made, configuration(httpPipeline=["check:routerchecker"]), app=app) as node:
        reply = await node.get(CALL + path)
        assert reply.status == status, reply
        assert status == 200 or reply.body == b"invalid router"


async def test_a_form_is_that_of_the_path_that_the_router_goes_by(memory: Backbone, tmp_path: Path) -> None:
    made = component("check", "middleware.http.routerchecker", rule="^/v1.0/state/")
    async with through(memory, tmp_path, made, configuration(httpPipeline=["check:routerchecker"])) as node:
        assert (await node.get("/v1.0/state/statestore/none")).status == 204
        assert (await node.get("/v1.0/state/../metadata")).status == 400
        assert (await node.get("/v1.0//metadata")).status == 400


# As Go reads them: `$` is the end alone, `\\d` is 0 to 9; and no text takes long.
REGULAR = {
    "^/a$": {"/a": True, "/a\n": False},
    r"^\d+$": {"12": True, "\u0661": False},
    r"(?i)^/\p{Greek}[[:digit:]]\z": {"/\u03b11": True, "/a1": False},
    "(?P<x>a)(?<y>b)": {"xaby": True},
    "^(a+)+$": {"a" * 4000: True, "a" * 4000 + "!": False},
    "^(.*a){12}$": {"a" * 4000 + "b": False},
    "": {"\udcff": True},
}


@pytest.mark.parametrize("expression", REGULAR)
def test_expressions(expression: str) -> None:
    for text, expected in REGULAR[expression].items():
        assert Regular(expression).found_in(text) == expected, text


@pytest.mark.parametrize("expression", ["(", "(?=a)", r"(a)\1", "a{2000}", "*", "\udcff"])
def test_expressions_that_are_none(expression: str) -> None:
    with pytest.raises(ValueError, match="is no regular expression"):
        Regular(expression)


def test_what_expressions_need_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "re2", None)
    with pytest.raises(ValueError, match=r"needs the package re2; install it with: pip install .*\[regex\]"):
        Regular("a")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("routerchecker", {"rule": "^/v1.0/invoke/app/method/(a+)+$"}),
        ("routeralias", {CALL + "/{x:(a+)+}/b": CALL + "/y"}),
    ],
)
async def test_no_path_takes_long(
    memory: Backbone, app: App, tmp_path: Path, kind: str, settings: dict[str, str]
) -> None:
    made = of_type("it", f"middleware.http.{kind}", settings)
    async with through(memory, tmp_path, made, configuration(httpPipeline=[f"it:{kind}"]), app=app) as node:
        async with asyncio.timeout(PATIENCE):
            reply = await node.get(f"{CALL}/{'a' * 3000}!")
        assert reply.status == (400 if kind == "routerchecker" else 200)


async def test_a_rule_that_is_none(memory: Backbone, tmp_path: Path) -> None:
    made = component("check", "middleware.http.routerchecker", rule="(")
    with pytest.raises(ConfigError, match=r"\(rule\): '\(' is no regular expression"):
        async with through(memory, tmp_path, made, configuration(httpPipeline=["check:routerchecker"])):
            pass


# Rates


@pytest.mark.parametrize(
    ("rate", "times", "expected"),
    [
        (2, [0, 0, 0, 0.5, 0.5], [0, 0, 0.5, 0, 0.5]),
        (10, [0] * 11 + [0.1, 0.1, 60] + [60] * 10, [0] * 10 + [0.1, 0, 0.1] + [0] * 10 + [0.1]),
        (0.5, [0, 0, 1, 2], [0, 2, 1, 0]),
    ],
)
def test_buckets(rate: float, times: list[float], expected: list[float]) -> None:
    """As many at once as in a second, one at least; what is refused takes nothing."""
    buckets = Buckets(rate)
    assert [buckets.take("a", at) for at in times] == pytest.approx(expected)


def test_clients_do_not_share_and_are_forgotten() -> None:
    buckets = Buckets(1)
    assert [buckets.take(client, 0) for client in "abab"] == [0, 0, 1, 1]
    for number in range(MAX_CLIENTS):
        buckets.take(str(number), 0)
    assert buckets.take("a", 0) == 0


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (("10.0.0.1", "/a"), ("10.0.0.1", "/b"), False),
        (("10.0.0.1", "/a"), ("10.0.0.2", "/a"), False),
        (("10.0.0.1", "/a/b"), ("10.0.0.1", "//%61/x/..//b"), True),
        (("::ffff:10.0.0.1", "/a"), ("10.0.0.1", "/a"), True),
        (("2001:db8:1:2::1", "/a"), ("2001:db8:1:2:ffff::9%eth0", "/a"), True),
        (("2001:db8:1:2::1", "/a"), ("2001:db8:1:3::1", "/a"), False),
    ],
)
async def test_what_is_one_client(one: tuple[str, str], other: tuple[str, str], shared: bool) -> None:
    """However it writes a path, and whichever of its addresses it takes."""

    async def onward(request: Request) -> Answer:
        return Answer(200)

    made = RateLimitMiddleware(RateLimitSettings(0.01))
    asked = [await made.handle(Request("GET", path, peer=peer), onward) for peer, path in (one, other)]
    assert [each.status for each in asked] == [200, 429 if shared else 200]


async def test_a_client_that_asks_too_often(memory: Backbone, app: App, tmp_path: Path) -> None:
    made = component("rate", "middleware.http.ratelimit", maxRequestsPerSecond="0.01")
    async with through(memory, tmp_path, made, configuration(httpPipeline=["rate:ratelimit"]), app=app) as node:
        assert (await node.get(f"{CALL}/x")).status == 200
        reply = await node.request("GET", f"{CALL}/x", {"X-Forwarded-For": "10.1.2.3"})
        assert (reply.status, reply.body) == (429, b"You have reached maximum request limit.")
        assert (reply.headers["x-rate-limit-limit"], int(reply.headers["retry-after"]) > 1) == ("0.01", True)
        assert (await node.get("/v1.0/healthz")).status == 204
        assert (await node.get(f"{CALL}/y")).status == 200, "another path"
        assert len(app.got) == 2


@pytest.mark.parametrize(("per", "second"), [("client", 200), ("caller", 200), ("all", 429)])
async def test_callers_have_rates_of_their_own(nats: Backbone, app: App, tmp_path: Path, per: str, second: int) -> None:
    """Towards the application, by who calls: a name that a caller cannot choose freely."""
    settings = {"maxRequestsPerSecond": "0.01", "mesh.per": per}
    made = of_type("rate", "middleware.http.ratelimit", settings)
    ways = configuration(appHttpPipeline=["rate:ratelimit"])
    async with (
        through(nats, tmp_path, made, ways, app=app, init_endpoints_off=("subscribe", "config")),
        gateway(nats, tmp_path, app_id="one") as one,
        gateway(nats, tmp_path, app_id="two") as two,
    ):
        assert (await one.get(f"{CALL}/x")).status == 200
        assert (await one.request("GET", f"{CALL}/x", {"dapr-caller-app-id": "two"})).status == 429
        assert (await two.get(f"{CALL}/x")).status == second


@pytest.mark.parametrize("rate", ["0", "-1", "many", "nan", "inf"])
async def test_rates_that_are_none(memory: Backbone, tmp_path: Path, rate: str) -> None:
    made = component("rate", "middleware.http.ratelimit", maxRequestsPerSecond=rate)
    with pytest.raises(ConfigError, match=r"\(maxRequestsPerSecond\): is a number greater than 0"):
        async with through(memory, tmp_path, made, configuration(httpPipeline=["rate:ratelimit"])):
            pass


# Policies


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def policies(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PolicyService]:
    """Open Policy Agent; each test gives it the one policy that it has."""
    try:
        service = PolicyService(tmp_path_factory.mktemp("opa"))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    async with service:
        yield service


POLICY = """package http

default allow = false

allow = {"allow": true, "additional_headers": {"X-Claim": "granted", "Host": "other"}} {
  input.request.path_parts[0] == "v1.0"
  input.request.headers["X-Role"] == "admin"
}

allow = {"allow": false, "status_code": 301, "additional_headers": {"Location": "https://my.site/authorize"}} {
  input.request.query.go[_] == "away"
}

allow = {"allow": input.request.body == "sesame"} {
  input.request.method == "PUT"
}

allow = "odd" {
  input.request.query.go[_] == "odd"
}
"""
ADMIN = {"X-Role": "admin"}
PASSING = configuration(httpPipeline=["policy:opa"])


def opa(url: str, **more: str) -> str:
    settings = {"rego": POLICY, "includedHeaders": "x-role, x-other", "mesh.url": url, **more}
    return of_type("policy", "middleware.http.opa", settings)


async def test_a_policy_decides(memory: Backbone, app: App, tmp_path: Path, policies: PolicyService) -> None:
    async with through(memory, tmp_path, opa(policies.url, readBody="true"), PASSING, app=app) as node:
        reply = await node.get(f"{CALL}/x")
        assert (reply.status, reply.body) == (403, b"Forbidden")
        assert "x-dapr-opa-error" not in reply.headers
        assert (await node.request("GET", f"{CALL}/x", {**ADMIN, "X-Claim": "forged"})).status == 200
        [got] = app.got
        assert got.all("x-claim") == ["granted"]
        reply = await node.get(f"{CALL}/x?go=away")
        assert (reply.status, reply.headers["location"]) == (301, "https://my.site/authorize")
        assert (await node.request("PUT", f"{CALL}/x", None, b"sesame")).status == 200
        assert app.got[-1].body == b"sesame"
        assert (await node.request("PUT", f"{CALL}/x", None, b"open")).status == 403
        reply = await node.get(f"{CALL}/x?go=odd")
        assert (reply.status, reply.headers["x-dapr-opa-error"]) == (403, "true")


async def test_what_a_policy_is_told(memory: Backbone, app: App, tmp_path: Path, policies: PolicyService) -> None:
    """The whole input, sent back in a header; header fields that are not named are not in it."""
    rego = 'package http\nallow = {"allow": true, "additional_headers": {"x-input": json.marshal(input)}}\n'
    made = opa(policies.url, rego=rego)
    async with through(memory, tmp_path, made, PASSING, app=app) as node:
        await node.request("POST", f"{CALL}/a%20b?x=1&x=2&y", {"X-Role": "r", "X-Secret": "s"}, b"body")
        assert json.loads(app.got[0].headers["x-input"]) == {
            "request": {
                "method": "POST",
                "path": f"{CALL}/a b",
                "path_parts": ["v1.0", "invoke", "app", "method", "a b"],
                "raw_query": "x=1&x=2&y",
                "query": {"x": ["1", "2"], "y": [""]},
                "headers": {"X-Role": "r"},
                "scheme": "http",
            }
        }


async def test_a_service_that_is_away_lets_nothing_through(
    memory: Backbone, app: App, tmp_path: Path, policies: PolicyService, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so once, whatever comes."""
    async with PolicyService(tmp_path / "own") as service:
        made = opa(service.url, defaultStatus="451")
        async with through(memory, tmp_path, made, PASSING, app=app) as node:
            assert (await node.request("GET", f"{CALL}/x", ADMIN)).status == 200
            await service.kill()
            for _ in range(3):
                reply = await node.request("GET", f"{CALL}/x", ADMIN)
                assert (reply.status, reply.headers["x-dapr-opa-error"]) == (451, "true")
            told = [line for line in caplog.messages if "does not decide" in line]
            assert len(told) == 1
            assert told[0].startswith("middleware policy: fails: it lets nothing through: the policy service"), told
            (condition,) = node.gateway._runtime.conditions.described()
            assert condition["target"] == "middleware policy"
            await service.start()  # Without its policy, which it kept in memory.
            reply = await node.request("GET", f"{CALL}/x", ADMIN)
            assert (reply.status, reply.headers["x-dapr-opa-error"]) == (451, "true")
            assert len(app.got) == 1


async def test_a_policy_that_the_service_has_already(memory: Backbone, tmp_path: Path, policies: PolicyService) -> None:
    """Another document than Dapr's."""
    async with aiohttp.ClientSession() as session:
        rego = "package own\nmay = true"
        async with session.put(f"{policies.url}/v1/policies/own", data=rego) as response:
            assert response.status == 200
    made = opa(f"{policies.url}/v1/data/own/may", rego="")
    async with through(memory, tmp_path, made, PASSING) as node:
        assert (await node.get("/v1.0/metadata")).status == 200


async def test_policies_that_cannot_be(memory: Backbone, tmp_path: Path, policies: PolicyService) -> None:
    for made, expected in (
        (
            opa(policies.url, rego="package http\nallow = {"),
            r"\(rego\): the policy service refuses the policy: .*line 2",
        ),
        (of_type("policy", "middleware.http.opa", {"rego": POLICY}), r"\(rego\): no policy runs in the gateway itself"),
        (of_type("policy", "middleware.http.opa", {}), "where it is by the setting mesh.url"),
        (opa("http://127.0.0.1:1"), "cannot be reached"),
        (opa(policies.url, defaultStatus="99"), r"\(defaultStatus\)"),
    ):
        with pytest.raises(ConfigError, match=expected):
            async with through(memory, tmp_path, made, PASSING):
                pass


async def test_a_field_that_is_repeated_is_told_whole() -> None:
    """Else whoever asks chooses which one is decided on, and which one the application reads."""
    made = OPAMiddleware(OPASettings(url="http://127.0.0.1:1", included="X-Role, x-other"))
    request = Request("GET", "/a", headers=(("X-Role", "guest"), ("x-role", "admin"), ("X-Other", "1"), ("X-Not", "2")))
    assert (await made._input(request))["headers"] == {"X-Role": "guest, admin", "X-Other": "1"}
