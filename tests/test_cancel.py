"""Cancelling a hold or a place in the line: the effects for the customer and for the line."""

from __future__ import annotations

import psycopg
import pytest

from flashsale.testing.clock import Clock
from support import Connection, call, item, item_status, pay, reserve, rows, statuses, sweep, value


def test_a_cancelled_reservation_goes_to_the_next_in_line(db: Connection) -> None:
    shoe = item(db)
    order, *_ = [reserve(db, shoe, name) for name in ("ann", "bob", "cid")]
    assert call(db, "cancel", order.order_id, "ann").status == "cancelled"
    sweep(db)
    assert statuses(db, shoe) == {"ann": "cancelled", "bob": "reserved", "cid": "waiting"}


def test_customers_who_left_the_line_are_passed_over(db: Connection) -> None:
    shoe = item(db)
    ann, bob, *_ = [reserve(db, shoe, name) for name in ("ann", "bob", "cid")]
    call(db, "cancel", bob.order_id, "bob")
    assert item_status(db, shoe).paid == 0
    call(db, "cancel", ann.order_id, "ann")
    swept = sweep(db)
    assert (swept.recycled, swept.promoted) == (2, 1)
    assert statuses(db, shoe) == {"ann": "cancelled", "bob": "cancelled", "cid": "reserved"}


def test_cancelling_again_changes_nothing(db: Connection) -> None:
    shoe = item(db)
    order = reserve(db, shoe, "ann")
    first = call(db, "cancel", order.order_id, "ann")
    again = call(db, "cancel", order.order_id, "ann")
    assert (first.outcome, again.outcome) == ("cancelled", "already_ended")
    assert again[1:] == first[1:]


def test_a_paid_order_can_not_be_cancelled(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    pay(db, order)
    with pytest.raises(psycopg.Error) as error:
        call(db, "cancel", order.order_id, "ann")
    assert (error.value.sqlstate, error.value.diag.constraint_name) == ("RV202", "already_paid")


def test_another_customers_order_is_unknown(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    for order_id, customer in [(order.order_id, "bob"), (42, "ann")]:
        with pytest.raises(psycopg.Error) as error:
            call(db, "cancel", order_id, customer)
        assert error.value.sqlstate == "RV102"
    assert call(db, "order_status", order.order_id).status == "reserved"


def test_a_hold_past_its_deadline_is_expired_not_cancelled(db: Connection, clock: Clock) -> None:
    order = reserve(db, item(db, hold_seconds=5), "ann")
    clock.advance(5)
    late = call(db, "cancel", order.order_id, "ann")
    assert (late.outcome, late.status, late.ended_at) == (
        "already_ended",
        "expired",
        order.expires_at,
    )


def test_the_open_payment_is_voided(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    (job,) = rows(db, "select * from flashsale.take_payment_jobs(10, 30)")
    call(db, "payment_opened", job.job_id, job.tries, job.payment_id, "s1", "http://pay")
    call(db, "cancel", order.order_id, "ann")
    (void,) = rows(db, "select * from flashsale.take_payment_jobs(10, 30)")
    assert (void.kind, void.session_id) == ("void", "s1")
    assert (
        value(
            db,
            "select flashsale.payment_voided(%s, %s, %s)",
            void.job_id,
            void.tries,
            void.payment_id,
        )
        == "voided"
    )
    assert call(db, "order_status", order.order_id).payment_status == "voided"
