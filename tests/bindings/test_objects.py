"""Objects of any size: streams of the bindings of object stores, what fails leaves nothing, and what calls may name."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
from aiohttp import ClientSession

from bindings._parts import MAX_HELD_BYTES, PIECE_BYTES, Budget, decoded, encoded, once, pieces
from mesh.blocks.binding_contract import BindingError, Streamed, StreamingBinding
from mesh.errors import ConfigError
from mesh.registry import Registry
from tests.support.bindings import OutputKind, call
from tests.support.bindings.objects import OUTPUTS
from tests.support.eventually import eventually
from tests.support.nodes import component
from tests.support.sftp_server import SFTPServer

MEBIBYTE = 1024 * 1024
PART = bytes(range(256)) * 2600 + b"odd"
OF_PROCESS = 96 * MEBIBYTE


class Broke(Exception):
    """What a test's parts raise."""


async def parts(count: int, error: BaseException | None = None) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield PART
    if error is not None:
        raise error


def loaded(kind: str, settings: Mapping[str, str]) -> Any:
    return Registry().load(kind).from_component(component("objects", kind, **settings))  # type: ignore[attr-defined]


@asynccontextmanager
async def opened(kind: OutputKind, directory: Path) -> AsyncIterator[Any]:
    async with kind.serve(directory) as served, loaded(kind.type, served.settings) as adapter:
        yield adapter


async def read(found: Streamed) -> tuple[int, str]:
    """Read to the end; gives how much it was, and its digest."""
    assert found.parts is not None
    size, digest = 0, hashlib.sha256()
    async with aclosing(found.parts) as given:
        async for part in given:
            size += len(part)
            digest.update(part)
    return size, digest.hexdigest()


@pytest.mark.parametrize("kind", OUTPUTS.values(), ids=OUTPUTS)
async def test_streams(kind: OutputKind, tmp_path: Path) -> None:
    """How much will come is told; what is not read to its end is let go; what is not there is an error at once."""
    async with opened(kind, tmp_path) as adapter:
        assert isinstance(adapter, StreamingBinding)
        name = {adapter.named: "large"}
        answer = await adapter.stream(call("create", b"", **name), parts(20))
        assert answer.parts is not None
        assert orjson.loads(b"".join([part async for part in answer.parts]))
        found = await adapter.stream(call("get", b"", **name), parts(0))
        assert found.length == 20 * len(PART) > PIECE_BYTES
        assert await read(found) == (20 * len(PART), hashlib.sha256(PART * 20).hexdigest())
        for take in (0, 1):
            given = (await adapter.stream(call("get", b"", **name), parts(0))).parts
            for _ in range(take):
                assert await anext(given)
            await given.aclose()
        with pytest.raises(BindingError, match=r"not found|BlobNotFound"):
            await adapter.stream(call("get", b"", **{adapter.named: "gone"}), parts(0))
        with pytest.raises(BindingError, match=adapter.named):
            await adapter.stream(call("get", b""), parts(0))


@pytest.mark.parametrize("kind", OUTPUTS.values(), ids=OUTPUTS)
async def test_an_upload_that_ends_early(kind: OutputKind, tmp_path: Path) -> None:
    """Nothing of it is there, nor left behind, and what was there is as it was; if it fails, and if it is cancelled."""

    async def stuck(begun: asyncio.Event) -> AsyncIterator[bytes]:
        async for part in parts(20):
            yield part
        begun.set()
        await asyncio.Event().wait()

    async with opened(kind, tmp_path) as adapter:
        old, new = ({adapter.named: name} for name in ("old", "new"))
        await adapter.invoke(call("create", b'"as it was!"', **old))
        for name in (old, new):
            with pytest.raises(Broke):
                await adapter.stream(call("create", b"", **name), parts(20, Broke()))
            begun = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(adapter.stream(call("create", b"", **name), stuck(begun)))
                await begun.wait()
                task.cancel()
        assert (await adapter.invoke(call("get", **old))).data == b"as it was!"
        with pytest.raises(BindingError, match=r"not found|BlobNotFound"):
            await adapter.invoke(call("get", **new))
        if kind.type == "bindings.aws.s3":  # Parts that nobody sees are paid for.
            assert not (await adapter.call("list_multipart_uploads", Bucket="uploads")).get("Uploads")
        if kind.type == "bindings.sftp":
            assert [path.name for path in (tmp_path / "sftp/served/uploads").iterdir()] == ["old"]


