"""The dashboard's pages and who is let in; what it hears of a mesh is tested in ``test_dashboard_live.py``."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from gateway.config import DashboardConfig
from tests.http.harness import ANY, Backbone, Case, Node, cases, check, error, gateway, matches

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN = "the-token-of-these-tests"
KNOWN = {"dashboard-token": TOKEN}
NO_TOKEN = error("ERR_DASHBOARD_TOKEN", matches(lambda text: "#token=" in text and TOKEN not in text))
FOREIGN = error("ERR_DASHBOARD_FOREIGN")
UNKNOWN = error("ERR_DASHBOARD_UNKNOWN")
MESH = matches(lambda told: told["apps"] == [] and told["problems"] == [] and told["backbone"] == "memory:")
PAGE = {"content-type": "text/html; charset=utf-8", "cache-control": "no-cache"}
POLICY = matches(lambda text: text.startswith("default-src 'self';") and "frame-ancestors 'none'" in text)
SEALED = matches(lambda text: text.startswith("default-src 'none';") and "sandbox" in text)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """A dashboard on a mesh without any application."""
    home = tmp_path_factory.mktemp("home")
    async with gateway(Backbone("memory:"), home, app_id="desk", dashboard=DashboardConfig(TOKEN)) as node:
        yield node


def _mesh(id: str, headers: dict[str, str], status: int, body: object) -> Case:
    return Case(id, ("GET", "/dashboard/api/mesh", headers), status, body)


@cases(
    Case("page", ("GET", "/dashboard/"), 200, ANY, {**PAGE, "content-security-policy": POLICY, "etag": ANY}),
    Case("page, head", ("HEAD", "/dashboard/"), 200, b"", {"content-length": matches(lambda text: int(text) > 100)}),
    Case("page with a query", ("GET", "/dashboard/?a=b"), 200, ANY, PAGE),
    Case("no slash", ("GET", "/dashboard"), 307, b"", {"location": "/dashboard/"}),
    Case("root", ("GET", "/"), 307, b"", {"location": "/dashboard/"}),
    Case("asset", ("GET", "/dashboard/assets/index.html"), 200, ANY, PAGE),
    Case("asset, another verb", ("POST", "/dashboard/assets/index.html"), 405, UNKNOWN, {"allow": "GET, HEAD"}),
    Case("page, another verb", ("DELETE", "/dashboard/"), 405, UNKNOWN, {"content-security-policy": POLICY}),
    Case("no such asset", ("GET", "/dashboard/assets/none.js"), 404, UNKNOWN, {"x-content-type-options": "nosniff"}),
    Case("no such page", ("GET", "/dashboard/none"), 404, UNKNOWN),
    Case("the folder", ("GET", "/dashboard/assets/"), 404, UNKNOWN),
    Case("up", ("GET", "/dashboard/assets/../server.py"), 404, UNKNOWN),
    Case("up, escaped", ("GET", "/dashboard/assets/%2e%2e%2fserver.py"), 404, UNKNOWN),
    Case("up, twice escaped", ("GET", "/dashboard/assets/%252e%252e/server.py"), 404, UNKNOWN),
    Case("absolute", ("GET", "/dashboard/assets//etc/passwd"), 404, UNKNOWN),
    Case("a zero", ("GET", "/dashboard/assets/index.html%00.js"), 404, UNKNOWN),
    Case("no UTF-8", ("GET", "/dashboard/assets/%ff"), 400, error("ERR_BAD_REQUEST")),
    Case("page of another name", ("GET", "/dashboard/", {"Host": "evil.example"}), 403, FOREIGN),
)
async def test_pages(node: Node, case: Case) -> None:
    """Files are served by their names, and by no others."""
    await check(node, case)


@cases(
    _mesh("no token", {}, 401, NO_TOKEN),
    _mesh("an empty one", {"dashboard-token": ""}, 401, NO_TOKEN),
    _mesh("a wrong one", {"dashboard-token": TOKEN + "x"}, 401, NO_TOKEN),
    _mesh("no ASCII", {"dashboard-token": "tökén"}, 401, NO_TOKEN),
    _mesh("that of the API", {"dapr-api-token": TOKEN}, 401, NO_TOKEN),
    _mesh("as bearer", {"Authorization": f"Bearer {TOKEN}"}, 401, NO_TOKEN),
    _mesh("the right one", KNOWN, 200, MESH),
    _mesh("localhost", {**KNOWN, "Host": "localhost:9"}, 200, MESH),
    _mesh("below localhost", {**KNOWN, "Host": "mesh.localhost"}, 200, MESH),
    _mesh("IPv6", {**KNOWN, "Host": "[::1]:8080"}, 200, MESH),
    _mesh("another name", {**KNOWN, "Host": "evil.example"}, 403, FOREIGN),
    _mesh("a name that looks alike", {**KNOWN, "Host": "localhost.evil.example"}, 403, FOREIGN),
    _mesh("another address", {**KNOWN, "Host": "192.0.2.7:8080"}, 403, FOREIGN),
    _mesh("an empty host", {**KNOWN, "Host": ""}, 403, FOREIGN),
    _mesh("its own origin", {**KNOWN, "Host": "localhost:9", "Origin": "http://localhost:9"}, 200, MESH),
    _mesh("another's origin", {**KNOWN, "Origin": "https://evil.example"}, 403, FOREIGN),
    _mesh("another port's origin", {**KNOWN, "Host": "localhost:9", "Origin": "http://localhost:8"}, 403, FOREIGN),
    _mesh("no origin at all", {**KNOWN, "Origin": "null"}, 403, FOREIGN),
    _mesh("another site", {**KNOWN, "Sec-Fetch-Site": "cross-site"}, 403, FOREIGN),
    _mesh("the same machine", {**KNOWN, "Sec-Fetch-Site": "same-site"}, 403, FOREIGN),
    _mesh("itself", {**KNOWN, "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "empty"}, 200, MESH),
    _mesh("as a page", {**KNOWN, "Sec-Fetch-Site": "none", "Sec-Fetch-Dest": "document"}, 403, FOREIGN),
    _mesh("as a script", {**KNOWN, "Sec-Fetch-Dest": "script"}, 403, FOREIGN),
)
async def test_who_is_let_in(node: Node, case: Case) -> None:
    """What there is to know is for those who know the token, and for no page but its own."""
    reply = await check(node, case)
    assert reply.headers["content-security-policy"] == SEALED
    assert reply.headers["cache-control"] == "no-store"


@cases(
    Case("another verb", ("PUT", "/dashboard/api/mesh", KNOWN), 405, UNKNOWN, {"allow": "GET, HEAD"}),
    Case("head", ("HEAD", "/dashboard/api/mesh", KNOWN), 200, b""),
    Case("no such thing", ("GET", "/dashboard/api/none", KNOWN), 404, UNKNOWN),
    Case("nothing", ("GET", "/dashboard/api/", KNOWN), 404, UNKNOWN),
    Case("another API", ("GET", "/dashboard/api/self/dashboard/api/mesh", KNOWN), 404, UNKNOWN),
    Case("another version", ("GET", "/dashboard/api/self/v2.0/metadata", KNOWN), 404, UNKNOWN),
    Case("no such application", ("GET", "/dashboard/api/apps/none/v1.0/metadata", KNOWN), 404, UNKNOWN),
    Case("no such node", ("GET", "/dashboard/api/nodes/none/v1.0/metadata", KNOWN), 404, error("ERR_NODE_AWAY")),
    Case("no UTF-8", ("GET", "/dashboard/api/apps/%ff/v1.0/metadata", KNOWN), 400, error("ERR_BAD_REQUEST")),
    Case(
        "itself", ("GET", "/dashboard/api/self/v1.0/metadata", KNOWN), 200, matches(lambda told: told["id"] == "desk")
    ),
    Case("its end", ("POST", "/dashboard/api/self/v1.0/shutdown", KNOWN), 404, error("ERR_NODE_ROUTE")),
    Case("secrets", ("GET", "/dashboard/api/self/v1.0/secrets/a/b", KNOWN), 404, error("ERR_NODE_ROUTE")),
    Case("publish", ("POST", "/dashboard/api/self/v1.0/publish/pubsub/a", KNOWN, b"1"), 204, b""),
    Case("publish without the token", ("POST", "/dashboard/api/self/v1.0/publish/pubsub/a", {}, b"1"), 401, NO_TOKEN),
    Case(
        "too large",
        ("POST", "/dashboard/api/self/v1.0/publish/pubsub/a", KNOWN, bytes(5 << 20)),
        413,
        error("ERR_BODY_READ"),
    ),
    Case("a wrong filter", ("GET", "/dashboard/api/live?sights=1&where=(", KNOWN), 400, error("ERR_BAD_REQUEST")),
    Case("a wrong flag", ("GET", "/dashboard/api/live?sights=perhaps", KNOWN), 400, error("ERR_BAD_REQUEST")),
    Case("a wrong size", ("GET", "/dashboard/api/recording?maxBody=much", KNOWN), 400, error("ERR_BAD_REQUEST")),
    Case("replay, another verb", ("GET", "/dashboard/api/replay", KNOWN), 405, UNKNOWN, {"allow": "POST"}),
    Case("replay of nothing", ("POST", "/dashboard/api/replay", KNOWN, b""), 400, error("ERR_BAD_REQUEST")),
    Case("replay of no JSON", ("POST", "/dashboard/api/replay", KNOWN, b"{"), 400, error("ERR_MALFORMED_REQUEST")),
    Case(
        "replay of no sight",
        ("POST", "/dashboard/api/replay", KNOWN, {"event": {"type": "a"}}),
        400,
        error("ERR_BAD_REQUEST"),
    ),
    Case("the gateway's API", ("GET", "/v1.0/healthz/outbound"), 204, b""),
    Case("the gateway's API, another name", ("GET", "/v1.0/metadata", {"Host": "evil.example"}), 403, FOREIGN),
    Case(
        "another's page publishes",
        ("POST", "/v1.0/publish/pubsub/a", {"Origin": "http://evil.example"}, b"1"),
        403,
        FOREIGN,
    ),
    Case("another's page ends it", ("POST", "/v1.0/shutdown", {"Origin": "null"}), 403, FOREIGN),
    Case("another's picture", ("GET", "/v1.0/metadata", {"Sec-Fetch-Site": "cross-site"}), 403, FOREIGN),
    Case("its health, another name", ("GET", "/v1.0/healthz", {"Host": "10.0.0.1"}), 204, b""),
)
async def test_data(node: Node, case: Case) -> None:
    """Wrong requests are told what is wrong."""
    await check(node, case)


async def test_files_are_asked_for_again_and_packed(node: Node) -> None:
    """A file that is known is not sent again; both forms have a tag of their own."""
    path = "/dashboard/assets/vendor/preact.js"
    plain = await node.get(path)
    packed = await node.get(path, **{"Accept-Encoding": "br, gzip"})
    unpacked = await node.get(path, **{"Accept-Encoding": "br, gzip;q=0"})
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body == unpacked.body
    assert plain.headers["content-type"].startswith("text/javascript")
    assert packed.headers["etag"] != plain.headers["etag"] == unpacked.headers["etag"]
    for reply in (plain, packed):
        accepted = {"Accept-Encoding": reply.headers.get("content-encoding", "identity")}
        again = await node.get(path, **accepted, **{"If-None-Match": f'"other", W/{reply.headers["etag"]}'})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", reply.headers["etag"])
        assert again.headers["vary"] == "Accept-Encoding"


async def test_every_file_has_a_type(node: Node) -> None:
    """None is left to the browser's guess; whatever is there is served."""
    from gateway.dashboard.assets import FOLDER, TYPES

    files = [path for path in FOLDER.rglob("*") if path.is_file() and path.name[0] != "."]
    assert any(path.name == "index.html" for path in files)
    for path in files:
        reply = await node.get(f"/dashboard/assets/{path.relative_to(FOLDER).as_posix()}")
        assert (reply.status, reply.body) == (200, path.read_bytes())
        assert path.suffix in TYPES or "LICENSE" in path.name or path.suffix == ".md"


async def test_without_a_token_pages_of_others_are_kept_out(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whoever is on this machine may look; a page that is open in its browser may not."""
    home = tmp_path_factory.mktemp("open")
    async with gateway(Backbone("memory:"), home, app_id="desk", dashboard=DashboardConfig(None)) as node:
        for case in (
            _mesh("nobody asks for it", {}, 200, MESH),
            _mesh("another name", {"Host": "evil.example"}, 403, FOREIGN),
            _mesh("another's page", {"Origin": "https://evil.example"}, 403, FOREIGN),
            Case(
                "a form", ("POST", "/dashboard/api/self/v1.0/publish/pubsub/a", {"Origin": "null"}, b"1"), 403, FOREIGN
            ),
        ):
            await check(node, case)


async def test_a_gateway_without_a_dashboard_has_no_such_path(tmp_path_factory: pytest.TempPathFactory) -> None:
    """There it is a path like any unknown one."""
    async with gateway(Backbone("memory:"), tmp_path_factory.mktemp("none")) as node:
        reply = await node.get("/dashboard/")
        assert (reply.status, reply.json["errorCode"]) == (404, "ERR_DIRECT_INVOKE")
