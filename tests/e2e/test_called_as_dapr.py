"""Command lines of public tutorials and quickstarts, through the link that ``mesh init --as-dapr`` makes.

Each line is as it is printed, but for its ports, which are nobody else's here. The applications have the shape of
those of the tutorials.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gateway.cli import main
from tests.support.gateways import MeshHome, MeshRun
from tests.support.processes import free_port
from tests.support.redis_server import RedisServer, find_redis_server

needs_node = pytest.mark.skipif(shutil.which("node") is None and "CI" not in os.environ, reason="node is not installed")
needs_redis = pytest.mark.skipif(
    find_redis_server() is None and "CI" not in os.environ, reason="redis-server is not installed"
)
pytestmark = needs_node

_TUTORIALS = Path(__file__).parents[1] / "support" / "apps" / "tutorials"
_UP = "You're up and running! Both Dapr and your app logs will appear here."


class Tutorial:
    """A copy of the applications, and terminals in which its lines are typed."""

    def __init__(self, home: MeshHome, directory: Path) -> None:
        self.home = home
        self.directory = directory
        self._ports: dict[str, int] = {}
        shutil.copytree(_TUTORIALS, directory)
        assert main(["init", "--as-dapr", str(directory / "bin")]) == 0

    def ports_of(self, text: str) -> str:
        """Replace each port by one of our own, always by the same."""
        return re.sub(r"\b\d{4}\b", lambda found: str(self._ports.setdefault(found[0], free_port())), text)

    @contextmanager
    def terminal(self, folder: str, line: str, **environ: str) -> Iterator[MeshRun]:
        """Type a line, and leave it running."""
        command = ["sh", "-c", f"exec {self.ports_of(line)}"]
        with self.home.started(command, self._environ(environ), self.directory / folder) as run:
            yield run

    def typed(self, line: str, folder: str = ".") -> str:
        """Type a line and give what it wrote to its standard output."""
        found = subprocess.run(
            ["sh", "-c", self.ports_of(line)],
            env=self._environ({}),
            cwd=self.directory / folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    def stopped(self, run: MeshRun, app_id: str) -> None:
        """Type the line that stops an application, and look at how it ended."""
        assert f"app stopped successfully: {app_id}" in self.typed(f"dapr stop --app-id {app_id}")
        assert run.wait(60) == 0
        assert [line for line in run.lines if line.startswith("✅  Exited")] == [
            "✅  Exited Dapr successfully",
            "✅  Exited App successfully",
        ]

    def _environ(self, more: dict[str, str]) -> dict[str, str]:
        path = os.pathsep.join((str(self.directory / "bin"), os.environ["PATH"]))
        library = str(self.directory / "lib")
        own = {"PATH": path, "HOME": str(self.directory), "PYTHONPATH": library, "NODE_PATH": library}
        return self.home.environ({**own, **more})


@pytest.fixture
def tutorial(tmp_path: Path) -> Iterator[Tutorial]:
    home = MeshHome(tmp_path / "home")
    yield Tutorial(home, tmp_path / "tutorials")
    home.until_nothing_runs()


@pytest.fixture
async def redis(tmp_path: Path, tutorial: Tutorial) -> AsyncIterator[None]:
    """A server where the component file of the quickstarts says."""
    (tmp_path / "redis").mkdir()
    async with RedisServer(tmp_path / "redis") as server:
        file = tutorial.directory / "components" / "pubsub.yaml"
        file.write_text(file.read_text().replace("6379", str(server.port)))
        yield


@pytest.mark.parametrize(
    ("node", "python", "payload"),
    [
        (
            "dapr run --app-id nodeapp --app-port 3000 --dapr-http-port 3500 node app.js",
            "dapr run --app-id pythonapp python3 app.py",
            "--data-file sample.json",
        ),
        (
            "dapr run --app-id nodeapp --app-port 3000 --port 3500 node app.js",
            "dapr run --app-id pythonapp python app.py",
            """--payload '{"data": {"orderId": "42"}}'""",
        ),
    ],
    ids=["now", "earlier"],
)
def test_hello_world(tutorial: Tutorial, node: str, python: str, payload: str) -> None:
    with tutorial.terminal("hello-world/node", node) as node_run:
        node_run.until(rf"^✅  {_UP}$")
        invoked = tutorial.typed(f"dapr invoke --app-id nodeapp --method neworder {payload}", "hello-world/node")
        assert "✅  App invoked successfully\n" in invoked
        node_run.until("^== APP == order 42 is kept$")
        posted = "curl -s -XPOST -d @sample.json -H Content-Type:application/json"
        tutorial.typed(f"{posted} http://localhost:3500/v1.0/invoke/nodeapp/method/neworder", "hello-world/node")
        got = tutorial.typed("curl -s http://localhost:3500/v1.0/invoke/nodeapp/method/order")
        assert got == '{"orderId":"42"}'
        got = tutorial.typed("dapr invoke --app-id nodeapp --method order --verb GET")
        assert got == '{"orderId":"42"}\n✅  App invoked successfully\n'
        with tutorial.terminal("hello-world/python", python) as python_run:
            python_run.until(rf"^✅  {_UP}$")
            node_run.until("^== APP == order 3 is kept$")
            listed = tutorial.typed("dapr list")
            assert "nodeapp" in listed
            assert "pythonapp" in listed
            tutorial.stopped(python_run, "pythonapp")
        tutorial.stopped(node_run, "nodeapp")
    assert tutorial.typed("dapr list") == "No Dapr instances found.\n"
    number = tutorial.ports_of("3500")
    assert re.search(f"^ℹ️  Starting Dapr with id nodeapp. HTTP Port: {number}. gRPC Port: \\d+$", node_run.text, re.M)
    assert "ℹ️  Updating metadata for app command: node app.js" in node_run.lines
    assert "terminated signal received: shutting down" in node_run.lines
    assert "mesh: " not in node_run.text


def test_pub_sub_tutorial(tutorial: Tutorial) -> None:
    lines = {
        "node-subscriber": "dapr run --app-id node-subscriber --app-port 3000 node app.js",
        "python-subscriber": "dapr run --app-id python-subscriber --app-port 5001 python3 app.py",
        "react-form": "dapr run --app-id react-form --app-port 8080 npm run start",
    }
    with ExitStack() as stack:
        runs = {name: stack.enter_context(tutorial.terminal(f"pub-sub/{name}", line)) for name, line in lines.items()}
        for run in runs.values():
            run.until(rf"^✅  {_UP}$")
        published = tutorial.typed(
            "dapr publish --publish-app-id react-form --pubsub pubsub --topic A --data-file message_a.json",
            "pub-sub/react-form",
        )
        assert published == "✅  Event published successfully\n"
        for letter in "bc":
            post = (
                f"curl -s http://localhost:8080/publish -H Content-Type:application/json --data @message_{letter}.json"
            )
            assert tutorial.typed(post, "pub-sub/react-form") == '"OK"'
        for heard in ("A: first", "B: second"):
            runs["node-subscriber"].until(f"^== APP == node heard {heard}$")
        for heard in ("A: first", "C: third"):
            runs["python-subscriber"].until(f"^== APP == python heard {heard}$")
        for name, run in runs.items():
            tutorial.stopped(run, name)


def test_distributed_calculator(tutorial: Tutorial) -> None:
    lines = {
        "addapp": ("go", "dapr run --app-id addapp --app-port 6000 --dapr-http-port 3503 ./app", {}),
        "subtractapp": (
            "csharp",
            "dapr run --app-id subtractapp --app-port 7001 --dapr-http-port 3504 dotnet Subtract.dll",
            {"ASPNETCORE_URLS": "http://localhost:7001"},
        ),
        "divideapp": ("node", "dapr run --app-id divideapp --app-port 4000 --dapr-http-port 3502 node app.js", {}),
        "multiplyapp": (
            "python",
            "dapr run --app-id multiplyapp --app-port 5001 --dapr-http-port 3501 flask run",
            {"FLASK_RUN_PORT": "5001"},
        ),
        "frontendapp": (
            "react-calculator",
            "dapr run --app-id frontendapp --app-port 8080 --dapr-http-port 3507 node server.js",
            {},
        ),
    }
    with ExitStack() as stack:
        runs = {}
        for name, (folder, line, environ) in lines.items():
            runs[name] = stack.enter_context(tutorial.terminal(f"distributed-calculator/{folder}", line, **environ))
        for run in runs.values():
            run.until(rf"^✅  {_UP}$")
        front = "distributed-calculator/react-calculator"
        for operation, result in (("add", 86), ("subtract", 18), ("divide", 52 / 34), ("multiply", 1768)):
            post = f"curl -s http://localhost:8080/calculate/{operation} -H Content-Type:application/json"
            assert float(tutorial.typed(f"{post} --data @operands.json", front)) == result
        tutorial.typed(
            "curl -s http://localhost:8080/persist -H Content-Type:application/json --data @persist.json", front
        )
        assert tutorial.typed("curl -s http://localhost:8080/state") == '{"total":"54","next":null,"operation":null}'
        for name, run in runs.items():
            tutorial.stopped(run, name)


@needs_redis
def test_pub_sub_quickstart(tutorial: Tutorial, redis: None) -> None:
    processor = (
        "dapr run --app-id order-processor --components-path ../../../components/ --app-port 6001 -- python3 app.py"
    )
    checkout = "dapr run --app-id checkout --components-path ../../../components/ -- python3 app.py"
    # Two folders deeper than here, as where the quickstart is.
    deeper = tutorial.directory / "pub_sub" / "http"
    deeper.mkdir()
    for name in ("order-processor", "checkout"):
        shutil.move(tutorial.directory / "pub_sub" / name, deeper / name)
    with tutorial.terminal("pub_sub/http/order-processor", processor) as run:
        run.until(rf"^✅  {_UP}$")
        with tutorial.terminal("pub_sub/http/checkout", checkout) as publisher:
            assert publisher.wait(60) == 0
        assert "== APP == order 3 is published" in publisher.lines
        assert [line for line in publisher.lines if line.startswith("✅  Exited")] == [
            "✅  Exited App successfully",
            "✅  Exited Dapr successfully",
        ]
        for number in (1, 2, 3):
            run.until(f"^== APP == order {number} is processed$")
        tutorial.stopped(run, "order-processor")


def test_service_invocation_quickstart(tutorial: Tutorial) -> None:
    processor = (
        "dapr run --app-port 7001 --app-id order-processor --app-protocol http --dapr-http-port 3501"
        " python3 ./order-processor/app.py"
    )
    checkout = "dapr run --app-id checkout --app-protocol http --dapr-http-port 3502 python3 ./checkout/app.py"
    with tutorial.terminal("service_invocation", processor) as run:
        run.until(rf"^✅  {_UP}$")
        with tutorial.terminal("service_invocation", checkout) as caller:
            assert caller.wait(60) == 0
        assert "== APP == order 3 is passed on" in caller.lines
        run.until("^== APP == order 3 is taken$")
        tutorial.stopped(run, "order-processor")


@needs_redis
@pytest.mark.parametrize(
    ("quickstart", "lines"),
    [
        ("pub_sub", ["order-processor == order 3 is processed", "checkout == order 3 is published"]),
        ("service_invocation", ["order-processor == order 3 is taken", "checkout == order 3 is passed on"]),
    ],
)
def test_quickstarts_from_their_templates(tutorial: Tutorial, redis: None, quickstart: str, lines: list[str]) -> None:
    template = tutorial.directory / quickstart / "dapr.yaml"
    template.write_text(tutorial.ports_of(template.read_text()))
    with tutorial.terminal(quickstart, "dapr run -f .") as run:
        for name in ("order-processor", "checkout"):
            run.until(f'^ℹ️  Validating config and starting app "{name}"$')
            run.until(f'^ℹ️  Started Dapr with app id "{name}". HTTP Port: \\d+. gRPC Port: \\d+$')
            run.until(f"^ℹ️  Writing log files to directory : .*/{name}/.dapr/logs$")
            run.until(f"^✅  You're up and running! {name}: gateway http://127.0.0.1:\\d+")
        for line in lines:
            run.until(f"^== APP - {line}$")
        assert "Dapr and app processes stopped successfully" in tutorial.typed("dapr stop -f .", quickstart)
        assert run.wait(60) == 0


def test_how_an_application_failed_is_said_as_dapr_says_it(tutorial: Tutorial) -> None:
    with tutorial.terminal(".", "dapr run --app-id a -- sh -c 'echo last words; exit 3'") as run:
        assert run.wait(60) == 1
    assert "== APP == last words" in run.lines
    assert "❌  The App process exited with error code: exit status 3" in run.lines
    assert run.lines[-1] == "✅  Exited Dapr successfully"
