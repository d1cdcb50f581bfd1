"""Helpers of the tests about money: sessions at the provider, its events, and the worker's jobs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from support import Connection, call, rows, value


def take(db: Connection, lease: int = 30) -> list[Any]:
    """Leases all payment jobs that are due."""
    return rows(db, "select * from flashsale.take_payment_jobs(1000, %s)", lease)


def make_due(db: Connection) -> None:
    """The leases of all jobs run out, and their pauses are over."""
    db.execute("update pgmq.q_payments set vt = clock_timestamp()")


def open_session(db: Connection, job: Any, session: str | None = None) -> str:
    """The provider has opened the session that a job asked for."""
    name = session or f"s{job.payment_id}"
    found = call(
        db, "payment_opened", job.job_id, job.tries, job.payment_id, name, f"http://pay/{name}"
    )
    return str(found[0])


def open_sessions(db: Connection) -> list[Any]:
    """Does all jobs that open a session; the sessions are named after their payments."""
    jobs = [job for job in take(db) if job.kind == "open"]
    for job in jobs:
        assert open_session(db, job) in ("opened", "superseded")
    return jobs


def voided(db: Connection, job: Any) -> str:
    """The provider has answered a void: no money came."""
    return str(call(db, "payment_voided", job.job_id, job.tries, job.payment_id)[0])


def captured(db: Connection, job: Any, at: datetime | None = None, amount: int = 1000) -> str:
    """The provider has answered a void: the money came at this time."""
    money = (job.session_id, amount, "EUR", at)
    return str(call(db, "payment_captured", job.job_id, job.tries, job.payment_id, *money)[0])


def unavailable(db: Connection, job: Any, queue: str = "payments") -> str:
    """The provider has not answered."""
    return str(call(db, "retry_job", queue, job.job_id, job.tries, "no answer", True)[0])


def refused(db: Connection, job: Any) -> str:
    """The provider has said no."""
    return str(call(db, "retry_job", "payments", job.job_id, job.tries, "no", False)[0])


def event(db: Connection, kind: str, order: Any, **changes: Any) -> str:
    """An event of the provider about an order's latest attempt; returns its outcome."""
    values = {
        "event_id": f"{kind} of {order.payment_id} {changes}",
        "type": f"payment.{kind}",
        "session": f"s{order.payment_id}",
        "payment_id": str(order.payment_id),
        "amount": order.amount,
        "currency": order.currency,
        "at": None,
        "payload": None,
        "payable": None,
    } | changes
    return str(
        value(db, f"select flashsale.record_payment_event({marks(values)})", *values.values())
    )


def marks(values: Sequence[Any] | dict[str, Any]) -> str:
    return ", ".join(["%s"] * len(values))


def payments(db: Connection) -> list[tuple[str, str | None]]:
    """Status and reason of all payments."""
    return [
        (row.status, row.refund_reason)
        for row in rows(
            db,
            "select status::text, refund_reason from flashsale_data.payments order by payment_id",
        )
    ]


def kinds(db: Connection) -> list[tuple[str, str]]:
    """The jobs for the provider, by kind and session."""
    return sorted((job.kind, job.session_id or "") for job in take(db))


def mails(db: Connection) -> list[tuple[str, str]]:
    """The e-mails that would be sent now, by kind and customer."""
    found = rows(db, "select message from flashsale.take_notifications(1000, 30)")
    return [(row.message["kind"], row.message["customer_id"]) for row in found]


def story(db: Connection, order: Any) -> list[str]:
    """What explain_order tells about an order."""
    return [
        row.what for row in rows(db, "select * from flashsale.explain_order(%s)", order.order_id)
    ]
