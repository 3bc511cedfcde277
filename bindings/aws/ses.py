"""``bindings.aws.ses``: mail by Amazon SES.

Source: Dapr 1.18, the AWS SES binding; the Amazon SES API Reference.
"""

from __future__ import annotations

from dataclasses import dataclass

from bindings._data import sendable, text_of
from bindings.aws._binding import AWSBinding
from brokers.clients.aws import AWSSettings
from mesh.blocks.binding_contract import BindingError, Invoke
from mesh.resources.settings import setting

__all__ = ["SESBinding"]


@dataclass(frozen=True, slots=True)
class SESSettings(AWSSettings):
    """Settings of ``bindings.aws.ses``: a call's metadata of the same name come before each."""

    email_from: str = setting("emailFrom", "The sender.", default="", example="shop@example.com")
    email_to: str = setting(
        "emailTo", "The receivers, separated by semicolons.", default="", example="a@example.com;b@example.com"
    )
    email_cc: str = setting("emailCc", "Those who get a copy.", default="")
    email_bcc: str = setting("emailBcc", "Those who get a copy that others do not see.", default="")
    subject: str = setting("subject", "The subject.", default="", example="Your order")


class SESBinding(AWSBinding):
    """Mail."""

    title = "Sends mail by Amazon SES."
    settings = SESSettings
    service = "ses"

    async def invoke(self, asked: Invoke) -> None:
        """Send the data as the HTML of a mail."""
        told = {name.casefold(): value for name, value in asked.metadata.items()}
        settings: SESSettings = self._settings

        def say(name: str, usual: str) -> str:
            return (told.get(name.casefold()) or usual).strip()

        def addresses(name: str, usual: str) -> list[str]:
            return [each.strip() for each in say(name, usual).split(";") if each.strip()]

        sender, subject = say("emailFrom", settings.email_from), say("subject", settings.subject)
        to = addresses("emailTo", settings.email_to)
        for name, found in (("emailFrom", sender), ("emailTo", to), ("subject", subject)):
            if not found:
                raise BindingError(f"{name} is missing, in the metadata of the call and in the component")
        body = sendable(text_of(asked.data), "the data for SES")
        await self.call(
            "send_email",
            Source=sender,
            Destination={
                "ToAddresses": to,
                "CcAddresses": addresses("emailCc", settings.email_cc),
                "BccAddresses": addresses("emailBcc", settings.email_bcc),
            },
            Message={
                "Subject": {"Data": subject, "Charset": "UTF-8"},
                "Body": {"Html": {"Data": body, "Charset": "UTF-8"}},
            },
        )
