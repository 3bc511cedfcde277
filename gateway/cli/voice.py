"""What ``mesh run`` says of applications and their gateways: in its own words, or in those of dapr."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from gateway.cli.processes import exit_text
from gateway.cli.reference import as_dapr, signed
from mesh.urls import in_url

if TYPE_CHECKING:
    from gateway.cli.app_spec import AppSpec
    from gateway.cli.output import Console
    from gateway.cli.reference import Sign
    from gateway.runs import Run

__all__ = ["DaprVoice", "Voice", "voice_of"]

UP = "You're up and running!"
"""What scripts wait for."""


class Voice:
    """Our own words. Lines that scripts wait for go to the standard output, all else to the standard error."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def begins(self, spec: AppSpec) -> None:
        """Say that an application is about to be started."""

    def gateway_ready(self, spec: AppSpec, run: Run) -> None:
        """Say that its gateway's API answers."""

    def app_started(self, spec: AppSpec, run: Run, pid: int) -> None:
        """Say that its process runs."""
        self.console.say(f"{spec.app_id} runs (pid {pid}), its gateway is ready at {_address(run)}")

    def alone(self, spec: AppSpec, run: Run) -> None:
        """Say that the gateway runs without an application of ours."""
        self.console.say(f"the gateway of {spec.app_id} is ready at {_address(run)}; there is no command to run")

    def taken(self, spec: AppSpec, other: str | None) -> None:
        """Say that somebody listens where the application is to listen, perhaps another application of ours."""
        where = f"{spec.config.app_host}:{spec.config.app_port}"
        who = "another program" if other is None else f"the application of {other}, which runs already,"
        ending = "" if other is None else f"; mesh stop {other} ends it"
        self.note(
            f"warning: {who} listens at {where}, so {spec.app_id} can not, and what is meant for it goes there{ending}"
        )

    def waiting(self, spec: AppSpec, elsewhere: str) -> None:
        """Say that the application does not listen yet, and that somebody does on another address, if so."""
        port = spec.config.app_port
        text = f"waiting for {spec.config.app_host}:{port}, where {spec.app_id} does not listen yet"
        if elsewhere:
            other = f"{in_url(elsewhere)}:{port}"
            text += f"; somebody listens at {other}: if it is {spec.app_id}, say --app-channel-address {elsewhere}"
        self.note(text)

    def up(self, spec: AppSpec, run: Run) -> None:
        """Say that both are ready."""
        text = f"{UP} {_ports(spec, run)}"
        self.console.out("success", text, f"mesh: {text}")

    def dashboard(self, where: str) -> None:
        """Say where the dashboard is."""
        text = f"Dashboard: {where}"
        self.console.out("info", text, text)

    def app_ended(self, spec: AppSpec, code: int, last_lines: str) -> None:
        """Say that the application has ended by itself."""
        if code:
            self.failed(f"{spec.app_id} ended with {exit_text(code)}{last_lines}")
        else:
            self.console.say(f"{spec.app_id} ended")

    def gateway_ended(self, spec: AppSpec, code: int, last_lines: str) -> None:
        """Say that the gateway has ended by itself."""
        if code:
            self.failed(f"the gateway of {spec.app_id} ended with {exit_text(code)}{last_lines}")
        else:
            self.console.say(f"the gateway of {spec.app_id} was shut down")

    def stopping(self, number: int | None) -> None:
        """Say that all are told to end.

        Args:
            number: The signal; None = one of the two has ended by itself.
        """
        if number is not None:
            self.console.say("stopping" + ("; Ctrl-C again to kill" if number == signal.SIGINT else ""))

    def stopped(self, what: str) -> None:
        """Say that ``App`` or ``Dapr`` has ended after it was told to."""

    def failed(self, text: str) -> None:
        """Say what went wrong."""
        self.console.complain(text)

    def note(self, text: str) -> None:
        """Say something beside."""
        self.console.say(text)

    def stopped_code(self, code: int) -> int:
        """Give what counts as the exit code of an application that was told to end."""
        return code

    def exit_code(self, codes: list[int], *, interrupted: bool) -> int:
        """Give that of the command: the application's, 1 if any of several failed, 130 after Ctrl-C."""
        if interrupted:
            return 128 + signal.SIGINT
        return codes[0] if len(codes) == 1 else int(any(codes))


