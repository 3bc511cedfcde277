"""What a client raises, in our words: no exception of a client's leaves an adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType

from brokers.shared._not_admitted import NotAdmittedError
from brokers.shared.tls import refusal_of
from mesh.errors import BrokerUnavailableError, MeshError

__all__ = ["NotAdmittedError", "cause_of", "map_errors", "unavailable"]


class map_errors:
    """Raises an error of ours for what a client raises within, chained with ``from``.

    It holds no state of its own: one value serves all calls, also at the same time.
    """

    def __init__(self, counterparts: Mapping[type[Exception], Callable[[Exception], MeshError]]) -> None:
        """Note what becomes of what.

        Args:
            counterparts: Makes our error, by the client's class; the nearest class that is named counts.
        """
        self._counterparts = counterparts

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise the counterpart, if there is one."""
        if error is not None and (ours := self.translate(error)) is not None:
            raise ours from error

    def translate(self, error: BaseException) -> MeshError | None:
        """Make the counterpart of an error; None for what is no client's."""
        if isinstance(error, Exception) and not isinstance(error, MeshError):
            for kind in type(error).__mro__:
                if (make := self._counterparts.get(kind)) is not None:
                    return make(error)
        return None


def cause_of(error: BaseException) -> str:
    """Say in a few words why something failed."""
    if isinstance(error, TimeoutError) and not error.args:
        return "it does not answer"
    return str(error) or type(error).__name__


def unavailable(server: str, error: BaseException | None = None) -> BrokerUnavailableError:
    """Say that a server is not reachable, and why.

    Args:
        server: Its kind and its address, without credentials.
        error: What was raised.
    """
    kind = BrokerUnavailableError if refusal_of(error) is None else NotAdmittedError
    return kind(f"{server} is not reachable" + ("" if error is None else f": {cause_of(error)}"))
