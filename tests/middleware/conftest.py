"""What middleware is tested on: gateways in the process of the test, on memory, and two over NATS."""

from __future__ import annotations

from tests.http.conftest import app, backbone, memory, nats, nats_url

__all__ = ["app", "backbone", "memory", "nats", "nats_url"]
