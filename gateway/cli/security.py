"""``mesh check --security``: what is open in resources and templates, how bad that is, and what to do next.

Only what is known for sure is told: a setting that a secret or a variable will fill is not open, and neither is what
stays on this machine. Nothing is connected to; of files that are referred to, the permissions are looked at.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gateway.cli.configure import trust_by
from mesh.errors import Problem
from mesh.host import is_secret_name
from mesh.registry import Registry
from mesh.resources.component import EnvRef, SecretRef
from mesh.resources.settings import declared_by
from mesh.trust.identity import TrustSettings, is_open
from mesh.urls import is_local, without_credentials

if TYPE_CHECKING:
    from gateway.cli.findings import Findings
    from gateway.config import GatewayConfig
    from mesh.resources.component import Component, HTTPEndpoint, MetadataEntry
    from mesh.resources.configuration import Configuration

__all__ = ["SEVERITIES", "Opening", "Severity", "look"]

Severity = Literal["high", "medium", "low"]
SEVERITIES: tuple[Severity, ...] = ("high", "medium", "low")
MAX_KEY_FILES = 1000

_ENCRYPTED = {"nats": "tls", "redis": "rediss", "amqp": "amqps", "kafka": "kafkas", "mqtt": "mqtts", "http": "https"}
_ENCRYPTED |= {"ws": "wss", "tcp": "ssl"}
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#\s,]*)", re.IGNORECASE)
_UNVERIFIED = re.compile(r"(insecure|skip).*(verify|tls|ssl)|verify.*skip|allowinsecure|disabletls|disablessl")
_KEY_FILE = re.compile(r"secretsfile$|(key|secret|credentials?|token|password)s?(file|path)$")
_ADDRESS = re.compile(r"connectionstring|ur[li]$|dsn|endpoint|host|server")  # A secret in it is a part of it.
_PASSWORD = re.compile(
    r"(password|passwd|pwd|accountkey|sharedaccesskey|sharedaccesssignature)\s*=\s*[^;&\s]", re.IGNORECASE
)
# As the adapter reads it: the last '@' ends the login, and the last '/' before the options ends the place.
_MYSQL = re.compile(
    r"(?:[^:]*?(?P<password>:.+)?@)?(?:(?:tcp[46]?)?(?:\((?P<host>[^)]*)\))?|unix(?:\([^)]*\))?)/"
    r"(?P<options>[^/?]*(?:\?.*)?)"
)
# Settings with servers, and those that switch TLS on, without which nothing is encrypted; none = there is no TLS.
_PLAIN_UNLESS = {
    "cassandra": ("hosts", "enableHostVerification", "enableHostVerification: true"),
    "etcd": ("endpoints", "tlsEnable", "tlsEnable: true"),
    "memcached": ("hosts", "", "a tunnel, or a server on this machine: memcached is spoken to without TLS"),
    "rabbitmq": ("hostname", "", "protocol: amqps"),
}
_PAIR = re.compile(r"(\w+)=([^\s;&?]+)")
_AUTHORIZATION = re.compile(r"authorization|cookie|token|api-?key|secret|password", re.IGNORECASE)
_YES = frozenset({"true", "1", "yes", "y", "t", "on"})
_BY_REFERENCE = (
    "put it into a secret store and refer to it by secretKeyRef, or into a variable and refer to it by envRef"
)


@dataclass(frozen=True, slots=True)
class Opening:
    """Something that is open.

    Attributes:
        severity: How bad it is.
        code: Of its kind, for programs.
        problem: What it is, and where.
        next: What to do.
    """

    severity: Severity
    code: str
    problem: Problem
    next: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.problem} [{self.code}]\n  next: {self.next}"


def look(read: Findings, environ: Mapping[str, str]) -> list[Opening]:
    """Find what is open, the worst first.

    Args:
        read: What was read of files.
        environ: Of whoever asks: where the backbone is that gateways would use.
    """
    registry = Registry()
    trusts: list[tuple[str | None, TrustSettings]] = [
        (file, config.trust) for file, config in read.apps if config.trust is not None
    ]
    if (trust := trust_by(environ)) is not None:
        trusts.append((None, trust))
    modes = {trust.mode for _, trust in trusts}
    found = [
        *_backbone(environ.get("MESH_BACKBONE", ""), None, "MESH_BACKBONE"),
        *(each for file, config in read.apps for each in _gateway(file, config)),
        *(each for told in read.environments for each in _environment(*told)),
        *(each for file, trust in trusts for each in _trust(file, trust)),
        *(_stored(file, read.components) for file, trust in trusts if trust.seal),
        *(each for component in read.components for each in _component(component, registry)),
        *(each for endpoint in read.endpoints for each in _endpoint(endpoint)),
        *(each for configuration in read.configurations for each in _configuration(configuration, modes)),
        *_workflows(read, modes),
    ]
    return sorted(dict.fromkeys(found), key=lambda each: SEVERITIES.index(each.severity))


def _backbone(url: str, file: str | None, named: str) -> Iterator[Opening]:
    for scheme, host in _plain(url):
        text = (
            f"{named}: {without_credentials(url)}: all that the mesh does crosses the network to {host} in plain text"
        )
        yield Opening(
            "high",
            "plain-broker",
            Problem(text, "", file),
            f"{_ENCRYPTED[scheme]}:// in MESH_BACKBONE, and TLS on the broker",
        )
        return


def _gateway(file: str, config: GatewayConfig) -> Iterator[Opening]:
    yield from _backbone(config.backbone, file, f"application {config.app_id}")
    beyond = [host for host in config.listen if not is_local(host)]
    if beyond and config.unix_socket_dir is None and not config.tokens.guarded:
        text = f"application {config.app_id}: its gateway listens on {' and '.join(beyond)}, and asks for no token"
        yield Opening(
            "high",
            "open-listener",
            Problem(text, "", file),
            "set DAPR_API_TOKEN or DAPR_API_TOKEN_FILE, or listen on 127.0.0.1",
        )
    if "*" in config.allowed_origins:
        text = f"application {config.app_id}: any web page may use its gateway (allowed origins: *)"
        yield Opening("medium", "cors-any", Problem(text, "", file), "name the origins of your own pages")


def _trust(file: str | None, trust: TrustSettings) -> Iterator[Opening]:
    if trust.mode == "permissive":
        text = "the trust mode is permissive: who does not prove its name is taken at its word, but for policies"
        text += ", and is sent calls in the open" if trust.seal else ""
        yield Opening(
            "medium", "permissive-trust", Problem(text, "", file), "strict, once all gateways have identities"
        )
    if trust.seal and not trust.hosts:
        text = (
            "calls are sealed, and any node of the namespace may say to be a component's host, and reads what is asked"
        )
        yield Opening("medium", "any-host", Problem(text, "", file), "name the hosts by --trust-hosts")
    for path in trust.open_keys():
        text = f"other users of this machine can read or replace {path}: whoever has it is who it says"
        yield Opening("high", "readable-key", Problem(text, "", file), f"chmod 600 {path}")


def _stored(file: str | None, components: Sequence[Component]) -> Opening:
    """Say what lies on brokers in the open where calls are sealed."""
    names = sorted({each.name for each in components if each.type.startswith("pubsub.")})
    what = f"events of {', '.join(names)}, durable calls" if names else "published events, durable calls"
    text = f"calls are sealed, and what is stored is not: who reads the broker reads {what} and their outcomes"
    return Opening(
        "low", "stored-open", Problem(text, "", file), "encrypt in applications what is secret (docs/crypto.md)"
    )


def _component(component: Component, registry: Registry) -> Iterator[Opening]:
    adapter = None if registry.find(component.type) is None else _loaded(registry, component.type)
    secret = {name.casefold() for each in declared_by(adapter) or () if each.secret for name in each.names}
    holds = False
    for entry in component.metadata:
        name = entry.name.casefold()
        if isinstance(entry.value, SecretRef):
            holds = True
        elif not isinstance(entry.value, EnvRef) and (text := entry.text()):

            def at(message: str, entry: MetadataEntry = entry) -> Problem:
                return component.problem(message, setting=entry.name)

            whole = is_secret_name(name) or (name in secret and not _ADDRESS.search(name))
            if whole or _logins(text) or _PASSWORD.search(text) or _mysql(component, text)[0]:
                holds = True
                what = f"{entry.name} is in the file" if whole else f"{entry.name} has a password in it"
                yield Opening("high", "plain-secret" if whole else "password-in-url", at(what), _BY_REFERENCE)
            yield from _setting(component, name, text, at)
    if holds and not component.scopes:
        text = f"component {component.name} has a secret, and any application may use it"
        yield Opening("low", "no-scopes", component.problem(text), "name the applications that need it in scopes")


def _loaded(registry: Registry, kind: str) -> type | None:
    try:
        return registry.load(kind)
    except Exception:  # noqa: BLE001 - its driver is not installed here; names tell the rest
        return None


def _setting(component: Component, name: str, text: str, at: Callable[[str], Problem]) -> Iterator[Opening]:
    if _UNVERIFIED.search(name) and text.casefold() in _YES:
        told = "who answers is not verified" if "tls" not in name[-3:] else "the connection is not encrypted"
        yield Opening(
            "high", "no-verification", at(f"{told}"), "leave it out, and name the authority's certificate instead"
        )
    for scheme, host in _plain(text):
        told = f"what is sent to {host} crosses the network in plain text"
        yield Opening("medium", "plain-connection", at(told), f"{_ENCRYPTED[scheme]}://, and TLS on that server")
        break
    pairs = dict(_PAIR.findall(text))
    where = pairs.get("host") or next(_hosts_of(text), "")
    if pairs.get("sslmode") == "disable" and (host := _remote(where)):
        told = f"what is sent to {host} crosses the network in plain text"
        yield Opening("medium", "plain-connection", at(told), "sslmode=verify-full, and TLS on that server")
    if host := _mysql(component, text)[1]:
        told = f"what is sent to {host} crosses the network in plain text"
        yield Opening("medium", "plain-connection", at(told), "tls=true behind a '?', and TLS on that server")
    setting, switch, advice = _PLAIN_UNLESS.get(component.type.rpartition(".")[2], ("", "", ""))
    secure = bool(switch) and _is_on(component, switch)
    secure = secure or ((entry := component.entry("protocol")) is not None and entry.text() in (None, "amqps"))
    if name == setting and not secure and "://" not in text and (host := _remote(text)):
        told = f"what is sent to {host} crosses the network in plain text"
        yield Opening("medium", "plain-connection", at(told), advice)
    if name == "redishost" and not _is_on(component, "enableTLS") and (host := _remote(text)):
        told = f"what is sent to {host} crosses the network in plain text"
        yield Opening("medium", "plain-connection", at(told), "enableTLS: true, and TLS on that server")
    if name == "brokers" and _kafka_is_plain(component) and (host := _remote(text)):
        told = f"what is sent to {host} crosses the network in plain text"
        yield Opening(
            "medium", "plain-connection", at(told), "an authType, which goes over TLS unless disableTls says no"
        )
    for path in _key_files(component, name, text):
        yield Opening("medium", "readable-file", at(f"everybody on this machine can read {path}"), f"chmod 600 {path}")


def _mysql(component: Component, text: str) -> tuple[bool, str]:
    """Read an address of MySQL: whether a password is in it, and which other machine it leads to without TLS."""
    found = _MYSQL.fullmatch(text) if component.type.endswith(".mysql") else None
    if found is None:
        return False, ""
    tls = dict(_PAIR.findall(found["options"].casefold())).get("tls", "false")
    plain = tls in ("false", "f", "0") and component.entry("pemPath") is None
    return bool(found["password"]), _remote(found["host"] or "") if plain else ""


def _hosts_of(text: str) -> Iterator[str]:
    """Give the hosts of a URL that are not this machine."""
    yield from filter(None, (_remote(place.rpartition("@")[2]) for _, place in _URL.findall(text)))


def _environment(file: str, app_id: str, environment: Mapping[str, str]) -> Iterator[Opening]:
    """Find what the environment of a template's application tells everybody who can read the file."""
    for name, text in environment.items():
        if text and is_secret_name(name.replace("_", "")):
            problem = Problem(f"application {app_id}: {name} is in the file", "", file)
            yield Opening("high", "plain-secret", problem, f"leave it out, and set {name} where mesh run is started")


