"""The two queues: jobs are leased, acknowledged, retried, and dropped when they are obsolete."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from flashsale.testing.clock import Clock
from support import (
    Connection,
    call,
    connect,
    item,
    many,
    pay,
    reserve,
    rows,
    status,
    sweep,
    value,
)


def take(db: Connection, lease: int = 30) -> list[Any]:
    return rows(db, "select * from flashsale.take_payment_jobs(100, %s)", lease)


def open_session(db: Connection, job: Any, session: str = "s1") -> str:
    return str(
        value(
            db,
            "select flashsale.payment_opened(%s, %s, %s, %s, 'http://pay')",
            job.job_id,
            job.tries,
            job.payment_id,
            session,
        )
    )


def test_a_hold_brings_the_job_that_opens_its_payment(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    (job,) = take(db)
    assert (job.kind, job.payment_id, job.order_id, job.amount, job.expires_at) == (
        "open",
        order.payment_id,
        order.order_id,
        1000,
        order.expires_at,
    )
    assert open_session(db, job) == "opened"
    assert status(db, order.order_id).checkout_url == "http://pay"
    assert take(db) == []
    assert value(db, "select depth from flashsale.queue_status where queue = 'payments'") == 0


def test_no_other_worker_gets_a_job_until_its_lease_runs_out(db: Connection) -> None:
    reserve(db, item(db), "ann")
    (job,) = take(db, 30)
    assert take(db) == []
    db.execute("update pgmq.q_payments set vt = clock_timestamp()")  # the lease runs out
    (again,) = take(db)
    assert (again.job_id, again.tries) == (job.job_id, 2)


def test_a_late_worker_can_not_acknowledge_another_workers_lease(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    (late,) = take(db, 0)
    (current,) = take(db, 30)
    assert open_session(db, late) == "lost_lease"
    assert status(db, order.order_id).payment_status == "open"  # what it learnt is kept
    assert (
        value(db, "select flashsale.retry_job('payments', %s, %s, 'x')", late.job_id, late.tries)
        == "lost_lease"
    )
    assert value(db, "select depth from flashsale.queue_status where queue = 'payments'") == 1
    assert open_session(db, current) == "ignored"
    assert value(db, "select depth from flashsale.queue_status where queue = 'payments'") == 0


HOLDERS: dict[str, Callable[[Connection, Any], Any]] = {
    "pay": pay,
    "cancel": lambda conn, order: call(conn, "cancel", order.order_id),
    "request_payment": lambda conn, order: call(conn, "request_payment", order.order_id),
    "a failed payment": lambda conn, order: value(
        conn,
        "select flashsale.record_payment_event('e', 'payment.failed', 'x', %s, 1, 'EUR', now())",
        str(order.payment_id),
    ),
}


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_an_open_transaction_delays_the_jobs_of_its_own_order_only(
    db: Connection, database_url: str, holder: Callable[[Connection, Any], Any], begun: bool
) -> None:
    ann, bob = many(db, item(db, stock=2), ["ann", "bob"])
    if begun:  # both payments have their rows
        take(db, 0)
    db.execute("set lock_timeout = '2s'")
    with connect(database_url, autocommit=False) as tool:
        holder(tool, ann)
        for _ in range(12):  # more often than a job is tried
            make_due(db)
            assert {job.order_id for job in take(db)} <= {bob.order_id}
        tool.rollback()
    make_due(db)
    jobs = {job.order_id: job.tries for job in take(db)}
    assert jobs[ann.order_id] == 1 + begun, "to wait for a lock is not a try"


def make_due(db: Connection) -> None:
    db.execute("update pgmq.q_payments set vt = clock_timestamp()")


OPENED = "select flashsale.payment_opened(%s, %s, %s, 's1', 'u')"
VOIDED = "select flashsale.payment_voided(%s, %s, %s)"
CAPTURED = "select flashsale.payment_captured(%s, %s, %s, 's1', 1000, 'EUR')"
REFUNDED = "select flashsale.payment_refunded(%s, %s, %s)"


@pytest.mark.parametrize(
    ("state", "report", "outcome"),
    [
        ("requested", OPENED, "opened"),
        ("open", VOIDED, "voided"),
        ("open", CAPTURED, "refund_due"),
        ("refund_due", REFUNDED, "refunded"),
    ],
)
def test_the_result_of_a_job_waits_for_nobody_who_has_locked_its_order(
    db: Connection, database_url: str, clock: Clock, state: str, report: str, outcome: str
) -> None:
    order = reserve(db, item(db), "ann")
    if state != "requested":
        open_session(db, take(db)[0])
        clock.advance(60)
        sweep(db)
    if state == "refund_due":
        pay(db, order, "s1")
        db.execute("delete from pgmq.q_payments where message ->> 'kind' = 'void'")
    (job,) = take(db)
    db.execute("set lock_timeout = '2s'")
    with connect(database_url, autocommit=False) as tool:
        for table in ("orders", "payments"):
            tool.execute(f"select from flashsale_data.{table} for update")
            assert value(db, report, job.job_id, job.tries, job.payment_id) == "busy"
            assert value(db, report, job.job_id, job.tries - 1, job.payment_id) == "lost_lease"
            tool.rollback()
    make_due(db)
    (again,) = take(db)
    assert value(db, report, again.job_id, again.tries, again.payment_id) == outcome


def test_sessions_that_were_opened_together_are_recorded_each_for_itself(
    db: Connection, database_url: str, clock: Clock
) -> None:
    shoe = item(db, stock=5)
    names = ["ann", "bob", "cid", "dan", "eve", "fay"]
    orders = {order.customer_id: order for order in many(db, shoe, names)}
    clock.advance(1)
    call(db, "cancel", orders["ann"].order_id)
    sweep(db)  # it is fay's turn
    twice = Jsonb({"kind": "open", "payment_id": orders["bob"].order_id})
    db.execute("select pgmq.send('payments', %s)", [twice])
    jobs = sorted(take(db), key=lambda job: (job.customer_id, job.job_id))
    assert [job.customer_id for job in jobs] == ["bob", "bob", *names[2:]]
    call(db, "cancel", orders["cid"].order_id)
    results = [
        [job.job_id for job in jobs],
        [job.tries - (job.customer_id == "dan") for job in jobs],  # another has dan's lease
        [job.payment_id for job in jobs],
        [f"s-{job.customer_id}" for job in jobs],
        [f"http://pay/{job.customer_id}" for job in jobs],
    ]
    with connect(database_url, autocommit=False) as tool:
        eve = orders["eve"].order_id
        tool.execute("select from flashsale_data.orders where order_id = %s for update", [eve])
        told = rows(db, "select * from flashsale.payments_opened(%s, %s, %s, %s, %s)", *results)
    outcomes = {
        job.job_id: (job.customer_id, answer.outcome)
        for job, answer in zip(jobs, told, strict=True)
    }
    assert [answer.job_id for answer in told] == results[0]
    assert [outcomes[job.job_id] for job in jobs] == [
        ("bob", "opened"),
        ("bob", "opened"),
        ("cid", "superseded"),
        ("dan", "lost_lease"),
        ("eve", "busy"),
        ("fay", "opened"),
    ]
    found = rows(
        db,
        "select o.customer_id, p.session_id, p.status::text from flashsale_data.payments p "
        "join flashsale_data.orders o using (order_id) order by 1",
    )
    assert [tuple(row) for row in found if row.customer_id != "ann"] == [
        ("bob", "s-bob", "open"),
        ("cid", "s-cid", "open"),
        ("dan", "s-dan", "open"),
        ("eve", None, "requested"),
        ("fay", "s-fay", "open"),
    ]
    assert status(db, orders["fay"].order_id).checkout_url == "http://pay/fay"
    mails = [
        (row.message["kind"], row.message["order_id"])
        for row in rows(db, "select message from pgmq.q_notifications order by msg_id")
    ]
    assert sorted(mails) == sorted(
        [("cancelled", orders[name].order_id) for name in ("ann", "cid")]
        + [("reserved", orders[name].order_id) for name in ("bob", "dan")]
        + [("your_turn", orders["fay"].order_id)]
    )
    make_due(db)
    left = {(job.kind, job.customer_id) for job in take(db)}
    assert left == {("void", "cid"), ("open", "eve")}


def test_a_job_that_is_not_needed_any_more_is_dropped(db: Connection, clock: Clock) -> None:
    order = reserve(db, item(db), "ann")
    clock.advance(60)
    sweep(db)
    assert take(db) == []
    assert status(db, order.order_id).payment_status == "voided"
    assert value(db, "select sum(depth) from flashsale.queue_status where queue = 'payments'") == 0


def test_a_session_that_may_exist_is_found_again_and_voided(db: Connection, clock: Clock) -> None:
    reserve(db, item(db), "ann")
    take(db, 0)  # a worker has called the provider, with an unknown result
    clock.advance(60)
    sweep(db)
    jobs = take(db)
    assert [j.kind for j in jobs] == ["open"]
    assert open_session(db, jobs[0]) == "superseded"
    (void,) = take(db)
    assert (void.kind, void.session_id) == ("void", "s1")


def test_a_session_opened_for_a_hold_that_is_over_is_voided(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    (job,) = take(db)
    call(db, "cancel", order.order_id)
    assert open_session(db, job) == "superseded"
    assert {(j.kind, j.session_id) for j in take(db)} == {("void", "s1")}


def test_a_void_that_finds_the_money_captured_has_it_refunded(db: Connection, clock: Clock) -> None:
    order = reserve(db, item(db), "ann")
    open_session(db, take(db)[0])
    clock.advance(60)
    sweep(db)
    (void,) = take(db)
    assert (
        value(
            db,
            "select flashsale.payment_captured(%s, %s, %s, 's1', 1000, 'EUR')",
            void.job_id,
            void.tries,
            void.payment_id,
        )
        == "refund_due"
    )
    assert [(j.kind, j.payment_id) for j in take(db)] == [("refund", order.payment_id)]


def test_failures_are_retried_with_growing_delays_then_given_up(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    delays = []
    for tries in range(1, 11):
        db.execute("update pgmq.q_payments set vt = clock_timestamp()")
        (job,) = take(db)
        assert job.tries == tries
        answer = value(
            db, "select flashsale.retry_job('payments', %s, %s, 'no route')", job.job_id, job.tries
        )
        assert answer == ("dead" if tries == 10 else "retry")
        if answer == "retry":
            delays.append(
                value(
                    db,
                    "select extract(epoch from vt - clock_timestamp())::float8 "
                    "from pgmq.q_payments",
                )
            )
    assert delays[0] < 1
    assert all(later > earlier * 1.1 for earlier, later in itertools.pairwise(delays))
    (letter,) = rows(db, "select * from flashsale.dead_letter")
    assert (letter.queue, letter.tries, letter.error) == ("payments", 10, "no route")
    # It will not be opened any more, so the customer may request another attempt.
    assert status(db, order.order_id).payment_status == "failed"
    assert call(db, "request_payment", order.order_id, "ann").outcome == "requested"


def test_a_dead_letter_can_be_tried_again(db: Connection, clock: Clock) -> None:
    order = reserve(db, item(db), "ann")
    clock.advance(60)
    pay(db, order)
    db.execute("update pgmq.q_payments set read_ct = 299 where message ->> 'kind' = 'refund'")
    (job,) = take(db)
    value(db, "select flashsale.retry_job('payments', %s, %s, 'down')", job.job_id, job.tries)
    assert value(db, "select given_up from flashsale.money_at_risk")
    letter = value(db, "select dead_letter_id from flashsale.dead_letter")
    value(db, "select flashsale.retry_dead_letter(%s)", letter)
    assert not value(db, "select given_up from flashsale.money_at_risk")
    (job,) = take(db)
    assert (job.kind, job.tries) == ("refund", 1)
    with pytest.raises(psycopg.Error) as error:
        value(db, "select flashsale.retry_dead_letter(%s)", letter)
    assert error.value.sqlstate == "RV103"


@pytest.mark.parametrize(
    "poison",
    [
        {},
        {"kind": "open"},
        {"kind": "open", "payment_id": "x"},
        {"kind": "steal", "payment_id": 1},
        [],
    ],
)
@pytest.mark.parametrize("queue", ["payments", "notifications"])
def test_bad_messages_are_given_up_and_do_not_stop_the_others(
    db: Connection, queue: str, poison: Any
) -> None:
    db.execute("select pgmq.send(%s, %s)", [queue, Jsonb(poison)])
    order = reserve(db, item(db), "ann")
    jobs = take(db)
    assert [j.payment_id for j in jobs] == [order.payment_id]
    open_session(db, jobs[0])
    mails = rows(db, "select * from flashsale.take_notifications(10, 30)")
    assert [m.message["kind"] for m in mails] == ["reserved"]
    assert value(db, "select message from flashsale.dead_letter") == poison


def test_a_message_that_kills_its_workers_goes_to_the_dead_letters(db: Connection) -> None:
    reserve(db, item(db), "ann")
    for _ in range(10):
        assert len(take(db, 0)) == 1  # taken, and never acknowledged
    assert take(db, 0) == []
    assert value(db, "select tries from flashsale.dead_letter") == 11


def test_customers_are_told_what_happened_and_where_to_pay(db: Connection) -> None:
    shoe = item(db)
    ann = reserve(db, shoe, "ann")
    reserve(db, shoe, "bob")
    open_session(db, take(db)[0], "s1")
    call(db, "cancel", ann.order_id)
    sweep(db)
    jobs = {j.kind: j for j in take(db)}
    open_session(db, jobs["open"], "s2")
    mails = [m.message for m in rows(db, "select * from flashsale.take_notifications(10, 30)")]
    assert [(m["kind"], m["customer_id"]) for m in mails] == [
        ("cancelled", "ann"),  # "reserved" was dropped: it is not any more
        ("your_turn", "bob"),
    ]
    assert mails[1]["checkout_url"] == "http://pay"
    assert mails[1]["item_name"] == "Shoe"


def test_a_notification_is_acknowledged_by_its_lease_only(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    call(db, "cancel", order.order_id)
    (late,) = rows(db, "select * from flashsale.take_notifications(10, 0)")
    (current,) = rows(db, "select * from flashsale.take_notifications(10, 30)")
    finish = "select array_agg(n) from flashsale.finish_notifications(%s, %s) n"
    assert value(db, finish, [late.job_id], [late.tries]) is None
    both = [late.job_id, current.job_id], [late.tries, current.tries]
    assert value(db, finish, *both) == [current.job_id]
    assert value(db, finish, *both) is None
