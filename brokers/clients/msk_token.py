"""Tokens to log in to Amazon MSK with (SASL OAUTHBEARER), as an identity of AWS IAM.

One is a signed URL of the request that a broker then makes for the client, in base64. It is made here, without asking
anybody, unless a role is to be taken on.

Source: Amazon MSK, IAM access control; AWS Signature Version 4, signing with query parameters.
"""

from __future__ import annotations

import asyncio
import base64

from aiobotocore.session import AioSession
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError, SaslAuthenticationFailed
from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError, CredentialRetrievalError, HTTPClientError
from botocore.exceptions import ConnectionError as UnreachableError

from brokers.clients.aws import LIBRARY_ERRORS, AWSSettings, make_session, reason_of

__all__ = ["IAMTokens"]

SERVICE = "kafka-cluster"
VALID_SECONDS = 900  # As long as MSK takes one.
ASK_SECONDS = 15.0


class IAMTokens(AbstractTokenProvider):  # type: ignore[misc]  # the library has no types
    """Gives a new token for each connection; the credentials are kept until they end."""

    def __init__(self, settings: AWSSettings) -> None:
        """Prepare; the credentials are found when they are needed first."""
        self._settings = settings
        self._finding = asyncio.Lock()
        self._session: AioSession | None = None

    async def token(self) -> str:
        """Give a token.

        Raises:
            SaslAuthenticationFailed: There are no credentials, or no region is known.
            KafkaConnectionError: AWS cannot be asked for credentials now.
        """
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await self._sign()
        except TimeoutError:
            raise KafkaConnectionError("AWS gives no credentials in time") from None
        except (HTTPClientError, UnreachableError, OSError) as error:
            raise KafkaConnectionError(f"AWS cannot be asked for credentials: {_short(error)}") from None
        except LIBRARY_ERRORS as error:
            reason = reason_of(error) if isinstance(error, ClientError) else _short(error)
            raise SaslAuthenticationFailed(f"AWS gives no credentials: {reason}") from None

    async def _sign(self) -> str:
        async with self._finding:
            if self._session is None:
                self._session = await make_session(self._settings)
            region = self._session.get_config_variable("region")  # It was read with the session.
            found = await self._session.get_credentials()
        if not region:
            raise SaslAuthenticationFailed("no region is known: set it, or the variable AWS_REGION")
        if found is None:
            raise CredentialRetrievalError(provider="all", error_msg="there are none")
        credentials = await found.get_frozen_credentials()
        asked = {"Action": f"{SERVICE}:Connect"}
        request = AWSRequest("GET", f"https://kafka.{region}.amazonaws.com/", params=asked)
        SigV4QueryAuth(credentials, SERVICE, region, expires=VALID_SECONDS).add_auth(request)
        url = f"{request.url}&User-Agent=brokermesh"  # For AWS's logs; it is no part of what is signed.
        return base64.urlsafe_b64encode(url.encode()).decode().rstrip("=")


def _short(error: Exception) -> str:
    return (str(error).partition("\n")[0] or type(error).__name__)[:300]
