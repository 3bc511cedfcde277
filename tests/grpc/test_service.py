"""What holds for every call, whatever its method: statuses, limits, and clients that do not keep to the protocol."""

from __future__ import annotations

import asyncio
import base64
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio

from gateway.config import Tokens
from gateway.grpc.messages import STATUS, message
from gateway.grpc.wire import framed, status_of
from gateway.http2 import server
from gateway.http2.client import HTTP2Client
from tests.grpc.harness import Client, Failed, client, refused
from tests.http.harness import DEFAULTS, Backbone, Node, gateway
from tests.support.eventually import PATIENCE, eventually
from tests.support.h2frames import GOAWAY, HEADERS, OPENING, PREFACE, asking, section, spoken

SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
GET = "/dapr.proto.runtime.v1.Dapr/GetState"
REQUEST = message("GetStateRequest")(store_name="statestore", key="k").SerializeToString()
NOWHERE = message("GetStateRequest")(store_name="none", key="k").SerializeToString()
LIMIT = 64 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    home = tmp_path_factory.mktemp("home")
    async with gateway(Backbone("memory:"), home, resources=DEFAULTS, max_body_bytes=LIMIT) as node:
        yield node


def gzipped(data: bytes) -> bytes:
    packing = zlib.compressobj(wbits=31)
    return packing.compress(data) + packing.flush()


def largest() -> bytes:
    """Make a request that is as large as it may be."""
    request = message("GetStateRequest")(store_name="statestore", key="k", metadata={"m": "x" * LIMIT})
    request.metadata["m"] = "x" * (2 * LIMIT - request.ByteSize())
    return bytes(request.SerializeToString())


def packed(data: bytes) -> bytes:
    return b"\1" + len(data).to_bytes(4, "big") + data


@dataclass(frozen=True)
class Case:
    """What is sent to ``GetState``, and the status that it gives."""

    id: str
    body: bytes
    status: int
    text: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    path: str = GET


