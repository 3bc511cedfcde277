"""The login to Amazon MSK by AWS IAM: its settings, which components of Kafka have alike.

Source: Dapr 1.18, the Kafka components; Amazon MSK, IAM access control.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mesh.resources.settings import VERBATIM, Setting, refused, setting

if TYPE_CHECKING:
    from aiokafka.abc import AbstractTokenProvider

__all__ = ["AWS_IAM", "MSKSettings", "iam_tokens", "wrong_settings"]

AWS_IAM = "awsiam"


@dataclass(frozen=True)  # Without slots, so that a model may inherit from another one as well.
class MSKSettings:
    """As whom ``authType: awsiam`` logs in."""

    ignored: ClassVar[tuple[Setting, ...]] = refused("IAM Roles Anywhere", "trustAnchorArn", "trustProfileArn")

    aws_region: str | None = setting(
        "region",
        "With `authType: awsiam`, the region of the cluster; without it AWS_REGION, or the profile, tells.",
        aliases=("awsRegion",),
        example="eu-central-1",
    )
    aws_access_key: str | None = setting(
        "accessKey",
        "Id of an access key; without it the credentials are found as the AWS tools do.",
        VERBATIM,
        secret=True,
        aliases=("awsAccessKey",),
    )
    aws_secret_key: str | None = setting(
        "secretKey", "The secret part of the access key.", VERBATIM, secret=True, aliases=("awsSecretKey",)
    )
    aws_session_token: str | None = setting(
        "sessionToken", "Token of a temporary access key.", VERBATIM, secret=True, aliases=("awsSessionToken",)
    )
    aws_role: str | None = setting(
        "assumeRoleArn",
        "A role to take on with these credentials.",
        aliases=("awsIamRoleArn",),
        example="arn:aws:iam::123456789012:role/shop",
    )
    aws_role_session: str = setting(
        "sessionName", "Name of the session of that role.", default="DaprDefaultSession", aliases=("awsStsSessionName",)
    )


def wrong_settings(settings: MSKSettings) -> Iterator[tuple[str, str]]:
    """Find settings that do not go together: each with what to say."""
    if (settings.aws_access_key is None) != (settings.aws_secret_key is None):
        given, lacking = ("accessKey", "secretKey") if settings.aws_access_key else ("secretKey", "accessKey")
        yield given, f"needs {lacking} as well"
    elif settings.aws_session_token and not settings.aws_access_key:
        yield "sessionToken", "needs accessKey and secretKey as well"


def iam_tokens(settings: MSKSettings) -> AbstractTokenProvider:
    """Make what gives tokens; it asks nobody yet.

    Raises:
        MeshError: The extra ``aws`` is not installed.
    """
    try:
        from brokers.clients.aws import AWSSettings
        from brokers.clients.msk_token import IAMTokens
    except ModuleNotFoundError as error:
        from mesh.registry import needs  # A backbone on Kafka has no use for what it brings.

        raise needs(f"authType: {AWS_IAM}", error.name or "") from error
    asked = AWSSettings(
        region=settings.aws_region,
        access_key=settings.aws_access_key,
        secret_key=settings.aws_secret_key,
        session_token=settings.aws_session_token,
        role=settings.aws_role,
        role_session=settings.aws_role_session,
    )
    return IAMTokens(asked)
