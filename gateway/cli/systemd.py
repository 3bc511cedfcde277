"""What a service manager is asked to do: systemd of the machine, or that of a user.

Source: systemctl(1), sd_booted(3).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.errors import MeshError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Systemd"]

_PROPERTIES = "Id,ActiveState,SubState,UnitFileState,MainPID,MemoryCurrent,NRestarts,ActiveEnterTimestamp,StatusText"
_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Systemd:
    """A service manager.

    Attributes:
        of_user: That of the calling user.
    """

    of_user: bool = False

    @property
    def units(self) -> Path:
        """Where the administrator's, or the user's own units are."""
        return self._configuration / "systemd" / ("user" if self.of_user else "system")

    @property
    def environments(self) -> Path:
        """Where the environment files are."""
        return self._configuration / "mesh"

    @property
    def _configuration(self) -> Path:
        if not self.of_user:
            return Path("/etc")
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")

    def check(self) -> None:
        """Find out whether it is there, and may be told to do something.

        Raises:
            MeshError: It is not, or may not.
        """
        if shutil.which("systemctl") is None or not Path("/run/systemd/system").is_dir():
            raise MeshError("systemd does not run here; --dry-run prints what would be written")
        if not self.of_user and os.geteuid() != 0:
            raise MeshError("services of the machine are for root: sudo, or --user for services of your own")

    def command(self, *words: str) -> str:
        """Have systemctl do something, and give what it says.

        Raises:
            MeshError: It has failed.
        """
        line = ["systemctl", *(["--user"] if self.of_user else []), *words]
        try:
            # Its arguments are units, whose names were checked when they were written.
            done = subprocess.run(line, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603
        except subprocess.TimeoutExpired:
            raise MeshError(f"{' '.join(line)} was not done in {_SECONDS:.0f} s; see: systemctl list-jobs") from None
        if done.returncode:
            raise MeshError(f"{' '.join(line)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
        return done.stdout

    def described(self, units: Sequence[str]) -> list[dict[str, str]]:
        """Give what it knows of units, in their order."""
        if not units:
            return []
        told = self.command("show", f"--property={_PROPERTIES}", *units)
        blocks = told.strip("\n").split("\n\n")
        return [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]
