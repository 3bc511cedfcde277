"""Sends text messages by Twilio.

Source: Twilio's REST interface, version 2010-04-01, the resource Messages.
"""

from __future__ import annotations

import base64
from urllib.parse import quote, urlencode

from bindings._data import text_of
from bindings._service import Service, said
from mesh.blocks.binding_contract import BindingError, Invoke

__all__ = ["OPERATIONS", "TWILIO", "TwilioMessages"]

OPERATIONS = ("create",)
TWILIO = "https://api.twilio.com"
MAX_CHARACTERS = 1600  # More than that Twilio refuses.
_FORM = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}


class TwilioMessages(Service):
    """The messages of one account; entered by who sends them."""

    def __init__(
        self, account: str, token: str, sender: str, to: str = "", *, seconds: float | None = None, url: str = TWILIO
    ) -> None:
        """Prepare.

        Args:
            account: The SID of the account.
            token: Its secret.
            sender: The number that messages come from, or what stands for one.
            to: The number that they go to; empty = each call says it.
            seconds: How long an answer may take.
            url: Where Twilio is.
        """
        login = base64.b64encode(f"{account}:{token}".encode()).decode()
        super().__init__("Twilio", url, {"Authorization": f"Basic {login}"}, secrets=(token, login), seconds=seconds)
        self._path = f"/2010-04-01/Accounts/{quote(account, safe='')}/Messages.json"
        self._sender, self._to = sender, to

    async def invoke(self, asked: Invoke) -> None:
        """Send a message: the data are its text.

        Raises:
            BindingError: It was not sent.
        """
        to = self._to or said(asked.metadata, "toNumber")
        if not to:
            raise BindingError("the metadata toNumber are missing: the number that the message goes to")
        try:
            text = text_of(asked.data).decode()
        except UnicodeDecodeError:
            raise BindingError("the data are no text") from None
        if not text:
            raise BindingError("the data are missing: the text of the message")
        if len(text) > MAX_CHARACTERS:
            raise BindingError(f"the message has more than {MAX_CHARACTERS} characters")
        form = urlencode({"To": to, "From": self._sender, "Body": text})
        await self.ask(self._path, form.encode(), _FORM)
