"""A real PostgreSQL server of a test's own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.processes import free_port
from tests.support.server import NotInstalledError, Server

__all__ = ["PASSWORD", "PostgreSQLServer"]

PASSWORD = "p@ss'word/1"


def _find(program: str) -> str | None:
    """Give the path of a program; Debian keeps them out of the path."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return str(installed[-1]) if installed else shutil.which(program)


class PostgreSQLServer(Server):
    """One server; it refuses to be root's, so that root's tests run it as another user in a folder of that one's."""

    title = "postgres"

    def __init__(self, directory: Path, options: Sequence[str] = ()) -> None:
        """Prepare; entering starts it.

        Args:
            directory: An empty directory.
            options: Of its command line.
        """
        found = _find("postgres"), _find("initdb")
        if not all(found):
            raise NotInstalledError("postgres is not installed")
        self._postgres, self._initdb = (str(each) for each in found)
        self._as: list[str] = []
        self._user: pwd.struct_passwd | None = None
        self.options = options
        if os.geteuid() == 0:
            self._user = user = pwd.getpwnam("postgres")
            directory = Path(tempfile.mkdtemp(prefix="mesh-postgresql-"))
            self.own(directory)
            self._as = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"]
        super().__init__(directory)

    @property
    def url(self) -> str:
        """Where it listens, without a password."""
        return f"postgres://mesh@127.0.0.1:{self.port}/postgres"

    @property
    def connection_string(self) -> str:
        """Where it listens and how to log in, as pairs."""
        password = PASSWORD.replace("'", "\\'")
        return f"host=127.0.0.1 port={self.port} user=mesh password='{password}' dbname=postgres sslmode=disable"

    @property
    def data(self) -> Path:
        """Its data."""
        return self.directory / "data"

    def own(self, path: Path) -> None:
        """Let it have a file or a folder of its user's."""
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def command(self) -> Sequence[str]:
        if not self.data.exists():
            secret = self.directory / "password"
            secret.write_text(PASSWORD)
            secret.chmod(0o644)
            made = self.run(
                [
                    *(*self._as, self._initdb, "--pgdata", str(self.data), "--username=mesh", "--encoding=UTF8"),
                    *("--locale=C.UTF-8", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync"),
                ]
            )
            if made.wait(self.ready_within) != 0:
                raise RuntimeError(f"initdb failed: {self.output()}")
            self.port = free_port()  # That took a while, in which another may have got the first one.
        listens = ["-h", "127.0.0.1", "-p", str(self.port), "-c", "unix_socket_directories="]
        return [*self._as, self._postgres, "-D", str(self.data), *listens, *self.options]

    def answers(self) -> bool:
        assert self.process is not None
        lines = (self.data / "postmaster.pid").read_text().splitlines()
        return len(lines) > 7 and lines[0] == str(self.process.pid) and lines[7].strip() == "ready"

    async def close(self) -> None:
        await super().close()
        if self._as:
            shutil.rmtree(self.directory, ignore_errors=True)

    def psql(self, statement: str) -> str:
        """Do a statement with PostgreSQL's own client; give its rows, values by tabs."""
        command = ["psql", "-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-d", self.url, "-c", statement]
        done = subprocess.run(command, env=os.environ | {"PGPASSWORD": PASSWORD}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout.strip("\n")
