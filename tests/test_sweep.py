"""Sweeps: what they find, whom they wait for (nobody), and what an error at one item costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flashsale.testing.clock import Clock
from flashsale.worker import run
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
    settle,
    status,
    statuses,
    sweep,
    value,
)


def burn(db: Connection, shoe: int, tickets: int = 1) -> None:
    """Takes tickets in a transaction that rolls back."""
    with db.transaction(force_rollback=True):
        many(db, shoe, [f"eve {n}" for n in range(tickets)])


def sweep_as_runner(conn: Connection, limit: int = 100) -> list[Any]:
    """Sweeps once, one item per transaction, as the worker and pg_cron do."""
    return [
        call(conn, "sweep_item", "runner", due.item_id, due.overdue_ids, limit)
        for due in rows(conn, "select * from flashsale.begin_sweep('runner')")
    ]


def voids(db: Connection) -> int:
    return int(value(db, "select count(*) from flashsale.order_status where status = 'void'"))


# Holes


def test_a_hole_is_noted_by_one_visit_and_filled_by_the_next(db: Connection) -> None:
    shoe = item(db)
    burn(db, shoe)
    assert call(db, "fill", shoe)[0] == 0
    assert call(db, "fill", shoe)[0] == 1


def test_a_visit_fills_what_is_certain_and_notes_the_next_tickets(db: Connection) -> None:
    """So the line's length is never more than two visits old, however long the storm lasts."""
    shoe = item(db)
    filled = []
    for _ in range(4):
        burn(db, shoe)
        filled.append(call(db, "fill", shoe)[0])
    assert filled == [0, 1, 1, 1]


@pytest.mark.parametrize("first", ["sweep", "expire", "nothing"])
def test_a_transaction_that_has_an_id_already_notes_no_ticket(
    db: Connection, database_url: str, first: str
) -> None:
    """A request may have taken a ticket since then, with an id that is higher."""
    shoe = item(db, stock=3, hold_seconds=1)
    reserve(db, shoe, "old")
    with (
        connect(database_url, autocommit=False) as sweeper,
        connect(database_url, autocommit=False) as slow,
    ):
        sweeper.execute("set lock_timeout = '2s'")
        if first != "nothing":
            call(sweeper, first)
        value(sweeper, "select pg_current_xact_id()::text")
        reserve(slow, shoe, "ann")
        for _ in range(4):
            sweep(sweeper)
            call(sweeper, "fill", shoe)
        sweeper.commit()
        db.execute("set lock_timeout = '2s'")
        for _ in range(4):
            sweep(db)
        slow.commit()  # no unique violation: nobody took its ticket for a hole
    assert statuses(db, shoe)["ann"] == "reserved"


def test_a_sweep_in_a_transaction_of_its_own_notes_the_last_tickets_first(
    db: Connection, database_url: str
) -> None:
    """Although expiring, which comes before filling, gives the transaction its id."""
    shoe = item(db, stock=3)
    many(db, shoe, ["ann", "bob"])
    burn(db, shoe)
    call(db, "cancel", reserve(db, shoe, "cid").order_id)
    assert sweep(db).filled == 0
    assert sweep(db).filled == 1


def test_what_another_cluster_noted_is_forgotten(db: Connection) -> None:
    """As pg_dump and pg_restore into a new cluster leave it: that one counts from a smaller id."""
    shoe = item(db)
    burn(db, shoe)
    many(db, shoe, ["ann"])
    sweep(db)
    db.execute("update flashsale_data.items set noted_xid = '99999999999'")
    assert "what is noted is of this cluster" in promises(db)
    settle(db)
    assert statuses(db, shoe) == {"ann": "reserved"}


def test_the_limit_is_one_of_holes_and_not_of_tickets(db: Connection) -> None:
    shoe = item(db, stock=0)  # so that no hole is recycled, which has limits of its own
    for batch in range(3):
        many(db, shoe, [f"{batch} {n}" for n in range(100)])
        burn(db, shoe)
    sweep(db)
    first = call(db, "sweep", "test", 2)
    assert (first.filled, first.more) == (2, True)
    second = call(db, "sweep", "test", 2)
    assert (second.filled, second.more) == (1, False)
    assert value(db, "select settled from flashsale_data.items") == 303


