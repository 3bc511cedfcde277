"""As for the HTTP tests: the backbones."""

from tests.http.conftest import app, backbone, memory, module_backbone, nats, nats_url

__all__ = ["app", "backbone", "memory", "module_backbone", "nats", "nats_url"]
