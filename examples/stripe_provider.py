"""A payment provider for Stripe: Checkout sessions, refunds, and Stripe's signed events.

    pip install 'flashsale[stripe]'
    export PYTHONPATH=examples STRIPE_API_KEY=sk_test_... SHOP_URL=https://shop.example
    export FLASHSALE_PROVIDER=stripe_provider:create     # examples/stripe_provider.py
    export FLASHSALE_WEBHOOK_SECRET=whsec_...            # of the webhook endpoint at Stripe

Both `flashsale serve` and `flashsale worker` need these. At Stripe, send these events to
/webhooks/payments: checkout.session.completed, checkout.session.expired,
checkout.session.async_payment_succeeded, checkout.session.async_payment_failed, charge.refunded.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
import stripe

from flashsale.currencies import DECIMALS
from flashsale.providers.interface import (
    KEY_REUSED,
    BadSignature,
    CheckoutSession,
    PaymentEvent,
    ProviderRefused,
    ProviderUnavailable,
    SessionCaptured,
    SessionRefunded,
    SessionVoided,
)
from flashsale.settings import Settings, SettingsError

T = TypeVar("T")

SHORTEST_SECONDS, LONGEST_SECONDS = 30 * 60, 24 * 3600
"""How long a Checkout session lives at Stripe, from its creation to its expires_at."""
MARGIN_SECONDS = 60  # for clocks, and for a call that is repeated

NO_DECIMALS = [
    "BIF",
    "CLP",
    "DJF",
    "GNF",
    "JPY",
    "KMF",
    "KRW",
    "MGA",
    "PYG",
    "RWF",
    "VND",
    "VUV",
    "XAF",
    "XOF",
    "XPF",
]
THREE_DECIMALS = ["BHD", "JOD", "KWD", "OMR", "TND"]

TYPES = {
    "checkout.session.expired": "payment.voided",
    "checkout.session.async_payment_succeeded": "payment.succeeded",
    "checkout.session.async_payment_failed": "payment.failed",
}


@asynccontextmanager
async def _running(settings: Settings, key: str, shop_url: str) -> AsyncIterator[StripeProvider]:
    http = stripe.HTTPXClient(timeout=settings.provider_timeout_seconds)
    api = os.environ.get("STRIPE_API_BASE", "https://api.stripe.com")
    # The worker repeats calls by itself, so Stripe's library need not.
    client = stripe.StripeClient(
        key, http_client=http, base_addresses={"api": api}, max_network_retries=0
    )
    try:
        yield StripeProvider(client, settings, shop_url)
    finally:
        await http.close_async()  # type: ignore[no-untyped-call]


def create(settings: Settings) -> Any:
    """The factory. Errors: SettingsError."""
    for name in ("STRIPE_API_KEY", "SHOP_URL"):
        if not os.environ.get(name):
            raise SettingsError(f"{name} is not set: examples/stripe_provider.py needs it")
    return _running(settings, os.environ["STRIPE_API_KEY"], os.environ["SHOP_URL"].rstrip("/"))


class StripeProvider:
    """A flashsale.providers.interface.PaymentProvider."""

    def __init__(self, client: stripe.StripeClient, settings: Settings, shop_url: str) -> None:
        """shop_url: customers come back there, with ?order=…, when they have paid or given up."""
        self._v1 = client.v1
        self._settings = settings
        self._shop_url = shop_url

    async def open_session(
        self,
        payment_id: str,
        order_id: str,
        amount: int,
        currency: str,
        expires_at: datetime,
        description: str | None,
        idempotency_key: str,
    ) -> CheckoutSession:
        """As of PaymentProvider. Stripe also refuses a key that comes with other parameters."""
        metadata = {"payment_id": payment_id, "order_id": order_id}
        params: dict[str, Any] = {
            "mode": "payment",
            "client_reference_id": order_id,
            "metadata": metadata,
            "payment_intent_data": {"metadata": metadata},
            "line_items": [
                {
                    "quantity": 1,
                    "price_data": {
                        "currency": currency.lower(),
                        "unit_amount": to_stripe(amount, currency),
                        "product_data": {"name": description or f"Order {order_id}"},
                    },
                }
            ],
            "success_url": f"{self._shop_url}/?order={order_id}",
            "cancel_url": f"{self._shop_url}/?order={order_id}",
            **stripe_expiry(expires_at, time.time()),
        }
        options: stripe.RequestOptions = {"idempotency_key": idempotency_key}
        session = await _answer(self._v1.checkout.sessions.create_async(params, options))  # type: ignore[arg-type]
        if session.url is None:
            raise ProviderRefused("no_url", f"the session {session.id} is {session.status}")
        return CheckoutSession(session.id, session.url)

    async def void_session(
        self, session_id: str, idempotency_key: str
    ) -> SessionVoided | SessionCaptured:
        """As of PaymentProvider.

        While a bank still decides, that is refused, so that it is asked again later. It is no
        outage: that would stop the sale for as long as the bank takes.
        """
        sessions = self._v1.checkout.sessions
        try:
            options: stripe.RequestOptions = {"idempotency_key": idempotency_key}
            await _answer(sessions.expire_async(session_id, options=options))
            return SessionVoided()
        except ProviderRefused:
            session = await _answer(
                sessions.retrieve_async(session_id, {"expand": ["payment_intent.latest_charge"]})
            )
            if session.status == "expired":
                return SessionVoided()
            if session.status != "complete":
                raise
            payment: Any = session.payment_intent
            if payment.status == "processing":
                raise ProviderRefused("undecided", "the bank has not decided yet") from None
            if payment.status != "succeeded":
                return SessionVoided()
            currency = str(session.currency).upper()
            captured_at = datetime.fromtimestamp(payment.latest_charge.created, UTC)
            amount = from_stripe(int(session.amount_total or 0), currency)
            return SessionCaptured(amount, currency, captured_at)

    async def refund_session(
        self, session_id: str, amount: int, currency: str, idempotency_key: str
    ) -> SessionRefunded:
        """As of PaymentProvider. Without an amount Stripe refunds whatever is left."""
        session = await _answer(self._v1.checkout.sessions.retrieve_async(session_id))
        if not isinstance(session.payment_intent, str):
            raise ProviderRefused("not_captured", f"the session is {session.status}")
        try:
            refund = await _answer(
                self._v1.refunds.create_async(
                    {"payment_intent": session.payment_intent}, {"idempotency_key": idempotency_key}
                )
            )
        except ProviderRefused as refused:
            if refused.code in ("charge_already_refunded", "charge_disputed"):  # a chargeback
                return SessionRefunded()
            raise
        if refund.status in ("failed", "canceled"):
            raise ProviderRefused(f"refund_{refund.status}", str(refund.failure_reason or ""))
        return SessionRefunded()

    async def read_event(self, headers: Mapping[str, str], body: bytes) -> PaymentEvent:
        """As of PaymentProvider. Types that have no effect keep Stripe's name."""
        secret = self._settings.webhook_secret
        tolerance = self._settings.webhook_tolerance_seconds
        try:
            stripe.WebhookSignature.verify_header(
                body, headers.get("stripe-signature"), secret, tolerance
            )
        except (stripe.SignatureVerificationError, UnicodeError) as error:
            raise BadSignature(str(error)) from error
        known: dict[str, Any] = {}
        try:
            event = msgspec.json.decode(body)
            known["event_id"] = event["id"]
            known |= await self._told(event["type"], event["created"], event["data"]["object"])
            return msgspec.convert(known, PaymentEvent)
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError):
            return PaymentEvent(event_id=str(known["event_id"]) if "event_id" in known else None)

    async def _told(self, kind: str, created: int, thing: dict[str, Any]) -> dict[str, Any]:
        """What an event tells. What is not about a payment of ours keeps Stripe's type."""
        told = {
            "type": kind,
            "session_id": thing["id"],
            "occurred_at": datetime.fromtimestamp(created, UTC),
        }
        # In full. It does not name its session; and without an intent Stripe would list them all.
        if kind == "charge.refunded" and thing["refunded"] and (intent := thing["payment_intent"]):
            sessions = await _answer(
                self._v1.checkout.sessions.list_async({"payment_intent": intent})
            )
            thing = sessions.data[0].to_dict() if sessions.data else thing
            ours = "payment.refunded"
        elif kind == "checkout.session.completed" and thing["payment_status"] == "paid":
            ours = "payment.succeeded"
        else:
            ours = TYPES.get(kind, kind)
        payment_id = thing.get("metadata", {}).get("payment_id")
        if ours == kind or payment_id is None:
            return told
        currency = thing["currency"].upper()
        return told | {
            "type": ours,
            "session_id": thing["id"],
            "payment_id": payment_id,
            "amount": from_stripe(thing["amount_total"], currency),
            "currency": currency,
        }