@pytest.mark.parametrize("verb", ["reserve", "reserve_many"])
def test_a_ticket_whose_request_stops_before_it_writes_is_no_hole(
    db: Connection, database_url: str, verb: str
) -> None:
    """The request has its transaction id before its ticket, so sweeps know that it is there."""
    shoe = item(db, stock=5)
    reserve(db, shoe, "bob")  # a sequence's first value would give the transaction its id, too
    definition = value(
        db,
        "select pg_get_functiondef(oid) from pg_proc where proname = 'new_order'",
    )
    db.execute(
        """
        create or replace function flashsale.new_order(
          p_item_id integer, p_ticket integer, p_customer_id text, p_now timestamptz,
          p_expires_at timestamptz)
        returns table (
          order_id bigint, item_id integer, ticket integer, customer_id text,
          status flashsale_data.order_status, created_at timestamptz, reserved_at timestamptz,
          expires_at timestamptz)
        language plpgsql volatile as $$
        begin
          perform pg_advisory_xact_lock(1);
          return query select
            flashsale.order_id_of(p_item_id, p_ticket), p_item_id, p_ticket, p_customer_id,
            'reserved'::flashsale_data.order_status, p_now, p_now, p_expires_at;
        end $$
        """
    )
    ask: Callable[[Connection], Any] = {
        "reserve": lambda conn: reserve(conn, shoe, "ann"),
        "reserve_many": lambda conn: many(conn, shoe, ["ann"])[0],
    }[verb]
    with connect(database_url) as door, connect(database_url) as slow:
        value(door, "select pg_advisory_lock(1)::text")
        asking = Call(lambda: ask(slow))
        eventually(lambda: blocked(db, slow))
        for _ in range(4):
            sweep(db)
            call(db, "fill", shoe)  # a sweep knows that there is nothing to do yet
        filled = voids(db)
        value(door, "select pg_advisory_unlock(1)::text")
        assert filled == 0
        assert asking.result().outcome == "reserved"
    db.execute(definition.encode())


def test_a_line_that_waits_for_a_transaction_costs_an_idle_sweep_nothing(
    db: Connection, database_url: str
) -> None:
    shoe = item(db)
    with connect(database_url, autocommit=False) as slow:
        reserve(slow, shoe, "ann")
        sweep(db)
        assert rows(db, "select * from flashsale.begin_sweep('runner')") == []
    sweep(db)


# Nobody waits


def test_a_sweep_does_not_wait_for_an_order_that_is_being_paid(
    db: Connection, database_url: str, clock: Clock
) -> None:
    shoe = item(db, stock=2, hold_seconds=10)
    ann, _bob = many(db, shoe, ["ann", "bob"])
    with connect(database_url, autocommit=False) as payer:
        pay(payer, ann)
        clock.advance(10)
        db.execute("set lock_timeout = '2s'")
        assert sweep(db).expired == 1
        payer.commit()


def test_first_sweeps_of_one_name_do_not_wait_for_each_other(
    db: Connection, database_url: str
) -> None:
    with connect(database_url, autocommit=False) as one, connect(database_url) as two:
        call(one, "sweep", "new")
        two.execute("set lock_timeout = '2s'")
        call(two, "sweep", "new")
        call(two, "sweep", "new")
        one.commit()
    assert value(db, "select sweeps from flashsale.sweep_status where runner = 'new'") == 3


def test_later_sweeps_of_one_name_do_not_wait_for_each_other(
    db: Connection, database_url: str
) -> None:
    call(db, "sweep", "old")
    with connect(database_url, autocommit=False) as one, connect(database_url) as two:
        call(one, "sweep", "old")
        two.execute("set lock_timeout = '2s'")
        call(two, "sweep", "old")
        one.commit()


