"""Rows of object stores: S3, Azure's blobs, Google Cloud Storage, files by SFTP."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
from aiobotocore.session import get_session
from aiohttp import ClientSession

from mesh.blocks.binding_contract import Invoke, Invoked
from tests.support.azure_servers import AzuriteServer
from tests.support.bindings.rows import Check, InputKind, OutputKind, ServedOutput, call, gives, nothing
from tests.support.gcs_server import GCSServer
from tests.support.hand_servers import GoogleSecrets
from tests.support.moto_server import CREDENTIALS, MotoServer
from tests.support.sftp_server import SFTPServer

__all__ = ["BUCKET", "INPUTS", "OUTPUTS", "told"]

BUCKET = "uploads"


def told(expected: Any) -> Check:
    """Check a JSON answer: for these members among others, texts as patterns."""

    def matches(found: Any, wanted: Any) -> bool:
        match wanted:
            case dict():
                return isinstance(found, dict) and all(matches(found.get(name), each) for name, each in wanted.items())
            case list():
                return isinstance(found, list) and len(found) == len(wanted) and all(map(matches, found, wanted))
            case str():
                return isinstance(found, str) and re.fullmatch(wanted, found) is not None
            case _:
                return bool(found == wanted)

    def check(found: Invoked | None) -> object:
        return found is not None and found.data is not None and matches(orjson.loads(found.data), expected)

    return check


def data(value: object) -> bytes:
    return orjson.dumps(value)


def shared(directory: Path) -> str:
    """Make a folder that calls may name files in, with a file."""
    root = directory / "shared"
    root.mkdir()
    (root / "given.txt").write_text("from a file")
    return str(root)


@asynccontextmanager
async def _s3(directory: Path) -> AsyncIterator[ServedOutput]:
    async with MotoServer(directory / "moto") as server:
        async with get_session().create_client(
            "s3",
            region_name="eu-central-1",
            endpoint_url=server.url,
            aws_access_key_id="AKIATEST",
            aws_secret_access_key="aws-s3cret",
        ) as client:
            where = {"LocationConstraint": "eu-central-1"}
            await client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration=where)
        url = rf"http://127\.0\.0\.1:{server.port}/{BUCKET}"
        calls = (
            (call("create", b'"hello"', key="a/b.txt"), told({"location": f"{url}/a/b\\.txt", "versionID": None})),
            (call("create", b'"x"'), told({"location": rf"{url}/[0-9a-f-]{{36}}"})),
            (
                call("create", b'{"a":1}', key="c", presignTTL="15m", tags="x=1, y=2"),
                told({"presignURL": ".*Signature.*"}),
            ),
            (call("create", key="f", filePath="given.txt"), told({})),
            (call("get", key="a/b.txt"), gives(b"hello")),
            (call("get", key="c"), gives(b'{"a":1}')),
            (call("get", key="f"), gives(b"from a file")),
            (call("get", key="f", encodeBase64="true"), gives(b"ZnJvbSBhIGZpbGU=")),
            (call("presign", key="c", presignTTL="1h"), told({"presignURL": rf"{url}/c\?.*X-Amz-Expires=3600.*"})),
            (
                call("list", data({"prefix": "a/", "maxResults": 1})),
                told(
                    {"Contents": [{"Key": "a/b.txt", "Size": 5, "ETag": '".*"'}], "IsTruncated": False, "Name": BUCKET}
                ),
            ),
            (
                call("list", data({"maxResults": 1, "marker": "a/a"})),
                told({"Contents": [{"Key": "a/b.txt"}], "IsTruncated": True, "NextMarker": ".+", "MaxKeys": 1}),
            ),
            (call("list", data({"delimiter": "/"})), told({"CommonPrefixes": [{"Prefix": "a/"}], "Delimiter": "/"})),
            (
                call("bulkGet", data({"items": [{"key": "c"}, {"key": "f", "filePath": "out/f"}, {"key": "no"}]})),
                told([{"key": "c", "data": ".*1.*"}, {"filePath": "out/f"}, {"key": "no", "error": ".*not found"}]),
            ),
            (
                call("bulkCreate", data({"items": [{"key": "g", "data": "1"}, {"key": "h", "filePath": "gone"}]})),
                told([{"key": "g", "location": f"{url}/g"}, {"key": "h", "error": ".*No such file.*"}]),
            ),
            (call("bulkDelete", data({"keys": ["g", "f"]})), told([{"key": "g"}, {"key": "f"}])),
            (call("delete", key="c"), nothing),
        )
        settings = {
            **CREDENTIALS,
            "bucket": BUCKET,
            "endpoint": f"127.0.0.1:{server.port}",
            "disableSSL": "true",
            "forcePathStyle": "true",
            "fileRoot": shared(directory),
        }
        yield ServedOutput(settings, calls, call("get", key="gone"), {"key": "large"})


def _one_of_more(found: Invoked | None) -> object:
    return found is not None and found.metadata["number"] == "1" and found.metadata["marker"] != ""


@asynccontextmanager
async def _blobs(directory: Path) -> AsyncIterator[ServedOutput]:
    async with AzuriteServer(directory / "azurite", "blob") as server:
        url = rf"http://127\.0\.0\.1:{server.port}/devstoreaccount1/{BUCKET}"
        headers = {"contentType": "text/plain", "custom": "worth", "not-a-name": "1"}
        item = {"Name": "a/b", "Properties": {"ContentLength": 5, "ContentType": "text/plain"}}
        calls = (
            (call("create", b'"hello"', blobName="a/b", **headers), told({"blobURL": f"{url}/a/b"})),
            (call("create", b'"x"'), told({"blobURL": rf"{url}/[0-9a-f-]{{36}}"})),
            (call("create", b'"x"', blobName="c", signTTL="1h"), told({"presignURL": rf"{url}/c\?.*sig=.*"})),
            (call("create", blobName="f", filePath="given.txt"), told({})),
            (call("get", blobName="a/b"), gives(b"hello")),
            (call("get", blobName="a/b", includeMetadata="true"), gives(b"hello", custom="worth", notaname="1")),
            (call("get", blobName="f", filePath="out"), gives(b"", filePath="out")),
            (call("presign", blobName="f", signTTL="15m"), told({"presignURL": rf"{url}/f\?.*sp=r.*"})),
            (
                call("list", data({"prefix": "a/", "include": {"metadata": True}})),
                told([{**item, "Metadata": {"custom": "worth"}}]),
            ),
            (call("list", data({"maxResults": 1})), _one_of_more),
            (
                call("bulkGet", data({"items": [{"blobName": "a/b"}, {"blobName": "no"}], "concurrency": 1})),
                told([{"blobName": "a/b", "data": "aGVsbG8="}, {"blobName": "no", "error": ".*BlobNotFound"}]),
            ),
            (
                call("bulkGet", data({"prefix": "a/", "destinationDir": "all"})),
                told([{"blobName": "a/b", "filePath": "all/b"}]),
            ),
            (
                call(
                    "bulkCreate", data({"items": [{"blobName": "g", "data": "1", "contentType": "x/y"}, {"data": "2"}]})
                ),
                told([{"blobName": "g", "blobURL": f"{url}/g"}, {"blobName": "[0-9a-f-]{36}"}]),
            ),
            (
                call("bulkDelete", data({"blobNames": ["g", "no"], "prefix": "a/"})),
                told([{"blobName": "g"}, {"blobName": "no", "error": ".*BlobNotFound"}, {"blobName": "a/b"}]),
            ),
            (call("delete", blobName="c", deleteSnapshots="include"), nothing),
        )
        settings = {**server.settings, "containerName": BUCKET, "fileRoot": shared(directory)}
        yield ServedOutput(settings, calls, call("get", blobName="gone"), {"blobName": "large"})


@asynccontextmanager
async def _gcs(directory: Path) -> AsyncIterator[ServedOutput]:
    tokens = await asyncio.to_thread(GoogleSecrets, directory)
    async with GCSServer(directory / "gcs", BUCKET) as server, tokens, ClientSession() as session:
        async with session.post(f"{server.url}/storage/v1/b", json={"name": "other"}) as made:
            assert made.status == 200
        url = rf"http://127\.0\.0\.1:{server.port}/{BUCKET}"
        listed = {"Bucket": BUCKET, "Name": "a/b.txt", "Size": 5, "ContentType": "text/plain", "Metageneration": 1}
        calls = (
            (
                call("create", b'"hello"', key="a/b.txt", contentType="text/plain"),
                told({"objectURL": f"{url}/a/b\\.txt"}),
            ),
            (call("create", b'"aGk="', key="c", decodeBase64="true"), told({})),
            (call("create", key="f", filePath="given.txt"), told({})),
            (call("get", key="a/b.txt"), gives(b"hello")),
            (call("get", key="c"), gives(b"hi")),
            (call("get", key="c", encodeBase64="true"), gives(b"aGk=")),
            (call("list", data({"prefix": "a/", "maxResults": 1})), told([listed])),
            (call("rename", data({"newName": "d e/ü"}), key="c"), nothing),
            (call("get", key="d e/ü"), gives(b"hi")),
            (call("copy", data({"destinationBucket": "other"}), key="d e/ü"), nothing),
            (call("move", destinationKey="g", key="d e/ü"), nothing),
            (
                call("bulkGet", encodeBase64="true"),
                told([{"name": "a/b.txt", "data": "aGVsbG8="}, {"name": "f"}, {"name": "g", "attrs": {"Size": 2}}]),
            ),
            (
                call("sign", key="f", signTTL="1h"),
                told({"signURL": rf"{url}/f\?.*X-Goog-Expires=3600.*&X-Goog-Signature=[0-9a-f]+"}),
            ),
            (call("delete", key="a/b.txt"), nothing),
        )
        settings = {
            "bucket": BUCKET,
            "type": "service_account",
            "project_id": "shop",
            "client_email": "robot@shop.test",
            "private_key": tokens.private_key,
            "token_uri": f"http://127.0.0.1:{tokens.port}/token",
            "endpoint": server.url,
            "fileRoot": shared(directory),
        }
        yield ServedOutput(settings, calls, call("get", key="gone"), {"key": "large"})


def _sftp_calls() -> tuple[tuple[Invoke, Check], ...]:
    return (
        (call("create", b'"hello, world"', fileName="a/b.txt"), gives(b'{"fileName":"a/b.txt"}')),
        (call("create", b'"AAH/"', fileName="a/b.bin"), gives(b'{"fileName":"a/b.bin"}')),
        (call("create", b'"again!"', fileName="a/b.txt"), gives(b'{"fileName":"a/b.txt"}')),
        (call("create", b'{"a":1}'), told({"fileName": "[0-9a-f-]{36}"})),
        (call("create", fileName="/f", filePath="given.txt"), gives(b'{"fileName":"/f"}')),
        (call("get", fileName="a/b.txt"), gives(b"again!")),
        (call("get", fileName="a/b.bin"), gives(b"\x00\x01\xff")),
        (call("get", fileName="f", filePath="got"), gives(b"", filePath="got")),
        (call("list", fileName="a"), gives(b'["a/b.bin","a/b.txt"]')),
        (call("list"), told(["[0-9a-f-]{36}|f|a/b.*"] * 4)),
        (call("delete", fileName="a/b.bin"), nothing),
    )


@asynccontextmanager
async def _sftp(directory: Path) -> AsyncIterator[ServedOutput]:
    async with await asyncio.to_thread(SFTPServer, directory / "sftp") as server:
        settings = {**server.settings, "fileRoot": shared(directory)}
        yield ServedOutput(settings, _sftp_calls(), call("get", fileName="../outside"), {"fileName": "large"})


@asynccontextmanager
async def _sftp_by_key(directory: Path) -> AsyncIterator[ServedOutput]:
    async with await asyncio.to_thread(SFTPServer, directory / "sftp") as server:
        known = directory / "known_hosts"
        known.write_text(f"[127.0.0.1]:{server.port} {server.host_key}")
        own = {name: server.settings[name] for name in ("rootPath", "address", "username")}
        key = {
            "privateKey": await asyncio.to_thread(server.user_key),
            "privateKeyPassphrase": "pass",
            "knownHostsFile": str(known),
        }
        settings = {**own, **key, "fileRoot": shared(directory)}
        yield ServedOutput(settings, _sftp_calls(), call("delete", fileName="gone"), {"fileName": "large"})


OUTPUTS: Mapping[str, OutputKind] = {
    "aws.s3": OutputKind("bindings.aws.s3", _s3),
    "gcp.bucket": OutputKind("bindings.gcp.bucket", _gcs),
    "sftp": OutputKind("bindings.sftp", _sftp),
    "sftp, by a key": OutputKind("bindings.sftp", _sftp_by_key),
    "azure.blobstorage": OutputKind("bindings.azure.blobstorage", _blobs),
}

INPUTS: Mapping[str, InputKind] = {}
