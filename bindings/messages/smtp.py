"""Mail by a server of one's own, in HTML.

Source: Dapr 1.18, the SMTP binding.
"""

from __future__ import annotations

import asyncio
import ssl
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as LINES
from email.utils import formatdate, getaddresses, make_msgid
from typing import ClassVar

import aiosmtplib
import idna

from bindings._data import text_of
from bindings._service import safe, said
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError, Invoke
from mesh.resources.settings import BOOLEAN, VERBATIM, setting, whole

__all__ = ["SMTPBinding"]

MAX_CONNECTIONS = 16
SECONDS = 30.0
QUIT_SECONDS = 2.0
MAX_RECIPIENTS = 1000
TLS_PORT = 465  # Where TLS begins at once; elsewhere by STARTTLS.
PRIORITY = whole(1, 5)
_BREAKS = ("Cc", "Zl", "Zp")  # Categories of characters; what joins emojis or keeps words together is none.
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_POLICY = LINES.clone(cte_type="7bit")  # No server lacks it.


@dataclass(frozen=True, slots=True)
class SMTPSettings:
    """What is read of a component."""

    host: str = setting("host", "The server.", required=True, example="smtp.example.com")
    port: int = setting(
        "port",
        "Its port; on 465 TLS begins at once, elsewhere by STARTTLS.",
        whole(1, 65535),
        required=True,
        example="587",
    )
    user: str = setting("user", "Who logs in; empty = nobody does.", default="")
    password: str = setting("password", "The user's password.", VERBATIM, default="", secret=True)
    unverified: bool = setting(
        "skipTLSVerify", "Whether any certificate of the server will do.", BOOLEAN, default=False
    )
    sender: str = setting("emailFrom", "Who it is from.", default="", example="shop@example.com")
    to: str = setting("emailTo", "Whom it is for; several with semicolons between.", default="")
    copies: str = setting("emailCC", "Who gets a copy; several with semicolons between.", default="")
    hidden: str = setting("emailBCC", "Who gets a copy that others do not see.", default="")
    subject: str = setting("subject", "What it is about.", default="")
    priority: int = setting("priority", "The header field X-Priority.", PRIORITY, default=3)