def test_two_sweeps_may_forget_the_same_runner(
    db: Connection, database_url: str, clock: Clock
) -> None:
    call(db, "sweep", "gone")
    clock.advance(90_000)
    with connect(database_url, autocommit=False) as one, connect(database_url) as two:
        call(one, "sweep", "one")
        two.execute("set lock_timeout = '2s'")
        call(two, "sweep", "two")
        one.commit()
    assert {r.runner for r in rows(db, "select * from flashsale.sweep_status")} == {"one", "two"}


def test_a_sweep_does_not_wait_for_one_that_is_folding_tallies(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=2)
    many(db, shoe, ["ann", "bob", "cid"])
    call(db, "cancel", reserve(db, shoe, "cid").order_id)  # leaves a tally
    with connect(database_url, autocommit=False) as one, connect(database_url) as two:
        sweep(one)
        two.execute("set lock_timeout = '2s'")
        sweep(two)
        one.commit()
    assert value(db, "select sum(failures) from flashsale.sweep_status") == 0
    sweep(db)
    assert item_status(db, shoe).waiting == 0


def test_open_transactions_with_several_sweeps_each_do_not_wait_for_each_other(
    db: Connection, database_url: str
) -> None:
    shoe, hat = item(db), item(db, "hat")
    with (
        connect(database_url, autocommit=False) as one,
        connect(database_url, autocommit=False) as two,
    ):
        for session in (one, two):
            session.execute("set lock_timeout = '2s'")
            session.commit()
        for thing in (shoe, hat):
            ann, _bob, _cid = many(db, thing, ["ann", "bob", "cid"])
            call(db, "cancel", ann.order_id)
        call(one, "promote", shoe)
        call(two, "promote", hat)
        for session in (one, two, one, two):
            sweep(session)
        one.commit()
        two.commit()
    assert value(db, "select sum(failures) from flashsale.sweep_status") == 0
    assert statuses(db, shoe)["bob"] == statuses(db, hat)["bob"] == "reserved"


def test_a_clock_that_goes_back_makes_no_sweep_wait_for_a_leased_job(
    db: Connection, database_url: str, clock: Clock
) -> None:
    reserve(db, item(db), "ann")
    sweep(db)
    with connect(database_url, autocommit=False) as worker:
        rows(worker, "select * from flashsale.take_payment_jobs(10, 30)")
        worker.commit()
        rows(worker, "select vt from pgmq.q_payments for update")
        clock.advance(-60)
        db.execute("set lock_timeout = '2s'")
        sweep(db)


# Every item has its turn


def test_one_sweep_serves_every_item_where_somebody_waits_for_a_unit_that_is_free(
    db: Connection,
) -> None:
    items = [item(db, f"i{n}", stock=0) for n in range(7)]
    for n in items:
        reserve(db, n, "ann")
    settle(db)  # so that nothing but the waiting orders is a reason to visit an item
    for n in items:
        call(db, "restock", n, 1)
    assert sweep(db).promoted == 7
    for n in items:
        reserve(db, n, "bob")
    settle(db)
    for n in items:
        call(db, "restock", n, 1)
    sweep_as_runner(db)
    assert value(db, "select count(*) from flashsale.open_reservation") == 14


def test_one_sweep_recycles_the_forfeits_of_every_item(db: Connection) -> None:
    orders = [reserve(db, item(db, f"i{n}"), "ann") for n in range(7)]
    settle(db)
    for order in orders:
        call(db, "cancel", order.order_id)
    assert sweep(db).recycled == 7


def test_promote_and_sweep_say_that_there_is_more(db: Connection) -> None:
    shoe = item(db, stock=0)
    many(db, shoe, ["ann", "bob", "cid", "dan", "eli"])
    call(db, "restock", shoe, 5)
    served = call(db, "promote", shoe, 2)
    assert (served.promoted, served.more) == (2, True)
    (swept,) = sweep_as_runner(db, limit=2)
    assert swept.more
    (swept,) = sweep_as_runner(db, limit=2)
    assert not swept.more
    assert not call(db, "promote", shoe, 2).more


