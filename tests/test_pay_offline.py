"""Money that a till takes: by a reference, once, and money that comes online as well goes back."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from flashsale.testing.clock import Clock
from money_support import event, kinds, mails, open_session, open_sessions, payments, story, take
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
    reserve,
    rows,
    settle,
    status,
    sweep,
    value,
)


@pytest.fixture
def till(database_url: str) -> Any:
    with connect(database_url, "flashsale_tool") as conn:
        yield conn


@pytest.mark.parametrize("worker", ["has not come", "is at it", "has opened a session"])
def test_a_till_pays_an_order_and_its_session_is_voided(
    db: Connection, till: Connection, clock: Clock, worker: str
) -> None:
    order = reserve(db, item(db), "ann")
    if worker == "is at it":
        (job,) = take(db)
    elif worker == "has opened a session":
        open_sessions(db)
    mails(db)
    paid = call(till, "pay_offline", order.order_id, "cash-1", "eve")
    assert (paid.outcome, paid.status, paid.reference) == ("paid", "paid", "cash-1")
    assert (paid.payment_status, paid.amount, paid.currency) == ("succeeded", 1000, "EUR")
    assert (paid.paid_at, paid.checkout_url) == (clock.at(), None)
    if worker == "is at it":
        assert open_session(db, job) == "superseded"
    assert set(kinds(db)) == (
        set() if worker == "has not come" else {("void", f"s{order.payment_id}")}
    )
    assert mails(db) == [("paid", "ann")]
    clock.advance(100)
    settle(db)
    assert item_status(db, order.item_id).paid == 1
    assert rows(db, "select * from flashsale.dead_letter") == []


def test_the_same_call_again_changes_nothing(db: Connection, till: Connection) -> None:
    order = reserve(db, item(db), "ann")
    first = call(till, "pay_offline", order.order_id, "cash-1")
    again = call(till, "pay_offline", order.order_id, "cash-1")
    assert again.outcome == "already_paid"
    assert again[1:] == first[1:]
    assert value(db, "select count(*) from flashsale.history where action <> 'create_item'") == 1


def test_a_reference_pays_one_order_only(
    db: Connection, till: Connection, database_url: str
) -> None:
    shoe = item(db, stock=2)
    ann, bob = reserve(db, shoe, "ann"), reserve(db, shoe, "bob")
    with connect(database_url, autocommit=False) as first:
        call(first, "pay_offline", ann.order_id, "cash-1")
        second = Call(lambda: call(till, "pay_offline", bob.order_id, "cash-1"))
        eventually(lambda: blocked(db, till))
        first.commit()
        with pytest.raises(psycopg.Error) as error:
            second.result()
    assert (error.value.sqlstate, error.value.diag.constraint_name) == ("RV206", "reference_taken")
    assert status(db, bob.order_id).status == "reserved"
    assert call(till, "pay_offline", bob.order_id, "cash-2").outcome == "paid"


@pytest.mark.parametrize(
    "state", ["waiting", "settling", "expired", "cancelled", "paid", "refunded"]
)
def test_only_a_reserved_order_can_be_paid(
    db: Connection, till: Connection, clock: Clock, state: str
) -> None:
    shoe = item(db)
    order = reserve(db, shoe, "ann")
    reference = "cash-2"
    match state:
        case "waiting":
            order = reserve(db, shoe, "bob")
        case "settling":
            open_sessions(db)
            clock.advance(60)
        case "expired":
            clock.advance(60)
        case "cancelled":
            call(db, "cancel", order.order_id)
        case "paid":
            call(till, "pay_offline", order.order_id, "cash-1")
        case "refunded":
            call(till, "pay_offline", order.order_id, reference)
            call(db, "refund_order", order.order_id, "x")
    for _marked in range(2):
        with pytest.raises(psycopg.Error) as error:
            call(till, "pay_offline", order.order_id, reference)
        assert error.value.sqlstate == "RV203"
        call(db, "expire")
    with pytest.raises(psycopg.Error) as error:
        call(till, "pay_offline", 42, reference)
    assert error.value.sqlstate == "RV102"


@pytest.mark.parametrize("order_of_events", ["the till first", "the customer first"])
def test_an_order_that_is_paid_twice_keeps_one_of_them(
    db: Connection, till: Connection, order_of_events: str
) -> None:
    order = reserve(db, item(db), "ann")
    open_sessions(db)
    if order_of_events == "the till first":
        call(till, "pay_offline", order.order_id, "cash-1")
        assert event(db, "succeeded", order) == "refund_due"
        assert payments(db) == [("refund_due", "superseded"), ("succeeded", None)]
    else:
        assert event(db, "succeeded", order) == "paid"
        with pytest.raises(psycopg.Error) as error:
            call(till, "pay_offline", order.order_id, "cash-1")
        assert error.value.sqlstate == "RV203"
        assert payments(db) == [("succeeded", None)]


def test_a_till_may_not_record_money_of_the_provider(db: Connection, till: Connection) -> None:
    order = reserve(db, item(db), "ann")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        call(till, "pay", order.payment_id, "cash-1", 1000, "EUR")


def test_a_refund_of_what_a_till_took_is_paid_out_by_the_till(
    db: Connection, till: Connection, clock: Clock
) -> None:
    order = reserve(db, item(db, refund_seconds=60), "ann")
    call(till, "pay_offline", order.order_id, "cash-1", "eve")
    mails(db)
    with pytest.raises(psycopg.Error) as error:
        call(db, "cancel", order.order_id, "ann")
    assert error.value.sqlstate == "RV202"
    assert call(db, "refund_order", order.order_id, "too small").outcome == "refunded"
    assert kinds(db) == []
    assert [found for found in payments(db) if found[0] != "voided"] == [("refunded", "staff")]
    assert mails(db) == [("order_refunded", "ann")]
    told = " ".join(story(db, order))
    assert "A till took 10.00 EUR (cash-1)." in told
    assert "eve recorded the payment at the till." in told
    assert "The till pays 10.00 EUR out (cash-1)." in told
    assert "went back" not in told


@pytest.mark.parametrize("reference", [None, "", "r" * 256])
def test_a_reference_has_limits(db: Connection, till: Connection, reference: str | None) -> None:
    order = reserve(db, item(db), "ann")
    with pytest.raises(psycopg.Error) as error:
        call(till, "pay_offline", order.order_id, reference)
    assert error.value.sqlstate == "RV302"
    assert call(till, "pay_offline", order.order_id, "r" * 255).outcome == "paid"


def test_history_has_what_the_till_did(db: Connection, till: Connection) -> None:
    order = reserve(db, item(db), "ann")
    call(till, "pay_offline", order.order_id, "cash-1", "eve")
    noted = one(db, "select * from flashsale.history where action <> 'create_item'")
    assert (noted.staff, noted.action, noted.order_id) == ("eve", "pay_offline", order.order_id)
    assert noted.after == {"status": "paid", "reference": "cash-1"}
    sweep(db)
