"""Who else may use an application's workflows: patterns, rules put together, and what is refused of a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.errors import ConfigError
from mesh.globs import Glob
from mesh.resources.loader import load_resources
from mesh.resources.workflow_access import WorkflowAccessPolicy, WorkflowAccessRule
from mesh.workflows.access import Rules, denied


@pytest.mark.parametrize(
    ("pattern", "fits", "not_"),
    [
        ("order", ("order",), ("", "orders", "Order")),
        ("*", ("", "a", "a.b"), ("a/b",)),
        ("order-*", ("order-", "order-1"), ("order", "xorder-1", "order-1/2")),
        ("*-x", ("-x", "a-x", "-x-x"), ("-x-", "a/-x")),
        ("a*b*c", ("abc", "abbcc", "a1b2c"), ("ab", "acb", "a/bc", "abc1")),
        ("a?c", ("abc", "a?c"), ("ac", "a/c", "abbc")),
        ("[a-c]x", ("ax", "cx"), ("dx", "x", "aax")),
        ("[^a-c]x", ("dx",), ("ax", "/x")),
        ("[+-9]", ("5", "."), ("/",)),
        ("[\\]a]", ("]", "a"), ("b", "\\")),
        ("\\*", ("*",), ("a", "\\*")),
        ("a/*", ("a/", "a/b"), ("a", "a/b/c")),
        ("*/b", ("/b", "a/b"), ("b", "a/a/b")),
        ("*a*?/b", ("axx/b", "aax/b"), ("a/b", "ax/x/b")),
    ],
)
def test_patterns(pattern: str, fits: tuple[str, ...], not_: tuple[str, ...]) -> None:
    """Those of Go's path.Match; no sign of one stands for a slash."""
    glob = Glob(pattern)
    assert [name for name in (*fits, *not_) if glob.fits(name)] == list(fits)


@pytest.mark.parametrize("pattern", ["[", "[a", "[]", "[]a]", "[a-]", "[-a]", "[^]", "a\\", "[a\\"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(ValueError, match="is no pattern: "):
        Glob(pattern)


def test_no_name_takes_long() -> None:
    """One that nearly fits again and again is given up in one pass, for each run of the pattern."""
    assert not Glob("*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*ab").fits("a" * 20_000)


SHOP = WorkflowAccessRule(("shop", "till"), (("order-*", ("schedule", "get")),), ("charge",))
MORE = WorkflowAccessRule(("shop",), (("order-1", ("purge",)),))


@pytest.mark.parametrize(
    ("caller", "kind", "operation", "name", "allowed"),
    [
        ("shop", "workflow", "schedule", "order-1", True),
        ("till", "workflow", "get", "order-1", True),
        ("shop", "workflow", "purge", "order-1", True),  # The second policy adds to the first.
        ("till", "workflow", "purge", "order-1", False),
        ("shop", "workflow", "schedule", "refund", False),
        ("shop", "workflow", "terminate", "order-1", False),
        ("shop", "activity", "schedule", "charge", True),
        ("shop", "activity", "schedule", "order-1", False),
        ("shop", "workflow", "schedule", "charge", False),
        ("other", "workflow", "schedule", "order-1", False),
        ("billing", "workflow", "rerun", "anything", True),  # Its own.
    ],
)
def test_rules(caller: str, kind: str, operation: str, name: str, allowed: bool) -> None:
    """What no policy allows is denied; an application may do all with its own."""
    policies = (WorkflowAccessPolicy("a", (SHOP,)), WorkflowAccessPolicy("b", (MORE,), scopes=("billing",)))
    rules = Rules("billing", policies)
    of = "billing", "default", kind, operation, name
    assert rules.allows(caller, "default", *of) is allowed  # type: ignore[arg-type]
    assert not rules.allows(caller, "elsewhere", *of)  # type: ignore[arg-type]


def test_rules_may_change() -> None:
    """Without a policy of its own, all may be done from within the namespace; one without rules allows nothing."""
    asked = "shop", "default", "billing", "default", "workflow", "schedule", "order"
    rules = Rules("billing", (WorkflowAccessPolicy("a", (SHOP,), scopes=("shop",)),))
    assert rules.allows(*asked)  # type: ignore[arg-type]
    rules.apply((WorkflowAccessPolicy("a"),))
    assert not rules.allows(*asked)  # type: ignore[arg-type]
    assert denied("shop", "workflow", "schedule", "order") == (
        "access denied by workflow access policy: shop may not schedule the workflow 'order'"
    )


POLICY = """apiVersion: dapr.io/v1alpha1
kind: WorkflowAccessPolicy
metadata: {{name: p}}
spec:
  rules:
  - {0}
"""


def test_a_file(tmp_path: Path) -> None:
    """It is read whole, and one for others is left out."""
    rule = "{callers: [{appID: shop}], workflows: [{name: 'order-*', operations: [schedule, get]}]}"
    (tmp_path / "a.yaml").write_text(POLICY.format(rule) + "scopes: [billing]\n")
    loaded = load_resources([tmp_path], app_id="billing")
    (policy,) = loaded.workflow_access
    assert policy.rules == (WorkflowAccessRule(("shop",), (("order-*", ("schedule", "get")),)),)
    assert (policy.name, policy.scopes, loaded.warnings) == ("p", ("billing",), ())
    assert load_resources([tmp_path], app_id="shop").workflow_access == ()


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("{callers: [], activities: [{name: a}]}", r"6:15: spec\.rules\[0\]\.callers: expected at least one caller"),
        ("{callers: [{appID: a}]}", r"6:5: spec\.rules\[0\]: expected workflows or activities"),
        ("{callers: [{appID: a}], activities: [{name: '[a'}]}", r"6:49: spec.*is no pattern: a \[ has no \]"),
        ("{callers: [{appID: a}], workflows: [{name: a, operations: []}]}", "at least one operation"),
        ("{callers: [{appID: a}], workflows: [{name: a}]}", "operations"),
        ("{callers: [{appID: a}], workflows: [{name: a, operations: [zap]}]}", r"expected 'schedule', .*got 'zap'"),
        ("{callers: [{appID: a}], activities: [{name: a, requires: [b]}]}", "requires: conditions on the history"),
        ("{callers: [{appID: a}], activities: [{name: a}], unless: 1}", "unknown field; known are activities"),
    ],
)
def test_what_would_allow_more_than_was_meant_is_refused(tmp_path: Path, rule: str, problem: str) -> None:
    """Or would allow nothing to nobody."""
    (tmp_path / "a.yaml").write_text(POLICY.format(rule))
    with pytest.raises(ConfigError, match=problem):
        load_resources([tmp_path])
