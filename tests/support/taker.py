"""An application that takes the events of a binding."""

from __future__ import annotations

from mesh.blocks.binding_contract import BindingError, BindingEvent
from tests.support.eventually import eventually

__all__ = ["Taker"]


class Taker:
    """Takes events; the first ones are refused where that is asked for."""

    def __init__(self, refuses: int = 0) -> None:
        self.events: list[BindingEvent] = []
        self.refuses = refuses

    async def __call__(self, event: BindingEvent) -> bytes:
        self.events.append(event)
        if len(self.events) <= self.refuses:
            raise BindingError("not taken")
        return b""

    async def has(self, count: int) -> list[bytes]:
        def there() -> None:
            assert len(self.events) >= count

        await eventually(there)
        return [event.data for event in self.events]
