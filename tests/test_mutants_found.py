"""Tests of rules that a mutant, the model or a permutation had shown to be untested."""

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
    many,
    pay,
    reserve,
    rows,
    settle,
    status,
    statuses,
    sweep,
    value,
)


def jobs_and_holds(db: Connection) -> tuple[int, int]:
    jobs = "select count(*) from pgmq.q_payments where message ->> 'kind' = 'open'"
    return value(db, jobs), value(db, "select count(*) from flashsale.open_reservation")


def test_every_hold_of_a_batch_has_its_job_though_a_customer_is_in_it_twice(
    db: Connection,
) -> None:
    batch = many(db, item(db, stock=5), ["ann", "bob", "ann"])
    assert [o.outcome for o in batch] == ["reserved", "reserved", "existing"]
    assert jobs_and_holds(db) == (2, 2)


def test_every_hold_of_a_batch_has_its_job_though_a_duplicate_came_first(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=5)
    with connect(database_url, autocommit=False) as first, connect(database_url) as second:
        reserve(first, shoe, "ann")
        batch = Call(lambda: many(second, shoe, ["ann", "bob"]))
        eventually(lambda: blocked(db, second))
        first.commit()
        assert [o.outcome for o in batch.result()] == ["existing", "reserved"]
    assert jobs_and_holds(db) == (2, 2)
    settle(db)


def keyed(conn: Connection, shoe: int, keys: list[str | None], customer: str = "ann") -> list[Any]:
    """One customer's requests with these keys, in one batch."""
    return rows(
        conn,
        "select * from flashsale.reserve_many(array_fill(%s::int, array[%s::int]), "
        "array_fill(%s::text, array[%s::int]), %s)",
        shoe,
        len(keys),
        customer,
        len(keys),
        keys,
    )


def test_a_customer_who_asks_twice_in_a_batch_takes_one_ticket(db: Connection) -> None:
    shoe = item(db, stock=5)
    batch = keyed(db, shoe, [None, "k1", "k2"])
    assert [o.outcome for o in batch] == ["reserved", "existing", "existing"]
    assert {o.order_id for o in batch} == {batch[0].order_id}
    assert value(db, "select flashsale.issued_tickets(%s)", shoe) == 1


def test_a_key_in_a_batch_leads_to_the_order_of_a_duplicate_that_came_first(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=5)
    with connect(database_url, autocommit=False) as first, connect(database_url) as second:
        order = reserve(first, shoe, "ann")
        batch = Call(lambda: keyed(second, shoe, ["k"]))
        eventually(lambda: blocked(db, second))
        first.commit()
        (answer,) = batch.result()
    assert (answer.outcome, answer.order_id) == ("existing", order.order_id)
    call(db, "cancel", order.order_id)
    assert reserve(db, shoe, "ann", "k").order_id == order.order_id
    settle(db)


def test_each_key_of_a_customer_in_a_batch_leads_to_its_own_order(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=5)
    old = reserve(db, shoe, "ann")
    with connect(database_url, autocommit=False) as first, connect(database_url) as second:
        call(first, "cancel", old.order_id)
        new = reserve(first, shoe, "ann", "k2")
        batch = Call(lambda: keyed(second, shoe, ["k1", "k2"]))
        eventually(lambda: blocked(db, second))
        first.commit()
        answers = batch.result()
    assert [o.order_id for o in answers] == [old.order_id, new.order_id]
    settle(db)


def test_a_ticket_taken_after_the_sweep_began_is_no_hole(db: Connection, database_url: str) -> None:
    shoe = item(db, stock=5)
    with (
        connect(database_url, autocommit=False) as sweeper,
        connect(database_url, autocommit=False) as slow,
    ):
        sweeper.execute("select pg_current_xact_id()")
        reserve(slow, shoe, "ann")
        call(sweeper, "fill", shoe)
        sweeper.commit()
        db.execute("set lock_timeout = '2s'")  # to fill it would be to wait for it
        for _ in range(4):
            assert call(db, "fill", shoe)[0] == 0
        slow.commit()
    assert statuses(db, shoe) == {"ann": "reserved"}


