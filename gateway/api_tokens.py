"""Which tokens a client of the gateway may send: one of the environment, or those of a file, which may change."""

from __future__ import annotations

import hmac
import logging
import time
from pathlib import Path

from gateway.config import Tokens
from mesh.errors import ConfigError

__all__ = ["Admitted", "read_tokens"]

logger = logging.getLogger(__name__)

LOOK_EVERY = 1.0
MAX_FILE_BYTES = 64 * 1024


def read_tokens(file: Path) -> tuple[bytes, ...]:
    """Give the tokens of a file, one a line.

    Raises:
        ConfigError: It cannot be read, has none, is too large, or is no text.
    """
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the tokens of {file} cannot be read: {error.strerror}") from error
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(f"the file of tokens {file} has more than {MAX_FILE_BYTES} bytes")
    found = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not found:
        raise ConfigError(f"the file of tokens {file} has no token in it")
    try:
        printable = all(each.decode().isprintable() for each in found)
    except UnicodeDecodeError:
        printable = False
    if not printable:
        raise ConfigError(f"the file of tokens {file} has a token that is no printable text in UTF-8")
    return found


class Admitted:
    """The tokens that are good now."""

    def __init__(self, tokens: Tokens) -> None:
        """Read them.

        Raises:
            ConfigError: There is a file, and it cannot be read.
        """
        self._file = tokens.api_file
        self._state = None if self._file is None else _state(self._file)
        self._tokens: tuple[bytes, ...] = () if tokens.api is None else (tokens.api.encode(),)
        self._look_at = time.monotonic() + LOOK_EVERY
        self._told = ""  # What was wrong with it when it was read last.
        if self._file is not None:
            self._tokens = read_tokens(self._file)

    def admits(self, given: bytes) -> bool:
        """Tell whether a client's token is one of them; looks at the file once a second at most."""
        if self._file is not None and time.monotonic() >= self._look_at:
            self._look(self._file)
        # All are compared, so that the time tells nothing of which one it is.
        return sum([hmac.compare_digest(given, each) for each in self._tokens]) > 0

    def _look(self, file: Path) -> None:
        self._look_at = time.monotonic() + LOOK_EVERY
        state = _state(file)
        if state == self._state:
            self._told = ""
            return
        try:
            self._tokens = read_tokens(file)
        except ConfigError as error:  # It is tried again: what is mended may not show in its state.
            if str(error) != self._told:
                self._told = str(error)
                logger.error("API tokens are kept as they were: %s", error)  # noqa: TRY400 - its text says it all
        else:
            self._state, self._told = state, ""
            logger.info("API tokens read again: %d of them", len(self._tokens))


def _state(file: Path) -> tuple[int, ...] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size
