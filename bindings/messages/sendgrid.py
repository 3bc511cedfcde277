"""Mail by Twilio SendGrid.

Sources: Dapr 1.18, the SendGrid binding; SendGrid's Web API, version 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import orjson

from bindings._data import text_of
from bindings._service import Service, protected, said
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError, Invoke
from mesh.resources.settings import setting

__all__ = ["SendGridBinding"]

SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class SendGridSettings:
    """What is read of a component."""

    key: str = setting("apiKey", "The key to log in with.", required=True, secret=True)
    emailFrom: str = setting("emailFrom", "Who it is from.", default="", example="shop@example.com")
    emailFromName: str = setting("emailFromName", "That one's name.", default="")
    emailTo: str = setting("emailTo", "Whom it is for.", default="")
    emailToName: str = setting("emailToName", "That one's name.", default="")
    emailCc: str = setting("emailCc", "Who gets a copy.", default="")
    emailBcc: str = setting("emailBcc", "Who gets a copy that others do not see.", default="")
    subject: str = setting("subject", "What it is about.", default="")
    dynamicTemplateId: str = setting("dynamicTemplateId", "The template that makes the mail.", default="")
    dynamicTemplateData: str = setting("dynamicTemplateData", "What it is filled with: a JSON object.", default="")
    endpoint: str = setting(
        "endpoint", "Where SendGrid is; that of Europe is another one.", default="https://api.sendgrid.com"
    )


class SendGridBinding(ComponentAdapter):
    """An account at SendGrid."""

    title = "Sends mail by Twilio SendGrid."
    tested = "a server with the one request of its HTTP interface, in tests; it never ran against SendGrid itself"
    settings: ClassVar[type[SendGridSettings]] = SendGridSettings
    operations = ("create",)

    def __init__(self, settings: SendGridSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._service: Service

    async def _enter(self) -> None:
        settings: SendGridSettings = self._settings
        if not protected(settings.endpoint):
            raise self._problem("is a URL with https", "endpoint")
        headers = {"Authorization": f"Bearer {settings.key}"}
        service = Service("SendGrid", settings.endpoint, headers, secrets=(settings.key,), seconds=SECONDS)
        self._service = await self._stack.enter_async_context(service)

    async def invoke(self, asked: Invoke) -> None:
        """Send a mail: the data are its text, in HTML."""
        await self._service.post("/v3/mail/send", _mail(asked, self._settings))


def _mail(asked: Invoke, settings: SendGridSettings) -> dict[str, Any]:
    """Write the mail as SendGrid reads it; raises ``BindingError``."""
    given = asked.metadata

    def either(name: str) -> str:
        return said(given, name) or str(getattr(settings, name))

    template, subject = either("dynamicTemplateId"), either("subject")
    for name, there in (
        ("emailFrom", either("emailFrom")),
        ("emailTo", either("emailTo")),
        ("subject", subject or template),
    ):
        if not there:
            raise BindingError(f"{name} is missing: neither the component nor the metadata have it")
    person: dict[str, Any] = {"to": [_address(given, settings, "emailTo")]}
    person |= {"subject": subject} if subject else {}
    person |= {key: [{"email": either(name)}] for key, name in (("cc", "emailCc"), ("bcc", "emailBcc")) if either(name)}
    mail: dict[str, Any] = {"personalizations": [person], "from": _address(given, settings, "emailFrom")}
    if template:
        mail["template_id"] = template
        if either("dynamicTemplateData"):
            person["dynamic_template_data"] = _filling(either("dynamicTemplateData"))
    try:
        body = text_of(asked.data).decode()
    except UnicodeDecodeError:
        raise BindingError("the data are no text") from None
    if not body and not template:
        raise BindingError("the data are missing: the text of the mail")
    if body:  # An empty one is refused.
        mail["content"] = [{"type": "text/html", "value": body}]
    return mail


def _address(given: Mapping[str, str], settings: SendGridSettings, name: str) -> dict[str, str]:
    """Give an address with the name that goes with it: a call that names another one has its name, too."""
    address = said(given, name)
    shown = said(given, f"{name}Name") if address else str(getattr(settings, f"{name}Name"))
    return {"email": address or str(getattr(settings, name)), **({"name": shown} if shown else {})}


def _filling(text: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise BindingError("dynamicTemplateData is a JSON object")
    return value
