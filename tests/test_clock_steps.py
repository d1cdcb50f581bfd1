"""The server's clock goes back: times that were written before are corrected soon."""

from __future__ import annotations

from support import Connection, item, reserve, rows, sweep, value

AN_HOUR_AHEAD = """
update flashsale_data.sweepers set swept_at = swept_at + interval '1 hour';
update pgmq.q_payments
  set vt = vt + interval '1 hour', enqueued_at = enqueued_at + interval '1 hour';
update pgmq.q_notifications
  set vt = vt + interval '1 hour', enqueued_at = enqueued_at + interval '1 hour';
"""


def test_a_sweep_with_a_time_in_the_future_is_not_recent(db: Connection) -> None:
    sweep(db)
    db.execute(AN_HOUR_AHEAD)
    assert value(db, "select min(lag_seconds) from flashsale.sweep_status") > 3000


def test_jobs_that_were_due_before_the_clock_went_back_are_due(db: Connection) -> None:
    sweep(db)
    reserve(db, item(db), "ann")
    db.execute(AN_HOUR_AHEAD)
    take = "select * from flashsale.take_payment_jobs(10, 30)"
    assert rows(db, take) == []
    sweep(db)
    assert [job.kind for job in rows(db, take)] == ["open"]


def test_a_clock_that_goes_forward_makes_no_job_due(db: Connection) -> None:
    sweep(db)
    reserve(db, item(db), "ann")
    take = "select * from flashsale.take_payment_jobs(10, 30)"
    assert len(rows(db, take)) == 1
    sweep(db)
    assert rows(db, take) == []
