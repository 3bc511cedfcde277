"""What is checked of ``spec.accessControl``, and how it is taken.

Source: Dapr 1.18, service invocation access control; SPIFFE-ID, section 2.1 (trust domains).
"""

from __future__ import annotations

import dataclasses
import re

from mesh.address import app_id_problem
from mesh.errors import Problem
from mesh.resources.component import TOKEN
from mesh.resources.configuration import AccessControl, AccessOperation, TapAccess
from mesh.resources.documents import Document
from mesh.values import parse_trust_domain

__all__ = ["access_control"]

_NOT_IN_PATHS = re.compile(r"[\x00-\x1f\x7f#?\\]")
_SECTION = ("spec", "accessControl")


def access_control(
    document: Document, section: AccessControl, problems: list[Problem], warnings: list[Problem], trust_domain: str
) -> AccessControl:
    """Give the rules, with trust domains in lower case.

    Args:
        document: Where they stand.
        section: As written.
        problems: Gets what is wrong.
        warnings: Gets what is perhaps not meant.
        trust_domain: Of who reads them; empty = what they say themselves.
    """

    def lowered(text: str, *place: str | int) -> str:
        at = (*_SECTION, *place, "trustDomain")
        try:
            found = parse_trust_domain(text)
        except ValueError as error:
            problems.append(document.problem(str(error), at))
            return text
        if found != text:
            told = f"it is read as '{found}': trust domains are in lower case"
            warnings.append(document.problem(told, at))
        return found

    own = lowered(section.trust_domain) if section.trust_domain else AccessControl().trust_domain
    policies = tuple(
        dataclasses.replace(each, trust_domain=lowered(each.trust_domain, "policies", index))
        if each.trust_domain
        else each
        for index, each in enumerate(section.policies)
    )
    taken = dataclasses.replace(section, trust_domain=own, policies=policies)
    _check_access(document, taken, problems, warnings)
    _check_domains(document, taken, trust_domain.lower() or own, warnings)
    if taken.tap is not None:
        _check_tap(document, taken.tap, problems, warnings)
    return taken


def _check_access(document: Document, section: AccessControl, problems: list[Problem], warnings: list[Problem]) -> None:
    """Find policies of nobody, those that stand here twice, and operations that no call fits."""
    seen: set[tuple[str, ...]] = set()
    for index, policy in enumerate(section.policies):
        at: tuple[str | int, ...] = (*_SECTION, "policies", index)
        named = {"appId": policy.app_id, "namespace": policy.namespace, "trustDomain": policy.trust_domain}
        problems += [
            document.problem("it is empty, and names nobody", (*at, key)) for key, text in named.items() if not text
        ]
        if (whose := tuple(named.values())) in seen:
            problems.append(document.problem(f"there is a policy of {policy.app_id} before, which would not count", at))
        seen.add(whose)
        for number, operation in enumerate(policy.operations):
            place = (*at, "operations", number)
            wrong = _operation_problem(operation)
            if wrong is not None:
                problems.append(document.problem(wrong[1], (*place, wrong[0])))
            elif not operation.http_verb:
                told = f"operation {operation.name} has no httpVerb: it counts for applications on gRPC alone"
                warnings.append(document.problem(told, place))


def _check_tap(document: Document, tap: TapAccess, problems: list[Problem], warnings: list[Problem]) -> None:
    """Find names of nobody, and those that count for nothing."""
    for key, names in (("values", tap.values), ("manage", tap.manage)):
        for index, name in enumerate(names):
            if (wrong := app_id_problem(name)) is not None:
                problems.append(document.problem(wrong, (*_SECTION, "tap", key, index)))
        if names and tap.action == "deny":
            told = "it counts for nothing beside action: deny, by which nobody sees anything"
            warnings.append(document.problem(told, (*_SECTION, "tap", key)))


def _check_domains(document: Document, section: AccessControl, own: str, warnings: list[Problem]) -> None:
    """Find policies of callers of other trust domains: no name of those is proven here."""
    for index, policy in enumerate(section.policies):
        if policy.trust_domain and policy.trust_domain != own:
            told = f"it is about nobody: callers are of the trust domain '{own}', no names of others are trusted here"
            place = (*_SECTION, "policies", index, "trustDomain")
            warnings.append(document.problem(told, place))


def _operation_problem(operation: AccessOperation) -> tuple[str, str] | None:
    """Say which member of an operation makes it one that no call fits (``mesh/access.py``), and why."""
    inner = operation.name.strip("/")
    if "%" in inner:
        return "name", "a path is written as it is read, without escapes: ' ' for '%20'"
    if _NOT_IN_PATHS.search(inner) or (inner and not {"", ".", ".."}.isdisjoint(inner.split("/"))):
        return "name", f"no call has the path '{operation.name}': it is compared without '//', '.', '..', '?' and '#'"
    for verb in operation.http_verb:
        if not TOKEN.fullmatch(verb) or ("*" in verb and verb != "*"):
            return "httpVerb", f"'{verb}' is no verb; '*' alone stands for all of them"
    return None
