"""Work, one piece after the other, for as long as it is left open; it knows what was acknowledged."""

from __future__ import annotations

import itertools
import json
import threading
import time
import urllib.error
import urllib.request
from typing import Self

__all__ = ["Load", "Writes", "post"]

CALL_WITHIN = 5.0
PAUSE = 0.02
PAUSE_AFTER_FAILURE = 0.2


def post(url: str, body: object) -> int:
    """Send JSON and give the status.

    Raises:
        OSError: There is no answer in time.
    """
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=CALL_WITHIN) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return int(error.code)


class Load:
    """While entered, publishes to ``recorded`` and calls ``recorder``; nothing is sent twice."""

    def __init__(self, api: str) -> None:
        """Prepare; entering starts it.

        Args:
            api: Of the gateway that is used, with the version.
        """
        self.events: set[str] = set()
        self.calls: set[str] = set()
        self.failed = 0
        self._stop = threading.Event()
        self._numbers = itertools.count(1)
        publish, call = f"{api}/publish/pubsub/recorded", f"{api}/invoke/recorder/method/take"
        self._threads = [
            threading.Thread(target=self._send, args=(url, kind, acknowledged), name=kind)
            for url, kind, acknowledged in [(publish, "event", self.events)] * 3 + [(call, "call", self.calls)] * 2
        ]

    def __enter__(self) -> Self:
        """Start."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop, and return when the last answer is there or given up."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self, url: str, kind: str, acknowledged: set[str]) -> None:
        while not self._stop.is_set():
            identity = f"{kind}-{next(self._numbers)}"
            try:
                status = post(url, {"id": identity})
            except OSError:
                status = 0
            if status in (200, 204):
                acknowledged.add(identity)
                time.sleep(PAUSE)
            else:
                self.failed += 1
                time.sleep(PAUSE_AFTER_FAILURE)

    def goes_on(self, count: int, within: float) -> None:
        """Return when so many more events and calls were acknowledged."""
        events, calls = len(self.events) + count, len(self.calls) + count
        deadline = time.monotonic() + within
        while len(self.events) < events or len(self.calls) < calls:
            assert time.monotonic() < deadline, (
                f"not within {within:g} s: {count} more events and calls are acknowledged; "
                f"there are {len(self.events)} of {events} events and {len(self.calls)} of {calls} calls"
            )
            time.sleep(0.05)


class Writes:
    """While entered, saves numbers in a state store, each under a key of its own; nothing is sent twice."""

    def __init__(self, store: str) -> None:
        """Prepare; entering starts it.

        Args:
            store: The URL of the store.
        """
        self.acknowledged: dict[str, int] = {}
        self.failed = 0
        self._store = store
        self._stop = threading.Event()
        self._numbers = itertools.count(1)
        self._threads = [threading.Thread(target=self._save) for _ in range(3)]

    def __enter__(self) -> Self:
        """Start."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop, and return when the last answer is there or given up."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _save(self) -> None:
        while not self._stop.is_set():
            number = next(self._numbers)
            try:
                saved = post(self._store, [{"key": f"kept-{number}", "value": number}]) == 204
            except OSError:
                saved = False
            if saved:
                self.acknowledged[f"kept-{number}"] = number
                time.sleep(PAUSE)
            else:
                self.failed += 1
                time.sleep(PAUSE_AFTER_FAILURE)

    def goes_on(self, count: int, within: float) -> None:
        """Return when so many more were acknowledged."""
        wanted, deadline = len(self.acknowledged) + count, time.monotonic() + within
        while len(self.acknowledged) < wanted:
            assert time.monotonic() < deadline, f"not within {within:g} s: {count} more writes are acknowledged"
            time.sleep(0.05)
