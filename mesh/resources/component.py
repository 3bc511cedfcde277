"""Components and HTTP endpoints: settings that are text, or refer to a secret or a variable.

A resource is loaded with its references open. `resolve_entries` closes them before the
component is built; what came from outside the file is then held in a `Secret`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar, assert_never
from uuid import uuid4

from mesh.errors import ConfigError, Problem
from mesh.fields import BREAKS_OFF, TOKEN
from mesh.spelling import did_you_mean, protects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = [
    "Component",
    "EnvRef",
    "KUBERNETES",
    "HTTPEndpoint",
    "MetadataEntry",
    "Secret",
    "SecretRef",
    "TOKEN",
    "TemplateTokens",
    "env_refusal",
    "expand_template",
    "header_refusal",
    "in_kubernetes",
    "resolve_entries",
    "without_secret",
    "without_store",
    "without_variable",
]

KUBERNETES = "kubernetes"
_R = TypeVar("_R", "Component", "HTTPEndpoint")


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """Text that must not reach a log: ``repr`` and ``str`` are masked, `reveal` gives it.

    Attributes:
        source: The secret of a store, or the variable, that it was read from; None = it came from elsewhere.
        assumed: Whether it stands for a text that is not known here: nothing may be concluded from what it says.
    """

    _text: str
    source: SecretRef | EnvRef | None = field(default=None, compare=False)
    assumed: bool = field(default=False, compare=False)

    def __repr__(self) -> str:
        return "Secret('***')"

    def reveal(self) -> str:
        """Give the text."""
        return self._text


@dataclass(frozen=True, slots=True)
class SecretRef:
    """A key of a secret in the secret store that the resource names."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class EnvRef:
    """A variable of the gateway's own environment."""

    variable: str


@dataclass(frozen=True, slots=True)
class MetadataEntry:
    """One named setting and where it stands.

    Attributes:
        name: As written; compared without regard to case.
        value: Text, or a reference until `resolve_entries` replaced it.
        path: The field in the file (``spec.metadata[0]``).
        line: From 1; None for built-in resources.
        column: From 1; None for built-in resources.
    """

    name: str
    value: str | Secret | SecretRef | EnvRef
    path: str = field(default="", compare=False)
    line: int | None = field(default=None, compare=False)
    column: int | None = field(default=None, compare=False)

    def text(self) -> str | None:
        """Give the text; None while it is an open reference."""
        if isinstance(self.value, Secret):
            return self.value.reveal()
        return self.value if isinstance(self.value, str) else None


