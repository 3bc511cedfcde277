"""Databases behind TLS: the server's certificate is checked as the connection string says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mesh.errors import StateError
from mesh.registry import Registry
from mesh.store import Item
from tests.support.certificates import Authority, Certificate
from tests.support.mariadb_server import MariaDBServer
from tests.support.nodes import component
from tests.support.postgresql_server import PostgreSQLServer


def _authority(tmp_path: Path) -> tuple[Path, Path, Certificate]:
    """Give a certificate that signed the server's, one that did not, and the server's, of another name than it has."""
    own = Authority(tmp_path / "own")
    return own.path, Authority(tmp_path / "other", "Other CA").path, own.issue("db", "DNS:db.internal")


async def _use(kind: str, **settings: str) -> None:
    made = Registry().load(kind).from_component(component("store", kind, **settings))  # type: ignore[attr-defined]
    async with made as store:
        await store.write([Item("k", b"1")])


async def test_postgresql(tmp_path: Path) -> None:
    """By sslmode, with the certificates of sslrootcert or of the setting sslRootCert."""
    authority, other, issued = _authority(tmp_path)
    server = PostgreSQLServer(tmp_path / "server")
    for path, name in ((issued.certificate, "server.crt"), (issued.key, "server.key")):
        copied = Path(shutil.copy(path, server.directory / name))
        copied.chmod(0o600)
        server.own(copied)
    server.options = ("-c", "ssl=on", "-c", "ssl_cert_file=../server.crt", "-c", "ssl_key_file=../server.key")
    async with server:
        text = server.connection_string.replace("sslmode=disable", "")
        for mode in ("require", "prefer", "allow", f"verify-ca sslrootcert={authority}"):
            await _use("state.postgresql", connectionString=f"{text} sslmode={mode}")
        await _use("state.postgresql", connectionString=f"{text} sslmode=verify-ca", sslRootCert=str(authority))
        for mode in (f"verify-ca sslrootcert={other}", f"verify-full sslrootcert={authority}"):
            with pytest.raises(StateError, match="certificate verify failed"):
                await _use("state.postgresql", connectionString=f"{text} sslmode={mode}")


async def test_mysql(tmp_path: Path) -> None:
    """By the option tls, with the certificates of pemPath."""
    authority, other, issued = _authority(tmp_path)
    options = (f"--ssl-cert={issued.certificate}", f"--ssl-key={issued.key}", "--require-secure-transport=ON")
    async with MariaDBServer(tmp_path / "server", options) as server:
        text = server.connection_string
        for tls in ("skip-verify", "preferred"):
            await _use("state.mysql", connectionString=f"{text}&tls={tls}")
        for pem, reason in ((authority, "(?i)hostname|ip address"), (other, "(?i)verify failed")):
            with pytest.raises(StateError, match=reason):
                await _use("state.mysql", connectionString=f"{text}&tls=custom", pemPath=str(pem))
        with pytest.raises(StateError, match="pemPath"):
            await _use("state.mysql", connectionString=f"{text}&tls=custom", pemPath="/nowhere")
        with pytest.raises(StateError, match="cannot connect"):
            await _use("state.mysql", connectionString=f"{text}&tls=false")
