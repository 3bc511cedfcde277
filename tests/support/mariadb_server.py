"""A real MariaDB server of a test's own."""

from __future__ import annotations

import getpass
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.processes import free_port
from tests.support.server import NotInstalledError, Server

__all__ = ["PASSWORD", "MariaDBServer"]

PASSWORD = "p@ss:word/1"


class MariaDBServer(Server):
    """One server."""

    title = "mariadbd"

    def __init__(self, directory: Path, options: Sequence[str] = ()) -> None:
        """Prepare; entering starts it.

        Args:
            directory: An empty directory.
            options: Of its command line.
        """
        super().__init__(directory)
        found = shutil.which("mariadbd"), shutil.which("mariadb-install-db")
        if not all(found):
            raise NotInstalledError("mariadbd is not installed")
        self._server, self._install = (str(each) for each in found)
        self._options = options

    @property
    def url(self) -> str:
        """Where it listens, without a password."""
        return f"mysql://mesh@127.0.0.1:{self.port}/"

    @property
    def connection_string(self) -> str:
        """Where it listens and how to log in."""
        return f"mesh:{PASSWORD}@tcp(127.0.0.1:{self.port})/?allowNativePasswords=true"

    @property
    def data(self) -> Path:
        """Its data."""
        return self.directory / "data"

    def command(self) -> Sequence[str]:
        user = f"--user={getpass.getuser()}"
        users, temporary = self.directory / "users.sql", self.directory / "tmp"
        if not self.data.exists():
            users.write_text(
                f"CREATE USER IF NOT EXISTS 'mesh'@'%' IDENTIFIED BY '{PASSWORD}';\n"
                "GRANT ALL ON *.* TO 'mesh'@'%' WITH GRANT OPTION;\n"
            )
            # Of its own: a server that starts clears away what it takes for its own in a directory that it shares.
            temporary.mkdir()
            options = ("--no-defaults", f"--datadir={self.data}", f"--tmpdir={temporary}", "--skip-test-db")
            if self.run([self._install, *options, "--skip-name-resolve", user]).wait(self.ready_within) != 0:
                raise RuntimeError(f"mariadb-install-db failed: {self.output()}")
            self.port = free_port()  # That took a while, in which another may have got the first one.
        return [
            *(
                self._server,
                "--no-defaults",
                f"--datadir={self.data}",
                f"--tmpdir={temporary}",
                user,
                "--bind-address=127.0.0.1",
            ),
            *(f"--port={self.port}", "--socket=server.sock", "--pid-file=server.pid", f"--init-file={users}"),
            *("--skip-name-resolve", "--skip-networking=OFF", *self._options),
        ]

    def answers(self) -> bool:
        assert self.process is not None
        if (self.data / "server.pid").read_text().strip() != str(self.process.pid):  # Empty until it is written.
            return False
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
            return len(connection.recv(5)) == 5  # The beginning of its greeting.

    def sql(self, statement: str) -> str:
        """Do a statement with MariaDB's own client; give its rows, values by tabs."""
        command = ["mariadb", "--no-defaults", "-h127.0.0.1", f"-P{self.port}", "-umesh", f"-p{PASSWORD}", "-NBe"]
        done = subprocess.run([*command, statement], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout.strip("\n")
