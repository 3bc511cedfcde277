"""The commands as people and scripts see them, where no gateway has to run."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from gateway.cli import invoke, main, publish
from gateway.cli.dispatch import COMMANDS, command
from gateway.cli.publish import content_type
from gateway.cli.reference import INSTEAD, as_typed
from gateway.runs import Run, registered
from tests.support.processes import ROOT


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MESH_BACKBONE", "MESH_OUTPUT", "DAPR_API_TOKEN", "NAMESPACE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class _Gateway:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.status, self.body = 204, b""
        self.asked: list[tuple[str, str, bytes, dict[str, str]]] = []


@contextmanager
def _gateway(home: Path, *app_ids: str) -> Iterator[_Gateway]:
    told = _Gateway()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            told.asked.append((self.command, self.path, body, {k.lower(): v for k, v in self.headers.items()}))
            self.send_response(told.status)
            self.send_header("Content-Length", str(len(told.body)))
            self.end_headers()
            self.wfile.write(told.body)

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            if app_ids:
                # One process has one entry; that is enough for one application.
                with registered(home, Run(app_ids[0], server.server_port, labels={"appCommand": "node app.js"})):
                    yield told
            else:
                yield told
        finally:
            server.shutdown()
            thread.join()


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_host_of_nothing_ends(tmp_path: Path) -> None:
    """The components that a gateway has by itself are nothing to host."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "r.yaml").write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata: {name: r}\nspec: {}\n"
    )
    code = "import sys; from gateway.cli import main; sys.exit(main(['host', '--resources-path', sys.argv[1]]))"
    environ = {**os.environ, "MESH_BACKBONE": "memory:"}
    words = [sys.executable, "-c", code, str(tmp_path / "r")]
    found = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1
    assert f"there is nothing to host: no Component in {tmp_path / 'r'}; add one" in found.stdout


def test_help_takes_less_than_a_third_of_a_second() -> None:
    def seconds() -> float:
        began = _cpu_of_children()
        code = "import sys; from gateway.cli import main; sys.exit(main(['--help']))"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
        return _cpu_of_children() - began

    assert min(seconds() for _ in range(3)) < 0.3


@pytest.mark.parametrize("module", ["gateway.cli", "gateway.cli.serve", "gateway.cli.dispatch", "gateway.cli.run"])
def test_command_line_starts_without_heavy_imports(module: str) -> None:
    heavy = {"aiohttp", "pydantic", "yaml", "nats", "rich", "typer", "psutil"}
    code = f"import sys, {module}; print(*({heavy!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"usage: mesh {name}" in capsys.readouterr().out
    assert command(name).parser().prog == f"mesh {name}"


