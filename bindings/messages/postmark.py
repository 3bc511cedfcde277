"""Mail by Postmark.

Sources: Dapr 1.18, the Postmark binding; Postmark's API for mail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bindings._data import text_of
from bindings._service import Service, protected, said
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError, Invoke
from mesh.resources.settings import setting

__all__ = ["PostmarkBinding"]

SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class PostmarkSettings:
    """What is read of a component."""

    server: str = setting("serverToken", "The token of the server, to send with.", required=True, secret=True)
    account: str = setting(
        "accountToken", "Read for compatibility: nothing is asked of the account.", default="", secret=True
    )
    emailFrom: str = setting("emailFrom", "Who it is from.", default="", example="shop@example.com")
    emailTo: str = setting("emailTo", "Whom it is for; several with commas between.", default="")
    emailCc: str = setting("emailCc", "Who gets a copy; several with commas between.", default="")
    emailBcc: str = setting("emailBcc", "Who gets a copy that others do not see.", default="")
    subject: str = setting("subject", "What it is about.", default="")
    endpoint: str = setting("endpoint", "Where Postmark is.", default="https://api.postmarkapp.com")


class PostmarkBinding(ComponentAdapter):
    """A server at Postmark."""

    title = "Sends mail by Postmark."
    tested = "a server with the one request of its HTTP interface, in tests; it never ran against Postmark itself"
    settings: ClassVar[type[PostmarkSettings]] = PostmarkSettings
    operations = ("create",)

    def __init__(self, settings: PostmarkSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._service: Service

    async def _enter(self) -> None:
        settings: PostmarkSettings = self._settings
        if not protected(settings.endpoint):
            raise self._problem("is a URL with https", "endpoint")
        headers = {"X-Postmark-Server-Token": settings.server, "Accept": "application/json"}
        secrets = (settings.server, settings.account)
        service = Service("Postmark", settings.endpoint, headers, secrets=secrets, seconds=SECONDS)
        self._service = await self._stack.enter_async_context(service)

    async def invoke(self, asked: Invoke) -> None:
        """Send a mail: the data are its text, in HTML."""
        settings: PostmarkSettings = self._settings
        names = {"From": "emailFrom", "To": "emailTo", "Cc": "emailCc", "Bcc": "emailBcc", "Subject": "subject"}
        mail = {key: said(asked.metadata, name) or str(getattr(settings, name)) for key, name in names.items()}
        for key in ("From", "To", "Subject"):
            if not mail[key]:
                raise BindingError(f"{names[key]} is missing: neither the component nor the metadata have it")
        try:
            body = text_of(asked.data).decode()
        except UnicodeDecodeError:
            raise BindingError("the data are no text") from None
        if not body:
            raise BindingError("the data are missing: the text of the mail")
        await self._service.post("/email", {key: value for key, value in mail.items() if value} | {"HtmlBody": body})
