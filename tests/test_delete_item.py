"""delete_item: a closed item with nothing open or owed goes, some orders at a time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest

from erasing_support import buy, columns_named, still_open, work
from flashsale.testing import Clock
from support import (
    Connection,
    call,
    call_all,
    connect,
    item,
    many,
    one,
    pay,
    reserve,
    rows,
    settle,
    sweep,
    value,
)

COVERED = {
    "items": "goes first",
    "deleting_items": "goes last",
    "orders": "go some at a time",
    "order_keys": "go with their orders",
    "payments": "go with their orders",
    "offline_references": "go with their orders",
    "withdrawn_tickets": "go at the end",
    "tallies": "go at the end",
    "sweep_failures": "go at the end",
    "feed_lines": "go at the end",
    "draws": "go at the end",
    "draw_hashes": "go at the end",
    "drawn_entries": "go with their orders",
    "outbox": "is published first; what comes later about orders goes at the end",
    "events": "stay until purge deletes them by age: they name no customer",
    "history": "stays: it has the sums, and what staff have done",
}
"""What delete_item does with each table that belongs to items or orders."""


def test_delete_item_knows_every_table_of_an_item(db: Connection) -> None:
    """A new table has to be added to erase_orders or end_deleting, or here with a reason."""
    assert columns_named(db, "item_id", "order_id", "entry_id") == set(COVERED)


def delete(db: Connection, item_id: int, limit: int = 10000) -> Any:
    return call(db, "delete_item", item_id, "a rehearsal", "eve", limit)


def delete_all(db: Connection, item_id: int, limit: int = 10000) -> int:
    """Calls until it is done; returns how many orders were erased."""
    erased: int = 0
    while True:
        told = delete(db, item_id, limit)
        erased += int(told.deleted)
        if not told.more:
            return erased


def rehearsal(db: Connection, clock: Clock, sku: str = "shoe") -> int:
    """A sale with everything in it that a sale can have, closed, and all of it done."""
    shoe = item(db, sku, stock=7, refund_seconds=60)
    call(db, "withdraw", shoe, 1)
    buy(db, shoe, "ann", "k")
    many(db, shoe, [f"c{n}" for n in range(20)])
    call(db, "cancel", buy(db, shoe, "c0").order_id, "c0")
    work(db)
    till = reserve(db, shoe, "c1")
    call(db, "pay_offline", till.order_id, f"till {shoe}")
    call(db, "restock", shoe, 5)
    call(db, "withdraw", shoe, 2)
    with db.transaction(force_rollback=True):  # a hole
        reserve(db, shoe, "nobody")
    clock.advance(61)
    settle(db)
    call(db, "close_item", shoe)
    settle(db)
    work(db)
    clock.advance(200)
    settle(db)
    work(db)
    return shoe


def drawn_sale(db: Connection, clock: Clock, sku: str = "shoe") -> int:
    """A sale with a draw: closed, done, and with the draw's leftovers as if it had been stopped."""
    shoe = item(db, sku, stock=2, draw=True, opens_at=clock.at() + timedelta(seconds=60))
    for n in range(6):
        reserve(db, shoe, f"d{n}", f"key {n} of {sku}")
    given_up = reserve(db, shoe, "gone")
    call(db, "cancel", given_up.order_id, "gone")
    clock.advance(60)
    settle(db)
    call(db, "close_item", shoe)
    clock.advance(200)
    settle(db)
    work(db)
    db.execute(
        "insert into flashsale_data.draw_hashes (item_id, hash, entry_id, quantity) "
        "values (%s, 'x', 1, 1)",
        (shoe,),
    )
    return shoe


def events_of(db: Connection, item_id: int) -> list[Any]:
    return rows(db, "select * from flashsale.events(0, 1000) where item_id = %s", item_id)


