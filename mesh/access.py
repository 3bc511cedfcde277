"""Who may call the application: ``spec.accessControl`` of its gateway's Configuration, decided where it is called.

A call is decided by who asks for it, by its path and, towards an application on HTTP, by its verb:

1. The policy of the caller's app id, namespace and trust domain; a caller who has none, or whose identity is not
   proven, gets the action for all.
2. The first of its operations, in the order of the file, whose path fits. ``*`` is any text within one segment of a
   path, ``**`` any number of segments. One that denies a path denies what is below it, too.
3. The operation's action, if it names the verb or ``*``; gRPC has no verbs. Else the policy's, else that for all.

What is compared is the path as an application reads it: decoded once, without ``.``, ``..`` and empty segments; on
HTTP without regard to case. Where what was sent can be read otherwise, the application is sent what was decided on.
What behind a ``;`` is a parameter to some servers and a part of the name to others must be allowed in both readings.

Source: Dapr 1.18, service invocation access control; RFC 3986 sections 3.3 and 6.2.2.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, unquote_to_bytes

from mesh.errors import BadArgumentError, PermissionDeniedError
from mesh.operation import Caller
from mesh.telemetry import ACCESS

if TYPE_CHECKING:
    from mesh.application import Headers
    from mesh.resources.configuration import AccessControl, AccessOperation, TapAccess
    from mesh.telemetry import Observer
    from mesh.trust.identity import Identity

__all__ = ["ANY_VERB", "Decision", "Gate", "Policy", "Rules", "By", "TapRights", "naming", "read", "rules", "sender"]

logger = logging.getLogger(__name__)

CALLBACKS = "/dapr.proto.runtime.v1.AppCallback"

ANY_VERB = "*"
MAX_TOLD = 1000
MAX_SHOWN = 200
_CALLER_FIELDS = frozenset({"dapr-caller-app-id", "dapr-caller-namespace"})
_CALLERS_WORDS = frozenset({"mesh-timeout", "mesh-idempotency-key", "mesh-fencing-token"})
_LEGAL = "!$&'()*+,/:;=@[]~"
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
# Of no path that anybody means, and read in more than one way: as the end of it, as a line's, as a slash.
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f#?\\]")


class By(StrEnum):
    """What decided."""

    APP = "app"
    GLOBAL = "global"


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a call.

    Attributes:
        allowed: Whether it may go on.
        by: What said so.
    """

    allowed: bool
    by: By


