"""How the adapters to AWS connect, and as whom.

The credentials are those of the settings. Without them they are found as AWS's own tools find them: variables, the
shared files with their profiles, the identity of a pod (IRSA, Pod Identity), of a container or of an instance.

Source: Dapr 1.18, the AWS authentication profiles; the AWS SDKs and Tools Reference Guide.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioCredentials, AioDeferredRefreshableCredentials
from aiobotocore.session import AioSession
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoRegionError,
    ParamValidationError,
)
from botocore.exceptions import (
    ConnectionError as UnreachableError,
)

from mesh.adapter import ComponentAdapter
from mesh.errors import ConfigError, MeshError, Problem
from mesh.resources.component import Component
from mesh.resources.settings import URL, Kind, Setting, refused, setting

__all__ = ["LIBRARY_ERRORS", "AWSAdapter", "AWSSettings", "broken", "busy", "code_of", "make_session", "reason_of"]

MAX_CONNECTIONS = 32
ATTEMPTS = 3
CONNECT_SECONDS = 3.1
READ_SECONDS = 10.0
MAX_REASON = 300
DENIED = ("AccessDeniedException", "AccessDenied")
_BUSY = (
    "Throttl",
    "TooManyRequests",
    "RequestLimitExceeded",
    "SlowDown",
    "ProvisionedThroughputExceeded",
    "TransactionInProgress",
    "TransactionConflict",
)
LIBRARY_ERRORS = (BotoCoreError, ClientError, OSError, ValueError)
_TELLING = ("Signature", "AuthorizationHeader")  # These quote the request, and so its token.


def _url(text: str) -> str:
    if "." in text and ":" not in text:  # A host alone, as `sqs.eu-west-1.amazonaws.com`.
        text = f"https://{text}"
    return str(URL.parse(text))


@dataclass(frozen=True)  # Without slots, so that a model may inherit from another one as well.
class AWSSettings:
    """What every component of AWS has; those of one service inherit from it."""

    ignored: ClassVar[tuple[Setting, ...]] = refused("IAM Roles Anywhere", "trustAnchorArn", "trustProfileArn")

    region: str | None = setting(
        "region",
        "The region of the service; without it AWS_REGION, or the profile, tells.",
        aliases=("awsRegion",),
        example="eu-central-1",
    )
    endpoint: str | None = setting(
        "endpoint",
        "URL of the service, in place of the region's own.",
        Kind("URL", _url),
        example="http://localhost:4566",
    )
    access_key: str | None = setting(
        "accessKey",
        "Id of an access key; without it the credentials are found as the AWS tools do.",
        secret=True,
        aliases=("awsAccessKey",),
    )
    secret_key: str | None = setting(
        "secretKey", "The secret part of the access key.", secret=True, aliases=("awsSecretKey",)
    )
    session_token: str | None = setting(
        "sessionToken", "Token of a temporary access key.", secret=True, aliases=("awsSessionToken",)
    )
    role: str | None = setting(
        "assumeRoleArn", "A role to take on with these credentials.", example="arn:aws:iam::123456789012:role/shop"
    )
    role_session: str = setting("sessionName", "Name of the session of that role.", default="DaprDefaultSession")


class AWSAdapter(ComponentAdapter):
    """A client of one service; what goes wrong is an error of its block.

    Attributes:
        settings: A model that inherits from `AWSSettings`.
        service: Its name at AWS (``secretsmanager``).
        failed: The class of errors.
        away: The class of those errors after which the same call may succeed.
        attempts: How often the library sends a request that fails.
        connections: The most that it has.
        answer_seconds: How long an answer may take.
    """

    service: ClassVar[str]
    failed: ClassVar[type[MeshError]]
    away: ClassVar[type[MeshError]]
    attempts: ClassVar[int] = ATTEMPTS
    connections: ClassVar[int] = MAX_CONNECTIONS
    answer_seconds: ClassVar[float] = READ_SECONDS
    _client: Any

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        made = super().from_component(component)
        if problems := list(made._wrong(component)):
            raise ConfigError(problems)
        return made

    def _wrong(self, component: Component) -> Iterator[Problem]:
        """Find settings that do not go together; an access key has two parts."""
        settings = self._settings
        if (settings.access_key is None) != (settings.secret_key is None):
            given, lacking = ("accessKey", "secretKey") if settings.access_key else ("secretKey", "accessKey")
            yield component.problem(f"needs {lacking} as well", setting=given)
        elif settings.session_token and not settings.access_key:
            yield component.problem("needs accessKey and secretKey as well", setting="sessionToken")

    async def _enter(self) -> None:
        """Make the client; it asks nothing yet."""
        logging.getLogger("botocore").setLevel(logging.INFO)  # Below, it writes requests and answers.
        logging.getLogger("aiobotocore").setLevel(logging.INFO)
        with self._errors("connect"):
            self._client = await self._stack.enter_async_context(self._connected())

    async def call(self, operation: str, *, passes: Collection[str] = (), **arguments: object) -> dict[str, Any]:
        """Ask the service.

        Args:
            operation: The client's method (``get_secret_value``).
            passes: Codes of refusals that the caller takes itself, as ``ClientError``.
            arguments: Of the operation.
        """
        with self._errors(operation.replace("_", " "), passes):
            return cast("dict[str, Any]", await getattr(self._client, operation)(**arguments))

    async def read(self, operation: str, *, absent: Collection[str], **arguments: object) -> dict[str, Any] | None:
        """Ask the service; a refusal with one of these codes is None."""
        try:
            return await self.call(operation, passes=absent, **arguments)
        except ClientError:
            return None

    async def probe(self, operation: str, **arguments: object) -> None:
        """Ask the service whether it knows the credentials; that they do not permit the operation is an answer."""
        await self.read(operation, absent=DENIED, **arguments)

    async def pages(self, operation: str, **arguments: object) -> AsyncIterator[dict[str, Any]]:
        """Ask the service for page after page."""
        pages = self._client.get_paginator(operation).paginate(**arguments).__aiter__()
        while True:
            with self._errors(operation.replace("_", " ")):
                try:
                    page = await pages.__anext__()
                except StopAsyncIteration:
                    return
            yield page

    @contextmanager
    def _errors(self, what: str, passes: Collection[str] = ()) -> Iterator[None]:
        try:
            yield
        except LIBRARY_ERRORS as error:
            if isinstance(error, ClientError) and code_of(error) in passes:
                raise
            # The library's error quotes the request, so it is not the cause of ours.
            raise self._error(what, error) from None

    def _error(self, what: str, error: Exception) -> MeshError:
        """Make the block's error of the library's."""
        named = f"{self._shown}, {what}"
        match error:
            case ClientError():
                made = self._away if broken(error) or busy(error) else self.failed
                return made(f"{named}: {reason_of(error)}")
            case HTTPClientError() | UnreachableError() | OSError():
                return self._away(f"{named}: the service cannot be reached: {_short(error)}")
            case NoRegionError():
                return self._problem("no region is known: set it, or the variable AWS_REGION", "region")
            case ParamValidationError():  # It quotes what was given.
                return self.failed(f"{named}: a name or a value is not one that it takes")
            case _:
                return self.failed(f"{named}: {_short(error)}")

    def _away(self, reason: str) -> MeshError:
        return self.away(reason)

    @property
    def _shown(self) -> str:
        return f"AWS {self.service}"

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        settings, config = self._settings, _config(self.attempts, self.connections, self.answer_seconds)
        session = await make_session(settings)
        async with session.create_client(self.service, **self._options(config)) as client:
            yield client

    def _options(self, config: AioConfig) -> dict[str, Any]:
        """Give what the client is made with."""
        return {"endpoint_url": self._settings.endpoint, "config": config}


def busy(error: ClientError) -> bool:
    """Tell whether the service did nothing, for it had too much to do."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    reasons = [str(each.get("Code")) for each in cast("dict[str, Any]", error.response).get("CancellationReasons", ())]
    if "ConditionalCheckFailed" in reasons:  # Of a transaction: it would fail again.
        return False
    return status == 429 or any(word in code for code in (code_of(error), *reasons) for word in _BUSY)


