"""examples/stripe_provider.py against a small fake of Stripe's API, and in the whole service."""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flashsale.currencies import DECIMALS
from flashsale.plugins import plugged
from flashsale.providers.interface import (
    BadSignature,
    CheckoutSession,
    PaymentEvent,
    PaymentProvider,
    ProviderRefused,
    ProviderUnavailable,
    SessionCaptured,
    SessionRefunded,
    SessionVoided,
)
from flashsale.settings import Settings, SettingsError
from flashsale.worker import run as worker
from http_support import NEW_ITEM, Api, serving
from stripe_fake import KEY, FakeStripe
from support import Connection

EXAMPLES = Path(__file__).parents[1] / "examples"
SECRET = "whsec_of_the_tests"
HOLD = timedelta(minutes=5)

# The stripe package calls httpx in its old way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStripe]:
    fake = FakeStripe(SECRET)
    monkeypatch.setenv("STRIPE_API_KEY", KEY)
    monkeypatch.setenv("STRIPE_API_BASE", fake.url)
    monkeypatch.setenv("SHOP_URL", "https://shop.example/")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield fake
    fake.close()


@pytest.fixture
def example(fake: FakeStripe) -> Iterator[Any]:
    yield importlib.import_module("stripe_provider")
    del sys.modules["stripe_provider"]


def settings(**changes: Any) -> Settings:
    return Settings(provider="stripe_provider:create", webhook_secret=SECRET, **changes)


@pytest.fixture
async def provider(fake: FakeStripe) -> AsyncIterator[PaymentProvider]:
    async with plugged(settings(), "provider", PaymentProvider) as provider:
        yield provider


async def opened(
    provider: PaymentProvider,
    amount: int = 4900,
    currency: str = "EUR",
    *,
    key: str = "payment-7-open",
    hold: timedelta = HOLD,
    description: str | None = "Shoe",
) -> CheckoutSession:
    expires_at = datetime.now(UTC) + hold
    return await provider.open_session("7", "8", amount, currency, expires_at, description, key)


async def read(provider: PaymentProvider, event: tuple[bytes, str]) -> PaymentEvent:
    body, signature = event
    return await provider.read_event({"stripe-signature": signature}, body)


async def test_a_session_says_what_is_paid_and_for_which_payment(
    provider: PaymentProvider, fake: FakeStripe
) -> None:
    session = await opened(provider)
    assert session.checkout_url == f"https://checkout.stripe.com/c/pay/{session.session_id}"
    ((call, fields, key),) = fake.calls
    assert (call, key) == ("POST /v1/checkout/sessions", "payment-7-open")
    for field, expected in {
        "mode": "payment",
        "client_reference_id": "8",
        "metadata[payment_id]": "7",
        "payment_intent_data[metadata][payment_id]": "7",
        "line_items[0][quantity]": "1",
        "line_items[0][price_data][currency]": "eur",
        "line_items[0][price_data][unit_amount]": "4900",
        "line_items[0][price_data][product_data][name]": "Shoe",
        "success_url": "https://shop.example/?order=8",
    }.items():
        assert fields[field] == expected, field
    await opened(provider, key="other", description=None)
    assert fake.calls[1][1]["line_items[0][price_data][product_data][name]"] == "Order 8"


async def test_a_repeated_call_finds_its_session_and_another_one_is_refused(
    provider: PaymentProvider, fake: FakeStripe
) -> None:
    expires_at = datetime.now(UTC) + HOLD

    async def again(amount: int = 4900) -> CheckoutSession:
        return await provider.open_session("7", "8", amount, "EUR", expires_at, "Shoe", "k")

    first = await again()
    await asyncio.sleep(1.1)  # what Stripe is told must not depend on the time of the call
    assert await again() == first
    assert len(fake.sessions) == 1
    with pytest.raises(ProviderRefused) as refused:
        await again(1)
    assert refused.value.code == "idempotency_key_reused"