@dataclass(frozen=True, slots=True)
class Component:
    """A configured adapter.

    Attributes:
        name: Unique among components.
        type: ``<block>.<name>``, lower-case (``state.redis``).
        metadata: The adapter's settings, in the file's order.
        namespace: None = not given.
        version: Lower-case; ``v1`` when not given.
        ignore_errors: Whether a failing start is only logged.
        init_timeout: Seconds that the start may take.
        scopes: App ids that may use it; empty = all.
        auth_secret_store: The secret store that resolves its `SecretRef` values.
        placement: Where its operations run (``nearest``, ``backbone``, ``local``); None = as its type is used to.
        namespaced: Whether a setting is a template with ``{namespace}``.
        secrets: Differs when what it refers to does, where that is known before it is asked for; else empty.
        file: As the user named it; None for built-in components.
        line: Where the document begins, from 1.
        type_place: Line and column of the type, from 1.
        metadata_place: Line and column of the word ``metadata`` of its settings, or of what lacks it, from 1.
    """

    name: str
    type: str
    metadata: tuple[MetadataEntry, ...] = ()
    namespace: str | None = None
    version: str = "v1"
    ignore_errors: bool = False
    init_timeout: float = 5.0
    scopes: tuple[str, ...] = ()
    auth_secret_store: str | None = None
    placement: str | None = None
    namespaced: bool = False
    secrets: str = ""
    file: str | None = field(default=None, compare=False)
    line: int | None = field(default=None, compare=False)
    type_place: tuple[int, int] | None = field(default=None, compare=False)
    metadata_place: tuple[int, int] | None = field(default=None, compare=False)

    @property
    def block(self) -> str:
        """The building block, the part of ``type`` before the first dot."""
        return self.type.partition(".")[0]

    def entry(self, name: str) -> MetadataEntry | None:
        """Find a setting by name, without regard to case; the last one of a name counts."""
        folded = name.casefold()
        return next((entry for entry in reversed(self.metadata) if entry.name.casefold() == folded), None)

    def setting(self, name: str) -> str | None:
        """Give a setting's text, without regard to case in its name; None if it is not set.

        Raises:
            ConfigError: The setting is still an open reference.
        """
        entry = self.entry(name)
        if entry is None:
            return None
        text = entry.text()
        if text is None:
            raise ConfigError(self.problem("is a reference that was not resolved", setting=name))
        return text

    def known(self, name: str) -> str:
        """Give a setting's text, empty if it is not set or still an open reference."""
        entry = self.entry(name)
        return "" if entry is None else entry.text() or ""

    def assumes(self, *names: str) -> bool:
        """Tell whether one of these settings is set, and its text is not known: the component is only checked."""
        values = [entry.value for entry in map(self.entry, names) if entry is not None]
        return any(isinstance(value, Secret) and value.assumed for value in values)

    def problem(self, message: str, *, setting: str | None = None) -> Problem:
        """Make a problem located at this component, or at one of its settings, or where that would be."""
        entry = None if setting is None else self.entry(setting)
        if setting is not None and entry is None:
            return self.missing(message)
        return _problem(message, entry, self.file, self.line)

    def missing(self, message: str) -> Problem:
        """Make the problem of a setting that is not there, located where it would be."""
        if self.metadata_place is None:
            return _problem(message, None, self.file, self.line)
        return Problem(message, "spec.metadata", self.file, *self.metadata_place)

    def type_problem(self, message: str) -> Problem:
        """Make a problem located at the type."""
        if self.type_place is None:
            return self.problem(message)
        return Problem(message, "spec.type", self.file, *self.type_place)

    def version_problem(self, versions: Iterable[str]) -> Problem | None:
        """Make the problem of a version that is none of these."""
        names = tuple(versions)
        if self.version in names:
            return None
        known = f"version{'s' * (len(names) > 1)} {' and '.join(names)}"
        return self.type_problem(f"{self.type} has the {known} (spec.version), not {self.version!r}")

    def unknown(self, known: Iterable[str], advice: str = "") -> tuple[list[Problem], list[Problem]]:
        """Find settings that nothing reads: first those that may not be ignored, then the others.

        Of the first kind is what looks like a known one, and what would protect or tell something.
        What has no value asks for nothing.

        Args:
            known: What is read; a name that ends in a colon or a slash is the beginning of any number of them, and one
                that begins with a dot is the end.
            advice: What to do with a stranger that may not be ignored.
        """
        names = tuple(known)
        folded = {name.casefold() for name in names}
        beginnings = tuple(name for name in folded if name.endswith((":", "/")))
        ends = tuple(name for name in folded if name.startswith("."))
        near: list[Problem] = []
        others: list[Problem] = []
        for entry in self.metadata:
            name = entry.name.casefold()
            if name not in folded and not name.startswith(beginnings) and not name.endswith(ends):
                guess = did_you_mean(entry.name, names)
                unsafe = guess is None and bool(entry.value) and protects(entry.name)
                message = "unknown setting" + (f"; did you mean {guess!r}?" if guess else ", which nothing reads")
                message += f"; ignoring it may be unsafe{advice}" if unsafe else ""
                (near if guess or unsafe else others).append(_problem(message, entry, self.file, self.line))
        return near, others

    def secret_refs(self) -> tuple[SecretRef, ...]:
        """List the secrets that its settings refer to, each once."""
        return _secret_refs(self.metadata)

    def resolved(
        self, tokens: TemplateTokens, environ: Mapping[str, str], secrets: Mapping[SecretRef, str]
    ) -> Component:
        """Give the component with its references closed and its templates expanded.

        Raises:
            ConfigError: A secret, variable or template token has no value; holds all of them, located.
        """
        metadata = resolve_entries(self.metadata, tokens, environ, secrets, file=self.file)
        namespaced = any("{namespace}" in (entry.text() or "") for entry in self.metadata)
        return dataclasses.replace(self, metadata=metadata, namespaced=namespaced)


