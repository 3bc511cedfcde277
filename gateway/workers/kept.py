"""What the parent of workers keeps: of each of them, and of each application that all of them serve."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

from gateway.config import GatewayConfig
from gateway.logs import LogRing
from gateway.workers import merging
from gateway.workers.permits import Pool
from gateway.workers.wire import Link

__all__ = ["App", "Kept"]


@dataclass(slots=True, eq=False)
class Kept:
    """One worker.

    Attributes:
        opened: Applications whose gateway listens.
        serving: Those that take calls now.
        counted: What it told last of its metrics, by application.
    """

    number: int
    slot: int
    process: asyncio.subprocess.Process
    link: Link
    passing: socket.socket
    born: float = field(default_factory=time.monotonic)
    opened: set[str] = field(default_factory=set)
    serving: set[str] = field(default_factory=set)
    counted: dict[str, merging.Sent] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    joined: bool = False
    stopping: bool = False


@dataclass(slots=True)
class App:
    """What is one of all workers, for one application."""

    config: GatewayConfig
    labels: dict[str, str]
    ring: LogRing
    node_id: str = field(default_factory=lambda: secrets.token_hex(8))
    key: str = field(default_factory=lambda: secrets.token_hex(24))
    entry: ExitStack = field(default_factory=ExitStack)
    entered: bool = False
    over: bool = False  # Told to stop, by its API.
    gone: merging.Sent = field(default_factory=dict)
    pool: Pool | None = None
    healthy: bool | None = None  # The application, as one of the workers has found; None = none asks, or has yet.
