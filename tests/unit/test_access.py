"""Who may call the application: paths, verbs, policies and defaults, decided without a node.

Source: Dapr 1.18, service invocation access control.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.dispatch import main
from mesh.access import Decision, Gate, naming, read, rules, sender
from mesh.errors import BadArgumentError, ConfigError, PermissionDeniedError
from mesh.operation import Caller
from mesh.resources.configuration import AccessControl, AccessOperation, AccessPolicy
from mesh.resources.loader import load_configuration_file
from mesh.telemetry import Counters
from mesh.trust.identity import Identity

SHOP = Caller("default", "shop", proven=True)
CLAIMED = Caller("default", "shop")
HEAD = "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\nspec:\n  accessControl:\n"


def access(*operations: AccessOperation, default: str = "deny", policy: Any = "deny", **of: str) -> AccessControl:
    named = {"app_id": "shop", "namespace": "default", "trust_domain": "public"} | of
    made = AccessPolicy(**named, default_action=policy, operations=operations)
    return AccessControl(default, "public", (made,))  # type: ignore[arg-type]


def allows(name: str, *verbs: str) -> AccessOperation:
    return AccessOperation(name, verbs or ("*",), "allow")


def denies(name: str, *verbs: str) -> AccessOperation:
    return AccessOperation(name, verbs or ("*",), "deny")


def gate(section: AccessControl | None, counters: Counters | None = None) -> Gate:
    return Gate(Caller("default", "callee"), section, counters or Counters())


def allowed(section: AccessControl, verb: str, target: str, caller: Caller = SHOP, *, grpc: bool = False) -> bool:
    try:
        gate(section).admit(caller, verb, target, grpc=grpc)
    except PermissionDeniedError:
        return False
    return True


# A path that is sent, what is decided on, what the application is sent (None = as it came).
PATHS = [
    ("", "/", "/"),
    ("/", "/", None),
    ("?q=1", "/", "/?q=1"),
    ("/a/b?x=%2F#", "/a/b", None),
    ("/a/", "/a", None),
    ("a/b", "/a/b", "/a/b"),
    ("//a///b", "/a/b", "/a/b"),
    ("/a//", "/a", "/a/"),
    ("/./a/./b", "/a/b", "/a/b"),
    ("/a/../b", "/b", "/b"),
    ("/../../b?q", "/b", "/b?q"),
    ("/a/..", "/", "/"),
    ("/%2e%2e/b", "/b", "/b"),
    ("/a/%2E%2e/b", "/b", "/b"),
    ("/a%2Fb", "/a/b", "/a/b"),
    ("/a%2f..%2fb", "/b", "/b"),
    ("/%61%64min", "/admin", None),
    ("/a%20b", "/a b", None),
    ("/caf%C3%A9", "/café", None),
    ("/..//caf%C3%A9 x", "/café x", "/caf%C3%A9%20x"),
    ("/%252e%252e/b", "/%2e%2e/b", None),
    ("/a;x=1/b", "/a;x=1/b", None),
    ("http://host/b", "/http:/host/b", "/http:/host/b"),
    ("/pkg.Service/Method", "/pkg.Service/Method", None),
    ("/...", "/...", None),
]


@pytest.mark.parametrize(("target", "path", "sent"), PATHS)
def test_a_path_is_read_as_the_application_reads_it(target: str, path: str, sent: str | None) -> None:
    assert read(target) == (path, target if sent is None else sent)


@pytest.mark.parametrize(
    "target",
    [
        "/a%23b",
        "/a%3fb",
        "/a#b",
        "/a%00",
        "/a%0d%0aX:1",
        "/a\nb",
        "/a%7f",
        "/a\\..\\b",
        "/a%5c..%5Cb",
        "/%c0%ae",
        "/%",
        "/%zz",
    ],
)
def test_a_path_that_servers_read_differently_is_refused(target: str) -> None:
    with pytest.raises(BadArgumentError, match=r"^invalid method: "):
        gate(access()).admit(SHOP, "GET", target, grpc=False)
    assert gate(None).admit(SHOP, "GET", target, grpc=False) == target


# Operations of a policy whose default and the default of all are deny; a request; whether it is allowed.
ALLOWED = [
    ([allows("/orders")], "GET /orders", True),
    ([allows("orders")], "GET /orders", True),
    ([allows("/orders/")], "GET /orders", True),
    ([allows("/orders")], "GET /orders/", True),
    ([allows("/orders")], "GET /orders?x=/admin", True),
    ([allows("/orders")], "GET /ORDERS", True),
    ([allows("/Orders")], "GET /orders", True),
    ([allows("/orders")], "GET /orders/1", False),
    ([allows("/orders")], "GET /orders2", False),
    ([allows("/orders")], "GET /", False),
    ([allows("/")], "GET /", True),
    ([allows("/")], "GET /a", False),
    ([allows("")], "GET ", True),
    ([allows("/*")], "GET /a", True),
    ([allows("/*")], "GET /a/b", False),
    ([allows("/a/*")], "GET /a/b", True),
    ([allows("/a/*")], "GET /a/b/", True),
    ([allows("/a/*")], "GET /a", False),
    ([allows("/a/*")], "GET /a/", False),
    ([allows("/a/*")], "GET /a/b/c", False),
    ([allows("/a/**")], "GET /a/b/c", True),
    ([allows("/a/**")], "GET /a", True),
    ([allows("/a/**")], "GET /ab", False),
    ([allows("/**")], "GET /", True),
    ([allows("/a/*/c")], "GET /a/b/c", True),
    ([allows("/a/*/c")], "GET /a/b/d", False),
    ([allows("/a/b*")], "GET /a/bcd", True),
    ([allows("/a/b*")], "GET /a/b", True),
    ([allows("/a/b*")], "GET /a/bcd/e", False),
    ([allows("/a/*b*c")], "GET /a/xbyc", True),
    ([allows("/a/*b*c")], "GET /a/cb", False),
    ([allows("/a/b*b")], "GET /a/b", False),
    ([allows("/x*/**")], "GET /x/y/z", True),
    ([allows("/a/**/z")], "GET /a/b/z", True),
    ([allows("/a/**/z")], "GET /a/b/c/z", True),
    ([allows("/a/**/z")], "GET /a/z", True),
    ([allows("/a/**/z")], "GET /a/b/z/c", False),
    ([allows("/a/**/m/**/z")], "GET /a/m/m/z", True),
    ([allows("/a/**/m/**/z")], "GET /a/x/z", False),
    ([allows("/**/z")], "GET /a/b/z", True),
    ([allows("/a/**/z*")], "GET /" + "a/" * 2000 + "z", True),
    # Paths that want to be read as another.
    ([allows("/public/**")], "GET /public/../admin", False),
    ([allows("/public/**")], "GET /public/%2e%2e/admin", False),
    ([allows("/public/**")], "GET /public%2f..%2fadmin", False),
    ([allows("/public/**")], "GET /public/..;/admin", False),
    ([allows("/public/**")], "GET /public/..;a=b/admin", False),
    ([allows("/public/**")], "GET /public/..%3b/admin", False),
    ([allows("/public/**")], "GET /public/a;b/c", True),
    ([allows("/public")], "GET /admin/../public", True),
    ([allows("/public")], "GET //public", True),
    ([allows("/public")], "GET /public;x", False),
    ([allows("/public")], "GET /%70ublic", True),
    ([allows("/a/*")], "GET /a%2Fb", True),
    ([allows("/a/*")], "GET /a/b%2Fc", False),
    # Verbs.
    ([allows("/a", "GET")], "GET /a", True),
    ([allows("/a", "GET")], "POST /a", False),
    ([allows("/a", "get")], "GET /a", True),
    ([allows("/a", "GET")], "get /a", True),
    ([allows("/a", "GET", "*")], "PURGE /a", True),
    ([allows("/a", "POST"), allows("/a", "GET")], "GET /a", False),
    ([AccessOperation("/a", (), "allow")], "GET /a", False),
    # The first that fits counts.
    ([denies("/a/b"), allows("/a/*")], "GET /a/b", False),
    ([allows("/a/*"), denies("/a/b")], "GET /a/b", True),
    ([], "GET /a", False),
]
DENIED = [
    ([denies("/admin")], "GET /public", True),
    ([denies("/admin")], "GET /admin", False),
    ([denies("/admin")], "GET /ADMIN/", False),
    ([denies("/admin")], "GET /admin/users", False),
    ([denies("/admin")], "GET /administrator", True),
    ([denies("/admin")], "GET /x/../admin", False),
    ([denies("/admin")], "GET /%61dmin", False),
    ([denies("/admin")], "GET /admin;v=1", False),
    ([denies("/admin")], "GET /admin;v=1/users", False),
    ([denies("/admin")], "GET /x;/../admin", False),
    ([denies("/admin", "POST")], "GET /admin", True),
    ([denies("/admin", "POST")], "post /admin", False),
    ([denies("/admin/*")], "GET /admin", True),
    ([denies("/admin/*")], "GET /admin/x", False),
    ([denies("/admin/*")], "GET /admin/x/y", True),
    ([denies("/a*")], "GET /admin/x", False),
    ([denies("/")], "GET /", False),
    ([denies("/")], "GET /a", True),
    ([denies("/**")], "GET /a/b", False),
    ([denies("/a/**/z")], "GET /a/b/c/z/y", False),
    ([denies("/a/**/z")], "GET /a/b/c", True),
]


@pytest.mark.parametrize(("operations", "request_", "expected"), ALLOWED)
def test_operations_allow(operations: list[AccessOperation], request_: str, expected: bool) -> None:
    assert allowed(access(*operations), *request_.split(" ", 1)) is expected


@pytest.mark.parametrize(("operations", "request_", "expected"), DENIED)
def test_operations_deny(operations: list[AccessOperation], request_: str, expected: bool) -> None:
    assert allowed(access(*operations, policy="allow"), *request_.split(" ", 1)) is expected


@pytest.mark.parametrize(
    ("operations", "target", "expected"),
    [
        ([allows("/pkg.Svc/Get", "GET")], "/pkg.Svc/Get", True),
        ([allows("/pkg.Svc/Get", "GET")], "/pkg.svc/get", False),
        ([AccessOperation("/pkg.Svc/Get", (), "allow")], "/pkg.Svc/Get", True),
        ([allows("/pkg.Svc/*")], "/pkg.Svc/Set", True),
        ([AccessOperation("/pkg.Svc/*", ("GET",), "deny"), allows("/**")], "/pkg.Svc/Set", False),
    ],
)
def test_grpc_has_no_verbs_and_regards_case(
    operations: list[AccessOperation],
    target: str,
    expected: bool,
) -> None:
    assert allowed(access(*operations), "POST", target, grpc=True) is expected


OTHERS = [
    (SHOP, True),
    (CLAIMED, False),
    (Caller("default", "Shop", proven=True), False),
    (Caller("other", "shop", proven=True), False),
    (Caller("default", "shop", proven=True, trust_domain="elsewhere"), False),
    (Caller("default", "", proven=True), False),
    (Caller("default", "callee", proven=True), True),
    (Caller("default", "callee"), False),
]


@pytest.mark.parametrize(("caller", "expected"), OTHERS)
def test_a_policy_is_one_caller_s(caller: Caller, expected: bool) -> None:
    """Who is not named, and who only says who it is, gets the action for all; who calls itself is not asked."""
    section = access(allows("/**"))
    assert allowed(section, "GET", "/a", caller) is expected
    for_all = AccessControl("allow", "public", access(denies("/**")).policies)
    assert allowed(for_all, "GET", "/a", caller) is (caller != SHOP)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (None, True),
        (AccessControl(), True),
        (AccessControl("allow"), True),
        (AccessControl("deny"), False),
        (AccessControl("", "domain"), True),
        (access(default="", policy=""), False),
        (access(default="allow", policy=""), True),
        (access(default="deny", policy=""), False),
        (access(default="deny", policy="allow"), True),
        (access(default="allow", policy="deny"), False),
        (access(default="", app_id="another"), False),
        (access(allows("/a", "POST"), default="allow", policy=""), True),
        (access(allows("/a", "POST"), default="allow", policy="deny"), False),
    ],
)
def test_default_actions(section: AccessControl | None, expected: bool) -> None:
    assert (section is None or allowed(section, "GET", "/a")) is expected


def test_what_admits_everybody_costs_nothing() -> None:
    for section in (None, AccessControl(), AccessControl("allow", "domain")):
        assert rules(section) is None


def test_decisions_are_counted_and_a_denial_says_whom_and_what() -> None:
    counters = Counters()
    checked = gate(access(allows("/a"), policy=""), counters)
    checked.admit(SHOP, "GET", "/a", grpc=False)
    spiffe = "access control policy has denied access to id: spiffe://public/ns/default/shop operation: /b verb: PUT"
    with pytest.raises(PermissionDeniedError, match=f"^{spiffe}$"):
        checked.admit(SHOP, "PUT", "/b", grpc=False)
    with pytest.raises(PermissionDeniedError, match=r"id: shop \(not proven\) operation: /a verb: NONE$"):
        checked.admit(CLAIMED, "POST", "/a", grpc=True)
    checked.apply(access(policy="deny"))
    with pytest.raises(PermissionDeniedError):
        checked.admit(SHOP, "GET", "/a", grpc=False)
    assert counters.snapshot() == {
        ("access", "app", "allowed", "default", "public"): 1,
        ("access", "global", "blocked", "default", "public"): 1,
        ("access", "global", "blocked", "", ""): 1,
        ("access", "app", "blocked", "default", "public"): 1,
    }


def test_the_log_says_each_denial_once(caplog: pytest.LogCaptureFixture) -> None:
    checked = gate(AccessControl("deny"))
    for target in ("/a", "/a", "/b", f"/{'x' * 5000}"):
        with pytest.raises(PermissionDeniedError):
            checked.admit(CLAIMED, "GET", target, grpc=False)
    told = [record.getMessage() for record in caplog.records if "has denied access" in record.getMessage()]
    assert len(told) == 3
    assert max(map(len, told)) < 400


def test_it_is_said_that_no_identity_is_proven(caplog: pytest.LogCaptureFixture) -> None:
    """Only where rules name callers, and again when they are others."""
    caplog.set_level(logging.WARNING)
    checked = gate(AccessControl("deny"))
    assert not caplog.records
    for _ in range(2):
        checked.apply(access(default="allow"))
    Gate(Caller("default", "callee"), access(), Counters(), proves=True)
    [record] = caplog.records
    assert record.getMessage().endswith("for all of them holds its defaultAction, allow")


def test_a_sender_is_who_it_says_it_is() -> None:
    assert sender({"ce-source": "my%20shop"}, "ns") == Caller("ns", "my shop")
    assert sender({}, "ns") == Caller("ns", "")


def test_decisions_are_values() -> None:
    made = rules(access(allows("/a")))
    assert made == rules(access(allows("/a")))
    assert made is not None
    assert made.decide(SHOP, "GET", "/a", grpc=False) == Decision(True, made.decide(SHOP, "GET", "/a", grpc=True).by)


SCENARIOS = {
    "one application": (
        "{defaultAction: deny, trustDomain: public, policies: [{appId: app1, defaultAction: allow, "
        "trustDomain: public, namespace: default}]}",
        {"app1 GET /any": True, "app2 GET /any": False, "app1@ns2 GET /any": False},
    ),
    "one operation": (
        "{defaultAction: deny, trustDomain: public, policies: [{appId: app1, defaultAction: deny, trustDomain: public, "
        "namespace: default, operations: [{name: /op1, httpVerb: ['*'], action: allow}]}]}",
        {"app1 GET /op1": True, "app1 DELETE /op1": True, "app1 GET /op2": False, "app2 GET /op1": False},
    ),
    "verbs and callers": (
        "{defaultAction: deny, trustDomain: public, policies: ["
        "{appId: app1, defaultAction: deny, trustDomain: public, namespace: default, operations: "
        "[{name: /op1, httpVerb: [POST], action: allow}]}, "
        "{appId: app2, defaultAction: deny, trustDomain: myDomain, namespace: ns1, operations: "
        "[{name: /op2/*, httpVerb: [PUT, GET], action: allow}]}]}",
        {
            "app1 POST /op1": True,
            "app1 GET /op1": False,
            "app2@ns1@mydomain PUT /op2/a": True,
            "app2@ns1@mydomain POST /op2/a": False,
            "app2@ns1@mydomain PUT /op1": False,
            "app2@ns1 PUT /op2/a": False,
        },
    ),
    "all but what is below one path": (
        "{defaultAction: allow, trustDomain: public, policies: [{appId: app1, defaultAction: allow, "
        "trustDomain: public, namespace: default, operations: [{name: /op1/*, httpVerb: ['*'], action: deny}]}]}",
        {"app1 GET /op1/a": False, "app1 GET /op2": True, "app2 GET /op1/a": True},
    ),
    "one app id in two namespaces": (
        "{defaultAction: allow, trustDomain: public, policies: ["
        "{appId: app1, defaultAction: allow, trustDomain: public, namespace: ns1}, "
        "{appId: app1, defaultAction: deny, trustDomain: public, namespace: ns2}]}",
        {"app1@ns1 GET /a": True, "app1@ns2 GET /a": False, "app1 GET /a": True},
    ),
    "a path at any depth": (
        "{defaultAction: allow, trustDomain: public, policies: [{appId: app1, defaultAction: allow, "
        "trustDomain: public, namespace: default, operations: [{name: /op1/**/a, httpVerb: ['*'], action: deny}]}]}",
        {"app1 GET /op1/b/a": False, "app1 GET /op1/b/c/a": False, "app1 GET /op1/b": True, "app1 GET /op2/b/a": True},
    ),
    "one method of one caller": (
        "{defaultAction: allow, trustDomain: public, policies: [{appId: pythonapp, defaultAction: allow, "
        "trustDomain: public, namespace: default, operations: [{name: /neworder, httpVerb: [POST], action: deny}]}]}",
        {"pythonapp POST /neworder": False, "pythonapp GET /neworder": True, "pythonapp POST /order": True},
    ),
    "hello world, the callee": (
        "{defaultAction: allow, trustDomain: public, policies: [{appId: pythonapp, defaultAction: allow, "
        "trustDomain: 'myDomain', namespace: default, operations: "
        "[{name: /neworder, httpVerb: ['POST'], action: deny}]}]}",
        {"pythonapp@default@mydomain POST /neworder": False, "pythonapp@default@mydomain GET /neworder": True},
    ),
    "hello world, the caller": ("{defaultAction: allow, trustDomain: myDomain}", {"any POST /x": True}),
}


@pytest.mark.parametrize(
    ("named", "option", "lines"),
    [("one", "", [9]), ("other", "", [8]), ("one", "other", [8]), ("one", "third", [8, 9])],
)
def test_a_policy_of_another_trust_domain_than_the_node_s(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    named: str,
    option: str,
    lines: list[int],
) -> None:
    """It matches nobody, so it is told of with its place, in files and for gateways of templates."""
    path = tmp_path / "c.yaml"
    policies = [f"    - {{appId: a, namespace: n, trustDomain: {domain}}}" for domain in ("one", "other")]
    path.write_text(HEAD + "\n".join([f"    trustDomain: {named}", "    policies:", *policies]))
    monkeypatch.setenv("MESH_TRUST_DOMAIN", option)
    monkeypatch.setenv("MESH_TRUST_MODE", "strict")
    template = tmp_path / "dapr.yaml"
    template.write_text("version: 1\napps:\n- {appID: shop, appDirPath: ., command: [sh], configFilePath: c.yaml}\n")
    for each in (path, template):
        assert main(["check", "-o", "json", str(each)]) == 0
        told = json.loads(capsys.readouterr().out)["warnings"]
        assert [(Path(each["file"]).name, each["line"]) for each in told] == [("c.yaml", line) for line in lines]


@pytest.mark.parametrize(("section", "requests"), SCENARIOS.values(), ids=SCENARIOS)
def test_scenarios_of_the_public_documentation(tmp_path: Path, section: str, requests: dict[str, bool]) -> None:
    """Each loads, and decides as it is told of there."""
    path = tmp_path / "c.yaml"
    path.write_text(HEAD.removesuffix("\n") + f" {section}\n")
    warnings: list[Any] = []
    checked = load_configuration_file(path, {}, warnings).spec.access_control
    assert checked is not None
    told = [(each.path.removeprefix("spec.accessControl"), each.message.partition(":")[0]) for each in warnings]
    of = ".policies[1].trustDomain" if "app2" in section else ".policies[0].trustDomain"
    lowered = [(of if "policies" in section else ".trustDomain", "it is read as 'mydomain'")] * ("myDomain" in section)
    assert told == lowered + [(of, "it is about nobody")] * (
        "'myDomain'" in section or "myDomain, namespace" in section
    )
    for request, expected in requests.items():
        who, verb, target = request.split(" ")
        app_id, namespace, domain = (*who.split("@"), *("default", "public")[who.count("@") :])
        caller = Caller(namespace, app_id, proven=True, trust_domain=domain)
        assert allowed(checked, verb, target, caller) is expected, request


_POLICY = "    policies:\n    - {appId: a, namespace: n, trustDomain: t, operations: [%s]}\n"
WRONG = {
    "nobody": (
        "    policies: [{appId: '', namespace: n, trustDomain: t}]\n",
        "6:24: spec.accessControl.policies[0].appId",
    ),
    "no namespace": ("    policies: [{appId: a, trustDomain: t}]\n", "policies[0].namespace"),
    "no trust domain": ("    policies: [{appId: a, namespace: n}]\n", "policies[0].trustDomain"),
    "empty": (
        "    policies: [{appId: a, namespace: n, trustDomain: ''}]\n",
        "trustDomain: it is empty, and names nobody",
    ),
    "twice": (
        "    policies: [{appId: a, namespace: n, trustDomain: t}, {appId: a, namespace: n, trustDomain: t}]\n",
        "policies[1]: there is a policy of a before, which would not count",
    ),
    "no domain": ("    trustDomain: my domain\n", "6:18: spec.accessControl.trustDomain: trust domain 'my domain' has"),
    "a letter that is no ASCII": (
        "    policies: [{appId: a, namespace: n, trustDomain: \u212aa}]\n",
        "6:54: spec.accessControl.policies[0].trustDomain: trust domain '\u212aa' has other than",
    ),
    "twice, as case does not count": (
        "    policies: [{appId: a, namespace: n, trustDomain: t}, {appId: a, namespace: n, trustDomain: T}]\n",
        "policies[1]: there is a policy of a before, which would not count",
    ),
    "action": ("    defaultAction: denied\n", "6:20: spec.accessControl.defaultAction"),
    "operation's action": (_POLICY % "{name: /a, action: no}", "operations[0].action"),
    "unnamed": (_POLICY % "{action: deny}", "operations[0].name"),
    "escaped": (_POLICY % "{name: /a%20b, httpVerb: ['*'], action: deny}", "operations[0].name: a path is written as"),
    "climbing": (_POLICY % "{name: /a/../b, httpVerb: ['*'], action: deny}", "name: no call has the path '/a/../b'"),
    "doubled": (_POLICY % "{name: /a//b, httpVerb: ['*'], action: deny}", "name: no call has the path '/a//b'"),
    "query": (_POLICY % "{name: '/a?b', httpVerb: ['*'], action: deny}", "name: no call has the path '/a?b'"),
    "verb": (_POLICY % "{name: /a, httpVerb: ['GET POST'], action: deny}", "httpVerb: 'GET POST' is no verb"),
    "half a star": (_POLICY % "{name: /a, httpVerb: ['P*'], action: deny}", "httpVerb: 'P*' is no verb"),
    "a tap's action": ("    tap: {action: no}\n", "6:19: spec.accessControl.tap.action"),
    "a tap of nobody": ("    tap: {values: ['']}\n", "spec.accessControl.tap.values[0]: the app id must not be empty"),
    "a tap of no application": ("    tap: {manage: [a/b]}\n", "tap.manage[0]: the app id 'a/b' must not contain"),
    "a tap that is misspelt": ("    tap: {value: [a]}\n", "did you mean 'values'?"),
    "misspelt": (_POLICY % "{name: /a, httpVerbs: [GET], action: deny}", "did you mean 'httpVerb'?"),
}


@pytest.mark.parametrize(("section", "said"), WRONG.values(), ids=WRONG)
def test_wrong_rules_are_errors_with_their_place(tmp_path: Path, section: str, said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(HEAD + section)
    with pytest.raises(ConfigError) as caught:
        load_configuration_file(path, {}, [])
    assert said in str(caught.value)


def test_names_beside_a_tap_that_denies_are_warned_of(tmp_path: Path) -> None:
    path, warnings = tmp_path / "c.yaml", []
    path.write_text(HEAD + "    tap: {action: deny, values: [a]}\n")
    load_configuration_file(path, {}, warnings)
    (warning,) = warnings
    assert (warning.path, "counts for nothing" in warning.message) == ("spec.accessControl.tap.values", True)


def test_who_has_proven_to_be_the_caller_is_told() -> None:
    """Whoever the caller's own words name, in any case; all else goes along."""
    said = [("Dapr-Caller-App-Id", "admin"), ("dapr-caller-namespace", "other"), ("X", "1")]
    assert naming(said, None) == said
    assert naming(said, Identity("public", "default", "shop")) == [
        *(("X", "1"), ("dapr-caller-app-id", "shop"), ("dapr-caller-namespace", "default")),
    ]


