"""``bindings.aws.sns``: messages to a topic of Amazon SNS.

Source: Dapr 1.18, the AWS SNS binding; the Amazon SNS API Reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from bindings._data import sendable
from bindings.aws._binding import AWSBinding, object_of, ordered
from brokers.clients.aws import AWSSettings
from mesh.blocks.binding_contract import BindingError, Invoke
from mesh.resources.settings import setting

__all__ = ["SNSBinding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SNSSettings(AWSSettings):
    """Settings of ``bindings.aws.sns``."""

    topic: str = setting(
        "topicArn", "ARN of the topic.", required=True, example="arn:aws:sns:eu-central-1:123456789012:orders"
    )


class SNSBinding(AWSBinding):
    """A topic."""

    title = "Publishes to a topic of Amazon SNS."
    settings = SNSSettings
    service = "sns"

    async def invoke(self, asked: Invoke) -> None:
        """Publish ``message``, with ``subject`` if there is one."""
        given = object_of(asked.data, "SNS")
        if given.get("message") is None:
            raise BindingError("the data for SNS lack message")
        subject = {} if given.get("subject") is None else {"Subject": _text(given["subject"], "subject")}
        topic = self._settings.topic
        message = _text(given["message"], "message")
        await self.call("publish", TopicArn=topic, Message=message, **subject, **ordered(topic, asked.metadata))


def _text(value: object, what: str) -> str:
    return sendable(value.encode() if isinstance(value, str) else orjson.dumps(value), what)
