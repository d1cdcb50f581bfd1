"""Settling: at the deadline the provider is asked before the unit is free; any attempt buys."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from flashsale.testing.clock import Clock
from money_support import (
    captured,
    event,
    kinds,
    mails,
    make_due,
    open_session,
    open_sessions,
    payments,
    story,
    take,
    voided,
)
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
    reserve,
    rows,
    settle,
    status,
    statuses,
    sweep,
    value,
)


def held(db: Connection, **terms: Any) -> Any:
    """An order with an open session."""
    order = reserve(db, item(db, **terms), "ann")
    open_sessions(db)
    return order


@pytest.mark.parametrize("told_by", ["the event", "the answer to the void"])
@pytest.mark.parametrize("marked", [False, True], ids=["before the sweep", "after the sweep"])
@pytest.mark.parametrize(
    ("captured_before", "late", "outcome"),
    [(1.3, 1.2, "paid"), (0.000001, 1.9, "paid"), (0, 0.5, "refund_due"), (-0.1, 1, "refund_due")],
)
def test_money_is_judged_by_its_time_though_we_hear_of_it_after_the_deadline(
    db: Connection,
    clock: Clock,
    told_by: str,
    marked: bool,
    captured_before: float,
    late: float,
    outcome: str,
) -> None:
    order = held(db)
    clock.set(order.expires_at, -captured_before)
    at = clock.at()
    clock.set(order.expires_at, 0.1)
    if marked:
        sweep(db)
        assert value(db, "select status from flashsale_data.orders") == "settling"
    assert status(db, order.order_id).status == "settling"
    clock.set(order.expires_at, late)
    if told_by == "the event":
        assert event(db, "succeeded", order, at=at) == outcome
    else:
        sweep(db)
        (void,) = take(db)
        assert captured(db, void, at) == outcome
    shown = status(db, order.order_id)
    settle(db)
    if outcome == "paid":
        assert (shown.status, shown.paid_at) == ("paid", at)
        assert mails(db) == [("paid", "ann")]
    else:
        assert status(db, order.order_id).status == "expired"
        assert payments(db) == [("refund_due", "late")]


def test_the_unit_is_not_free_while_its_order_settles(db: Connection, clock: Clock) -> None:
    order = held(db)
    bob = reserve(db, order.item_id, "bob")
    clock.set(order.expires_at)
    swept = sweep(db)
    assert (swept.expired, swept.promoted) == (0, 0)
    assert statuses(db, order.item_id) == {"ann": "settling", "bob": "waiting"}
    assert item_status(db, order.item_id).reserved == 1
    assert mails(db) == []
    (void,) = take(db)
    assert (void.kind, void.session_id) == ("void", f"s{order.payment_id}")
    assert voided(db, void) == "voided"
    assert status(db, order.order_id).status == "expired"  # at once
    assert sweep(db).promoted == 1
    assert status(db, bob.order_id).status == "reserved"
    assert mails(db) == [("expired", "ann")]


@pytest.mark.parametrize("kind", ["failed", "voided"])
def test_the_event_that_no_money_came_ends_the_settling_at_once(
    db: Connection, clock: Clock, kind: str
) -> None:
    order = held(db)
    clock.set(order.expires_at)
    sweep(db)
    assert event(db, kind, order) == kind
    assert value(db, "select status from flashsale_data.orders") == "expired"
    assert mails(db) == [("expired", "ann")]


def test_a_clock_that_steps_back_ends_nothing_before_it_began(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=2, refund_seconds=60)
    orders = many(db, shoe, ["ann", "bob"])
    open_sessions(db)
    clock.advance(5)
    assert event(db, "succeeded", orders[1]) == "paid"
    clock.set(orders[0].expires_at)
    sweep(db)
    clock.set(orders[0].created_at)
    assert event(db, "voided", orders[0]) == "voided"
    assert call(db, "refund_order", orders[1].order_id, "x").outcome == "refunded"
    assert statuses(db, shoe) == {"ann": "expired", "bob": "refunded"}
    assert rows(db, "select * from flashsale.violation") == []


def test_a_provider_that_hangs_keeps_the_unit_for_settle_seconds_only(
    db: Connection, clock: Clock
) -> None:
    order = held(db, settle_seconds=5)
    clock.set(order.expires_at)
    sweep(db)
    clock.advance(4.9)
    sweep(db)
    assert status(db, order.order_id).status == "settling"
    clock.advance(0.1)
    assert sweep(db).expired == 1
    assert status(db, order.order_id).status == "expired"
    in_time = order.expires_at.replace(microsecond=0)
    assert event(db, "succeeded", order, at=in_time) == "refund_due"
    assert payments(db) == [("refund_due", "late")]


def test_without_settle_seconds_a_hold_expires_at_once(db: Connection, clock: Clock) -> None:
    order = held(db, settle_seconds=0)
    clock.set(order.expires_at)
    assert status(db, order.order_id).status == "expired"
    assert sweep(db).expired == 1
    assert kinds(db) == [("void", f"s{order.payment_id}")]


def test_without_a_session_there_is_nothing_to_settle(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=2)
    ann, _bob = many(db, shoe, ["ann", "bob"])
    for job in take(db):
        if job.order_id == ann.order_id:
            event(db, "failed", ann)
    clock.advance(60)
    assert sweep(db).expired == 2
    assert statuses(db, shoe) == {"ann": "expired", "bob": "expired"}


def test_a_session_that_opens_after_the_deadline_is_not_waited_for(
    db: Connection, clock: Clock
) -> None:
    order = reserve(db, item(db), "ann")
    (job,) = take(db)
    clock.set(order.expires_at)
    assert open_session(db, job) == "superseded"
    assert status(db, order.order_id).status == "expired"
    assert sweep(db).expired == 1
    assert event(db, "succeeded", order, at=clock.at(-1)) == "refund_due"


@pytest.mark.parametrize("why", ["no session", "no settling"])
def test_what_is_shown_as_expired_is_not_paid_though_no_sweep_has_seen_it(
    db: Connection, clock: Clock, why: str
) -> None:
    order = reserve(db, item(db, settle_seconds=0 if why == "no settling" else 2), "ann")
    if why == "no settling":
        open_sessions(db)
    clock.set(order.expires_at, 0.1)
    assert status(db, order.order_id).status == "expired"
    assert event(db, "succeeded", order, at=clock.at(-1)) == "refund_due"
    assert payments(db) == [("refund_due", "late")]


@pytest.mark.parametrize(
    ("told", "paid_at"),
    [(-61, 0), (-30, -30), (0, 0), (5, 0)],
    ids=["before the session", "while it was open", "now", "in the future"],
)
def test_the_provider_s_time_counts_if_it_can_be_true(
    db: Connection, clock: Clock, told: int, paid_at: int
) -> None:
    order = held(db, hold_seconds=600)
    clock.advance(60)
    assert event(db, "succeeded", order, at=clock.at(told)) == "paid"
    assert status(db, order.order_id).paid_at == clock.at(paid_at)


def test_a_customer_whose_order_settles_gets_that_order(db: Connection, clock: Clock) -> None:
    order = held(db, stock=5)
    clock.set(order.expires_at)
    for _marked in range(2):
        for key in (None, "k"):
            again = reserve(db, order.item_id, "ann", key)
            assert (again.outcome, again.order_id, again.status) == (
                "existing",
                order.order_id,
                "settling",
            )
    clock.advance(2)
    sweep(db)
    assert reserve(db, order.item_id, "ann").ticket == 2
    assert reserve(db, order.item_id, "ann", "k").order_id == order.order_id


def test_what_settles_can_neither_be_cancelled_nor_paid_again(db: Connection, clock: Clock) -> None:
    order = held(db)
    clock.set(order.expires_at)
    for _marked in range(2):
        answer = call(db, "cancel", order.order_id, "ann")
        assert (answer.outcome, answer.status) == ("settling", "settling")
        with pytest.raises(psycopg.Error) as error:
            call(db, "request_payment", order.order_id, "ann")
        assert error.value.sqlstate == "RV203"
        sweep(db)


def test_settling_orders_hide_no_other_hold_and_are_not_listed_again(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db, stock=40, settle_seconds=60)
    many(db, shoe, [f"c{n}" for n in range(20)])
    open_sessions(db)
    clock.advance(1)
    many(db, shoe, [f"d{n}" for n in range(10)])
    clock.advance(60)
    swept = []
    for _ in range(4):
        call(db, "publish_events")  # else there is more for the feed
        swept.append(call(db, "sweep", "test", 10))
    assert [s.more for s in swept] == [True, True, True, False]
    assert [s.expired for s in swept] == [0, 0, 10, 0]
    due = rows(db, "select * from flashsale.begin_sweep('runner')")
    assert [d.overdue_ids for d in due if d.overdue_ids] == []
    assert call(db, "expire", 5)[0] == 0
    clock.advance(60)
    assert call(db, "expire", 5)[0] == 5
    assert sum(s.expired for s in [call(db, "sweep", "test", 10) for _ in range(2)]) == 15


def test_settling_orders_do_not_use_up_the_limit_of_expire(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=40, settle_seconds=60)
    many(db, shoe, [f"c{n}" for n in range(20)])
    open_sessions(db)
    clock.advance(1)
    many(db, shoe, [f"d{n}" for n in range(10)])
    clock.advance(59)
    assert call(db, "expire", 20)[0] == 0
    clock.advance(1)
    assert [call(db, "expire", 5)[0] for _ in range(3)] == [5, 5, 0]


def test_a_void_finds_the_session_that_its_caller_could_not_see(
    db: Connection, database_url: str
) -> None:
    order = reserve(db, item(db), "ann")
    with connect(database_url, autocommit=False) as tool:
        tool.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        value(tool, "select count(*) from flashsale_data.payments")  # takes the snapshot
        open_sessions(db)
        call(tool, "cancel", order.order_id)
        tool.commit()
    (void,) = take(db)
    assert (void.kind, void.session_id) == ("void", f"s{order.payment_id}")
    assert voided(db, void) == "voided"


def test_the_void_of_an_order_without_sessions_leaves_no_job(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    call(db, "cancel", order.order_id)
    assert take(db) == []
    assert value(db, "select count(*) from pgmq.q_payments") == 0


# Any attempt buys


@pytest.mark.parametrize("payable", [None, True])
@pytest.mark.parametrize("marked", [False, True])
def test_money_for_an_older_attempt_buys_and_the_other_sessions_are_voided(
    db: Connection, clock: Clock, payable: bool | None, marked: bool
) -> None:
    order = held(db)
    assert event(db, "failed", order, payable=payable) == "failed"
    again = call(db, "request_payment", order.order_id, "ann")
    open_sessions(db)
    clock.set(order.expires_at, -1)
    at = clock.at()
    clock.advance(2)
    if marked:
        sweep(db)
    assert event(db, "succeeded", order, at=at) == "paid"
    assert payments(db) == [("succeeded", None), ("open", None)]
    assert set(kinds(db)) == {("void", f"s{again.payment_id}")}
    assert event(db, "succeeded", again, at=at) == "refund_due"
    assert payments(db) == [("succeeded", None), ("refund_due", "superseded")]


def test_a_failed_session_that_can_still_be_paid_is_waited_for(
    db: Connection, clock: Clock
) -> None:
    order = held(db)
    event(db, "failed", order, payable=True)
    clock.set(order.expires_at, 0.5)
    sweep(db)
    assert status(db, order.order_id).status == "settling"
    (void,) = take(db)
    assert (void.kind, void.session_id) == ("void", f"s{order.payment_id}")
    assert event(db, "succeeded", order, at=clock.at(-1)) == "paid"
    assert voided(db, void) == "ignored"


def test_a_failure_that_is_final_after_all_ends_the_settling(db: Connection, clock: Clock) -> None:
    order = held(db)
    event(db, "failed", order, payable=True)
    clock.set(order.expires_at)
    sweep(db)
    assert event(db, "failed", order, payable=False) == "failed"
    assert value(db, "select status from flashsale_data.orders") == "expired"


def test_a_session_that_we_hear_of_after_the_hold_s_end_is_voided(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    take(db)  # the worker opens a session, and dies
    call(db, "cancel", order.order_id)
    make_due(db)
    take(db)
    assert event(db, "failed", order, payable=True) == "failed"
    make_due(db)
    assert [(job.kind, job.session_id) for job in take(db)] == [("void", f"s{order.payment_id}")]


def test_settling_goes_on_while_another_session_can_be_paid(db: Connection, clock: Clock) -> None:
    order = held(db)
    event(db, "failed", order, payable=True)
    call(db, "request_payment", order.order_id, "ann")
    open_sessions(db)
    clock.set(order.expires_at)
    sweep(db)
    (first,), (second,) = take(db), take(db)
    assert voided(db, second) == "voided"
    assert status(db, order.order_id).status == "settling"
    assert voided(db, first) == "voided"
    assert status(db, order.order_id).status == "expired"


@pytest.mark.parametrize("marked", [False, True])
def test_late_money_of_one_session_does_not_end_what_another_may_still_buy(
    db: Connection, clock: Clock, marked: bool
) -> None:
    order = held(db, stock=5, late_payment="keep_if_free")
    event(db, "failed", order, payable=True)
    again = call(db, "request_payment", order.order_id, "ann")
    open_sessions(db)
    clock.set(order.expires_at, -1)
    in_time = clock.at()
    clock.advance(2)
    if marked:
        sweep(db)
    assert event(db, "succeeded", again, at=clock.at()) == "refund_due"
    assert status(db, order.order_id).status == "settling"
    assert event(db, "succeeded", order, at=in_time) == "paid"
    assert item_status(db, order.item_id).issued == 1


# Money that comes too late


def test_money_after_a_cancellation_always_goes_back(db: Connection, clock: Clock) -> None:
    order = held(db, stock=5, late_payment="keep_if_free")
    at = clock.at()
    call(db, "cancel", order.order_id)
    clock.advance(1.5)
    assert event(db, "succeeded", order, at=at) == "refund_due"
    assert payments(db) == [("refund_due", "cancelled")]
    assert statuses(db, order.item_id) == {"ann": "cancelled"}


@pytest.mark.parametrize("marked", ["not", "settling", "expired"])
def test_late_money_that_is_kept_is_told_by_the_old_order_and_by_one_e_mail(
    db: Connection, clock: Clock, marked: str
) -> None:
    order = held(db, stock=5, late_payment="keep_if_free")
    clock.set(order.expires_at, 0.1)
    if marked != "not":
        sweep(db)
    if marked == "expired":
        clock.advance(2)
        sweep(db)
    assert event(db, "succeeded", order, at=clock.at()) == "paid"
    old = status(db, order.order_id)
    new = status(db, old.late_order_id)
    assert (old.status, new.status, new.customer_id, new.ticket) == ("expired", "paid", "ann", 2)
    assert mails(db) == [("paid_late", "ann")]
    told = " ".join(story(db, old))
    assert f"bought order {new.order_id}" in told
    assert "without payment" not in told
    assert "10.00 EUR of payment" in " ".join(story(db, new))
    settle(db)
    assert item_status(db, order.item_id).available == 4


@pytest.mark.parametrize("sessions", [("s", "s"), ("s", "t")], ids=["one session", "two"])
def test_two_events_at_once_of_a_session_that_we_do_not_know_have_one_effect(
    db: Connection, database_url: str, clock: Clock, sessions: tuple[str, str]
) -> None:
    order = reserve(db, item(db, stock=5, late_payment="keep_if_free"), "ann")
    clock.advance(60)
    sweep(db)
    one, other = sessions
    with connect(database_url, autocommit=False) as first, connect(database_url) as second:
        assert event(first, "succeeded", order, session=one, event_id="1") == "paid"
        telling = Call(lambda: event(second, "succeeded", order, session=other, event_id="2"))
        eventually(lambda: blocked(db, second))
        first.commit()
        assert telling.result() == ("already_paid" if one == other else "stray")
    assert item_status(db, order.item_id).issued == 2
    expected = [("succeeded", None), ("refund_due", "stray")]
    assert payments(db) == (expected[:1] if one == other else expected)


@pytest.mark.parametrize("said", ["a session opened in vain", "opened too late", "no session"])
def test_who_could_not_pay_is_not_told_that_they_did_not(
    db: Connection, clock: Clock, said: str
) -> None:
    order = reserve(db, item(db), "ann")
    (job,) = take(db)
    if said == "a session opened in vain":
        open_session(db, job)
    clock.set(order.expires_at, 3)
    sweep(db)
    clock.advance(3)
    sweep(db)
    if said == "opened too late":
        open_session(db, job)
    (mail,) = rows(db, "select message from flashsale.take_notifications(10, 30)")
    assert mail.message["kind"] == "expired"
    assert mail.message["could_pay"] is (said == "a session opened in vain")
