"""The sender over SMTP, against a mail server of aiosmtpd on a real socket."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from flashsale.processes import free_port
from flashsale.settings import Settings, SettingsError
from flashsale.worker import run as worker
from flashsale.worker.mail import Mail, MailRefused
from flashsale.worker.smtp import SmtpSender, create
from support import Connection, call, item, reserve, value

FROM = "tickets@shop.example"


class PostOffice:
    """A mail server that keeps what it gets; `answer` may refuse a recipient or a message."""

    def __init__(self, **options: Any) -> None:
        self.port = free_port()
        self.mails: list[tuple[list[str], EmailMessage]] = []
        self.sessions: set[int] = set()
        self.answer: Callable[[str], str] = lambda step: "250 OK"
        self._options = options
        self._controller: Controller | None = None

    def start(self) -> None:
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port, **self._options)
        self._controller.start()

    def stop(self) -> None:
        if self._controller:
            self._controller.stop(no_assert=True)
            self._controller = None

    async def handle_RCPT(  # noqa: N802 - the name is aiosmtpd's
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: Any
    ) -> str:
        answer = self.answer(address)
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(  # noqa: N802 - the name is aiosmtpd's
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        answer = self.answer("DATA")
        if answer.startswith("250"):
            self.sessions.add(id(session))
            parsed: Any = message_from_bytes(envelope.original_content or b"", policy=policy.SMTP)
            self.mails.append((list(envelope.rcpt_tos), parsed))
        return answer


def make_certificate(key: Path, certificate: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key)]
    command += ["-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
async def office() -> AsyncIterator[PostOffice]:
    office = PostOffice()
    office.start()
    yield office
    office.stop()


def settings(office: PostOffice, **changes: Any) -> Settings:
    values = {"smtp_url": f"smtp://127.0.0.1:{office.port}", "mail_from": FROM} | changes
    fixed: dict[str, Any] = {"mail_concurrency": 4, "provider_timeout_seconds": 5.0}
    return Settings(**(fixed | values))


@asynccontextmanager
async def sending(office: PostOffice, **changes: Any) -> AsyncIterator[SmtpSender]:
    async with create(settings(office, **changes)) as sender:
        yield sender


def mail(to: str = "ann@example.com", number: int = 17, **changes: str) -> Mail:
    values = {"subject": "Shoe: reserved for you", "text": "Pay here: http://pay/s1"} | changes
    return Mail(message_id=f"<notification-{number}@flashsale>", to=to, **values)


async def test_a_mail_arrives_as_it_was_composed(office: PostOffice) -> None:
    async with sending(office) as sender:
        await sender.send(mail(subject="Schuhgröße 42: für dich", text="Bezahle: http://pay/ü"))
    ((to, found),) = office.mails
    assert to == ["ann@example.com"]
    assert (found["From"], found["To"]) == (FROM, "ann@example.com")
    assert found["Subject"] == "Schuhgröße 42: für dich"
    assert found["Message-ID"] == "<notification-17@flashsale>"
    assert found["Auto-Submitted"] == "auto-generated"
    assert abs(found["Date"].datetime.timestamp() - time.time()) < 60
    assert found.get_content().strip() == "Bezahle: http://pay/ü"


async def test_mails_share_few_connections(office: PostOffice) -> None:
    async with sending(office) as sender:
        await asyncio.gather(*(sender.send(mail(number=n)) for n in range(40)))
    assert len({found["Message-ID"] for _, found in office.mails}) == 40
    assert len(office.sessions) <= 4


@pytest.mark.parametrize(
    "to",
    ["ann", "", "ann@", "@example.com", "a@x, eve@x", "a@x\r\nBcc: eve@x", "<a@x>", "a b@x", "ä@x"],
)
async def test_what_is_not_one_address_gets_no_mail(office: PostOffice, to: str) -> None:
    async with sending(office) as sender:
        with pytest.raises(MailRefused, match="no valid e-mail address"):
            await sender.send(mail(to))
    assert office.mails == []


async def test_a_shop_may_look_addresses_up(office: PostOffice) -> None:
    async def find(customer_id: str) -> str:
        return f"{customer_id}@customers.example"

    async with SmtpSender(settings(office), find) as sender:
        await sender.send(mail("4711"))
    assert office.mails[0][0] == ["4711@customers.example"]


@pytest.mark.parametrize("step", ["RCPT", "DATA"])
async def test_a_refusal_for_good_says_nothing_about_other_mails(
    office: PostOffice, step: str
) -> None:
    office.answer = lambda at: "250 OK" if (at == "DATA") != (step == "DATA") else "550 no ann here"
    async with sending(office) as sender:
        with pytest.raises(MailRefused) as refused:
            await sender.send(mail())
        assert str(refused.value) == "the mail server answers 550"  # it may name the customer
        office.answer = lambda at: "250 OK"
        await sender.send(mail())
    assert len(office.mails) == 1


async def test_a_server_that_is_busy_counts_as_away(office: PostOffice) -> None:
    office.answer = lambda at: "451 try later"
    async with sending(office) as sender:
        with pytest.raises(OSError, match="451"):
            await sender.send(mail())


async def test_a_server_that_was_restarted_gets_the_next_mail(office: PostOffice) -> None:
    async with sending(office, mail_concurrency=1) as sender:
        await sender.send(mail(number=1))
        office.stop()
        with pytest.raises(OSError):  # noqa: PT011 - its words are the system's
            await sender.send(mail(number=2))
        office.start()
        await sender.send(mail(number=2))
        office.stop()
        office.start()
        await sender.send(mail(number=3))
    assert [found["Message-ID"][14] for _, found in office.mails] == ["1", "2", "3"]


async def test_a_server_that_never_answers_is_given_up() -> None:
    async with (
        await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0) as silent,
        sending(PostOffice(), smtp_url=f"smtp://127.0.0.1:{silent.sockets[0].getsockname()[1]}",
                provider_timeout_seconds=0.3) as sender,
    ):  # fmt: skip
        with pytest.raises(OSError):  # noqa: PT011 - its words are the system's
            await sender.send(mail())


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl is missing: apt-get install openssl"
)
async def test_it_logs_in_over_tls_and_sends_no_password_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a server with a certificate that this machine trusts
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make_certificate(key, certificate)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    logins: list[tuple[bytes, bytes]] = []

    def check(server: Any, session: Any, envelope: Any, method: str, given: Any) -> AuthResult:
        assert isinstance(given, LoginPassword)
        logins.append((given.login, given.password))
        return AuthResult(success=given.password == b"p@ss", handled=False)

    office = PostOffice(
        tls_context=context, require_starttls=True, auth_required=True, authenticator=check
    )
    office.start()
    try:
        url = f"smtp+starttls://shop:p%40ss@localhost:{office.port}"
        async with sending(office, smtp_url=url) as sender:
            with pytest.raises(OSError, match="certificate"):  # nobody knows it yet
                await sender.send(mail())
        assert logins == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with sending(office, smtp_url=url) as sender:
            await sender.send(mail())
        async with sending(office, smtp_url=url.replace("p%40ss", "wrong")) as sender:
            with pytest.raises(OSError, match="535"):
                await sender.send(mail())
    finally:
        office.stop()
    assert list(dict.fromkeys(logins)) == [(b"shop", b"p@ss"), (b"shop", b"wrong")]
    assert len(office.mails) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"smtp_url": ""}, "FLASHSALE_SMTP_URL: must be smtps://"),
        ({"smtp_url": "http://mail"}, "FLASHSALE_SMTP_URL: must be smtps://"),
        ({"smtp_url": "smtp://"}, "FLASHSALE_SMTP_URL: must be smtps://"),
        ({"smtp_url": "smtps://shop:ge/heim@mail.example"}, "FLASHSALE_SMTP_URL: must be smtps://"),
        ({"smtp_url": "smtps://mail:x"}, "FLASHSALE_SMTP_URL: must be smtps://"),
        ({"smtp_url": "smtps://[mail"}, "FLASHSALE_SMTP_URL: must be smtps://"),
        ({"smtp_url": "smtp://a:b@mail.example"}, "password would travel in the clear"),
        ({"mail_from": ""}, "FLASHSALE_MAIL_FROM"),
        ({"mail_from": "a@x, b@x"}, "FLASHSALE_MAIL_FROM"),
    ],
)
def test_a_bad_setting_says_what_to_do(changes: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        create(settings(PostOffice(), **changes))


def test_the_password_is_not_shown() -> None:
    shown = repr(Settings(smtp_url="smtps://shop:geheim@mail.example"))
    assert "geheim" not in shown and "smtps://shop:***@mail.example" in shown


async def test_a_worker_sends_with_it(
    db: Connection, database_url: str, office: PostOffice
) -> None:
    """One customer has no address: that is a refusal of the one mail, and the others go out."""
    shoe = item(db, stock=30)
    for n in range(15):
        call(db, "cancel", reserve(db, shoe, f"nobody-{n}").order_id)
    call(db, "cancel", reserve(db, shoe, "ann@example.com").order_id)
    stop = asyncio.Event()
    configured = settings(
        office,
        database_url=database_url,
        sender="flashsale.worker.smtp:create",
        job_poll_seconds=0.02,
    )
    task = asyncio.create_task(worker.run(configured, stop=stop))
    try:
        deadline = time.monotonic() + 30
        while not office.mails:
            assert time.monotonic() < deadline and not task.done()
            await asyncio.sleep(0.01)
    finally:
        stop.set()
        await task
    assert [to for to, _ in office.mails] == [["ann@example.com"]]
    assert value(db, "select count(*) from pgmq.q_notifications") == 15