@pytest.mark.parametrize("kind", [OUTPUTS[name] for name in ("aws.s3", "azure.blobstorage")])
async def test_presigned_urls(kind: OutputKind, tmp_path: Path) -> None:
    """Anybody reads by them."""
    name, ttl = ("key", "presignTTL") if kind.type == "bindings.aws.s3" else ("blobName", "signTTL")
    async with opened(kind, tmp_path) as adapter, ClientSession() as session:
        made = await adapter.invoke(call("create", b'"shared"', **{name: "a b/ü", ttl: "1m"}))
        signed = await adapter.invoke(call("presign", **{name: "a b/ü", ttl: "1m"}))
        for url in (orjson.loads(made.data)["presignURL"], orjson.loads(signed.data)["presignURL"]):
            async with session.get(url) as response:
                assert (response.status, await response.read()) == (200, b"shared")
        for wrong in ("soon", "0s", "-1m", "90000h", "15"):
            with pytest.raises(BindingError, match=ttl):
                await adapter.invoke(call("presign", **{name: "c", ttl: wrong}))
        with pytest.raises(BindingError, match=ttl):
            await adapter.invoke(call("presign", **{name: "c"}))


@pytest.mark.parametrize(
    ("operation", "data", "told"),
    [
        ("list", b'"text"', "no JSON object"),
        ("list", b'{"maxResults": -1}', "maxResults"),
        ("list", b'{"maxResults": "1"}', "maxResults"),
        ("list", b'{"prefix": 1}', "prefix"),
        ("bulkGet", b"null", "items"),
        ("bulkGet", b'{"items": [1]}', "items"),
        ("bulkGet", b'{"items": [{}]}', "key"),
        ("bulkGet", b'{"items": [{"key": 1}]}', "key"),
        ("bulkGet", b'{"items": [{"key": "a"}], "concurrency": 0}', "concurrency"),
        ("bulkGet", b'{"prefix": "a"}', "destinationDir"),
        ("bulkCreate", b'{"items": []}', "items"),
        ("bulkDelete", b"{}", "keys"),
        ("bulkDelete", b'{"keys": "a"}', "keys"),
        ("bulkDelete", b'{"keys": [""]}', "keys"),
        ("presign", b"null", "key"),
        ("delete", b"null", "key"),
        ("get", b"null", "key"),
    ],
)
async def test_bad_calls(operation: str, data: bytes, told: str) -> None:
    """Each names what is wrong, and asks nobody."""
    settings = {"bucket": "b", "region": "eu-central-1", "accessKey": "k", "secretKey": "s", "endpoint": "127.0.0.1:1"}
    async with loaded("bindings.aws.s3", settings) as adapter:
        with pytest.raises(BindingError, match=told):
            await adapter.invoke(call(operation, data))


async def test_files_of_the_host(tmp_path: Path) -> None:
    """Calls name those within fileRoot, and without it none: they come from other machines, too."""
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside").write_text("secret")
    (root / "link").symlink_to(tmp_path / "outside")
    settings = {"bucket": "b", "region": "eu-central-1", "accessKey": "k", "secretKey": "s", "endpoint": "127.0.0.1:1"}
    async with loaded("bindings.aws.s3", settings) as adapter:
        with pytest.raises(BindingError, match="fileRoot"):
            await adapter.invoke(call("create", key="k", filePath=str(root / "a")))
    async with loaded("bindings.aws.s3", {**settings, "fileRoot": str(root)}) as adapter:
        for name in ("../outside", "link", str(tmp_path / "outside"), ".", "a\0b"):
            with pytest.raises(BindingError, match="not within"):
                await adapter.invoke(call("create", key="k", filePath=name))
        for name in ("gone", str(root / "gone")):
            with pytest.raises(BindingError, match="cannot be read"):
                await adapter.invoke(call("create", key="k", filePath=name))


