"""What is to be started: an application and its gateway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.options import GatewayOptions
from gateway.cli.output import LogTarget
from gateway.cli.processes import Stdin

if TYPE_CHECKING:
    from gateway.config import GatewayConfig

__all__ = ["AppSpec"]


@dataclass(frozen=True, slots=True)
class AppSpec:
    """One application and its gateway, as they are to be started.

    Attributes:
        options: Of the gateway, as given.
        config: The same, checked.
        command: Of the application; empty = only the gateway runs.
        directory: Where the application runs.
        environment: Added to ours, for the application.
        app_log: Where its output goes.
        gateway_log: Where the gateway's goes.
        labels: Shown by ``mesh list`` and in metadata.
        stdin: What the application reads.
        several: It is one of a template.
        dashboard: Whether a dashboard is to be there meanwhile.
        image: What a cluster runs; empty = none is named.
        pull_policy: When a cluster loads it; empty = as it does by itself.
        service: Whether a cluster makes a Service for its port.
        kubernetes: Whether it is to run in a cluster.
    """

    options: GatewayOptions
    config: GatewayConfig
    command: tuple[str, ...] = ()
    directory: Path = field(default_factory=Path.cwd)
    environment: Mapping[str, str] = field(default_factory=dict)
    app_log: LogTarget = field(default_factory=LogTarget)
    gateway_log: LogTarget = field(default_factory=LogTarget)
    labels: Mapping[str, str] = field(default_factory=dict)
    stdin: Stdin = "nothing"
    several: bool = False
    dashboard: bool = False
    image: str = ""
    pull_policy: str = ""
    service: bool = False
    kubernetes: bool = False

    @property
    def app_id(self) -> str:
        """The application's name."""
        return self.config.app_id
