"""A sender of e-mail over SMTP: FLASHSALE_SENDER=flashsale.worker.smtp:create.

smtplib blocks, so each mail under way has a thread, which keeps its connection for the next one.
"""

from __future__ import annotations

import asyncio
import smtplib
import ssl
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

from flashsale.settings import Settings, SettingsError
from flashsale.worker.mail import Mail, MailRefused

_PORTS = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}
_LOCAL = ("localhost", "127.0.0.1", "::1")

FindAddress = Callable[[str], Awaitable[str]]
"""The e-mail address of a customer_id."""


async def itself(customer_id: str) -> str:
    """For shops whose customer_ids are e-mail addresses."""
    return customer_id


def create(settings: Settings) -> SmtpSender:
    """The sender for shops whose customer_ids are e-mail addresses."""
    return SmtpSender(settings)


class SmtpSender:
    """Sends mails over the server at smtp_url. Use as an async context manager."""

    def __init__(self, settings: Settings, find_address: FindAddress = itself) -> None:
        """find_address: looks up where a customer gets mail. Errors: SettingsError."""
        self._server = _MailServer(settings)
        try:
            self._from = Address(addr_spec=settings.mail_from)
        except (ValueError, IndexError, MessageError) as error:
            raise SettingsError(
                "FLASHSALE_MAIL_FROM: must be the address from which e-mails come, such as "
                f"tickets@shop.example, and is {settings.mail_from!r}"
            ) from error
        self._find_address = find_address
        self._threads = ThreadPoolExecutor(settings.mail_concurrency, "smtp")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the connections, without waiting for a server that does not answer."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._server.close()

    async def send(self, mail: Mail) -> None:
        """As of Sender."""
        message = self._message(mail, _address(await self._find_address(mail.to)))
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._server.deliver, message)

    def _message(self, mail: Mail, to: Address) -> EmailMessage:
        message = EmailMessage(SMTP)
        message["From"] = self._from
        message["To"] = to
        message["Subject"] = mail.subject
        message["Date"] = format_datetime(datetime.now(UTC))
        message["Message-ID"] = mail.message_id
        message["Auto-Submitted"] = "auto-generated"  # so that no robot answers
        message.set_content(mail.text)
        return message


def _address(text: str) -> Address:
    """One address; what could be read as several is refused."""
    try:
        address = Address(addr_spec=text)
    except (ValueError, IndexError, MessageError) as error:
        raise MailRefused("the customer has no valid e-mail address") from error
    if not (address.username and address.domain and text.isascii() and text.isprintable()):
        raise MailRefused("the customer has no valid e-mail address")
    return address


class _MailServer:
    """The mail server, and a connection to it for each thread."""

    def __init__(self, settings: Settings) -> None:
        bad_url = SettingsError(
            "FLASHSALE_SMTP_URL: must be smtps://user:password@host, smtp+starttls://… or "
            "smtp://…, and a password has %2F instead of /"
        )
        try:
            parts = urlsplit(settings.smtp_url)
            port = parts.port
        except ValueError:  # it quotes the password, if that has a / in it
            raise bad_url from None
        if parts.scheme not in _PORTS or not parts.hostname:
            raise bad_url
        if parts.password and parts.scheme == "smtp" and parts.hostname not in _LOCAL:
            raise SettingsError(
                "FLASHSALE_SMTP_URL: the password would travel in the clear: use smtps:// or "
                "smtp+starttls://"
            )
        self._scheme = parts.scheme
        self._host = parts.hostname
        self._port = port or _PORTS[parts.scheme]
        self._login = (unquote(parts.username or ""), unquote(parts.password or ""))
        self._timeout_seconds = settings.provider_timeout_seconds
        self._mine = threading.local()
        self._open: set[smtplib.SMTP] = set()

    def deliver(self, message: EmailMessage) -> None:
        """Hands a message over. Errors: OSError (all of smtplib's are); MailRefused."""
        connection = getattr(self._mine, "connection", None)
        if connection is not None:
            try:
                self._send(connection, message)
            except smtplib.SMTPServerDisconnected:
                pass  # while it was idle, as servers do: once more on a new one
            else:
                return
        self._send(self._connect(), message)

    def close(self) -> None:
        """Closes all connections."""
        for connection in list(self._open):
            connection.close()

    def _send(self, connection: smtplib.SMTP, message: EmailMessage) -> None:
        try:
            connection.send_message(message)
        except smtplib.SMTPRecipientsRefused as error:
            codes = [code for code, _ in error.recipients.values()]
            self._refuse(max(codes), error)
        except smtplib.SMTPDataError as error:
            self._refuse(error.smtp_code, error)
        except smtplib.SMTPSenderRefused as error:  # so it will refuse the next mails too
            raise OSError(f"the mail server refuses the sender: {error.smtp_code}") from error
        except (OSError, ValueError):
            self._mine.connection = None
            self._open.discard(connection)
            connection.close()
            raise

    def _refuse(self, code: int, error: Exception) -> None:
        """For good, or for now. The server's words are left out: they may name the customer."""
        if code >= 500:
            raise MailRefused(f"the mail server answers {code}") from error
        raise OSError(f"the mail server answers {code}") from error

    def _connect(self) -> smtplib.SMTP:
        context = ssl.create_default_context()
        connection: smtplib.SMTP
        if self._scheme == "smtps":
            connection = smtplib.SMTP_SSL(
                self._host, self._port, timeout=self._timeout_seconds, context=context
            )
        else:
            connection = smtplib.SMTP(self._host, self._port, timeout=self._timeout_seconds)
        try:
            if self._scheme == "smtp+starttls":
                connection.starttls(context=context)
            if self._login[0]:
                connection.login(*self._login)
        except BaseException:
            connection.close()
            raise
        self._open.add(connection)
        self._mine.connection = connection
        return connection
