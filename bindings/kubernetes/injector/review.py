"""What an API server asks about a pod, and what it is answered: AdmissionReview of ``admission.k8s.io/v1``."""

from __future__ import annotations

import base64
from typing import Any

import orjson

from bindings.kubernetes.injector.container import Injection
from bindings.kubernetes.injector.pod import Injected, injected

__all__ = ["reviewed"]

MAX_MESSAGE = 4096  # Characters of what is wrong, which may quote what is long.
MAX_WARNING = 250  # Characters; the API server cuts off what is longer, and drops some beyond 4 KiB together.


def reviewed(review: object, injection: Injection, key: str) -> dict[str, Any]:
    """Answer a review; it changes nothing elsewhere, so a dry run is answered as any other.

    Args:
        review: As the API server sent it.
        injection: What the operator says for all pods.
        key: As of ``injected``.

    Raises:
        ValueError: It is none.
    """
    request = review.get("request") if isinstance(review, dict) else None
    if (
        not isinstance(review, dict)
        or review.get("kind") != "AdmissionReview"
        or not isinstance(request, dict)
        or not request.get("uid")
    ):
        raise ValueError("this is no AdmissionReview with a request")
    pod = request.get("object")
    concerns = (request.get("kind") or {}).get("kind") == "Pod" and request.get("operation") == "CREATE"
    found = injected(pod, injection, key) if concerns and isinstance(pod, dict) else Injected()
    response: dict[str, Any] = {"uid": request["uid"], "allowed": not found.problems}
    if found.problems:
        response["status"] = {"code": 422, "reason": "Invalid", "message": "; ".join(found.problems)[:MAX_MESSAGE]}
    elif found.patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(orjson.dumps(found.patch)).decode()
    if found.warnings:
        response["warnings"] = [each[:MAX_WARNING] for each in found.warnings]
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