_Segments = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A path with wildcards: segments are what stands between their ``*``, runs of them what stands between ``**``."""

    runs: tuple[_Segments, ...]

    def fits(self, path: Sequence[str]) -> bool:
        """Tell whether a path is meant; in one pass, so that no path takes long."""
        first, last = self.runs[0], self.runs[-1]
        if len(self.runs) == 1:
            return len(path) == len(first) and _all_fit(first, path, 0)
        at, end = len(first), len(path) - len(last)
        if at > end or not _all_fit(first, path, 0) or not _all_fit(last, path, end):
            return False
        for run in self.runs[1:-1]:
            found = next((start for start in range(at, end - len(run) + 1) if _all_fit(run, path, start)), None)
            if found is None:
                return False
            at = found + len(run)
        return True


def _all_fit(run: _Segments, path: Sequence[str], start: int) -> bool:
    return all(_fits(parts, path[start + index]) for index, parts in enumerate(run))


def _fits(parts: tuple[str, ...], text: str) -> bool:
    first, last = parts[0], parts[-1]
    if len(parts) == 1:
        return text == first
    at, end = len(first), len(text) - len(last)
    if at > end or not text.startswith(first) or not text.endswith(last):
        return False
    for part in parts[1:-1]:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


@dataclass(frozen=True, slots=True)
class _Operation:
    exact: _Pattern
    folded: _Pattern
    verbs: frozenset[str]
    allowed: bool


@dataclass(frozen=True, slots=True)
class Policy:
    """What one caller may do.

    Attributes:
        default: Whether what no operation is about is allowed; None = as for all.
        operations: In the order of the file.
    """

    default: bool | None
    operations: tuple[_Operation, ...]


@dataclass(frozen=True, slots=True)
class TapRights:
    """What somebody may see of what passes a node, and do to it from elsewhere.

    Attributes:
        sights: Whether he is told what passes: who asked whom for what, and what came of it.
        values: Whether headers and bodies as well.
        manage: Whether he may read what the node keeps, and change it.
        why: What is not allowed, and the lines of the node's Configuration that would allow it; "" = all is allowed.
        why_values: The same of values alone.
        why_manage: The same of what the node keeps.
    """

    sights: bool
    values: bool
    manage: bool
    why: str = ""
    why_values: str = ""
    why_manage: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """All that a Configuration says of who may call.

    Attributes:
        default: Whether callers without a policy are allowed.
        policies: By app id, namespace and trust domain.
    """

    default: bool
    policies: Mapping[tuple[str, str, str], Policy] = field(default_factory=dict)

    def decide(self, caller: Caller, verb: str, path: str, *, grpc: bool) -> Decision:
        """Decide on a path as ``read`` gives it.

        Args:
            caller: Who asks.
            verb: Of HTTP.
            path: What for.
            grpc: Whether the application is called by gRPC, which has no verbs.
        """
        named = (caller.app_id, caller.namespace, caller.trust_domain)
        policy = self.policies.get(named) if caller.proven else None
        if policy is None:
            return Decision(self.default, By.GLOBAL)
        decision = Decision(True, By.APP)
        for reading in _readings(path):
            decision = self._decide(policy, verb.upper(), reading, grpc=grpc)
            if not decision.allowed:
                break
        return decision

    def _decide(self, policy: Policy, verb: str, path: str, *, grpc: bool) -> Decision:
        segments = _segments(path if grpc else path.lower())
        for each in policy.operations:
            if (each.exact if grpc else each.folded).fits(segments):
                if grpc or verb in each.verbs or ANY_VERB in each.verbs:
                    return Decision(each.allowed, By.APP)
                break
        return Decision(self.default, By.GLOBAL) if policy.default is None else Decision(policy.default, By.APP)


def _segments(path: str) -> list[str]:
    return path.split("/")[1:]


def _readings(path: str) -> Iterator[str]:
    """Give the ways in which servers read a path: with parameters as a part of names, and without."""
    yield path
    if ";" in path:
        yield _clean(segment.partition(";")[0] for segment in path.split("/"))


def _clean(segments: Iterable[str]) -> str:
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    return "/" + "/".join(kept)


def read(target: str) -> tuple[str, str]:
    """Read a path and raw query as an application does.

    Returns:
        The path to decide on, and what the application is to be sent: what was given, unless that can be read
        otherwise.

    Raises:
        BadArgumentError: It is no path that all servers read alike.
    """
    raw, mark, query = target.partition("?")
    try:
        decoded = unquote_to_bytes(raw.encode("utf-8", "surrogateescape")).decode()
    except UnicodeDecodeError:
        raise BadArgumentError("invalid method: it is no UTF-8") from None
    if _ESCAPE.search(raw) or _FORBIDDEN.search(decoded):
        raise BadArgumentError("invalid method: it has a wrong escape, '#', '?', a backslash or a control character")
    path = _clean(decoded.split("/"))
    final = "/" if decoded.endswith("/") and path != "/" else ""
    if path + final == decoded and "%2f" not in raw.lower():
        return path, target
    return path, f"{quote(path, safe=_LEGAL)}{final}{mark}{query}"


def rules(section: AccessControl | None) -> Rules | None:
    """Make the rules of a section; None when they admit everybody."""
    if section is None:
        return None
    policies = {
        (each.app_id, each.namespace, each.trust_domain): Policy(
            _action(each.default_action), tuple(map(_operation, each.operations))
        )
        for each in section.policies
    }
    default = _action(section.default_action)
    made = Rules(not policies if default is None else default, policies)
    return None if made == Rules(True) else made


def _action(text: str) -> bool | None:
    return text == "allow" if text else None


def _operation(operation: AccessOperation) -> _Operation:
    allowed = operation.action == "allow"
    exact, folded = (_pattern(name, denies=not allowed) for name in (operation.name, operation.name.lower()))
    return _Operation(exact, folded, frozenset(verb.upper() for verb in operation.http_verb), allowed)


def _pattern(name: str, *, denies: bool) -> _Pattern:
    segments = _segments("/" + name.strip("/"))
    if denies and segments[-1] not in ("", "*", "**"):
        segments.append("**")
    runs: list[list[tuple[str, ...]]] = [[]]
    for each in segments:
        if each == "**":
            runs.append([])
        else:
            runs[-1].append(tuple(each.split("*")))
    return _Pattern(tuple(map(tuple, runs)))


def sender(headers: Mapping[str, str], namespace: str) -> Caller:
    """Read who sent something, by its own word."""
    return Caller(namespace, unquote(headers.get("ce-source", "")))


def naming(headers: Headers, caller: Identity | Caller | None) -> Headers:
    """Give header fields of a call as an application may believe them: without what gateways alone say.

    Args:
        headers: As the caller wrote them.
        caller: Who has proven to be it, and is named, whoever they named; None leaves whom they name.
    """
    proven = caller is not None
    kept = [each for each in headers if not _is_gateways_word(each[0], proven=proven)]
    if caller is None:
        return kept
    return [*kept, ("dapr-caller-app-id", caller.app_id), ("dapr-caller-namespace", caller.namespace)]


def _is_gateways_word(name: str, *, proven: bool) -> bool:
    """Tell whether a field is no caller's to say; many servers read ``_`` and ``-`` in its name as one."""
    name = name.lower()
    if name[:5] in ("mesh-", "mesh_"):
        return name not in _CALLERS_WORDS
    if name[:5] not in ("dapr-", "dapr_"):
        return False
    return (proven or "_" in name) and name.replace("_", "-") in _CALLER_FIELDS