GZIP, DEFLATE = ("grpc-encoding", "gzip"), ("grpc-encoding", "deflate")
CASES = (
    Case("well", framed(REQUEST), 0),
    Case("gzip", packed(gzipped(REQUEST)), 0, headers=(GZIP,)),
    Case("deflate", packed(zlib.compress(REQUEST)), 0, headers=(DEFLATE,)),
    Case("as large as it may be, compressed", packed(gzipped(largest())), 0, headers=(GZIP,)),
    Case("gzip, not used for this message", framed(REQUEST), 0, headers=(GZIP,)),
    Case("a trace in binary", framed(REQUEST), 0, headers=(("grpc-trace-bin", "AAAAAAAA"),)),
    Case("no message", b"", 13, "the call has no message"),
    Case("two messages", framed(REQUEST) * 2, 13, "more than one message"),
    Case("cut off", framed(REQUEST)[:-1], 13, "ends in the middle of a message"),
    Case("cut off in its prefix", b"\0\0", 13, "ends in the middle of a message"),
    Case("no gRPC", b"GET / HTTP/1.1\r\n\r\n", 13, "not made of gRPC messages"),
    Case("another type", framed(b"\xff\xff\xff"), 13, "not of the method's type"),
    Case("text that is no UTF-8", framed(b"\x0a\x02\xff\xfe"), 13, "not of the method's type"),
    Case("too large", framed(bytes(LIMIT + 1)), 8, f"{LIMIT + 1} bytes is larger than {LIMIT} bytes (--max-body-size)"),
    Case("says that it is too large", b"\0\xff\xff\xff\xff", 8, "4294967295 bytes is larger"),
    Case("a bomb", packed(gzipped(bytes(100 * LIMIT))), 8, f"larger than {LIMIT} bytes", (GZIP,)),
    Case("compressed by nothing", packed(gzipped(REQUEST)), 13, "grpc-encoding does not say how"),
    Case("compressed, and cut off", packed(gzipped(REQUEST)[:-9]), 13, "cut off", (GZIP,)),
    Case("compressed wrongly", packed(b"no gzip"), 13, "cannot be unpacked", (GZIP,)),
    Case(
        "unknown compression",
        framed(REQUEST),
        12,
        "unknown grpc-encoding 'br'; known: identity",
        (("grpc-encoding", "br"),),
    ),
    Case("no timeout", framed(REQUEST), 13, "grpc-timeout is not a timeout: '5'", (("grpc-timeout", "5"),)),
    Case("over at once", framed(REQUEST), 4, headers=(("grpc-timeout", "0n"),)),
    Case("over, and refused", framed(NOWHERE), 4, headers=(("grpc-timeout", "0n"),)),
    Case("unknown method", framed(b""), 12, "there is no method 'Nope'", path="/dapr.proto.runtime.v1.Dapr/Nope"),
    Case("unknown service", framed(b""), 12, "has the metadata dapr-app-id", path="/x.Y/Z"),
    Case("of a service without a package", framed(b""), 0, "", path="/TaskHubSidecarService/Hello"),
    *(
        Case(name, framed(b""), 12, f"there is no method {name!r}", path=f"/TaskHubSidecarService/{name}")
        for name in ("RewindInstance", "QueryInstances", "CreateTaskHub", "DeleteTaskHub")
    ),
    Case("no path of a method", framed(b""), 12, "unknown service of /", path="/"),
)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
async def test_status(node: Node, case: Case) -> None:
    """The connection goes on after each of them."""
    headers = [("content-type", "application/grpc"), ("te", "trailers"), *case.headers]
    async with HTTP2Client("127.0.0.1", node.gateway.grpc_port) as http2:
        for _ in range(2):
            async with http2.call("POST", case.path, headers, case.body) as answer:
                assert answer.status == 200
                async for _part in answer.parts():
                    pass
                fields = dict([*answer.headers, *answer.trailers])
            failure = status_of(list(fields.items()))
            assert (int(fields["grpc-status"]), fields["content-type"]) == (case.status, "application/grpc")
            assert case.text in (failure.message if failure is not None else "")
            if failure is not None and failure.details:
                assert message("Status", STATUS).FromString(failure.details).code == case.status


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("method", "kind"),
    [("GET", "application/grpc"), ("POST", "application/json"), ("POST", "application/grpc-web+proto"), ("POST", "")],
)
async def test_not_grpc(node: Node, method: str, kind: str) -> None:
    headers = [("content-type", kind)] if kind else []
    async with (
        HTTP2Client("127.0.0.1", node.gateway.grpc_port) as http2,
        http2.call(method, GET, headers, b"") as answer,
    ):
        assert answer.status == 415
        told = b"".join([part async for part in answer.parts()]).decode()
        assert told == f"this port speaks gRPC; the HTTP API is on port {node.gateway.port}\n"


@pytest.mark.asyncio(loop_scope="module")
async def test_http_1(node: Node) -> None:
    for request in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /v1.0/publish/a/b HTTP/1.1\r\n"):
        told = (await answered(node, request)).decode()
        assert told.startswith("HTTP/1.1 400 Bad Request\r\n")
        assert told.endswith(f"\r\n\r\nthis port speaks gRPC; the HTTP API is on port {node.gateway.port}\n")


@pytest.mark.asyncio(loop_scope="module")
async def test_grpc_on_the_port_of_http(node: Node) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.gateway.port}") as channel:
        told = await refused(Client(channel), "GetState", store_name="statestore", key="k")
    assert told == ("UNIMPLEMENTED", f"this port speaks HTTP; the gRPC API is on port {node.gateway.grpc_port}")


@pytest.mark.asyncio(loop_scope="module")
async def test_details(node: Node) -> None:
    """A failure that has a reason tells it as google.rpc types."""
    async with client(node) as called:
        with pytest.raises(Failed) as raised:
            await called.call("GetState", store_name="none", key="k")
    assert (raised.value.code, raised.value.text) == ("INVALID_ARGUMENT", "state store none is not found")
    told = message("Status", STATUS).FromString(raised.value.trailers["grpc-status-details-bin"])
    assert (told.code, told.message) == (3, "state store none is not found")
    info = message("ErrorInfo", STATUS)()
    assert told.details[0].type_url == "type.googleapis.com/google.rpc.ErrorInfo"
    info.ParseFromString(told.details[0].value)
    assert (info.reason, info.domain, dict(info.metadata)) == ("DAPR_STATE_NOT_FOUND", "dapr.io", {"appID": "app"})


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("key", ["é" * 5000, "%" * 5000, "a" * 5000])
async def test_long_texts(node: Node, key: str) -> None:
    """A text is cut where clients would refuse it with all of the call's metadata."""
    async with client(node) as called:
        code, text = await refused(called, "GetState", store_name="statestore", key=f"{key}||")
    assert (code, text[:40]) == ("INVALID_ARGUMENT", f"input key/keyPrefix '{key}"[:40])
    assert "\ufffd" not in text


