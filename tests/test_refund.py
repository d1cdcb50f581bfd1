"""Refunds of paid orders: by staff, by the customer, and at the provider. Each happens once."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from flashsale.testing.clock import Clock
from money_support import event, kinds, mails, open_sessions, payments, story, take
from support import (
    Call,
    Connection,
    blocked,
    call,
    connect,
    eventually,
    item,
    item_status,
    one,
    pay,
    reserve,
    rows,
    settle,
    status,
    statuses,
    sweep,
    value,
)


def paid(db: Connection, **terms: Any) -> Any:
    """A paid order."""
    order = reserve(db, item(db, **terms), "ann")
    open_sessions(db)
    assert pay(db, order).outcome == "paid"
    mails(db)
    return order


def sent_back(db: Connection) -> None:
    """The provider does the refund that is due."""
    (job,) = take(db)
    assert job.kind == "refund"
    assert call(db, "payment_refunded", job.job_id, job.tries, job.payment_id)[0] == "refunded"


def test_staff_refund_an_order_once_and_its_unit_goes_to_the_line(
    db: Connection, clock: Clock
) -> None:
    order = paid(db)
    bob = reserve(db, order.item_id, "bob")
    settle(db)
    clock.advance(100)
    refunded = call(db, "refund_order", order.order_id, "broken box", True, "eve")
    assert (refunded.outcome, refunded.status, refunded.ended_at) == (
        "refunded",
        "refunded",
        clock.at(),
    )
    again = call(db, "refund_order", order.order_id, "again", False, "dan")
    assert again.outcome == "already_refunded"
    assert again[1:] == refunded[1:]
    assert payments(db) == [("refund_due", "staff")]
    assert one(db, "select * from flashsale.money_at_risk").refund_reason == "staff"
    sent_back(db)
    assert payments(db) == [("refunded", "staff")]
    assert mails(db) == [("order_refunded", "ann")]
    settle(db)
    assert statuses(db, order.item_id) == {"ann": "refunded", "bob": "reserved"}
    assert item_status(db, order.item_id).paid == 0
    assert status(db, bob.order_id).status == "reserved"


def test_a_unit_that_is_kept_out_leaves_the_stock(db: Connection) -> None:
    order = paid(db, stock=2)
    reserve(db, order.item_id, "bob")
    cid = reserve(db, order.item_id, "cid")
    call(db, "refund_order", order.order_id, "broken", False)
    settle(db)
    shown = item_status(db, order.item_id)
    assert (shown.stock, shown.withdrawing, shown.paid, shown.reserved) == (1, 0, 0, 1)
    assert status(db, cid.order_id).status == "waiting"


def test_a_unit_that_was_to_be_withdrawn_anyway_is_not_withdrawn_twice(db: Connection) -> None:
    shoe = item(db)
    order = reserve(db, shoe, "ann")
    call(db, "withdraw", shoe, 1)
    pay(db, order)
    call(db, "refund_order", order.order_id, "broken", False)
    settle(db)
    shown = item_status(db, shoe)
    assert (shown.stock, shown.withdrawing, shown.available) == (0, 0, 0)


def test_history_tells_when_who_what_and_why(db: Connection, clock: Clock) -> None:
    order = paid(db)
    call(db, "refund_order", order.order_id, "broken box", False, "eve")
    noted = one(db, "select * from flashsale.history where action <> 'create_item'")
    assert (noted.at, noted.staff, noted.action) == (clock.at(), "eve", "refund_order")
    assert (noted.item_id, noted.order_id) == (order.item_id, order.order_id)
    assert noted.before == {"status": "paid"}
    assert noted.after == {"status": "refunded", "return_units": False}
    assert noted.reason == "broken box"
    told = " ".join(story(db, order))
    assert "eve refunded the order; its unit stays off sale. Reason: broken box" in told
    assert f"10.00 EUR came for payment {order.payment_id}, at" in told
    assert "refunded by staff: the unit is not theirs any more. " in told
    assert story(db, order)[-1] == f"10.00 EUR of payment {order.payment_id} is being sent back."
    sent_back(db)
    assert story(db, order)[-1] == f"10.00 EUR of payment {order.payment_id} went back."


def test_without_a_name_history_has_the_login(db: Connection) -> None:
    order = paid(db)
    call(db, "refund_order", order.order_id, "x")
    assert value(
        db, "select staff = session_user from flashsale.history where action = 'refund_order'"
    )


@pytest.mark.parametrize("state", ["reserved", "waiting", "settling", "expired", "cancelled"])
@pytest.mark.parametrize("return_units", [True, False])
def test_only_a_paid_order_can_be_refunded(
    db: Connection, clock: Clock, state: str, return_units: bool
) -> None:
    shoe = item(db)
    order = reserve(db, shoe, "ann")
    match state:
        case "waiting":
            order = reserve(db, shoe, "bob")
        case "settling":
            open_sessions(db)
            clock.advance(60)
            sweep(db)
        case "expired":
            clock.advance(60)
        case "cancelled":
            call(db, "cancel", order.order_id)
    with pytest.raises(psycopg.Error) as error:
        call(db, "refund_order", order.order_id, "x", return_units)
    assert (error.value.sqlstate, error.value.diag.constraint_name) == ("RV207", "not_paid")
    assert item_status(db, shoe).withdrawing == 0
    with pytest.raises(psycopg.Error) as error:
        call(db, "refund_order", 42, "x", return_units)
    assert error.value.sqlstate == "RV102"


@pytest.mark.parametrize(
    ("reason", "staff"),
    [("", "eve"), (None, "eve"), ("x" * 1001, "eve"), ("x", ""), ("x", "e" * 129)],
)
def test_a_reason_and_a_name_have_limits(db: Connection, reason: Any, staff: str) -> None:
    order = paid(db)
    with pytest.raises(psycopg.Error) as error:
        call(db, "refund_order", order.order_id, reason, True, staff)
    assert error.value.sqlstate == "RV302"
    assert status(db, order.order_id).status == "paid"


def test_the_customer_of_a_refunded_order_may_ask_anew(db: Connection) -> None:
    order = paid(db, stock=2)
    call(db, "refund_order", order.order_id, "x")
    assert reserve(db, order.item_id, "ann").outcome == "reserved"


@pytest.mark.parametrize(
    ("refund_seconds", "after", "customer", "outcome"),
    [
        (10, 9.999, "ann", "refunded"),
        (10, 10, "ann", "RV202"),
        (None, 0, "ann", "RV202"),
        (10, 1, None, "RV202"),
        (10, 1, "bob", "RV102"),
    ],
)
def test_a_customer_may_give_an_order_back_for_refund_seconds(
    db: Connection,
    clock: Clock,
    refund_seconds: int | None,
    after: float,
    customer: str | None,
    outcome: str,
) -> None:
    order = paid(db, refund_seconds=refund_seconds)
    clock.advance(after)
    if outcome != "refunded":
        with pytest.raises(psycopg.Error) as error:
            call(db, "cancel", order.order_id, customer)
        assert error.value.sqlstate == outcome
        return
    answer = call(db, "cancel", order.order_id, customer)
    assert (answer.outcome, answer.status) == ("refunded", "refunded")
    assert call(db, "cancel", order.order_id, customer).outcome == "already_ended"
    assert payments(db) == [("refund_due", "customer")]
    sent_back(db)
    assert mails(db) == [("order_refunded", "ann")]
    settle(db)
    assert item_status(db, order.item_id).available == 1


def test_a_refund_at_the_provider_ends_the_order_and_is_told(db: Connection, clock: Clock) -> None:
    order = paid(db)
    bob = reserve(db, order.item_id, "bob")
    assert event(db, "refunded", order) == "refunded"
    assert event(db, "refunded", order, event_id="another") == "ignored"
    assert status(db, order.order_id).status == "refunded"
    assert payments(db) == [("refunded", "provider")]
    assert mails(db) == [("order_refunded", "ann")]
    assert kinds(db) == []
    settle(db)
    assert status(db, bob.order_id).status == "reserved"
    assert item_status(db, order.item_id).paid == 0
    noted = one(db, "select * from flashsale.history where action <> 'create_item'")
    assert (noted.staff, noted.action, noted.order_id) == (
        None,
        "refund_at_provider",
        order.order_id,
    )
    told = " ".join(story(db, order))
    assert "The order was refunded at the payment provider" in told
    assert f"The provider has refunded session s{order.payment_id}." in told


def test_a_refund_that_is_told_before_its_money_is_one_all_the_same(
    db: Connection, clock: Clock
) -> None:
    order = reserve(db, item(db), "ann")
    open_sessions(db)
    clock.advance(1)
    assert event(db, "refunded", order) == "refunded"
    assert event(db, "succeeded", order, at=clock.at()) == "refund_due"
    assert status(db, order.order_id).status == "refunded"
    assert payments(db) == [("refunded", "provider")]
    assert kinds(db) == []
    settle(db)
    assert item_status(db, order.item_id).available == 1


def test_a_refund_follows_its_money_to_the_order_that_it_has_bought(
    db: Connection, clock: Clock, database_url: str
) -> None:
    order = reserve(db, item(db, stock=2, late_payment="keep_if_free"), "ann")
    open_sessions(db)
    clock.advance(60)
    with connect(database_url, autocommit=False) as one_, connect(database_url) as two:
        assert event(one_, "succeeded", order) == "paid"
        waiting = Call(lambda: event(two, "refunded", order))
        eventually(lambda: blocked(db, two))
        one_.commit()
        assert waiting.result() == "refunded"
    assert payments(db) == [("refunded", "provider")]
    late = status(db, order.order_id).late_order_id
    assert status(db, late).status == "refunded"
    settle(db)
    assert item_status(db, order.item_id).available == 2


def test_a_refund_of_a_part_of_the_money_changes_nothing(db: Connection) -> None:
    order = paid(db)
    assert event(db, "refunded", order, amount=400) == "ignored"
    assert status(db, order.order_id).status == "paid"
    assert event(db, "refunded", order, amount=None) == "refunded"


def test_a_refund_of_a_part_does_not_stand_for_the_one_that_is_due(db: Connection) -> None:
    order = paid(db)
    call(db, "refund_order", order.order_id, "x")
    assert event(db, "refunded", order, amount=400) == "ignored"
    assert payments(db) == [("refund_due", "staff")]
    sent_back(db)
    assert mails(db) == [("order_refunded", "ann")]


def test_a_refund_that_is_told_before_its_late_money_sells_nothing(
    db: Connection, clock: Clock
) -> None:
    order = reserve(db, item(db, late_payment="keep_if_free"), "ann")
    open_sessions(db)
    clock.advance(60)
    settle(db)
    clock.advance(60)
    settle(db)
    assert event(db, "refunded", order, amount=400) == "ignored"  # a part
    assert event(db, "refunded", order) == "refunded"
    assert event(db, "succeeded", order) == "refund_due"
    settle(db)
    assert item_status(db, order.item_id).available == 1
    assert rows(db, "select * from flashsale.money_at_risk") == []


@pytest.mark.parametrize("first", ["staff", "provider"])
def test_a_refund_by_staff_and_one_at_the_provider_are_one(
    db: Connection, database_url: str, first: str
) -> None:
    order = paid(db)
    ways: dict[str, Any] = {
        "staff": lambda conn: call(conn, "refund_order", order.order_id, "x"),
        "provider": lambda conn: event(conn, "refunded", order),
    }
    other = "provider" if first == "staff" else "staff"
    with connect(database_url, autocommit=False) as one_, connect(database_url) as two:
        ways[first](one_)
        waiting = Call(lambda: ways[other](two))
        eventually(lambda: blocked(db, two))
        one_.commit()
        waiting.result()
    assert [found for found, _ in payments(db)] == ["refunded"]
    settle(db)
    assert item_status(db, order.item_id).available == 1
    assert rows(db, "select * from flashsale.money_at_risk") == []


def test_money_for_another_session_of_a_refunded_order_goes_back(
    db: Connection,
) -> None:
    order = reserve(db, item(db), "ann")
    open_sessions(db)
    event(db, "failed", order, payable=True)
    again = call(db, "request_payment", order.order_id)
    open_sessions(db)
    assert event(db, "succeeded", again) == "paid"
    call(db, "refund_order", order.order_id, "x")
    assert event(db, "succeeded", order) == "refund_due"
    assert payments(db) == [("refund_due", "superseded"), ("refund_due", "staff")]


def test_an_order_that_late_money_has_bought_can_be_refunded(db: Connection, clock: Clock) -> None:
    order = reserve(db, item(db, stock=2, late_payment="keep_if_free"), "ann")
    clock.advance(60)
    late = pay(db, order)
    assert call(db, "refund_order", late.order_id, "x").outcome == "refunded"
    sent_back(db)
    settle(db)
    assert item_status(db, order.item_id).available == 2
    assert status(db, order.order_id).late_order_id == late.order_id


def test_refunding_waits_for_a_sweep_and_no_sweep_waits_for_it(
    db: Connection, database_url: str
) -> None:
    order = paid(db)
    with connect(database_url, autocommit=False) as staff:
        call(staff, "refund_order", order.order_id, "x", False)
        db.execute("set lock_timeout = '2s'")
        sweep(db)
        staff.commit()
    settle(db)
    assert item_status(db, order.item_id).stock == 0


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (4900, "EUR", "49.00 EUR"),
        (5, "EUR", "0.05 EUR"),
        (1250, "KWD", "1.250 KWD"),
        (4900, "JPY", "4900 JPY"),
        (12345, "CLF", "1.2345 CLF"),
        (100, "USD", "1.00 USD"),
    ],
)
def test_amounts_are_in_their_currency_s_own_format(
    db: Connection, amount: int, currency: str, text: str
) -> None:
    assert value(db, "select flashsale.money(%s, %s)", amount, currency) == text
    order = reserve(db, item(db, price=amount, currency=currency), "ann")
    open_sessions(db)
    call(db, "pay", order.payment_id, f"s{order.payment_id}", amount, currency)
    told = story(db, order)
    assert any(f"of {text} was asked for" in line for line in told)
    assert any(line.startswith(f"{text} came for payment") for line in told)
