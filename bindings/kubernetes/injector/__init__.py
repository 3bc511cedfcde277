"""The injector: what gives a pod that asks for it a gateway, as the cluster's API server is told of it.

``injected`` is the whole of what is done to a pod, `ANNOTATIONS` all that says how, ``serving`` what asks for it, and
``webhook_configuration`` what has the API server come.
"""

from bindings.kubernetes.injector.annotations import ANNOTATIONS, Annotation
from bindings.kubernetes.injector.container import CONTAINER, Injection
from bindings.kubernetes.injector.objects import webhook_configuration
from bindings.kubernetes.injector.pod import Injected, app_id_of, injected
from bindings.kubernetes.injector.serving import Injector, has_native_sidecars, serving

__all__ = [
    "ANNOTATIONS",
    "CONTAINER",
    "Annotation",
    "Injected",
    "Injection",
    "Injector",
    "app_id_of",
    "has_native_sidecars",
    "injected",
    "serving",
    "webhook_configuration",
]
