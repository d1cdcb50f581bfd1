"""Staff move the running deadlines of an item later, never earlier."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from prove.judge.records import FinalTables

from flashsale.testing.clock import Clock
from money_support import event, make_due, open_session, open_sessions, take, unavailable, voided
from support import (
    Call,
    Connection,
    blocked,
    call,
    connect,
    eventually,
    item,
    many,
    one,
    pay,
    reserve,
    rows,
    status,
    statuses,
    sweep,
    value,
)


def test_running_deadlines_of_the_item_move_and_no_others(db: Connection, clock: Clock) -> None:
    shoe, hat = item(db, stock=4), item(db, "hat")
    over = reserve(db, shoe, "ann")
    clock.advance(30)
    running, paid = reserve(db, shoe, "bob"), reserve(db, shoe, "cid")
    pay(db, paid)
    other = reserve(db, hat, "bob")
    clock.advance(30)
    assert call(db, "extend_holds", shoe, 100, "our site was down", "eve")[0] == 1
    assert status(db, over.order_id).status == "expired"
    assert status(db, paid.order_id).expires_at == paid.expires_at
    assert status(db, other.order_id).expires_at == other.expires_at
    moved = status(db, running.order_id).expires_at
    assert (moved - running.expires_at).total_seconds() == 100
    clock.advance(129)
    sweep(db)
    assert statuses(db, shoe) == {"ann": "expired", "bob": "reserved", "cid": "paid"}
    noted = one(db, "select * from flashsale.history where action <> 'create_item'")
    assert (noted.staff, noted.action, noted.item_id) == ("eve", "extend_holds", shoe)
    assert (noted.after, noted.reason) == ({"seconds": 100, "extended": 1}, "our site was down")


def test_money_before_the_new_deadline_buys(db: Connection, clock: Clock) -> None:
    order = reserve(db, item(db), "ann")
    open_sessions(db)
    call(db, "extend_holds", order.item_id, 60, "x")
    clock.advance(119)
    assert event(db, "succeeded", order, at=clock.at()) == "paid"


def test_what_settles_is_over(db: Connection, clock: Clock) -> None:
    order = reserve(db, item(db), "ann")
    open_sessions(db)
    clock.advance(60)
    sweep(db)
    assert call(db, "extend_holds", order.item_id, 60, "x")[0] == 0
    assert status(db, order.order_id).status == "settling"


def test_a_hold_that_came_due_while_it_waited_is_not_revived(
    db: Connection, database_url: str, clock: Clock
) -> None:
    shoe = item(db, stock=2)
    ann, _bob = many(db, shoe, ["ann", "bob"])
    with connect(database_url, autocommit=False) as payer, connect(database_url) as staff:
        payer.execute(
            "select from flashsale_data.orders where order_id = %s for update", [ann.order_id]
        )
        extending = Call(lambda: call(staff, "extend_holds", shoe, 60, "x"))
        eventually(lambda: blocked(db, staff))
        clock.advance(60)
        payer.rollback()
        assert extending.result()[0] == 0
    assert value(db, "select flashsale.expire()") == 2


@pytest.mark.parametrize(
    ("args", "sqlstate"),
    [
        ((0, "x", None), "RV302"),
        ((-5, "x", None), "RV302"),
        ((604801, "x", None), "RV302"),
        ((None, "x", None), "RV302"),
        ((5, "", None), "RV302"),
        ((5, None, None), "RV302"),
        ((5, "x", ""), "RV302"),
    ],
)
def test_nonsense_is_refused(db: Connection, args: tuple[Any, ...], sqlstate: str) -> None:
    order = reserve(db, item(db), "ann")
    with pytest.raises(psycopg.Error) as error:
        call(db, "extend_holds", order.item_id, *args)
    assert error.value.sqlstate == sqlstate
    with pytest.raises(psycopg.Error) as error:
        call(db, "extend_holds", 99, 5, "x")
    assert error.value.sqlstate == "RV101"


def test_a_session_that_was_asked_for_with_the_old_deadline_is_found_and_voided(
    db: Connection, clock: Clock
) -> None:
    """The provider did not answer. With another deadline the same key would be refused."""
    order = reserve(db, item(db), "ann")
    (first,) = take(db)
    unavailable(db, first)
    call(db, "extend_holds", order.item_id, 60, "the provider was down")
    make_due(db)
    asked = {job.payment_id: job.expires_at for job in take(db)}
    assert asked.pop(first.payment_id) == first.expires_at == order.expires_at
    ((second, deadline),) = asked.items()
    assert deadline == status(db, order.order_id).expires_at > order.expires_at
    make_due(db)
    opened = {job.payment_id: open_session(db, job) for job in take(db)}
    assert opened == {first.payment_id: "superseded", second: "opened"}
    assert [job.session_id for job in take(db) if job.kind == "void"] == [f"s{first.payment_id}"]
    shown = status(db, order.order_id)
    assert (shown.payment_id, shown.payment_status) == (second, "open")


def test_an_attempt_that_nobody_has_tried_keeps_its_job(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    value(db, "select flashsale.first_payments(array[%s])::text", order.order_id)
    call(db, "extend_holds", order.item_id, 60, "x")
    (job,) = take(db)
    assert (job.payment_id, job.expires_at) == (
        order.payment_id,
        status(db, order.order_id).expires_at,
    )


def test_an_attempt_with_the_old_deadline_is_no_hold_that_went_back(
    db: Connection, clock: Clock
) -> None:
    """Its session is found, however late, and is no session in which the customer could pay."""
    order = reserve(db, item(db), "ann")
    (first,) = take(db)
    unavailable(db, first)
    call(db, "extend_holds", order.item_id, 60, "the provider was down")
    for _ in range(20):  # more often than a job is tried whose session nobody needs
        make_due(db)
        jobs = {job.payment_id: job for job in take(db)}
        assert unavailable(db, jobs[first.payment_id]) == "retry"
    for job in jobs.values():
        if job.payment_id != first.payment_id:
            unavailable(db, job)
    make_due(db)
    assert open_session(db, {job.payment_id: job for job in take(db)}[first.payment_id]) == (
        "superseded"
    )
    told = [
        row.what for row in rows(db, "select * from flashsale.explain_order(%s)", order.order_id)
    ]
    place = "took the place of payment {}, because of the new deadline"
    assert any(place.format(first.payment_id) in what for what in told), told
    assert not any("went back to the line" in what for what in told), told
    clock.advance(121)
    sweep(db)
    again = status(db, order.order_id)  # they could not pay, so they are the next
    assert (again.status, again.reserved_at) == ("reserved", clock.at())


def test_the_checker_counts_a_lost_hold_from_its_beginning(db: Connection, clock: Clock) -> None:
    """The attempt that told of its loss began later, in the place of others."""
    order = reserve(db, item(db), "ann")
    for seconds in (1, 2):
        clock.advance(10)
        make_due(db)
        for job in take(db):
            unavailable(db, job)
        call(db, "extend_holds", order.item_id, seconds, "the provider was down")
    make_due(db)
    first, *others = sorted(take(db), key=lambda job: job.payment_id)
    assert open_session(db, first) == "superseded"
    for job in others:
        unavailable(db, job)
    (void,) = (job for job in take(db) if job.kind == "void")
    assert voided(db, void) == "voided"
    clock.advance(43)
    sweep(db)
    (judged,) = FinalTables.read(f"{db.info.dsn} password={db.info.password}").orders
    began = order.reserved_at.timestamp()
    assert judged.lost_holds == ((began, began + 63),)
