"""The queue of payment jobs: opens, voids and refunds sessions at the payment provider."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import msgspec

from flashsale.database.jobs import Jobs, LeasedJob, OpenedSession
from flashsale.providers.interface import (
    KEY_REUSED,
    PaymentProvider,
    ProviderRefused,
    SessionCaptured,
)
from flashsale.settings import Settings
from flashsale.worker.queue import Acknowledge, Queue
from flashsale.worker.results import Results
from flashsale.worker.trouble import Trouble

NOTE_SECONDS = 1.0  # between notes of an outage, each of which counts for ten in the database

T = TypeVar("T")


class _PaymentJob(msgspec.Struct, frozen=True, tag_field="kind"):
    payment_id: int
    amount: int  # minor units of currency
    currency: str


class OpenJob(_PaymentJob, frozen=True, tag="open"):
    """Open a session for a hold."""

    order_id: int
    expires_at: datetime
    item_name: str | None = None  # not known from a database of an older release


class VoidJob(_PaymentJob, frozen=True, tag="void"):
    """Void the session of a hold that is over."""

    session_id: str


class RefundJob(_PaymentJob, frozen=True, tag="refund"):
    """Refund money that could not be used."""

    session_id: str


PaymentJob = OpenJob | VoidJob | RefundJob


class PaymentQueue(Queue):
    """Calls the provider. Each call has the payment's idempotency key, so it is safe to repeat."""

    name = "payments"

    def __init__(
        self, settings: Settings, jobs: Jobs, stop: asyncio.Event, provider: PaymentProvider
    ) -> None:
        """provider: where sessions are opened, voided and refunded."""
        super().__init__(settings, jobs, stop, at_once=settings.job_concurrency)
        self._provider = provider
        self._opened = Results(jobs.payments_opened)

    async def work(self) -> None:
        """As of Queue. Meanwhile it tells the database whether the provider is down."""
        telling = asyncio.create_task(self._tell(), name="provider status")
        try:
            await super().work()
        finally:
            telling.cancel()

    async def _tell(self) -> None:
        """Says each second that the provider is down, and once that it is back.

        That it is down is said only by a worker that still tries: after another failure, or during
        a call. So a worker that has no job to try does not contradict the others, and what it has
        said ends by itself. That it is back is said again while there is a backlog, which is if a
        take since the last note was full. The last take says too little: it may have found no job
        only because a sweep had locked the orders.
        """
        trouble = Trouble("noting whether the provider is down")
        said_down, failures, done, full_takes = False, 0, 0, 0
        while True:
            await asyncio.sleep(NOTE_SECONDS)
            if self.is_down:
                to_say = self.failures != failures or self.under_way > 0
            else:
                behind = self.full_takes != full_takes and self.done != done
                to_say = said_down or behind
            if not to_say:
                continue
            is_down, failures = self.is_down, self.failures
            done, full_takes = self.done, self.full_takes
            try:
                await self.jobs.note_provider(is_down)
            except Exception as error:
                trouble.hit(error)
                failures = 0  # said again soon
            else:
                trouble.over()
                said_down = is_down

    async def take(self, limit: int, lease_seconds: int) -> list[LeasedJob]:
        """Leases payment jobs."""
        return await self.jobs.take_payment_jobs(limit, lease_seconds)

    async def perform(self, job: LeasedJob) -> Acknowledge:
        """Calls the provider. Errors: as of PaymentProvider; msgspec.ValidationError."""
        wanted: PaymentJob = msgspec.convert(job.columns, PaymentJob)
        name = str(wanted.payment_id)
        match wanted:
            case OpenJob(payment_id, amount, currency, order_id, expires_at, item_name):
                open_session = partial(
                    self._provider.open_session,
                    name,
                    str(order_id),
                    amount,
                    currency,
                    expires_at,
                    item_name,
                )
                deadline = f"{expires_at.astimezone(UTC):%Y%m%dT%H%M%S.%f}"
                session = await _once(open_session, f"payment-{name}-open", deadline)
                opened = OpenedSession(job, payment_id, session.session_id, session.checkout_url)
                return partial(self._opened.add, job.job_id, opened)
            case VoidJob(payment_id, _, _, session_id):
                void_session = partial(self._provider.void_session, session_id)
                answer = await _once(void_session, f"payment-{name}-void", session_id)
                if isinstance(answer, SessionCaptured):
                    return partial(
                        self.jobs.payment_captured,
                        job,
                        payment_id,
                        session_id,
                        answer.amount,
                        answer.currency,
                        answer.captured_at,
                    )
                return partial(self.jobs.payment_voided, job, payment_id)
            case RefundJob(payment_id, amount, currency, session_id):
                refund_session = partial(
                    self._provider.refund_session, session_id, amount, currency
                )
                await _once(refund_session, f"payment-{name}-refund", session_id)
                return partial(self.jobs.payment_refunded, job, payment_id)


async def _once(call: Callable[[str], Awaitable[T]], key: str, more: str) -> T:
    """Calls with a key; if that was used for another call, with a longer one.

    It was if the database has been restored to an earlier moment: a hold that was granted after it
    is granted again, with another deadline, and its payment gets another session.
    """
    try:
        return await call(key)
    except ProviderRefused as refused:
        if refused.code != KEY_REUSED:
            raise
        return await call(f"{key}-{more}")
