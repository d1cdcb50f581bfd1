"""Races of the draw: entries, cancels and sweeps in open transactions, step by step."""

from __future__ import annotations

import psycopg
import pytest

from flashsale.testing import Clock
from interleave import threaded_sessions
from support import (
    Connection,
    blocked,
    call,
    connect,
    eventually,
    many,
    reserve,
    rows,
    status,
    statuses,
    sweep,
)
from test_draw import draw_item, drawn, finish, places


def test_an_entry_that_is_not_committed_at_the_opening_delays_the_draw(
    db: Connection, clock: Clock, database_url: str
) -> None:
    shoe = draw_item(db, clock)
    reserve(db, shoe, "bob")
    with connect(database_url) as late, late.transaction():
        entry = reserve(late, shoe, "ann")
        assert entry.outcome == "entered"
        clock.advance(61)
        finish(db)
        for _ in range(3):  # a runner may come for another reason
            call(db, "sweep_item", "test", shoe, None, 1000)
        assert drawn(db, shoe).state == "entering"
    finish(db)
    public = drawn(db, shoe)
    assert (public.state, public.entries) == ("drawn", 2)
    assert status(db, entry.order_id).ticket in (1, 2)


def test_an_entry_of_a_closed_sale_that_is_not_committed_is_ended_too(
    db: Connection, clock: Clock, database_url: str
) -> None:
    shoe = draw_item(db, clock)
    with connect(database_url) as late, late.transaction():
        reserve(late, shoe, "ann")
        call(db, "close_item", shoe)
        finish(db)
    finish(db)
    assert statuses(db, shoe) == {"ann": "unserved"}
    assert drawn(db, shoe).state == "called_off"


def test_a_transaction_that_began_before_the_opening_enters_no_more(
    db: Connection, clock: Clock, database_url: str
) -> None:
    shoe = draw_item(db, clock)
    with connect(database_url) as late, late.transaction():
        late.execute("select pg_current_xact_id()")
        clock.advance(61)
        assert reserve(late, shoe, "ann").outcome == "not_open"


def test_a_sweep_that_has_an_id_already_notes_nothing(
    db: Connection, clock: Clock, database_url: str
) -> None:
    shoe = draw_item(db, clock)
    with connect(database_url) as sweeper, sweeper.transaction():
        sweeper.execute("select pg_current_xact_id()")
        with connect(database_url) as late, late.transaction():
            entry = reserve(late, shoe, "ann")  # its id is the younger one
            clock.advance(61)
            sweep(sweeper)
            sweeper.execute("commit")
            finish(db)
            assert drawn(db, shoe).state == "entering"
        sweeper.execute("begin")
    finish(db)
    assert status(db, entry.order_id).ticket == 1


@pytest.mark.parametrize("move", ["open_item", "close_item"])
def test_an_old_snapshot_can_not_enter_what_has_been_opened_or_closed(
    db: Connection, clock: Clock, database_url: str, move: str
) -> None:
    shoe = draw_item(db, clock)
    with connect(database_url) as late:
        late.autocommit = False
        late.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        late.execute("select 1 from flashsale.items()")  # its snapshot
        call(db, move, shoe)
        with pytest.raises(psycopg.errors.SerializationFailure):
            reserve(late, shoe, "ann")
    finish(db)
    assert statuses(db, shoe) == {}


def test_what_was_noted_is_forgotten_when_the_sale_is_opened_again(
    db: Connection, clock: Clock, database_url: str
) -> None:
    shoe = draw_item(db, clock)
    opens_at = str(clock.at(60))
    call(db, "close_item", shoe)
    sweep(db)  # it has noted that nobody enters any more
    rows(
        db,
        "select * from flashsale.change_item(%s, jsonb_build_object("
        "'opens_at', %s::text, 'closes_at', null))",
        shoe,
        opens_at,
    )
    with connect(database_url) as late, late.transaction():
        entry = reserve(late, shoe, "ann")
        clock.advance(61)
        finish(db)
        assert drawn(db, shoe).state == "entering"
    finish(db)
    assert status(db, entry.order_id).ticket == 1