@pytest.mark.parametrize(
    ("hold", "expires_after"),
    [
        (timedelta(seconds=1), timedelta(minutes=31)),
        (timedelta(minutes=5), timedelta(minutes=36)),
        (timedelta(hours=23), timedelta(hours=23, minutes=31)),
        (timedelta(hours=23, minutes=45), timedelta(hours=24)),
        (timedelta(days=7), timedelta(hours=24)),
    ],
)
async def test_a_session_lives_as_long_as_stripe_allows_and_at_least_as_the_hold(
    provider: PaymentProvider, fake: FakeStripe, hold: timedelta, expires_after: timedelta
) -> None:
    session = await opened(provider, hold=hold)
    lives = fake.sessions[session.session_id]["expires_at"] - time.time()
    assert abs(lives - expires_after.total_seconds()) < 20


@pytest.mark.parametrize(
    ("amount", "currency", "charged"),
    [
        (4900, "EUR", 4900),
        (4900, "JPY", 4900),
        (1250, "KWD", 1250),
        (5, "ISK", 500),  # two decimals at Stripe, and always 00
        (5, "UGX", 500),
        (4900, "MGA", 49),  # whole ones only
    ],
)
async def test_amounts_are_in_the_units_that_stripe_wants(
    provider: PaymentProvider, fake: FakeStripe, amount: int, currency: str, charged: int
) -> None:
    session = await opened(provider, amount, currency)
    assert fake.sessions[session.session_id]["amount_total"] == charged
    event = await read(provider, fake.customer_pays(session.session_id))
    assert (event.amount, event.currency) == (amount, currency)
    voided = await provider.void_session(session.session_id, "payment-7-void")
    assert isinstance(voided, SessionCaptured)
    assert (voided.amount, voided.currency) == (amount, currency)


@pytest.mark.parametrize(("amount", "currency"), [(1255, "KWD"), (4901, "MGA")])
async def test_an_amount_that_stripe_can_t_charge_is_refused(
    provider: PaymentProvider, fake: FakeStripe, amount: int, currency: str
) -> None:
    with pytest.raises(ProviderRefused, match="amount_not_chargeable"):
        await opened(provider, amount, currency)
    assert fake.calls == []


def test_every_currency_can_be_converted_there_and_back(example: Any) -> None:
    for currency in DECIMALS:
        assert example.from_stripe(example.to_stripe(12300, currency), currency) == 12300


async def test_an_open_session_is_voided(provider: PaymentProvider, fake: FakeStripe) -> None:
    session = await opened(provider)
    for key in ("payment-7-void", "payment-7-void", "another"):
        assert await provider.void_session(session.session_id, key) == SessionVoided()
    assert fake.sessions[session.session_id]["status"] == "expired"
    assert fake.calls[1][2] == "payment-7-void"


async def test_a_void_that_comes_too_late_finds_the_money(
    provider: PaymentProvider, fake: FakeStripe
) -> None:
    session = await opened(provider)
    fake.customer_pays(session.session_id)
    voided = await provider.void_session(session.session_id, "payment-7-void")
    assert isinstance(voided, SessionCaptured)
    assert (voided.amount, voided.currency) == (4900, "EUR")
    assert voided.captured_at is not None
    assert abs(voided.captured_at.timestamp() - time.time()) < 60


async def test_a_void_waits_for_a_bank_that_has_not_decided(
    provider: PaymentProvider, fake: FakeStripe
) -> None:
    session = await opened(provider)
    event = await read(provider, fake.customer_pays(session.session_id, bank="processing"))
    assert event.type == "checkout.session.completed"  # has no effect: the money has not come
    with pytest.raises(ProviderRefused, match="the bank has not decided"):  # it is no outage
        await provider.void_session(session.session_id, "payment-7-void")
    fake.bank_decides(session.session_id, "requires_payment_method")
    assert await provider.void_session(session.session_id, "payment-7-void") == SessionVoided()


