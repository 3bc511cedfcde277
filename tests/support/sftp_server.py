"""A server of a test's own that speaks SFTP: AsyncSSH's. As a program it serves a folder on a port."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import asyncssh

from tests.support.processes import ROOT
from tests.support.server import Server

__all__ = ["SFTPServer"]

PASSWORD = "sftp-s3cret"


class SFTPServer(Server):
    """AsyncSSH's server; it lets in by a password and by a key, and shows one folder.

    Attributes:
        folder: What is the root for its clients.
        settings: Of a component that uses its folder ``uploads``.
    """

    title = "AsyncSSH's server"

    def __init__(self, directory: Path) -> None:
        """Prepare; entering starts it."""
        super().__init__(directory)
        self.folder = directory / "served"
        (self.folder / "uploads").mkdir(parents=True)
        host, self._user = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
        host.write_private_key(directory / "host")
        self._user.write_public_key(directory / "users")
        self.host_key = host.export_public_key().decode()
        self.settings = {
            "rootPath": "/uploads",
            "address": f"127.0.0.1:{self.port}",
            "username": "shop",
            "password": PASSWORD,
            "hostPublicKey": self.host_key,
        }

    def user_key(self) -> str:
        """Give the key of a user, encrypted: which takes a while."""
        return self._user.export_private_key(passphrase="pass", rounds=50).decode()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        """Give its command line."""
        return (sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{_PROGRAM}", str(self.port))

    def answers(self) -> bool:
        """Ask whether it listens."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
            return connection.recv(4) == b"SSH-"


_PROGRAM = "from tests.support.sftp_server import serve; serve()"


class _Login(asyncssh.SSHServer):
    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == ("shop", PASSWORD)


def serve() -> None:
    """Serve until it is ended."""

    async def run() -> None:
        await asyncssh.listen(
            "127.0.0.1",
            int(sys.argv[1]),
            server_factory=_Login,
            server_host_keys=["host"],
            authorized_client_keys="users",
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=b"served"),
        )
        await asyncio.Event().wait()

    asyncio.run(run())