def test_an_id_of_another_cluster_is_noted_anew(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock)
    reserve(db, shoe, "ann")
    db.execute("update flashsale_data.draws set noted_xid = '9999999999'")
    clock.advance(61)
    finish(db)
    assert drawn(db, shoe).state == "drawn"


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_a_duplicate_waits_for_the_entry_that_came_first(
    db: Connection, clock: Clock, database_url: str, ending: str
) -> None:
    shoe = draw_item(db, clock)
    answers = []
    with threaded_sessions(database_url, 1) as (other,), connect(database_url) as first:
        first.execute("begin")
        entry = reserve(first, shoe, "ann", "k1")
        other.submit(lambda conn: answers.append(reserve(conn, shoe, "ann", "k1")))
        eventually(lambda: blocked(db, other.conn))
        first.execute(ending)
        assert other.idle(30)
    (answer,) = answers
    assert answer.outcome == ("existing" if ending == "commit" else "entered")
    assert (answer.order_id == entry.order_id) == (ending == "commit")
    assert len(statuses(db, shoe)) == 1


def test_who_cancels_while_they_are_drawn_gives_up_the_order_of_the_ticket(
    db: Connection, clock: Clock, database_url: str
) -> None:
    shoe = draw_item(db, clock, stock=1)
    ann, bob = (a.order_id for a in many(db, shoe, ["ann", "bob"]))
    clock.advance(61)
    while drawn(db, shoe).state != "drawing":
        sweep(db)
    sweep(db)  # the hashes
    with threaded_sessions(database_url, 1) as (other,), connect(database_url) as sweeper:
        answers = []
        sweeper.execute("begin")
        sweep(sweeper)
        other.submit(lambda conn: answers.append(call(conn, "cancel", ann, "ann")))
        eventually(lambda: blocked(db, other.conn))
        sweeper.execute("commit")
        assert other.idle(30) and not other.errors
    (answer,) = answers
    assert (answer.outcome, answer.order_id) == ("cancelled", ann)
    assert answer.ticket in (1, 2)
    finish(db)
    assert statuses(db, shoe) == {"ann": "cancelled", "bob": "reserved"}
    assert status(db, bob).ticket == 3 - answer.ticket


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_an_entry_that_is_locked_delays_only_itself(
    db: Connection, clock: Clock, database_url: str, ending: str
) -> None:
    shoe = draw_item(db, clock, stock=2)
    entries = [a.order_id for a in many(db, shoe, [f"c{n}" for n in range(8)])]
    clock.advance(61)
    while drawn(db, shoe).state != "drawing":
        sweep(db)
    with connect(database_url) as tool:
        tool.execute("begin")
        call(tool, "cancel", entries[3], "c3")
        finish(db)
        assert drawn(db, shoe).state == "drawing"
        assert drawn(db, shoe).secret is None
        assert [status(db, e).ticket is None for e in entries] == [n == 3 for n in range(8)]
        assert reserve(db, shoe, "late").ticket == 9
        tool.execute(ending)
    finish(db)
    public = drawn(db, shoe)
    assert public.state == "drawn"
    expected = places(public.secret, public.list_hash, entries)
    assert {e: status(db, e).ticket for e in entries} == expected
    held = [o for o in statuses(db, shoe).values() if o == "reserved"]
    assert len(held) == 2
    assert (status(db, entries[3]).status == "cancelled") == (ending == "commit")


def test_two_sweeps_do_not_draw_at_once(db: Connection, clock: Clock, database_url: str) -> None:
    shoe = draw_item(db, clock)
    entries = [a.order_id for a in many(db, shoe, ["ann", "bob"])]
    clock.advance(61)
    sweep(db)
    with connect(database_url) as sweeper:
        for _ in range(6):
            sweeper.execute("begin")
            sweep(sweeper)
            assert sweep(db).promoted == 0  # the other one has the item
            sweeper.execute("commit")
    finish(db)
    public = drawn(db, shoe)
    expected = places(public.secret, public.list_hash, entries)
    assert {e: status(db, e).ticket for e in entries} == expected


@pytest.mark.parametrize("visits", range(1, 9))
def test_a_visit_that_is_undone_is_done_again(
    db: Connection, clock: Clock, database_url: str, visits: int
) -> None:
    shoe = draw_item(db, clock, stock=1)
    entries = [a.order_id for a in many(db, shoe, ["ann", "bob", "cat"])]
    clock.advance(61)
    for _ in range(visits - 1):
        sweep(db)
    with connect(database_url) as sweeper:
        sweeper.execute("begin")
        sweep(sweeper)
        sweeper.execute("rollback")
    finish(db)
    public = drawn(db, shoe)
    expected = places(public.secret, public.list_hash, entries)
    assert {e: status(db, e).ticket for e in entries} == expected
    assert reserve(db, shoe, "dan").ticket == 4
