"""Secrets: the local stores, scopes of a Configuration, and what refers to secrets.

Source: reference/dapr-surface.md 1.7, 5.4, 5.5; reference/observed-layouts.md 7.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import pytest_asyncio

from mesh.errors import ConfigError
from tests.http.harness import App, Backbone, Case, Node, cases, check, component, error, gateway, yaml

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRETS = {
    "token": "t0p",
    "number": 5,
    "on": True,
    "db": {"user": "u", "password": "p", "deep": {"er": "d"}},
    "list": ["a", {"b": "c"}],
    "nothing": None,
}
SCOPES = {
    "secrets": {
        "scopes": [
            {"storeName": "denied", "defaultAccess": "deny", "allowedSecrets": ["token"]},
            {"storeName": "some", "deniedSecrets": ["token"]},
            {"storeName": "none", "defaultAccess": "deny"},
        ]
    }
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    home = tmp_path_factory.mktemp("secrets")
    file, configuration = home / "secrets.json", home / "config.yaml"
    file.write_bytes(orjson.dumps(SECRETS))
    configuration.write_text(yaml("Configuration", "c", SCOPES))
    stores = [
        component("env", "secretstores.local.env"),
        component("prefixed", "secretstores.local.env", prefix="MINE_"),
        component("file", "secretstores.local.file", secretsFile=str(file)),
        component("dots", "secretstores.local.file", secretsFile=str(file), nestedSeparator="."),
        component("many", "secretstores.local.file", secretsFile=str(file), multiValued="true"),
        component("other", "secretstores.local.env", scopes=["someone"]),
        *(component(name, "secretstores.local.file", secretsFile=str(file)) for name in ("denied", "some", "none")),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLAIN_SECRET", "wörd")
        patch.setenv("MINE_KEY", "mine")
        patch.setenv("MINE_BYTES", os.fsdecode(b"\xff\xfe"))
        patch.setenv("APP_API_TOKEN", "hidden")
        patch.setenv("DAPR_SOMETHING", "hidden")
        patch.setenv("MESH_BACKBONE", "nats://user:hidden@server")
        running = gateway(Backbone("memory:"), home, resources="".join(stores), configuration_files=(configuration,))
        async with running as node:
            yield node


def get(path: str) -> tuple[str, str]:
    return "GET", f"/v1.0/secrets/{path}"


NO_TEXT = "failed getting secret with key BYTES from secret store prefixed: the variable MINE_BYTES is not UTF-8"
FORBIDDEN = error("ERR_PERMISSION_DENIED", 'access denied by policy to get "token" from "some"')


@cases(
    Case("a variable", get("env/PLAIN_SECRET"), 200, {"PLAIN_SECRET": "wörd"}),
    Case("one that is not set", get("env/NOPE"), 200, {"NOPE": ""}),
    Case("one of the runtime", get("env/DAPR_SOMETHING"), 200, {"DAPR_SOMETHING": ""}),
    Case("the broker's password", get("env/MESH_BACKBONE"), 200, {"MESH_BACKBONE": ""}),
    Case("the application's token", get("env/app_api_token"), 200, {"app_api_token": ""}),
    Case("with a prefix", get("prefixed/KEY"), 200, {"KEY": "mine"}),
    Case("one that is no text", get("prefixed/BYTES"), 500, error("ERR_SECRET_GET", NO_TEXT)),
    Case("bulk with a prefix", get("prefixed/bulk"), 200, {"KEY": {"KEY": "mine"}}),
    Case("a text", get("file/token"), 200, {"token": "t0p"}),
    Case("a number", get("file/number"), 200, {"number": "5"}),
    Case("a boolean", get("file/on"), 200, {"on": "true"}),
    Case("nested", get("file/db:password"), 200, {"db:password": "p"}),
    Case("nested, escaped", get("file/db%3Adeep%3Aer"), 200, {"db:deep:er": "d"}),
    Case("in a list", get("file/list:1:b"), 200, {"list:1:b": "c"}),
    Case("another separator", get("dots/db.password"), 200, {"db.password": "p"}),
    Case("several values", get("many/db"), 200, {"user": "u", "password": "p", "deep:er": "d"}),
    Case("one of a store with several", get("many/token"), 200, {"token": "t0p"}),
    Case("with metadata", get("file/token?metadata.version_id=1"), 200, {"token": "t0p"}),
    Case(
        "none of the name",
        get("file/db"),
        500,
        error("ERR_SECRET_GET", "failed getting secret with key db from secret store file: secret db not found"),
    ),
    Case(
        "no such store",
        get("nope/x"),
        401,
        error("ERR_SECRET_STORE_NOT_FOUND", "failed finding secret store with key nope"),
    ),
    Case("a store out of scope", get("other/x"), 401, error("ERR_SECRET_STORE_NOT_FOUND")),
    Case("bulk of no store", get("nope/bulk"), 401, error("ERR_SECRET_STORE_NOT_FOUND")),
    Case("allowed", get("denied/token"), 200, {"token": "t0p"}),
    Case("not allowed", get("denied/number"), 403, error("ERR_PERMISSION_DENIED")),
    Case("denied", get("some/token"), 403, FORBIDDEN),
    Case("not denied", get("some/number"), 200, {"number": "5"}),
    Case("nothing by default", get("none/token"), 403, error("ERR_PERMISSION_DENIED")),
    Case("bulk within the scope", get("denied/bulk"), 200, {"token": {"token": "t0p"}}),
    Case("bulk of nothing", get("none/bulk"), 200, {}),
    Case("by POST", ("POST", "/v1.0/secrets/file/token"), 404, error("ERR_DIRECT_INVOKE")),
)
async def test_route(node: Node, case: Case) -> None:
    await check(node, case)


async def test_bulk(node: Node) -> None:
    """Everything that may be told, and nothing of the runtime's."""
    told = (await node.get("/v1.0/secrets/env/bulk")).json
    assert told["PLAIN_SECRET"] == {"PLAIN_SECRET": "wörd"}
    assert not {"APP_API_TOKEN", "DAPR_SOMETHING", "MESH_BACKBONE"} & set(told)
    assert (await node.get("/v1.0/secrets/many/bulk")).json["db"] == {"user": "u", "password": "p", "deep:er": "d"}


