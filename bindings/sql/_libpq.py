"""Connection strings of PostgreSQL, as ``key=value`` pairs or as URLs, with what the Go driver adds to them.

Source: PostgreSQL documentation, libpq, connection strings; pgx v5, pool configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from mesh.values import parse_duration, parse_whole

__all__ = ["ConnectionString", "parse"]

_PAIR = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)*)(?=\s|\Z)", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_OPTION = re.compile(r"(?:-c\s*|--)([A-Za-z_][A-Za-z0-9_.]*)=((?:[^\s\\]|\\.)*)")
_PORT = 5432
# Names that libpq and asyncpg share; asyncpg reads them from a URL.
_TLS = (
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslcrl",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
)
_SESSION_ATTRIBUTES = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")
# They tune what is as good without them here.
_WITHOUT_EFFECT = """
client_encoding description_cache_capacity fallback_application_name gssencmode gsslib keepalives keepalives_count
keepalives_idle keepalives_interval krbsrvname load_balance_hosts max_protocol_version min_protocol_version
min_read_buffer_size pool_health_check_period pool_max_conn_lifetime_jitter pool_min_conns pool_min_idle_conns
sslcompression sslsni tcp_user_timeout
"""
# They ask for something that would silently not be so.
_UNSUPPORTED = """
channel_binding passfile replication require_auth requirepeer service servicefile sslnegotiation
"""
_HARMLESS = {"channel_binding": ("prefer", "disable"), "sslnegotiation": ("postgres",), "replication": ("false",)}
_EXEC_MODES = ("cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol")


@dataclass(frozen=True)
class ConnectionString:
    """What a connection string says.

    Attributes:
        options: Arguments of ``asyncpg.connect``.
        tls: Options that asyncpg reads from a URL.
        max_connections: None = not given.
        max_lifetime: Seconds; None = not given.
        max_idle: Seconds; None = not given.
        exec_mode: How queries run; empty = not given.
    """

    options: Mapping[str, Any] = field(repr=False)
    tls: Mapping[str, str] = field(repr=False)
    max_connections: int | None = None
    max_lifetime: float | None = None
    max_idle: float | None = None
    exec_mode: str = ""

    @property
    def dsn(self) -> str:
        """The URL with the options that asyncpg takes in no other way."""
        return "postgresql://?" + urlencode(self.tls)

    @property
    def place(self) -> str:
        """Where the servers are, for people."""
        hosts, ports = self.options["host"], self.options["port"]
        return ",".join(f"{host}:{port}" for host, port in zip(hosts, ports, strict=True))


def parse(text: str, overrides: Mapping[str, str]) -> ConnectionString:
    """Read a connection string.

    Args:
        text: As people write it; may be empty.
        overrides: What is said besides, by libpq's names.

    Raises:
        ValueError: It is none; the text does not quote it, since it may hold a password.
    """
    given = _url(text) if text.startswith(("postgres://", "postgresql://")) else _pairs(text)
    given |= overrides
    given = {("dbname" if name == "database" else name): value for name, value in given.items()}
    unsupported, without_effect = _UNSUPPORTED.split(), _WITHOUT_EFFECT.split()
    for name, value in given.items():
        if name in unsupported and value not in _HARMLESS.get(name, ()):
            raise ValueError(f"{name} is not supported here; without it the connection would not be what it asks for")
    taken = {name: given.pop(name) for name in list(given) if name not in (*unsupported, *without_effect)}
    hosts, ports = _hosts(taken)
    options: dict[str, Any] = {"host": hosts, "port": ports}
    for name, ours in (("user", "user"), ("password", "password"), ("dbname", "database")):
        if value := taken.pop(name, ""):
            options[ours] = value
    if seconds := taken.pop("connect_timeout", ""):
        options["timeout"] = float(_whole("connect_timeout", seconds)) or None
    if wanted := taken.pop("target_session_attrs", ""):
        if wanted not in _SESSION_ATTRIBUTES:
            raise ValueError(f"target_session_attrs is {' or '.join(_SESSION_ATTRIBUTES)}")
        options["target_session_attrs"] = wanted
    capacity = taken.pop("statement_cache_capacity", "")
    if capacity:
        options["statement_cache_size"] = _whole("statement_cache_capacity", capacity)
    mode = taken.pop("default_query_exec_mode", "")
    if mode and mode not in _EXEC_MODES:
        raise ValueError(f"default_query_exec_mode is {' or '.join(_EXEC_MODES)}")
    connections = taken.pop("pool_max_conns", "")
    lifetime, idle = (_seconds(name, taken.pop(name, "")) for name in _POOL_TIMES)
    tls = {name: taken.pop(name) for name in _TLS if taken.get(name)}
    settings = dict(_OPTION.findall(taken.pop("options", "")))
    # As the Go driver does: what has no other meaning is a parameter of the session.
    options["server_settings"] = {"application_name": "brokermesh", **settings, **taken}
    most = _whole("pool_max_conns", connections, 1) if connections else None
    return ConnectionString(options, tls, most, lifetime, idle, mode)


_POOL_TIMES = ("pool_max_conn_lifetime", "pool_max_conn_idle_time")


def _whole(name: str, text: str, least: int = 0) -> int:
    try:
        return parse_whole(text, least=least)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _seconds(name: str, text: str) -> float | None:
    try:
        return parse_duration(text) if text else None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _pairs(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    at, text = 0, text.strip()
    while at < len(text):
        pair = _PAIR.match(text, at)
        if pair is None:
            raise ValueError(
                "must be a postgres:// URL, or pairs as host=db.internal port=5432 user=shop dbname=shop; a value with "
                "spaces stands in single quotes"
            )
        value = pair[2].removeprefix("'").removesuffix("'") if pair[2].startswith("'") else pair[2]
        found[pair[1].lower()] = _ESCAPED.sub(r"\1", value)
        at = pair.end()
    return found


def _url(text: str) -> dict[str, str]:
    advice = "percent-encode each of / ? # @ : in its user and password"
    try:
        split = urlsplit(text)
    except ValueError:  # Its text may hold a part of the password.
        raise ValueError(f"is no URL; {advice}") from None
    names = [each.partition("=")[0] for each in split.query.split("&")]
    if split.fragment or any("@" in each for each in (split.path, *names)):
        raise ValueError(f"is no URL that names a database; {advice}")
    authority, _, places = split.netloc.rpartition("@")
    user, _, password = authority.partition(":")
    found = {"user": unquote(user), "password": unquote(password), "dbname": unquote(split.path.removeprefix("/"))}
    hosts, ports = [], []
    for place in places.split(",") if places else ():
        matched = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]*))?", place)
        if matched is None:
            raise ValueError("names a host in a form that is none; it is host:port, or [::1]:port")
        hosts.append(unquote(matched[1].strip("[]")))
        ports.append(matched[2] or "")
    found |= {"host": ",".join(hosts), "port": ",".join(ports)}
    found |= {name.lower(): value for name, value in parse_qsl(split.query, keep_blank_values=True)}
    if found.pop("ssl", "") == "true":
        found["sslmode"] = "require"
    return {name: value for name, value in found.items() if value.strip(",")}


def _hosts(taken: dict[str, str]) -> tuple[list[str], list[int]]:
    host, address = taken.pop("host", ""), taken.pop("hostaddr", "")
    hosts = (address or host or "localhost").split(",")
    texts = (taken.pop("port", "") or "").split(",")
    if len(texts) not in (1, len(hosts)):
        raise ValueError("must name one port, or one for each host")
    ports = [_whole("port", text, 1) if text else _PORT for text in texts]
    if any(port > 65535 for port in ports):
        raise ValueError("port is at most 65535")
    return hosts, ports * len(hosts) if len(ports) == 1 else ports