def test_a_ticket_taken_after_the_visit_is_no_hole(db: Connection, database_url: str) -> None:
    shoe = item(db, stock=5)
    with db.transaction(force_rollback=True):
        reserve(db, shoe, "eve")
    call(db, "fill", shoe)
    with connect(database_url, autocommit=False) as slow:
        reserve(slow, shoe, "ann")
        db.execute("set lock_timeout = '2s'")
        assert call(db, "fill", shoe)[0] == 1
        slow.commit()


def test_late_money_goes_back_while_a_customer_waits_for_the_freed_unit(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db, late_payment="keep_if_free")
    ann = reserve(db, shoe, "ann")
    bob = reserve(db, shoe, "bob")
    clock.advance(60)
    call(db, "restock", shoe, 3)
    assert pay(db, ann).outcome == "refund_due"
    settle(db)
    assert status(db, bob.order_id).status == "reserved"


def test_late_money_that_is_kept_leaves_the_expired_order_expired(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db, stock=3, late_payment="keep_if_free")
    ann = reserve(db, shoe, "ann")
    clock.advance(60)
    sweep(db)
    ended_at = status(db, ann.order_id).ended_at
    clock.advance(60)
    assert pay(db, ann).outcome == "paid"
    shown = status(db, ann.order_id)
    assert (shown.status, shown.ended_at) == ("expired", ended_at)


def test_a_key_keeps_its_order_though_that_ended_before_the_duplicate_came(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=5)
    with connect(database_url, autocommit=False) as first, connect(database_url) as second:
        order = reserve(first, shoe, "ann", "k")
        duplicate = Call(lambda: reserve(second, shoe, "ann", "k"))
        eventually(lambda: blocked(db, second))
        call(first, "cancel", order.order_id)
        first.commit()
        assert duplicate.result().order_id == order.order_id


def test_the_lowest_tickets_are_served_first_though_not_all_at_once(
    db: Connection,
) -> None:
    shoe = item(db, stock=0)
    many(db, shoe, ["ann", "bob", "cid"])
    call(db, "restock", shoe, 3)
    assert call(db, "promote", shoe, 2).promoted == 2
    assert statuses(db, shoe) == {"ann": "reserved", "bob": "reserved", "cid": "waiting"}


def test_a_line_goes_on_until_the_close(db: Connection, clock: Clock) -> None:
    shoe = item(db, closes_at=clock.at(60))
    many(db, shoe, ["ann", "bob"])
    assert call(db, "promote", shoe).unserved == 0
    assert statuses(db, shoe)["bob"] == "waiting"


def test_expiry_leaves_a_locked_order_and_ends_the_others(
    db: Connection, database_url: str, clock: Clock
) -> None:
    shoe = item(db, stock=2)
    ann, bob = many(db, shoe, ["ann", "bob"])
    clock.advance(60)
    with connect(database_url, autocommit=False) as payer:
        pay(payer, ann)
        db.execute("set lock_timeout = '2s'")
        assert call(db, "expire")[0] == 1
    assert (
        value(db, "select status from flashsale_data.orders where order_id = %s", bob.order_id)
        == "expired"
    )


def test_stray_money_is_refunded_once_however_often_it_is_reported(db: Connection) -> None:
    for _ in range(3):
        assert call(db, "pay", None, "s-x", 1000, "EUR").outcome == "stray"
    assert value(db, "select count(*) from pgmq.q_payments") == 1


