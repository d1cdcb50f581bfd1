"""explain_order: the story of an order in words, for support staff."""

from __future__ import annotations

from typing import Any

import pytest

from flashsale.testing.clock import Clock
from money_support import event, make_due, open_sessions, story, take, unavailable, voided
from support import Connection, call, item, many, pay, reserve, rows, settle, status, sweep


def void_all(db: Connection) -> None:
    for job in take(db):
        assert voided(db, job) == "voided"


@pytest.mark.parametrize("settle_seconds", [0, 2])
def test_it_tells_that_the_provider_was_asked_only_if_it_was(
    db: Connection, clock: Clock, settle_seconds: int
) -> None:
    order = reserve(db, item(db, settle_seconds=settle_seconds), "ann")
    open_sessions(db)
    clock.set(order.expires_at, 0.1)
    sweep(db)
    void_all(db)
    told = story(db, order)
    asked = [line for line in told if "was asked for up to" in line]
    assert asked == [
        "The deadline passed. The payment provider was asked for up to 2 s whether money had come "
        "in time."
    ] * (settle_seconds > 0)
    assert "The deadline passed without payment: the unit went to the line." in told


def test_a_second_session_that_is_voided_late_is_no_question_about_the_money(
    db: Connection, clock: Clock
) -> None:
    order = reserve(db, item(db), "ann")
    open_sessions(db)
    event(db, "failed", order, payable=True)
    call(db, "request_payment", order.order_id)
    open_sessions(db)
    assert event(db, "succeeded", order) == "paid"
    clock.set(order.expires_at, 0.1)
    void_all(db)
    assert "The deadline passed" not in " ".join(story(db, order))


def test_an_outage_is_told_even_after_its_attempts_were_voided(
    db: Connection, clock: Clock
) -> None:
    (order,) = many(db, item(db), ["ann"])
    (job,) = take(db)
    unavailable(db, job)
    clock.set(order.expires_at, 0.1)
    settle(db)
    make_due(db)
    for job in take(db):  # the old attempt's session is found, and voided
        if job.payment_id == order.payment_id and job.kind == "open":
            call(db, "payment_opened", job.job_id, job.tries, job.payment_id, "s", "http://pay/s")
    make_due(db)
    for job in take(db):
        if job.kind == "void":
            voided(db, job)
    told = " ".join(story(db, order))
    assert rows(
        db, "select from flashsale_data.payments where payment_id = %s and status = 'voided'",
        order.payment_id,
    )  # fmt: skip
    assert f"The payment provider did not answer: payment {order.payment_id} could not be" in told
    assert f"Nobody could make payment {order.payment_id}: the order went back to the" in told
    assert "It was their turn after 00:01:00.1: a unit was set aside." in told


def test_more_time_from_staff_is_told_to_those_who_got_it(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=3)
    over = reserve(db, shoe, "ann")
    clock.advance(30)
    bob, paid = reserve(db, shoe, "bob"), reserve(db, shoe, "cid")
    pay(db, paid)
    clock.advance(30)
    call(db, "extend_holds", shoe, 100, "our site was down", "eve")
    late = reserve(db, shoe, "dee")
    line = "eve gave all who held a unit 100 s more. Reason: our site was down"
    told: dict[str, Any] = {
        order.customer_id: line in story(db, order) for order in (over, bob, paid, late)
    }
    assert told == {"ann": False, "bob": True, "cid": False, "dee": False}
    assert f"To be paid until {status(db, bob.order_id).expires_at}"[:30] in " ".join(
        story(db, bob)
    )


def test_who_gave_a_paid_order_back_is_told(db: Connection) -> None:
    order = reserve(db, item(db, refund_seconds=60), "ann")
    pay(db, order)
    call(db, "cancel", order.order_id, "ann")
    assert "The order was refunded, because the customer gave it back: the unit is" in " ".join(
        story(db, order)
    )


def test_another_amount_than_was_asked_for_is_told(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    open_sessions(db)
    assert event(db, "succeeded", order, amount=900) == "refund_due"
    told = story(db, order)
    assert f"Payment {order.payment_id} of 10.00 EUR was asked for." in told
    assert (
        f"9.00 EUR came for payment {order.payment_id} but could not be used (wrong amount): it is "
        "being sent back."
    ) in told