def everything_of(db: Connection, item_id: int) -> dict[str, int]:
    """How many rows each table has of an item."""
    low, high = item_id << 32, (item_id << 32) + 2**31 - 1
    return {
        table: value(
            db,
            f"select count(*) from flashsale_data.{table} where "
            + ("item_id = %s" if by_item else "order_id between %s and %s"),
            *((item_id,) if by_item else (low, high)),
        )
        for table, by_item in {
            "items": True,
            "deleting_items": True,
            "orders": False,
            "order_keys": True,
            "payments": False,
            "offline_references": False,
            "withdrawn_tickets": True,
            "tallies": True,
            "sweep_failures": True,
            "feed_lines": True,
            "draws": True,
            "draw_hashes": True,
            "drawn_entries": False,
            "outbox": False,
        }.items()
    }


DRAWN = {"draws", "draw_hashes", "drawn_entries"}


def test_a_draw_is_deleted_with_its_item(db: Connection, clock: Clock) -> None:
    hat = drawn_sale(db, clock, "hat")
    shoe = drawn_sale(db, clock)
    before = everything_of(db, hat)
    assert all(before[table] > 0 for table in DRAWN), before
    assert before["orders"] >= 7
    assert delete_all(db, shoe, 3) == before["orders"]
    assert set(everything_of(db, shoe).values()) == {0}
    assert value(
        db, "select count(*) from flashsale_data.drawn_entries where entry_id >> 32 = %s", shoe
    ) == 0  # fmt: skip
    assert everything_of(db, hat) == before
    for verb in ("draw_status", "draw_entries"):
        with pytest.raises(psycopg.Error) as error:
            rows(db, f"select * from flashsale.{verb}(%s)", shoe)
        assert error.value.sqlstate == "RV101"


def test_the_feed_keeps_what_happened_and_forgets_who(db: Connection, clock: Clock) -> None:
    """A reader who comes later misses nothing; what was not published yet is published first."""
    shoe = drawn_sale(db, clock)
    told = events_of(db, shoe)
    assert any(e.data.get("customer_id") for e in told)
    late = value(db, "select max(order_id) from flashsale_data.orders where item_id = %s", shoe)
    note = "insert into flashsale_data.outbox (type, order_id, at) values (%s, %s, %s)"
    db.execute(note, ("order.refunded", told[-1].order_id or late, clock.at()))
    assert delete(db, shoe).more
    published = events_of(db, shoe)
    assert [e[:5] for e in published[: len(told)]] == [e[:5] for e in told]
    assert [e.type for e in published[len(told) :]] == ["order.refunded"]
    never = (shoe << 32) + 1_000_000  # an order that nobody can announce any more
    db.execute(note, ("order.cancelled", never, clock.at()))
    delete_all(db, shoe)
    assert [e[:5] for e in events_of(db, shoe)] == [e[:5] for e in published]
    assert not any(e.data.get("customer_id") for e in events_of(db, shoe))
    assert value(db, "select count(*) from flashsale_data.outbox") == 0
    boot = item(db, "boot")
    settle(db)
    assert [e.type for e in events_of(db, boot)] == ["item.created"], "and the feed goes on"


def test_all_of_an_item_is_deleted_and_nothing_of_others(db: Connection, clock: Clock) -> None:
    hat = rehearsal(db, clock, "hat")
    shoe = rehearsal(db, clock)
    before = everything_of(db, hat)
    assert before["orders"] > 20
    assert all(n > 0 for table, n in everything_of(db, shoe).items() if "ing" not in table
               and table not in {"tallies", "sweep_failures", "outbox"} | DRAWN)  # fmt: skip
    assert delete_all(db, shoe, 7) == before["orders"]
    assert set(everything_of(db, shoe).values()) == {0}
    assert everything_of(db, hat) == before
    lines = [r[0] for r in rows(db, "select relname from pg_class where relname ~ '^line_'")]
    assert lines == [f"line_{hat}"]
    assert sweep(db).more is False
    assert item(db, "shoe") != shoe, "the sku is free again, the item_id is not"