async def test_money_is_refunded_once(provider: PaymentProvider, fake: FakeStripe) -> None:
    session = await opened(provider)
    with pytest.raises(ProviderRefused, match="not_captured"):
        await provider.refund_session(session.session_id, 4900, "EUR", "payment-7-refund")
    fake.customer_pays(session.session_id)
    for key in ("payment-7-refund", "payment-7-refund", "another"):
        refunded = await provider.refund_session(session.session_id, 4900, "EUR", key)
        assert refunded == SessionRefunded()
    assert [refund["amount"] for refund in fake.refunds] == [4900]
    calls = [key for call, _, key in fake.calls if call == "POST /v1/refunds"]
    assert calls == ["payment-7-refund", "another"]  # the repeated call got its first answer


async def test_what_a_bank_has_taken_back_is_not_sent_again(
    provider: PaymentProvider, fake: FakeStripe
) -> None:
    session = await opened(provider)
    fake.customer_pays(session.session_id)
    for intent in fake.intents.values():
        intent["latest_charge"]["disputed"] = True
    refunded = await provider.refund_session(session.session_id, 4900, "EUR", "payment-7-refund")
    assert refunded == SessionRefunded()
    assert fake.refunds == []


async def test_the_rest_is_refunded_if_somebody_at_stripe_refunded_a_part(
    provider: PaymentProvider, fake: FakeStripe
) -> None:
    session = await opened(provider)
    fake.customer_pays(session.session_id)
    event = await read(provider, fake.staff_refunds(session.session_id, 1000))
    assert event.type == "charge.refunded"  # has no effect: a part
    await provider.refund_session(session.session_id, 4900, "EUR", "payment-7-refund")
    assert [refund["amount"] for refund in fake.refunds] == [1000, 3900]


async def test_events_are_read(provider: PaymentProvider, fake: FakeStripe) -> None:
    session = await opened(provider)
    name = session.session_id
    paid = await read(provider, fake.customer_pays(name))
    told = ("payment.succeeded", name, "7", 4900, "EUR")
    assert (paid.type, paid.session_id, paid.payment_id, paid.amount, paid.currency) == told
    assert str(paid.event_id).startswith("evt_")
    assert paid.occurred_at is not None
    assert abs(paid.occurred_at.timestamp() - time.time()) < 60
    refunded = await read(provider, fake.staff_refunds(name))
    assert (refunded.type, refunded.session_id, refunded.payment_id) == (
        "payment.refunded",
        name,
        "7",
    )
    other = (await opened(provider, key="b")).session_id
    expired = await read(provider, fake.expires(other))
    assert (expired.type, expired.session_id) == ("payment.voided", other)
    third = (await opened(provider, key="c")).session_id
    fake.customer_pays(third, bank="processing")
    failed = await read(provider, fake.bank_decides(third, "requires_payment_method"))
    assert (failed.type, failed.session_id, failed.payable) == ("payment.failed", third, False)
    late = await read(provider, fake.bank_decides(third, "succeeded"))
    assert (late.type, late.amount) == ("payment.succeeded", 4900)


async def test_what_is_not_ours_has_no_effect(provider: PaymentProvider, fake: FakeStripe) -> None:
    """The shop may sell other things with the same account. Their money is not a stray."""
    name = (await opened(provider)).session_id
    fake.sessions[name]["metadata"] = {}
    event = await read(provider, fake.customer_pays(name))
    assert (event.type, event.session_id) == ("checkout.session.completed", name)
    charge = {"id": "ch_x", "refunded": True, "payment_intent": "pi_x", "metadata": {}}
    event = await read(provider, fake.event("charge.refunded", charge))
    assert (event.type, event.session_id) == ("charge.refunded", "ch_x")
    await opened(provider, key="b")
    event = await read(provider, fake.event("charge.refunded", charge | {"payment_intent": None}))
    assert (event.type, event.session_id) == ("charge.refunded", "ch_x")
    event = await read(provider, fake.event("customer.created", {"id": "cus_1"}))
    assert (event.type, event.session_id) == ("customer.created", "cus_1")


