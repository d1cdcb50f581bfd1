"""The worker's side of the SQL functions: leasing jobs, recording their results, and sweeping.

Columns are read by name. Errors of every call: those of asyncpg, OSError and TimeoutError;
sqlstates.is_passing() tells which are worth another try.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, NamedTuple, Self

import asyncpg

from flashsale.database.connections import (
    WORKER_ROLE,
    acting_role,
    close_pool,
    connection_arguments,
    create_pool,
)
from flashsale.settings import Settings

_CONNECTIONS = 4  # for jobs; the sweep has its own, so that many jobs can't starve it
_CLOSE_SECONDS = 1.0
_NOT_DONE = ("lost_lease", "busy")
"""Outcomes of a job that is done again: its lease has gone, or its order was locked."""


class LeasedJob(NamedTuple):
    """A job that no other worker gets until its lease ends.

    job_id and tries are the lease: a job that is leased again has another number of tries.
    """

    job_id: int
    tries: int
    columns: dict[str, Any]
    """The whole row, with what is to be done."""


class OpenedSession(NamedTuple):
    """The result of a job that has opened a session for a payment."""

    job: LeasedJob
    payment_id: int
    session_id: str
    checkout_url: str


class LeasedEvent(NamedTuple):
    """An event to be delivered."""

    lease_id: int
    failures: int
    """How many deliveries in a row have failed, of the first of these events."""
    event_id: int
    type: str
    at: datetime
    item_id: int
    order_id: int | None
    data: str
    """As JSON."""


class DueItem(NamedTuple):
    """An item that has something to do, and its holds that are past their deadlines."""

    item_id: int
    overdue_ids: list[int]


class Swept(NamedTuple):
    """What came of the sweep of one item."""

    more: bool
    """There is more to do for this item."""
    error: str | None
    """Why nothing could be done; the database has noted it."""


class Jobs:
    """The queues of payment jobs and notifications. Use as an async context manager."""

    def __init__(self, settings: Settings) -> None:
        """Connects only when it is entered and used. Errors: SettingsError."""
        # Whoever has locked what a job is about may keep the lock, but not a connection of ours.
        self._arguments = _arguments(settings, {"lock_timeout": f"{settings.lock_ms}"})
        self._pool: Any = None

    async def __aenter__(self) -> Self:
        """Needs no database yet."""
        self._pool = await create_pool(_CONNECTIONS, self._arguments)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the connections, after a timeout even during a call."""
        await close_pool(self._pool, _CLOSE_SECONDS)

    async def take_payment_jobs(self, limit: int, lease_seconds: int) -> list[LeasedJob]:
        """Leases up to so many payment jobs."""
        return _jobs(
            await self._pool.fetch(
                "select * from flashsale.take_payment_jobs($1, $2)", limit, lease_seconds
            )
        )

    async def take_notifications(self, limit: int, lease_seconds: int) -> list[LeasedJob]:
        """Leases up to so many notifications."""
        return _jobs(
            await self._pool.fetch(
                "select * from flashsale.take_notifications($1, $2)", limit, lease_seconds
            )
        )

    async def payments_opened(self, opened: Sequence[OpenedSession]) -> set[int]:
        """Records that sessions were opened. Returns the job_ids of the jobs that are done."""
        rows = await self._pool.fetch(
            "select job_id, outcome from flashsale.payments_opened($1, $2, $3, $4, $5)",
            [it.job.job_id for it in opened],
            [it.job.tries for it in opened],
            [it.payment_id for it in opened],
            [it.session_id for it in opened],
            [it.checkout_url for it in opened],
        )
        return {row["job_id"] for row in rows if row["outcome"] not in _NOT_DONE}

    async def payment_captured(
        self,
        job: LeasedJob,
        payment_id: int,
        session_id: str,
        amount: int,
        currency: str,
        captured_at: datetime | None = None,
    ) -> bool:
        """Records money that came before the void. Returns whether the job is done.

        captured_at: when it came, by the provider's clock; None: now.
        """
        outcome = await self._pool.fetchval(
            "select flashsale.payment_captured($1, $2, $3, $4, $5, $6, $7)",
            job.job_id,
            job.tries,
            payment_id,
            session_id,
            amount,
            currency,
            captured_at,
        )
        return outcome not in _NOT_DONE

    async def payment_voided(self, job: LeasedJob, payment_id: int) -> bool:
        """Records that a session was voided. Returns whether the job is done."""
        outcome = await self._pool.fetchval(
            "select flashsale.payment_voided($1, $2, $3)", job.job_id, job.tries, payment_id
        )
        return outcome not in _NOT_DONE

    async def payment_refunded(self, job: LeasedJob, payment_id: int) -> bool:
        """Records that money was refunded. Returns whether the job is done."""
        outcome = await self._pool.fetchval(
            "select flashsale.payment_refunded($1, $2, $3)", job.job_id, job.tries, payment_id
        )
        return outcome not in _NOT_DONE

    async def finish_notifications(self, jobs: Sequence[LeasedJob]) -> set[int]:
        """Records that e-mails were sent. Returns the job_ids whose leases were still ours."""
        rows = await self._pool.fetch(
            "select job_id from flashsale.finish_notifications($1, $2) as finished (job_id)",
            [job.job_id for job in jobs],
            [job.tries for job in jobs],
        )
        return {row["job_id"] for row in rows}

    async def retry(self, queue: str, job: LeasedJob, error: str, unavailable: bool = False) -> str:
        """Records that a job has failed. Returns retry, dead or lost_lease.

        unavailable: the payment provider has not answered; else it has refused.
        """
        fate: str = await self._pool.fetchval(
            "select flashsale.retry_job($1, $2, $3, $4, $5)",
            queue,
            job.job_id,
            job.tries,
            error,
            unavailable,
        )
        return fate

    async def take_events(self, worker: str, lease_seconds: int, limit: int) -> list[LeasedEvent]:
        """Leases the delivery of events. Returns the next ones; none if it is not ours, or later.

        worker: this process, as event_delivery shows it.
        """
        rows = await self._pool.fetch(
            "select lease_id, failures, event_id, type, at, item_id, order_id, data "
            "from flashsale.take_events($1, $2, $3)",
            worker,
            lease_seconds,
            limit,
        )
        return [LeasedEvent(*row) for row in rows]

    async def events_delivered(
        self, lease_id: int, event_id: int | None, lease_seconds: int
    ) -> bool:
        """Records that the events up to this one were delivered. Returns whether the lease is ours.

        event_id: None: none was. lease_seconds: the lease lasts so long from now on; 0: it ends.
        """
        return bool(
            await self._pool.fetchval(
                "select flashsale.events_delivered($1, $2, $3)", lease_id, event_id, lease_seconds
            )
        )

    async def event_failed(self, lease_id: int, error: str, retry_seconds: float) -> bool:
        """Records that the next event was not taken, and ends the lease. Returns whether it was."""
        return bool(
            await self._pool.fetchval(
                "select flashsale.event_failed($1, $2, $3)", lease_id, error, retry_seconds
            )
        )

    async def note_provider(self, is_down: bool) -> None:
        """Records that the payment provider is down, to be said each second, or that it is back."""
        await self._pool.execute("select flashsale.note_provider($1)", is_down)


