"""FLASHSALE_PROVIDER and FLASHSALE_SENDER name plug-ins; a bad name says what to do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flashsale.api.app import create_app
from flashsale.cli import main
from flashsale.models import PaymentEvent
from flashsale.plugins import make, plugged
from flashsale.providers.http import HttpProvider
from flashsale.providers.interface import BadSignature, PaymentProvider, ProviderUnavailable
from flashsale.settings import Settings, SettingsError
from flashsale.testing.processes import environment
from flashsale.worker import run as worker
from flashsale.worker.mail import LogSender, Sender
from http_support import NEW_ITEM, SECRET, problem, serving, settings
from support import Connection

SHOP = """
from contextlib import asynccontextmanager
import missing_package_of_the_shop
"""
HALF = """
from contextlib import asynccontextmanager
@asynccontextmanager
async def create(settings):
    yield object()
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that Python imports from."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("shop_")]:
        del sys.modules[name]


async def test_the_defaults_are_ours() -> None:
    async with plugged(Settings(), "provider", PaymentProvider) as provider:
        assert isinstance(provider, HttpProvider)
    async with plugged(Settings(), "sender", Sender) as sender:
        assert isinstance(sender, LogSender)


@pytest.mark.parametrize("name", ["provider", "sender"])
@pytest.mark.parametrize("given", ["", "shop", "shop:", ":create", "a b:c", "a:b:c", "a:b.c"])
def test_what_names_no_factory_is_refused(name: str, given: str) -> None:
    with pytest.raises(SettingsError, match=f"FLASHSALE_{name.upper()}: must be module:factory"):
        Settings.from_env({}, **{name: given})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("shop_none:create", "can't import 'shop_none' .*: install its package, or put its folder"),
        ("shop_none.deep:create", "can't import 'shop_none.deep' .*: install its package"),
        ("shop_needy:create", "can't import 'shop_needy' .*missing_package.*: install what it imp"),
        ("shop_good:absent", "the module 'shop_good' has no function 'absent'"),
        ("shop_good:NUMBER", "the module 'shop_good' has no function 'NUMBER'"),
        ("shop_good:nothing", "returns NoneType, which is no async context manager: give it"),
        ("shop_good:strict", "FLASHSALE_SHOP_KEY is not set"),
    ],
)
def test_a_plug_in_that_can_t_be_made_says_what_to_do(shop: Path, given: str, says: str) -> None:
    (shop / "shop_needy.py").write_text(SHOP)
    (shop / "shop_good.py").write_text(
        "from flashsale.settings import SettingsError\n"
        "NUMBER = 1\n"
        "def nothing(settings): pass\n"
        "def strict(settings): raise SettingsError('FLASHSALE_SHOP_KEY is not set')\n"
    )
    with pytest.raises(SettingsError, match=says):
        make(Settings(provider=given), "provider")
    with pytest.raises(SettingsError, match=says):
        create_app(Settings(provider=given, database_url="postgresql://x", webhook_secret="x"))
    with pytest.raises(SettingsError, match=says):
        asyncio.run(worker.run(Settings(sender=given, database_url="postgresql://x")))


async def test_a_plug_in_that_lacks_a_method_is_refused(shop: Path) -> None:
    (shop / "shop_half.py").write_text(HALF)
    configured = Settings(provider="shop_half:create", sender="shop_half:create")
    with pytest.raises(SettingsError, match=r"FLASHSALE_SENDER: shop_half:create .*method send of"):
        async with plugged(configured, "sender", Sender):
            pass
    wanted = "open_session, void_session, refund_session, read_event of PaymentProvider"
    with pytest.raises(SettingsError, match=wanted):
        async with plugged(configured, "provider", PaymentProvider):
            pass


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_the_command_line_ends_with_a_message(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLASHSALE_PROVIDER", "shop_none:create")
    monkeypatch.setenv("FLASHSALE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/x")
    monkeypatch.setenv("FLASHSALE_WEBHOOK_SECRET", "x")
    assert main([command]) == 2
    assert "FLASHSALE_PROVIDER: can't import 'shop_none'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_the_command_line_names_the_methods_that_are_missing(
    command: str, shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (shop / "shop_half.py").write_text(HALF)
    monkeypatch.setenv("FLASHSALE_PROVIDER", "shop_half:create")
    monkeypatch.setenv("FLASHSALE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/x")
    monkeypatch.setenv("FLASHSALE_WEBHOOK_SECRET", "x")
    monkeypatch.setattr("flashsale.server.run_granian", lambda *_: 0)
    assert main([command]) == 2
    assert "lacks the method open_session" in capsys.readouterr().err


def test_the_folder_of_a_plug_in_may_be_in_pythonpath(tmp_path: Path) -> None:
    (tmp_path / "shop_payments.py").write_text(
        "from flashsale.settings import SettingsError\n"
        "def create(settings): raise SettingsError('it was found')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "flashsale", "worker"],
        env=environment(provider="shop_payments:create", database_url="postgresql://x")
        | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (2, "flashsale: it was found")


class Translating:
    """A provider whose events have another form: `paid <payment> <amount>`, signed by a word."""

    unavailable = False

    async def read_event(self, headers: Mapping[str, str], body: bytes) -> PaymentEvent:
        if headers.get("x-shop") != SECRET:
            raise BadSignature("The header X-Shop is wrong.")
        if self.unavailable:
            raise ProviderUnavailable
        _, payment_id, amount = body.decode().split()
        return PaymentEvent(None, "payment.succeeded", "s1", payment_id, int(amount), "EUR")

    def __getattr__(self, name: str) -> Any:
        return lambda: None


@asynccontextmanager
async def translating(_: Settings) -> Any:
    yield Translating()


async def test_the_webhook_reads_events_through_the_plug_in(
    db: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = settings(database_url, provider=f"{__name__}:translating")
    async with serving(configured) as api:
        item = (await api("POST", "/items", json=NEW_ITEM)).json()
        order = (await api.order(item, "ann")).json()
        event = {"content": f"paid {order['payment']['payment_id']} 1000"}
        problem(await api("POST", "/webhooks/payments", **event), 401, "bad_signature")
        signed = {"X-Shop": SECRET, "Content-Type": "text/plain"}
        monkeypatch.setattr(Translating, "unavailable", True)
        answer = await api("POST", "/webhooks/payments", **event, headers=signed)
        problem(answer, 503, "provider_unavailable")
        assert answer.headers["retry-after"]
        monkeypatch.undo()
        for outcome in ("paid", "duplicate"):
            answer = await api("POST", "/webhooks/payments", **event, headers=signed)
            assert (answer.status_code, answer.json()) == (200, {"outcome": outcome})
