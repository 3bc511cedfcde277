"""The examples of docs/middleware.md, and files as Dapr's pages on middleware have them: they do what they say."""

from __future__ import annotations

import re
from pathlib import Path

import aiohttp
import pytest
import yaml as parser

from gateway.cli import main
from tests.grpc.harness import client as grpc_client
from tests.http.harness import App, Backbone
from tests.middleware.harness import configuration, through
from tests.middleware.test_login import Issuer, TokenEndpoint, cookie, issuer, provider
from tests.middleware.test_types import policies
from tests.support.identity import IdentityProvider
from tests.support.policy import PolicyService

__all__ = ["issuer", "policies", "provider"]

PAGE = Path(__file__).parents[2] / "docs" / "middleware.md"
CALL = "/v1.0/invoke/app/method"


def example(kind: str, **put: str) -> str:
    """Give the component of a type on the page, with other addresses in the place of its own."""
    texts = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    [text] = [each for each in texts if f"type: middleware.http.{kind}\n" in each and "kind: Component" in each]
    for was, now in put.items():
        name = was.replace("_", ".")
        text, times = re.subn(rf'(name: {re.escape(name)}\n +)(value: "[^"]*"|envRef: \w+)', rf'\1value: "{now}"', text)
        assert times == 1, was
    return f"---\n{text}"


def front(kind: str) -> str:
    """Have the component of the page in front of the API."""
    name = parser.safe_load(example(kind))["metadata"]["name"]
    return configuration(httpPipeline=[f"{name}:{kind}"])


async def test_paths(memory: Backbone, app: App, tmp_path: Path) -> None:
    names = ["alias:routeralias", "form:routerchecker", "upper:uppercase", "rate:ratelimit"]
    made = "".join(example(each.partition(":")[2]) for each in names)
    ways = configuration(httpPipeline=names[1:2] + names[:1] + names[2:])
    async with through(memory, tmp_path, made, ways, app=app) as node:
        assert (await node.post("/hello/you", b"text")).status == 200
        assert [(got.target, got.body) for got in app.got] == [("/greet?name=you", b"TEXT")]
        assert (await node.post("/hello/you%20too", b"text")).status == 400
        statuses = [(await node.post("/hello/you", b"")).status for _ in range(60)]
        assert set(statuses) <= {200, 429}


async def test_tokens(memory: Backbone, tmp_path: Path, issuer: Issuer) -> None:
    made = example("bearer", issuer=issuer.url)
    async with through(memory, tmp_path, made, front("bearer")) as node:
        assert (await node.get("/v1.0/metadata")).status == 401
        headers = {"Authorization": f"Bearer {issuer.token(aud='my-application')}"}
        assert (await node.request("GET", "/v1.0/metadata", headers)).status == 200


async def test_logins(memory: Backbone, app: App, tmp_path: Path, provider: IdentityProvider) -> None:
    put = {
        "clientSecret": "s",
        "authURL": f"{provider.url}/oauth2/authorize",
        "tokenURL": f"{provider.url}/oauth2/token",
        "redirectURL": f"http://127.0.0.1:1{CALL}/account",
    }
    async with (
        aiohttp.ClientSession() as browser,
        through(memory, tmp_path, example("oauth2", **put), front("oauth2"), app=app) as node,
    ):
        assert (await node.get(f"{CALL}/open")).status == 200
        away = await node.get(f"{CALL}/account")
        back = await provider.log_in(browser, away.headers["location"])
        target = back.removeprefix("http://127.0.0.1:1")
        landed = await node.request("GET", target, {"Cookie": cookie(away.headers)})
        assert (await node.request("GET", f"{CALL}/account", {"Cookie": cookie(landed.headers)})).status == 200
        assert app.got[-1].headers["x-auth"].startswith("Bearer ")


async def test_an_own_token(memory: Backbone, app: App, tmp_path: Path) -> None:
    async with TokenEndpoint().serving() as endpoint:
        address = f"http://127.0.0.1:{endpoint.port}/"
        made = example("oauth2clientcredentials", clientID="a:b", clientSecret="s c", tokenURL=address)
        async with through(memory, tmp_path, made, front("oauth2clientcredentials"), app=app) as node:
            await node.get(f"{CALL}/x")
        assert app.got[0].headers["authorization"] == "Bearer t1"
        assert endpoint.forms[0]["scope"] == "orders.read"


