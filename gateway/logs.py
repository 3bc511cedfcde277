"""Logs of a gateway: one line an event, as text or JSON, to standard output."""

from __future__ import annotations

import codecs
import json
import logging
import socket
import sys
from datetime import datetime

from gateway.config import GatewayConfig
from mesh import __version__

__all__ = ["configure_logging", "quoted"]


def quoted(value: object, *, ascii_only: bool = False) -> str:
    """Write a value for people to read: as JSON, with what does not print, or would move the cursor, escaped."""
    text = json.dumps(value, ensure_ascii=ascii_only).replace("\x7f", "\\u007f")
    return (
        text if text.isprintable() else "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)
    )


class _Text(logging.Formatter):
    """``time="…" level=info msg="…" app_id=… scope=…``."""

    def __init__(self, app_id: str) -> None:
        super().__init__()
        self._tail = f"app_id={app_id} instance={socket.gethostname()}"
        self._ascii_only = codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        fields = "".join(f" {name}={self._quoted(value)}" for name, value in getattr(record, "fields", {}).items())
        text = (
            f'time="{when}" level={record.levelname.lower()} msg={self._quoted(record.getMessage())}'
            f"{fields} {self._tail} scope={record.name} type=log ver={__version__}"
        )
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text

    def _quoted(self, value: object) -> str:
        return quoted(value, ascii_only=self._ascii_only)


class _JSON(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, app_id: str) -> None:
        super().__init__()
        self._common = {"app_id": app_id, "instance": socket.gethostname(), "type": "log", "ver": __version__}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created).astimezone().isoformat(),
            "level": record.levelname.lower(),
            "msg": record.getMessage(),
            "scope": record.name,
            **self._common,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(config: GatewayConfig) -> None:
    """Send the logs of this process to standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JSON(config.app_id) if config.log_json else _Text(config.app_id))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.log_level.upper())
    # Per-request chatter of libraries is not ours to show.
    for name in ("asyncio", "aiohttp.access", "nats"):
        logging.getLogger(name).setLevel(logging.WARNING)
