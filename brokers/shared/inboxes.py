"""Which addresses of a broker are inboxes: whoever may send a frame may name any as where its answer goes.

A node sends with its own rights. So what is no inbox is no place for an answer: it could be a topic, a command's
subject or a stranger's queue that only this node may write to.
"""

from __future__ import annotations

import logging
import re

from mesh.errors import BrokerError

__all__ = ["NODE_NAME", "Inboxes"]

logger = logging.getLogger("brokers")

NODE_NAME = r"mesh-(?:[A-Za-z0-9_=-]+:)?[A-Za-z0-9_-]+-[0-9]+-[0-9a-f]{8}"  # As `node_name` makes it.
MAX_SHOWN = 100


class Inboxes:
    """Tells addresses of inboxes from all others."""

    def __init__(self, title: str, pattern: str) -> None:
        """Prepare.

        Args:
            title: The broker's name, for people.
            pattern: A regular expression that an inbox's whole address matches, its token included.
        """
        self._title = title
        self._pattern = re.compile(pattern)
        self._told = False

    def check(self, to: str) -> str:
        """Give an address that is an inbox's; raises ``BrokerError`` for any other."""
        if self._pattern.fullmatch(to) is None:
            raise BrokerError(f"{to[:MAX_SHOWN]!r} is not the address of an inbox on {self._title}")
        return to

    def reply_to(self, text: str) -> str:
        """Give where a frame says that its answer goes; empty if that is no inbox, which is told once."""
        if not text or self._pattern.fullmatch(text) is not None:
            return text
        if not self._told:
            self._told = True
            logger.warning(
                "a frame on %s wants its answer at %r, which is not an inbox: it gets none, nor do others like it",
                self._title,
                text[:MAX_SHOWN],
            )
        return ""
