"""Log lines of a gateway."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gateway.logs import quoted

_LOG = """
import logging
from pathlib import Path
from gateway.config import GatewayConfig
from gateway.logs import configure_logging
configure_logging(GatewayConfig("app", Path()))
logging.getLogger("x").info("topic %s", "b\\u00fccher\\u2028\\ud800")
"""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", '"plain"'),
        ("bücher 日本 😀", '"bücher 日本 😀"'),
        ('a "b"\n\\', '"a \\"b\\"\\n\\\\"'),
        ("\x1b[2J", '"\\u001b[2J"'),
        ("\x7f\x9b31m", '"\\u007f\\u009b31m"'),
        ("\u202eabc\u2028", '"\\u202eabc\\u2028"'),
        ("ü\udc80", '"ü\\udc80"'),
    ],
)
def test_text_is_readable_and_moves_no_cursor(text: str, shown: str) -> None:
    """What prints is left alone; everything else is escaped, so that a line stays one line."""
    assert quoted(text) == shown


@pytest.mark.parametrize(
    ("encoding", "shown"), [("utf-8", "bücher"), ("latin-1", "b\\u00fccher"), ("ascii", "b\\u00fccher")]
)
def test_every_output_takes_the_lines(encoding: str, shown: str) -> None:
    """An output that is not UTF-8 gets ASCII."""
    found = subprocess.run(
        [sys.executable, "-c", _LOG],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert f'level=info msg="topic {shown}\\u2028\\ud800"' in found.stdout.decode(encoding)
    assert found.stderr == b""
