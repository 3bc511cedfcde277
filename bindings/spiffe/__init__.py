"""The client of the SPIFFE Workload API: streams of certificates, by ``grpc.aio``.

The messages stand compiled in ``messages.binpb``, in a pool of their own: those of the standard have no package, and a
library for SPIFFE may be in the same process. ``make proto`` compiles them.

Source: SPIFFE Workload Endpoint sections 3 and 6; SPIFFE Workload API section 5.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from importlib.resources import files
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from mesh.trust.workload import SVID, WorkloadAPIError

__all__ = ["SPIFFEWorkloadAPI"]

OPTIONS = [
    ("grpc.default_authority", "localhost"),  # Some servers refuse the path of a socket there.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),  # Who calls waits between attempts, longer and longer.
    # A stream is silent for hours. Servers take no pings that come more often than every five minutes.
    ("grpc.keepalive_time_ms", 360_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
]
METADATA = (("workload.spiffe.io", "true"),)  # A request that somebody was tricked into making does not have it.
# Held for good: the library would end its thread with the last channel, and wait for that in the event loop.
grpc.aio.init_grpc_aio()
_Code = grpc.StatusCode
_ADVICE = {
    _Code.UNAVAILABLE: "; does the agent run, and may this user use its socket?",
    _Code.PERMISSION_DENIED: "; is an id registered for this process, with selectors that fit it?",
}
_FINAL = frozenset({_Code.INVALID_ARGUMENT, _Code.UNIMPLEMENTED})


def _messages(*names: str) -> list[Any]:
    """Give the classes of messages."""
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(files(__package__).joinpath("messages.binpb").read_bytes()).file:
        pool.Add(file)
    return [GetMessageClass(pool.FindMessageTypeByName(name)) for name in names]


_Request, _Response = _messages("X509SVIDRequest", "X509SVIDResponse")


class SPIFFEWorkloadAPI:
    """A connection to an agent, made when it is needed."""

    def __init__(self, target: str) -> None:
        """Prepare; the target is one of gRPC."""
        self._target = target

    async def __aenter__(self) -> Self:
        """Open the channel, which connects to nobody yet."""
        self._channel = grpc.aio.insecure_channel(self._target, options=OPTIONS)
        return self

    async def __aexit__(self, *_: object) -> None:
        """End every stream."""
        await self._channel.close()

    async def updates(self) -> AsyncGenerator[Sequence[SVID], None]:
        """Follow one stream, whose end is an error; raises ``WorkloadAPIError``."""
        open_ = self._channel.unary_stream(
            "/SpiffeWorkloadAPI/FetchX509SVID",
            request_serializer=_Request.SerializeToString,
            response_deserializer=_Response.FromString,
        )
        call = open_(_Request(), metadata=METADATA)
        try:
            while (found := await call.read()) is not grpc.aio.EOF:
                if found is None:
                    raise WorkloadAPIError("it sent what is no answer of a Workload API")
                yield [SVID(each.spiffe_id, each.x509_svid, each.x509_svid_key, each.bundle) for each in found.svids]
        except grpc.aio.AioRpcError as error:
            code = error.code()
            text = f"{error.details() or 'it ended the stream'} ({code.name}){_ADVICE.get(code, '')}"
            raise WorkloadAPIError(text, final=code in _FINAL) from None
        except (grpc.aio.UsageError, grpc.aio.InternalError, asyncio.InvalidStateError) as error:
            raise WorkloadAPIError(f"the stream broke off: {error}") from None
        finally:
            call.cancel()
        raise WorkloadAPIError("it ended the stream")
