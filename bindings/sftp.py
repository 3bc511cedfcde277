"""``bindings.sftp``: files on a server that is reached by SSH.

A file is written beside its place, and moved there once it is whole. One connection serves all calls; it is made when
it is needed, and made again where it broke.

Source: Dapr 1.18, the SFTP binding.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import posixpath
import re
import secrets
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import asyncssh
import orjson

from bindings._data import text_of
from bindings._objects import ObjectBinding, Put, file_root_setting
from bindings._parts import FILE_BYTES, begun
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError, Invoke, Invoked, Streamed
from mesh.resources.settings import BOOLEAN, VERBATIM, Kind, setting

__all__ = ["SFTPBinding"]

CONNECT_SECONDS = 10.0
KEEPALIVE_SECONDS = 10.0
CLEANUP_SECONDS = 10.0
MAX_LISTED = 100_000
logging.getLogger("asyncssh").setLevel(logging.WARNING)  # Below, it writes who logs in, and each file.
_LOST = (asyncssh.SFTPNoConnection, asyncssh.SFTPConnectionLost)
_PART = re.compile(r"\.[0-9a-f]{16}\.part")
_NOT_FOUND = (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath)
_REFUSED = (asyncssh.PermissionDenied, asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed)


def _address(given: str) -> tuple[str, int]:
    host, _, port = given.rpartition(":")
    host, port = (host, port) if host and not given.endswith("]") else (given, "22")
    if not port.isdecimal() or not 0 < int(port) < 65_536 or any(each in host for each in "/@ "):
        raise ValueError("is host:port, or a host alone")
    return host.strip("[]"), int(port)


def _host_key(given: str) -> str:
    try:
        asyncssh.import_public_key(given)
    except asyncssh.KeyImportError:
        raise ValueError("is a public key, as in 'ssh-ed25519 AAAA…'") from None
    return given


@dataclass(frozen=True, slots=True)
class SFTPSettings:
    """What is read of a component."""

    root: str = setting("rootPath", "The folder that files are named in.", required=True, example="/uploads")
    address: tuple[str, int] = setting(
        "address",
        "Host and port of the server.",
        Kind("host and port", _address),
        required=True,
        example="sftp.example.com:22",
    )
    username: str = setting("username", "Name to log in with.", required=True, example="shop")
    password: str | None = setting("password", "Password to log in with.", VERBATIM, secret=True)
    private_key: str | None = setting("privateKey", "Private key to log in with, as OpenSSH or PEM.", secret=True)
    passphrase: str | None = setting("privateKeyPassphrase", "Passphrase of that key.", VERBATIM, secret=True)
    host_key: str | None = setting(
        "hostPublicKey",
        "The server's public key.",
        Kind("public key", _host_key),
        example="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGq7R7+3gRvnhfFc39v/YM6xsJcgdFycWZe5e2GttscS",
    )
    known_hosts: str | None = setting(
        "knownHostsFile", "Path of a file with keys of servers, as OpenSSH has it.", example="/etc/ssh/ssh_known_hosts"
    )
    insecure: bool = setting(
        "insecureIgnoreHostKey", "Whether any server is taken for the right one.", BOOLEAN, default=False
    )
    file_root: str | None = file_root_setting()


class SFTPBinding(ObjectBinding, ComponentAdapter):
    """Files on a server."""

    title = "Writes, reads, lists and deletes files on a server by SFTP."
    tested = "AsyncSSH's server"
    settings = SFTPSettings
    operations = ("create", "get", "delete", "list")
    named = "fileName"

    def __init__(self, settings: Any) -> None:
        """Prepare; the first call connects."""
        super().__init__(settings)
        self._one = asyncio.Lock()
        self._options: dict[str, Any] = {}
        self._connection: asyncssh.SSHClientConnection | None = None
        self._sftp: asyncssh.SFTPClient
        self._root = posixpath.normpath(settings.root)

    def _further(self) -> Mapping[str, Callable[[Invoke], Awaitable[Invoked | None]]]:
        return {"list": self._list}

    async def _enter(self) -> None:
        settings: SFTPSettings = self._settings
        if settings.password is None and settings.private_key is None:
            raise self._problem("needs a password or a privateKey", "username")
        if settings.host_key is None and settings.known_hosts is None and not settings.insecure:
            raise self._problem("needs a hostPublicKey or a knownHostsFile, for anybody could answer there", "address")
        self._options = {
            "username": settings.username,
            "password": settings.password,
            "client_keys": await asyncio.to_thread(self._key),
            "known_hosts": await asyncio.to_thread(self._known),
        }
        self._stack.push_async_callback(self._disconnect)

    def _key(self) -> Any:
        settings: SFTPSettings = self._settings
        if settings.private_key is None:
            return None
        try:
            return [asyncssh.import_private_key(settings.private_key, settings.passphrase)]
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError):
            problem = "is no private key, or has another passphrase"
        raise self._problem(problem, "privateKey")

    def _known(self) -> Any:
        settings: SFTPSettings = self._settings
        if settings.insecure:
            return None
        if settings.host_key is not None:
            return [asyncssh.import_public_key(settings.host_key)], [], []
        try:
            return asyncssh.read_known_hosts(str(settings.known_hosts))
        except (OSError, ValueError) as error:
            raise self._problem(f"cannot be read: {error}", "knownHostsFile") from None

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(CLEANUP_SECONDS):
                    await connection.wait_closed()

    async def _connected(self) -> asyncssh.SFTPClient:
        async with self._one:
            if self._connection is None or self._connection.is_closed():
                await self._disconnect()
                host, port = self._settings.address
                async with asyncio.timeout(CONNECT_SECONDS):
                    connection = await asyncssh.connect(
                        host,
                        port,
                        config=None,  # Neither the user's configuration nor agent has a say.
                        agent_path=None,
                        keepalive_interval=KEEPALIVE_SECONDS,
                        **self._options,
                    )
                    try:
                        self._sftp = await connection.start_sftp_client()
                    except BaseException:
                        connection.abort()
                        raise
                self._connection = connection
            return self._sftp

    @contextmanager
    def _failures(self, name: str) -> Iterator[None]:
        host, port = self._settings.address
        try:
            yield
        except _NOT_FOUND:
            raise BindingError(f"file not found: {name}") from None
        except _REFUSED as error:
            raise BindingError(f"{host}:{port} cannot be logged in to: {error.reason}") from None
        except asyncssh.SFTPError as error:
            raise BindingError(f"{name}: {error.reason}", retryable=isinstance(error, _LOST)) from None
        except TimeoutError:
            raise BindingError(f"{host}:{port} does not answer in time", retryable=True) from None
        except (asyncssh.Error, OSError) as error:
            raise BindingError(f"{host}:{port} cannot be reached: {error}", retryable=True) from None

    def _path(self, name: str) -> str:
        """Find a file's place; raises ``BindingError`` where that is outside of the folder."""
        path = posixpath.normpath(posixpath.join(self._root, name.lstrip("/")))
        if "\0" in name or path == self._root or not path.startswith(f"{self._root.rstrip('/')}/"):
            raise BindingError(f"fileName {name!r} is not within the folder")
        return path

    def _written(self, data: bytes) -> bytes:
        """Give a text, and what it encodes by base64, if it does."""
        raw = text_of(data)
        try:
            return base64.b64decode(raw, validate=True)
        except binascii.Error:
            return raw

    async def _put(self, name: str, parts: AsyncIterator[bytes], metadata: Mapping[str, str]) -> Put:
        path = self._path(name)
        folder = posixpath.dirname(path)
        with self._failures(name):
            sftp = await self._connected()
            await sftp.makedirs(folder, exist_ok=True)
        beside = posixpath.join(folder, f".{secrets.token_hex(8)}.part")
        try:
            await self._filled(sftp, beside, name, parts)
            with self._failures(name):
                await self._moved(sftp, beside, path)
        except BaseException:
            with suppress(asyncssh.Error, OSError):  # A TimeoutError is one.
                async with asyncio.timeout(CLEANUP_SECONDS):
                    await sftp.remove(beside)
            raise
        return {"fileName": name}

    async def _filled(self, sftp: asyncssh.SFTPClient, path: str, name: str, parts: AsyncIterator[bytes]) -> None:
        with self._failures(name):
            file = await sftp.open(path, "xb")
        try:
            async for part in parts:
                with self._failures(name):
                    await file.write(part)
        finally:
            with self._failures(name):
                async with asyncio.timeout(CLEANUP_SECONDS):
                    await file.close()

    async def _moved(self, sftp: asyncssh.SFTPClient, source: str, target: str) -> None:
        try:
            await sftp.posix_rename(source, target)
        except asyncssh.SFTPOpUnsupported:  # Without it nothing is put in place of another file.
            with suppress(*_NOT_FOUND):
                await sftp.remove(target)
            await sftp.rename(source, target)

    async def _open(self, name: str, metadata: Mapping[str, str]) -> Streamed:
        path = self._path(name)
        with self._failures(name):
            sftp = await self._connected()
            file = await sftp.open(path, "rb")
            try:
                size = (await file.stat()).size
                parts = await begun(self._parts(file, name, size))
            except BaseException:
                await _closed(file)
                raise
        return Streamed(parts, size)

    async def _parts(self, file: Any, name: str, size: int | None) -> AsyncGenerator[bytes, None]:
        """Read no further than the size: what lies behind is asked for at once, and its errors are told to nobody."""
        try:
            yield b""
            left = size
            while left is None or left > 0:
                with self._failures(name):
                    part = await file.read(FILE_BYTES if left is None else min(FILE_BYTES, left))
                if not part:
                    return
                left = None if left is None else left - len(part)
                yield part
        finally:
            await _closed(file)

    async def _remove(self, name: str, metadata: Mapping[str, str]) -> None:
        path = self._path(name)
        with self._failures(name):
            await (await self._connected()).remove(path)

    async def _list(self, asked: Invoke) -> Invoked:
        """Give the files in a folder and those in it, as they are named in calls; links are not followed."""
        name = asked.metadata.get("fileName", "").strip("/")
        path = self._path(name) if name not in ("", ".") else self._root
        found: list[str] = []
        with self._failures(name or "."):
            sftp = await self._connected()
            waiting = [path]
            while waiting:
                folder = waiting.pop()
                async for each in sftp.scandir(folder.encode()):  # As bytes, or a name that is no text ends it.
                    try:
                        base = cast("bytes", each.filename).decode()
                    except UnicodeDecodeError:
                        continue
                    kind = stat.S_IFMT(each.attrs.permissions or 0)
                    if base in (".", "..") or _PART.fullmatch(base):
                        continue
                    if kind == stat.S_IFDIR:
                        waiting.append(posixpath.join(folder, base))
                    else:
                        found.append(posixpath.relpath(posixpath.join(folder, base), self._root))
                    if len(found) + len(waiting) > MAX_LISTED:
                        raise BindingError(f"there are more than {MAX_LISTED} files")
        return Invoked(orjson.dumps(sorted(found)))


async def _closed(file: Any) -> None:
    with suppress(asyncssh.Error, OSError):
        async with asyncio.timeout(CLEANUP_SECONDS):
            await file.close()