def _key_files(component: Component, name: str, text: str) -> Iterator[Path]:
    path = Path(text)
    if _KEY_FILE.search(name):
        files: Iterable[Path] = [path]
    elif component.type == "crypto.dapr.localstorage" and name == "path" and path.is_dir():
        files = sorted(path.iterdir())[:MAX_KEY_FILES]
    else:
        return
    for file in files:
        if is_open(file, stat.S_IROTH):
            yield file


def _endpoint(endpoint: HTTPEndpoint) -> Iterator[Opening]:
    for scheme, host in _plain(endpoint.base_url):
        problem = Problem(f"HTTPEndpoint {endpoint.name}: what is sent to {host} crosses the network in plain text")
        where = Problem(problem.message, "spec.baseUrl", endpoint.file, endpoint.line)
        yield Opening("medium", "plain-connection", where, f"{_ENCRYPTED[scheme]}:// in baseUrl")
    for entry in endpoint.headers:
        if _AUTHORIZATION.search(entry.name) and not isinstance(entry.value, SecretRef | EnvRef) and entry.text():
            where = Problem(f"{entry.name} is in the file", entry.path, endpoint.file, entry.line, entry.column)
            yield Opening("high", "plain-secret", where, _BY_REFERENCE)


def _configuration(configuration: Configuration, modes: Set[str]) -> Iterator[Opening]:
    def at(message: str, path: str) -> Problem:
        return Problem(message, path, configuration.file, configuration.line)

    yield from _tracing(configuration, at)
    access = configuration.spec.access_control
    allows = access is not None and access.default_action == "allow"
    if access is not None and access.policies and "strict" not in modes and (allows or not modes):
        told = "its policies are about callers whose identity is proven, and none is asked to be: everybody "
        told += "may call" if allows else "is denied"
        advice = "identities (docs/trust.md)" + (", or defaultAction: deny" if allows else "")
        yield Opening("high" if allows else "low", "claimed-callers", at(told, "spec.accessControl"), advice)
    tap = None if access is None else access.tap
    if tap is not None and tap.action != "deny" and (tap.values or tap.manage) and not modes:
        told = "whoever reaches the broker may say to be one of those who see and do what it allows"
        yield Opening("high", "claimed-callers", at(told, "spec.accessControl.tap"), "identities (docs/trust.md)")
    secrets = configuration.spec.secrets
    for index, scope in enumerate(() if secrets is None else secrets.scopes):
        if scope.default_access != "deny" and not scope.allowed_secrets:
            told = f"every secret of {scope.store_name} may be read, but for those in deniedSecrets"
            where = at(told, f"spec.secrets.scopes[{index}].defaultAccess")
            yield Opening(
                "low", "secrets-allowed", where, "defaultAccess: deny, and name the secrets in allowedSecrets"
            )


