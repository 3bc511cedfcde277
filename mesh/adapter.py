"""What adapters of components have in common: their settings, and how they are opened and closed."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from mesh.errors import ConfigError
from mesh.resources.component import Component
from mesh.resources.settings import read_settings
from mesh.steps import Steps

__all__ = ["ComponentAdapter"]


class ComponentAdapter(Steps):
    """Opened by entering it: what ``_enter`` puts on ``_stack`` is closed when it is left.

    One that can tell whether it can be used now has ``async def check(self) -> None``, which raises a ``MeshError``
    when it cannot; metadata shows it.

    Attributes:
        title: What it is, one sentence; empty = the first one of the class's docstring.
        versions: Those of ``spec.version`` that it knows, the usual one first.
        tested: What it is tested against: the real service and its version, or why that is not so.
        settings: The model of its settings (``mesh/resources/settings.py``).
        bound: Whether it belongs to one process or machine, so that other nodes would find another one.
    """

    title: ClassVar[str] = ""
    versions: ClassVar[tuple[str, ...]] = ("v1",)
    tested: ClassVar[str] = ""
    settings: ClassVar[type[Any]]
    bound: ClassVar[bool] = False

    def __init__(self, settings: Any) -> None:
        """Prepare; entering connects.

        Args:
            settings: A value of the model.
        """
        super().__init__()
        self._settings = settings
        self._component: Component | None = None

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        made = cls(read_settings(component, cls.settings))
        made._component = component
        return made

    def _problem(self, message: str, setting: str | None = None) -> ConfigError:
        """Make the error for something that shows only when it is opened, located at a setting."""
        component = self._component
        return ConfigError(message if component is None else component.problem(message, setting=setting))

    async def _enter(self) -> None:
        """Connect; nothing by default."""