async def test_what_stripe_did_not_sign_is_refused(
    provider: PaymentProvider, fake: FakeStripe
) -> None:
    body, signature = fake.expires((await opened(provider)).session_id)
    _, old = fake.signed(body, age_seconds=301)
    for given, header in ((body + b" ", signature), (body, "t=1,v1=00"), (body, old)):
        with pytest.raises(BadSignature):
            await read(provider, (given, header))
    with pytest.raises(BadSignature):
        await provider.read_event({}, body)
    with pytest.raises(BadSignature):
        await provider.read_event({"stripe-signature": signature}, b"\xff")


async def test_a_genuine_event_of_an_unknown_form_is_kept(
    provider: PaymentProvider, fake: FakeStripe
) -> None:
    assert await read(provider, fake.signed(b"{")) == PaymentEvent()
    assert await read(provider, fake.signed(b"[]")) == PaymentEvent()
    event = await read(provider, fake.event("checkout.session.completed", {"id": 7}))
    assert (str(event.event_id)[:4], event.type) == ("evt_", None)


@pytest.mark.parametrize("status", [500, 429, 409, 401, 403])
async def test_what_may_pass_is_worth_another_try(
    provider: PaymentProvider, fake: FakeStripe, status: int
) -> None:
    fake.broken = status
    with pytest.raises(ProviderUnavailable):
        await opened(provider)
    with pytest.raises(ProviderUnavailable):
        await provider.void_session("cs_test_1", "payment-7-void")
    fake.broken = 0
    await opened(provider)
    with pytest.raises(ProviderRefused, match="resource_missing"):
        await provider.void_session("cs_none", "payment-7-void")


async def test_an_absent_stripe_is_unavailable(provider: PaymentProvider, fake: FakeStripe) -> None:
    fake.close()
    with pytest.raises(ProviderUnavailable):
        await opened(provider)


@pytest.mark.parametrize("name", ["STRIPE_API_KEY", "SHOP_URL"])
def test_what_is_missing_is_named(example: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv(name)
    with pytest.raises(SettingsError, match=f"{name} is not set"):
        example.create(settings())


async def test_a_sale_with_stripe(db: Connection, database_url: str, fake: FakeStripe) -> None:
    """Ann pays in time; Bob cancels and pays all the same, and gets his money back."""
    stop = asyncio.Event()
    configured = settings(
        database_url=database_url, job_poll_seconds=0.02, sweep_interval_seconds=0.05
    )
    async with serving(configured) as api:
        working = asyncio.create_task(worker.run(configured, stop=stop))
        try:
            item = (await api("POST", "/items", json=NEW_ITEM | {"stock": 2})).json()
            ann = await checkout(api, item, "ann")
            assert await tell(api, fake.customer_pays(session_of(ann))) == "paid"
            assert (await order_of(api, ann, "ann"))["status"] == "paid"
            bob = await checkout(api, item, "bob")
            late = fake.customer_pays(session_of(bob))
            await api("DELETE", f"/orders/{bob['order_id']}", "bob")
            await tell(api, late)
            deadline = time.monotonic() + 30
            while not fake.refunds:
                assert time.monotonic() < deadline and not working.done()
                await asyncio.sleep(0.01)
        finally:
            stop.set()
            await working
    intent = fake.sessions[session_of(bob)]["payment_intent"]
    assert [refund["payment_intent"] for refund in fake.refunds] == [intent]


async def checkout(api: Api, item: dict[str, Any], customer: str) -> dict[str, Any]:
    """The customer's order, as soon as it can be paid."""
    order = (await api.order(item, customer)).json()
    deadline = time.monotonic() + 30
    while not (order["payment"] or {}).get("checkout_url"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
        order = await order_of(api, order, customer)
    return dict(order)


async def order_of(api: Api, order: dict[str, Any], customer: str) -> Any:
    return (await api("GET", f"/orders/{order['order_id']}", customer)).json()


def session_of(order: dict[str, Any]) -> str:
    return str(order["payment"]["checkout_url"]).rsplit("/", 1)[1]


async def tell(api: Api, event: tuple[bytes, str]) -> str:
    body, signature = event
    headers = {"Stripe-Signature": signature, "Content-Type": "application/json; charset=utf-8"}
    answer = await api("POST", "/webhooks/payments", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["outcome"])
