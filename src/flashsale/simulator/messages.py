"""The messages of the simulated provider: requests, answers, and events for the webhook."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct

Ident = Annotated[str, Meta(pattern=r"^[!-~]{1,255}\Z", description="Printable ASCII")]
Amount = Annotated[int, Meta(ge=1, le=10**15, description="Minor units of currency")]
Currency = Annotated[str, Meta(pattern=r"^[A-Z]{3}\Z", description="ISO 4217")]
Time = Annotated[datetime, Meta(tz=True)]
Description = Annotated[str, Meta(max_length=500, description="What is paid for, to be shown")]
Probability = Annotated[float, Meta(ge=0, le=1)]
Milliseconds = Annotated[int, Meta(ge=0, le=600_000)]
Status = Literal["open", "captured", "failed", "voided", "refunded"]
EventType = Literal["payment.succeeded", "payment.failed", "payment.voided", "payment.refunded"]


# Requests


class Faults(Struct, frozen=True, forbid_unknown_fields=True):
    """Probabilities of faults, from 0 (never) to 1 (always). Calls are open, void and refund."""

    latency_ms: Milliseconds = 0
    hang: Probability = 0  # a call has no effect and no answer
    hang_ms: Milliseconds = 60_000  # how long at most; then the answer is 503
    fail: Probability = 0  # a call has no effect and gets 500
    fail_next: Annotated[int, Meta(ge=0, le=1_000_000)] = 0  # that many of the next calls do so
    lose_replies: Probability = 0  # a call has its effect, then the connection breaks
    duplicate_events: Probability = 0  # sent twice, at the same time
    reorder_events: Probability = 0  # sent after the next event, or after delay_ms
    delay_events: Probability = 0  # sent after delay_ms
    delay_ms: Milliseconds = 2_000
    decline_keeps_open: Probability = 0  # a declined payment can still be made in its session
    seed: int | None = None  # restarts the random numbers


class NewSession(Struct, frozen=True, forbid_unknown_fields=True):
    """A payment to collect."""

    payment_id: Ident
    amount: Amount
    currency: Currency
    order_id: Ident | None = None
    expires_at: Time | None = None
    description: Description | None = None


class VoidCall(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a void, which is empty."""


class RefundCall(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a refund, which is of all the money. An amount must be the captured one."""

    amount: Amount | None = None
    currency: Currency | None = None


class Completion(Struct, frozen=True, forbid_unknown_fields=True):
    """How the customer's payment ended."""

    outcome: Literal["succeed", "fail"]


# Answers


class PaymentSession(Struct, frozen=True):
    """One attempt to pay, and what became of it.

    An open one with a failed_at was declined, and can still be paid.
    """

    session_id: str
    payment_id: str
    order_id: str | None
    status: Status
    amount: int
    currency: str
    checkout_url: str
    expires_at: datetime | None
    created_at: datetime
    captured_at: datetime | None = None
    failed_at: datetime | None = None
    voided_at: datetime | None = None
    refunded_at: datetime | None = None
    description: str | None = None
    how_to_pay: str | None = None


class Totals(Struct, frozen=True):
    """Counts of sessions, and sums by currency. Refunded money also counts as captured."""

    sessions: int
    open: int
    failed: int
    voided: int
    captured: int
    refunded: int
    captured_amounts: dict[str, int]
    refunded_amounts: dict[str, int]
    undelivered_events: int


class SessionPage(Struct, frozen=True):
    """A page of the sessions, oldest first. next: ask for it as `after`; null: that's all."""

    totals: Totals
    sessions: list[PaymentSession]
    next: int | None


class ProviderEvent(Struct, frozen=True, omit_defaults=True):
    """An event, as the webhook gets it.

    payable: of a failed payment, that it can still be made in this session.
    """

    event_id: str
    type: EventType
    session_id: str
    payment_id: str
    amount: int
    currency: str
    occurred_at: datetime
    payable: bool = False


class ProviderProblem(Struct, frozen=True, omit_defaults=True):
    """RFC 9457. Programs go by `code`; a refusal by state shows the session as it is."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    session: PaymentSession | None = None


class CallRefused(Exception):  # noqa: N818 - an answer, not a fault
    """A problem to answer with."""

    def __init__(
        self, status: int, code: str, detail: str, session: PaymentSession | None = None
    ) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.detail = detail
        self.session = session
