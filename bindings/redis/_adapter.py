"""What the components on Redis have in common: they are opened in the same way."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Self

from bindings.redis._client import Client, Command
from bindings.redis._settings import RedisSettings, read
from bindings.redis._wire import Dial, LostError, RefusedError, Reply
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError
from mesh.errors import ConfigurationError, LockError, StateError
from mesh.resources.component import Component

__all__ = ["RedisAdapter"]


class RedisAdapter(ComponentAdapter):
    """A component on Redis.

    Attributes:
        settings: The model of its settings.
        failure: The error of its building block.
    """

    tested = "Redis 7.0"
    settings = RedisSettings
    failure: ClassVar[type[StateError | LockError | ConfigurationError | BindingError]]

    def __init__(self, settings: RedisSettings, tls: ssl.SSLContext | None = None, start_within: float = 5.0) -> None:
        """Prepare; entering connects.

        Args:
            settings: Its settings.
            tls: The context that goes with them.
            start_within: Seconds that entering may take.
        """
        super().__init__(settings)
        self._client = Client(Dial(settings, tls), start_within)

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        return cls(*read(component, cls.settings), component.init_timeout)

    async def _enter(self) -> None:
        """Connect.

        Raises:
            StateError: It is not there, or refuses; or its block's like.
        """
        with self._failures():
            await self._stack.enter_async_context(self._client)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise the block's error instead of the client's."""
        try:
            yield
        except (LostError, RefusedError) as error:
            raise self.failed(error) from error

    def failed(self, error: LostError | RefusedError) -> StateError | LockError | ConfigurationError | BindingError:
        """Make the block's error of the client's."""
        if isinstance(error, RefusedError):
            return self.failure(f"{self._client.shown} refused: {error}")
        text = str(error)
        return self.failure(text if text.startswith(self._client.shown) else f"{self._client.shown}: {text}")

    async def run(self, command: Command) -> Reply:
        """Send a command and return its reply; raises the block's error."""
        try:
            return await self._client.run(command)
        except (LostError, RefusedError) as error:
            raise self.failed(error) from error

    async def run_all(self, commands: Sequence[Command]) -> Sequence[Reply | RefusedError | LostError]:
        """Send several commands, and give what each came to."""
        return await self._client.run_all(commands)
