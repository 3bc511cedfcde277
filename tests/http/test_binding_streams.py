"""Bindings whose data and answers are streams: here and at a host, in bounded memory, whole or not at all."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import orjson
import psutil
import pytest
import pytest_asyncio

from bindings.localstorage import LocalStorageBinding, LocalStorageSettings
from mesh.blocks.binding_contract import Invoke
from tests.http.harness import ANY, App, Backbone, Case, Node, cases, component, error, gateway, yaml
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAILED = "ERR_INVOKE_OUTPUT_BINDING"
OCTETS = {"Content-Type": "application/octet-stream"}
ACCEPT = {"Accept": "application/octet-stream"}
FILES = "/v1.0/bindings/files"
TYPE, LENGTH = "content-type", "content-length"
PART = os.urandom(64 * 1024)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the binding."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture(params=["here", "itself", "hosted"], scope="module")
def hosting(request: pytest.FixtureRequest) -> Backbone | None:
    """Where a host answers, which on memory is the node itself; None = nobody does."""
    if request.param == "here":
        return None
    return Backbone("memory:" if request.param == "itself" else request.getfixturevalue("nats_url"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(hosting: Backbone | None, root: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """Whom to ask; it has the bindings itself, or a host has them on a real broker."""
    home = tmp_path_factory.mktemp("home")
    (root / "there").write_bytes(b"there")
    async with App() as service:
        service.answer("/x", 200, b"said", X_Why="tea")
        service.answer("/no", 418, b"", X_Why="tea")
        resources = component("web", "bindings.http", url=f"http://127.0.0.1:{service.port}")
        files = component("files", "bindings.localstorage", rootPath=str(root))
        if hosting is not None:
            files = files.replace('"name":"files"', '"name":"files","annotations":{"mesh.placement":"backbone"}')
        resources += files
        if hosting is None or hosting.url == "memory:":
            async with gateway(hosting or Backbone("memory:"), home, resources=resources) as node:
                yield node
            return
        bare = component("pubsub", "pubsub.mesh")
        async with (
            gateway(hosting, home, app_id="host", resources=resources),
            gateway(hosting, home, app_id="asking", resources=bare) as node,
        ):
            yield node


def asked(
    operation: str, headers: object = OCTETS, body: object = b"", name: str = "files", **metadata: str
) -> tuple[object, ...]:
    query = "".join(f"&metadata.{key}={value}" for key, value in metadata.items())
    return "POST", f"/v1.0/bindings/{name}?operation={operation}{query}", headers, body


def told(
    operation: str, headers: object = ACCEPT, name: str = "files", data: object = None, **metadata: str
) -> tuple[object, ...]:
    return "POST", f"/v1.0/bindings/{name}", headers, {"operation": operation, "metadata": metadata, "data": data}


def failed(text: str, name: str = "files") -> dict[str, object]:
    return error(FAILED, f"error invoking output binding {name}: {text}")


NAMED = b'{"fileName":"a/b"}'
OF_OCTETS = {TYPE: "application/octet-stream", LENGTH: "5"}


@cases(
    Case("create", asked("create", body=b'"\xff"', fileName="a/b"), 200, NAMED, {TYPE: "application/json"}),
    Case("create by PUT", ("PUT", *asked("create", body=b"x", fileName="a/b")[1:]), 200, NAMED),
    Case(
        "create, accepting",
        asked("create", OCTETS | ACCEPT, b"x", fileName="a/b"),
        200,
        NAMED,
        {TYPE: ACCEPT["Accept"]},
    ),
    Case("create nothing", asked("create", fileName="a/b"), 200, NAMED, {LENGTH: "18"}),
    Case("get, from JSON", told("get", fileName="there"), 200, b"there", OF_OCTETS),
    Case("get, of an empty stream", asked("get", OCTETS | ACCEPT, fileName="there"), 200, b"there", OF_OCTETS),
    Case(
        "get, accepting anything",
        asked("get", fileName="there"),
        200,
        b"there",
        {TYPE: "application/json", LENGTH: "5"},
    ),
    Case(
        "get, with a list",
        told("get", {"Accept": "text/plain, Application/Octet-Stream;q=1"}, fileName="there"),
        200,
        b"there",
        OF_OCTETS,
    ),
    Case("get, whole", told("get", {}, fileName="there"), 200, b"there", {TYPE: "application/json", LENGTH: "5"}),
    Case(
        "with parameters",
        asked("get", {"Content-Type": "Application/octet-stream; x=y"}, fileName="there"),
        200,
        b"there",
    ),
    Case("no stream, accepting", told("list", fileName="there"), 200, ANY, {TYPE: "application/octet-stream"}),
    Case("no stream, nothing sent", asked("list", fileName="there"), 200, ANY, {TYPE: "application/json"}),
    Case(
        "no stream, something sent",
        asked("list", body=b"x"),
        500,
        failed("list of binding files takes no stream: send its data as JSON"),
    ),
    Case("data of JSON", told("create", fileName="a/b", data="text"), 200, NAMED, {TYPE: "application/octet-stream"}),
    Case("no such file", told("get", fileName="nowhere"), 500, failed("file not found: nowhere")),
    Case("no file at all", asked("get"), 500, failed("the metadata fileName are missing: the path of the file")),
    Case("outside", asked("create", body=b"x", fileName="../x"), 500, error(FAILED)),
    Case("no operation", ("POST", FILES, OCTETS, b"x"), 400, error("ERR_MALFORMED_REQUEST")),
    Case("an empty operation", asked("", body=b"x"), 500, error(FAILED)),
    Case(
        "JSON by another name",
        ("POST", FILES, OCTETS, b'{"operation":"get","metadata":{"fileName":"there"}}'),
        200,
        b"there",
        {TYPE: "application/json"},
    ),
    Case("unknown operation", asked("dance", body=b"x"), 500, error(FAILED)),
    Case(
        "unknown binding",
        asked("create", body=b"x", name="nope"),
        500,
        failed("couldn't find output binding nope", "nope"),
    ),
    Case("of another kind", told("get", name="web", path="x"), 200, b"said", {"metadata.x-why": "tea", LENGTH: "4"}),
    Case(
        "of another kind, sent",
        asked("post", body=b"x", name="web"),
        500,
        failed("post of binding web takes no stream: send its data as JSON", "web"),
    ),
    Case(
        "metadata of a failure",
        told("get", name="web", path="no"),
        500,
        failed("received status code 418", "web"),
        {"metadata.x-why": "tea"},
    ),
    Case("malformed", ("POST", FILES, ACCEPT, b"{"), 400, error("ERR_MALFORMED_REQUEST")),
)
async def test_forms(node: Node, case: Case) -> None:
    """What is sent and accepted, and what comes of it."""
    reply = await node.request(*case.request)
    assert reply.status == case.status, reply
    if isinstance(case.body, bytes):
        assert reply.body == case.body
    elif case.body is not ANY:
        assert reply.json == case.body
    for name, value in case.headers.items():
        assert reply.headers.get(name) == value, reply.fields


async def test_what_is_written_is_as_it_came(node: Node, root: Path) -> None:
    """Neither JSON nor base64 is read in it."""
    for body in (b'"text"', b"null", b"AAEC", os.urandom(300_000), b""):
        reply = await node.request(*asked("create", body=body, fileName="same"))
        assert reply.status == 200, reply
        assert (root / "same").read_bytes() == body
        assert (await node.request(*told("get", fileName="same"))).body == body


async def endless(sent: asyncio.Event) -> AsyncIterator[bytes]:
    for _ in range(64):
        yield PART
    sent.set()
    await asyncio.Event().wait()


def nothing_beside(root: Path, name: str) -> None:
    assert [each.name for each in root.iterdir() if each.name.startswith(".")] == []
    assert (root / name).read_bytes() == b"former"


def one_beside(root: Path) -> None:
    assert any(each.stat().st_size for each in root.glob(".*.part"))


async def test_a_client_that_goes_while_it_sends(node: Node, root: Path) -> None:
    """The former file stays, and nothing is left beside it."""
    (root / "kept").write_bytes(b"former")
    sent = asyncio.Event()
    method, target, headers, _ = asked("create", fileName="kept")
    async with asyncio.TaskGroup() as tasks:

        async def send() -> None:
            async with node.open(str(method), str(target), headers, endless(sent)):
                raise AssertionError

        sending = tasks.create_task(send())
        await sent.wait()
        await eventually(lambda: one_beside(root))
        sending.cancel()
    await eventually(lambda: nothing_beside(root, "kept"))


async def test_a_body_that_ends_too_early(node: Node, root: Path) -> None:
    """One that said how long it is, and then was not."""
    (root / "short").write_bytes(b"former")
    reader, writer = await asyncio.open_connection("127.0.0.1", node.gateway.port)
    _, target, _, _ = asked("create", fileName="short")
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
    writer.write(f"{head}Content-Length: 9000000\r\n\r\n".encode() + PART * 64)
    await writer.drain()
    await eventually(lambda: one_beside(root))
    writer.write_eof()
    await reader.read()
    writer.close()
    await eventually(lambda: nothing_beside(root, "short"))


def reading(path: Path) -> int:
    return sum(each.path == str(path) for each in psutil.Process().open_files())


async def test_a_client_that_goes_while_it_reads(node: Node, root: Path) -> None:
    """The file is closed."""
    path = root / "large"
    path.write_bytes(PART * 1024)
    request = told("get", fileName="large")
    async with node.open(*request[:3], orjson.dumps(request[3])) as response:  # type: ignore[arg-type]
        assert response.status == 200
        assert await response.content.readany()
        assert reading(path) == 1
        response.close()

    def check() -> None:
        assert reading(path) == 0

    await eventually(check)


async def test_a_file_that_shrinks_breaks_off(node: Node, root: Path) -> None:
    """The client is told of its length, and can tell that it is not whole."""
    path = root / "shrinking"
    path.write_bytes(PART * 1024)
    request = told("get", fileName="shrinking")
    with pytest.raises(aiohttp.ClientPayloadError):
        async with node.open(*request[:3], orjson.dumps(request[3])) as response:  # type: ignore[arg-type]
            assert response.headers["Content-Length"] == str(len(PART) * 1024)
            await response.content.readany()
            os.truncate(path, 0)
            async for _ in response.content.iter_any():
                pass


async def chunks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield PART


async def moves(node: Node, mebibytes: int) -> None:
    """Write and read; the gateways are this process."""
    count = mebibytes * 16
    gc.collect()
    process = psutil.Process()
    before = most = process.memory_info().rss
    reply = await node.request(*asked("create", body=chunks(count), fileName="big"))
    assert reply.json == {"fileName": "big"}
    most = max(most, process.memory_info().rss)
    request, size, digest = told("get", fileName="big"), 0, hashlib.sha256()
    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    async with node.session.post(node.url + FILES, headers=ACCEPT, json=request[3], timeout=timeout) as response:
        assert response.headers["Content-Length"] == str(count * len(PART))
        async for part in response.content.iter_any():
            size += len(part)
            digest.update(part)
            most = max(most, process.memory_info().rss)
    wanted = hashlib.sha256()
    for _ in range(count):
        wanted.update(PART)
    assert (size, digest.digest()) == (count * len(PART), wanted.digest())
    assert most - before < 60 * 2**20


@pytest.mark.costly
async def test_memory_is_bounded(node: Node) -> None:
    """Of 96 MiB nobody holds more than some parts."""
    await moves(node, 96)


@pytest.mark.costly
async def test_a_gibibyte(root: Path, tmp_path: Path) -> None:
    """In bounded memory, and for as long as it takes."""
    resources = component("files", "bindings.localstorage", rootPath=str(root))
    async with gateway(Backbone("memory:"), tmp_path, resources=resources) as node:
        node.session._timeout = aiohttp.ClientTimeout(total=None)
        await moves(node, 1024)
    (root / "big").unlink()


async def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """At the next start; neither what is being written, nor what has a name of its own."""
    (tmp_path / "below").mkdir()
    left = tmp_path / "below" / f".{'a' * 16}.part"
    written, new, named = (tmp_path / name for name in (f".{'b' * 16}.part", f".{'c' * 16}.part", "own.part"))
    for path in (left, written, new, named):
        path.write_bytes(b"half")
        os.utime(path, (1, 1))
    os.utime(new)
    with written.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        async with LocalStorageBinding(LocalStorageSettings(str(tmp_path))) as binding:
            listed = await binding.invoke(Invoke("list"))
    assert [path.exists() for path in (left, written, new, named)] == [False, True, True, True]
    assert listed is not None
    assert orjson.loads(listed.data or b"") == [str(named)]


async def test_a_policy_tries_what_it_can(tmp_path: Path) -> None:
    """A body is not sent twice; an answer that has not begun is asked for again, by a policy's own limit of time."""
    asked_for: list[str] = []
    async with App() as service:
        service.answers["/slow"] = lambda got, _: _never(asked_for, got.method)
        policy = {
            "policies": {
                "timeouts": {"short": "200ms"},
                "retries": {
                    "often": {"policy": "constant", "duration": "10ms", "maxRetries": 2},
                    "late": {"policy": "constant", "duration": "10m"},
                },
            },
            "targets": {
                "components": {
                    "web": {"outbound": {"retry": "often", "timeout": "short"}},
                    "files": {"outbound": {"retry": "late", "timeout": "short"}},
                }
            },
        }
        resources = component("web", "bindings.http", url=f"http://127.0.0.1:{service.port}")
        resources += yaml("Resiliency", "r", policy)
        resources += component("files", "bindings.localstorage", rootPath=str(tmp_path / "root"))
        async with gateway(Backbone("memory:"), tmp_path, resources=resources) as node:
            reply = await node.request(*told("get", name="web", path="slow"))
            assert (reply.status, reply.json["errorCode"]) == (500, FAILED)
            reply = await node.request(*asked("create", body=endless(asyncio.Event()), fileName="x"))
            assert (reply.status, reply.json) == (500, failed("no answer within 0.2 s"))
        assert list((tmp_path / "root").iterdir()) == []
    assert asked_for == ["GET"] * 3


async def _never(asked_for: list[str], method: str) -> aiohttp.web.Response:
    asked_for.append(method)
    await asyncio.Event().wait()
    raise AssertionError