def test_lines_that_end_do_not_keep_another_items_line_waiting(
    db: Connection, clock: Clock
) -> None:
    """Each of 20 items has more to do than a sweep may do in all. One has a single unit to give."""
    for n in range(20):
        many(db, item(db, f"i{n}", stock=0, closes_at=clock.at(30)), [f"c{c}" for c in range(30)])
    shoe = item(db)
    ann, _bob = many(db, shoe, ["ann", "bob"])
    clock.advance(30)
    call(db, "cancel", ann.order_id)
    first = call(db, "sweep", "test", 40)
    assert statuses(db, shoe)["bob"] == "reserved"
    assert 20 <= first.unserved <= 40
    assert first.more
    sweeps = 1
    while call(db, "sweep", "test", 40).more:
        sweeps += 1
    assert sweeps < 60
    assert value(db, "select count(*) from flashsale.waiting_line") == 0


def test_an_item_with_little_to_do_comes_early(db: Connection, clock: Clock) -> None:
    """Before nearly all of those with many overdue holds, and of those whose line ends."""
    for n in range(10):
        many(db, item(db, f"h{n}", stock=100, hold_seconds=10), [f"c{c}" for c in range(100)])
        reserve(db, item(db, f"i{n}", stock=0, closes_at=clock.at(10)), "ann")
    shoe = item(db)
    ann, _bob = many(db, shoe, ["ann", "bob"])
    clock.advance(10)
    call(db, "cancel", ann.order_id)
    for _ in range(5):
        due = rows(db, "select item_id from flashsale.begin_sweep('runner')")
        assert len(due) == 21
        assert shoe in [d.item_id for d in due[:5]]


def test_an_item_with_many_overdue_holds_has_them_expired_bit_by_bit(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db, stock=30, hold_seconds=10)
    many(db, shoe, [f"c{n}" for n in range(30)])
    clock.advance(10)
    expired = "select expired from flashsale.sweep_status where runner = 'runner'"
    assert [s.more for s in sweep_as_runner(db, limit=20)] == [True]
    assert value(db, expired) == 20
    assert [s.more for s in sweep_as_runner(db, limit=20)] == [False]
    assert value(db, expired) == 30


def test_many_overdue_holds_of_one_item_do_not_hide_those_of_another(
    db: Connection, clock: Clock
) -> None:
    big, small = item(db, stock=11_000, hold_seconds=5), item(db, "hat", hold_seconds=10)
    for batch in range(11):
        many(db, big, [f"c{batch} {n}" for n in range(1000)])
    reserve(db, small, "ann")
    clock.advance(10)
    due = rows(db, "select * from flashsale.begin_sweep('runner', %s)", run.SWEEP_HOLDS)
    assert {d.item_id for d in due if d.overdue_ids} == {big, small}


# An error at one item


def broken(db: Connection, shoe: int) -> None:
    """No hold of this item can expire any more."""
    db.execute(
        "alter table flashsale_data.orders add constraint broken "
        f"check (item_id <> {shoe} or status <> 'expired') not valid"
    )


@pytest.mark.parametrize("swept_by", ["people", "a runner"])
def test_an_error_at_one_item_is_noted_and_the_others_go_on(
    db: Connection, clock: Clock, swept_by: str
) -> None:
    shoe, hat = item(db, hold_seconds=10), item(db, "hat", hold_seconds=10)
    for thing in (shoe, hat):
        many(db, thing, ["ann", "bob"])
    clock.advance(10)
    broken(db, shoe)
    once = {"people": sweep, "a runner": sweep_as_runner}[swept_by]
    once(db)
    assert statuses(db, hat)["bob"] == "reserved"
    (failure,) = rows(db, "select * from flashsale.sweep_failure")
    assert (failure.item_id, failure.sku, failure.failures) == (shoe, "shoe", 1)
    assert failure.error.startswith("23514: ")
    assert value(db, "select failures from flashsale.sweep_status") == 1

    once(db)  # it is not tried again at once
    assert value(db, "select failures from flashsale.sweep_failure") == 1
    clock.advance(1)
    once(db)
    assert value(db, "select failures from flashsale.sweep_failure") == 2
    clock.advance(0.25)  # the second time, it is left out for longer
    once(db)
    assert value(db, "select failures from flashsale.sweep_failure") == 2

    db.execute("alter table flashsale_data.orders drop constraint broken")
    clock.advance(60)
    once(db)
    assert rows(db, "select * from flashsale.sweep_failure") == []
    assert statuses(db, shoe)["bob"] == "reserved"


