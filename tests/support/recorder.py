"""What an application in the process of a test was asked."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from tests.support.eventually import PATIENCE, eventually

__all__ = ["Recorder"]


class _Asked(Protocol):
    @property
    def path(self) -> str: ...


T = TypeVar("T", bound=_Asked)


class Recorder(Generic[T]):
    """Keeps what it got, in order."""

    def __init__(self) -> None:
        self.got: list[T] = []

    def at(self, path: str) -> list[T]:
        return [got for got in self.got if got.path == path]

    async def until(self, path: str, count: int = 1, within: float = PATIENCE) -> list[T]:
        """Wait for so many requests to a path."""

        def check() -> list[T]:
            assert len(self.at(path)) >= count, f"{len(self.at(path))} of {count} at {path}: {self.got[-5:]}"
            return self.at(path)

        return await eventually(check, within)