OWN = "https://bkt.s3.eu-central-1.amazonaws.com/a%20b/%C3%BC"


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, OWN),
        ({"endpoint": "s3.eu-central-1.amazonaws.com"}, OWN),
        ({"forcePathStyle": "true"}, "https://s3.eu-central-1.amazonaws.com/bkt/a%20b/%C3%BC"),
        ({"disableSSL": "true"}, OWN.replace("https", "http")),
        ({"endpoint": "http://minio:9000/", "forcePathStyle": "true"}, "http://minio:9000/bkt/a%20b/%C3%BC"),
        (
            {"endpoint": "minio:9000", "disableSSL": "true", "forcePathStyle": "true"},
            "http://minio:9000/bkt/a%20b/%C3%BC",
        ),
        ({"endpoint": "https://minio:9000"}, "https://bkt.minio:9000/a%20b/%C3%BC"),
    ],
)
async def test_where_buckets_are(settings: Mapping[str, str], url: str) -> None:
    """In the host or in the path, with TLS or without."""
    own = {"bucket": "bkt", "region": "eu-central-1", "accessKey": "k", "secretKey": "s"}
    async with loaded("bindings.aws.s3", {**own, **settings}) as adapter:
        found = await adapter.invoke(call("presign", key="a b/ü", presignTTL="1m"))
    assert orjson.loads(found.data)["presignURL"].partition("?")[0] == url


SFTP = {"rootPath": "/", "address": "localhost", "username": "u", "password": "s3cret"}
S3 = {"bucket": "b", "region": "eu-central-1"}


@pytest.mark.parametrize(
    ("kind", "settings", "setting"),
    [
        ("aws.s3", {"region": "eu-central-1"}, "bucket"),
        ("aws.s3", {**S3, "endpoint": "ftp://host"}, "endpoint"),
        ("aws.s3", {**S3, "endpoint": "http://u:p@host"}, "endpoint"),
        ("aws.s3", {**S3, "forcePathStyle": "perhaps"}, "forcePathStyle"),
        ("aws.s3", {**S3, "accessKey": "k"}, "accessKey"),
        ("gcp.bucket", {"bucket": "b", "signTTL": "soon"}, "signTTL"),
        ("gcp.bucket", {"bucket": "b", "endpoint": "host"}, "endpoint"),
        ("gcp.bucket", {"bucket": "b", "client_email": "a@b"}, "client_email"),
        ("azure.blobstorage", {"accountName": "a"}, "containerName"),
        ("azure.blobstorage", {"accountName": "a", "containerName": "c", "accountKey": "?"}, "accountKey"),
        ("sftp", SFTP, "address"),
        ("sftp", {**SFTP, "address": "host:port"}, "address"),
        ("sftp", {**SFTP, "hostPublicKey": "no key"}, "hostPublicKey"),
        ("sftp", {**SFTP, "knownHostsFile": "/nowhere"}, "knownHostsFile"),
        ("sftp", {**SFTP, "privateKey": "s3cret", "insecureIgnoreHostKey": "true"}, "privateKey"),
        ("sftp", {**SFTP, "password": "", "insecureIgnoreHostKey": "true"}, "username"),
    ],
)
async def test_settings(kind: str, settings: Mapping[str, str], setting: str) -> None:
    """What is wrong is named, and no secret is."""
    with pytest.raises(ConfigError) as caught:
        async with loaded(f"bindings.{kind}", settings):
            pass
    assert setting in str(caught.value)
    assert "s3cret" not in str(caught.value)


async def test_another_server(tmp_path: Path) -> None:
    """One with another key is not logged in to, nor one that refuses the password; one that is away may be back."""
    async with OUTPUTS["sftp"].serve(tmp_path) as served:
        other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMwlpCZtsIoyY1DhOlHTDgPw6sIYa7XAo1yCY4y0FC2o"
        for wrong, again in (
            ({"hostPublicKey": other}, False),
            ({"password": "wr0ng"}, False),
            ({"address": "127.0.0.1:1"}, True),
        ):
            async with loaded("bindings.sftp", {**served.settings, **wrong}) as adapter:
                with pytest.raises(BindingError) as caught:
                    await adapter.invoke(call("list"))
                assert caught.value.retryable is again
                assert "wr0ng" not in str(caught.value)


