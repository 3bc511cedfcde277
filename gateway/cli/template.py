"""``dapr.yaml``: several applications to run side by side, checked and resolved.

Paths in ``common`` are relative to the file, those of an application to its folder. Resources and configuration
are, first come: the application's own, ``.dapr/resources`` and ``.dapr/config.yaml`` in its folder, those of
``common``, the built-in ones.

Source: Dapr 1.18, the multi-app run template.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.cli.app_spec import AppSpec
from gateway.cli.configure import gateway_config
from gateway.cli.options import GatewayOptions
from gateway.cli.output import LogTarget
from gateway.cli.template_schema import App, Destination, Shared, Template
from mesh.errors import ConfigError, Problem
from mesh.resources.loader import Document, parse_documents, read_documents, validate

__all__ = ["DEFAULT_NAME", "load_template", "read_template", "template_path"]

DEFAULT_NAME = "dapr.yaml"


def template_path(text: str) -> Path | None:
    """Find the file that was meant: a folder stands for its ``dapr.yaml``, ``-`` for standard input (None)."""
    if text == "-":
        return None
    path = Path(text).expanduser()
    return path / DEFAULT_NAME if path.is_dir() else path


def read_template(path: Path | None) -> list[Document]:
    """Read the file, or standard input.

    Raises:
        ConfigError: It can not be read, or is no YAML.
    """
    problems: list[Problem] = []
    if path is None:
        documents = parse_documents(sys.stdin.read(), "<stdin>", problems)
    elif not path.exists():
        problems.append(Problem("there is no such file", file=str(path)))
        documents = []
    else:
        documents = read_documents(path, problems)
    if not problems and len(documents) != 1:
        what = "is empty" if not documents else "holds more than one document"
        problems.append(Problem(f"{what}; expected one template with 'version' and 'apps'", file=str(path or "-")))
    if problems:
        raise ConfigError(problems)
    return documents


def load_template(
    document: Document, path: Path | None, environ: Mapping[str, str], warnings: list[Problem]
) -> list[AppSpec]:
    """Give the applications of a template, in its order.

    Args:
        document: What was read.
        path: The file; None = standard input, and paths are relative to the current folder.
        environ: See `gateway_config`.
        warnings: Gets what has no effect.

    Raises:
        ConfigError: Holds every problem.
    """
    problems: list[Problem] = []
    template = validate(document, Template, problems, warnings)
    if template is None or problems:
        raise ConfigError(sorted(problems, key=lambda problem: (problem.line or 0, problem.column or 0)))
    base = (path.parent if path else Path.cwd()).absolute()
    resolver = _Resolver(document, template, base, path, environ, problems, warnings)
    specs = [resolver.app(index, app) for index, app in enumerate(template.apps)]
    resolver.check_apart()
    if problems:
        raise ConfigError(problems)
    return [spec for spec in specs if spec is not None]


@dataclass(slots=True)
class _Resolver:
    document: Document
    template: Template
    base: Path
    path: Path | None
    environ: Mapping[str, str]
    problems: list[Problem]
    warnings: list[Problem]
    # Of one start, so that the logs of its applications belong together visibly.
    stamp: str = field(default_factory=lambda: time.strftime("%Y%m%d%H%M%S"))

    def app(self, index: int, app: App) -> AppSpec | None:
        """Resolve one application; None after a problem."""
        at = ("apps", index)
        directory = self._existing(self.base, app.app_dir_path, (*at, "appDirPath"), folder=True)
        options = self._options(app, directory, at)
        try:
            config = gateway_config(options, self.environ, default_http_port=0)
        except ConfigError as error:
            # The name of the option stands for a field, which has no one place when it came from common.
            self.problems += [self.document.problem(f"{each.path}: {each.message}", at) for each in error.problems]
            return None
        app_file, gateway_file = self._log_files(directory, config.app_id, index)
        labels = {
            "appLogPath": str(app_file) if self._to_file(app.app_log_destination, "app") else "",
            "daprdLogPath": str(gateway_file) if self._to_file(app.daprd_log_destination, "daprd") else "",
            "runTemplatePath": str(self.path.absolute()) if self.path else "",
            "runTemplateName": self.template.name or "",
        }
        command = tuple(self._as_written((*at, "command", place), text) for place, text in enumerate(app.command))
        environment = self._environment(("common",), self.template.common) | self._environment(at, app)
        if command and directory.is_dir():
            self._look_for(command[0], directory, {**self.environ, **environment}, (*at, "command", 0))
        return AppSpec(
            options=options,
            config=config,
            command=command,
            directory=directory,
            environment=environment,
            app_log=self._target(app.app_log_destination, "app", app_file),
            gateway_log=self._target(app.daprd_log_destination, "daprd", gateway_file),
            labels=labels,
            image=app.container_image or "",
            pull_policy=app.container_image_pull_policy or "",
            service=bool(app.create_service),
        )

    def _look_for(
        self, program: str, directory: Path, environment: Mapping[str, str], location: tuple[str | int, ...]
    ) -> None:
        """Warn of a program that cannot be started from here now: it may be there when the file is used."""
        folders = [""] if os.path.dirname(program) else os.get_exec_path(environment)
        found = [directory / folder / program for folder in folders]
        if not any(file.is_file() and os.access(file, os.X_OK) for file in found):
            where = f"{found[0]} is no program" if folders == [""] else f"there is no program '{program}' in PATH"
            self.warnings.append(self.document.problem(f"{where}; the application cannot be started here", location))

    def _environment(self, at: tuple[str | int, ...], shared: Shared) -> dict[str, str]:
        for name in shared.env:
            if not name or "=" in name or "\0" in name:
                self._problem(f"a variable cannot be called {name!r}", (*at, "env", name), key=True)
        return {name: self._as_written((*at, "env", name), text) for name, text in shared.env.items()}

    def _as_written(self, location: tuple[str | int, ...], text: str) -> str:
        """Give what a program is to see: ``1.10`` and ``yes`` as they stand there, nothing as empty text."""
        written = self.document.written(location)
        if "\0" in text:
            self._problem("a program cannot be given the character U+0000", location)
        return written if text and written is not None else text

    def _ids(self) -> list[str]:
        return [app.app_id or (self.base / app.app_dir_path).resolve().name for app in self.template.apps]

    def check_apart(self) -> None:
        """Refuse what two applications can not have both; one app id with several ports is several instances of it."""
        ids = self._ids()
        sockets = [
            app.unix_domain_socket and (app.unix_domain_socket, ids[at]) for at, app in enumerate(self.template.apps)
        ]
        wanted = [(app.app_port, "appPort") for app in self.template.apps]
        listening = [(app.dapr_http_port, "daprHTTPPort") for app in self.template.apps]
        answering = [(app.dapr_grpc_port, "daprGRPCPort") for app in self.template.apps]
        taken = Counter(port for port, _ in wanted + listening + answering if port and port > 0)
        for index, app_id in enumerate(ids):
            if app_id in ids[:index] and not self.template.apps[index].app_id:
                message = (
                    f"the app id '{app_id}', from the folder's name, is another's; several instances of one say appID"
                )
                self._problem(message, ("apps", index, "appDirPath"))
            if sockets[index] and sockets[index] in sockets[:index]:
                message = f"another instance of '{app_id}' has its socket there"
                self._problem(message, ("apps", index, "unixDomainSocket"))
            for port, name in (wanted[index], listening[index], answering[index]):
                if port and taken[port] > 1:
                    self._problem(f"the port {port} is used {taken[port]} times", ("apps", index, name))
        if not ids:
            self._problem("there is no application", ("apps",))

    def _options(self, app: App, directory: Path, at: tuple[str | int, ...]) -> GatewayOptions:
        common = self.template.common

        def either(name: str) -> object:
            value = getattr(app, name)
            return getattr(common, name) if value is None else value

        same_name = (
            "enable_api_logging",
            "app_protocol",
            "app_max_concurrency",
            "log_level",
            "max_body_size",
            "read_buffer_size",
            "app_health_check_path",
            "app_health_probe_interval",
            "app_health_probe_timeout",
            "app_health_threshold",
        )
        switches = ("app_ssl", "enable_app_health_check")
        values: dict[str, object] = {name: either(name) for name in same_name}
        values |= {name: bool(either(name)) for name in switches}
        resources = self._resources(app, directory, at)
        config = self._config(app, directory, at)
        return GatewayOptions(
            app_id=app.app_id or directory.name,
            resources_path=tuple(map(str, resources)),
            config=(str(config),) if config else (),
            app_port=app.app_port,
            app_channel_address=app.app_channel_address,
            dapr_http_port=app.dapr_http_port,
            dapr_grpc_port=app.dapr_grpc_port,
            dapr_listen_addresses=app.api_listen_addresses or common.api_listen_addresses,
            unix_domain_socket=app.unix_domain_socket,
            metrics_port=app.metrics_port,
            **values,  # type: ignore[arg-type]  # The model has checked them under the same names.
        )

    def _resources(self, app: App, directory: Path, at: tuple[str | int, ...]) -> list[Path]:
        own = self._resource_paths(app, directory, at)
        if own:
            return own
        local = directory / ".dapr" / "resources"
        return [local] if local.is_dir() else self._resource_paths(self.template.common, self.base, ("common",))

    def _resource_paths(self, shared: Shared, base: Path, at: tuple[str | int, ...]) -> list[Path]:
        named = (*at, "resourcesPaths")
        alone = self.document.written(named) is not None
        given: list[tuple[str, tuple[str | int, ...]]] = [
            (text, named if alone else (*named, index)) for index, text in enumerate(shared.resources_paths)
        ]
        if shared.resources_path:
            given.append((shared.resources_path, (*at, "resourcesPath")))
        return [self._existing(base, text, location) for text, location in given]

    def _config(self, app: App, directory: Path, at: tuple[str | int, ...]) -> Path | None:
        if app.config_file_path:
            return self._existing(directory, app.config_file_path, (*at, "configFilePath"))
        local = directory / ".dapr" / "config.yaml"
        if local.is_file():
            return local
        common = self.template.common.config_file_path
        return self._existing(self.base, common, ("common", "configFilePath")) if common else None

    def _existing(self, base: Path, text: str, location: tuple[str | int, ...], *, folder: bool = False) -> Path:
        path = Path(os.path.normpath(base / Path(text).expanduser()))
        if not (path.is_dir() if folder else path.exists()):
            self._problem(f"there is no {'folder' if folder else 'file or folder'} {path}", location)
        return path

    def _problem(self, message: str, location: tuple[str | int, ...], *, key: bool = False) -> None:
        problem = self.document.problem(message, location, key=key)
        # A path in common is looked up for every application.
        if problem not in self.problems:
            self.problems.append(problem)

    def _log_files(self, directory: Path, app_id: str, index: int) -> tuple[Path, Path]:
        logs = directory / ".dapr" / "logs"
        # Instances of one application write files of their own.
        stamp = f"{self.stamp}_{index + 1}" if app_id in self._ids()[:index] else self.stamp
        return logs / f"{app_id}_app_{stamp}.log", logs / f"{app_id}_daprd_{stamp}.log"

    def _destination(self, own: Destination | None, whose: str) -> Destination:
        if own is not None:
            return own
        common = self.template.common
        if whose == "app":
            return common.app_log_destination or "fileAndConsole"
        return common.daprd_log_destination or "file"

    def _to_file(self, own: Destination | None, whose: str) -> bool:
        return self._destination(own, whose) != "console"

    def _target(self, own: Destination | None, whose: str, file: Path) -> LogTarget:
        destination = self._destination(own, whose)
        return LogTarget(destination != "file", None if destination == "console" else file)
