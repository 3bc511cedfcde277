"""What the adapters have in common: how they are built."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from mesh.resources.component import Component
from mesh.steps import Steps

__all__ = ["Adapter"]


class Adapter(Steps):
    """A node on a broker, made from one value that says how to reach it.

    Attributes:
        title: What it is as a component, one sentence.
        tested: The real server that it is tested against.
        configuration: The type of that value.
        settings: The model of its component's settings (``mesh/resources/settings.py``).
        group_settings: Those that name the consumer group; the first that is set counts.
    """

    title: ClassVar[str] = ""
    tested: ClassVar[str] = ""
    configuration: ClassVar[type[Any]]
    settings: ClassVar[type[Any]]
    group_settings: ClassVar[tuple[str, ...]] = ("consumerID",)

    def __init__(self, config: Any) -> None:
        """Prepare; entering connects."""
        super().__init__()
        self._config = config

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Build from a backbone URL, as the broker's page tells; raises ``ConfigError``."""
        return cls(cls.configuration.from_url(url))

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Build for a pub/sub component; raises ``ConfigError`` with every setting that is wrong, located."""
        return cls(cls.configuration.from_component(component))