def _workflows(read: Findings, modes: Set[str]) -> Iterator[Opening]:
    """Find whose workflows others may use, and who only says to be one that may."""
    for policy in read.policies:
        if policy.rules and "strict" not in modes:
            told = f"WorkflowAccessPolicy {policy.name} names callers, and none is asked to prove who it is: "
            told += "whoever reaches the broker may say to be one of them"
            where = Problem(told, "spec.rules", policy.file, policy.line)
            yield Opening("high", "claimed-callers", where, "identities (docs/trust.md)")
    for configuration in () if read.policies else read.configurations:
        if configuration.spec.workflow is not None:
            told = "any application of the namespace may start, steer and end workflows of the others, and read them"
            where = Problem(told, "spec.workflow", configuration.file, configuration.line)
            yield Opening(
                "low", "workflows-open", where, "a WorkflowAccessPolicy that names who may (docs/resources.md)"
            )


def _tracing(configuration: Configuration, at: Callable[[str, str], Problem]) -> Iterator[Opening]:
    tracing = configuration.spec.tracing
    if tracing is None:
        return
    otel = tracing.otel
    for kind, address, secure in (
        ("zipkin", tracing.zipkin.endpoint_address, True),
        ("otel", otel.endpoint_address, otel.is_secure),
    ):
        host = next((host for _, host in _plain(address)), "")
        if not secure and "://" not in address:
            host = _remote(address)
        if host:
            told = f"spans, and the headers with them, cross the network to {host} in plain text"
            where = at(told, f"spec.tracing.{kind}.endpointAddress")
            yield Opening("medium", "plain-connection", where, "TLS on that server, and https:// or isSecure here")
    for index, header in enumerate(otel.headers):
        if _AUTHORIZATION.search(header.name) and header.value and _stands_in(configuration.file, header.value):
            where = at(f"{header.name} is in the file", f"spec.tracing.otel.headers[{index}]")
            yield Opening("high", "plain-secret", where, "refer to it by secretKeyRef, or to a variable as $NAME")