def test_overdue_holds_of_a_failing_item_do_not_hide_those_of_others(
    db: Connection, clock: Clock
) -> None:
    shoe, hat = item(db, stock=20, hold_seconds=5), item(db, "hat", hold_seconds=10)
    many(db, shoe, [f"c{n}" for n in range(20)])
    reserve(db, hat, "ann")
    clock.advance(10)
    broken(db, shoe)
    for _ in range(2):
        call(db, "sweep", "test", 10)
    assert value(db, "select expired from flashsale.sweep_status") == 1
    db.execute("alter table flashsale_data.orders drop constraint broken")


def test_a_failure_that_was_mended_by_hand_is_forgotten(db: Connection, clock: Clock) -> None:
    shoe, hat = item(db), item(db, "hat")
    call(db, "sweep_failed", "runner", shoe, "too slow")
    assert value(db, "select failures from flashsale.sweep_status") == 1
    clock.advance(601)
    call(db, "sweep_failed", "runner", hat, "too slow")
    assert [f.sku for f in rows(db, "select * from flashsale.sweep_failure")] == ["hat"]


def test_failures_of_one_item_do_not_wait_for_each_other(db: Connection, database_url: str) -> None:
    shoe = item(db)
    with connect(database_url, autocommit=False) as one, connect(database_url) as two:
        two.execute("set lock_timeout = '2s'")
        for _ in range(2):
            call(one, "sweep_failed", "runner", shoe, "too slow")
            call(two, "sweep_failed", "runner", shoe, "too slow")
        one.commit()
        for session in (one, two):
            call(session, "sweep_failed", "runner", shoe, "too slow")
        call(two, "sweep_item", "runner", shoe, None, 10)
        one.commit()


def test_pg_crons_sweep_commits_after_each_item_and_goes_on_after_an_error(
    db: Connection, database_url: str, clock: Clock
) -> None:
    shoe, hat = item(db, hold_seconds=10), item(db, "hat", stock=150, hold_seconds=10)
    reserve(db, shoe, "ann")
    many(db, hat, [f"c{n}" for n in range(150)])
    burn(db, hat)
    many(db, hat, ["eve"])
    clock.advance(10)
    broken(db, shoe)
    more = [value(db, "call flashsale.sweep_round(null)") for _ in range(2)]
    assert more == [False, False]
    (swept,) = rows(db, "select * from flashsale.sweep_status where runner = 'pg_cron'")
    assert (swept.sweeps, swept.expired, swept.failures) == (2, 150, 1)
    assert voids(db) == 1  # noted and filled in transactions of their own
    assert statuses(db, hat)["eve"] == "reserved"
    db.execute("alter table flashsale_data.orders drop constraint broken")


# Who is in the way


def test_filling_blocker_names_an_open_transaction_of_another_database(
    db: Connection, database_url: str, postgres: Any
) -> None:
    shoe = item(db)
    with connect(
        postgres.url("postgres", "postgres"), autocommit=False, application_name="a report"
    ) as report:
        value(report, "select pg_current_xact_id()::text")
        burn(db, shoe, 3)
        settle(db)
        assert voids(db) == 0
        found = rows(db, "select * from flashsale.filling_blocker")
        (blocker,) = [b for b in found if b.application_name == "a report"]
        assert (blocker.database_name, blocker.user_name) == ("postgres", "postgres")
        assert (blocker.pid, blocker.gid) == (report.info.backend_pid, None)
        assert (blocker.items, blocker.tickets) == (1, 3)
        assert blocker.waiting_seconds >= 0
        report.rollback()
    settle(db)
    assert voids(db) == 3
    assert rows(db, "select * from flashsale.filling_blocker") == []