class DaprVoice(Voice):
    """The status lines of dapr, and its exit codes."""

    def __init__(self, console: Console, *, several: bool) -> None:
        super().__init__(console)
        self._several = several
        console.short = not several

    def begins(self, spec: AppSpec) -> None:
        """Say it for the applications of a template."""
        if self._several:
            self._say("info", f'Validating config and starting app "{spec.app_id}"')

    def gateway_ready(self, spec: AppSpec, run: Run) -> None:
        """Say where it listens."""
        if self._several:
            return
        self._say("info", f"Starting Dapr with id {spec.app_id}. {_listening(run)}")
        if spec.config.app_port is None:
            where = f"socket {run.socket}" if run.socket else f"port {run.http_port}"
            self._say("info", f"Checking if Dapr sidecar is listening on HTTP {where}")
            self._say("info", "Dapr sidecar is up and running.")

    def app_started(self, spec: AppSpec, run: Run, pid: int) -> None:
        """Say what was told to the gateway, or where the logs are."""
        if self._several:
            self._started(spec, run)
            return
        self._say("info", f"Updating metadata for appPID: {pid}")
        self._say("info", f"Updating metadata for app command: {' '.join(spec.command)}")

    def alone(self, spec: AppSpec, run: Run) -> None:
        """Say that there is no command."""
        if self._several:
            self._say("warning", f'No application command found for app "{spec.app_id}"')
            self._started(spec, run)
        else:
            text = "no application command found."
            self.console.out("warning", text, f"WARNING: {text}")

    def up(self, spec: AppSpec, run: Run) -> None:
        """Say that both are ready."""
        if self._several:
            self._say("success", f"{UP} {_ports(spec, run)}")
        elif spec.command:
            self._say("success", f"{UP} Both Dapr and your app logs will appear here.\n")
        else:
            self._say("success", f"{UP} Dapr logs will appear here.\n")

    def app_ended(self, spec: AppSpec, code: int, last_lines: str) -> None:
        """Say how."""
        if code:
            self.failed(f"The App process exited with error code: {_status(code)}{last_lines}")
        else:
            self.stopped("App")

    def gateway_ended(self, spec: AppSpec, code: int, last_lines: str) -> None:
        """Say how."""
        if code:
            self.failed(f"The daprd process exited with error code: {_status(code)}{last_lines}")
        else:
            self.stopped("Dapr")

    def stopping(self, number: int | None) -> None:
        """Say it; of several applications, one that ends does not end the others."""
        if not self._several:
            self._say("info", "\nterminated signal received: shutting down")
        elif number is not None:
            text = "Received signal to stop Dapr and app processes. Shutting down Dapr and app processes."
            self.console.out("info", text, "\n" + signed("info", text))

    def stopped(self, what: str) -> None:
        """Say that it has ended."""
        self._say("success", f"Exited {what} successfully")

    def failed(self, text: str) -> None:
        """Say what went wrong."""
        self.console.err("failure", text, signed("failure", text))

    def note(self, text: str) -> None:
        """Say something beside."""
        self.console.err("info", text, signed("info", text))

    def stopped_code(self, code: int) -> int:
        """Give 0: whatever an application does while its gateway ends is no failure."""
        return 0

    def exit_code(self, codes: list[int], *, interrupted: bool) -> int:
        """Give 1 if anything failed; Ctrl-C is no failure."""
        return int(any(codes))

    def _started(self, spec: AppSpec, run: Run) -> None:
        self._say("info", f'Started Dapr with app id "{spec.app_id}". {_listening(run)}')
        self._say("info", f"Writing log files to directory : {spec.directory / '.dapr' / 'logs'}")

    def _say(self, sign: Sign, text: str) -> None:
        self.console.out(sign, text, signed(sign, text))


def voice_of(console: Console, *, several: bool) -> Voice:
    """Choose the words."""
    return DaprVoice(console, several=several) if as_dapr() else Voice(console)


def _address(run: Run) -> str:
    return f"unix:{run.socket}" if run.socket else f"http://{in_url(run.host)}:{run.http_port}"


def _listening(run: Run) -> str:
    http = f"HTTP Socket: {run.socket}" if run.socket else f"HTTP Port: {run.http_port}"
    return f"{http}. gRPC Port: {run.grpc_port}"


def _ports(spec: AppSpec, run: Run) -> str:
    config = spec.config
    port = "" if config.app_port is None else f", application {config.app_host}:{config.app_port}"
    return f"{spec.app_id}: gateway {_address(run)}{port}"


def _status(code: int) -> str:
    """Say how a process ended as Go does."""
    return f"exit status {code}" if code >= 0 else f"signal: {signal.strsignal(-code) or -code}".lower()