def broken(error: ClientError) -> bool:
    """Tell whether the service failed, so that it may have done what was asked."""
    return bool(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500)


def code_of(error: ClientError) -> str:
    """Give the code of a refusal."""
    return str(error.response.get("Error", {}).get("Code", ""))


def reason_of(error: ClientError) -> str:
    """Give the code of a refusal, and what it says."""
    code = code_of(error)
    told = "" if any(word in code for word in _TELLING) else error.response.get("Error", {}).get("Message", "")
    return f"{code}: {str(told)[:MAX_REASON]}" if told else code


def _short(error: Exception) -> str:
    return (str(error).partition("\n")[0] or type(error).__name__)[:MAX_REASON]


async def make_session(settings: AWSSettings) -> AioSession:
    """Make what finds the credentials, and asks as them; it asks nothing yet."""
    session = await asyncio.to_thread(_session, settings)
    return await asyncio.to_thread(_role_session, session, settings) if settings.role else session


def _session(settings: AWSSettings) -> AioSession:
    session = AioSession()
    region = settings.region or os.environ.get("AWS_REGION")  # Pods have it; the library reads AWS_DEFAULT_REGION.
    if region:
        session.set_config_variable("region", region)
    if settings.access_key:
        session.set_credentials(settings.access_key, settings.secret_key, settings.session_token)
    return session


def _config(attempts: int, connections: int = MAX_CONNECTIONS, answer_seconds: float = READ_SECONDS) -> AioConfig:
    return AioConfig(
        max_pool_connections=connections,
        connect_timeout=CONNECT_SECONDS,
        read_timeout=answer_seconds,
        retries={"total_max_attempts": attempts, "mode": "standard"},
        warm_up_loader_caches=True,  # In a thread: the descriptions of services are large files.
    )


def _role_session(base: AioSession, settings: AWSSettings) -> AioSession:
    """Make a session of another role, whose credentials are asked for again before they end."""

    async def refresh() -> dict[str, str]:
        try:
            async with base.create_client("sts", config=_config(ATTEMPTS)) as sts:
                taken = await sts.assume_role(RoleArn=settings.role, RoleSessionName=settings.role_session)
        except ClientError as error:  # The library logs it.
            raise CredentialRetrievalError(provider="assume-role", error_msg=reason_of(error)) from None
        given = taken["Credentials"]
        return {
            "access_key": given["AccessKeyId"],
            "secret_key": given["SecretAccessKey"],
            "token": given["SessionToken"],
            "expiry_time": given["Expiration"].isoformat(),
        }

    session = _session(dataclasses.replace(settings, access_key=None, secret_key=None, session_token=None))
    session.register_component("credential_provider", _Resolver(refresh))
    return session


class _Resolver:
    """What a session asks for its credentials."""

    def __init__(self, refresh: Callable[[], Awaitable[dict[str, str]]]) -> None:
        self._refresh = refresh

    async def load_credentials(self) -> AioCredentials:
        return AioDeferredRefreshableCredentials(self._refresh, "assume-role")