class Gate:
    """The rules at work before the application.

    Attributes:
        rules: What holds now; None admits everybody.
    """

    def __init__(
        self,
        own: Caller,
        section: AccessControl | None,
        observer: Observer,
        *,
        proves: bool = False,
        alone: bool = False,
    ) -> None:
        """Begin with a Configuration's section.

        Args:
            own: The application that is called.
            section: None admits everybody.
            observer: Is told of every decision.
            proves: Whether callers can prove who they are to this node.
            alone: Whether all nodes of the mesh are on this machine.
        """
        self._proves, self._alone = proves, alone
        self._tap: TapAccess | None = None
        self._denies = False
        self.rules: Rules | None = None
        self._own = own.app_id, own.namespace
        self._observer = observer
        self._told: set[tuple[str, str, str]] = set()
        self.apply(section)

    def apply(self, section: AccessControl | None) -> None:
        """Decide by another section from here on."""
        made = rules(section)
        if made is not None and made != self.rules and made.policies and not self._proves:
            logger.warning(
                "spec.accessControl names callers, and no --trust-mode lets callers prove who they are: "
                "for all of them holds its defaultAction, %s",
                "allow" if made.default else "deny",
            )
        self.rules = made
        self._tap = None if section is None else section.tap
        self._denies = made is not None and not made.default

    def tap(self, caller: Caller) -> TapRights:
        """Say what somebody may see of this node from elsewhere."""
        own, tap = self._own[0], self._tap
        if tap is not None and tap.action:
            sights, cause = tap.action == "allow", "spec.accessControl.tap.action of its Configuration is deny"
        else:
            sights, cause = not self._denies, "defaultAction of spec.accessControl is deny, as it is beside policies"
        if not sights:
            why = (
                f"{own} does not tell what passes it: {cause}; "
                "spec.accessControl.tap: {action: allow} lets it be told without values"
            )
            return TapRights(False, False, False, why, why, why)
        values, manage = (self._alone or self._lists(caller, what) for what in ("values", "manage"))
        left = [what for what, allowed in (("values", values), ("manage", manage)) if not allowed]
        whys = {what: self._why(caller, what) for what in left}
        why = self._why(caller, *left) if left else ""
        return TapRights(True, values, manage, why, whys.get("values", ""), whys.get("manage", ""))

    def _lists(self, caller: Caller, what: str) -> bool:
        if self._tap is None or (self._proves and not caller.proven) or caller.namespace != self._own[1]:
            return False
        return caller.app_id in (self._tap.values if what == "values" else self._tap.manage)

    def _why(self, caller: Caller, *names: str) -> str:
        own, who = self._own[0], caller.app_id[:MAX_SHOWN]
        lines = ", ".join(f"{name}: [{who}]" for name in names)
        what = " and ".join({"values": "headers and bodies", "manage": "what it keeps"}[name] for name in names)
        text = f"{own} does not let {who} see {what}"
        if self._proves and not caller.proven:
            return f"{text}, as {who} does not prove who it is: its gateway needs --trust-mode"
        return f"{text}: its Configuration wants spec.accessControl.tap: {{{lines}}}"

    def admit(self, caller: Caller, verb: str, target: str, *, grpc: bool) -> str:
        """Give what the application is to be asked: path and raw query.

        Raises:
            PermissionDeniedError: The caller may not ask it.
            BadArgumentError: It is no path that all servers read alike; only where there are rules.
        """
        decides = self.rules
        if decides is None:
            return target
        path, sent = read(target)
        if caller.proven and (caller.app_id, caller.namespace) == self._own:
            return sent  # As here, where it is not asked who calls himself.
        if grpc and path.startswith(CALLBACKS):  # By these, its gateway calls it: for whoever it has let through.
            raise self._denied(caller, "NONE", path)
        decision = decides.decide(caller, verb, path, grpc=grpc)
        action = "allowed" if decision.allowed else "blocked"
        domain = caller.trust_domain if caller.proven else ""
        self._observer(ACCESS, (decision.by, action, caller.namespace if caller.proven else "", domain))
        if not decision.allowed:
            raise self._denied(caller, "NONE" if grpc else verb, path)
        return sent

    def _denied(self, caller: Caller, verb: str, path: str) -> PermissionDeniedError:
        shown, verb = path[:MAX_SHOWN], verb[:MAX_SHOWN]
        text = f"access control policy has denied access to id: {_shown(caller)} operation: {shown} verb: {verb}"
        told = caller.app_id[:MAX_SHOWN], verb, shown
        if told not in self._told:
            if len(self._told) >= MAX_TOLD:
                self._told.clear()
            self._told.add(told)
            logger.warning("%s; the same is not told again", text)
        return PermissionDeniedError(text)


def _shown(caller: Caller) -> str:
    if caller.proven:
        return f"spiffe://{caller.trust_domain}/ns/{caller.namespace}/{caller.app_id}"
    return f"{caller.app_id[:MAX_SHOWN]} (not proven)"