async def test_a_server_that_was_away(tmp_path: Path) -> None:
    """Once it is back, it is connected to again."""

    async def there() -> None:
        try:
            found = await adapter.invoke(call("get", fileName="a"))
        except BindingError as error:
            raise AssertionError from error
        assert found.data == b"there!"

    async with SFTPServer(tmp_path / "sftp") as server, loaded("bindings.sftp", server.settings) as adapter:
        await adapter.invoke(call("create", b'"there!"', fileName="a"))
        await server.kill()
        with pytest.raises(BindingError) as caught:
            await adapter.invoke(call("get", fileName="a"))
        assert caught.value.retryable
        await server.start()
        await eventually(there)


async def test_sftp_lists_what_calls_can_name(tmp_path: Path) -> None:
    """A file on its way is left out, and one whose name is no text; neither keeps the others from being listed."""
    async with SFTPServer(tmp_path / "sftp") as server, loaded("bindings.sftp", server.settings) as adapter:
        folder = server.folder / "uploads"
        for name in (b"a", b"b.part", b".0123456789abcdef.part", b"none\xff"):
            (folder / os.fsdecode(name)).write_text("x")
        assert (await adapter.invoke(call("list"))).data == b'["a","b.part"]'


@pytest.mark.costly
async def test_bounded_memory(tmp_path: Path) -> None:
    """A large object goes to S3 and back in a part of its size; moto, in a process of its own, keeps all of it."""
    process, count = psutil.Process(), 224 * MEBIBYTE // len(PART)
    before = peak = process.memory_info().rss

    def note() -> None:
        nonlocal peak
        peak = max(peak, process.memory_info().rss)

    async def noted(given: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for part in given:
            note()
            yield part

    async with opened(OUTPUTS["aws.s3"], tmp_path) as adapter:
        await adapter.stream(call("create", b"", key="large"), noted(parts(count)))
        found = await adapter.stream(call("get", b"", key="large"), parts(0))
        size, _ = await read(Streamed(noted(found.parts), found.length))
    assert size == count * len(PART)
    assert peak - before < OF_PROCESS


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16, 100])
async def test_pieces(size: int) -> None:
    """All but the last are of one size; the last one is known as it, and is empty only where there is nothing."""

    async def given(length: int) -> AsyncIterator[bytes]:
        for start in range(0, length, 5):
            yield bytes(range(start, min(start + 5, length)))

    for length in (0, 1, 8, 16, 17):
        cut = [each async for each in pieces(given(length), size)]
        assert b"".join(piece for piece, _ in cut) == bytes(range(length))
        assert [last for _, last in cut] == [False] * (len(cut) - 1) + [True]
        assert all(len(piece) == size for piece, _ in cut[:-1])
        assert len(cut) == max(1, -(-length // size))


async def _cut(data: bytes, size: int) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 1000])
async def test_base64(size: int) -> None:
    """In parts, as at once."""
    for data in (b"", b"a", b"ab", b"abc", bytes(range(256))):
        text = base64.b64encode(data)
        found = await encoded(Streamed(_cut(data, size), len(data)))
        assert found.parts is not None
        assert (b"".join([part async for part in found.parts]), found.length) == (text, len(text))
        assert b"".join([part async for part in decoded(_cut(text + b"\r\n", size))]) == data
    for wrong in (b"a", b"YQ", b"YQ==YQ==", b"Y?==", b"=AAA"):
        with pytest.raises(BindingError, match="base64"):
            _ = [part async for part in decoded(_cut(wrong, size))]


async def test_what_is_held() -> None:
    """No more than its share, whether the length is told or shows."""
    assert MAX_HELD_BYTES > 3
    for length in (4, None):
        with pytest.raises(BindingError, match="stream"):
            await Budget(3).held(Streamed(once(b"1234"), length))
    budget = Budget(5)
    assert await budget.held(Streamed(once(b"123"))) == b"123"
    with pytest.raises(BindingError):
        await budget.held(Streamed(once(b"456")))
