"""Sights as there are many, for trying an expression out before all nodes are asked."""

from __future__ import annotations

from mesh.tap.sight import Content, Seen, Sight

__all__ = ["SAMPLES"]

_JSON = Content((("content-type", "application/json"),), "application/json", 2, b"{}")

SAMPLES = (
    Sight(
        id="node-1",
        time=1.0,
        seconds=0.001,
        seen=Seen.ASKED,
        block="invocation",
        method="invoke",
        target="checkout",
        source="orders",
        app="orders",
        node="node",
        outcome="ok",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        details={"verb": "POST", "path": "/pay", "status": 200},
        request=_JSON,
        reply=_JSON,
    ),
)
