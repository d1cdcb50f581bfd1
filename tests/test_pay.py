"""The arrival of money: in time, late, twice, or with a wrong amount."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from flashsale.testing.clock import Clock
from support import (
    Call,
    Connection,
    blocked,
    call,
    connect,
    eventually,
    item,
    item_status,
    many,
    pay,
    reserve,
    rows,
    status,
    statuses,
    sweep,
    value,
)


def payments(db: Connection) -> list[tuple[str, str | None]]:
    return [
        tuple(row)
        for row in rows(
            db,
            "select status::text, refund_reason from flashsale_data.payments order by payment_id",
        )
    ]


def jobs(db: Connection) -> list[tuple[str, int]]:
    return [
        (row.kind, row.payment_id)
        for row in rows(db, "select * from flashsale.take_payment_jobs(100, 30)")
    ]


def event(db: Connection, event_id: str, kind: str, order: Any, **changes: Any) -> str:
    values = {
        "session": f"s{order.payment_id}",
        "payment_id": str(order.payment_id),
        "amount": order.amount,
        "currency": order.currency,
    } | changes
    return str(
        value(
            db,
            "select flashsale.record_payment_event(%s, %s, %s, %s, %s, %s, now())",
            event_id,
            f"payment.{kind}",
            *values.values(),
        )
    )


def test_money_in_time_makes_the_order_final(db: Connection) -> None:
    shoe = item(db)
    order = reserve(db, shoe, "ann")
    paid = pay(db, order)
    assert (paid.outcome, paid.status, paid.payment_status) == ("paid", "paid", "succeeded")
    sweep(db)
    assert item_status(db, shoe).paid == 1


@pytest.mark.parametrize(
    ("seconds", "outcome"), [(-0.000001, "paid"), (0, "refund_due"), (0.001, "refund_due")]
)
def test_the_deadline_decides_to_the_microsecond(
    db: Connection, clock: Clock, seconds: float, outcome: str
) -> None:
    order = reserve(db, item(db), "ann")
    clock.set(order.expires_at, seconds)
    assert pay(db, order).outcome == outcome


def test_late_money_goes_back_once(db: Connection, clock: Clock) -> None:
    order = reserve(db, item(db), "ann")
    clock.advance(60)
    assert [pay(db, order).outcome for _ in range(3)] == ["refund_due"] * 3
    assert payments(db) == [("refund_due", "late")]
    assert jobs(db) == [("refund", order.payment_id)]


def test_money_that_waited_for_a_lock_past_the_deadline_goes_back(
    db: Connection, database_url: str
) -> None:
    order = reserve(db, item(db, hold_seconds=1), "ann")
    with connect(database_url, autocommit=False) as locker, connect(database_url) as payer:
        locker.execute(
            "select from flashsale_data.orders where order_id = %s for update", [order.order_id]
        )
        paying = Call(lambda: pay(payer, order))
        eventually(lambda: blocked(db, payer))
        eventually(lambda: status(db, order.order_id).status == "expired")
        locker.rollback()
        assert paying.result().outcome == "refund_due"
    assert payments(db) == [("refund_due", "late")]


def test_the_same_success_twice_pays_once(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    assert [
        event(db, "e1", "succeeded", order),
        event(db, "e1", "succeeded", order),
        event(db, "e2", "succeeded", order),
    ] == ["paid", "duplicate", "already_paid"]
    assert payments(db) == [("succeeded", None)]


def test_success_before_we_knew_the_session_counts(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    (job,) = rows(db, "select * from flashsale.take_payment_jobs(10, 30)")
    assert event(db, "e1", "succeeded", order, session="s-early") == "paid"
    opened = value(
        db,
        "select flashsale.payment_opened(%s, %s, %s, 's-early', 'http://x')",
        job.job_id,
        job.tries,
        job.payment_id,
    )
    assert opened == "ignored"
    assert status(db, order.order_id).payment_status == "succeeded"


def test_failed_after_succeeded_changes_nothing(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    event(db, "e1", "succeeded", order)
    assert event(db, "e2", "failed", order) == "ignored"
    assert status(db, order.order_id).payment_status == "succeeded"


def test_success_after_failed_counts_while_nothing_else_was_tried(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    assert event(db, "e1", "failed", order) == "failed"
    assert event(db, "e2", "succeeded", order) == "paid"


def test_after_a_failure_the_customer_may_try_again_within_the_same_deadline(
    db: Connection,
) -> None:
    order = reserve(db, item(db), "ann")
    event(db, "e1", "failed", order)
    again = call(db, "request_payment", order.order_id, "ann")
    assert again.outcome == "requested"
    assert again.payment_id > order.payment_id
    assert again.expires_at == order.expires_at
    assert pay(db, again).outcome == "paid"


def test_an_attempt_under_way_is_not_doubled(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    again = call(db, "request_payment", order.order_id, "ann")
    assert (again.outcome, again.payment_id) == ("existing", order.payment_id)


def test_only_a_reserved_order_takes_a_new_attempt(db: Connection, clock: Clock) -> None:
    shoe = item(db)
    order, waiting = reserve(db, shoe, "ann"), reserve(db, shoe, "bob")
    clock.advance(60)
    for order_id, customer in [(order.order_id, "ann"), (waiting.order_id, "bob")]:
        with pytest.raises(psycopg.Error) as error:
            call(db, "request_payment", order_id, customer)
        assert error.value.sqlstate == "RV203"
    with pytest.raises(psycopg.Error) as error:
        call(db, "request_payment", order.order_id, "bob")
    assert error.value.sqlstate == "RV102"


@pytest.mark.parametrize("first", [0, 1], ids=["the older", "the newer"])
def test_money_for_any_attempt_buys_and_the_other_s_goes_back(db: Connection, first: int) -> None:
    order = reserve(db, item(db), "ann")
    event(db, "e1", "failed", order)
    attempts = [order, call(db, "request_payment", order.order_id, "ann")]
    assert event(db, "e2", "succeeded", attempts[first]) == "paid"
    assert event(db, "e3", "succeeded", attempts[1 - first]) == "refund_due"
    assert sorted(payments(db)) == [("refund_due", "superseded"), ("succeeded", None)]


@pytest.mark.parametrize("wrong", [{"amount": 999}, {"amount": 1001}, {"currency": "USD"}])
def test_the_wrong_amount_goes_back_and_the_hold_stays(db: Connection, wrong: Any) -> None:
    order = reserve(db, item(db), "ann")
    assert event(db, "e1", "succeeded", order, **wrong) == "refund_due"
    assert status(db, order.order_id).status == "reserved"
    refund = one_refund(db)
    assert (refund.amount, refund.currency) == (
        wrong.get("amount", 1000),
        wrong.get("currency", "EUR"),
    )


def one_refund(db: Connection) -> Any:
    (refund,) = [
        j
        for j in rows(db, "select * from flashsale.take_payment_jobs(100, 30)")
        if j.kind == "refund"
    ]
    return refund


@pytest.mark.parametrize("payment_id", ["999", "abc", "", "-1", "99999999999999999999", None])
def test_money_for_an_unknown_payment_is_kept_shown_and_refunded(
    db: Connection, payment_id: str | None
) -> None:
    order = reserve(db, item(db), "ann")
    assert event(db, "e1", "succeeded", order, payment_id=payment_id, session="s-x") == "stray"
    assert event(db, "e2", "succeeded", order, payment_id=payment_id, session="s-x") == "stray"
    (shown,) = rows(db, "select * from flashsale.stray_payment")
    assert (shown.session_id, shown.status, shown.amount) == ("s-x", "refund_due", 1000)
    refund = one_refund(db)
    assert (
        call(db, "payment_refunded", refund.job_id, refund.tries, refund.payment_id)[0]
        == "refunded"
    )
    assert rows(db, "select * from flashsale.money_at_risk") == []


def test_money_on_another_session_of_a_payment_is_a_stray(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    (job,) = rows(db, "select * from flashsale.take_payment_jobs(10, 30)")
    call(db, "payment_opened", job.job_id, job.tries, job.payment_id, "s1", "http://x")
    assert event(db, "e1", "succeeded", order, session="s2") == "stray"
    assert event(db, "e2", "succeeded", order, session="s1") == "paid"


def test_a_session_that_we_know_decides_whatever_payment_the_event_names(db: Connection) -> None:
    shoe = item(db, stock=2)
    ann, bob = reserve(db, shoe, "ann"), reserve(db, shoe, "bob")
    for job in rows(db, "select * from flashsale.take_payment_jobs(10, 30)"):
        call(
            db, "payment_opened", job.job_id, job.tries, job.payment_id, f"s-{job.customer_id}", "u"
        )
    assert event(db, "e1", "failed", ann, session="s-bob") == "ignored"
    assert event(db, "e2", "succeeded", ann, session="s-bob") == "paid"
    assert event(db, "e3", "succeeded", ann, session="s-bob") == "already_paid"
    assert event(db, "e4", "voided", ann, session="s-bob") == "ignored"
    assert statuses(db, shoe) == {"ann": "reserved", "bob": "paid"}
    assert pay(db, bob, "s-bob").outcome == "already_paid"


def test_a_refund_is_settled_by_the_event_or_by_the_call_once(db: Connection, clock: Clock) -> None:
    order = reserve(db, item(db), "ann")
    clock.advance(60)
    pay(db, order)
    refund = one_refund(db)
    assert event(db, "e1", "refunded", order) == "refunded"
    assert (
        call(db, "payment_refunded", refund.job_id, refund.tries, refund.payment_id)[0] == "ignored"
    )
    assert payments(db) == [("refunded", "late")]


def test_events_of_other_kinds_are_stored_and_ignored(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    assert event(db, "e1", "disputed", order) == "ignored"
    assert value(db, "select outcome from flashsale.payment_event") == "ignored"


def test_late_money_is_kept_if_a_unit_is_free_and_nobody_waits(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db, stock=2, late_payment="keep_if_free")
    order = reserve(db, shoe, "ann")
    clock.advance(60)
    late = pay(db, order)
    assert (late.outcome, late.status, late.ticket) == ("paid", "paid", 2)
    assert late.payment_id == order.payment_id
    assert status(db, order.order_id).status == "expired"
    sweep(db)
    assert item_status(db, shoe).paid == 1
    assert item_status(db, shoe).available == 1
    again = call(db, "pay", order.payment_id, f"s{order.payment_id}", order.amount, "EUR")
    assert (again.outcome, again.order_id) == ("already_paid", late.order_id)
    assert status(db, order.order_id).payment_id is None  # the payment is the other order's now


def test_late_money_that_is_kept_keeps_its_session_so_other_money_goes_back(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db, stock=2, late_payment="keep_if_free")
    order = reserve(db, shoe, "ann")
    clock.advance(60)
    assert pay(db, order, "first").outcome == "paid"
    assert pay(db, order, "second").outcome == "stray"


def test_the_first_attempt_has_no_row_until_something_changes_it(db: Connection) -> None:
    shoe = item(db, stock=2)
    ann, bob = reserve(db, shoe, "ann"), reserve(db, shoe, "bob")
    assert (ann.payment_id, ann.payment_status, ann.amount) == (ann.order_id, "requested", 1000)
    call(db, "cancel", ann.order_id)
    assert payments(db) == []
    for order in (ann, bob):
        shown = status(db, order.order_id)
        assert (shown.payment_id, shown.payment_status) == (order.order_id, "requested")
    assert jobs(db) == [("open", bob.order_id)]
    assert payments(db) == [("voided", None), ("requested", None)]


def test_money_that_names_an_order_in_the_line_is_a_stray(db: Connection) -> None:
    shoe = item(db, stock=1)
    reserve(db, shoe, "ann")
    waiting = reserve(db, shoe, "bob")
    assert waiting.payment_id is None
    assert call(db, "pay", waiting.order_id, "s1", 1000, "EUR").outcome == "stray"
    assert status(db, waiting.order_id).payment_id is None


@pytest.mark.parametrize("spoiler", ["sold", "line", "other order", "closed", "paused"])
def test_late_money_goes_back_if_another_customer_may_get_the_unit(
    db: Connection, clock: Clock, spoiler: str
) -> None:
    shoe = item(db, stock=2, late_payment="keep_if_free")
    order = reserve(db, shoe, "ann")
    clock.advance(60)
    match spoiler:
        case "sold":
            many(db, shoe, ["bob"])
        case "line":
            many(db, shoe, ["bob", "cid"])
        case "other order":
            reserve(db, shoe, "ann")
        case "closed":
            call(db, "close_item", shoe)
        case "paused":
            call(db, "pause_item", shoe)
    assert pay(db, order).outcome == "refund_due"


def test_nonsense_is_refused(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    for args in [
        ("", 1, "EUR"),
        ("s", -1, "EUR"),
        ("s", 1, "eur"),
        (None, 1, "EUR"),
        ("s", None, "EUR"),
    ]:
        with pytest.raises(psycopg.Error) as error:
            call(db, "pay", order.payment_id, *args)
        assert error.value.sqlstate == "RV303"


def test_late_money_that_no_worker_has_asked_for_buys_and_leaves_nothing_to_do(
    db: Connection, clock: Clock
) -> None:
    """The void of the hold that ended names the payment that has bought by now: it is dropped.

    Whatever ends a hold enqueues a void for each attempt that has a row, and the job finds out
    whether there is anything to void. Here the row is there because pay has just inserted it.
    """
    shoe = item(db, stock=2, late_payment="keep_if_free")
    (ann,) = many(db, shoe, ["ann"])
    clock.advance(60)
    bought = pay(db, ann)
    assert (bought.outcome, bought.ticket) == ("paid", 2)
    kinds = "select message ->> 'kind' as kind from pgmq.q_payments order by 1"
    assert [job.kind for job in rows(db, kinds)] == ["open", "void"]
    assert rows(db, "select * from flashsale.take_payment_jobs(10, 30)") == []
    assert rows(db, kinds) == []
    assert status(db, bought.order_id).payment_status == "succeeded"
    assert status(db, ann.order_id).status == "expired"
