"""The table of docs/limits.md on workers of workflows, here and at other gateways: rows as in `docs.limits`."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.workflows import dispatch, forwarding

__all__ = ["rows"]

NONE = "nothing"
Row = tuple[str, str, str, str]


def rows() -> Sequence[Row]:
    """Give them."""
    return (
        (
            "activities that a gateway has at other gateways of one application at once",
            f"{forwarding.MAX_WINDOW:,}; {forwarding.FIRST_WINDOW} at first, "
            f"twice as many each {forwarding.WIDEN_SECONDS:g} s",
            NONE,
            "the others wait where they are",
        ),
        (
            "activities of other applications that wait at a gateway for its workers",
            f"{dispatch.MAX_FOREIGN:,}, and {dispatch.MAX_FOREIGN_BYTES // 2**20} MiB of inputs and history",
            NONE,
            "they are refused, and wait where they come from",
        ),
        (
            "how long a worker is left alone with a name that it did not take",
            _between(dispatch.BACKOFF_SECONDS),
            NONE,
            "other names, and other workers, go on",
        ),
        (
            "how long it takes until an application is looked for again that is to run activities, and is not there",
            _between(forwarding.ABSENT_SECONDS),
            NONE,
            "it goes on for ever",
        ),
        (
            "how long a worker that leaves is waited for, also when its gateway drains",
            f"{dispatch.DRAIN_SECONDS:g} s",
            NONE,
            "what it has is run again elsewhere",
        ),
    )


def _between(seconds: tuple[float, float]) -> str:
    return f"{seconds[0]:g} s to {seconds[1]:g} s, doubling"
