"""The text of a systemd unit that runs a gateway, alone or with its application, as nobody who could do harm.

Sources: systemd.service(5), systemd.exec(5), systemd.syntax(7).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mesh.errors import ConfigError, Problem

__all__ = ["MARK", "Service", "environment_text", "unit_text"]

MARK = "# Written by mesh service install for "
"""The beginning of the first line; the app id follows."""

RESTART_SECONDS, WATCHDOG_SECONDS, STOP_MARGIN = 2, 30, 10

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_./:=,@%+-]+")
_UNSAFE, _ESCAPED = re.compile(r'[\\"`$]'), r"\\\g<0>"

# Each works without privileges of the service manager, which one of a user has not.
_EVERYWHERE = (
    "NoNewPrivileges=yes",
    "LockPersonality=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "SystemCallArchitectures=native",
    "SystemCallErrorNumber=EPERM",
    "SystemCallFilter=@system-service",
)
# Not for applications, of which many compile code while they run.
_GATEWAY_ALONE = ("MemoryDenyWriteExecute=yes", "SystemCallFilter=~@privileged @resources")
_OF_THE_SYSTEM = (
    "DevicePolicy=closed",
    "KeyringMode=private",
    "PrivateDevices=yes",
    "PrivateMounts=yes",
    "PrivateTmp=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectProc=invisible",
    "ProtectSystem=strict",
    "RemoveIPC=yes",
)


@dataclass(frozen=True, slots=True)
class Service:
    """One service.

    Attributes:
        app_id: Whose gateway it is.
        words: Its command line.
        directory: Where it works; None = in the root folder.
        runs_application: The command line is one of ``mesh run``, with a command.
        stop_seconds: The longest that it takes to end.
        user: Whose rights it has; None = those of a user that is there only while it runs.
        of_user: It is one of the calling user's own manager.
        low_port: It listens on a port below 1024.
        writable: Folders that it writes, besides its own.
        environment: Variables of its file, which only root and it can read.
    """

    app_id: str
    words: Sequence[str]
    directory: Path | None = None
    runs_application: bool = False
    stop_seconds: float = 20.0
    user: str | None = None
    of_user: bool = False
    low_port: bool = False
    writable: Sequence[Path] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def unit(self) -> str:
        """The unit's name."""
        return f"mesh-{self.app_id}.service"


def unit_text(service: Service) -> str:
    """Write the unit.

    Raises:
        ConfigError: A word cannot stand in a unit.
    """
    what = "Application and gateway" if service.runs_application else "Gateway"
    lines = [
        f"{MARK}{service.app_id}; changes belong into: systemctl edit {service.unit}",
        "[Unit]",
        f"Description={what} of {service.app_id}",
        *([] if service.of_user else ["Wants=network-online.target", "After=network-online.target"]),
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=notify",
        # Of mesh run, the gateway tells how it is; it is a process of its own there.
        f"NotifyAccess={'all' if service.runs_application else 'main'}",
        f"ExecStart={' '.join(_word(word) for word in service.words)}",
        *([f"WorkingDirectory={_path(service.directory)}"] if service.directory else []),
        "EnvironmentFile=-%E/mesh/environment",
        f"EnvironmentFile=-%E/mesh/{service.app_id}.env",
        "Restart=on-failure",
        f"RestartSec={RESTART_SECONDS}",
        "RestartPreventExitStatus=2",
        f"WatchdogSec={WATCHDOG_SECONDS}",
        f"TimeoutStopSec={service.stop_seconds + STOP_MARGIN:.0f}",
        "KillMode=mixed",
        "LimitNOFILE=65536",
        "UMask=0077",
        *([] if service.of_user else _rights(service)),
        *_EVERYWHERE,
        *(() if service.runs_application else _GATEWAY_ALONE),
        *([] if service.of_user else _OF_THE_SYSTEM),
        "",
        "[Install]",
        f"WantedBy={'default' if service.of_user else 'multi-user'}.target",
    ]
    return "\n".join(lines) + "\n"


def _rights(service: Service) -> list[str]:
    """Give whose rights a service of the system has, and what it sees and writes."""
    # Services of one such user share its number for as long as one of them runs, and so what they have stored.
    state = f"mesh-{service.user}" if service.user else "mesh"
    capability = "CAP_NET_BIND_SERVICE" if service.low_port else ""
    return [
        f"User={service.user or 'mesh'}",
        *([] if service.user else ["DynamicUser=yes"]),
        f"StateDirectory={state}",
        "StateDirectoryMode=0700",
        f"Environment=MESH_HOME=%S/{state}",
        f"AmbientCapabilities={capability}",
        f"CapabilityBoundingSet={capability}",
        f"ProtectHome={'read-only' if service.user else 'yes'}",
        *(f"ReadWritePaths={_path(each)}" for each in service.writable),
    ]


def _word(text: str) -> str:
    """Write a word of a command line, in which neither variables nor specifiers are looked for."""
    quoted = _path(text).replace("$", "$$").replace("\\", "\\\\").replace('"', '\\"')
    return quoted if _PLAIN_WORD.fullmatch(quoted) else f'"{quoted}"'


def _path(value: Path | str) -> str:
    text = str(value)
    if not text.isprintable():
        raise ConfigError(Problem(f"{text!r} has signs that do not print, which no unit may have"))
    return text.replace("%", "%%")


def environment_text(before: str, variables: Mapping[str, str]) -> str:
    """Write variables into the text of an environment file; what else is in it stays.

    Raises:
        ConfigError: A name is none of a variable, or a value has more than one line.
    """
    for name, value in variables.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(Problem(f"{name!r} is no name of a variable", "--env"))
        if not value.isprintable():
            raise ConfigError(
                Problem(f"the value of {name} has signs that do not print: name a file that has it", "--env")
            )
    kept = [line for line in before.splitlines() if line.partition("=")[0].strip() not in variables]
    written = [f'{name}="{_UNSAFE.sub(_ESCAPED, value)}"' for name, value in variables.items()]
    return "".join(f"{line}\n" for line in [*kept, *written])
