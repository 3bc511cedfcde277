"""Where a cluster's API server is and who asks it: as a pod is told, or as a kubeconfig file says.

Source: the Kubernetes documentation, "Accessing the Kubernetes API from a Pod" and "Organizing Cluster Access Using
kubeconfig Files".
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

__all__ = ["Access", "find_access", "in_cluster", "kubeconfig"]

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
DEFAULT_PATH = ".kube/config"
_PLUGINS = {"exec": "a program that gives credentials", "auth-provider": "an auth provider"}


@dataclass(frozen=True, slots=True)
class Access:
    """An API server and who asks.

    Attributes:
        server: Its URL, without a slash at the end.
        authority: Certificates that it is trusted by, in PEM; None = the system's.
        verify: Whether its certificate is looked at.
        server_name: The name in its certificate, if that is another than its host.
        certificate: The client's, in PEM, and its key.
        token: The client's.
        token_file: Where the token is, which may be replaced there.
        login: Of the client: name and password.
    """

    server: str
    authority: str | None = None
    verify: bool = True
    server_name: str | None = None
    certificate: tuple[str, str] | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    login: tuple[str, str] | None = field(default=None, repr=False)

    def tls(self) -> ssl.SSLContext | None:
        """Make what a connection is secured with; blocks. None for a server without TLS.

        Raises:
            ValueError: A certificate or a key is none.
        """
        if not self.server.startswith("https:"):
            return None
        try:
            context = ssl.create_default_context(cadata=self.authority)
            if not self.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if self.certificate is not None:
                with tempfile.TemporaryDirectory() as directory:  # Only files can be loaded.
                    chain, key = (Path(directory) / name for name in ("chain", "key"))
                    chain.write_text(self.certificate[0])
                    key.write_text(self.certificate[1])
                    context.load_cert_chain(chain, key)
        except ssl.SSLError as error:
            raise ValueError(f"a certificate or a key of {self.server} cannot be read: {error.reason}") from None
        return context


def find_access(path: str | None, environ: Mapping[str, str]) -> Access:
    """Find how to reach the cluster: by a file that is named, as a pod, or by the user's own file; blocks.

    Raises:
        ValueError: Nothing says how, or not in a way that is known here.
        OSError: A file cannot be read.
    """
    if path is None and "KUBERNETES_SERVICE_HOST" in environ:
        return in_cluster(environ, SERVICE_ACCOUNT)
    named = path or environ.get("KUBECONFIG", "").partition(os.pathsep)[0]
    file = Path(named).expanduser() if named else Path.home() / DEFAULT_PATH
    if not named and not file.exists():
        raise ValueError(f"no cluster is known: this is no pod, and there is neither KUBECONFIG nor ~/{DEFAULT_PATH}")
    try:
        return kubeconfig(file.read_text(), file.parent)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def in_cluster(environ: Mapping[str, str], account: Path) -> Access:
    """Read what a pod is told; raises ``OSError`` when its service account is not there."""
    host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
    authority = (account / "ca.crt").read_text()
    return Access(f"https://{f'[{host}]' if ':' in host else host}:{port}", authority, token_file=account / "token")


def kubeconfig(text: str, directory: Path) -> Access:
    """Read the current context of a file.

    Args:
        text: Of the file.
        directory: What its paths are relative to.

    Raises:
        ValueError: It is none, or asks for something that there is not here.
        OSError: A file that it names cannot be read.
    """
    import yaml  # Only who has such a file waits for it.

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError("is no YAML") from None
    current = document.get("current-context") if isinstance(document, dict) else None
    context = _named(document, "contexts", "context", current)
    cluster = _named(document, "clusters", "cluster", context.get("cluster"))
    user = _named(document, "users", "user", context.get("user")) if context.get("user") else {}
    for name, what in _PLUGINS.items():
        if user.get(name):
            raise ValueError(f"{what} ({name}) is not supported; use a token or a client certificate")
    server = _text(cluster, "server")
    if not server:
        raise ValueError("the cluster has no server")
    chain, key = (_pem(user, name, directory) for name in ("client-certificate", "client-key"))
    token, token_file, login = (_text(user, each) for each in ("token", "tokenFile", "username"))
    return Access(
        server.rstrip("/"),
        _pem(cluster, "certificate-authority", directory),
        cluster.get("insecure-skip-tls-verify") is not True,
        _text(cluster, "tls-server-name"),
        (chain, key) if chain and key else None,
        token,
        directory / token_file if token_file and not token else None,
        (login, _text(user, "password") or "") if login else None,
    )


def _named(document: object, many: str, one: str, name: object) -> Mapping[str, object]:
    listed = document.get(many) if isinstance(document, dict) else None
    for each in listed if isinstance(listed, list) else ():
        if isinstance(each, dict) and each.get("name") == name and isinstance(each.get(one), dict):
            return cast("Mapping[str, object]", each[one])
    raise ValueError(f"there is no {one} {name!r} in it")


def _text(members: Mapping[str, object], name: str) -> str | None:
    value = members.get(name)
    return value if isinstance(value, str) and value else None


def _pem(members: Mapping[str, object], name: str, directory: Path) -> str | None:
    data, path = _text(members, f"{name}-data"), _text(members, name)
    try:
        if data is not None:
            return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise ValueError(f"{name}-data is no base64 of a text") from None
    return (directory / path).read_text() if path is not None else None
