"""The interface of a payment provider: what every one of them has to do, and how it answers.

Every call is safe to repeat with the same idempotency key. After ProviderUnavailable it is unknown
whether the call took effect, so it has to be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

import msgspec

from flashsale.models import PaymentEvent
from flashsale.signature import BadSignature

__all__ = [
    "KEY_REUSED",
    "BadSignature",
    "CheckoutSession",
    "PaymentEvent",
    "PaymentProvider",
    "ProviderRefused",
    "ProviderUnavailable",
    "SessionCaptured",
    "SessionRefunded",
    "SessionVoided",
]

KEY_REUSED = "idempotency_key_reused"
"""The code of a refusal: the key was used for another call."""


class CheckoutSession(msgspec.Struct, frozen=True):
    """A payment that the customer can make at checkout_url."""

    session_id: str
    checkout_url: str


class SessionVoided(msgspec.Struct, frozen=True):
    """The session is closed: no money has come, and none will."""


class SessionCaptured(msgspec.Struct, frozen=True):
    """The void came too late: the money has come. amount is in minor units of currency.

    captured_at: when it came, by the provider's clock; None if the provider does not tell.
    """

    amount: int
    currency: str
    captured_at: datetime | None = None


class SessionRefunded(msgspec.Struct, frozen=True):
    """All the money of the session has been refunded, once."""


class ProviderUnavailable(Exception):  # noqa: N818 - an expected state, not a fault of ours
    """There is no usable answer, and the call may have had its effect: repeat it with its key."""


class ProviderRefused(Exception):  # noqa: N818 - the words are clear
    """The provider has refused the call; repeating it unchanged won't help."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code


class PaymentProvider(Protocol):
    """All that the service needs of a provider.

    Amounts are in minor units of the currency, as ISO 4217 has them. Errors of each method:
    ProviderUnavailable, ProviderRefused.
    """

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
        """Opens a session. Its events have to name the payment_id.

        expires_at: the deadline of the hold; a void follows when it is over. description: what the
        customer pays for, to be shown.
        """
        ...

    async def void_session(
        self, session_id: str, idempotency_key: str
    ) -> SessionVoided | SessionCaptured:
        """Voids a session, so that no money can come, or finds that the money has come."""
        ...

    async def refund_session(
        self, session_id: str, amount: int, currency: str, idempotency_key: str
    ) -> SessionRefunded:
        """Sends all the money back, or finds that it has gone back already."""
        ...

    async def read_event(self, headers: Mapping[str, str], body: bytes) -> PaymentEvent:
        """Verifies who sent a webhook request, and reads its event.

        headers: their names are in lower case. What can't be read of a genuine event is left out of
        it, because it is stored all the same. Errors: also BadSignature.
        """
        ...