def test_help_of_run_shows_no_old_names(capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "--help"])
    out = capsys.readouterr().out
    assert "--dapr-http-port" in out
    assert "--port" not in out.replace("--app-port", "").replace("--dapr-http-port", "")
    assert "--components-path" not in out
    assert "SUPPRESS" not in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("list --outptu json", "unknown option --outptu; did you mean --output?"),
        ("invoke -a x", "the following arguments are required: -m/--method"),
        ("invoke -a x -m y -d 1 -f z", "--data and --data-file exclude each other"),
        ("stop", "name an application: mesh stop APP-ID, or a template: mesh stop -f FILE"),
        ("run", "there is no command to run, and no --app-id or --app-port of an application that runs already"),
        ("run --app-prot 3 x", "unknown option --app-prot; did you mean --app-port?"),
        (
            "jobs list -k",
            "this command does nothing with a cluster of Kubernetes; those with -k are on docs/kubernetes.md",
        ),
        ("run -k x", "in a cluster, applications of a template are run: mesh run -k -f FILE"),
        ("stop -k a", "in a cluster, applications of a template are stopped: mesh stop -k -f FILE"),
        ("logs -k", "name one application: mesh logs -k -a APP-ID"),
        ("init --set replicas=3", "--set, --dry-run and --output are for a cluster: mesh init -k"),
        ("upgrade", "on one machine there is one package: pip install it again; of a cluster: mesh upgrade -k"),
        (
            "configurations",
            "a Configuration is a file here: mesh check FILE reads it; of a cluster: mesh configurations -k",
        ),
        ("mtls", "of a cluster: mesh mtls -k; elsewhere mesh trust makes roots and certificates"),
        ("gateway --nonsense", "unknown option --nonsense"),
        (
            "invoke -a app -m x --timeout soon",
            "argument --timeout: not a duration: 'soon' "
            "(for example '500ms', '1.5s', '1h30m' or 'PT1H', or a number of seconds)",
        ),
        ("publish -p a -t b -m [1]", '--metadata must be a JSON object of texts, such as {"ttlInSeconds": "10"}'),
        ("publish -p .. -t b", "no pub/sub component is named '..'"),
        ("publish -p a -t .", "no topic is named '.'"),
        ("invoke -a .. -m x", "no application is named '..'"),
        ("actors show .. 17", "no actor type is named '..'"),
        ("actors deactivate cart .", "no actor is named '.'"),
        ("jobs run ..", "no job is named '..'"),
    ],
)
def test_wrong_command_lines_are_refused(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = line.split()
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: {message}\n  see: mesh {words[0]} --help\n"


def test_unknown_command_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lst"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'lst'; did you mean list?\n  see: mesh --help\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("stop nobody", "nobody does not run; see: mesh list"),
        ("stop --app-id nobody", "nobody does not run; see: mesh list"),
        ("invoke -a x -m y", "no gateway runs; start one with: mesh run --app-id NAME -- COMMAND"),
        ("invoke -a x -m y -f nowhere", "nowhere: No such file or directory"),
        ("publish -i x -p y -t z", "x does not run; see: mesh list"),
        ("run -f nowhere", "nowhere: there is no such file"),
        (
            "run --app-id a.b x",
            "--app-id: the app id 'a.b' must not contain dots, slashes, '@', blanks or control characters",
        ),
    ],
)
def test_failures_say_what_to_do(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


def test_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "nothing runs" in captured.err
    assert main(["list", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_list_has_the_members_of_dapr(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(
        "nodeapp",
        3500,
        grpc_port=50001,
        metrics_port=9091,
        app_port=3000,
        app_pid=99,
        labels={"cliPID": "98", "appCommand": "node app.js"},
    )
    with registered(home, run):
        assert main(["list", "--output", "json"]) == 0
        (entry,) = json.loads(capsys.readouterr().out)
        assert main(["list"]) == 0
        table = capsys.readouterr().out.splitlines()
        assert main(["list", "-o", "yaml"]) == 0
        assert "- appId: nodeapp\n" in capsys.readouterr().out
        monkeypatch.setenv("MESH_OUTPUT", "dapr")
        assert main(["list"]) == 0
        as_dapr = capsys.readouterr().out.splitlines()[0]
    assert entry.pop("age") == "0s"
    assert entry.pop("created").startswith("20")
    assert "actors" in entry
    del entry["actors"]
    assert entry == {
        "appId": "nodeapp",
        "httpPort": 3500,
        "grpcPort": 50001,
        "appPort": 3000,
        "metricsEnabled": True,
        "metricsPort": 9091,
        "command": "node app.js",
        "daprdPid": os.getpid(),
        "cliPid": 98,
        "appPid": 99,
        "maxRequestBodySize": 4194304,
        "httpReadBufferSize": 16384,
        "runTemplatePath": "",
        "appLogPath": "",
        "daprdLogPath": "",
        "runTemplateName": "",
    }
    assert table[0].split("  ")[0] == "APP ID"
    assert re.split(r"  +", as_dapr) == [
        *("APP ID", "HTTP PORT", "GRPC PORT", "APP PORT", "COMMAND", "AGE", "CREATED", "DAPRD PID", "CLI PID"),
        *("APP PID", "RUN_TEMPLATE_PATH", "APP_LOG_PATH", "DAPRD_LOG_PATH"),
    ]
    assert table[1].startswith("nodeapp")
    assert "RUN TEMPLATE" not in table[0]


def test_actors_of_what_runs(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Lists have them before the columns that programs count from the end; those of dapr have none."""
    actors = [{"type": "cart", "count": 3}, {"type": "user", "count": 0}]
    with _gateway(home, "shop") as gateway:
        gateway.status, gateway.body = 200, json.dumps({"id": "shop", "actors": actors}).encode()
        assert main(["list", "-o", "json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["actors"] == actors
        assert main(["list"]) == 0
        heading, line = capsys.readouterr().out.splitlines()
        assert line[heading.index("ACTORS") :].split()[0] == "cart:3,user:0"
        assert heading.endswith("GATEWAY PID")
        assert main(["status"]) == 0
        assert "hosts actors: cart (3 active), user (0 active)" in capsys.readouterr().out
        assert main(["status", "-o", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["apps"][0]["actors"] == actors
        gateway.status = 401
        assert main(["list", "-o", "json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["actors"] is None
        monkeypatch.setenv("MESH_OUTPUT", "dapr")
        assert main(["list", "-o", "json"]) == 0
        assert "actors" not in json.loads(capsys.readouterr().out)[0]


@pytest.mark.parametrize(
    ("words", "method", "path", "body"),
    [
        (["--method", "neworder", "--payload", '{"data":1}'], "POST", "neworder", b'{"data":1}'),
        (["-m", "/neworder", "-d", "x"], "POST", "neworder", b"x"),
        (["-m", "order?a=1&b=%20", "-v", "get"], "GET", "order?a=1&b=%20", b""),
        (["-m", "a/b c", "--verb", "DELETE"], "DELETE", "a/b%20c", b""),
    ],
)
def test_invoke_calls_the_gateway(
    home: Path, words: list[str], method: str, path: str, body: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with _gateway(home, "nodeapp") as gateway:
        gateway.status, gateway.body = 200, b'{"orderId":"41"}'
        assert main(["invoke", "--app-id", "nodeapp", *words]) == 0
        (asked,) = gateway.asked
    assert asked[:3] == (method, f"/v1.0/invoke/nodeapp/method/{path}", body)
    assert asked[3].get("content-type") == ("application/json" if body else None)


def test_invoke_prints_the_bytes_of_the_answer(home: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with _gateway(home, "nodeapp") as gateway:
        gateway.status, gateway.body = 200, b"\xff\x00 as it is"
        assert main(["invoke", "-a", "nodeapp", "-m", "x"]) == 0
    assert capfdbinary.readouterr().out == b"\xff\x00 as it is"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            b'{"errorCode":"ERR_DIRECT_INVOKE","message":"no such app"}',
            "no such app (ERR_DIRECT_INVOKE); see: mesh list",
        ),
        (b"the app's own words\n", "the app's own words"),
        (b'{"own":1}', '{"own":1}'),
    ],
)
def test_invoke_fails_with_the_text_of_the_error(
    home: Path, body: bytes, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with _gateway(home, "nodeapp") as gateway:
        gateway.status, gateway.body = 500, body
        assert main(["invoke", "-a", "other", "-m", "x"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: other: 500 Internal Server Error: {text}\n"


def test_token_is_sent(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAPR_API_TOKEN", "secret")
    with _gateway(home, "nodeapp") as gateway:
        main(["invoke", "-a", "nodeapp", "-m", "x"])
        assert gateway.asked[0][3]["dapr-api-token"] == "secret"


def test_gateway_that_does_not_answer_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with registered(home, Run("nodeapp", 1)):
        assert main(["invoke", "-a", "nodeapp", "-m", "x"]) == 1
    assert "error: the gateway of nodeapp at 127.0.0.1:1 does not answer: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("invoke -a nodeapp -m x", "nodeapp gave no answer for 0.2 s; --timeout sets how long to wait"),
        ("publish -p a -t b -d x", "no answer for 0.2 s; whether the event was published is not known"),
    ],
)
def test_how_long_a_silent_gateway_is_waited_for(
    home: Path, line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As long as --timeout says; without it the gateway decides, since it knows the policies."""
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        registered(home, Run("nodeapp", silent.getsockname()[1])),
    ):
        assert main([*line.split(), "--timeout", "200ms"]) == 1
    assert capsys.readouterr().err == f"error: {said}\n"
    of = {"invoke": invoke.parser(), "publish": publish.parser()}[line.split()[0]]
    assert of.parse(line.split()[1:]).timeout is None


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["jobs", "show", "a/../b c\udcff"], "/v1.0/mesh/jobs/a%2F..%2Fb%20c%FF"),
        (["jobs", "list", "-p", "\udcff&"], "/v1.0/mesh/jobs?prefix=%FF%26&after=&limit=1000"),
        (["actors", "show", "a#", "b?\udcff", "-a", "shop"], "/v1.0/mesh/actors/a%23/b%3F%FF"),
        (["publish", "-p", "bulk", "-t", "../a//b"], "/v1.0/publish/bulk/..%2Fa%2F%2Fb"),
        (["publish", "-p", "p", "-t", "t", "-m", '{"k": "\udcff"}'], "/v1.0/publish/p/t?metadata.k=%FF"),
        (["invoke", "-a", "a/b", "-m", "../x"], "/v1.0/invoke/a%2Fb/method/../x"),
    ],
)  # fmt: skip
def test_names_arrive_as_they_are(home: Path, words: list[str], asked: str) -> None:
    """Whatever they are made of, bytes that are no UTF-8 among it, a path is that of nothing else."""
    with _gateway(home, "shop") as gateway:
        gateway.status, gateway.body = 200, b'{"jobs": []}'
        assert main(words) == 0
    assert [path for _, path, _, _ in gateway.asked] == [asked]


@pytest.mark.parametrize("line", ["actors list", "jobs list", "jobs show x -o json"])
@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (599, b"?", "shop: 599"),
        (404, b"<p>no", "shop: 404 Not Found: <p>no"),
        (200, b"<p>", "what answers for shop is no gateway: it gave no JSON"),
    ],
)
def test_another_server_at_the_port_of_a_gateway_that_has_gone(
    home: Path, line: str, status: int, body: bytes, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with _gateway(home, "shop") as gateway:
        gateway.status, gateway.body = status, body
        assert main(line.split()) == 1
    out, err = capsys.readouterr()
    assert (out, err.startswith(f"error: {text}")) == ("", True), err


def test_tables_do_nothing_to_a_terminal(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names come from other nodes, which may be hostile."""
    host = {"node": "n", "appID": "a\x1b]0;evil\x07\n", "standing": "ready", "partitions": 1, "active": 0}
    with _gateway(home, "shop") as gateway:
        gateway.status = 200
        gateway.body = json.dumps([{"type": "t", "partitions": 1, "unowned": 0, "hosts": [host]}]).encode()
        assert main(["actors", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["t", "a\ufffd]0;evil\ufffd\ufffd"]


def test_publish_posts_the_event(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "event.json").write_text('{"orderId":1}')
    with _gateway(home, "checkout") as gateway:
        words = ["publish", "--publish-app-id", "checkout", "--pubsub", "pub sub", "--topic", "a/b"]
        assert main([*words, "-f", str(tmp_path / "event.json"), "-m", '{"ttlInSeconds":"5","rawPayload":true}']) == 0
        assert main([*words[:1], *words[3:], "--data", "x"]) == 0
        gateway.status, gateway.body = 404, b'{"errorCode":"ERR_PUBSUB_NOT_FOUND","message":"pubsub x is not found"}'
        assert main([*words, "--data", "x"]) == 1
    (method, path, body, headers), *_ = gateway.asked
    assert (method, path) == ("POST", "/v1.0/publish/pub%20sub/a%2Fb?metadata.ttlInSeconds=5&metadata.rawPayload=true")
    assert body == b'{"orderId":1}'
    assert headers["content-type"] == "application/json"
    assert "404 Not Found: pubsub x is not found (ERR_PUBSUB_NOT_FOUND)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"id":"1","source":"s","specversion":"1.0","type":"t","data":1}', "application/cloudevents+json"),
        (b'{"id":"1","source":"s","specversion":"1.0","type":"t"}', "application/json"),
        (b"[1]", "application/json"),
        (b"plain", "application/json"),
        ("grüß".encode(), "application/json"),
        (b"\x89PNG\r\n\x1a\n", "application/octet-stream"),
        ("grüß".encode("latin-1"), "application/octet-stream"),
        ('{"a":1}'.encode("utf-16"), "application/octet-stream"),
    ],
)
def test_content_type_follows_the_data(body: bytes, expected: str) -> None:
    assert content_type(body) == expected


def test_components_come_from_the_gateways(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is open, where it runs and how it is; what could not be opened is told as well."""
    component = {"name": "statestore", "type": "state.mesh", "version": "v1", "capabilities": ["ETAG", "TTL"]}
    status = [
        {"name": "statestore", "type": "state.mesh", "health": "ok", "placement": "nearest"},
        {"name": "cache", "type": "state.redis", "health": "absent", "reason": "no answer"},
    ]
    with _gateway(home, "nodeapp") as gateway:
        told = {"id": "nodeapp", "components": [component], "componentStatus": status}
        gateway.status, gateway.body = 200, json.dumps(told).encode()
        assert main(["components"]) == 0
        assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [
            ["nodeapp", "statestore", "state.mesh", "v1", "nearest", "ETAG", "TTL", "ok"],
            ["nodeapp", "cache", "state.redis", "absent:", "no", "answer"],
        ]
        assert main(["components", "-o", "json", "-n", "statestore"]) == 0
        shown = {"appId": "nodeapp", **component, "placement": "nearest", "health": "ok", "reason": ""}
        assert json.loads(capsys.readouterr().out) == [shown]
        del told["componentStatus"]
        gateway.body = json.dumps(told).encode()
        assert main(["components"]) == 0
        assert capsys.readouterr().out.splitlines()[1].split() == [
            "nodeapp",
            "statestore",
            "state.mesh",
            "v1",
            "ETAG",
            "TTL",
        ]
        gateway.status, gateway.body = 401, b"unauthorized"
        assert main(["components"]) == 1
        assert "DAPR_API_TOKEN" in capsys.readouterr().err


def test_status_without_a_server(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "-o", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["backbone"], facts["gateways"], facts["dataBytes"]) == ("embedded:", 0, 0)
    assert facts["state"].startswith("stopped")
    monkeypatch.setenv("MESH_BACKBONE", "nats://user:secret@broker:4222")
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert "nats://***@broker:4222" in out
    assert "secret" not in out


def test_status_tells_what_is_not_well(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each target, by its application; an answer without conditions is that of a gateway that is well."""
    retrying = {"state": "retrying", "seconds": 12.5, "trying": 2, "reason": "no answer", "repeated": 7, "givenUp": 1}
    breaker = {"circuitBreaker": "simpleCB", "breaker": "open", "refused": 3}
    conditions = [
        {"target": "application", "state": "away"},
        {"target": "invocation order-processor", **breaker},
        {"target": "state statestore", **retrying},
        {"target": "event pubsub/a", **retrying, "advice": "DROP ends it"},
        {"target": "invocation x", **breaker, **retrying, "endpoint": "/a"},
    ]
    closed = [{"name": "simpleCB", "target": "invocation x", "endpoint": each, "state": "closed"} for each in "abc"]
    closed += [{"name": "cb", "target": f"state {each}", "state": "closed"} for each in range(20)]
    lines = [
        "application: away",
        "invocation order-processor: circuit breaker simpleCB is open, 3 refused",
        "state statestore: retrying for 12.5 s (7 attempts repeated, 1 given up, 2 going on): no answer",
        "event pubsub/a: retrying for 12.5 s (7 attempts repeated, 1 given up, 2 going on): no answer; DROP ends it",
        "invocation x: circuit breaker simpleCB of /a is open, 3 refused; retrying for 12.5 s "
        "(7 attempts repeated, 1 given up, 2 going on): no answer",
    ]
    are_closed = ["invocation x: circuit breaker simpleCB is closed for 3 endpoints"]
    are_closed += [f"state {each}: circuit breaker cb is closed" for each in range(9)]
    are_closed += ["11 more targets with closed circuit breakers"]
    with _gateway(home, "a-rather-long-name") as gateway:
        gateway.status = 200
        for told, breakers, wanted in (
            (conditions, [{**closed[0], "state": "open"}], lines),
            ([], [], ["well"]),
            ([], closed, ["well", *are_closed]),
        ):
            answer = {"id": "x", "conditions": told, "circuitBreakers": breakers}
            gateway.body = json.dumps({name: value for name, value in answer.items() if value}).encode()
            assert main(["status"]) == 0
            shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("a-rather-long-name ")]
            assert [line.partition(" ")[2].strip() for line in shown] == wanted
            assert main(["status", "-o", "json"]) == 0
            (app,) = json.loads(capsys.readouterr().out)["apps"]
            assert (app["appId"], app["conditions"]) == ("a-rather-long-name", told)
        gateway.status = 401
        assert main(["status"]) == 0
        assert "not known: GET metadata was answered with 401" in capsys.readouterr().out


def test_status_tells_what_subscriptions_have_before_them(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that have anything, or had dead letters, behind what is not well."""
    nothing = {"waiting": 0, "taken": 0, "oldestSeconds": 0.0, "attempts": {"success": 9, "retry": 0, "drop": 0}}
    counted = {"attempts": {"success": 7, "retry": 2, "drop": 0}, "deadLetters": 1}
    backlogs = [
        {"pubsubname": "pubsub", "topic": "idle", **nothing, "deadLetters": 0},
        {"pubsubname": "pubsub", "topic": "busy", "waiting": 12, "taken": 3, "oldestSeconds": 61.5, **counted},
        {"pubsubname": "kafka", "topic": "t", "waiting": 5, "taken": None, "oldestSeconds": None, **counted},
        {"pubsubname": "pubsub", "topic": "bad", **nothing, "deadLetters": 2},
    ]
    with _gateway(home, "app") as gateway:
        gateway.status, gateway.body = 200, json.dumps({"id": "x", "backlogs": backlogs}).encode()
        assert main(["status"]) == 0
        shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("app ")]
    assert [line.partition(" ")[2].strip() for line in shown] == [
        "well",
        "subscription pubsub/busy: 12 waiting, 3 taken, the oldest for 61.5 s; "
        "here 7 done, 2 attempts failed, 1 dead letters",
        "subscription kafka/t: 5 waiting; here 7 done, 2 attempts failed, 1 dead letters",
        "subscription pubsub/bad: 0 waiting, 0 taken; here 9 done, 0 attempts failed, 2 dead letters",
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["init"],
        ["init", "--slim", "--runtime-version", "1.15", "--timeout", "300", "--container-runtime", "podman"],
        ["version"],
        ["-v"],
        ["--version"],
        ["uninstall"],
    ],
)
def test_harmless_commands_succeed(words: list[str]) -> None:
    assert main(words) == 0


def test_version_is_one_that_scripts_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"Cli version", "Runtime version"}


