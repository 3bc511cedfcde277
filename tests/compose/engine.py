"""The Docker engine of this machine, the images that the stacks need, and one stack that runs.

Where no registry can be reached, a script that builds local stand-ins under the public names is used, if it is there.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tests.support.processes import free_port

__all__ = ["BROKERS", "GATEWAY", "ROOT", "THIN", "EngineError", "Stack", "prepare", "read_stack", "say"]

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
# The scheme of the backbone's URL, for each profile.
BROKERS = {"nats": "nats", "rabbitmq": "amqp", "kafka": "kafka", "redis": "redis"}
# What is started besides.
WITH = {"nats": ("host", "dashboard")}
GATEWAY = "brokermesh/gateway"
THIN = f"{GATEWAY}:thin"
LOCAL_IMAGES = Path(os.environ.get("LOCAL_IMAGES", ROOT.parent / "shared" / "tools" / "local-images"))
STAND_IN = "local-images/base:latest"

UP_WITHIN = 120.0
DOWN_WITHIN = 60.0
PULL_WITHIN = 300.0
BUILD_WITHIN = 600.0
_STARTED = time.monotonic()

T = TypeVar("T")


class EngineError(Exception):
    """There is no engine, or it could not do what it was told."""


def say(text: str) -> None:
    """Show progress."""
    print(f"compose-test {time.monotonic() - _STARTED:5.1f} s  {text}", flush=True)


def read_stack() -> dict[str, Any]:
    """Read compose.yaml, its anchors resolved."""
    stack: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return stack


def run(*words: str, within: float = 30.0, environ: dict[str, str] | None = None) -> str:
    """Run a command to its end and give its output.

    Raises:
        EngineError: It failed, or took too long.
    """
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=within,
            cwd=ROOT,
            env={**os.environ, **(environ or {})},
            check=False,
        )
    except FileNotFoundError as error:
        raise EngineError(f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"not within {within:g} s: {' '.join(words)}\n{error.output or ''}") from error
    if done.returncode != 0:
        raise EngineError(f"failed with {done.returncode}: {' '.join(words)}\n{done.stdout[-4000:]}")
    return done.stdout


def succeeds(*words: str, within: float = 30.0) -> bool:
    try:
        run(*words, within=within)
    except EngineError:
        return False
    return True


@functools.cache
def compose_command() -> tuple[str, ...]:
    """Find ``docker compose``, or else ``docker-compose``.

    Raises:
        EngineError: Neither is there.
    """
    if succeeds("docker", "compose", "version"):
        return ("docker", "compose")
    if shutil.which("docker-compose"):
        return ("docker-compose",)
    raise EngineError("neither `docker compose` nor `docker-compose` is installed")


def prepare(brokers: Sequence[str], *more: str) -> None:
    """Make sure that an engine answers, and that it has all images.

    Args:
        brokers: Whose stacks are run.
        more: Images besides.

    Raises:
        EngineError: It is not so, and says why.
    """
    if not succeeds("docker", "info"):
        if os.environ.get("CI") != "true" or not LOCAL_IMAGES.exists():
            raise EngineError("no Docker engine answers to `docker info`")
        say("starting a Docker engine")
        run("bash", str(LOCAL_IMAGES), "start", within=BUILD_WITHIN)
    say(f"using {' '.join(compose_command())}")
    for image in (*_images(brokers), *more):
        if succeeds("docker", "image", "inspect", image):
            continue
        say(f"pulling {image}")
        try:
            run("docker", "pull", "--quiet", image, within=PULL_WITHIN)
        except EngineError:
            if not LOCAL_IMAGES.exists():
                raise
            say(f"no registry answers; building a stand-in for {image}")
            run("bash", str(LOCAL_IMAGES), "build", image, within=BUILD_WITHIN)
    for image, target in ((THIN, ["--target=thin"]), (GATEWAY, [])):
        say(f"building {image}")
        # The build needs the package index, and the engine's own networks may have no way out.
        run("docker", "build", "--network=host", *target, "--tag", image, str(ROOT), within=BUILD_WITHIN)


def _images(brokers: Sequence[str]) -> list[str]:
    services = read_stack()["services"].values()
    profiles = {profile for broker in brokers for profile in (broker, *WITH.get(broker, ()))}
    return list(
        dict.fromkeys(
            each["image"]
            for each in services
            if each["image"] not in (GATEWAY, THIN) and ("profiles" not in each or set(each["profiles"]) & profiles)
        )
    )


def _is_stand_in(image: str) -> bool:
    layers = "{{index .RootFS.Layers 0}}"
    if not succeeds("docker", "image", "inspect", STAND_IN):
        return False
    first = run("docker", "image", "inspect", "--format", layers, image)
    return first == run("docker", "image", "inspect", "--format", layers, STAND_IN)


def _third_pod(broker: str) -> dict[str, Any]:
    """Give the recorder as one more pod, of the same form as that of pythonapp."""
    services = read_stack()["services"]
    pod, app, gateway = (
        copy.deepcopy(services[name]) for name in ("pythonapp-pod", "pythonapp", f"pythonapp-gateway-{broker}")
    )
    app["network_mode"] = gateway["network_mode"] = "service:recorder-pod"
    app["environment"] = {"APP_PORT": 3000}
    app["volumes"] = [f"{HERE / 'recorder.py'}:/app/app.py:ro"]
    gateway["command"] = ["--app-id=recorder", "--app-port=3000"]
    gateway["depends_on"]["recorder"] = gateway["depends_on"].pop("pythonapp")
    return {"services": {"recorder-pod": pod, "recorder": app, f"recorder-gateway-{broker}": gateway}}


class Stack:
    """compose.yaml over one broker and a third pod beside, under a project name of its own.

    Attributes:
        broker: The profile.
        api: Of nodeapp's gateway.
        gateway_of: The service, by application.
        services: All that run.
        passwords: Of the databases, by the variable that has it; new ones.
        dashboard: Where it is, over NATS.
    """

    def __init__(self, broker: str, port: int, directory: Path) -> None:
        """Prepare; nothing is started.

        Args:
            broker: The profile.
            port: Where the API of nodeapp's gateway is published.
            directory: An empty one.
        """
        self.broker = broker
        self.api = f"http://127.0.0.1:{port}/v1.0"
        self.gateway_of = {app: f"{app}-gateway-{broker}" for app in ("nodeapp", "pythonapp", "recorder")}
        third = directory / "recorder.json"
        third.write_text(json.dumps(_third_pod(broker)), encoding="utf-8")
        files = [ROOT / "compose.yaml", third]
        if _is_stand_in(read_stack()["services"][broker]["image"]):
            files.append(HERE / "stand-ins.yaml")
        self.passwords = {name: secrets.token_hex(16) for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD")}
        profiles = {broker, *WITH.get(broker, ())}
        self.dashboard = f"http://127.0.0.1:{free_port()}/dashboard/"
        ports = {"MESH_PORT": str(port), "MESH_DASHBOARD_PORT": self.dashboard.split(":")[2].partition("/")[0]}
        self._environ = {**ports, "COMPOSE_PROFILES": ",".join(sorted(profiles)), **self.passwords}
        self._project = f"brokermesh-test-{broker}"
        self._options = [
            f"--project-name={self._project}",
            f"--project-directory={ROOT}",
            *(word for file in files for word in ("--file", str(file))),
        ]
        self.services = sorted(
            name
            for name, service in (read_stack()["services"] | _third_pod(broker)["services"]).items()
            if profiles & set(service.get("profiles", profiles))
        )
        self._ids: dict[str, str] = {}

    def compose(self, *words: str, within: float) -> str:
        return run(*compose_command(), *self._options, *words, within=within, environ=self._environ)

    def up(self) -> None:
        """Start everything, and return when all are healthy."""
        self.compose("up", "--detach", "--no-build", within=UP_WITHIN)
        self._ids = self._containers()
        for name in self.services:
            if not name.endswith("-volume"):
                self.until(functools.partial(self._well, name), f"{name} is well", UP_WITHIN)

    def _containers(self) -> dict[str, str]:
        """Find the container of each service; of the engine itself, as Compose may be slow to start."""
        label = "com.docker.compose"
        shown = f'{{{{.Label "{label}.service"}}}} {{{{.ID}}}}'
        mine = f"--filter=label={label}.project={self._project}"
        found = run("docker", "ps", "--all", "--no-trunc", mine, f"--format={shown}")
        made = dict(line.split() for line in found.splitlines())
        if missing := set(self.services) - made.keys():
            raise EngineError(f"no container was made of {', '.join(sorted(missing))}")
        return made

    def down(self, *, volumes: bool) -> None:
        """Remove the containers and networks, and the volumes if told so."""
        self.compose("down", "--timeout=10", *(["--volumes"] if volumes else []), within=DOWN_WITHIN)

    def stop(self, service: str) -> None:
        """End a container in good order; it stays down."""
        self.compose("stop", service, within=DOWN_WITHIN)

    def kill(self, service: str) -> None:
        """End a container's first process as ``kill -9`` does, and return when it is back and well.

        Its restart policy brings it back. Where its process cannot be seen from here, the engine kills it; then no
        policy applies, and it is started again.
        """
        container, before = self._ids[service], self._state(service)
        pid = before["Pid"]
        try:
            ours = container in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8")
        except OSError:
            ours = False
        if ours and os.geteuid() == 0:
            os.kill(pid, signal.SIGKILL)
        else:
            run("docker", "kill", "--signal=KILL", container)
            run("docker", "start", container)
        self.until(
            lambda: self._state(service)["StartedAt"] != before["StartedAt"] and self._well(service),
            f"{service} is back",
            UP_WITHIN,
        )

    def inside(self, service: str, *words: str) -> str:
        """Run a command in a container, as its user, and give its output."""
        return run("docker", "exec", self._ids[service], *words)

    def inspect(self, service: str) -> str:
        """Give all that the engine knows of a container: its command, environment and mounts among it."""
        return run("docker", "inspect", self._ids[service])

    def log(self, service: str) -> str:
        """Give what a container has written so far, over all its lives."""
        return run("docker", "logs", self._ids[service])

    def logs(self) -> str:
        """Give the end of what every container has written."""
        return self.compose("logs", "--no-color", "--tail=40", within=30.0)

    def until(self, holds: Callable[[], T], what: str, within: float) -> T:
        """Wait until a condition holds, and give it.

        Raises:
            EngineError: It does not hold in time.
        """
        deadline = time.monotonic() + within
        while not (found := holds()):
            if time.monotonic() > deadline:
                raise EngineError(f"not within {within:g} s: {what}")
            time.sleep(0.5)  # Each question is a process of its own.
        return found

    def _state(self, service: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(run("docker", "inspect", "--format={{json .State}}", self._ids[service]))
        return state

    def _well(self, service: str) -> bool:
        state = self._state(service)
        health = state.get("Health")
        return bool(state["Running"]) and (health is None or health["Status"] == "healthy")