def test_history_keeps_the_sums(db: Connection, clock: Clock) -> None:
    shoe = rehearsal(db, clock)
    delete_all(db, shoe)
    noted = rows(db, "select * from flashsale.history where item_id = %s order by 1", shoe)
    assert noted[-1].action == "delete_item"
    assert (noted[-1].staff, noted[-1].reason) == ("eve", "a rehearsal")
    kept = noted[-1].before
    assert (kept["sku"], kept["price"], kept["currency"]) == ("shoe", 1000, "EUR")
    assert (kept["orders"]["paid"], kept["orders"]["refunded"]) == (2, 1)
    assert kept["money"] == {"succeeded EUR": 2000, "refunded EUR": 1000}
    assert "pay_offline" in {n.action for n in noted}, "what staff have done stays"


def test_from_the_first_step_on_the_item_is_unknown(db: Connection, clock: Clock) -> None:
    shoe = rehearsal(db, clock)
    order = one(db, "select min(order_id) as id from flashsale_data.orders").id
    assert delete(db, shoe, 5) == (0, True)
    for query in (
        "flashsale.reserve(%s, 'zoe')",
        "flashsale.item_status(%s)",
        "flashsale.open_item(%s)",
        "flashsale.close_item(%s)",
        "flashsale.restock(%s, 1)",
        "flashsale.change_item(%s, '{}')",
        "flashsale.extend_holds(%s, 1, 'x')",
    ):
        with pytest.raises(psycopg.Error) as error:
            db.execute(f"select {query}::text".encode(), [shoe])
        assert error.value.sqlstate == "RV101", query
    for verb, args in (
        ("order_status", (order,)),
        ("cancel", (order,)),
        ("refund_order", (order, "x")),
        ("pay_offline", (order, "x")),
    ):
        with pytest.raises(psycopg.Error) as error:
            call(db, verb, *args)
        assert error.value.sqlstate == "RV102", verb
    batch = rows(db, "select outcome from flashsale.reserve_many(%s, %s)", [shoe], ["zoe"])
    assert batch == [("unknown_item",)]
    assert rows(db, "select * from flashsale.items()") == []
    settle(db)
    assert rows(db, "select * from flashsale.violation") == []
    delete_all(db, shoe)