@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("list", 0, "No Dapr instances found.\n", ""),
        ("list -o json", 0, "[]\n", ""),
        ("stop --app-id nobody", 0, "", "❌  failed to stop app id nobody: it does not run; see: mesh list\n"),
        ("invoke -a x -m y", 1, "", "❌  no gateway runs; start one with: mesh run --app-id NAME -- COMMAND\n"),
        ("publish -i x -p y -t z", 1, "", "❌  x does not run; see: mesh list\n"),
        ("nonsense", 255, "", "❌  unknown command 'nonsense'\n  see: mesh --help\n"),
        ("list --nonsense", 255, "", "❌  unknown option --nonsense\n  see: mesh list --help\n"),
        ("invoke -a x", 255, "", "❌  the following arguments are required: -m/--method\n  see: mesh invoke --help\n"),
        ("run -f nowhere", 1, "", "❌  nowhere: there is no such file\n"),
    ],
)  # fmt: skip
def test_as_dapr_its_lines_and_exit_codes_are_given(
    line: str, code: int, out: str, err: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MESH_OUTPUT", "dapr")
    assert main(line.split()) == code
    assert capsys.readouterr() == (out, err)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("init", "✅  Success! Dapr is up and running.\n"),
        ("init --slim --runtime-version 1.18 --image-registry x", "✅  Success! Dapr is up and running.\n"),
        ("uninstall", "Nothing was removed. "),
        ("uninstall --all --network n", "✅  Dapr has been removed successfully\n"),
        ("version", "Runtime version: "),
        ("--version", "CLI version: "),
        ("build-info", "CLI version: "),
        ("--log-as-json --runtime-path /x version", "CLI version: "),
        ("version --runtime-path /x", "CLI version: "),
        ("help stop", "usage: mesh stop"),
    ],
)
def test_as_dapr_its_commands_succeed(
    line: str, said: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "state").mkdir(parents=True)
    monkeypatch.setenv("MESH_OUTPUT", "dapr")
    assert main(line.split()) == 0
    assert said in capsys.readouterr().out