class Sweeps:
    """A connection to sweep on. Use as an async context manager."""

    def __init__(self, settings: Settings, runner: str) -> None:
        """runner: this process, as sweep_status shows it."""
        self._arguments = _arguments(settings)
        self._runner = runner
        self._connection: Any = None

    async def __aenter__(self) -> Self:
        """Connects."""
        self._connection = await asyncpg.connect(**self._arguments)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the connection in the regular way; after an error it is just dropped."""
        try:
            if error is None:
                await self._connection.close(timeout=_CLOSE_SECONDS)
        finally:
            self._connection.terminate()

    @property
    def connected(self) -> bool:
        """Whether the connection is still open."""
        return not self._connection.is_closed()

    async def begin(self, limit: int) -> list[DueItem]:
        """The items that have something to do, in the order of their visits.

        limit: at most so many overdue holds over all items; if there are so many, begin again.
        """
        rows = await self._connection.fetch(
            "select item_id, overdue_ids from flashsale.begin_sweep($1, $2)", self._runner, limit
        )
        return [DueItem(row["item_id"], row["overdue_ids"] or []) for row in rows]

    async def sweep(self, item: DueItem, limit: int) -> Swept:
        """Does what is due for one item, in a transaction of its own. limit: orders per step."""
        row = await self._connection.fetchrow(
            "select more, error from flashsale.sweep_item($1, $2, $3, $4)",
            self._runner,
            item.item_id,
            item.overdue_ids[: limit + 1],  # by the last one it knows that there is more
            limit,
        )
        return Swept(row["more"], row["error"])

    async def failed(self, item: DueItem, error: str) -> None:
        """Records that sweep() raised an error, so that the item is left out for a moment."""
        await self._connection.execute(
            "select flashsale.sweep_failed($1, $2, $3)", self._runner, item.item_id, error
        )

    async def publish(self) -> bool:
        """Puts what has happened into the feed. Returns whether there is more to publish."""
        return bool(await self._connection.fetchval("select more from flashsale.publish_events()"))


def worker_role(settings: Settings) -> str:
    """The role that a worker's connections act as."""
    return acting_role(settings, WORKER_ROLE)


async def has_swept(settings: Settings, runners: str) -> bool:
    """Whether a runner whose name begins with `runners` has swept lately, by database time."""
    connection = await asyncpg.connect(**_arguments(settings))
    try:
        return bool(
            await connection.fetchval(
                "select exists (select from flashsale.sweep_status s "
                "where starts_with(s.runner, $1) and s.lag_seconds < $2)",
                runners,
                settings.readiness_sweep_lag_seconds,
            )
        )
    finally:
        await connection.close(timeout=_CLOSE_SECONDS)


def _arguments(settings: Settings, bounds: Mapping[str, str] | None = None) -> dict[str, Any]:
    arguments = connection_arguments(
        settings, own_role=WORKER_ROLE, application_name="flashsale-worker", bounds=bounds
    )
    return arguments | {"command_timeout": settings.statement_timeout_seconds}


def _jobs(rows: Sequence[asyncpg.Record]) -> list[LeasedJob]:
    return [LeasedJob(row["job_id"], row["tries"], dict(row)) for row in rows]