async def test_policies(memory: Backbone, app: App, tmp_path: Path, policies: PolicyService) -> None:
    made = example("opa", mesh_url=policies.url)
    async with through(memory, tmp_path, made, front("opa"), app=app) as node:
        assert (await node.get(f"{CALL}/x")).status == 403
        assert (await node.request("GET", f"{CALL}/x", {"X-Role": "admin"})).status == 200
        assert app.got[0].headers["x-checked"] == "yes"


# As Dapr's pages write them: in any case of names, numbers as numbers, blanks at ends.


FILE = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: {name}
  namespace: default
spec:
  type: middleware.http.{kind}
  version: v1
  metadata:
{settings}
---
"""
LIST = """\
apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata:
  name: appconfig
  namespace: default
spec:
  {section}:
    handlers:
    - name: {name}
      type: middleware.http.{kind}
"""


def theirs(kind: str, settings: str, name: str = "theirs") -> str:
    return "---\n" + FILE.format(name=name, kind=kind, settings=settings)


def their_list(kind: str, section: str = "httpPipeline", name: str = "theirs") -> str:
    return LIST.format(section=section, name=name, kind=kind)


async def test_their_rate(memory: Backbone, app: App, tmp_path: Path) -> None:
    made = theirs("ratelimit", "  - name: maxRequestsPerSecond\n    value: 1")
    async with through(memory, tmp_path, made, their_list("ratelimit"), app=app) as node:
        assert [(await node.get(f"{CALL}/x")).status for _ in range(4)].count(429) >= 1


async def test_their_forms(memory: Backbone, app: App, tmp_path: Path) -> None:
    made = theirs("routerchecker", '  - name: rule\n    value: "^[A-Za-z0-9/._-]+$"')
    passing = (
        "method/method",
        "method/01",
        "method/METHOD",
        "method/user/info",
        "method/user_info",
        "method/user-info",
    )
    async with through(memory, tmp_path, made, their_list("routerchecker"), app=app) as node:
        for path in passing:
            assert (await node.get(f"/v1.0/invoke/app/{path}")).status == 200, path
        for path in ("method/cat%20password", "method/%22%20AND%204210=4210", "method/%22$(curl"):
            assert (await node.get(f"/v1.0/invoke/app/{path}")).status == 400, path


async def test_their_aliases(memory: Backbone, app: App, tmp_path: Path) -> None:
    lines = [
        ("/v1.0/mall/activity/info", f"{CALL}/mall/activity/info"),
        ("/v1.0/hello/activity/{id}/info", f"{CALL}/hello/activity/info"),
        ("/v1.0/hello/activity/{id}/user", f"{CALL}/hello/activity/user"),
    ]
    settings = "\n".join(f'  - name: "{name}"\n    value: "{value}"' for name, value in lines)
    made = theirs("routeralias", settings)
    async with through(memory, tmp_path, made, their_list("routeralias"), app=app) as node:
        for path in ("mall/activity/info?id=123", "hello/activity/7/info", "hello/activity/7/user"):
            assert (await node.get(f"/v1.0/{path}")).status == 200
        expected = ["/mall/activity/info?id=123", "/hello/activity/info?id=7", "/hello/activity/user?id=7"]
        assert [got.target for got in app.got] == expected


@pytest.mark.parametrize(("audience", "issuer_"), [("clientId", "issuerURL"), ("audience", "issuer")])
async def test_their_tokens(memory: Backbone, tmp_path: Path, issuer: Issuer, audience: str, issuer_: str) -> None:
    """By the older names, too."""
    settings = f'  - name: {audience}\n    value: "me"\n  - name: {issuer_}\n    value: "{issuer.url}"'
    async with through(memory, tmp_path, theirs("bearer", settings), their_list("bearer")) as node:
        assert (await node.get("/v1.0/metadata")).status == 401
        headers = {"Authorization": f"bearer {issuer.token()}"}
        assert (await node.request("GET", "/v1.0/metadata", headers)).status == 200


async def test_their_policy(memory: Backbone, app: App, tmp_path: Path, policies: PolicyService) -> None:
    """With where the service is, which is all that is ours."""
    settings = f"""\
  - name: includedHeaders
    value: "x-my-custom-header, authorization"
  - name: defaultStatus
    value: 402
  - name: mesh.url
    value: {policies.url}
  - name: rego
    value: |
      package http

      default allow = false

      allow = {{"allow": true, "additional_headers": {{"X-JWT-Payload": payload}}}} {{
        not input.request.path_parts[4] == "forbidden"
        [_, token] := split(input.request.headers["Authorization"], " ")
        [_, claims, _] := io.jwt.decode(token)
        payload := base64.encode(json.marshal(claims))
      }}"""
    async with through(
        memory, tmp_path, theirs("opa", settings, "policy"), their_list("opa", name="policy"), app=app
    ) as node:
        assert (await node.get(f"{CALL}/x")).status == 402
        token = Issuer().token(sub="they")
        headers = {"Authorization": f"Bearer {token}"}
        assert (await node.request("GET", f"{CALL}/forbidden", headers)).status == 402
        assert (await node.request("GET", f"{CALL}/x", headers)).status == 200
        assert "x-jwt-payload" in app.got[0].headers


async def test_their_upper_case_towards_the_application(memory: Backbone, app: App, tmp_path: Path) -> None:
    made = "---\n" + FILE.format(name="uppercase", kind="uppercase", settings="").replace("  metadata:\n\n", "")
    ways = their_list("uppercase", "appHttpPipeline", "uppercase")
    async with through(memory, tmp_path, made, ways, app=app) as node:
        assert (await node.post(f"{CALL}/x", b"text")).status == 200
        assert app.got[0].body == b"TEXT"


# What it is not for, and what is told before


async def test_the_api_over_grpc_passes_none(
    memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = theirs("routerchecker", '  - name: rule\n    value: "^nothing$"')
    caplog.set_level("INFO")
    async with (
        through(memory, tmp_path, made, their_list("routerchecker")) as node,
        grpc_client(node) as called,
    ):
        assert (await node.get("/v1.0/metadata")).status == 400
        assert (await called.call("GetMetadata"))["id"] == "app"
    assert "that of gRPC passes no middleware" in caplog.text


async def test_an_application_on_grpc_is_told_of(
    memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = theirs("routerchecker", '  - name: rule\n    value: "^nothing$"')
    ways = their_list("routerchecker", "appHttpPipeline")
    async with through(memory, tmp_path, made, ways, app=1, app_protocol="grpc", ready=False):
        assert "spec.appHttpPipeline has no effect: the application is on gRPC" in caplog.text


def test_check_tells_of_a_name_that_is_nobodys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resources, file = tmp_path / "r", tmp_path / "config.yaml"
    resources.mkdir()
    (resources / "a.yaml").write_text(theirs("ratelimit", "  - name: maxRequestsPerSecond\n    value: 1"))
    file.write_text(their_list("ratelimit", name="their"))
    assert main(["check", str(resources), str(file)]) == 1
    told = capsys.readouterr().out
    assert main(["check", str(file)]) == 0, "which components there are is not known then"
    assert f"{file}:9:" in told
    assert "spec.httpPipeline.handlers[0]: there is no middleware component 'their'; did you mean 'theirs'?" in told


def test_check_knows_for_whom_a_component_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each application of a template; without one it may be what is meant."""
    resources, file, template = tmp_path / "r", tmp_path / "config.yaml", tmp_path / "run.yaml"
    resources.mkdir()
    limited = theirs("ratelimit", "  - name: maxRequestsPerSecond\n    value: 1")
    (resources / "a.yaml").write_text(limited.replace("kind: Component\n", "kind: Component\nscopes: [one]\n"))
    file.write_text(their_list("ratelimit"))
    for strict in (0, 1):
        assert main(["check", str(resources), str(file), *["--strict"] * strict]) == strict
        told = capsys.readouterr()
        assert f"{file}:9:" in (told.out if strict else told.err)
        assert "the component theirs is for one alone, by its scopes: no other" in told.out + told.err
    for other, expected in (("one", 0), ("two", 1)):
        app = f"{{appID: {other}, appDirPath: ., resourcesPaths: [r], configFilePath: config.yaml, command: [sh]}}"
        template.write_text(f"version: 1\napps: [{app}]\n")
        assert main(["check", str(template), "--strict"]) == expected, other
        told = capsys.readouterr()
        assert ("is for other applications alone, by its scopes" in told.out) == bool(expected)


@pytest.mark.parametrize("kind", ["bearer", "oauth2", "oauth2clientcredentials", "opa", "ratelimit", "routerchecker"])
def test_a_file_is_written_for_each_type(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    assert main(["component", "new", f"middleware.http.{kind}", "-o", str(file)]) == 0
    assert f"type: middleware.http.{kind}" in file.read_text()