def test_as_dapr_answers_end_with_a_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MESH_OUTPUT", "dapr")
    with _gateway(home, "nodeapp") as gateway:
        gateway.status, gateway.body = 200, b'{"orderId":"42"}'
        assert main(["invoke", "-a", "nodeapp", "-m", "order", "--verb", "GET", "--header", "x-a=b=c"]) == 0
        assert capfd.readouterr().out == '{"orderId":"42"}\n✅  App invoked successfully\n'
        assert gateway.asked[0][3]["x-a"] == "b=c"
        assert main(["publish", "--publish-app-id", "nodeapp", "--pubsub", "p", "--topic", "t", "--data", "{}"]) == 0
        assert capfd.readouterr().out == "✅  Event published successfully\n"
        gateway.status, gateway.body = 404, b"no"
        assert main(["invoke", "-a", "nodeapp", "-m", "order"]) == 1
        assert main(["publish", "-i", "nodeapp", "-p", "p", "-t", "t"]) == 1
    assert capfd.readouterr().err.splitlines() == [
        "❌  error invoking app nodeapp: 404 Not Found: no",
        "❌  Error publishing topic t: 404 Not Found: no",
    ]


def test_output_has_one_of_two_styles(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MESH_OUTPUT", "loud")
    assert main(["list"]) == 1
    assert capsys.readouterr().err == "error: MESH_OUTPUT: 'loud' is none of mesh, dapr\n"


@pytest.mark.parametrize(
    "line", ["list", "status", "components", "configurations", "init", "upgrade", "uninstall", "mtls", "logs -a x"]
)
@pytest.mark.parametrize("name", ["-k", "--kubernetes", "-kubernetes"])
def test_a_cluster_that_nobody_names_is_said(
    line: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    command, *rest = line.split()
    assert main([command, name, *rest]) == 1
    assert "error: cannot tell how to reach the cluster: " in capsys.readouterr().err


def test_link_makes_the_program_speak_as_dapr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "bin"
    assert main(["init", "--as-dapr", str(folder)]) == main(["init", "--as-dapr", str(folder)]) == 0
    captured = capsys.readouterr()
    template = tmp_path / "dapr.yaml"
    template.write_text("version: 1\napps: []\n")
    assert f"{folder / 'dapr'} is " in captured.out
    assert str(folder) in captured.err
    found = subprocess.run([folder / "dapr", "list"], capture_output=True, text=True, check=True)
    assert found.stdout == "No Dapr instances found.\n"
    found = subprocess.run([folder / "dapr", "lst"], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (
        255,
        "❌  unknown command 'lst'; did you mean list?\n  see: dapr --help\n",
    )
    # What is to be typed next is named as it was typed.
    for words, said in (
        (["invoke", "-a", "x", "-m", "y"], "no gateway runs; start one with: dapr run --app-id NAME -- COMMAND"),
        (["stop"], "name an application: dapr stop APP-ID, or a template: dapr stop -f FILE\n  see: dapr stop --help"),
        (["stop", "-f", str(template)], f"failed to stop Dapr and app processes: no application of {template} runs"),
    ):
        found = subprocess.run([folder / "dapr", *words], capture_output=True, text=True, check=False)
        assert said in found.stderr
    found = subprocess.run([folder / "dapr", "stop", "--help"], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("usage: dapr stop ")
    (tmp_path / "dapr").write_text("another")
    assert main(["init", "--as-dapr", str(tmp_path)]) == 1
    assert "is there already, and is not ours" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_named_as_it_was_typed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/dapr"])
    assert as_typed(f"the mesh: mesh {name} x") == f"the mesh: dapr {name} x"


@pytest.mark.parametrize(("word", "meant"), [("start", "run, or init"), ("ps", "list"), ("down", "stop")])
def test_words_of_other_programs_are_understood(word: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    assert capsys.readouterr().err == f"error: unknown command '{word}'; did you mean {meant}?\n  see: mesh --help\n"


@pytest.mark.parametrize("name", INSTEAD)
def test_commands_that_are_not_here_say_what_there_is_instead(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "-p", "8080"]) == 2
    assert capsys.readouterr().err == f"error: {name}: {INSTEAD[name]}\n"
    monkeypatch.setenv("MESH_OUTPUT", "dapr")
    assert main([name]) == 255
    assert capsys.readouterr().err == f"❌  {name}: {INSTEAD[name]}\n"
    assert name not in COMMANDS


def test_uninstall_removes_only_what_is_ours(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for ours in ("backbone/data", "state", "subscriptions"):
        (home / ours).mkdir(parents=True)
    (home / "mine").mkdir()
    assert main(["uninstall", "--all"]) == 1
    assert "--yes" in capsys.readouterr().err
    with registered(home, Run("nodeapp", 1)):
        assert main(["uninstall", "--all", "--yes"]) == 1
        assert "mesh stop nodeapp" in capsys.readouterr().err
    assert main(["uninstall", "--all", "--yes"]) == 0
    assert [path.name for path in home.iterdir()] == ["mine"]
    assert main(["uninstall", "--all", "--yes"]) == 0


_SHELLS = {"bash": ["bash", "-n"], "zsh": ["zsh", "-n"], "fish": ["fish", "-n"]}


@pytest.mark.parametrize("shell", _SHELLS)
def test_completion_is_a_valid_script(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    assert "publish" in script.read_text()
    try:
        subprocess.run([*_SHELLS[shell], str(script)], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip(f"{shell} is not installed")


def test_completion_in_bash_offers_commands_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)

    def offered(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in words)
        asked = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _mesh"
        code = asked + """; printf '%s\\n' "${COMPREPLY[@]}" """
        return subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert offered("mesh", "st") == ["stop", "status"]
    assert offered("mesh", "invoke", "--me") == ["--method"]
    assert "--app-id" in offered("mesh", "run", "--app-")
    assert offered("mesh", "component", "n") == ["new"]
    assert offered("mesh", "actors", "s") == ["show"]
    assert offered("mesh", "replay", "--di") == ["--diff"]
    assert offered("mesh", "tap", "--va") == ["--values"]


def test_app_ids_for_completion(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with registered(home, Run("nodeapp", 1)):
        assert main(["completion", "app-ids"]) == 0
    assert capsys.readouterr().out == "nodeapp\n"
    assert main(["completion", "types"]) == 0
    assert "state.sqlite" in capsys.readouterr().out.splitlines()