def stripe_expiry(expires_at: datetime, now: float) -> dict[str, int]:
    """The expires_at parameter of a Checkout session.

    Most holds are shorter than the shortest session, so it is the void that ends a session in time.
    This one is for the case that no worker lives to send it. It is half an hour after the hold's
    deadline, whenever the call is made, because a repeated call has to say the same. A hold that is
    longer than the longest session gets Stripe's default, the longest.
    """
    at = int(expires_at.timestamp()) + SHORTEST_SECONDS + MARGIN_SECONDS
    return {"expires_at": at} if at <= now + LONGEST_SECONDS - MARGIN_SECONDS else {}


def stripe_decimals(currency: str) -> int:
    """How many decimals Stripe's amounts have: of MGA, ISK and UGX not as many as ISO 4217 says."""
    return 0 if currency in NO_DECIMALS else 3 if currency in THREE_DECIMALS else 2


def to_stripe(amount: int, currency: str) -> int:
    """Minor units of ISO 4217 as Stripe's. Errors: ProviderRefused, if Stripe can't charge that."""
    times, parts = _scale(currency)
    charged, rest = divmod(amount * times, parts)
    if rest or (currency in THREE_DECIMALS and charged % 10):
        raise ProviderRefused("amount_not_chargeable", f"Stripe can't charge {amount} {currency}")
    return charged


def from_stripe(amount: int, currency: str) -> int:
    """Stripe's minor units as those of ISO 4217."""
    times, parts = _scale(currency)
    return amount * parts // times


def _scale(currency: str) -> tuple[int, int]:
    """How many of Stripe's units are how many of ours."""
    ours, theirs = DECIMALS.get(currency, 2), stripe_decimals(currency)
    return int(10 ** max(0, theirs - ours)), int(10 ** max(0, ours - theirs))


async def _answer(call: Awaitable[T]) -> T:
    """Stripe's answer. Errors: ProviderUnavailable, ProviderRefused.

    A wrong API key counts as an outage: it is not the customers' fault, and somebody will mend it.
    """
    try:
        return await call
    except stripe.IdempotencyError as error:
        raise ProviderRefused(KEY_REUSED, str(error)) from error
    except (
        stripe.APIConnectionError,
        stripe.AuthenticationError,
        stripe.PermissionError,
        stripe.RateLimitError,
        stripe.APIError,  # also a conflict: the same call is under way
    ) as error:
        raise ProviderUnavailable(str(error)) from error
    except stripe.StripeError as error:
        raise ProviderRefused(error.code or type(error).__name__, str(error)) from error