class SMTPBinding(ComponentAdapter):
    """A mail server."""

    title = "Sends mail by SMTP."
    tested = "aiosmtpd, with and without TLS"
    settings: ClassVar[type[SMTPSettings]] = SMTPSettings
    operations = ("create",)

    def __init__(self, settings: SMTPSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._free = asyncio.Semaphore(MAX_CONNECTIONS)
        self._tls: ssl.SSLContext

    async def _enter(self) -> None:
        settings: SMTPSettings = self._settings
        if bool(settings.user) != bool(settings.password):
            raise self._problem("user and password go together", "user")
        self._tls = await asyncio.to_thread(ssl.create_default_context)
        if settings.unverified:
            self._tls.check_hostname = False
            self._tls.verify_mode = ssl.CERT_NONE

    async def invoke(self, asked: Invoke) -> None:
        """Send a mail: the data are its text."""
        settings: SMTPSettings = self._settings
        message, recipients = _compose(asked, settings)
        try:
            async with self._free:
                await self._send(message, recipients)
        except aiosmtplib.SMTPResponseException as error:
            said = safe(error.message, (settings.password,))
            raise BindingError(
                f"the mail server answered {error.code}: {said}",
                {"statusCode": str(error.code)},
                retryable=400 <= error.code < 500,
            ) from None
        except (TimeoutError, OSError) as error:  # aiosmtplib's errors of connections are both.
            told = "does not answer in time" if isinstance(error, TimeoutError) else f"cannot be reached: {error}"
            raise BindingError(
                safe(f"the mail server {settings.host}:{settings.port} {told}", (settings.password,)),
                retryable=not isinstance(error.__cause__ or error, ssl.SSLCertVerificationError),
            ) from None
        except (aiosmtplib.SMTPException, ValueError) as error:
            raise BindingError(safe(f"the mail cannot be sent: {error}", (settings.password,))) from None

    async def _send(self, message: EmailMessage, recipients: list[str]) -> None:
        """Give the server the mail for all of its recipients, or for none."""
        settings: SMTPSettings = self._settings
        connection = aiosmtplib.SMTP(
            hostname=settings.host,
            port=settings.port,
            use_tls=settings.port == TLS_PORT,
            tls_context=self._tls,
            timeout=SECONDS,
            local_hostname="localhost",
        )
        try:
            await connection.connect()
            if settings.user:
                if connection.get_transport_info("sslcontext") is None and settings.host not in _LOOPBACK:
                    raise BindingError("the mail server offers no TLS, and a password is not sent without")
                await connection.login(settings.user, settings.password)
            await connection.mail(message["From"].addresses[0].addr_spec)
            refused: list[aiosmtplib.SMTPRecipientRefused] = []
            for each in recipients:
                try:
                    await connection.rcpt(each)
                except aiosmtplib.SMTPRecipientRefused as error:
                    refused.append(error)
            if refused:
                raise self._refused(refused)
            await connection.data(message.as_bytes())
            with suppress(aiosmtplib.SMTPException, OSError):  # It has the mail.
                await connection.quit(timeout=QUIT_SECONDS)
        finally:
            connection.close()

    def _refused(self, refused: list[aiosmtplib.SMTPRecipientRefused]) -> BindingError:
        settings: SMTPSettings = self._settings
        listed = "; ".join(f"{each.recipient} ({each.code}: {each.message})" for each in refused)
        return BindingError(
            safe(f"nobody was sent the mail, for the server refuses {listed}", (settings.password,)),
            {"statusCode": str(refused[0].code)},
            retryable=all(400 <= each.code < 500 for each in refused),
        )


def _compose(asked: Invoke, settings: SMTPSettings) -> tuple[EmailMessage, list[str]]:
    """Make the mail, and say whom the server is told of; raises ``BindingError``."""
    given = asked.metadata
    sender = list(_addresses("emailFrom", _line(given, "emailFrom", settings.sender)))
    to = list(_addresses("emailTo", _line(given, "emailTo", settings.to)))
    copies = list(_addresses("emailCC", _line(given, "emailCC", settings.copies)))
    hidden = list(_addresses("emailBCC", _line(given, "emailBCC", settings.hidden)))
    subject = _line(given, "subject", settings.subject)
    for name, found in (("emailFrom", sender), ("emailTo", to), ("subject", subject)):
        if not found:
            raise BindingError(f"{name} is missing: neither the component nor the metadata have it")
    if len(sender) != 1:
        raise BindingError("emailFrom is one address")
    recipients = list(dict.fromkeys(each.addr_spec for each in (*to, *copies, *hidden)))
    if len(recipients) > MAX_RECIPIENTS:
        raise BindingError(f"there are more than {MAX_RECIPIENTS} recipients")
    message = EmailMessage(policy=_POLICY)
    message["From"], message["To"], message["Subject"] = sender, to, subject
    if copies:
        message["Cc"] = copies
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid(domain=sender[0].domain)
    message["X-Priority"] = str(_priority(said(given, "priority"), settings.priority))
    try:
        message.set_content(text_of(asked.data).decode(), subtype="html")
    except UnicodeDecodeError:
        raise BindingError("the data are no text") from None
    return message, recipients


def _line(given: Mapping[str, str], name: str, usual: str) -> str:
    """Give what a call says, else what the component does; no header field begins within it."""
    value = (said(given, name) or usual).strip()
    if any(unicodedata.category(each) in _BREAKS for each in value):
        raise BindingError(f"{name} holds a line break, or another control character")
    return value


def _addresses(name: str, text: str) -> Iterator[Address]:
    for each in filter(None, (each.strip() for each in text.split(";"))):
        for shown, address in getaddresses([each]):
            name_of, _, domain = address.rpartition("@")
            try:
                made = Address(shown, addr_spec=f"{name_of}@{_ascii(domain)}")
            except (ValueError, IndexError, MessageError):  # Of what is no address at all.
                made = Address()
            if not made.username or not made.domain:
                raise BindingError(f"{name}: {each!r} is no address")
            yield made


def _ascii(domain: str) -> str:
    return domain if domain.isascii() else idna.encode(domain, uts46=True).decode()


def _priority(text: str, usual: int) -> int:
    try:
        return int(str(PRIORITY.parse(text))) if text else usual
    except ValueError as error:
        raise BindingError(f"priority {error}") from None