def test_a_session_that_we_do_not_know_ends_no_payment_that_has_one(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    (job,) = rows(db, "select * from flashsale.take_payment_jobs(10, 30)")
    call(db, "payment_opened", job.job_id, job.tries, job.payment_id, "s1", "http://pay")
    event = "select flashsale.record_payment_event(%s, %s, %s, %s, 1000, 'EUR', now())"
    for kind in ("failed", "voided"):
        sent = [kind, f"payment.{kind}", "s9", str(job.payment_id)]
        assert value(db, event, *sent) == "ignored"
    assert status(db, order.order_id).payment_status == "open"


def test_a_sweep_does_not_wait_for_an_operator_who_has_locked_the_item(
    db: Connection, database_url: str
) -> None:
    shoe = item(db)
    ann, _bob = many(db, shoe, ["ann", "bob"])
    call(db, "cancel", ann.order_id)
    with connect(database_url, autocommit=False) as operator:
        call(operator, "pause_item", shoe)
        db.execute("set lock_timeout = '2s'")
        assert call(db, "sweep").recycled == 0
        assert rows(db, "select * from flashsale.sweep_failure") == []
        operator.commit()
    settle(db)
    assert statuses(db, shoe)["bob"] == "waiting"


def test_no_call_sells_a_paused_item(db: Connection) -> None:
    shoe = item(db)
    call(db, "pause_item", shoe)
    assert reserve(db, shoe, "ann").outcome == "paused"
    assert [o.outcome for o in many(db, shoe, ["ann"])] == ["paused"]


def test_batches_with_the_same_customers_in_reverse_order_do_not_deadlock(
    db: Connection, database_url: str
) -> None:
    """Holds in any order of arrival: ann and bob come first, and may's request is in between."""
    shoe = item(db, stock=9)
    with (
        connect(database_url, autocommit=False) as other,
        connect(database_url) as one,
        connect(database_url) as two,
    ):
        reserve(other, shoe, "may")
        forth = Call(lambda: many(one, shoe, ["ann", "may", "bob"]))
        eventually(lambda: blocked(db, one))
        back = Call(lambda: many(two, shoe, ["bob", "may", "ann"]))
        eventually(lambda: blocked(db, two))
        other.rollback()
        orders = {order.customer_id: order.order_id for order in forth.result()}
        assert {order.customer_id: order.order_id for order in back.result()} == orders
    settle(db)


def keyed_batch(conn: Connection, shoe: int, customers: list[str]) -> list[Any]:
    """A batch whose requests have the key k."""
    return rows(
        conn,
        "select * from flashsale.reserve_many(array_fill(%s::int, array[%s::int]), %s, "
        "array_fill('k'::text, array[%s::int]))",
        shoe,
        len(customers),
        customers,
        len(customers),
    )


def test_batches_with_the_same_keys_in_reverse_order_do_not_deadlock(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=9)
    with (
        connect(database_url, autocommit=False) as other,
        connect(database_url) as one,
        connect(database_url) as two,
    ):
        reserve(other, shoe, "may", "k")
        forth = Call(lambda: keyed_batch(one, shoe, ["ann", "may", "bob"]))
        eventually(lambda: blocked(db, one))
        back = Call(lambda: keyed_batch(two, shoe, ["bob", "may", "ann"]))
        eventually(lambda: blocked(db, two))
        other.rollback()
        orders = {order.customer_id: order.order_id for order in forth.result()}
        assert {order.customer_id: order.order_id for order in back.result()} == orders
    settle(db)


def test_a_key_whose_request_got_no_ticket_is_free_for_the_next_try(db: Connection) -> None:
    shoe = item(db, stock=1, max_waiting=0)
    batch = keyed_batch(db, shoe, ["ann", "bob"])
    assert [o.outcome for o in batch] == ["reserved", "sold_out"]
    assert value(db, "select count(*) from flashsale_data.order_keys") == 1
    call(db, "restock", shoe, 2)
    assert reserve(db, shoe, "bob", "k").outcome == "reserved"


def test_a_batch_takes_as_many_rounds_as_it_needs(db: Connection, clock: Clock) -> None:
    """Ann's own hold is over, bob asks twice: that takes three rounds."""
    shoe = item(db, stock=5)
    reserve(db, shoe, "ann")
    clock.advance(60)
    batch = many(db, shoe, ["ann", "bob", "bob"])
    assert [o.outcome for o in batch] == ["reserved", "reserved", "existing"]


def test_two_operators_withdraw_one_after_the_other(db: Connection, database_url: str) -> None:
    shoe = item(db, stock=3)
    with connect(database_url, autocommit=False) as first, connect(database_url) as second:
        call(first, "withdraw", shoe, 2)
        other = Call(lambda: call(second, "withdraw", shoe, 2))
        eventually(lambda: blocked(db, second))
        first.commit()
        with pytest.raises(psycopg.Error, match="Only 1 of the units"):
            other.result()
    assert value(db, "select flashsale.issued_tickets(%s)", shoe) == 2


def test_no_payment_is_requested_for_an_order_that_is_being_cancelled(
    db: Connection, database_url: str
) -> None:
    order = reserve(db, item(db), "ann")
    failed = "select flashsale.record_payment_event('e', 'payment.failed', 's', %s, 1, 'EUR', null)"
    assert value(db, failed, str(order.payment_id)) == "failed"
    with connect(database_url, autocommit=False) as first, connect(database_url) as second:
        call(first, "cancel", order.order_id)
        other = Call(lambda: call(second, "request_payment", order.order_id))
        eventually(lambda: blocked(db, second))
        first.commit()
        with pytest.raises(psycopg.Error, match="Only a reserved order"):
            other.result()


def test_a_cancellation_that_waits_until_the_deadline_comes_too_late(
    db: Connection, database_url: str, clock: Clock
) -> None:
    order = reserve(db, item(db), "ann")
    with connect(database_url, autocommit=False) as first, connect(database_url) as second:
        first.execute("select from flashsale_data.orders for update")
        cancelled = Call(lambda: call(second, "cancel", order.order_id))
        eventually(lambda: blocked(db, second))
        clock.advance(60)
        first.rollback()
        assert cancelled.result().outcome == "already_ended"
    assert status(db, order.order_id).status == "expired"


def test_nobody_waits_for_the_order_of_somebody_else(db: Connection, database_url: str) -> None:
    order = reserve(db, item(db), "ann")
    db.execute("set lock_timeout = '2s'")
    with connect(database_url, autocommit=False) as first:
        first.execute("select from flashsale_data.orders for update")
        for verb in ("cancel", "request_payment"):
            with pytest.raises(psycopg.Error, match="no such order"):
                call(db, verb, order.order_id, "bob")


def test_late_money_buys_no_ticket_that_is_not_entitled_to_a_unit(
    db: Connection, clock: Clock
) -> None:
    """As if other requests took four tickets after pay has seen that there are free units."""
    shoe = item(db, stock=3, late_payment="keep_if_free")
    ann = reserve(db, shoe, "ann")
    clock.advance(60)
    db.execute(f"alter sequence flashsale_data.line_{shoe} increment by 5")
    assert pay(db, ann).outcome == "refund_due"
    assert value(db, "select max(ticket) from flashsale_data.orders") == 1


def test_a_payment_does_not_end_by_the_session_of_another_one(db: Connection) -> None:
    ann, bob = many(db, item(db, stock=2), ["ann", "bob"])
    (job, _) = rows(db, "select * from flashsale.take_payment_jobs(10, 30)")
    call(db, "payment_opened", job.job_id, job.tries, job.payment_id, "s1", "http://pay")
    event = "select flashsale.record_payment_event('e', 'payment.failed', 's1', %s, 1, 'EUR', null)"
    assert value(db, event, str(bob.payment_id)) == "ignored"
    assert status(db, bob.order_id).payment_status == "requested"
    assert status(db, ann.order_id).payment_status == "open"


def test_a_refund_is_settled_only_for_the_payment_that_is_named(
    db: Connection, clock: Clock
) -> None:
    ann, bob = many(db, item(db, stock=2), ["ann", "bob"])
    clock.advance(60)
    assert pay(db, ann, "s1").outcome == "refund_due"
    event = (
        "select flashsale.record_payment_event(%s, 'payment.refunded', 's1', %s, 1000, 'EUR', null)"
    )
    assert value(db, event, "e1", str(bob.payment_id)) == "ignored"
    assert status(db, ann.order_id).payment_status == "refund_due"
    assert value(db, event, "e2", str(ann.payment_id)) == "refunded"


def test_a_late_worker_can_not_give_up_a_job_that_another_one_has(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    db.execute("update pgmq.q_payments set read_ct = 8")
    late, current = (
        rows(db, "select * from flashsale.take_payment_jobs(10, %s)", seconds)[0]
        for seconds in (0, 30)
    )
    assert (late.tries, current.tries) == (9, 10)
    given_up = "select flashsale.retry_job('payments', %s, 11, 'x')"
    assert value(db, given_up, late.job_id) == "lost_lease"
    assert value(db, "select count(*) from flashsale.dead_letter") == 0
    assert status(db, order.order_id).payment_status == "requested"


def test_a_worker_whose_job_was_taken_meanwhile_can_not_give_it_up(
    db: Connection, database_url: str
) -> None:
    reserve(db, item(db), "ann")
    db.execute("update pgmq.q_payments set read_ct = 9")
    (job,) = rows(db, "select * from flashsale.take_payment_jobs(10, 0)")
    with connect(database_url, autocommit=False) as other, connect(database_url) as late:
        other.execute("update pgmq.q_payments set read_ct = read_ct + 1")  # takes it
        given_up = "select flashsale.retry_job('payments', %s, %s, 'x')"
        giving_up = Call(lambda: value(late, given_up, job.job_id, job.tries))
        eventually(lambda: blocked(db, late))
        other.commit()
        assert giving_up.result() == "lost_lease"
    assert value(db, "select count(*) from flashsale.dead_letter") == 0


@pytest.mark.parametrize("given_up_by", ["take_payment_jobs", "retry_job"])
def test_a_payment_that_could_not_be_opened_has_failed_and_can_be_requested_anew(
    db: Connection, given_up_by: str
) -> None:
    order = reserve(db, item(db), "ann")
    take = "select * from flashsale.take_payment_jobs(10, 0)"
    if given_up_by == "retry_job":
        db.execute("update pgmq.q_payments set read_ct = 9")
        (job,) = rows(db, take)
        assert call(db, "retry_job", "payments", job.job_id, job.tries, "x")[0] == "dead"
    else:
        rows(db, take)
        db.execute("update pgmq.q_payments set read_ct = 10")
        assert rows(db, take) == []
    assert value(db, "select count(*) from flashsale.dead_letter") == 1
    assert status(db, order.order_id).payment_status == "failed"
    assert call(db, "request_payment", order.order_id).outcome == "requested"


def test_a_sale_that_is_over_is_not_closed_later(db: Connection, clock: Clock) -> None:
    shoe = item(db, closes_at=clock.at(10))
    clock.advance(20)
    assert call(db, "close_item", shoe).closes_at == clock.at(-10)


def test_a_page_of_orders_begins_after_an_order_of_the_same_customer(db: Connection) -> None:
    shoe = item(db, stock=5)
    reserve(db, shoe, "ann")
    bob = reserve(db, shoe, "bob")
    assert rows(db, "select * from flashsale.orders_of('ann', 10, %s)", bob.order_id) == []


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("expired", "The deadline passed without payment: the unit went to the line."),
        ("cancelled", "It was cancelled."),
        ("unserved", "The sale closed before it was their turn."),
        ("paid", "The order was paid."),
    ],
)
def test_an_order_s_history_tells_why_it_ended(
    db: Connection, clock: Clock, end: str, reason: str
) -> None:
    shoe = item(db)
    ann, bob = many(db, shoe, ["ann", "bob"])
    match end:
        case "expired":
            clock.advance(60)
        case "cancelled":
            call(db, "cancel", ann.order_id)
        case "unserved":
            call(db, "close_item", shoe)
        case "paid":
            pay(db, ann)
    settle(db)
    order = bob if end == "unserved" else ann
    told = [
        row.what for row in rows(db, "select * from flashsale.explain_order(%s)", order.order_id)
    ]
    reasons = [
        what for what in told if what.startswith(("The deadline", "It was ", "The sale", "The o"))
    ]
    assert reasons == [reason]