@pytest.mark.parametrize("multi_valued", ["false", "true"])
async def test_a_file_that_is_nested_too_deeply(memory: Backbone, tmp_path: Path, multi_valued: str) -> None:
    """The parser takes it."""
    file = tmp_path / "deep.json"
    file.write_text('{"a":' * 1010 + "1" + "}" * 1010)
    store = component("f", "secretstores.local.file", secretsFile=str(file), multiValued=multi_valued)
    with pytest.raises(ConfigError, match="is nested too deeply"):
        async with gateway(memory, tmp_path, resources=store):
            pass


async def test_none_is_configured(memory: Backbone, tmp_path: Path) -> None:
    """As the reference says it."""
    async with gateway(memory, tmp_path) as node:
        case = Case("", get("s/k"), 500, error("ERR_SECRET_STORES_NOT_CONFIGURED", "secret store is not configured"))
        await check(node, case)


def referring(name: str, kind: str, setting: str, secret: dict[str, str], store: str | None) -> str:
    document = {
        "apiVersion": "dapr.io/v1alpha1",
        "kind": "Component",
        "metadata": {"name": name},
        "spec": {"type": kind, "version": "v1", "metadata": [{"name": setting, "secretKeyRef": secret}]},
        **({} if store is None else {"auth": {"secretStore": store}}),
    }
    return "---\n" + orjson.dumps(document).decode() + "\n"


async def test_references(memory: Backbone, tmp_path: Path) -> None:
    """A store may itself refer to another one; the order in the files does not matter, nor do an app's scopes."""
    (tmp_path / "one.json").write_bytes(orjson.dumps({"where": str(tmp_path / "two.json")}))
    (tmp_path / "two.json").write_bytes(orjson.dumps({"db": {"file": str(tmp_path / "state.db")}, "header": "s3cret"}))
    configuration = tmp_path / "config.yaml"
    scope = {"storeName": "two", "defaultAccess": "deny"}
    configuration.write_text(yaml("Configuration", "c", {"secrets": {"scopes": [scope]}}))
    async with App() as outside:
        endpoint = {
            "baseUrl": f"http://127.0.0.1:{outside.port}",
            "headers": [{"name": "X-Key", "secretKeyRef": {"name": "header"}}],
        }
        resources = (
            referring("statestore", "state.sqlite", "connectionString", {"name": "db", "key": "file"}, "two")
            + referring("two", "secretstores.local.file", "secretsFile", {"name": "where", "key": "where"}, "one")
            + component("one", "secretstores.local.file", secretsFile=str(tmp_path / "one.json"))
            + yaml("HTTPEndpoint", "outside", endpoint).replace('"spec"', '"auth":{"secretStore":"two"},"spec"')
        )
        one, two = '{"name":"secretsFile","secretKeyRef"', '{"name":"multiValued","value":"true"},'
        resources = resources.replace(one, two + one)
        started = gateway(memory, tmp_path, resources=resources, configuration_files=(configuration,))
        async with started as node:
            assert (tmp_path / "state.db").exists()
            assert (await node.get("/v1.0/secrets/two/header")).status == 403
            assert (await node.get("/v1.0/invoke/outside/method/x")).status == 200
            assert outside.got[0].headers["x-key"] == "s3cret"


