"""Connection strings of MySQL as the Go driver reads them: ``user:password@tcp(host:3306)/database?option=value``.

Source: go-sql-driver/mysql, documentation of the data source name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from mesh.values import parse_bool, parse_duration, parse_whole

__all__ = ["DataSource", "parse"]

_ADDRESS = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]+))?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DATABASE = re.compile(r"[A-Za-z0-9_$-]{1,64}")
_PORT = 3306
_TLS = ("true", "false", "skip-verify", "preferred", "custom")
# They tune the Go driver, or are as they say here in any case.
_WITHOUT_EFFECT = """
allowfallbacktoplaintext allownativepasswords charset checkconnliveness clientfoundrows collation columnswithalias
compress connectionattributes interpolateparams loc maxallowedpacket parsetime rejectreadonly timetruncate
"""
_REFUSED = {
    "allowallfiles": "files of this machine are never sent",
    "allowcleartextpasswords": "a password is never sent in clear text",
    "allowoldpasswords": "such passwords are not safe",
    "multistatements": "statements are sent one by one",
    "serverpubkey": "the server's key is asked for",
}


@dataclass(frozen=True)
class DataSource:
    """What a connection string says.

    Attributes:
        user: Empty = none.
        password: Empty = none.
        host: Of TCP.
        port: Of TCP.
        socket: Path of a Unix socket; empty = TCP.
        database: Empty = not given.
        tls: ``false``, ``true``, ``skip-verify``, ``preferred`` or ``custom``.
        connect_timeout: Seconds; None = not given.
        variables: Of the session, by name, as SQL.
        several: Whether a text may hold several statements.
    """

    user: str
    password: str = field(repr=False)
    host: str
    port: int
    socket: str
    database: str
    tls: str
    connect_timeout: float | None
    variables: Mapping[str, str]
    several: bool = False

    @property
    def place(self) -> str:
        """Where the server is, for people."""
        return self.socket or f"{self.host}:{self.port}"


def parse(text: str, *, statements: bool = False) -> DataSource:
    """Read a connection string.

    Args:
        text: As people write it.
        statements: Whether ``multiStatements`` may be asked for.

    Raises:
        ValueError: It is none; the text does not quote it, since it may hold a password.
    """
    head, slash, tail = text.rpartition("/")
    if "?" in head:  # A value of an option may hold slashes.
        before, _, query = text.partition("?")
        head, slash, tail = before.rpartition("/")
        tail += "?" + query
    if not slash:
        raise ValueError("must be user:password@tcp(host:3306)/, with the slash")
    database, _, query = tail.partition("?")
    database = unquote(database)
    if database and not _DATABASE.fullmatch(database):
        raise ValueError("names a database with other characters than letters, digits, '_', '-' and '$'")
    login, _, place = head.rpartition("@")
    user, _, password = login.partition(":")
    socket, host, port = _place(place)
    tls, timeout, variables, several = "false", None, {}, False
    for name, value in parse_qsl(query, keep_blank_values=True):
        folded = name.lower()
        if folded == "tls":
            tls = _tls(value)
        elif folded == "timeout":
            timeout = parse_duration(value)
        elif statements and folded == "multistatements":
            several = parse_bool(value)
        elif folded in ("readtimeout", "writetimeout"):
            parse_duration(value)  # The setting timeoutInSeconds and the deadline of a request bound both.
        elif folded in _REFUSED:
            if folded == "serverpubkey" or parse_bool(value):
                raise ValueError(f"{name} is not supported: {_REFUSED[folded]}")
        elif folded not in _WITHOUT_EFFECT.split():
            if not _NAME.fullmatch(name):
                raise ValueError("has an option whose name is none")
            variables[name] = value
    return DataSource(user, password, host, port, socket, database, tls, timeout, variables, several)


def _tls(value: str) -> str:
    if value.lower() in ("1", "true", "t"):
        return "true"
    if value.lower() in ("0", "false", "f", ""):
        return "false"
    if value.lower() not in _TLS:
        raise ValueError(f"tls is {', '.join(_TLS[:-1])} or {_TLS[-1]}")
    return value.lower()


def _place(text: str) -> tuple[str, str, int]:
    protocol, _, address = text.partition("(")
    address = address.removesuffix(")")
    if protocol == "unix":
        return address or "/tmp/mysql.sock", "localhost", _PORT  # noqa: S108 - as MySQL itself
    if protocol not in ("", "tcp", "tcp4", "tcp6"):
        raise ValueError("must name tcp(host:port) or unix(/path)")
    matched = _ADDRESS.fullmatch(address)
    if matched is None:
        raise ValueError("names a host in a form that is none; it is tcp(host:3306), or tcp([::1]:3306)")
    port = parse_whole(matched[2], least=1, most=65535) if matched[2] else _PORT
    return "", matched[1].strip("[]") or "127.0.0.1", port