async def test_token(memory: Backbone, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("other\ns3cret\n")
    async with gateway(memory, tmp_path, tokens=Tokens(api_file=file)) as node, client(node) as called:
        for metadata in ((), (("dapr-api-token", "wrong"),), (("dapr-api-token", ""),)):
            told = await refused(called, "GetState", metadata, store_name="statestore", key="k")
            assert told == ("UNAUTHENTICATED", "invalid api token")
        for token in ("s3cret", "other"):
            assert await called.call("GetState", (("dapr-api-token", token),), store_name="statestore", key="k") == {}


async def test_log(memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gateway.api")
    async with gateway(memory, tmp_path, api_logging=True) as node, client(node) as called:
        await called.call("GetState", store_name="statestore", key="k")
        await refused(called, "GetState", store_name="none", key="k")
    told = [record.fields for record in caplog.records if record.message == "gRPC API Called"]  # type: ignore[attr-defined]
    assert [(each["method"], each["code"]) for each in told] == [(GET, "OK"), (GET, "INVALID_ARGUMENT")]


STRANGE = [
    pytest.param(b"/test.Echo/Un ary", id="blank"),
    pytest.param(b"/test.Echo/Unary\r\nforged: line", id="line break"),
    pytest.param("/test.Echo/Ünary".encode(), id="no ASCII"),
    pytest.param(b"/test.Echo/Unary#x", id="fragment"),
]


@pytest.mark.parametrize("path", STRANGE)
async def test_paths_that_cannot_be_passed_on(
    memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture, path: bytes
) -> None:
    caplog.set_level("INFO", "gateway.api")
    further = ((b"content-type", b"application/grpc"), (b"dapr-app-id", b"other"))
    data = OPENING + asking(section(*further, method=b"POST", path=path))
    async with gateway(memory, tmp_path, api_logging=True) as node:
        await spoken(node.gateway.grpc_port, data, until=HEADERS)
        await eventually(lambda: _logged(caplog))


def _logged(caplog: pytest.LogCaptureFixture) -> None:
    told = [record.fields for record in caplog.records if record.message == "gRPC API Called"]  # type: ignore[attr-defined]
    assert [each["code"] for each in told] == ["INVALID_ARGUMENT"]
    assert "\n" not in told[0]["method"]


async def answered(node: Node, data: bytes) -> bytes:
    """Send bytes on a connection of their own; give all that comes until it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.gateway.grpc_port)
    writer.write(data)
    async with asyncio.timeout(PATIENCE):
        told = await reader.read()
    writer.close()
    return told


def kinds(frames: bytes) -> list[int]:
    """Give the types of frames."""
    found, at = [], 0
    while at < len(frames):
        found.append(frames[at + 3])
        at += 9 + int.from_bytes(frames[at : at + 3], "big")
    return found


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(bytes(64), id="zeros"),
        pytest.param(PREFACE + b"GET / HTTP/1.1\r\n\r\n", id="a frame that is too large"),
        pytest.param(PREFACE + SETTINGS + bytes([0, 0, 1, 1, 4, 0, 0, 0, 1, 0x80]), id="a header of index 0"),
        pytest.param(PREFACE + SETTINGS + bytes([0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0]), id="no increment"),
        pytest.param(PREFACE + SETTINGS + bytes([0, 0, 1, 0, 0, 0, 0, 0, 0, 0]), id="data of no stream"),
    ],
)
async def test_invalid_frames(node: Node, data: bytes) -> None:
    """The connection ends with a reason, and others go on."""
    assert kinds(await answered(node, data))[-1] == GOAWAY
    async with client(node) as called:
        assert await called.call("GetState", store_name="statestore", key="k") == {}


@pytest.mark.asyncio(loop_scope="module")
async def test_who_asks_and_reads_nothing(node: Node) -> None:
    """Its questions are not read any more: answers to them would fill the memory."""
    ping = bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + bytes(8)
    _, writer = await asyncio.open_connection("127.0.0.1", node.gateway.grpc_port)
    writer.write(PREFACE + SETTINGS)
    with pytest.raises(TimeoutError):
        for _ in range(256):  # MiB, and the kernel keeps some for each side.
            writer.write(ping * 61_680)
            async with asyncio.timeout(2):
                await writer.drain()
    async with client(node) as called:
        assert await called.call("GetState", store_name="statestore", key="k") == {}
    writer.transport.abort()


async def test_silent_clients(memory: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says nothing is let go."""
    monkeypatch.setattr(server, "PREFACE_SECONDS", 0.1)
    async with gateway(memory, tmp_path) as node:
        assert await answered(node, b"") == b""


async def test_too_many_connections(memory: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that ask nothing now, the one that was silent longest makes room."""
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)
    async with gateway(memory, tmp_path) as node, AsyncExitStack() as stack, asyncio.timeout(PATIENCE):
        readers = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", node.gateway.grpc_port)
            stack.callback(writer.close)
            writer.write(PREFACE + SETTINGS)
            await reader.readexactly(9)
            readers.append(reader)
        async with client(node) as called:
            assert await called.call("GetState", store_name="statestore", key="k") == {}
            await readers[0].read()
            assert [reader.at_eof() for reader in readers] == [True, False, False]


async def test_an_answer_that_is_not_read(memory: Backbone, tmp_path: Path) -> None:
    """The deadline ends it in the middle of its message, and the client is told."""
    headers = [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "300m")]
    async with (
        gateway(memory, tmp_path) as node,
        client(node) as called,
        HTTP2Client("127.0.0.1", node.gateway.grpc_port) as http2,
    ):
        await called.call("SaveState", store_name="statestore", states=[{"key": "k", "value": bytes(1_000_000)}])

        def check() -> None:
            assert ("grpc-status", "4") in (*answer.headers, *answer.trailers)

        async with http2.call("POST", GET, headers, framed(REQUEST)) as answer:
            await eventually(check)


def test_base64_without_padding() -> None:
    """Details are told without padding, as gRPC writes binary metadata, and read with or without."""
    for data in (b"", b"a", b"ab", b"abc"):
        text = base64.b64encode(data).decode()
        for given in (text, text.rstrip("=")):
            found = status_of([("grpc-status", "13"), ("grpc-status-details-bin", given)])
            assert found is not None
            assert found.details == data


async def test_large_metadata_are_whole_or_refused(memory: Backbone, tmp_path: Path) -> None:
    """The token stands behind them: if they were dropped without a word, it would be wrong."""
    options = {"grpc.max_metadata_size": 2**20, "grpc.absolute_max_metadata_size": 2**20}

    async def read(called: Client, size: int) -> object:
        metadata = [("big", "x" * size), ("dapr-api-token", "secret")]
        return await called.call("GetState", metadata, store_name="statestore", key="none")

    async with gateway(memory, tmp_path, tokens=Tokens("secret")) as node, client(node, **options) as called:
        assert await read(called, 30_000) == {}
        with pytest.raises(Failed) as caught:
            await read(called, 500_000)
        assert caught.value.code != "UNAUTHENTICATED"


async def test_a_message_that_stays_away(memory: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not go on is told so, also where it gave no deadline or a later one."""
    monkeypatch.setattr("gateway.grpc.call.BODY_SECONDS", 0.1)

    async def begun() -> AsyncIterator[bytes]:
        yield framed(REQUEST)[:-1]
        await asyncio.sleep(PATIENCE)

    async with gateway(memory, tmp_path) as node, HTTP2Client("127.0.0.1", node.gateway.grpc_port) as http2:
        for further in ((), (("grpc-timeout", "1H"),)):
            headers = [("content-type", "application/grpc"), *further]
            async with asyncio.timeout(PATIENCE), http2.call("POST", GET, headers, begun()) as answer:
                fields = dict([*answer.headers, *answer.trailers])
            assert (fields["grpc-status"], fields["grpc-message"]) == ("4", "the message did not arrive within 0.1 s")
