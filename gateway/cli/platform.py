"""What applications run on besides this machine: found by entry point, since no adapter is imported here."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any, Protocol

from mesh.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

__all__ = ["GROUP", "Platform", "Record", "load_platform"]

GROUP = "brokermesh.platforms"
Record = dict[str, Any]


class Platform(Protocol):
    """What a platform offers to the command line; errors are ``ConfigError`` or others of ours.

    Attributes:
        namespace: Where an installation is, unless it is told.
    """

    namespace: str

    def manifests(self, namespace: str, given: Sequence[str]) -> list[Record]:
        """Give all objects of an installation."""

    def settings(self) -> list[tuple[str, object, str]]:
        """Give what ``--set`` takes: names, defaults, and what they are."""

    def install(
        self, namespace: str, given: Sequence[str], *, dry_run: bool, within: float | None, upgrade: bool
    ) -> AsyncIterator[str]:
        """Apply all objects, and wait for what runs; tell of each."""

    def uninstall(self, namespace: str, *, everything: bool) -> AsyncIterator[str]:
        """Remove what was installed; tell of each object."""

    async def parts(self, namespace: str) -> list[Record]:
        """Tell of the parts of an installation."""

    async def applications(self, namespace: str | None) -> list[Record]:
        """Tell of the pods that have a gateway; None: of all namespaces."""

    async def resources(self, kind: str, namespace: str | None, name: str | None) -> list[Record]:
        """Give resources of a kind, as the platform has them."""

    def rows(self, resources: Sequence[Record]) -> list[Record]:
        """Give of resources what a table shows."""

    def logs(
        self, app_id: str, pod: str | None, namespace: str, *, lines: int, follow: bool
    ) -> AsyncIterator[tuple[str, bytes]]:
        """Give what gateways of an application write: pod and line."""

    def dashboard(self, namespace: str, here: int) -> AbstractAsyncContextManager[int]:
        """Forward a port of this machine to the dashboard; give it."""

    async def deploy(self, run: str, namespace: str, apps: Sequence[Mapping[str, Any]]) -> list[str]:
        """Apply the workloads of a template; give their names."""

    async def withdraw(self, run: str, namespace: str) -> list[str]:
        """Delete the workloads of a template; give their names."""

    async def roots(self, namespace: str) -> bytes | None:
        """Give whom gateways trust, PEM; None: there are no identities."""

    async def renew_root(self, namespace: str) -> bytes:
        """Have certificates issued by a new root, beside which the former ones are trusted; give all, PEM."""

    def annotations(self) -> Mapping[str, str]:
        """Give each annotation by the option that sets it."""

    def annotated(self, text: str, given: Mapping[str, str], resource: str | None, namespace: str | None) -> str:
        """Write annotations into manifests."""

    async def operate(self, options: Mapping[str, Any]) -> None:
        """Run an operator until a signal ends it."""


def load_platform(name: str = "kubernetes") -> Platform:
    """Load a platform.

    Raises:
        ConfigError: It is not installed.
    """
    for found in importlib.metadata.entry_points(group=GROUP, name=name):
        platform: Platform = found.load()
        return platform
    raise ConfigError(Problem(f"{name} is not installed: install brokermesh anew, pip install of a clone does"))