@pytest.mark.parametrize("caller", [Identity("public", "default", "shop"), None], ids=["proven", "not proven"])
@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("mesh-proven-by", False),
        ("Mesh-Proven-By", False),
        ("mesh_proven_by", False),
        ("mesh-proven_by", False),
        ("mesh-attempt", False),
        ("mesh-call-id", False),
        ("mesh-binding", False),
        ("mesh-dead-letter-reason", False),
        ("mesh-of-days-to-come", False),
        ("dapr_caller_app_id", False),
        ("mesh-timeout", True),
        ("Mesh-Fencing-Token", True),
        ("mesh-idempotency-key", True),
        ("mesh_fencing_token", False),
        ("meshed", True),
        ("dapr-api-token", True),
        ("x_y", True),
    ],
)
def test_what_gateways_alone_say_is_no_caller_s_word(caller: Identity | None, name: str, *, passes: bool) -> None:
    assert ((name, "1") in naming([(name, "1")], caller)) == passes


def test_callbacks_of_an_application_are_its_gateway_s_alone() -> None:
    """By them a method or an event could be asked for that a rule denies."""
    gate = Gate(Caller("default", "stock"), access(default="allow", policy="allow"), Counters())
    for service in ("AppCallback", "AppCallbackAlpha", "AppCallbackHealthCheck"):
        path = f"/dapr.proto.runtime.v1.{service}/OnInvoke"
        for written in (path, path.replace("/dapr", "//dapr"), path.replace("A", "%41")):
            with pytest.raises(PermissionDeniedError):
                gate.admit(SHOP, "POST", written, grpc=True)
    assert gate.admit(SHOP, "POST", "/dapr.proto.runtime.v1.Application/Do", grpc=True)


def test_what_a_caller_says_of_itself_is_told_by_its_beginning(caplog: pytest.LogCaptureFixture) -> None:
    """It fills neither the log nor memory, and is counted by its beginning."""
    gate = Gate(Caller("default", "stock"), access(), counters := Counters())
    for number in range(3):
        caller = Caller("default", "x" * 100_000 + str(number))
        with pytest.raises(PermissionDeniedError) as refused:
            gate.admit(caller, "V" * 100_000, "/" + "p" * 100_000, grpc=False)
        assert len(str(refused.value)) < 1000
    assert len([each for each in caplog.records if "denied" in each.getMessage()]) == 1
    counters.add("name", "x" * 1000 + "1")
    counters.add("name", "x" * 1000 + "2")
    assert counters.snapshot()["name", "x" * 200] == 2
