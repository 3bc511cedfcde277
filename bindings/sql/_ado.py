"""Connection strings of SQL Server: ``Server=…;Database=…`` pairs as of ADO.NET, or ``sqlserver://`` URLs.

Source: go-mssqldb, documentation of the connection string; Microsoft ODBC Driver for SQL Server, keywords.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from mesh.values import parse_whole

__all__ = ["SQLServer", "parse"]

_PAIR = re.compile(r"\s*([^=;]+?)\s*=\s*(\"(?:[^\"]|\"\")*\"|'(?:[^']|'')*'|[^;]*?)\s*(?:;|\Z)")
_NAMES = {
    "addr": "server",
    "address": "server",
    "app name": "app",
    "application name": "app",
    "connect timeout": "timeout",
    "connection timeout": "timeout",
    "data source": "server",
    "database": "database",
    "dial timeout": "timeout",
    "encrypt": "encrypt",
    "initial catalog": "database",
    "network address": "server",
    "password": "password",
    "port": "port",
    "pwd": "password",
    "server": "server",
    "trust server certificate": "trust",
    "trustservercertificate": "trust",
    "uid": "user",
    "user": "user",
    "user id": "user",
}
_ENCRYPT = {
    "": "yes",
    "true": "yes",
    "mandatory": "yes",
    "yes": "yes",
    "1": "yes",
    "strict": "strict",
    "false": "no",
    "optional": "no",
    "no": "no",
    "0": "no",
    "disable": "no",
}


# They are named when they are given; any other part may be a piece of a password with a semicolon in it.
_UNSUPPORTED = (
    "applicationintent",
    "authentication",
    "authenticator",
    "certificate",
    "failover partner",
    "failoverpartner",
    "fedauth",
    "hostnameincertificate",
    "integrated security",
    "multisubnetfailover",
    "servercertificate",
    "trusted_connection",
)
_PASSWORD_IN_URL = "percent-encode each of / ? # @ : in its user and password"


@dataclass(frozen=True)
class SQLServer:
    """What a connection string says.

    Attributes:
        server: Host, perhaps with an instance or a port.
        database: Empty = not given.
        user: Empty = none.
        password: Empty = none.
        encrypt: ``yes``, ``no`` or ``strict``.
        trust: Whether the server's certificate is not checked.
        app: Its name for the server.
        timeout: Seconds to connect; None = not given.
    """

    server: str
    database: str
    user: str
    password: str = field(repr=False)
    encrypt: str
    trust: bool
    app: str
    timeout: int | None

    @property
    def odbc(self) -> str:
        """The connection string of Microsoft's ODBC driver, without a database."""
        said = {
            "SERVER": self.server,
            "UID": self.user,
            "PWD": self.password,
            "Encrypt": self.encrypt,
            "TrustServerCertificate": "yes" if self.trust else "no",
            "APP": self.app,
        }
        pairs = (f"{name}={{{value.replace('}', '}}')}}}" for name, value in said.items() if value)
        return ";".join(("DRIVER={ODBC Driver 18 for SQL Server}", *pairs))


def parse(text: str) -> SQLServer:
    """Read a connection string.

    Raises:
        ValueError: It is none; the text does not quote it, since it may hold a password.
    """
    given = _url(text) if text.startswith("sqlserver://") else _pairs(text)
    said: dict[str, str] = {}
    for name, value in given.items():
        known = _NAMES.get(name)
        if known is None:
            which = f"the part {name!r}" if name in _UNSUPPORTED else "a part"
            raise ValueError(f"has {which}, which is not supported; a password with a ';' stands in double quotes")
        said[known] = value
    encrypt = _ENCRYPT.get(said.get("encrypt", "").lower())
    if encrypt is None:
        raise ValueError("encrypt is true, false or strict")
    if not said.get("server"):
        raise ValueError("must name a server, as Server=db;User Id=shop;Password=…;Database=shop")
    server = said["server"].replace("(local)", "localhost")
    if said.get("port"):
        server = f"{server},{_whole('port', said['port'], 1, 65535)}"
    return SQLServer(
        server,
        said.get("database", ""),
        said.get("user", ""),
        said.get("password", ""),
        encrypt,
        said.get("trust", "").lower() in ("true", "yes", "1"),
        said.get("app", "brokermesh"),
        _whole("timeout", said["timeout"]) if said.get("timeout") else None,
    )


def _whole(name: str, text: str, least: int = 0, most: int | None = None) -> int:
    try:
        return parse_whole(text, least=least, most=most)
    except ValueError:
        raise ValueError(f"{name} is no whole number, or too large") from None


def _pairs(text: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    at = 0
    while at < len(text.rstrip("; \n")):
        pair = _PAIR.match(text, at)
        if pair is None:
            raise ValueError("must be a sqlserver:// URL, or pairs as Server=db;User Id=shop;Password=…;Database=shop")
        value = pair[2]
        if value[:1] in ("'", '"') and len(value) > 1:
            value = value[1:-1].replace(value[0] * 2, value[0])
        found[pair[1].lower()] = value
        at = pair.end()
    return found


def _url(text: str) -> Mapping[str, str]:
    try:
        split = urlsplit(text)
        port = split.port
    except ValueError:  # Its text may hold a part of the password.
        raise ValueError(f"is no URL; {_PASSWORD_IN_URL}") from None
    names = [each.partition("=")[0] for each in split.query.split("&")]
    if split.fragment or any("@" in each for each in (split.path, *names)):
        raise ValueError(f"is no URL that names a server; {_PASSWORD_IN_URL}")
    instance = unquote(split.path.strip("/"))
    found = {
        "server": (split.hostname or "") + (f"\\{instance}" if instance else ""),
        "user": unquote(split.username or ""),
        "password": unquote(split.password or ""),
        "port": str(port) if port else "",
    }
    return found | {name.lower(): value for name, value in parse_qsl(split.query)}
