"""Sequences behind the rows of their tables, as after a cut-over by logical replication."""

from __future__ import annotations

from typing import Any, cast

import psycopg
import pytest

from flashsale.database import sequences
from flashsale.database.migrate import migrate
from flashsale.testing import Clock
from migrate_support import is_waited_for
from support import (
    Call,
    Connection,
    call,
    connect,
    eventually,
    item,
    reserve,
    rows,
    value,
)
from test_draw import draw_item, drawn, finish


def test_sequences_that_are_behind_are_advanced(database_url: str) -> None:
    """Logical replication carries rows and no sequences."""
    with connect(database_url) as conn:
        shoe = item(conn, stock=5)
        for name in ("ann", "bob", "cat"):
            reserve(conn, shoe, name)
        line = value(conn, "select line::text from flashsale_data.items where item_id = %s", shoe)
        item_ids = value(conn, "select pg_get_serial_sequence('flashsale_data.items', 'item_id')")
        jobs = value(conn, "select pg_get_serial_sequence('pgmq.q_payments', 'msg_id')")
        for sequence in (line, item_ids, jobs):
            conn.execute(f"alter sequence {sequence} restart")
        with pytest.raises(psycopg.errors.UniqueViolation):
            reserve(conn, shoe, "dan")
        conn.execute(f"alter sequence {line} restart")
        (shown,) = rows(conn, "select promise, item_id, detail from flashsale.violation")
        assert (shown.promise, shown.item_id) == ("every ticket is of its line", shoe)
        assert shown.detail == "ticket 3, the line has given out 0"
        assert sorted(migrate(database_url).advanced) == sorted([line, item_ids, jobs])
        assert reserve(conn, shoe, "dan").ticket == 4
        assert item(conn, sku="another") == shoe + 1
        assert rows(conn, "select * from flashsale.violation") == []
        assert migrate(database_url).advanced == []


def test_a_sale_that_goes_on_meanwhile_does_not_look_like_a_sequence_behind(
    database_url: str,
) -> None:
    class Busy:
        """A session of migrate; before each of its statements somebody else reserves a unit."""

        requests = 0

        def execute(self, *args: Any) -> Any:
            self.requests += 1
            reserve(customers, shoe, f"customer {self.requests}")
            return conn.execute(*args)

        def transaction(self) -> Any:
            return conn.transaction()

    with connect(database_url) as conn, connect(database_url) as customers:
        shoe = item(customers, stock=50)
        customers.execute("set lock_timeout = '2s'")
        busy = Busy()
        assert sequences.advance(cast("psycopg.Connection[Any]", busy)) == []
        assert busy.requests > 5


def test_a_sequence_is_never_set_back(database_url: str) -> None:
    """A customer who takes a ticket while migrate looks gets one that nobody gets again."""
    with connect(database_url) as conn, connect(database_url, autocommit=False) as customer:
        shoe = item(conn, stock=5)
        reserve(conn, shoe, "ann")
        line = value(conn, "select line::text from flashsale_data.items where item_id = %s", shoe)
        conn.execute(f"alter sequence {line} restart")
        customer.execute(f"select nextval('{line}') from generate_series(1, 2)")
        advancing = Call(lambda: sequences.advance_to(psycopg.connect(database_url), line, 1))
        eventually(lambda: is_waited_for(conn, customer))
        customer.commit()
        advancing.result()
        assert reserve(conn, shoe, "dan").ticket == 3


def test_a_line_goes_on_behind_the_tickets_that_were_withdrawn(db: Connection) -> None:
    """They have no orders. Given out again, each would be a unit that is not there."""
    shoe = item(db, stock=3)
    call(db, "withdraw", shoe, 3)
    line = value(db, "select line::text from flashsale_data.items")
    db.execute(f"alter sequence {line} restart")
    assert sequences.advance(db) == [line]
    assert reserve(db, shoe, "ann").outcome == "waiting"


def test_entries_of_a_draw_go_on_behind_those_that_are_there(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock)
    entry = reserve(db, shoe, "ann")
    db.execute("select setval('flashsale_data.entry_numbers', 2000000001, false)")
    assert sequences.advance(db) == ["flashsale_data.entry_numbers"]
    assert reserve(db, shoe, "bob").order_id == entry.order_id + 1
    assert sequences.advance(db) == []


def test_a_line_goes_on_behind_the_tickets_that_are_still_to_be_drawn(
    db: Connection, clock: Clock
) -> None:
    shoe = draw_item(db, clock)
    for name in ("ann", "bob", "cat"):
        reserve(db, shoe, name)
    clock.advance(61)
    while drawn(db, shoe).state != "drawing":
        call(db, "sweep")
    line = value(db, "select line::text from flashsale_data.items")
    db.execute(f"alter sequence {line} restart")
    assert sequences.advance(db) == [line]
    assert reserve(db, shoe, "dan").ticket == 4
    finish(db)
