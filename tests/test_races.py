"""Two sessions at once: interleavings made with locks, and short storms of threads."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

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
    sessions,
    settle,
    status,
    statuses,
    sweep,
    value,
)


def in_parallel(url: str, workers: int, tasks: list[Callable[[Connection], Any]]) -> list[Any]:
    """Runs the tasks on so many sessions at once. The results are in the order of the tasks."""
    results: list[Any] = [None] * len(tasks)
    todo = iter(enumerate(tasks))
    lock = threading.Lock()
    start = threading.Barrier(workers)

    def work(conn: Connection) -> None:
        start.wait()
        while True:
            with lock:
                n, task = next(todo, (None, None))
            if n is None or task is None:
                return
            results[n] = task(conn)

    with sessions(url, workers) as conns:
        for running in [Call(partial(work, c)) for c in conns]:
            running.result()
    return results


def test_two_hundred_at_once_for_the_last_unit(db: Connection, database_url: str) -> None:
    shoe = item(db)
    orders = in_parallel(
        database_url, 20, [partial(reserve, item_id=shoe, customer=f"c{n}") for n in range(200)]
    )
    assert sorted(o.outcome for o in orders) == ["reserved"] + ["waiting"] * 199
    assert sorted(o.position for o in orders if o.outcome == "waiting") == list(range(1, 200))


@pytest.mark.parametrize("key", [None, "k"])
def test_fifty_requests_of_one_customer_at_once_get_one_order(
    db: Connection, database_url: str, key: str | None
) -> None:
    shoe = item(db, stock=50)  # each may take a ticket, and whichever inserts first gets the order
    orders = in_parallel(database_url, 25, [lambda c: reserve(c, shoe, "ann", key)] * 50)
    assert len({o.order_id for o in orders}) == 1
    assert sorted(o.outcome for o in orders) == ["existing"] * 49 + ["reserved"]


def test_a_duplicate_waits_for_the_first_request_and_finds_its_order(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=5)
    for key_one, key_two in [(None, None), ("a", "b"), ("a", "a"), ("c", None), (None, "d")]:
        name = f"ann {key_one} {key_two}"
        with connect(database_url, autocommit=False) as first, connect(database_url) as second:
            order = reserve(first, shoe, name, key_one)
            duplicate = Call(partial(reserve, second, shoe, name, key_two))
            eventually(partial(blocked, db, second))
            first.commit()
            assert duplicate.result().order_id == order.order_id
        for key in (key_one, key_two):
            assert reserve(db, shoe, name, key).order_id == order.order_id


def test_a_duplicate_of_a_request_that_rolls_back_gets_its_own_order(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=5)
    with connect(database_url, autocommit=False) as first, connect(database_url) as second:
        reserve(first, shoe, "ann", "k")
        duplicate = Call(lambda: reserve(second, shoe, "ann", "k"))
        eventually(lambda: blocked(db, second))
        first.rollback()
        order = duplicate.result()
        assert (order.outcome, order.ticket) == ("reserved", 2)
    assert reserve(db, shoe, "ann", "k").order_id == order.order_id


@pytest.mark.parametrize("key", [None, "k"])
def test_a_hold_begins_after_the_wait_for_a_duplicate_that_rolls_back(
    db: Connection, database_url: str, clock: Clock, key: str | None
) -> None:
    shoe = item(db, stock=5, hold_seconds=2)
    with connect(database_url, autocommit=False) as first, connect(database_url) as second:
        reserve(first, shoe, "ann", key)
        duplicate = Call(lambda: reserve(second, shoe, "ann", key))
        eventually(lambda: blocked(db, second))
        clock.advance(3)
        first.rollback()
        order = duplicate.result()
    assert (order.outcome, order.status, order.ticket) == ("reserved", "reserved", 2)
    assert (order.created_at, order.reserved_at) == (clock.at(), clock.at())
    assert order.expires_at == clock.at(2)
    assert status(db, order.order_id).expires_at == clock.at(2)
    assert pay(db, order).outcome == "paid"
    assert value(db, "select count(*) from pgmq.q_payments where message ->> 'kind' = 'open'") == 1


@pytest.mark.parametrize("end", ["rollback", "commit"])
def test_all_holds_of_a_batch_begin_after_its_wait_for_a_duplicate(
    db: Connection, database_url: str, clock: Clock, end: str
) -> None:
    shoe = item(db, stock=4, hold_seconds=10)
    with connect(database_url, autocommit=False) as first, connect(database_url) as second:
        reserve(first, shoe, "bob")
        batch = Call(lambda: many(second, shoe, ["ann", "bob", "cid", "dan"]))
        eventually(lambda: blocked(db, second))
        clock.advance(3)
        getattr(first, end)()
        orders = batch.result()
    ann, bob, cid, dan = orders
    assert (ann.outcome, cid.outcome, dan.outcome) == ("reserved", "reserved", "waiting")
    assert bob.outcome == ("existing" if end == "commit" else "reserved")
    for order in (ann, cid):
        assert (order.created_at, order.reserved_at) == (clock.at(), clock.at())
        assert (order.status, order.expires_at) == ("reserved", clock.at(10))
        assert status(db, order.order_id).expires_at == clock.at(10)
    opens = "select count(*) from pgmq.q_payments where message ->> 'kind' = 'open'"
    assert value(db, opens) == 3


def test_a_batch_that_has_waited_ends_a_hold_that_is_over_by_now(
    db: Connection, database_url: str, clock: Clock
) -> None:
    shoe = item(db, stock=5, hold_seconds=2)
    with connect(database_url, autocommit=False) as first, connect(database_url) as second:
        old = reserve(first, shoe, "ann")
        batch = Call(lambda: many(second, shoe, ["ann", "bob"]))
        eventually(lambda: blocked(db, second))
        clock.advance(3)
        first.commit()
        ann, bob = batch.result()
    assert [o.outcome for o in (ann, bob)] == ["reserved", "reserved"]
    assert ann.order_id != old.order_id
    assert status(db, old.order_id).status == "expired"
    assert {ann.expires_at, bob.expires_at} == {clock.at(2)}


def test_an_open_transaction_around_reserve_delays_nobody_else(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=2, hold_seconds=1)
    ann = reserve(db, shoe, "ann")
    call(db, "change_item", shoe, Jsonb({"hold_seconds": 60}))
    with connect(database_url, autocommit=False) as slow, connect(database_url) as other:
        reserve(slow, shoe, "slow")
        assert Call(lambda: reserve(other, shoe, "bob")).result().outcome == "waiting"
        eventually(lambda: status(db, ann.order_id).status == "expired")
        swept = Call(lambda: sweep(other)).result()
        assert (swept.expired, swept.promoted) == (1, 1)
        assert statuses(db, shoe)["bob"] == "reserved"
        slow.commit()
    assert statuses(db, shoe)["slow"] == "reserved"


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_caller_with_an_old_snapshot_never_oversells(
    db: Connection, database_url: str, isolation: str
) -> None:
    shoe = item(db)
    with connect(database_url, autocommit=False) as old:
        old.execute(f"set transaction isolation level {isolation}")
        assert item_status(old, shoe).available == 1  # the snapshot is taken
        ann = reserve(db, shoe, "ann")
        assert reserve(old, shoe, "bob").outcome == "waiting"
        with pytest.raises(psycopg.errors.SerializationFailure):
            reserve(old, shoe, "ann")
        old.rollback()
    assert reserve(db, shoe, "ann").order_id == ann.order_id
    settle(db)


def test_pay_and_expire_agree_on_who_was_first(
    db: Connection, database_url: str, clock: Clock
) -> None:
    shoe = item(db, stock=2, hold_seconds=10)
    order = reserve(db, shoe, "ann")
    with connect(database_url, autocommit=False) as sweeper, connect(database_url) as payer:
        clock.set(order.expires_at)
        assert call(sweeper, "expire")[0] == 1
        clock.set(order.expires_at, -1)  # money that is in time by the clock, but comes second
        paying = Call(lambda: pay(payer, order))
        eventually(lambda: blocked(db, payer))
        sweeper.commit()
        assert paying.result().outcome == "refund_due"


def test_cancel_and_pay_agree_on_who_was_first(db: Connection, database_url: str) -> None:
    shoe = item(db, stock=2)
    ann, bob = reserve(db, shoe, "ann"), reserve(db, shoe, "bob")
    with connect(database_url, autocommit=False) as first, connect(database_url) as second:
        call(first, "cancel", ann.order_id)
        paying = Call(lambda: pay(second, ann))
        eventually(lambda: blocked(db, second))
        first.commit()
        assert paying.result().outcome == "refund_due"

        pay(first, bob)
        cancelling = Call(lambda: call(second, "cancel", bob.order_id))
        eventually(lambda: blocked(db, second))
        first.commit()
        with pytest.raises(psycopg.Error) as error:
            cancelling.result()
        assert error.value.sqlstate == "RV202"


def test_a_session_opened_while_the_hold_expires_is_voided_either_way(
    db: Connection, database_url: str, clock: Clock
) -> None:
    for first_is_expiry in (True, False):
        order = reserve(db, item(db, f"i{first_is_expiry}", hold_seconds=10), "ann")
        (job,) = rows(db, "select * from flashsale.take_payment_jobs(10, 30)")
        clock.advance(10)
        with connect(database_url, autocommit=False) as one, connect(database_url) as two:
            opened = [job.job_id, job.tries, job.payment_id, f"s{order.item_id}", "http://pay"]
            if first_is_expiry:
                call(one, "expire")
                assert call(two, "payment_opened", *opened)[0] == "busy"
                one.commit()
                assert call(two, "payment_opened", *opened)[0] == "superseded"
            else:
                call(one, "payment_opened", *opened)
                # expire skips the locked order and does not wait for it.
                assert Call(lambda: call(two, "expire")).result()[0] == 0
                one.commit()
                assert call(two, "expire")[0] == 1
        kinds = {j.kind for j in rows(db, "select * from flashsale.take_payment_jobs(10, 30)")}
        assert kinds == {"void"}


def freed_unit(db: Connection, database_url: str, rounds: int) -> None:
    shoe = item(db, hold_seconds=3600)
    holder = reserve(db, shoe, "first")
    with sessions(database_url, 3) as (canceller, sweeper, newcomer):
        for n in range(rounds):
            waiting = reserve(db, shoe, f"w{n}")
            start = threading.Barrier(3)

            def at_once(function: Callable[[], Any], start: threading.Barrier = start) -> Any:
                start.wait()
                return function()

            calls = [
                Call(partial(at_once, partial(call, canceller, "cancel", holder.order_id))),
                Call(partial(at_once, partial(sweep, sweeper))),
                Call(partial(at_once, partial(reserve, newcomer, shoe, f"n{n}"))),
            ]
            fresh = [c.result() for c in calls][2]
            assert fresh.outcome == "waiting"
            sweep(db)
            assert status(db, waiting.order_id).status == "reserved"
            call(db, "cancel", fresh.order_id)
            holder = waiting


def test_a_freed_unit_goes_to_the_line_and_never_to_a_new_customer(
    db: Connection, database_url: str
) -> None:
    freed_unit(db, database_url, 50)


@pytest.mark.storm
def test_a_freed_unit_goes_to_the_line_a_thousand_times(db: Connection, database_url: str) -> None:
    freed_unit(db, database_url, 1000)


def opposite_batches(db: Connection, url: str, rounds: int) -> None:
    shoe = item(db, stock=1_000_000, hold_seconds=3600)
    names = ["ann", "bob", "cid", "dan"]

    def work(conn: Connection, order: list[str]) -> None:
        for n in range(rounds):
            batch = many(conn, shoe, [f"{name}{n}" for name in order])
            assert all(o.outcome in ("reserved", "existing") for o in batch)

    with sessions(url, 2) as (one, two):
        for running in [
            Call(lambda: work(one, names)),
            Call(lambda: work(two, names[::-1])),
        ]:
            running.join()
            running.result()
    assert value(db, "select count(*) from flashsale.open_reservation") == 4 * rounds


def test_batches_in_opposite_order_do_not_deadlock(db: Connection, database_url: str) -> None:
    opposite_batches(db, database_url, 300)


@pytest.mark.storm
def test_batches_in_opposite_order_do_not_deadlock_ten_thousand_times(
    db: Connection, database_url: str
) -> None:
    opposite_batches(db, database_url, 10_000)


def keep_sweeping(conn: Connection, done: threading.Event) -> None:
    while not done.is_set():
        sweep(conn)


def ask_and_change_their_minds(conn: Connection, shoe: int, seed: int, customers: int) -> None:
    """Plays one customer after the other: each reserves, and may roll back, cancel or pay."""
    dice = random.Random(seed)
    for n in range(customers):
        name = f"{seed}-{n}"
        if dice.random() < 0.05:
            with conn.transaction(force_rollback=True):
                reserve(conn, shoe, name)
            continue
        order = reserve(conn, shoe, name, f"k{n}" if dice.random() < 0.5 else None)
        roll = dice.random()
        if roll < 0.2:
            call(conn, "cancel", order.order_id)
        elif order.outcome == "reserved" and roll < 0.5:
            assert pay(conn, order).outcome in ("paid", "refund_due")
        elif roll < 0.55:
            assert reserve(conn, shoe, name).order_id == order.order_id
        elif order.outcome == "reserved" and roll < 0.6:
            take_at_the_till(conn, order, dice)


def take_at_the_till(conn: Connection, order: Any, dice: random.Random) -> None:
    """The till takes the money, if it is not too late; some of these orders are refunded."""
    try:
        call(conn, "pay_offline", order.order_id, f"till-{order.order_id}")
    except psycopg.Error as error:
        if error.sqlstate != "RV203":
            raise
        return
    if dice.random() < 0.5:
        again = [call(conn, "refund_order", order.order_id, "broken").outcome for _ in range(2)]
        assert again == ["refunded", "already_refunded"]


def storm(db: Connection, url: str, requests: int, stock: int) -> None:
    """Does everything at once: rollbacks, cancels, payments, short holds, restocks and sweeps."""
    shoe = item(db, stock=stock, hold_seconds=1)
    done = threading.Event()
    oversold: list[Any] = []

    def watcher(conn: Connection) -> None:
        while not done.is_set():
            oversold.extend(rows(conn, "select * from flashsale.violation"))

    with sessions(url, 11) as conns:
        background = [
            Call(lambda: keep_sweeping(conns[8], done)),
            Call(lambda: keep_sweeping(conns[9], done)),
            Call(lambda: watcher(conns[10])),
        ]
        try:
            running = [
                Call(partial(ask_and_change_their_minds, conns[n], shoe, n, requests // 8))
                for n in range(8)
            ]
            for c in running:
                c.join(500)
                c.result()
        finally:
            done.set()
        for c in background:
            c.result()
    assert oversold == []

    # Nothing is lost: waiting customers are served in the end, until every unit is paid for.
    def sell_out() -> bool:
        settle(db)
        for order in rows(
            db,
            "select * from flashsale.order_status where order_id = any (array("
            "select order_id from flashsale.open_reservation))",
        ):
            pay(db, order)
        sweep(db)
        return bool(item_status(db, shoe).paid == stock)

    many(db, shoe, [f"late{n}" for n in range(stock)])
    eventually(sell_out, 30)
    assert rows(db, "select * from flashsale.violation") == []


def test_a_storm_breaks_no_promise(db: Connection, database_url: str) -> None:
    storm(db, database_url, 800, 25)


@pytest.mark.storm
def test_a_great_storm_breaks_no_promise(db: Connection, database_url: str) -> None:
    storm(db, database_url, 12_000, 300)


def pay_at_the_deadline(db: Connection, url: str, count: int, seed: int) -> None:
    """Each order is paid within 50 ms before or after its deadline, while sweeps run."""
    shoe = item(db, f"round {seed}", stock=count, hold_seconds=1)
    orders = many(db, shoe, [f"c{n}" for n in range(count)])
    dice = random.Random(seed)
    moments = sorted((dice.uniform(-0.05, 0.05), order) for order in orders)
    done = threading.Event()

    def pay_at(conn: Connection, offset: float, order: Any) -> str:
        conn.execute(
            "select pg_sleep(extract(epoch from %s::timestamptz - clock_timestamp()) + %s)",
            [order.expires_at, offset],
        )
        return str(pay(conn, order).outcome)

    with connect(url) as sweeper:
        sweeping = Call(lambda: keep_sweeping(sweeper, done))
        outcomes = in_parallel(url, 25, [partial(pay_at, offset=t, order=o) for t, o in moments])
        done.set()
        sweeping.result()
    sweep(db)  # for orders that the last sweep skipped, since a late payment had locked them
    found = rows(
        db,
        "select o.status, p.status::text as payment from flashsale_data.orders o "
        "join flashsale_data.payments p using (order_id) where o.item_id = %s",
        shoe,
    )
    assert len(found) == count
    assert {(f.status, f.payment) for f in found} <= {
        ("paid", "succeeded"),
        ("expired", "refund_due"),
    }
    assert [f.status for f in found].count("paid") == outcomes.count("paid")
    assert outcomes.count("paid") + outcomes.count("refund_due") == count


def test_payment_around_the_deadline_is_paid_or_refunded(db: Connection, database_url: str) -> None:
    pay_at_the_deadline(db, database_url, 50, seed=0)


@pytest.mark.storm
def test_payment_around_the_deadline_a_thousand_times(db: Connection, database_url: str) -> None:
    for seed in range(20):
        pay_at_the_deadline(db, database_url, 50, seed)
