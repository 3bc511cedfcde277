"""How the bindings to a storage account of Azure fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from azure.core.exceptions import HttpResponseError

from bindings.azure._client import failures
from mesh.blocks.binding_contract import BindingError
from mesh.errors import StateError, StateLimitError

__all__ = ["binding_failures", "code_of"]

_BUSY = (408, 429)


@contextmanager
def binding_failures(shown: str) -> Iterator[None]:
    """Turn the library's errors into those of bindings; what Azure refuses it refuses again."""
    try:
        with failures(shown):
            try:
                yield
            except HttpResponseError as error:
                status = error.status_code or 0
                if not 400 <= status < 500 or status in _BUSY:
                    raise
                raise BindingError(f"{shown} answered {status}: {code_of(error)}") from None
    except StateLimitError as error:
        raise BindingError(str(error)) from None
    except StateError as error:
        raise BindingError(str(error), retryable=True) from None


def code_of(error: HttpResponseError) -> str:
    """Give what Azure calls an error."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or error.reason)