@dataclass(frozen=True, slots=True)
class HTTPEndpoint:
    """An outside HTTP service that is invoked under the resource's name.

    Attributes:
        base_url: ``http://`` or ``https://``, without a trailing slash.
        headers: Sent with every request.
        root_ca: PEM text or a reference; None = the system's.
        certificate: The client's certificate; with it goes ``private_key``.
        renegotiation: ``Never``, ``OnceAsClient`` or ``FreelyAsClient``.
        secrets: Differs when what it refers to does, where that is known before it is asked for; else empty.
    """

    name: str
    base_url: str
    headers: tuple[MetadataEntry, ...] = ()
    root_ca: MetadataEntry | None = None
    certificate: MetadataEntry | None = None
    private_key: MetadataEntry | None = None
    renegotiation: str = "Never"
    auth_secret_store: str | None = None
    namespace: str | None = None
    scopes: tuple[str, ...] = ()
    secrets: str = ""
    file: str | None = field(default=None, compare=False)
    line: int | None = field(default=None, compare=False)

    @property
    def metadata(self) -> tuple[MetadataEntry, ...]:
        """What may refer to a secret or a variable."""
        given = (self.root_ca, self.certificate, self.private_key)
        return (*self.headers, *(entry for entry in given if entry is not None))

    def secret_refs(self) -> tuple[SecretRef, ...]:
        """List the secrets that it refers to, each once."""
        return _secret_refs(self.metadata)


def _secret_refs(entries: Iterable[MetadataEntry]) -> tuple[SecretRef, ...]:
    return tuple(dict.fromkeys(entry.value for entry in entries if isinstance(entry.value, SecretRef)))


def without_store(resource: Component | HTTPEndpoint, stores: Iterable[str]) -> list[Problem]:
    """Find references to secrets in a resource that does not say which of the stores has them."""
    if resource.auth_secret_store is not None:
        return []
    what = "component" if isinstance(resource, Component) else "HTTPEndpoint"
    message = (
        f"{what} {resource.name} refers to a secret, and does not say in which store; add beside its spec the line "
        f"auth: {{secretStore: NAME}}; the secret stores here are: {', '.join(stores) or 'none'}"
    )
    return [
        _problem(message, entry, resource.file, resource.line)
        for entry in resource.metadata
        if isinstance(entry.value, SecretRef)
    ]


def in_kubernetes(
    components: Sequence[Component], endpoints: Sequence[HTTPEndpoint], *, injected: bool
) -> tuple[tuple[Component, ...], tuple[HTTPEndpoint, ...]]:
    """Give resources as they count inside a cluster: references that name no store are to the store ``kubernetes``.

    It need not be configured; then nobody else is answered by it. A gateway that was injected always has it, as in
    Dapr; another one may have no access to the cluster, and has it where something refers to it.
    """
    users: list[Component | HTTPEndpoint] = [*components, *endpoints]
    referred = bool(components) and any(each.secret_refs() and each.auth_secret_store is None for each in users)
    if not referred and not injected:
        return tuple(components), tuple(endpoints)
    named = [_by_default(each) for each in components]
    if all(each.name != KUBERNETES for each in components):
        named.append(Component(KUBERNETES, f"secretstores.{KUBERNETES}", placement="local"))
    return tuple(named), tuple(_by_default(each) for each in endpoints)


def _by_default(resource: _R) -> _R:
    refers = resource.secret_refs() and resource.auth_secret_store is None
    return dataclasses.replace(resource, auth_secret_store=KUBERNETES) if refers else resource


def without_secret(resource: Component | HTTPEndpoint, secrets: Mapping[str, Mapping[SecretRef, str]]) -> list[Problem]:
    """Find references to what is not in a store whose secrets are known; they are given by the names of stores."""
    known = secrets.get(resource.auth_secret_store or "")
    return [
        _problem(_missing(entry.value), entry, resource.file, resource.line)
        for entry in resource.metadata
        if known is not None and isinstance(entry.value, SecretRef) and entry.value not in known
    ]


def _missing(ref: SecretRef) -> str:
    return f"refers to the secret '{ref.name}' (key '{ref.key}'), which no secret store gives"


def without_variable(resource: Component | HTTPEndpoint, environ: Mapping[str, str]) -> list[Problem]:
    """Find references to variables that are not set: what they give is empty."""
    return [
        _problem(f"the variable '{entry.value.variable}' is not set, so this is empty", entry, resource.file, None)
        for entry in resource.metadata
        if isinstance(entry.value, EnvRef)
        and entry.value.variable not in environ
        and env_refusal(entry.value.variable, environ) is None
    ]