def test_filling_blocker_names_a_forgotten_prepared_transaction(
    db: Connection, database_url: str
) -> None:
    shoe = item(db)
    with connect(database_url, autocommit=False) as forgetful:
        value(forgetful, "select pg_current_xact_id()::text")
        forgetful.execute("prepare transaction 'forgotten'")
        forgetful.rollback()
    try:
        burn(db, shoe, 2)
        settle(db)
        found = rows(db, "select * from flashsale.filling_blocker")
        (blocker,) = [b for b in found if b.gid is not None]
        assert (blocker.gid, blocker.state, blocker.pid) == ("forgotten", "prepared", None)
        assert (blocker.tickets, blocker.user_name) == (2, "flashsale")
        assert blocker.since is not None
    finally:
        db.execute("rollback prepared 'forgotten'")
    settle(db)
    assert voids(db) == 2


def test_filling_blocker_shows_the_state_of_sessions_that_the_owner_may_see(
    db: Connection, database_url: str
) -> None:
    shoe = item(db)
    with connect(database_url, autocommit=False) as own:
        reserve(own, shoe, "ann")
        sweep(db)
        found = rows(db, "select * from flashsale.filling_blocker")
        (blocker,) = [b for b in found if b.pid == own.info.backend_pid]
        assert blocker.state == "idle in transaction"
        assert blocker.since is not None


# Change-data-capture


def test_everything_goes_on_with_a_publication_for_all_tables(
    db: Connection, database_url: str, postgres: Any, clock: Clock
) -> None:
    """Rows of a table without a replica identity can't be deleted or updated then."""
    name = value(db, "select current_database()")
    shoe = item(db, stock=2, hold_seconds=10)
    with connect(postgres.url(name, "postgres")) as admin:
        admin.execute("create publication everything for all tables")
        try:
            many(db, shoe, ["ann", "bob", "cid", "dan"])
            call(db, "cancel", reserve(db, shoe, "dan").order_id)
            call(db, "sweep_failed", "runner", shoe, "too slow")
            clock.advance(100_000)
            settle(db)
            assert sorted(statuses(db, shoe).values()) == [
                "cancelled",
                "expired",
                "expired",
                "reserved",
            ]
            rows(db, "select * from flashsale.take_payment_jobs(10, 30)")
            rows(db, "select * from flashsale.take_notifications(10, 30)")
        finally:
            admin.execute("drop publication everything")


def test_every_table_of_ours_has_a_replica_identity(db: Connection) -> None:
    assert (
        rows(
            db,
            """
        select c.oid::regclass
        from pg_class c
        where c.relkind = 'r'
          and (c.relnamespace = 'flashsale_data'::regnamespace
            or c.relnamespace = 'pgmq'::regnamespace and c.relname ~ '^[qa]_')
          and c.relreplident = 'd'
          and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)
        """,
        )
        == []
    )


def promises(db: Connection) -> set[str]:
    return {v.promise for v in rows(db, "select * from flashsale.violation")}


def test_an_overdue_hold_ends_at_the_time_when_it_could_be_locked(
    db: Connection, database_url: str, clock: Clock
) -> None:
    shoe = item(db, stock=2, hold_seconds=10)
    order = reserve(db, shoe, "ann")
    clock.advance(10)
    with connect(database_url, autocommit=False) as other, connect(database_url) as ann:
        rows(
            other,
            "select from flashsale_data.orders where order_id = %s for update",
            order.order_id,
        )
        again = Call(lambda: reserve(ann, shoe, "ann"))
        eventually(lambda: blocked(db, ann))
        clock.advance(5)
        other.commit()
        assert again.result().ticket == 2
    assert status(db, order.order_id).ended_at == clock.at(0)