REF = {"name": "s", "key": "k"}


@pytest.mark.parametrize(
    ("resources", "problem"),
    [
        (
            referring("statestore", "state.sqlite", "connectionString", {"name": "s", "key": "k"}, None),
            r"all\.yaml:\d+:\d+: spec\.metadata\[0\] \(connectionString\): component statestore refers to a secret, .*"
            r"the line auth: \{secretStore: NAME\}; the secret stores here are: none",
        ),
        (
            component("vault", "secretstores.local.env")
            + yaml("HTTPEndpoint", "out", {"baseUrl": "http://x", "headers": [{"name": "h", "secretKeyRef": REF}]}),
            r"all\.yaml:\d+:\d+: spec\.headers\[0\] \(h\): HTTPEndpoint out refers to a secret, .* here are: vault",
        ),
        (
            referring("statestore", "state.sqlite", "connectionString", {"name": "s"}, "nowhere"),
            r"spec\.metadata\[0\] \(connectionString\): refers to the secret 's' \(key 's'\)",
        ),
        (
            referring("a", "secretstores.local.file", "secretsFile", {"name": "s"}, "b")
            + referring("b", "secretstores.local.file", "secretsFile", {"name": "s"}, "a"),
            r"waits for the secret store b, which waits as well",
        ),
        (
            component("store", "state.in-memory")
            + referring("statestore", "state.sqlite", "connectionString", {"name": "s"}, "store"),
            r"spec\.metadata\[0\] \(connectionString\): refers to the secret 's'",
        ),
        (
            component("statestore", "state.sqlite", connectionString="/dev/null/x.db"),
            r"component statestore: cannot use x\.db",
        ),
        (
            component("statestore", "state.sqlite", connectionString="~nosuchuser/x.db"),
            r"\(connectionString\): Could not determine home directory",
        ),
        (
            component("statestore", "state.sqlite", connectionString="a\0b"),
            r"\(connectionString\): must be the path of a file",
        ),
        (component("f", "secretstores.local.file"), r"the setting secretsFile is missing"),
        (
            component("f", "secretstores.local.file", secretsFile="/nowhere"),
            r"\(secretsFile\): cannot read the secrets file /nowhere: [^;]+$",
        ),
        (
            component("f", "secretstores.local.file", secretsFile="no/where.json"),
            r"\d: spec\.metadata\[0\] \(secretsFile\): cannot read the secrets file /\S+/no/where\.json: "
            r"No such file or directory; the path is relative to the directory of the command$",
        ),
        (
            component("f", "secretstores.local.file", secretsFile="/x", multiValued="perhaps"),
            r"\(multiValued\): not a boolean: 'perhaps'",
        ),
    ],
    ids=[
        "no store named",
        "no store named by an endpoint",
        "no such store",
        "a circle",
        "no secret store",
        "no folder",
        "no user",
        "no path",
        "no file named",
        "no such file",
        "no such file here",
        "no boolean",
    ],
)
async def test_what_cannot_be_read_is_told_at_start(
    memory: Backbone, tmp_path: Path, resources: str, problem: str
) -> None:
    """With its place, and never with a value."""
    with pytest.raises(ConfigError, match=problem):
        async with gateway(memory, tmp_path, resources=resources):
            pass


async def test_a_secret_that_no_header_can_hold(memory: Backbone, tmp_path: Path) -> None:
    """It is found before a call fails, and not shown."""
    (tmp_path / "s.json").write_bytes(orjson.dumps({"k": "s3cret\n"}))
    endpoint = {"baseUrl": "http://x", "headers": [{"name": "h", "secretKeyRef": {"name": "k"}}]}
    resources = component("s", "secretstores.local.file", secretsFile=str(tmp_path / "s.json")) + yaml(
        "HTTPEndpoint", "out", endpoint
    ).replace('"spec"', '"auth":{"secretStore":"s"},"spec"')
    with pytest.raises(ConfigError, match=r"spec\.headers\[0\]: the value of a header cannot hold .*U\+000A") as raised:
        async with gateway(memory, tmp_path, resources=resources):
            pass
    assert "s3cret" not in str(raised.value)