def _stands_in(file: str | None, text: str) -> bool:
    """Tell whether a text stands in a file as it is; else a variable has filled it."""
    try:
        return file is None or text in Path(file).read_text(encoding="utf-8")
    except OSError:
        return True


def _kafka_is_plain(component: Component) -> bool:
    if not component.type.endswith(".kafka"):
        return False
    entry = component.entry("authType")
    without = component.entry("caCert") is None and (entry is None or (entry.text() or "").casefold() == "none")
    return without or _is_on(component, "disableTls")


def _is_on(component: Component, name: str) -> bool:
    """Tell whether something is switched on, or may be: what is referred to is not known."""
    entry = component.entry(name)
    return entry is not None and (entry.text() or "true").casefold() in _YES


def _plain(text: str) -> Iterator[tuple[str, str]]:
    """Find URLs that lead beyond this machine without TLS: scheme and host."""
    for scheme, place in _URL.findall(text):
        host = _host(place.rpartition("@")[2])
        if scheme.lower() in _ENCRYPTED and host and not is_local(host):
            yield scheme.lower(), host


def _logins(text: str) -> bool:
    return any("@" in place and ":" in place.rpartition("@")[0] for _, place in _URL.findall(text))


def _remote(places: str) -> str:
    """Give the first host of a list that is not this machine."""
    hosts = (_host(place.strip()) for place in places.split(","))
    return next((host for host in hosts if host and not is_local(host)), "")


def _host(place: str) -> str:
    if place.startswith("["):
        return place[1:].partition("]")[0]
    return place if place.count(":") > 1 else place.partition(":")[0]