def test_steps_are_bounded(db: Connection, clock: Clock) -> None:
    shoe = rehearsal(db, clock)
    orders = everything_of(db, shoe)["orders"]
    steps = []
    while (told := delete(db, shoe, 7)).more:
        steps.append(told.deleted)
        assert rows(db, "select * from flashsale.violation") == []
    assert steps[0] == 0
    assert steps[1:] == [7] * (orders // 7) + [orders % 7] * (orders % 7 > 0)
    assert delete(db, shoe) == (0, False), "and again changes nothing"


def test_a_step_that_fails_is_done_again(db: Connection, database_url: str, clock: Clock) -> None:
    shoe = rehearsal(db, clock)
    orders = everything_of(db, shoe)["orders"]
    erased = 0
    for _ in range(100):
        with connect(database_url, autocommit=False) as dying:  # ends without a commit
            delete(dying, shoe, 9)
            dying.rollback()
        before = everything_of(db, shoe)
        told = delete(db, shoe, 9)
        erased += told.deleted
        if not told.more:
            break
        assert everything_of(db, shoe)["orders"] == before["orders"] - told.deleted
    assert erased == orders
    assert set(everything_of(db, shoe).values()) == {0}


def test_what_is_open_or_owed_is_refused_and_listed(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=2)
    ask = "select * from flashsale.delete_item(%s, 'a rehearsal')"
    held, paid, waits = (reserve(db, shoe, c) for c in ("ann", "bob", "cid"))
    detail = still_open(db, ask, shoe)
    assert "its sale has not closed" in detail
    assert f"order {held.order_id} is reserved" in detail
    assert f"order {waits.order_id} is waiting" in detail
    call(db, "close_item", shoe)
    sweep(db)
    assert "closed" not in still_open(db, ask, shoe)
    work(db)
    pay(db, paid)
    work(db)
    call(db, "refund_order", paid.order_id, "sick")
    detail = still_open(db, ask, shoe)
    assert f"payment {paid.payment_id} of order {paid.order_id} is refund_due" in detail
    assert f"a job (refund) for order {paid.order_id}" in detail
    db.execute("update pgmq.q_payments set read_ct = 1000")
    work(db)
    (letter,) = rows(db, "select * from flashsale.dead_letter")
    assert f"dead letter {letter.dead_letter_id} (refund)" in still_open(db, ask, shoe)
    call(db, "retry_dead_letter", letter.dead_letter_id)
    clock.advance(61)
    sweep(db)
    assert "an e-mail (expired)" in still_open(db, ask, shoe) or "settling" in still_open(
        db, ask, shoe
    )
    work(db)
    clock.advance(61)
    sweep(db)
    work(db)
    assert delete_all(db, shoe) == 3


def test_a_request_that_is_running_is_seen(db: Connection, database_url: str) -> None:
    """It took its ticket before the sale closed, and its order is not committed yet."""
    shoe = item(db, stock=5)
    with connect(database_url, autocommit=False) as asking:
        reserve(asking, shoe, "ann")
        call(db, "close_item", shoe)
        detail = still_open(db, "select * from flashsale.delete_item(%s, 'x')", shoe)
        assert f"a request for a unit is running (process {asking.info.backend_pid})" == detail
        asking.rollback()
    assert delete_all(db, shoe) == 0


def test_an_order_that_comes_late_after_all_is_erased_in_its_time(
    db: Connection, clock: Clock
) -> None:
    """Its process was stopped between reading the item and taking the ticket."""
    shoe = item(db, stock=1)
    call(db, "close_item", shoe)
    delete(db, shoe)
    insert = (
        "insert into flashsale_data.orders (order_id, item_id, ticket, customer_id, status, "
        "created_at, reserved_at, expires_at) values (%s, %s, %s, %s, %s, %s, %s, %s)"
    )
    now = clock.at(0)
    held = [(shoe << 32) + 1, shoe, 1, "ann", "reserved", now, now, clock.at(60)]
    db.execute(insert, held)
    db.execute(insert, [(shoe << 32) + 2, shoe, 2, "bob", "waiting", now, None, None])
    value(db, "select flashsale.enqueue_payment_jobs('open', %s)", [held[0]])
    assert delete(db, shoe) == (1, True)
    ask = "select * from flashsale.delete_item(%s, 'x')"
    assert f"order {held[0]} is reserved" in still_open(db, ask, shoe)
    clock.advance(61)
    assert delete(db, shoe) == (0, True), "this step ends it"
    assert "a job (void)" in still_open(db, ask, shoe)
    work(db)
    assert delete_all(db, shoe) == 1
    assert set(everything_of(db, shoe).values()) == {0}


def test_money_that_comes_meanwhile_goes_back_before_its_order_goes(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db, stock=2, settle_seconds=0)
    late, other = reserve(db, shoe, "ann"), reserve(db, shoe, "bob")
    work(db)
    clock.advance(61)
    sweep(db)
    work(db)
    call(db, "close_item", shoe)
    delete(db, shoe)
    assert pay(db, late).outcome == "refund_due"
    assert delete(db, shoe) == (1, True), f"only {other.order_id}"
    detail = still_open(db, "select * from flashsale.delete_item(%s, 'x')", shoe)
    assert f"payment {late.payment_id} of order {late.order_id} is refund_due" in detail
    work(db)
    assert delete_all(db, shoe) == 1


def test_money_that_comes_after_that_is_a_stray_and_goes_back(db: Connection, clock: Clock) -> None:
    shoe = item(db, settle_seconds=0)
    late = reserve(db, shoe, "ann")
    work(db)
    clock.advance(61)
    sweep(db)
    work(db)
    call(db, "close_item", shoe)
    delete_all(db, shoe)
    assert pay(db, late).outcome == "stray"
    work(db)
    assert [p.status for p in rows(db, "select status from flashsale_data.payments")] == [
        "refunded"
    ]


def test_an_event_that_the_provider_sends_again_is_known(db: Connection, clock: Clock) -> None:
    """Else money of a deleted order would be a stray, and go back although it bought something."""
    shoe = item(db)
    order = reserve(db, shoe, "ann")
    work(db)
    event = ["e1", "payment.succeeded", "s1", str(order.payment_id), 1000, "EUR", clock.at(0)]
    record = "select flashsale.record_payment_event(%s, %s, %s, %s, %s, %s, %s)"
    db.execute("update flashsale_data.payments set session_id = 's1'")
    assert value(db, record, *event) == "paid"
    work(db)
    call(db, "close_item", shoe)
    delete_all(db, shoe)
    assert value(db, record, *event) == "duplicate"
    assert rows(db, "select * from flashsale_data.payments") == []


def test_an_order_that_is_locked_is_left_for_later(
    db: Connection, database_url: str, clock: Clock
) -> None:
    shoe = rehearsal(db, clock)
    orders = everything_of(db, shoe)["orders"]
    delete(db, shoe)
    with connect(database_url, autocommit=False) as locking:
        locking.execute("select from flashsale_data.orders order by order_id limit 1 for update")
        assert delete(db, shoe).deleted == orders - 1
        assert (
            still_open(db, "select * from flashsale.delete_item(%s, 'x')", shoe)
            == "a transaction has locked an order"
        )
    assert delete_all(db, shoe) == 1


def test_a_reader_of_the_line_is_not_waited_for_long(
    db: Connection, database_url: str, clock: Clock
) -> None:
    shoe = item(db)
    call(db, "close_item", shoe)
    with connect(database_url, autocommit=False) as reading:
        call(reading, "item_status", shoe)
        assert delete(db, shoe) == (0, True)
        ask = "select * from flashsale.delete_item(%s, 'x')"
        assert still_open(db, ask, shoe) == "a transaction reads the item's line"
    assert delete(db, shoe) == (0, False)


def test_sweeps_and_two_operators_at_once(db: Connection, database_url: str, clock: Clock) -> None:
    from interleave import interleave, orders_of_steps, threaded_sessions

    with threaded_sessions(database_url, 3) as sessions:
        for n, order in enumerate(orders_of_steps((3, 2, 1))):
            shoe = item(db, f"i{n}", stock=1)
            many(db, shoe, ["ann", "bob"])
            clock.advance(61)
            call(db, "close_item", shoe)
            settle(db)
            work(db)
            clock.advance(61)
            settle(db)
            work(db)

            def step(conn: Connection, shoe: int = shoe) -> None:
                delete(conn, shoe)

            errors = interleave(
                db,
                sessions,
                [[step] * 3, [step] * 2, [lambda c: call_all(c, "sweep")]],
                order,
            )
            assert [e for e in errors if e.sqlstate != "RV212"] == []
            delete_all(db, shoe)
            assert set(everything_of(db, shoe).values()) == {0}
            assert rows(db, "select * from flashsale.violation") == []


def test_an_unknown_item_and_a_missing_reason_are_refused(db: Connection) -> None:
    with pytest.raises(psycopg.Error) as error:
        delete(db, 7)
    assert error.value.sqlstate == "RV101"
    shoe = item(db)
    call(db, "close_item", shoe)
    with pytest.raises(psycopg.Error) as error:
        call(db, "delete_item", shoe, "")
    assert error.value.sqlstate == "RV302"
    delete_all(db, shoe)


def test_a_publication_for_all_tables_does_not_forbid_it(db: Connection, clock: Clock) -> None:
    """As change-data-capture tools make it: it forbids to delete where rows have no identity."""
    without = rows(
        db,
        """
        select c.relname from pg_class c
        where c.relnamespace = 'flashsale_data'::regnamespace and c.relkind = 'r'
          and c.relreplident = 'd'
          and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)
        """,
    )
    assert [w.relname for w in without if "yoyo" not in w.relname] == []