@dataclass(frozen=True, slots=True)
class TemplateTokens:
    """What the template tokens of metadata values expand to.

    Attributes:
        app_id: For ``{appID}``.
        namespace: For ``{namespace}``, which gives ``<namespace>.<app id>``.
        pod_name: For ``{podName}``, from the variable ``POD_NAME``; None = it has no value.
        new_uuid: Called for each ``{uuid}``.
    """

    app_id: str
    namespace: str
    pod_name: str | None = None
    new_uuid: Callable[[], str] = lambda: str(uuid4())


def expand_template(text: str, tokens: TemplateTokens) -> str:
    """Expand ``{uuid}``, ``{podName}``, ``{namespace}`` and ``{appID}`` anywhere in the text.

    Source: Dapr 1.18, templates in component metadata.

    Raises:
        ValueError: ``{podName}`` is used and has no value.
    """
    if "{" not in text:
        return text
    if "{podName}" in text and not tokens.pod_name:
        raise ValueError("'{podName}' needs the variable POD_NAME, which is not set")
    before, *parts = text.split("{uuid}")
    text = before + "".join(tokens.new_uuid() + part for part in parts)
    text = text.replace("{podName}", tokens.pod_name or "")
    return text.replace("{namespace}", f"{tokens.namespace}.{tokens.app_id}").replace("{appID}", tokens.app_id)


def env_refusal(variable: str, environ: Mapping[str, str]) -> str | None:
    """Say why an ``envRef`` may not read this variable; None = it may.

    Source: Dapr 1.18, ``envRef`` in component metadata.
    """
    upper = variable.upper()
    if upper == "APP_API_TOKEN" or upper.startswith(("DAPR_", "MESH_")):
        return f"the variable '{variable}' belongs to the runtime and cannot be read"
    if " " in variable:
        return f"'{variable}' cannot be the name of a variable: it holds a blank"
    listed = environ.get("DAPR_ENV_KEYS")
    if listed is not None and variable not in listed.split():
        return f"the variable '{variable}' is not in DAPR_ENV_KEYS"
    return None


def header_refusal(text: str) -> str | None:
    """Say why no request can hold a text as the value of a header; None if one can. Source: RFC 9110 section 5.5."""
    found = BREAKS_OFF.search(text)
    return None if found is None else f"the value of a header cannot hold the character U+{ord(found[0]):04X}"


def resolve_entries(
    entries: Iterable[MetadataEntry],
    tokens: TemplateTokens,
    environ: Mapping[str, str],
    secrets: Mapping[SecretRef, str],
    *,
    file: str | None = None,
) -> tuple[MetadataEntry, ...]:
    """Close every reference and expand every template.

    Secrets are taken as they are: a password may hold ``{appID}``. An unset variable is empty.

    Args:
        entries: The settings of one resource.
        tokens: Values of the template tokens.
        environ: The gateway's environment.
        secrets: The text of each `SecretRef` in the entries.
        file: The resource's file, for problems.

    Raises:
        ConfigError: Holds every setting that has no value, located.
    """
    resolved: list[MetadataEntry] = []
    problems: list[Problem] = []
    for entry in entries:
        try:
            resolved.append(dataclasses.replace(entry, value=_resolve(entry.value, tokens, environ, secrets)))
        except ValueError as error:
            problems.append(_problem(str(error), entry, file, None))
    if problems:
        raise ConfigError(problems)
    return tuple(resolved)


def _resolve(
    value: str | Secret | SecretRef | EnvRef,
    tokens: TemplateTokens,
    environ: Mapping[str, str],
    secrets: Mapping[SecretRef, str],
) -> str | Secret:
    match value:
        case Secret():
            return value
        case str():
            return expand_template(value, tokens)
        case EnvRef(variable=variable):
            refusal = env_refusal(variable, environ)
            if refusal is not None:
                raise ValueError(refusal)
            return Secret(expand_template(environ.get(variable, ""), tokens), value)
        case SecretRef():
            if value not in secrets:
                raise ValueError(_missing(value))
            return Secret(secrets[value], value)
        case _:
            assert_never(value)


def _problem(message: str, entry: MetadataEntry | None, file: str | None, line: int | None) -> Problem:
    if entry is None:
        return Problem(message, file=file, line=line, column=None if line is None else 1)
    path = f"{entry.path} ({entry.name})" if entry.path and entry.name else entry.path or entry.name
    return Problem(message, path, file, entry.line, entry.column)
